/** The parts that only a store on SQL has: transactions, connections, drivers, migrations. */

import { mkdtemp, readdir, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Reactivity from "@effect/experimental/Reactivity"
import * as SqlClient from "@effect/sql/SqlClient"
import { SqlError } from "@effect/sql/SqlError"
import { PgClient } from "@effect/sql-pg"
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import * as Str from "effect/String"
import { type Event, type Projection, SqlStore, StoreAdapter, StoreError, Timestamp } from "effect-maestro"
import * as PgliteClient from "effect-maestro/PgliteClient"
import { inject } from "vitest"
import { Account, Deposit, Limits } from "./account.js"
import { layerPg, layerPglite, makeDatabase, makePool, uniqueName } from "./database.js"

const isCounter = inject("feedOrder") === "counter"

const { RetryCommand } = StoreError

it.layer(SqlStore.layer.pipe(Layer.provideMerge(layerPg({ maxConnections: 4 }))), { timeout: 60_000 })(
  "SqlStore",
  (it) => {
    // A commit there waits for all that have appended and are open.
    const orderedByIds = it.effect.skipIf(isCounter)

    it.effect("an error at COMMIT is a StoreError with the database's code, and nothing is stored", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const sql = yield* SqlClient.SqlClient
        const table = sql(uniqueName("deferred"))
        yield* sql`create table ${table} (n int, constraint once unique (n) deferrable initially deferred)`
        yield* sql`insert into ${table} values (1)`
        const events = [yield* event(newId(), 1)]
        const error = yield* Effect.flip(
          store.commitAll(events, [{ name: "double", project: () => sql`insert into ${table} values (1)` }])
        )
        expect(error).toMatchObject({ _tag: "StoreError", reason: "Constraint", code: "23505", operation: "commitAll" })
        expect(yield* store.getEvents(idOf(events), 1)).toEqual([])
      })
    )

    it.effect("a connection that breaks at COMMIT is CommitUnknown; committing again settles it", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const sql = yield* SqlClient.SqlClient
        const table = yield* killerAtCommit
        const events = [yield* event(newId(), 1)]
        const killing: Projection.Projection<unknown> = {
          name: "killing",
          project: () => sql`insert into ${table} values (1)`
        }
        const error = yield* Effect.flip(store.commitAll(events, [killing]))
        expect(error).toMatchObject({ _tag: "StoreError", reason: "CommitUnknown" })
        yield* untilConnected(store.commitAll(events, []))
        expect(yield* untilConnected(store.getEvents(idOf(events), 1))).toEqual(events)
      })
    )

    it.scoped("a COMMIT that is cancelled before it runs leaves no transaction open, and is tried three times", () =>
      Effect.gen(function* () {
        const url = yield* makeDatabase
        const pool = yield* Effect.acquireRelease(
          Effect.sync(() => makePool(url)),
          (pool) => Effect.promise(() => pool.end())
        )
        let [toCancel, rollbacks] = [0, 0]
        pool.on("connect", (client) => {
          const query = client.query.bind(client) as (...args: ReadonlyArray<unknown>) => unknown
          Object.assign(client, {
            query: (statement: unknown, ...args: ReadonlyArray<unknown>) => {
              if (statement === "ROLLBACK") rollbacks++
              return isCommit(statement) && toCancel-- > 0
                ? query("do $$ begin raise 'cancelled' using errcode = '57014'; end $$", statement.callback)
                : query(statement, ...args)
            }
          })
        })
        const layers = SqlStore.layer.pipe(
          Layer.provideMerge(
            Layer.scopedContext(
              Effect.map(
                Effect.provide(PgClient.fromPool({ acquire: Effect.succeed(pool) }), Reactivity.layer),
                (client) => Context.make(SqlClient.SqlClient, client as SqlClient.SqlClient)
              )
            )
          )
        )
        yield* Effect.gen(function* () {
          const store = yield* StoreAdapter.StoreAdapter
          const sql = yield* SqlClient.SqlClient
          toCancel = 3
          rollbacks = 0
          const events = [yield* event(newId(), 1)]
          expect(yield* Effect.flip(store.commitAll(events, [nothing]))).toMatchObject({ reason: "Cancelled" })
          expect(rollbacks).toBe(3)
          // The one connection there is: in a transaction that has failed this would not be answered.
          expect(yield* sql`select 1 as one`).toEqual([{ one: 1 }])
          yield* store.commitAll(events, [nothing])
        }).pipe(Effect.provide(layers))
      })
    )

    it.effect("a connection that breaks before COMMIT does not hide the failure of the projection", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const sql = yield* SqlClient.SqlClient
        const events = [yield* event(newId(), 1)]
        const suicide: Projection.Projection<unknown> = {
          name: "suicide",
          project: () => sql`select pg_terminate_backend(pg_backend_pid())`
        }
        const exit = yield* Effect.exit(store.commitAll(events, [suicide]))
        // Not a defect, though ROLLBACK failed as well.
        expect(yield* Effect.flip(exit)).toMatchObject({ _tag: "SqlError" })
        const second = store.commitAll(events, [{ ...suicide, project: (one) => Effect.ignore(suicide.project(one)) }])
        // A pooler may still have the dead connection.
        const unlessUnavailable = Effect.retry(second, { times: 20, while: isUnavailable })
        expect(yield* Effect.flip(unlessUnavailable)).toMatchObject({ _tag: "StoreError", reason: "CommitUnknown" })
        expect(yield* untilConnected(store.getEvents(idOf(events), 1))).toEqual([])
        yield* untilConnected(allConnectionsWork)
      })
    )

    it.effect("a commit whose connection is killed while it waits is CommitUnknown, and others go on", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const sql = yield* SqlClient.SqlClient
        const id = newId()
        const [holding, go] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
        const holder = yield* Effect.fork(
          store.commitAll(
            [yield* event(id, 1)],
            [
              {
                name: "holding",
                project: () => Effect.zipRight(Deferred.succeed(holding, undefined), Deferred.await(go))
              }
            ]
          )
        )
        yield* Deferred.await(holding)
        const waiting = yield* Effect.fork(Effect.flip(store.commitEvents([yield* event(id, 1)])))
        yield* untilConnected(killWhoWaitsForALock(sql))
        expect(yield* Fiber.join(waiting)).toMatchObject({ _tag: "StoreError", reason: "CommitUnknown" })
        yield* Deferred.succeed(go, undefined)
        yield* Fiber.join(holder)
        expect(yield* untilConnected(store.getEvents(id, 1))).toHaveLength(1)
        yield* untilConnected(allConnectionsWork)
      })
    )

    orderedByIds(
      "a StoreError inside a caller's transaction leaves it usable, and later commits in it are stored",
      () =>
        Effect.gen(function* () {
          const store = yield* StoreAdapter.StoreAdapter
          const sql = yield* SqlClient.SqlClient
          const id = newId()
          const other = [yield* event(newId(), 1)]
          const [holding, go] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
          const holder = yield* Effect.fork(
            store.commitAll(
              [yield* event(id, 1)],
              [
                {
                  name: "holding",
                  project: () => Effect.zipRight(Deferred.succeed(holding, undefined), Deferred.await(go))
                }
              ]
            )
          )
          yield* Deferred.await(holding)
          yield* sql.withTransaction(
            Effect.gen(function* () {
              yield* sql`set local lock_timeout = '50ms'`
              expect(yield* Effect.flip(store.commitEvents([yield* event(id, 1)]))).toMatchObject({
                _tag: "StoreError",
                reason: "Cancelled",
                code: "55P03"
              })
              yield* store.commitEvents(other)
            })
          )
          yield* Deferred.succeed(go, undefined)
          yield* Fiber.join(holder)
          expect(yield* store.getEvents(idOf(other), 1)).toEqual(other)
        })
    )

    orderedByIds("the wait for a connection of the pool can be interrupted, and the connection is not lost", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const go = yield* Deferred.make<void>()
        const holding = yield* Effect.forEach(Arr.range(1, 4), () =>
          Effect.gen(function* () {
            const started = yield* Deferred.make<void>()
            const fiber = yield* Effect.fork(
              store.commitAll(
                [yield* event(newId(), 1)],
                [
                  {
                    name: "holding",
                    project: () => Effect.zipRight(Deferred.succeed(started, undefined), Deferred.await(go))
                  }
                ]
              )
            )
            yield* Deferred.await(started)
            return fiber
          })
        )
        const late = [yield* event(newId(), 1)]
        const waiting = yield* Effect.forEach(Arr.range(1, 6), () =>
          Effect.fork(store.commitAll(late, [{ name: "nothing", project: () => Effect.void }]))
        )
        yield* Effect.repeatN(macrotask, 5)
        for (const fiber of waiting) expect(Exit.isInterrupted(yield* Fiber.interrupt(fiber))).toBe(true)
        yield* Deferred.succeed(go, undefined)
        yield* Effect.forEach(holding, Fiber.join)
        yield* allConnectionsWork
        expect(yield* store.getEvents(idOf(late), 1)).toEqual([])
      })
    )

    it.effect("an interruption at any moment loses no connection, and leaves none in a transaction", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const sql = yield* SqlClient.SqlClient
        for (const turns of Arr.range(0, 40)) {
          const fiber = yield* Effect.fork(
            Effect.gen(function* () {
              const id = newId()
              yield* store.commitAll([yield* event(id, 1)], [{ name: "select", project: () => sql`select 1` }])
              yield* store.commitEvents([yield* event(id, 2)])
              yield* store.getEvents(id, 1)
            })
          )
          for (let turn = 0; turn < turns; turn++) yield* macrotask
          yield* Fiber.interrupt(fiber)
        }
        yield* allConnectionsWork
        const [row] = yield* sql<{ n: number }>`select count(*)::int as n from pg_stat_activity
          where datname = current_database() and state like 'idle in transaction%'`
        expect(row?.n).toBe(0)
      })
    )

    it.scoped("twenty writers on twenty connections at one sequence: one wins", () =>
      Effect.gen(function* () {
        const url = yield* makeDatabase
        const nodes = yield* Effect.forEach(
          Arr.range(1, 20),
          () => Effect.map(Layer.build(storeAt(url)), Context.get(StoreAdapter.StoreAdapter)),
          { concurrency: "unbounded" }
        )
        const id = newId()
        const results = yield* Effect.forEach(
          nodes,
          (store) => Effect.flatMap(event(id, 1), (one) => Effect.exit(store.commitEvents([one]))),
          { concurrency: "unbounded" }
        )
        expect(results.filter(Exit.isSuccess)).toHaveLength(1)
        const failures = yield* Effect.forEach(results.filter(Exit.isFailure), Effect.flip)
        expect(failures.every((error) => error instanceof RetryCommand)).toBe(true)
      })
    )

    it.scoped("eight nodes that start concurrently on an empty database all start, and migrate once", () =>
      Effect.gen(function* () {
        const url = yield* makeDatabase
        const id = newId()
        const stores = yield* Effect.forEach(
          Arr.range(1, 8),
          () => Effect.map(Layer.build(storeAt(url)), Context.get(StoreAdapter.StoreAdapter)),
          { concurrency: "unbounded" }
        )
        for (const [index, store] of stores.entries()) yield* store.commitEvents([yield* event(id, index + 1)])
        const rows = yield* Effect.flatMap(SqlClient.SqlClient, (sql) => sql`select id from maestro.migrations`).pipe(
          Effect.provide(PgClient.layer({ url: Redacted.make(url) }))
        )
        expect(rows).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9].map((id) => ({ id })))
      })
    )

    it.scoped("names and JSON keys are stored as they are under a client that renames identifiers", () =>
      Effect.gen(function* () {
        const url = yield* makeDatabase
        const body = { camelCase: { innerKey: 1 }, snake_case: { inner_key: 2 } }
        const clients = [
          { transformQueryNames: Str.camelToSnake, transformResultNames: Str.snakeToCamel },
          { transformQueryNames: Str.camelToSnake }
        ]
        for (const transforms of clients) {
          const layers = SqlStore.layerWith({ schema: "myStore" }).pipe(
            Layer.provide(PgClient.layer({ url: Redacted.make(url), maxConnections: 1, ...transforms }))
          )
          yield* Effect.gen(function* () {
            const store = yield* StoreAdapter.StoreAdapter
            const events = [{ ...(yield* event(newId(), 1)), body, metadata: body }]
            yield* store.commitEvents(events)
            expect(yield* store.getEvents(idOf(events), 1)).toEqual(events)
            expect(yield* Effect.flip(store.commitEvents([yield* event(idOf(events), 1)]))).toEqual(
              new RetryCommand({ aggregateId: idOf(events), sequence: 1 })
            )
          }).pipe(Effect.provide(layers))
        }
      })
    )

    for (const [what, readInt] of Object.entries({ numbers: Number, texts: String })) {
      it.scoped(`type parsers of the driver change nothing, also where integers are read to ${what}`, () =>
        Effect.gen(function* () {
          const url = yield* makeDatabase
          const [text, int4, boolean] = [25, 23, 16]
          const types = {
            getTypeParser: (oid: number) => (value: string) =>
              oid === text ? value : oid === int4 ? readInt(value) : oid === boolean ? value === "t" : { parsed: value }
          }
          const layers = SqlStore.layer.pipe(Layer.provide(PgClient.layer({ url: Redacted.make(url), types })))
          yield* Effect.gen(function* () {
            const store = yield* StoreAdapter.StoreAdapter
            const events = [yield* event(newId(), 1)]
            yield* store.commitEvents(events)
            yield* store.commitEvents(events)
            expect(yield* store.getEvents(idOf(events), 1)).toEqual(events)
            yield* Effect.gen(function* () {
              const id = newId()
              yield* store.commitEvents(
                yield* Effect.forEach(Arr.range(1, 600), (sequence) =>
                  Effect.map(event(Account.streamId(id), sequence), (one) => ({
                    ...one,
                    type: "Deposited",
                    version: 1,
                    body: { amount: 1 },
                    metadata: {}
                  }))
                )
              )
              expect(yield* Account.fetch(id)).toMatchObject({ balance: 600 })
              yield* Account.snapshot(id)
              expect(Option.getOrThrow(yield* store.getSnapshot(Account.streamId(id), 1)).sequence).toBe(600)
              expect(
                yield* Effect.provide(Account.evaluate(id, new Deposit({ amount: 1 })), Layer.fresh(Account.layer))
              ).toMatchObject({
                sequence: 601,
                state: { balance: 601 }
              })
            }).pipe(Effect.provide(Layer.provideMerge(Account.layer, Limits.layer)))
          }).pipe(Effect.provide(layers))
        })
      )
    }

    it.scoped("several stores share a database, each in a schema of any name", () =>
      Effect.gen(function* () {
        const url = yield* makeDatabase
        const id = newId()
        for (const schema of ["one", "Two", 'th"ree', "fo.ur", "select", "x".repeat(63)]) {
          yield* Effect.gen(function* () {
            const store = yield* StoreAdapter.StoreAdapter
            expect(yield* store.getEvents(id, 1)).toEqual([])
            yield* store.commitEvents([yield* event(id, 1)])
            expect(yield* Effect.flip(store.commitEvents([yield* event(id, 1)]))).toBeInstanceOf(RetryCommand)
          }).pipe(Effect.provide(storeAt(url, { schema })))
        }
        for (const schema of ["", "x".repeat(64), "a\0b"]) {
          expect(yield* Effect.flip(Layer.build(storeAt(url, { schema })))).toMatchObject({ reason: "Misconfigured" })
        }
      })
    )

    it.scoped(
      "without migrate nothing is created, and a missing schema is Misconfigured; SqlStore.migrate creates it",
      () =>
        Effect.gen(function* () {
          const url = yield* makeDatabase
          const client = PgClient.layer({ url: Redacted.make(url), maxConnections: 1 })
          const store = yield* Effect.map(
            Layer.build(SqlStore.layerWith({ migrate: false }).pipe(Layer.provide(client))),
            Context.get(StoreAdapter.StoreAdapter)
          )
          const events = [yield* event(newId(), 1)]
          expect(yield* Effect.flip(store.commitEvents(events))).toMatchObject({
            reason: "Misconfigured",
            // A log with a counter is written by a function of the schema.
            code: isCounter ? "3F000" : "42P01"
          })
          expect(yield* Effect.flip(store.getEvents("a", 1))).toMatchObject({ reason: "Misconfigured", code: "42P01" })
          yield* Effect.provide(SqlStore.migrate(), client)
          yield* store.commitEvents(events)
        })
    )

    it.scoped("a server that can't be reached is Unavailable", () =>
      Effect.gen(function* () {
        const url = yield* makeDatabase
        const store = yield* Effect.map(Layer.build(storeAt(url)), Context.get(StoreAdapter.StoreAdapter))
        yield* Effect.flatMap(SqlClient.SqlClient, (sql) =>
          sql`select pg_terminate_backend(pid) from pg_stat_activity where datname = ${new URL(url).pathname.slice(1)}`.pipe(
            Effect.zipRight(sql`alter database ${sql(new URL(url).pathname.slice(1))} allow_connections false`)
          )
        )
        // The connection that was there breaks first, which is something else; no new one can be had after it.
        const untilUnavailable = <A, E>(effect: Effect.Effect<A, E>) =>
          Effect.flip(effect).pipe(
            Effect.map((error) => (error instanceof StoreError.StoreError ? error.reason : error)),
            Effect.zipLeft(macrotask),
            Effect.repeat({ times: 1000, until: (reason) => reason === "Unavailable" })
          )
        yield* untilUnavailable(store.getEvents("a", 1))
        expect(yield* Effect.flip(store.getEvents("a", 1))).toHaveProperty("reason", "Unavailable")
        expect(yield* untilUnavailable(store.commitEvents([yield* event(newId(), 1)]))).toBe("Unavailable")
        expect(yield* untilUnavailable(store.commitAll([yield* event(newId(), 1)], [nothing]))).toBe("Unavailable")
      })
    )

    it.scoped("interrupted transactions that hold the whole pool give their connections back", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const sql = yield* SqlClient.SqlClient
        const alone = yield* SqlStore.make()
        const all = yield* Effect.makeLatch()
        let begun = 0
        // A cancelled statement needs a connection of the pool, and there is none. The test's clock stands still, so nothing waits for it.
        const holding: Projection.Projection<unknown> = {
          name: "holding",
          project: () =>
            Effect.suspend(() => Effect.zipRight(++begun === 4 ? all.open : Effect.void, sql`select pg_sleep(0.5)`))
        }
        const fibers = yield* Effect.forEach(Arr.range(1, 4), () =>
          Effect.fork(Effect.flatMap(event(newId(), 1), (first) => alone.commitAll([first], [holding])))
        )
        yield* all.await
        yield* Fiber.interruptAll(fibers)
        const events = [yield* event(newId(), 1)]
        yield* store.commitAll(events, [nothing])
        expect(yield* store.getEvents(idOf(events), 1)).toEqual(events)
      })
    )

    it.effect("bodies stay as large as memory allows: a commit of 20 MB", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const events = [{ ...(yield* event(newId(), 1)), body: { text: "x".repeat(20_000_000) } }]
        yield* store.commitEvents(events)
        expect((yield* store.getEvents(idOf(events), 1))[0]?.body).toEqual(events[0]?.body)
      })
    )
  }
)

