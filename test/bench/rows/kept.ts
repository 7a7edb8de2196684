/** The memory of a cached state after a command, and what remains of it when the layer is closed. */
import { randomUUID } from "node:crypto"
import * as v8 from "node:v8"
import * as vm from "node:vm"
import { makeLine } from "../lines.js"
import { median, type Work } from "../measure.js"
import { onPostgres, openOurs } from "../stage.js"
import { deposit } from "./command.js"
import type { Row } from "./row.js"

export const kept: Row = {
  name: "kept",
  run: async ({ url }, emit) => {
    // The first time includes what is made only once: code, connections, plans of statements.
    await heapAround(url, 2000)
    const turns = [await heapAround(url, aggregates), await heapAround(url, aggregates)]
    for (const [id, work, of] of [
      ["open", "memory per kept aggregate", (turn) => turn.open],
      ["closed", "memory per aggregate after the layer is closed", (turn) => turn.closed]
    ] as const satisfies ReadonlyArray<readonly [string, string, (turn: Heap) => number]>) {
      const rounds = turns.map(of)
      const measured = { ours: { median: median(rounds), rounds } }
      emit(makeLine({ id: `kept/${id}`, work, clients, unit: "bytes", measured }))
    }
  }
}

// --- internal ---

/** The number of aggregates, all of whose states fit into the cache. */
const aggregates = 10_000
const clients = 16

/** The growth of the heap for each aggregate, in bytes. */
interface Heap {
  readonly open: number
  readonly closed: number
}

const heapAround = async (url: string, count: number): Promise<Heap> => {
  const ours = await openOurs(onPostgres(url))
  const evaluate = deposit(ours.run)
  // This opens the connections.
  await atOnce(() => evaluate(randomUUID()), 10 * clients)
  const before = heapUsed()
  await atOnce(() => evaluate(randomUUID()), count)
  const open = heapUsed()
  await ours.close()
  const closed = heapUsed()
  return { open: (open - before) / count, closed: (closed - before) / count }
}

const collectGarbage: () => void = (() => {
  v8.setFlagsFromString("--expose-gc")
  return vm.runInNewContext("gc")
})()

const heapUsed = (): number => {
  collectGarbage()
  collectGarbage()
  return process.memoryUsage().heapUsed
}

/** Runs a number of operations, shared by all clients. */
const atOnce = async (work: Work, count: number): Promise<void> => {
  let left = count
  await Promise.all(
    Array.from({ length: clients }, async (_, client) => {
      while (left-- > 0) await work(client)
    })
  )
}
