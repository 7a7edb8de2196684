/** A rebuild loses nothing of callers that are in transactions of their own. */
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { type Event, type Projection, Rebuild, SqlStore, StoreAdapter, Timestamp } from "effect-maestro"
import { makeDatabase } from "./database.js"
import { macrotask } from "./nodes.js"

/** Counts the events of each aggregate. */
const counting: Projection.Projection<unknown, SqlClient.SqlClient> = {
  name: "counting",
  project: ({ aggregateId, sequence }) =>
    Effect.flatMap(SqlClient.SqlClient, (sql) =>
      sequence === 1
        ? sql`insert into counts values (${aggregateId}, 1)`
        : sql`update counts set n = n + 1 where id = ${aggregateId}`
    )
}

const commit = (sequence: number, projections: ReadonlyArray<typeof counting> = [counting]) =>
  Effect.gen(function* () {
    const timestamp = yield* Effect.flatMap(Timestamp.HybridClock, ({ now }) => now)
    const event: Event.Event = { timestamp, aggregateId: "a", sequence, type: "Counted", body: {}, metadata: {} }
    yield* Effect.flatMap(StoreAdapter.StoreAdapter, (store) => store.commitAll([event], projections))
  })

const counts = Effect.flatMap(SqlClient.SqlClient, (sql) => sql`select id, n from counts`)

const makeCounts = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`create table counts (id text primary key, n int not null)`
)

const options = { name: "counts", projections: [counting], tables: ["counts"] } as const

/** Runs an effect in no transaction, wherever it is called. */
const outside = <A, E>(effect: Effect.Effect<A, E>) =>
  Effect.flatMap(
    Effect.promise(() => Effect.runPromiseExit(effect)),
    (exit) => exit
  )

const nodeOn = (url: string) => SqlStore.layer.pipe(Layer.provideMerge(PgClient.layer({ url: Redacted.make(url) })))

for (const level of ["repeatable read", "serializable"]) {
  it.scopedLive(
    `a commit in a caller's ${level} transaction with a snapshot older than the swap fails, and is not lost`,
    () =>
      Effect.gen(function* () {
        const url = yield* makeDatabase
        yield* Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          yield* makeCounts
          yield* commit(1)
          const caller = sql.withTransaction(
            Effect.gen(function* () {
              yield* sql.unsafe(`set transaction isolation level ${level}`)
              yield* sql`select 1 from maestro.migrations`
              yield* outside(Effect.provide(Rebuild.run(options), nodeOn(url)))
              const exit = yield* Effect.exit(commit(2))
              // The caller's transaction goes on, and a commit without projections has nothing to lose.
              yield* commit(2, [])
              return exit
            })
          )
          const error = yield* Effect.flip(Effect.flatten(caller))
          expect(error).toMatchObject({ _tag: "StoreError", reason: "Contention", code: "40001" })
          expect(`${error}`).toContain("a rebuild has replaced tables since")
          // With a new snapshot it is projected.
          yield* sql.withTransaction(Effect.zipRight(sql.unsafe(`set transaction isolation level ${level}`), commit(3)))
          expect(yield* counts).toEqual([{ id: "a", n: 2 }])
        }).pipe(Effect.provide(nodeOn(url)))
      })
  )
}

it.scopedLive("a swap waits for a caller's repeatable read transaction that has committed with a projection", () =>
  Effect.gen(function* () {
    const url = yield* makeDatabase
    yield* Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* makeCounts
      yield* commit(1)
      const rebuilding = yield* sql.withTransaction(
        Effect.gen(function* () {
          yield* sql`set transaction isolation level repeatable read`
          yield* commit(2)
          const fiber = yield* Effect.forkDaemon(outside(Effect.provide(Rebuild.run(options), nodeOn(url))))
          const waiting = sql`select 1 from pg_locks where not granted and pg_backend_pid() = any(pg_blocking_pids(pid))`
          yield* waiting.pipe(Effect.zipLeft(macrotask), Effect.repeat({ until: (rows) => rows.length > 0 }))
          yield* commit(3)
          return fiber
        })
      )
      yield* Fiber.join(rebuilding)
      expect(yield* counts).toEqual([{ id: "a", n: 3 }])
    }).pipe(Effect.provide(nodeOn(url)))
  })
)