it.layer(layerPglite)("PgliteClient", (it) => {
  it.effect("returns the types that a server returns", () =>
    Effect.gen(function* () {
      const query = (
        sql: SqlClient.SqlClient
      ) => sql`select 1::int as a, 9007199254740993::bigint as b, 1.10::numeric as c,
        'x'::text as d, true as e, '{"k": [1]}'::jsonb as f, null as g, array['p', 'q"r']::text[] as h, 1.5::float8 as i,
        '2020-01-02T03:04:05Z'::timestamptz as j, ${[1, 2]}::int[] as k, ${"{}"}::jsonb as l`
      const embedded = yield* Effect.flatMap(SqlClient.SqlClient, query)
      const server = yield* Effect.provide(Effect.flatMap(SqlClient.SqlClient, query), layerPg())
      expect(embedded).toEqual(server)
    })
  )

  it.effect("fails with SqlError, in statements and in transactions, and goes on", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      expect(yield* Effect.flip(sql`select * from nowhere`)).toMatchObject({
        _tag: "SqlError",
        cause: { code: "42P01" }
      })
      expect(yield* Effect.flip(sql.withTransaction(sql`select 1/0`))).toMatchObject({ cause: { code: "22012" } })
      expect(yield* sql`select 1 as one`).toEqual([{ one: 1 }])
    })
  )

  it.effect("transactions of several fibers run one after the other, and one that waits can be interrupted", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const log: Array<string> = []
      const transaction = (name: string) =>
        sql.withTransaction(
          Effect.gen(function* () {
            log.push(`${name} begins`)
            yield* sql`select 1`
            yield* macrotask
            log.push(`${name} ends`)
          })
        )
      const first = yield* Effect.fork(transaction("first"))
      yield* macrotask
      const second = yield* Effect.fork(transaction("second"))
      const third = yield* Effect.fork(sql`select 1`)
      yield* Fiber.interrupt(second)
      yield* Fiber.join(first)
      yield* Fiber.join(third)
      expect(log.slice(0, 2)).toEqual(["first begins", "first ends"])
      expect(yield* sql`select 1 as one`).toEqual([{ one: 1 }])
    })
  )

  it.effect("streams rows, reads values, and runs several statements", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      expect(yield* sql`select 1 as a, 2 as b`.values).toEqual([[1, 2]])
      expect(yield* sql.unsafe("select 1 as a; select 2 as b")).toEqual([[{ a: 1 }], [{ b: 2 }]])
      expect(yield* sql`select generate_series(1, 3) as n`.stream.pipe(Stream.runCount)).toBe(3)
    })
  )
})

