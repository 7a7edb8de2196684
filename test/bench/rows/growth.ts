/**
 * Appends to logs of ten thousand, a hundred thousand and a million events, and loads aggregates of a hundred events
 * from them.
 */
import { randomInt, randomUUID } from "node:crypto"
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import { SqlStore, StoreAdapter, type Timestamp } from "effect-maestro"
import type pg from "pg"
import { Account } from "../domain.js"
import { makeLine, type Unit } from "../lines.js"
import { type Contestant, compete, contestant, medianLatency, type Round } from "../measure.js"
import type { Stage } from "../stage.js"
import { appendDeposit } from "./append.js"
import type { Row } from "./row.js"

export const growth: Row = {
  name: "growth",
  run: async (stage, emit) => {
    const logs = await Promise.all(sizes.map((size) => openLog(stage, size)))
    for (const { exponent, name } of sizes) await fill(stage.pool, name, 10 ** exponent)
    await stage.pool.query("checkpoint")
    // Turns are short, so that the smallest log stays small.
    const effort = { rounds: 2 * stage.effort.rounds, seconds: stage.effort.seconds / 4 }

    const measure = async (kind: Kind): Promise<void> => {
      const contestants = logs.map((log) => kind.contestant(log))
      const measured = await compete(contestants, kind.clients, effort, kind.of)
      const base = measured[first]?.median
      for (const { name, shown } of sizes) {
        const ours = measured[name]
        if (ours === undefined || base === undefined) continue
        const ratio = kind.unit === "per second" ? ours.median / base : base / ours.median
        emit(
          makeLine(
            {
              id: `growth/${kind.name}/${shown}`,
              work: `${kind.work}, log of ${shown}`,
              clients: kind.clients,
              unit: kind.unit,
              measured: { ours }
            },
            name === first ? {} : { "10^4": ratio }
          )
        )
      }
    }
    for (const kind of kinds) await measure(kind)
  }
}

// --- internal ---

const eventsEach = 100

const sizes = [4, 5, 6].map((exponent) => ({ exponent, name: `log_${exponent}`, shown: `10^${exponent}` }))
const first = "log_4"

/** A log in a schema of its own, and the services on it. */
interface Log {
  readonly name: string
  readonly aggregates: number
  readonly store: StoreAdapter.StoreAdapterService
  readonly clock: Timestamp.HybridClockService
  readonly run: Stage["ours"]["run"]
  readonly pool: pg.Pool
}

interface Kind {
  readonly name: string
  readonly work: string
  readonly clients: number
  readonly unit: Unit
  readonly of: (round: Round) => number
  readonly contestant: (log: Log) => Contestant<string>
}

const kinds: ReadonlyArray<Kind> = [
  {
    name: "append",
    work: "append to a new stream",
    clients: 16,
    unit: "per second",
    of: ({ rate }) => rate,
    contestant: (log) => appending(log, log.clock.now)
  },
  {
    name: "append-random",
    work: "append to a new stream, random ids",
    clients: 16,
    unit: "per second",
    of: ({ rate }) => rate,
    contestant: (log) => appending(log, Effect.sync(randomUUID))
  },
  {
    name: "load",
    work: "load 100 events",
    clients: 1,
    unit: "ms",
    of: medianLatency,
    contestant: (log) =>
      contestant(log.name, () => async () => {
        const id = `a${randomInt(log.aggregates)}`
        const { balance } = await log.run(loadIn(log, id))
        if (balance !== eventsEach) throw new Error(`${balance} events of ${eventsEach}`)
      })
  }
]

/** The events of a turn are deleted before the next one, so that the log keeps its size. */
const appending = (log: Log, newId: Effect.Effect<string>): Contestant<string> =>
  contestant(log.name, async () => {
    await log.pool.query(`delete from ${log.name}.event_log where aggregate_id not like 'Account/a%'`)
    await log.pool.query(`vacuum ${log.name}.event_log`)
    const append = Effect.flatMap(newId, (id) => appendDeposit(log.store, log.clock, `Account/n${id}`))
    return () => log.run(append)
  })

/** Loads by a new layer on this log, without a cached state. */
const loadIn = ({ store }: Log, id: string) =>
  Account.fetch(id).pipe(Effect.provide(Account.layer), Effect.provideService(StoreAdapter.StoreAdapter, store))

const openLog = async ({ clock, ours, pool }: Stage, { exponent, name }: (typeof sizes)[number]): Promise<Log> => ({
  name,
  aggregates: 10 ** exponent / eventsEach,
  // It stays open until the process ends.
  store: await ours.run(Effect.flatMap(Scope.make(), (scope) => Scope.extend(SqlStore.make({ schema: name }), scope))),
  clock,
  run: ours.run,
  pool
})

/** Inserts rows directly, because commits through the store would take minutes. */
const fill = async (pool: pg.Pool, schema: string, size: number): Promise<void> => {
  await pool.query(
    `insert into ${schema}.event_log (aggregate_id, sequence, type, body, metadata, timestamp)
      select 'Account/a' || (n / $2::int), n % $2::int + 1, 'Deposited', '{"amount": 1}', '{}', uuidv7()
      from generate_series(0, $1::int - 1) n`,
    [size, eventsEach]
  )
  await pool.query(`vacuum analyze ${schema}.event_log`)
}
