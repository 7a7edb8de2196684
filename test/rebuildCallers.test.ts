/** Rebuilds beside callers with transactions of their own, and on a network that stalls. */
import { connect, createServer, type Server, type Socket } from "node:net"
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import {
  type Event,
  EventFeed,
  type Projection,
  Rebuild,
  SqlStore,
  StoreAdapter,
  SubscriptionStore,
  Timestamp
} from "effect-maestro"
import { makeDatabase } from "./database.js"
import { macrotask } from "./nodes.js"

/** Counts the events of each aggregate. */
const counting: Projection.Projection.Bound<unknown, SqlClient.SqlClient> = {
  name: "counting",
  of: "all",
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
    const event: Event.Event = {
      timestamp,
      aggregateId: "a",
      sequence,
      type: "Counted",
      version: 1,
      body: {},
      metadata: {}
    }
    yield* Effect.flatMap(StoreAdapter.StoreAdapter, (store) => store.commitAll([event], projections))
  })

const counts = Effect.flatMap(SqlClient.SqlClient, (sql) => sql`select id, n from counts`)

const makeCounts = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`create table counts (id text primary key, n int not null)`
)

const options = { name: "counts", projections: [counting], tables: ["counts"] } as const

/** Runs an effect outside of the transaction around it. */
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
              // The caller's transaction goes on, and accepts a commit without projections.
              yield* commit(2, [])
              return exit
            })
          )
          const error = yield* Effect.flip(Effect.flatten(caller))
          expect(error).toMatchObject({ _tag: "StoreError", reason: "Contention", code: "40001" })
          expect(`${error}`).toContain("a rebuild has replaced tables since")
          // A transaction with a new snapshot projects its event.
          yield* sql.withTransaction(Effect.zipRight(sql.unsafe(`set transaction isolation level ${level}`), commit(3)))
          expect(yield* counts).toEqual([{ id: "a", n: 2 }])
        }).pipe(Effect.provide(nodeOn(url)))
      })
  )
}

it.scopedLive(
  "an event that is retried in a transaction with a snapshot older than the swap fails, and is not lost",
  () =>
    Effect.gen(function* () {
      const url = yield* makeDatabase
      yield* Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const store = yield* SubscriptionStore.SubscriptionStore
        yield* makeCounts
        yield* commit(1)
        const place = { aggregateId: "a", sequence: 1 }
        yield* Effect.scoped(
          Effect.flatMap(
            store.lease({
              key: { name: "counts", partition: 0, partitions: 1 },
              from: EventFeed.beginning,
              holder: "test",
              duration: 5000
            }),
            (lease) =>
              lease.park({ ...place, position: lease.position, type: "Counted", error: "of the test", attempts: 1 })
          )
        )
        const error = yield* Effect.flip(
          sql.withTransaction(
            Effect.gen(function* () {
              yield* sql`set transaction isolation level repeatable read`
              yield* sql`select 1 from maestro.migrations`
              yield* outside(
                Effect.provide(
                  Rebuild.run({ ...options, subscription: { name: "counts", partitions: 1, filter: undefined } }),
                  nodeOn(url)
                )
              )
              yield* store.retryParked("counts", place, () => sql`update counts set n = n + 1`)
            })
          )
        )
        expect(error).toMatchObject({ _tag: "StoreError", reason: "Contention" })
        expect(yield* counts).toEqual([{ id: "a", n: 1 }])
      }).pipe(Effect.provide(nodeOn(url)))
    })
)

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

