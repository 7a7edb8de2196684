/** A commit that the database rolled back by no fault of the command is retried. */
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import { expect, it, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { Aggregate, Projection, SqlStore, StoreAdapter, StoreError, Timestamp } from "effect-maestro"
import { inject } from "vitest"
import { makeMigratedDatabase } from "./database.js"
import { macrotask } from "./nodes.js"

class Moved extends Schema.TaggedClass<Moved>()("Moved", { rows: Schema.Array(Schema.String) }) {}

/** A store on a database of its own, with a setting for all its sessions. */
const storeWith = (setting: string) =>
  SqlStore.layer.pipe(
    Layer.provideMerge(
      Layer.unwrapScoped(
        Effect.map(makeMigratedDatabase, (url) =>
          PgClient.layer({
            url: Redacted.make(`${url}?options=${encodeURIComponent(`-c ${setting.replace(" ", "\\ ")}`)}`),
            maxConnections: 10
          })
        )
      )
    ),
    Layer.orDie
  )

const makeEvent = (aggregateId: string, sequence: number) =>
  Effect.flatMap(Timestamp.HybridClock, ({ now }) =>
    Effect.map(now, (timestamp) => ({ timestamp, aggregateId, sequence, type: "Moved", body: {}, metadata: {} }))
  )

const newId = (): string => crypto.randomUUID()

const makeMover = <E>(projection: Projection.Projection<E, SqlClient.SqlClient>) =>
  Aggregate.make("Mover", {
    state: Schema.Number,
    initialState: 0,
    events: Moved,
    commands: Moved,
    decide: { Moved: (command) => Effect.succeed([command]) },
    evolve: { Moved: (moves: number) => moves + 1 },
    projections: [projection]
  })

layer(storeWith("deadlock_timeout=20ms"), { timeout: 60_000, excludeTestServices: true })(
  "transient failures",
  (it) => {
    it.scoped(
      "commands whose projections deadlock all succeed, each once",
      () =>
        Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          yield* sql`create table counters (id text primary key, count int not null)`
          yield* sql`insert into counters values ('a', 0), ('b', 0)`
          let deadlocks = 0
          const Mover = makeMover(
            Projection.make({
              name: "counters",
              events: Moved,
              project: {
                Moved: ({ rows }) =>
                  Effect.flatMap(SqlClient.SqlClient, (sql) =>
                    Effect.forEach(rows, (id) =>
                      Effect.zipLeft(sql`update counters set count = count + 1 where id = ${id}`, macrotask)
                    )
                  ).pipe(Effect.tapError(() => Effect.sync(() => deadlocks++)))
              }
            })
          )
          const services = yield* Layer.build(Mover.layer)
          yield* Effect.forEach(
            Arr.range(1, 40),
            (n) => Mover.evaluate(newId(), new Moved({ rows: n % 2 === 0 ? ["a", "b"] : ["b", "a"] })),
            { concurrency: 4 }
          ).pipe(Effect.provide(services))
          expect(yield* sql`select id, count from counters order by id`).toEqual([
            { id: "a", count: 40 },
            { id: "b", count: 40 }
          ])
          // With a counter commits with projections follow one another.
          if (inject("feedOrder") === "transactionIds") expect(deadlocks).toBeGreaterThan(0)
        }),
      60_000
    )

    it.scoped("a command whose projection loses its connection once succeeds, and is stored once", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        let attempts = 0
        const Mover = makeMover(
          Projection.make({
            name: "unlucky",
            events: Moved,
            project: {
              Moved: () =>
                Effect.flatMap(SqlClient.SqlClient, (sql) =>
                  ++attempts === 1 ? sql`select pg_terminate_backend(pg_backend_pid())` : sql`select 1`
                )
            }
          })
        )
        const services = yield* Layer.build(Mover.layer)
        const id = newId()
        yield* Effect.provide(Mover.evaluate(id, new Moved({ rows: [] })), services)
        expect(attempts).toBe(2)
        expect(yield* store.getEvents(Mover.streamId(id), 1)).toHaveLength(1)
      })
    )

    it.scoped("a statement of a projection that is wrong is not retried", () =>
      Effect.gen(function* () {
        let attempts = 0
        const Mover = makeMover(
          Projection.make({
            name: "wrong",
            events: Moved,
            project: {
              Moved: () =>
                Effect.flatMap(SqlClient.SqlClient, (sql) => {
                  attempts++
                  return sql`select nonsense`
                })
            }
          })
        )
        const services = yield* Layer.build(Mover.layer)
        const error = yield* Effect.flip(Effect.provide(Mover.evaluate(newId(), new Moved({ rows: [] })), services))
        expect(error).toMatchObject({ _tag: "SqlError" })
        expect(attempts).toBe(1)
      })
    )

    it.effect("a commit inside a caller's transaction leaves no savepoint behind", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const store = yield* StoreAdapter.StoreAdapter
        const nothing = { name: "nothing", project: () => Effect.void }
        const id = newId()
        yield* sql.withTransaction(
          Effect.gen(function* () {
            yield* store.commitEvents([yield* makeEvent(id, 1)])
            yield* Effect.flip(store.commitEvents([yield* makeEvent(id, 1)]))
            yield* store.commitAll([yield* makeEvent(id, 2)], [nothing])
            yield* Effect.flip(store.commitAll([yield* makeEvent(id, 2)], [nothing]))
            expect(yield* store.getEvents(id, 1)).toHaveLength(2)
            yield* sql`savepoint probe`
            expect(yield* Effect.flip(sql`release savepoint effect_sql_1`)).toMatchObject({ cause: { code: "3B001" } })
            yield* sql`rollback to savepoint probe`
          })
        )
        expect(yield* store.getEvents(id, 1)).toHaveLength(2)
      })
    )
  }
)

for (const level of ["repeatable read", "serializable"]) {
  it.scoped(`a commit that loses a race in a database whose default is ${level} is a RetryCommand`, () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const store = yield* StoreAdapter.StoreAdapter
      for (const projections of [[], [{ name: "nothing", project: () => Effect.void }]]) {
        const id = newId()
        const [holding, go] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
        const holder = yield* Effect.fork(
          sql.withTransaction(
            Effect.gen(function* () {
              yield* store.commitEvents([yield* makeEvent(id, 1)])
              yield* Deferred.succeed(holding, undefined)
              yield* Deferred.await(go)
            })
          )
        )
        yield* Deferred.await(holding)
        const loser = yield* Effect.fork(Effect.flip(store.commitAll([yield* makeEvent(id, 1)], projections)))
        yield* sql`select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`.pipe(
          Effect.zipLeft(macrotask),
          Effect.repeat({ until: (rows) => rows.length > 0 })
        )
        yield* Deferred.succeed(go, undefined)
        yield* Fiber.join(holder)
        expect(yield* Fiber.join(loser)).toEqual(new StoreError.RetryCommand({ aggregateId: id, sequence: 1 }))
      }
    }).pipe(Effect.provide(storeWith(`default_transaction_isolation=${level}`)))
  )
}
