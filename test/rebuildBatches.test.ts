/** Rebuilds send the statements of many events together, and each projection finds what it would find by itself. */
import * as SqlClient from "@effect/sql/SqlClient"
import type { Statement } from "@effect/sql/Statement"
import { expect, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Schema from "effect/Schema"
import { type Event, Projection, Rebuild, SqlStore, StoreAdapter, Timestamp } from "effect-maestro"
import { layerPg } from "./database.js"
import { collectSpans } from "./spans.js"
import { eventually } from "./subscribers.js"

class Counted extends Schema.TaggedClass<Counted>()("Counted", { amount: Schema.Int }) {}
class TooLow extends Schema.TaggedError<TooLow>()("TooLow", { amount: Schema.Int }) {}

const commit = (amounts: ReadonlyArray<number>, aggregateId = "a") =>
  Effect.gen(function* () {
    const { now } = yield* Timestamp.HybridClock
    const events = yield* Effect.forEach(amounts, (amount, index) =>
      Effect.map(
        now,
        (timestamp): Event.Event => ({
          timestamp,
          aggregateId,
          sequence: index + 1,
          type: "Counted",
          version: 1,
          body: { amount },
          metadata: {}
        })
      )
    )
    yield* Effect.flatMap(StoreAdapter.StoreAdapter, (store) => store.commitEvents(events))
  })

type AnyProjection = Projection.Projection.Bound<unknown, SqlClient.SqlClient>

/** A projection by an effect, with the client. */
const byEffect = (
  project: (sql: SqlClient.SqlClient, event: Event.Event) => Effect.Effect<unknown, unknown, SqlClient.SqlClient>
): AnyProjection => ({
  name: "counting",
  of: "all",
  project: (event) => Effect.asVoid(Effect.flatMap(SqlClient.SqlClient, (sql) => project(sql, event)))
})

const insertRow = (sql: SqlClient.SqlClient, { body, sequence }: Event.Event) =>
  sql`insert into counts values (${sequence}, ${body.amount})`

/** Inserts a row for each event, as statements. Amounts below 0 violate a constraint. */
const bySql = (statement?: (sql: SqlClient.SqlClient, n: number, amount: number) => Statement<unknown>) =>
  Projection.makeSql({
    name: "counting",
    of: "all",
    events: Counted,
    project: {
      Counted: ({ amount }, { sequence }, sql) =>
        statement?.(sql, sequence, amount) ?? sql`insert into counts values (${sequence}, ${amount})`
    },
    onConstraint: { not_negative: ({ amount }) => new TooLow({ amount }) }
  })

/** Runs a rebuild of a new table `counts` from events with these amounts. */
const rebuildOf = <E, R>(
  amounts: ReadonlyArray<number>,
  projection: Projection.Projection.Bound<E, R>,
  options: { readonly batchSize?: number } = {}
) =>
  Effect.gen(function* () {
    yield* commit(amounts)
    return yield* Rebuild.run({ name: "counts", projections: [projection], tables: ["counts"], ...options })
  })

const rows = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  Effect.map(sql<{ n: number; amount: number }>`select n, amount from counts order by n`, (all) =>
    all.map(({ amount, n }) => [n, amount])
  )
)

const makeTable = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`create table counts (n int primary key, amount int constraint not_negative check (amount >= 0))`
)

const onDatabase = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.provide(
    effect,
    Layer.fresh(
      Layer.effectDiscard(makeTable).pipe(
        Layer.provideMerge(SqlStore.layer),
        Layer.provideMerge(layerPg()),
        Layer.provideMerge(Logger.remove(Logger.defaultLogger))
      )
    )
  )

