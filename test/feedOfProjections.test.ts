/** The order of the feed is an order in which the strong projections succeed, so a rebuild succeeds, too. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { type Event, EventFeed, Projection, Rebuild, SqlStore, StoreAdapter, Timestamp } from "effect-maestro"
import { layerPg } from "./database.js"
import { lastPosition } from "./subscribers.js"

const onPostgres = SqlStore.layer.pipe(Layer.provideMerge(layerPg({ maxConnections: 20 })), Layer.orDie)

/** A guest has an e-mail address from now on. */
class Took extends Schema.TaggedClass<Took>()("Took", { email: Schema.String }) {}

const upsert = (sql: SqlClient.SqlClient, table: string, id: string, email: string) =>
  sql`insert into ${sql(table)} values (${id}, ${email}) on conflict (id) do update set email = excluded.email`

/** Waits for the lock that a test may hold, so that transactions meet in the order that the test wants. */
const gate = (sql: SqlClient.SqlClient, id: string) => sql`select pg_advisory_xact_lock(hashtext(${id}))`

const kinds = {
  statements: (table: string) =>
    Projection.makeSql({
      name: "guests",
      of: "all",
      events: Took,
      project: {
        Took: ({ email }, { aggregateId }, sql) => [gate(sql, aggregateId), upsert(sql, table, aggregateId, email)]
      }
    }),
  "an effect": (table: string) =>
    Projection.make({
      name: "guests",
      of: "all",
      events: Took,
      project: {
        Took: ({ email }, { aggregateId }) =>
          Effect.flatMap(SqlClient.SqlClient, (sql) =>
            Effect.zipRight(gate(sql, aggregateId), upsert(sql, table, aggregateId, email))
          )
      }
    })
}

const projectionBy = (kind: keyof typeof kinds, table: string) => kinds[kind](table)

const constraints = { "a unique index": "", "a deferred constraint": " deferrable initially deferred" }

/** The isolation of the transaction that the caller has begun around the commit that waits, if any. */
const ways = {
  alone: undefined,
  "in a caller's transaction": "read committed",
  "in a caller's transaction with REPEATABLE READ": "repeatable read"
}

