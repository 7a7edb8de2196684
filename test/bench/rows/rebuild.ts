/**
 * Rebuilds the table of a strong projection: by statements, by effects that are one statement each, and while clients
 * commit to the table. It has a database of its own, so that its log has a known size.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Redacted from "effect/Redacted"
import { Rebuild, SqlStore } from "effect-maestro"
import type pg from "pg"
import { Deposit, ProjectedAccount, ProjectedBySql, tables } from "../domain.js"
import { makeLine, type Unit } from "../lines.js"
import { median } from "../measure.js"
import { makeDatabase, type Ours, openOurs, poolSize } from "../stage.js"
import type { Row } from "./row.js"

export const rebuild: Row = {
  name: "rebuild",
  run: async (stage, emit) => {
    const { effort } = stage
    const { pool: own, url } = await makeDatabase(stage, "rebuild")
    await own.query(tables)
    const ours = await openOurs(layerOn(url))
    try {
      const line = (id: string, work: string, unit: Unit, rounds: ReadonlyArray<number>, clients: number) =>
        emit(
          makeLine({ id: `rebuild/${id}`, work, clients, unit, measured: { ours: { median: median(rounds), rounds } } })
        )

      for (const { kind } of kinds) await fill(own, kind, events)
      for (const { aggregate, id, kind, work } of kinds) {
        // The first run compiles the code of the rebuild.
        await timed(ours, `${id}-warm-up`, aggregate)
        const rates: Array<number> = []
        for (let round = 0; round < Math.min(effort.rounds, 3); round++) {
          const { millis, projected } = await timed(ours, `${id}-${round}`, aggregate)
          rates.push((projected / millis) * 1000)
        }
        await verify(own, kind)
        line(id, `rebuild of ${events} events, ${work}`, "per second", rates, 1)
      }
      for (const each of kinds) {
        const { id, kind, work } = each
        const { hold, millis } = await besideWriters(ours, `${id}-writers`, each)
        await verify(own, kind)
        line(`${id}/time`, `rebuild beside clients that commit, ${work}: time until its end`, "ms", [millis], writers)
        line(
          `${id}/hold`,
          `rebuild beside clients that commit, ${work}: longest wait of a client`,
          "ms",
          [hold],
          writers
        )
      }
    } finally {
      await ours.close()
      await own.end()
    }
  }
}

// --- internal ---

const events = 20_000
const writers = 16

const kinds = [
  {
    id: "sql",
    work: "projection that is SQL",
    aggregate: ProjectedBySql,
    kind: "ProjectedBySql",
    deposit: Effect.flatMap(ProjectedBySql.newId, (id) => ProjectedBySql.evaluate(id, new Deposit({ amount: 1 })))
  },
  {
    id: "effect",
    work: "projection by an effect",
    aggregate: ProjectedAccount,
    kind: "ProjectedAccount",
    deposit: Effect.flatMap(ProjectedAccount.newId, (id) => ProjectedAccount.evaluate(id, new Deposit({ amount: 1 })))
  }
] as const

type Kind = (typeof kinds)[number]

const layerOn = (url: string) =>
  Layer.mergeAll(ProjectedAccount.layer, ProjectedBySql.layer).pipe(
    Layer.provideMerge(SqlStore.layer),
    Layer.provideMerge(PgClient.layer({ url: Redacted.make(url), maxConnections: poolSize })),
    // The lines of the log would come between those of the table.
    Layer.provideMerge(Logger.remove(Logger.defaultLogger))
  )

type Running = Ours<Layer.Layer.Success<ReturnType<typeof layerOn>>>

/** Inserts rows directly, ten events for each aggregate. */
const fill = async (pool: pg.Pool, kind: string, size: number): Promise<void> => {
  await pool.query(
    `insert into maestro.event_log (aggregate_id, sequence, type, body, metadata, timestamp)
      select $2::text || '/a' || (n / 10), n % 10 + 1, 'Deposited', '{"amount": 1}', '{}', uuidv7()
      from generate_series(0, $1::int - 1) n`,
    [size, kind]
  )
  await pool.query("vacuum analyze maestro.event_log")
}

const timed = async (ours: Running, name: string, { projections }: Kind["aggregate"]) => {
  let hold = 0
  const began = performance.now()
  const projected = await ours.run(
    Rebuild.run({
      name,
      projections,
      tables: ["balances"],
      onProgress: ({ longestHoldMillis }) =>
        Effect.sync(() => {
          hold = longestHoldMillis
        })
    }).pipe(Logger.withMinimumLogLevel(LogLevel.Warning))
  )
  return { hold, millis: performance.now() - began, projected }
}

/** Runs a rebuild while clients commit to new aggregates, until it has ended. */
const besideWriters = async (ours: Running, name: string, { aggregate, deposit }: Kind) => {
  let isRunning = true
  const clients = Array.from({ length: writers }, async () => {
    while (isRunning) await ours.run<unknown, unknown>(deposit)
  })
  const result = await timed(ours, name, aggregate)
  isRunning = false
  await Promise.all(clients)
  return result
}

/** Fails unless the table has each deposit. */
const verify = async (pool: pg.Pool, kind: string): Promise<void> => {
  const { rows } = await pool.query<{ equal: boolean }>(
    `select (select sum(amount) from balances) = (select count(*) from maestro.event_log where aggregate_id like $1) as equal`,
    [`${kind}/%`]
  )
  if (rows[0]?.equal !== true) throw new Error("the rebuilt table and the events differ")
}
