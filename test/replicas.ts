/** A primary with a standby, and stores on both, for the tests of replicas. */
import * as SqlClient from "@effect/sql/SqlClient"
import { SqlError } from "@effect/sql/SqlError"
import { PgClient } from "@effect/sql-pg"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { SqlStore } from "effect-maestro"
import { afterAll, beforeAll } from "vitest"
import { disposable } from "./postgres.globalSetup.js"
import { builds, type Pair, programsOf, startPair } from "./postgresServers.js"

/** Starts the servers of a test file. */
export const setUpPair = () => {
  let pair: Pair | undefined
  beforeAll(async () => {
    const programs = programsOf([...builds.keys()].at(-1) ?? 0)
    if (programs === undefined) throw new Error("there are no programs of Postgres")
    pair = await startPair(programs, [...disposable, "-c", "synchronous_commit=on"])
    await Effect.runPromise(Effect.zipRight(SqlStore.migrate(), caughtUp).pipe(Effect.provide(primaryClient)))
  }, 60_000)
  afterAll(() => pair?.stop())
  const servers = (): Pair => {
    if (pair === undefined) throw new Error("the servers have not started")
    return pair
  }

  const primaryClient = clientOf(() => servers().primary)
  const standbyClient = clientOf(() => servers().standby)
  const onStandby = <A, E>(run: Effect.Effect<A, E, SqlClient.SqlClient>) =>
    Effect.orDie(Effect.provide(run, Layer.fresh(standbyClient)))

  /** A function of Postgres on the standby, and what its state must be then. */
  const replay = (call: string, state: string) =>
    onStandby(
      Effect.flatMap(SqlClient.SqlClient, (sql) =>
        Effect.zipRight(
          sql.unsafe(`select ${call}`),
          until(
            Effect.map(
              sql<{ is: boolean }>`select pg_get_wal_replay_pause_state() = ${state} as is`,
              ([row]) => row?.is === true
            )
          )
        )
      )
    )

  /** Waits until the standby has replayed all that the primary has written. */
  const caughtUp = Effect.orDie(
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const [row] = yield* sql<{ lsn: string }>`select pg_current_wal_lsn()::text as lsn`
      yield* onStandby(
        Effect.flatMap(SqlClient.SqlClient, (standby) =>
          until(
            Effect.map(
              standby<{ is: boolean }>`select pg_last_wal_replay_lsn() >= ${row?.lsn ?? ""}::pg_lsn as is`,
              ([row]) => row?.is === true
            )
          )
        )
      )
    })
  )

  return {
    servers,
    primaryClient,
    standbyClient,
    onStandby,
    /** The standby replays nothing while the effect runs. */
    whilePaused: <A, E, R>(effect: Effect.Effect<A, E, R>) =>
      Effect.acquireUseRelease(
        replay("pg_wal_replay_pause()", "paused"),
        () => effect,
        () => replay("pg_wal_replay_resume()", "not paused")
      ),
    caughtUp,
    /** A store, with its client. Its replica is the standby, unless it is given another. */
    store: (
      options: { readonly schema?: string; readonly readFrom?: Layer.Layer<SqlClient.SqlClient, unknown> } = {}
    ) =>
      Layer.fresh(
        SqlStore.layerWith({
          pollInterval: "50 millis",
          readFrom: Layer.fresh(standbyClient),
          ...options
        }).pipe(Layer.provideMerge(Layer.fresh(primaryClient)))
      )
  }
}

const clientOf = (url: () => string) =>
  Layer.suspend(() => PgClient.layer({ url: Redacted.make(url()), maxConnections: 10, connectTimeout: "2 seconds" }))

/** Repeats an effect until it returns true. */
export const until = <E, R>(condition: Effect.Effect<boolean, E, R>): Effect.Effect<void, E, R> =>
  Effect.asVoid(
    Effect.repeat(Effect.delay(condition, "10 millis"), { until: (holds) => holds, times: 2000 }).pipe(
      Effect.filterOrDieMessage((holds) => holds, "the condition does not become true")
    )
  )

/** How many connections the reads of a replica have taken, the code with which they fail, and what they wait for. */
export interface Watched {
  reads: number
  failure: string | undefined
  hold?: Effect.Effect<void>
}

/** The client of a layer, whose use of connections is counted, and fails while a code is given. */
export const watch = <E>(watched: Watched, layer: Layer.Layer<SqlClient.SqlClient, E>) =>
  Layer.effect(
    SqlClient.SqlClient,
    Effect.map(SqlClient.SqlClient, (client) => watching(watched, client))
  ).pipe(Layer.provide(layer))

const watching = (watched: Watched, client: SqlClient.SqlClient): SqlClient.SqlClient =>
  new Proxy(client, {
    get: (target, key) => {
      if (key === "withoutTransforms") return () => watching(watched, target.withoutTransforms())
      if (key !== "reserve") return Reflect.get(target, key)
      return Effect.suspend(() => {
        watched.reads++
        return watched.failure === undefined
          ? Effect.zipRight(watched.hold ?? Effect.void, target.reserve)
          : new SqlError({ cause: Object.assign(new Error("canceled"), { code: watched.failure }) })
      })
    }
  })