it.scoped("PgliteClient: a folder keeps the database, for one scope at a time", () =>
  Effect.gen(function* () {
    const folder = yield* Effect.acquireRelease(
      Effect.promise(() => mkdtemp(join(tmpdir(), "effect-maestro-"))),
      (path) => Effect.promise(() => rm(path, { recursive: true }))
    )
    const dataDir = join(folder, "nested", "data")
    const layer = SqlStore.layer.pipe(Layer.provide(PgliteClient.layerWith({ dataDir })))
    const events = [yield* event(newId(), 1)]
    yield* Effect.gen(function* () {
      const store = yield* StoreAdapter.StoreAdapter
      yield* store.commitEvents(events)
      expect(yield* Effect.flip(Layer.build(Layer.fresh(layer)))).toMatchObject({
        _tag: "SqlError",
        cause: { message: expect.stringContaining(`process ${process.pid} has the database open`) }
      })
    }).pipe(Effect.provide(layer))
    yield* Effect.gen(function* () {
      const store = yield* StoreAdapter.StoreAdapter
      expect(yield* store.getEvents(idOf(events), 1)).toEqual(events)
    }).pipe(Effect.provide(Layer.fresh(layer)))
    expect(yield* Effect.promise(() => readdir(join(folder, "nested")))).toEqual(["data"])
  })
)

