/**
 * A millisecond of network between client and server, one client: an append and a command on a hot aggregate. An empty commit beside them
 * shows what one round trip allows: it takes the network and the flush to the disk, and no other work.
 */
import { randomUUID } from "node:crypto"
import { STREAM_DOES_NOT_EXIST } from "@event-driven-io/emmett"
import { StoreAdapter } from "effect-maestro"
import pg from "pg"
import { appendBare, type EmmettDeposited, emmettDeposited } from "../domain.js"
import { type Line, makeLine } from "../lines.js"
import { type Contestant, compete, contestant, medianLatency } from "../measure.js"
import { openNetwork } from "../network.js"
import { onPostgres, openEmmett, openOurs, poolSize, type Stage } from "../stage.js"
import { appendDeposit } from "./append.js"
import { deposit, emmettDeposit, hot } from "./command.js"
import type { Row } from "./row.js"

export const network: Row = {
  name: "network",
  run: async (stage, emit) => {
    const { close, url } = await openNetwork(stage.url, 0.5)
    const pool = new pg.Pool({ connectionString: url, max: poolSize })
    const ours = await openOurs(onPostgres(url))
    const emmett = await openEmmett(url)
    try {
      await measureTrip(stage, pool, emit)
      const store = await ours.run(StoreAdapter.StoreAdapter)
      await measure(stage, emit, "append", "append one event to a new stream", [
        contestant("ours", () => () => ours.run(appendDeposit(store, stage.clock, randomUUID()))),
        contestant("emmett", () => () => {
          const options = { expectedStreamVersion: STREAM_DOES_NOT_EXIST } as const
          return emmett.store.appendToStream<EmmettDeposited>(randomUUID(), [emmettDeposited], options)
        }),
        contestant("floor", () => () => appendBare(pool, randomUUID(), 1)),
        contestant("pg", () => () => emptyCommit(pool))
      ])
      await measure(stage, emit, "hot", "command on a hot aggregate", [
        contestant("ours", () => hot(deposit(ours.run))),
        contestant("emmett", () => hot(emmettDeposit(emmett.store))),
        contestant("floor", () => {
          const id = randomUUID()
          let sequence = 0
          return () => appendBare(pool, id, ++sequence)
        }),
        contestant("pg", () => () => emptyCommit(pool))
      ])
    } finally {
      await Promise.all([ours.close(), emmett.close(), pool.end()])
      close()
    }
  }
}

// --- internal ---

type Emit = (line: Line) => void

const emptyTrip = (pool: pg.Pool) => pool.query({ name: "nothing", text: "select 1" })

/** Writes a record that nothing reads, so that the commit is flushed. */
const emptyCommit = (pool: pg.Pool) =>
  pool.query({ name: "empty commit", text: "select pg_logical_emit_message(true, '', '')" })

/** The time of a statement that does nothing, so that the delay is measured and not assumed. */
const measureTrip = async ({ effort, pool }: Stage, delayed: pg.Pool, emit: Emit): Promise<void> => {
  for (const [id, work, of] of [
    ["trip", "a statement that does nothing, 1 ms of network", delayed],
    ["no-network", "a statement that does nothing, no network", pool]
  ] as const) {
    const measured = await compete([contestant("pg", () => () => emptyTrip(of))], 1, effort, medianLatency)
    emit(makeLine({ id: `network/${id}`, work, clients: 1, unit: "ms", measured }))
  }
}

const measure = async (
  { effort }: Stage,
  emit: Emit,
  id: string,
  work: string,
  contestants: ReadonlyArray<Contestant>
): Promise<void> => {
  for (const { round } of contestants) await round(1, 1)
  const measured = await compete(contestants, 1, effort)
  emit(makeLine({ id: `network/${id}`, work: `${work}, 1 ms of network`, clients: 1, unit: "per second", measured }))
}
