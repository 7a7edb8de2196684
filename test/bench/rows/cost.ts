/**
 * The cost of a command other than time: processor time of client and server, and round trips. Also the round trips of
 * a load.
 */
import { makeLine, type Unit } from "../lines.js"
import { type Effort, type Measured, median, type Work, workFor } from "../measure.js"
import { openCountingProxy } from "../roundTrips.js"
import { serverCpuReader } from "../serverCpu.js"
import { onPostgres, openEmmett, openOurs, type Stage } from "../stage.js"
import { deposit, emmettDeposit, hot } from "./command.js"
import { loadEmmett, loadOurs, prepareLongStream } from "./load.js"
import type { Row } from "./row.js"

export const cost: Row = {
  name: "cost",
  run: async (stage, emit) => {
    const proxied = await openProxied(stage.url)
    try {
      const trips: Meter = { name: "trips", what: "round trips", unit: "round trips", read: proxied.count, on: proxied }
      for (const meter of [...(await processors(stage)), trips]) {
        for (const clients of [1, 16]) {
          const measured = await metered(meter, stage.effort, clients, {
            ours: () => hot(deposit(meter.on.ours.run)),
            emmett: () => hot(emmettDeposit(meter.on.emmett.store))
          })
          const work = `${meter.what} per command on a hot aggregate`
          emit(makeLine({ id: `cost/${meter.name}/${clients}`, work, clients, unit: meter.unit, measured }))
        }
      }
      const id = await prepareLongStream(stage)
      const measured = await metered(trips, stage.effort, 1, {
        ours: () => () => loadOurs(proxied.ours, id),
        emmett: () => () => loadEmmett(proxied.emmett, id)
      })
      const work = "round trips to load 10 000 events"
      emit(makeLine({ id: "cost/trips/load", work, clients: 1, unit: trips.unit, measured }))
    } finally {
      await proxied.close()
    }
  }
}

// --- internal ---

/** A reading that rises with the work, and the contestant that does the work. */
interface Meter {
  readonly name: string
  readonly what: string
  readonly unit: Unit
  readonly read: () => number
  readonly on: Pick<Stage, "ours" | "emmett">
}

/** The processor time of the server is known on Linux only. */
const processors = async (stage: Stage): Promise<ReadonlyArray<Meter>> => {
  const server = await serverCpuReader(stage.pool)
  const client: Meter = {
    name: "client",
    what: "processor time of the client",
    unit: "µs",
    read: clientMicros,
    on: stage
  }
  return server === undefined
    ? [client]
    : [client, { ...client, name: "server", what: "processor time of the server", read: () => 1000 * server() }]
}

const clientMicros = (): number => {
  const { system, user } = process.cpuUsage()
  return system + user
}

/** Both contestants on new connections through a counting proxy. */
const openProxied = async (url: string) => {
  const proxy = await openCountingProxy(url)
  const ours = await openOurs(onPostgres(proxy.url))
  const emmett = await openEmmett(proxy.url)
  return {
    ours,
    emmett,
    count: proxy.count,
    close: async () => {
      await Promise.all([ours.close(), emmett.close()])
      await proxy.close()
    }
  }
}

/** Measures in turns by how much the meter rises for one operation. */
const metered = async (
  { read }: Meter,
  { rounds, seconds }: Effort,
  clients: number,
  contestants: Readonly<Record<"ours" | "emmett", () => Work>>
): Promise<Record<"ours" | "emmett", Measured>> => {
  const figures = { ours: [] as number[], emmett: [] as number[] }
  // The first turn is the warm-up.
  for (let turn = 0; turn <= rounds; turn++) {
    for (const name of ["ours", "emmett"] as const) {
      const before = read()
      const { failures, latencies } = await workFor(contestants[name](), clients, seconds / 2)
      if (turn > 0) figures[name].push((read() - before) / (latencies.length + failures))
    }
  }
  return {
    ours: { median: median(figures.ours), rounds: figures.ours },
    emmett: { median: median(figures.emmett), rounds: figures.emmett }
  }
}