layer(Layer.empty, { excludeTestServices: true, timeout: 60_000 })("the batches of a rebuild", (it) => {
  for (const kind of ["effects", "statements"]) {
    it.effect(`a value that a handler uses again is stored as it was at its event: ${kind}`, () =>
      onDatabase(
        Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          yield* sql`create table notes (n int primary key, bytes bytea, at timestamptz)`
          const [bytes, at] = [new Uint8Array(1), new Date(0)]
          const insertNote = (n: number, amount: number) => {
            bytes[0] = amount
            at.setTime(amount * 1000)
            return sql`insert into notes values (${n}, ${bytes}, ${at})`
          }
          const projection =
            kind === "effects"
              ? byEffect((_, { body, sequence }) => insertNote(sequence, Number(body.amount)))
              : bySql((_, n, amount) => insertNote(n, amount))
          yield* commit([1, 2, 3])
          yield* Rebuild.run({ name: "notes", projections: [projection], tables: ["notes"] })
          expect(
            yield* sql`select get_byte(bytes, 0) as byte, extract(epoch from at)::int as at from notes order by n`
          ).toEqual([1, 2, 3].map((n) => ({ byte: n, at: n })))
        })
      )
    )
  }

  for (const [kind, projection] of [
    ["effects", byEffect(insertRow)],
    ["statements", bySql()]
  ] as const) {
    it.effect(`the statements of many events are sent together: ${kind}`, () =>
      onDatabase(
        Effect.gen(function* () {
          const { spans, tracer } = yield* collectSpans
          expect(yield* Effect.withTracer(rebuildOf(Arr.range(1, 600), projection), tracer)).toBe(600)
          const sizes = spans.flatMap(({ attributes }) => attributes.get("db.operation.batch.size") ?? [])
          expect(sizes).toEqual([250, 250, 100])
          expect(yield* rows).toEqual(Arr.range(1, 600).map((n) => [n, n]))
        })
      )
    )

    it.effect(`an interruption ends a batch that runs for long: ${kind}`, () =>
      onDatabase(
        Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          yield* sql`create table lock_me (n int)`
          const locked = yield* Deferred.make<void>()
          const holding = yield* sql`lock table lock_me`.pipe(
            Effect.zipRight(Deferred.succeed(locked, undefined)),
            Effect.zipRight(Effect.never),
            sql.withTransaction,
            Effect.fork
          )
          yield* Deferred.await(locked)
          const waiting =
            kind === "effects"
              ? byEffect((client) => client`insert into counts select n, n from lock_me`)
              : bySql((client) => client`insert into counts select n, n from lock_me`)
          const running = yield* Effect.fork(rebuildOf([1, 2, 3], waiting))
          yield* eventually(
            sql`select 1 from pg_locks where not granted and relation = 'lock_me'::regclass`,
            (waits) => waits.length > 0
          )
          const interrupted = yield* Effect.timeout(Fiber.interrupt(running), "20 seconds")
          expect(Exit.isInterrupted(interrupted)).toBe(true)
          yield* Fiber.interrupt(holding)
          // The connection of the batch is not given back inside of its transaction.
          expect(yield* rows).toEqual([])
          yield* Rebuild.abandon("counts")
          expect(yield* Rebuild.run({ name: "counts", projections: [byEffect(insertRow)], tables: ["counts"] })).toBe(3)
        })
      )
    )
  }

  it.effect("an effect finds what it and the events before it have written", () =>
    onDatabase(
      Effect.gen(function* () {
        const found: Array<number> = []
        const summing = byEffect((sql, event) =>
          Effect.gen(function* () {
            yield* insertRow(sql, event)
            const [sum] = yield* sql<{ sum: number }>`select sum(amount)::int as sum from counts`
            yield* sql`update counts set amount = ${sum?.sum ?? 0} where n = ${event.sequence}`
            const [{ amount } = { amount: 0 }] = yield* sql<{
              amount: number
            }>`update counts set amount = amount + 1 where n = ${event.sequence} returning amount`
            found.push(amount)
          })
        )
        yield* rebuildOf([1, 2, 3, 4], summing)
        // Each amount is one more than the sum of those before it and its own.
        expect(found).toEqual([2, 5, 11, 23])
        expect((yield* rows).map(([, amount]) => amount)).toEqual(found)
      })
    )
  )

  it.effect("an effect that handles the failure of its statement has the result that it has by itself", () =>
    onDatabase(
      Effect.gen(function* () {
        const handling = byEffect((sql, event) =>
          sql
            .withTransaction(insertRow(sql, event))
            .pipe(Effect.catchAll(() => sql`insert into counts values (${event.sequence}, 1000)`))
        )
        yield* rebuildOf([1, -2, 3, -4], handling)
        expect(yield* rows).toEqual([
          [1, 1],
          [2, 1000],
          [3, 3],
          [4, 1000]
        ])
      })
    )
  )

  it.effect("an effect that writes in several fibers, and by a stream and raw results, writes all of it", () =>
    onDatabase(
      Effect.gen(function* () {
        const many = byEffect((sql, { sequence }) =>
          Effect.gen(function* () {
            yield* Effect.all(
              Arr.range(0, 4).map((n) => sql`insert into counts values (${sequence * 100 + n}, 1)`),
              { concurrency: "unbounded" }
            )
            const result = yield* sql`update counts set amount = amount + 1 where n >= ${sequence * 100}`.raw
            expect(result).toMatchObject({ rowCount: 5 })
            expect(yield* sql`select n from counts`.values).toHaveLength(5 * sequence)
          })
        )
        yield* rebuildOf([1, 2, 3], many)
        expect((yield* rows).map(([, amount]) => amount)).toEqual(Arr.makeBy(15, () => 2))
      })
    )
  )

  it.effect("a statement that fails names projection and event, and its batch is rolled back", () =>
    onDatabase(
      Effect.gen(function* () {
        const amounts = Arr.range(1, 40).map((n) => (n === 33 ? -33 : n))
        const error = yield* Effect.flip(rebuildOf(amounts, bySql(), { batchSize: 20 }))
        expect(error).toEqual(new TooLow({ amount: -33 }))
        expect(yield* Rebuild.status("counts")).toMatchObject({ value: { done: 20, finished: false } })
        const byHand = byEffect(insertRow)
        const failure = yield* Effect.flip(
          Rebuild.run({ name: "counts", projections: [Projection.orStoreError(byHand)], tables: ["counts"] })
        )
        expect(failure).toMatchObject({ projection: "counting", sequence: 33, constraint: "not_negative" })
        // The corrected projection continues after the first batch.
        const corrected = bySql((sql, n, amount) => sql`insert into counts values (${n}, ${Math.abs(amount)})`)
        const running = Rebuild.run({ name: "counts", projections: [corrected], tables: ["counts"] })
        expect(yield* running).toBe(20)
        expect(yield* rows).toEqual(Arr.range(1, 40).map((n) => [n, n]))
      })
    )
  )

  it.effect("a projection that ends the transaction fails the rebuild, and says so", () =>
    onDatabase(
      Effect.gen(function* () {
        yield* commit([1, 2, 3])
        for (const projection of [
          bySql((sql, n) => (n === 2 ? sql`commit` : sql`insert into counts values (${n}, 1)`)),
          byEffect((sql, event) => (event.sequence === 2 ? sql`commit` : insertRow(sql, event)))
        ]) {
          const error = yield* Effect.flip(
            Rebuild.run({ name: "counts", projections: [projection], tables: ["counts"] })
          )
          expect(`${error}`).toContain("ended the transaction by a COMMIT or ROLLBACK of its own")
          expect(yield* Rebuild.status("counts")).toMatchObject({ value: { finished: false } })
          yield* Rebuild.abandon("counts")
        }
      })
    )
  )

  it.effect("a connection that is cut in a batch costs that batch, and the rebuild continues", () =>
    onDatabase(
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* commit(Arr.range(1, 100))
        for (const kind of ["effects", "statements"]) {
          const name = `cut ${kind}`
          let cuts = 0
          const cut = (client: SqlClient.SqlClient, { body, sequence }: Pick<Event.Event, "body" | "sequence">) =>
            sequence === 70 && ++cuts === 1
              ? client`insert into counts select ${sequence}, 1 where pg_terminate_backend(pg_backend_pid())`
              : client`insert into counts values (${sequence}, ${body.amount})`
          const projection =
            kind === "effects"
              ? byEffect(cut)
              : bySql((client, sequence, amount) => cut(client, { sequence, body: { amount } }))
          const running = Rebuild.run({ name, projections: [projection], tables: ["counts"], batchSize: 50 })
          expect(yield* running).toBe(100)
          expect(cuts).toBeGreaterThan(1)
          expect(yield* rows).toEqual(Arr.range(1, 100).map((n) => [n, n]))
          yield* sql`delete from counts`
        }
      })
    )
  )

  it.effect("a pool of one connection is enough", () =>
    Effect.provide(
      Effect.gen(function* () {
        yield* makeTable
        expect(yield* rebuildOf(Arr.range(1, 300), byEffect(insertRow), { batchSize: 50 })).toBe(300)
        expect(yield* rows).toHaveLength(300)
      }),
      SqlStore.layer.pipe(Layer.provideMerge(layerPg({ maxConnections: 1 })), Layer.fresh)
    )
  )
})