// --- what the cases are made of ---

/** Whether it is the batch of a commit that ends with COMMIT. */
const isCommit = (u: unknown): u is { readonly callback: (error: unknown) => void } =>
  typeof u === "object" &&
  u !== null &&
  "commands" in u &&
  (u.commands as ReadonlyArray<{ readonly text: string }>).some(({ text }) => text === "COMMIT")

const newId = (): string => crypto.randomUUID()

const event = (aggregateId: string, sequence: number): Effect.Effect<Event.Event> =>
  Effect.gen(function* () {
    const { now } = yield* Timestamp.HybridClock
    return {
      timestamp: yield* now,
      aggregateId,
      sequence,
      type: "Happened",
      version: 1,
      body: { sequence },
      metadata: {}
    }
  })

const idOf = (events: ReadonlyArray<Event.Event>): string => events[0]?.aggregateId ?? ""

const nothing: Projection.Projection = { name: "nothing", project: () => Effect.void }

const macrotask = Effect.async<void>((resume) => {
  setImmediate(() => resume(Effect.void))
})

const storeAt = (url: string, options: SqlStore.Options = {}) =>
  SqlStore.layerWith(options).pipe(Layer.provide(PgClient.layer({ url: Redacted.make(url), maxConnections: 1 })))

/** A table whose insertion kills the server process when its transaction commits. */
const killerAtCommit = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const table = sql(uniqueName("killer"))
  const name = sql(uniqueName("kill"))
  yield* sql`create table ${table} (n int)`
  yield* sql`create function ${name}() returns trigger language plpgsql as
    $$ begin perform pg_terminate_backend(pg_backend_pid()); return null; end $$`
  yield* sql`create constraint trigger kill after insert on ${table} deferrable initially deferred
    for each row execute function ${name}()`
  return table
})