it.scopedLive("the swap checks deferred constraints of the last events before it moves the tables", () =>
  Effect.gen(function* () {
    const url = yield* makeDatabase
    yield* Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const create = sql`create table counts (id text primary key, n int not null,
        next text not null constraint next_is_there references counts deferrable initially deferred)`
      // Each row is inserted before the one that it refers to.
      const chain: typeof counting = {
        name: "chain",
        of: "all",
        project: ({ sequence }) =>
          Effect.zipRight(
            sql`insert into counts values (${`${sequence}`}, 1, ${`${sequence}-end`})`,
            sql`insert into counts values (${`${sequence}-end`}, 1, ${`${sequence}-end`})`
          )
      }
      yield* create
      yield* commit(1, [chain])
      const rebuilding = yield* sql.withTransaction(
        Effect.gen(function* () {
          yield* commit(2, [chain])
          const running = Rebuild.run({ ...options, projections: [chain], create })
          const fiber = yield* Effect.forkDaemon(outside(Effect.provide(running, nodeOn(url))))
          const waiting = sql`select 1 from pg_locks where not granted and pg_backend_pid() = any(pg_blocking_pids(pid))`
          yield* waiting.pipe(Effect.zipLeft(macrotask), Effect.repeat({ until: (rows) => rows.length > 0 }))
          return fiber
        })
      )
      yield* Fiber.join(rebuilding)
      expect(yield* sql`select id from counts order by 1`).toHaveLength(4)
      expect(yield* sql`select 1 from pg_constraint where conname = 'next_is_there' and contype = 'f'`).toHaveLength(1)
    }).pipe(Effect.provide(nodeOn(url)))
  })
)

/** A proxy that can stall: it transfers nothing, and closes nothing. */
const makeProxy = (target: string) =>
  Effect.acquireRelease(
    Effect.async<{
      readonly url: string
      readonly stall: () => void
      readonly server: Server
      readonly close: () => void
    }>((resume) => {
      let isStalled = false
      const sockets = new Set<Socket>()
      const { hostname, port } = new URL(target)
      const server = createServer((client) => {
        const database = connect(Number(port), hostname)
        for (const [from, to] of [
          [client, database],
          [database, client]
        ] as const) {
          sockets.add(from)
          from.on("data", (data) => {
            if (!isStalled) to.write(data)
          })
          from.on("close", () => to.destroy())
          from.on("error", () => {})
        }
      })
      server.listen(0, "127.0.0.1", () => {
        const url = new URL(target)
        const address = server.address()
        url.port = String(typeof address === "object" ? address?.port : 0)
        resume(
          Effect.succeed({
            url: url.href,
            server,
            stall: () => {
              isStalled = true
            },
            close: () => {
              for (const socket of sockets) socket.destroy()
              server.close()
            }
          })
        )
      })
    }),
    ({ close }) => Effect.sync(close)
  )

for (const moment of ["before it begins", "in a projection", "before the swap"]) {
  it.scopedLive(`a rebuild ends when it is interrupted while the network stalls: ${moment}`, () =>
    Effect.gen(function* () {
      const url = yield* makeDatabase
      yield* Effect.provide(Effect.zipRight(makeCounts, commit(1)), nodeOn(url))
      const scope = yield* Effect.scope
      const proxy = yield* makeProxy(url)
      const context = yield* Layer.buildWithScope(nodeOn(proxy.url), scope)
      // The pool closes only when its connections are closed.
      yield* Effect.addFinalizer(() => Effect.sync(proxy.close))
      let isStalled = false
      const stall = Effect.sync(() => {
        isStalled = true
        proxy.stall()
      })
      const stalling = {
        ...options,
        projections: [
          {
            name: "stalling",
            of: "all" as const,
            project: () =>
              Effect.flatMap(SqlClient.SqlClient, (sql) =>
                Effect.zipRight(moment === "in a projection" ? stall : Effect.void, sql`select 1`)
              )
          }
        ],
        onProgress: () => (moment === "before the swap" ? stall : Effect.void)
      }
      if (moment === "before it begins") yield* stall
      const fiber = yield* Effect.forkDaemon(Effect.provide(Rebuild.run(stalling), context))
      yield* Effect.repeat(macrotask, { until: () => isStalled })
      const begun = Date.now()
      expect(Exit.isInterrupted(yield* Fiber.interrupt(fiber))).toBe(true)
      expect(Date.now() - begun).toBeLessThan(2000)
    })
  )
}