layer(onPostgres, { excludeTestServices: true, timeout: 60_000 })("the feed and strong projections", (it) => {
  for (const [kind, makeProjection] of Object.entries(kinds)) {
    for (const [constraint, deferred] of Object.entries(constraints)) {
      for (const [way, isolation] of Object.entries(ways)) {
        // The caller's COMMIT checks a deferred constraint after the events got their place.
        if (deferred !== "" && isolation !== undefined) continue
        it.scoped(`a commit ${way} stands behind the one that its ${kind} waited for, by ${constraint}`, () =>
          Effect.gen(function* () {
            const guests = yield* makeGuests(deferred)
            const projection = makeProjection(guests.table)
            const [ann, zoe] = [`${guests.table} ann`, `${guests.table} zoe`]
            yield* commit(projection, yield* took(ann, 1, "a@x"))

            const opened = yield* holdGate(zoe)
            const second = Effect.flatMap(took(zoe, 1, "a@x"), (events) => commit(projection, events))
            const waiting = yield* Effect.fork(
              isolation === undefined ? second : inTransaction(isolation, Effect.zipRight(writeFirst, second))
            )
            // The transaction of zoe has its id, and waits in its projection.
            yield* untilWaiting("advisory")
            const annStored = yield* Deferred.make<void>()
            const annMayEnd = yield* Deferred.make<void>()
            const first = yield* Effect.fork(
              inTransaction(
                "read committed",
                Effect.zipRight(
                  Effect.flatMap(took(ann, 2, "a2@x"), (events) => commit(projection, events)),
                  Effect.zipRight(Deferred.succeed(annStored, undefined), Deferred.await(annMayEnd))
                )
              )
            )
            yield* Deferred.await(annStored)
            yield* Deferred.succeed(opened, undefined)
            // Now it waits for the address.
            yield* untilWaiting("transactionid")
            yield* Deferred.succeed(annMayEnd, undefined)
            yield* Fiber.join(first)
            yield* Fiber.join(waiting)

            expect(yield* guests.order).toEqual([`${ann} 1`, `${ann} 2`, `${zoe} 1`])
            yield* guests.expectRebuilt(projection)
          })
        )
      }
    }
  }

  it.scoped("what a projection commits stays behind the event that caused it, and keeps its own order", () =>
    Effect.gen(function* () {
      const guests = yield* makeGuests("")
      const [ann, zoe, bob] = [`${guests.table} ann`, `${guests.table} zoe`, `${guests.table} bob`]
      const plain = projectionBy("an effect", guests.table)
      yield* commit(plain, yield* took(ann, 1, "a@x"))
      const causing = Projection.make({
        name: "causing",
        of: "all",
        events: Took,
        project: {
          Took: (_, { aggregateId, sequence }) =>
            aggregateId !== zoe || sequence > 1
              ? Effect.void
              : Effect.gen(function* () {
                  const store = yield* StoreAdapter.StoreAdapter
                  yield* store.commitEvents(yield* took(bob, 1, "b@x"))
                  yield* store.commitAll(yield* took(zoe, 2, "z2@x"), [plain])
                })
        }
      })
      const opened = yield* holdGate(zoe)
      const waiting = yield* Effect.fork(
        Effect.flatMap(took(zoe, 1, "z@x"), (events) =>
          Effect.flatMap(StoreAdapter.StoreAdapter, (store) => store.commitAll(events, [causing, plain]))
        )
      )
      yield* untilWaiting("advisory")
      yield* commit(plain, yield* took(ann, 2, "a2@x"))
      yield* Deferred.succeed(opened, undefined)
      yield* Fiber.join(waiting)
      expect(yield* guests.order).toEqual([`${ann} 1`, `${ann} 2`, `${zoe} 1`, `${bob} 1`, `${zoe} 2`])
      // The transaction and its streams go on behind it.
      yield* commit(plain, yield* took(zoe, 3, "z3@x"))
      expect((yield* guests.order).at(-1)).toBe(`${zoe} 3`)
    })
  )

  it.scoped(
    "later events of a caller's transaction stand behind a commit that moved, and the transaction reads the feed",
    () =>
      Effect.gen(function* () {
        const guests = yield* makeGuests("")
        const projection = projectionBy("statements", guests.table)
        for (const isolation of ["read committed", "repeatable read"]) {
          const [ann, zoe, bob] = ["ann", "zoe", "bob"].map((name) => `${guests.table} ${isolation} ${name}`)
          yield* inTransaction(
            isolation,
            Effect.gen(function* () {
              yield* writeFirst
              yield* Effect.flatMap(took(String(zoe), 1, `${zoe}@x`), (events) => commit(projection, events))
              yield* elsewhere(Effect.flatMap(took(String(ann), 1, `${ann}@x`), (events) => commit(projection, events)))
              yield* Effect.flatMap(took(String(zoe), 2, `${zoe}@y`), (events) => commit(projection, events))
              const store = yield* StoreAdapter.StoreAdapter
              yield* store.commitEvents(yield* took(String(bob), 1, `${bob}@x`))
              yield* Effect.flatMap(EventFeed.EventFeed, (feed) => feed.head)
            })
          )
          const places = (yield* guests.order).filter((place) => place.includes(isolation))
          expect(places).toEqual([`${zoe} 1`, `${ann} 1`, `${zoe} 2`, `${bob} 1`])
        }
      })
  )

  it.scoped(
    "hundreds of addresses change hands concurrently, and a rebuild succeeds",
    () =>
      Effect.gen(function* () {
        const guests = yield* makeGuests("")
        const projections = Object.values(kinds).map((make) => make(guests.table))
        const pairs = Arr.makeBy(150, (n) => n)
        const projectionOf = (n: number) => Arr.unsafeGet(projections, n % 2)
        const idOf = (name: string, n: number) => `${guests.table} ${name} ${n}`
        yield* Effect.forEach(
          pairs,
          (n) => Effect.flatMap(took(idOf("ann", n), 1, `${n}@x`), (events) => commit(projectionOf(n), events)),
          { concurrency: 10 }
        )
        yield* Effect.forEach(
          pairs,
          (n) =>
            Effect.all(
              [
                // The address is refused until it is free.
                Effect.retry(
                  Effect.flatMap(took(idOf("zoe", n), 1, `${n}@x`), (events) =>
                    n % 3 === 0
                      ? inTransaction("read committed", Effect.zipRight(writeFirst, commit(projectionOf(n), events)))
                      : commit(projectionOf(n), events)
                  ),
                  { times: 1000 }
                ),
                Effect.flatMap(took(idOf("ann", n), 2, `${n}@y`), (events) => commit(projectionOf(n + 1), events))
              ],
              { concurrency: 2 }
            ),
          { concurrency: 8, discard: true }
        )
        const order = yield* guests.order
        const places = new Map(order.map((place, index) => [place, index]))
        const wrong = pairs.filter(
          (n) => (places.get(`${idOf("ann", n)} 2`) ?? 0) > (places.get(`${idOf("zoe", n)} 1`) ?? -1)
        )
        expect(order).toHaveLength(3 * pairs.length)
        expect(wrong).toEqual([])
        yield* guests.expectRebuilt(projectionOf(0), 100)
      }).pipe(Logger.withMinimumLogLevel(LogLevel.None)),
    180_000
  )
})