const isUnavailable = (error: unknown): boolean =>
  error instanceof StoreError.StoreError && error.reason === "Unavailable"

/** The pool learns of a dead connection by using it, once for each. */
const untilConnected = <A, E extends { readonly _tag: string }, R>(effect: Effect.Effect<A, E, R>) =>
  effect.pipe(
    // What `SqlClient.withTransaction` makes of a ROLLBACK on a dead connection.
    Effect.catchSomeDefect((defect) => (defect instanceof SqlError ? Option.some(Effect.fail(defect)) : Option.none())),
    Effect.tapError(() => macrotask),
    Effect.retry({ times: 1000, while: ({ _tag }) => _tag === "SqlError" || _tag === "StoreError" })
  )

const killWhoWaitsForALock = (sql: SqlClient.SqlClient) =>
  sql`select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and wait_event_type = 'Lock'`.pipe(
    Effect.zipLeft(macrotask),
    Effect.repeat({ until: (rows) => rows.length > 0 })
  )

/** Runs as many concurrent transactions as the pool has connections, to show that none is lost. */
const allConnectionsWork = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const arrived = yield* Effect.makeLatch(false)
  let inside = 0
  yield* Effect.forEach(
    Arr.range(1, 4),
    () =>
      sql.withTransaction(
        Effect.gen(function* () {
          yield* sql`select 1`
          inside++
          if (inside === 4) yield* arrived.open
          yield* arrived.await
        })
      ),
    { concurrency: "unbounded" }
  )
})
