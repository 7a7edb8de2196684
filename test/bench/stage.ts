/** Starts a server for the rows and opens all contestants on it, each with a pool of equal size. */
import type * as SqlClient from "@effect/sql/SqlClient"
import * as PgClient from "@effect/sql-pg/PgClient"
import { getPostgreSQLEventStore, type PostgresEventStore } from "@event-driven-io/emmett-postgresql"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Runtime from "effect/Runtime"
import * as Scope from "effect/Scope"
import { type Aggregate, SqlStore, StoreAdapter, Timestamp } from "effect-maestro"
import pg from "pg"
import { Account, emmettBalances, ProjectedAccount, ProjectedBySql, tableOfFloor, tables } from "./domain.js"
import type { Effort } from "./measure.js"
import type { Pgbench } from "./pgbench.js"

export const poolSize = 16

/** The services of this library. Each operation is a promise, as in a client of an application. */
export interface Ours<R> {
  readonly run: <A, E>(effect: Effect.Effect<A, E, R>) => Promise<A>
  readonly close: () => Promise<void>
}

export type OnPostgres =
  | StoreAdapter.StoreAdapter
  | SqlClient.SqlClient
  | Aggregate.Instance<"Account">
  | Aggregate.Instance<"ProjectedAccount">
  | Aggregate.Instance<"ProjectedBySql">

export interface Emmett {
  readonly store: PostgresEventStore
  readonly close: () => Promise<void>
}

export interface Stage {
  readonly url: string
  readonly effort: Effort
  readonly ours: Ours<OnPostgres>
  readonly store: StoreAdapter.StoreAdapterService
  readonly clock: Timestamp.HybridClockService
  readonly emmett: Emmett
  /** Emmett with the projection of the balances in its transactions. */
  readonly projecting: Emmett
  readonly pool: pg.Pool
  readonly pgbench: Pgbench | undefined
  readonly close: () => Promise<void>
}

export const openStage = async (url: string, effort: Effort, pgbench: Pgbench | undefined): Promise<Stage> => {
  const pool = new pg.Pool({ connectionString: url, max: poolSize })
  await pool.query(tables)
  const ours = await openOurs(onPostgres(url))
  await pool.query(tableOfFloor)
  const emmett = await openEmmett(url)
  const projecting = await openEmmett(url, { projections: emmettBalances })
  return {
    url,
    effort,
    ours,
    store: await ours.run(StoreAdapter.StoreAdapter),
    clock: await ours.run(Timestamp.HybridClock),
    emmett,
    projecting,
    pool,
    pgbench,
    close: async () => {
      await Promise.all([ours.close(), emmett.close(), projecting.close(), pool.end()])
      // The connections of the pools end asynchronously, and the server must stop after them.
      await new Promise((resolve) => setTimeout(resolve, 500))
    }
  }
}

/** A database of its own for a row, so that the tables of the other rows keep their size. */
export const makeDatabase = async ({ pool, url }: Pick<Stage, "pool" | "url">, name: string) => {
  await pool.query(`create database ${name}`)
  const own = new URL(url)
  own.pathname = `/${name}`
  return { url: own.href, pool: new pg.Pool({ connectionString: own.href, max: 1 }) }
}

export const onPostgres = (url: string): Layer.Layer<OnPostgres, unknown> =>
  Layer.mergeAll(Account.layer, ProjectedAccount.layer, ProjectedBySql.layer).pipe(
    Layer.provideMerge(SqlStore.layer),
    Layer.provideMerge(PgClient.layer({ url: Redacted.make(url), maxConnections: poolSize }))
  )

export const openOurs = async <R>(layer: Layer.Layer<R, unknown>): Promise<Ours<R>> => {
  const scope = await Effect.runPromise(Scope.make())
  const runtime = await Effect.runPromise(Effect.provideService(Layer.toRuntime(layer), Scope.Scope, scope))
  return {
    run: Runtime.runPromise(runtime),
    close: () => Effect.runPromise(Scope.close(scope, Exit.void))
  }
}

export const openEmmett = async (
  url: string,
  options?: { readonly projections: typeof emmettBalances }
): Promise<Emmett> => {
  const pool = new pg.Pool({ connectionString: url, max: poolSize })
  const store = getPostgreSQLEventStore(url, { ...options, connectionOptions: { pool } })
  await store.schema.migrate()
  return {
    store,
    close: async () => {
      await store.close()
      await pool.end()
    }
  }
}

/** Commits a number of deposits to one account, from the first on. */
export const commitDeposits = (account: string, count: number) =>
  Effect.gen(function* () {
    const aggregateId = Account.streamId(account)
    const store = yield* StoreAdapter.StoreAdapter
    const clock = yield* Timestamp.HybridClock
    for (let first = 1; first <= count; first += 1000) {
      const length = Math.min(1000, count - first + 1)
      const events = yield* Effect.forEach(Array.from({ length }), (_, index) =>
        Effect.map(clock.now, (timestamp) => ({
          timestamp,
          aggregateId,
          sequence: first + index,
          type: "Deposited",
          body: { amount: 1 },
          metadata: {}
        }))
      )
      yield* store.commitEvents(events)
    }
  })