// --- what the cases are made of ---

/** A table of guests, whose addresses are unique. */
const makeGuests = (deferred: string) =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const table = `guests_${crypto.randomUUID().slice(0, 8)}`
    yield* sql`create table ${sql(table)} (id text primary key, email text not null unique ${sql.literal(deferred)})`
    const rows = sql`select * from ${sql(table)} order by id collate "C"`
    return {
      table,
      /** The places of all its guests' events, in the order of the feed. */
      order: Effect.map(Effect.zipRight(lastPosition, Stream.runCollect(EventFeed.streamStored())), (events) =>
        [...events]
          .filter(({ aggregateId }) => aggregateId.startsWith(table))
          .map(({ aggregateId, sequence }) => `${aggregateId} ${sequence}`)
      ),
      /** Runs a rebuild of the table, which must succeed with the rows that are in it. */
      expectRebuilt: <E, R>(projection: Projection.Projection.Bound<E, R>, batchSize = 1) =>
        Effect.gen(function* () {
          const before = yield* rows
          // A rebuild projects all events, so those of other tables must be none of this projection.
          const all = Projection.toEffect<E, R>(projection)
          const own = Projection.of("all", {
            ...all,
            project: (event: Event.Event) => (event.aggregateId.startsWith(table) ? all.project(event) : Effect.void)
          })
          yield* Rebuild.run({ name: table, projections: [own], tables: [table], batchSize })
          expect(yield* rows).toEqual(before)
        })
    }
  })

const took = (aggregateId: string, sequence: number, email: string) =>
  Effect.flatMap(Timestamp.HybridClock, ({ now }) =>
    Effect.map(now, (timestamp) => [
      { timestamp, aggregateId, sequence, type: "Took", version: 1, body: { email }, metadata: {} }
    ])
  )

const commit = <E, R>(projection: Projection.Projection<E, R>, events: ReadonlyArray<Event.Event>) =>
  Effect.flatMap(StoreAdapter.StoreAdapter, (store) => store.commitAll(events, [projection]))

const inTransaction = <A, E, R>(isolation: string, effect: Effect.Effect<A, E, R>) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    sql.withTransaction(Effect.zipRight(sql`set transaction isolation level ${sql.literal(isolation)}`, effect))
  )

/** Gives the transaction its id. */
const writeFirst = Effect.flatMap(SqlClient.SqlClient, (sql) => sql`select pg_current_xact_id()`)

/** Runs an effect outside of the transaction of this fiber. */
const elsewhere = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.mapInputContext(
    effect,
    (context: Context.Context<R>) =>
      Context.omit(SqlClient.TransactionConnection)(
        context as Context.Context<SqlClient.TransactionConnection>
      ) as Context.Context<R>
  )

/** Holds the lock that a guest's projection takes first, until the deferred is done. */
const holdGate = (id: string) =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const held = yield* Deferred.make<void>()
    const opened = yield* Deferred.make<void>()
    yield* Effect.forkScoped(
      sql.withTransaction(
        Effect.zipRight(gate(sql, id), Effect.zipRight(Deferred.succeed(held, undefined), Deferred.await(opened)))
      )
    )
    yield* Deferred.await(held)
    return opened
  })

/** Waits until one transaction of this database waits for a lock of this type. */
const untilWaiting = (type: "advisory" | "transactionid") =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const waiting = sql<{ n: number }>`select count(*)::int as n from pg_locks l
      join pg_stat_activity a on a.pid = l.pid
      where not l.granted and l.locktype = ${type} and a.datname = current_database()`
    yield* Effect.repeat(waiting, { until: ([row]) => row?.n === 1 })
  })
