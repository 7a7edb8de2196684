/** The order of the feed by a counter: it is that of the commits, and a transaction that has appended makes others wait, and fails none. */
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import { expect, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Aggregate, EventFeed, Projection, SqlStore, StoreAdapter } from "effect-maestro"
import { inject } from "vitest"
import { makeDatabase } from "./database.js"
import { clean, textOf, verdictOf } from "./feedOrderModel.js"
import { commit, event, eventually, newId } from "./subscribers.js"

const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31))

class Counted extends Schema.TaggedClass<Counted>()("Counted", {}) {}
class Count extends Schema.TaggedClass<Count>()("Count", {}) {}

const definition = {
  state: Schema.Struct({}),
  initialState: {},
  events: Counted,
  commands: Count,
  decide: { Count: () => Effect.succeed([new Counted()]) },
  evolve: { Counted: (state: object) => state },
  retry: Schedule.recurs(20)
}

/** Takes the next number. Its row stays locked until COMMIT, so the numbers are in the order of the commits. */
const ByEffect = Projection.make({
  name: "numbers, by an effect",
  events: Counted,
  project: {
    Counted: (_, { aggregateId, sequence }) =>
      Effect.flatMap(
        SqlClient.SqlClient,
        (sql) => sql`with next as (update numbers set last = last + 1 returning last)
          insert into numbered (place, number) select ${`${aggregateId}/${sequence}`}, last from next`
      )
  }
})
const BySql = Projection.makeSql({
  name: "numbers, by SQL",
  events: Counted,
  project: {
    Counted: (_, { aggregateId, sequence }, sql) =>
      sql`with next as (update numbers set last = last + 1 returning last)
        insert into numbered (place, number) select ${`${aggregateId}/${sequence}`}, last from next`
  }
})

const Plain = Aggregate.make("Plain", definition)
const WithEffect = Aggregate.make("WithEffect", { ...definition, projections: [ByEffect] })
const WithSql = Aggregate.make("WithSql", { ...definition, projections: [BySql] })

const plain = (id: string) => Effect.asVoid(Plain.evaluate(id, new Count()))
const withEffect = (id: string) => Effect.asVoid(WithEffect.evaluate(id, new Count()))
const withSql = (id: string) => Effect.asVoid(WithSql.evaluate(id, new Count()))

type Counting = Effect.Effect<
  void,
  Effect.Effect.Error<ReturnType<typeof withEffect>>,
  Effect.Effect.Context<ReturnType<typeof plain | typeof withEffect | typeof withSql>>
>

/** A command on one of three aggregates with that id, which differ by their projections. */
const count = (kind: number, id: string): Counting => [plain, withEffect, withSql][kind % 3]?.(id) ?? plain(id)

const makeTables = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  yield* sql`create table numbers (last int not null)`
  yield* sql`insert into numbers values (0)`
  yield* sql`create table numbered (place text primary key, number int not null)`
})

const nodeOn = (url: string, maxConnections: number) =>
  Layer.mergeAll(Plain.layer, WithEffect.layer, WithSql.layer).pipe(
    Layer.provideMerge(SqlStore.layerWith({ feedOrder: "counter" })),
    Layer.provideMerge(PgClient.layer({ url: Redacted.make(url), maxConnections })),
    Layer.fresh
  )

type Services = Layer.Layer.Success<ReturnType<typeof nodeOn>>

/** Another node on the same database. */
class There extends Context.Tag("test/There")<There, Context.Context<Services>>() {}

/** Two nodes on one database. The pool of this one is small, because waits must not take all of its connections. */
const nodes = Layer.unwrapScoped(
  Effect.map(makeDatabase, (url) =>
    Layer.effect(There, Effect.context<Services>()).pipe(
      Layer.provide(nodeOn(url, 12)),
      Layer.provideMerge(Layer.effectDiscard(makeTables).pipe(Layer.provideMerge(nodeOn(url, 8))))
    )
  )
)

const elsewhere = <A, E>(effect: Effect.Effect<A, E, Services>) =>
  Effect.flatMap(There, (services) => Effect.provide(effect, services)).pipe(
    Effect.mapInputContext((context: Context.Context<There>) =>
      Context.omit(SqlClient.TransactionConnection)(context as Context.Context<There | SqlClient.TransactionConnection>)
    )
  )

const inTransaction = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) => sql.withTransaction(effect))

/** A transaction elsewhere that has appended, and is open until `end`. */
const openTransaction = Effect.gen(function* () {
  const [begun, ended] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
  const id = newId("open")
  const fiber = yield* Effect.fork(
    elsewhere(
      inTransaction(
        commit(event(id, 1)).pipe(
          Effect.zipRight(Deferred.succeed(begun, undefined)),
          Effect.zipRight(Deferred.await(ended))
        )
      )
    )
  )
  yield* Effect.raceFirst(Deferred.await(begun), Fiber.join(fiber))
  return { place: `${id}/1`, end: Effect.zipRight(Deferred.succeed(ended, undefined), Fiber.join(fiber)) }
})

/** How many statements have waited for the counter for so long. */
const waitingFor = (interval: string) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    Effect.map(
      sql<{ count: number }>`select count(*)::int as count from pg_stat_activity
        where wait_event_type = 'Lock' and query like '%commit_events%' and datname = current_database()
          and clock_timestamp() - query_start >= ${interval}::interval`,
      ([row]) => row?.count ?? 0
    )
  )
const waiting = waitingFor("0")
const waitingLong = waitingFor("300 milliseconds")

const feedFrom = (after: EventFeed.Position) =>
  Effect.map(Stream.runCollect(EventFeed.streamStored({ after })), (events) => [...events].map(textOf))

class Undone extends Schema.TaggedError<Undone>()("Undone", {}) {}

layer(nodes, { excludeTestServices: true, timeout: 60_000 })("the order of the feed by a counter", (it) => {
  it.scoped(`is that of the commits, and no reader skips an event, while transactions overlap (seed ${seed})`, () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const first = yield* EventFeed.head
      const undone = new Set<string>()
      const hot = Effect.map(Random.nextIntBetween(0, 4), (index) => `hot-${index}`)
      const any = Effect.flatMap(Random.nextIntBetween(0, 3), (dice) => Effect.flatMap(hot, (id) => count(dice, id)))
      const several = inTransaction(
        Effect.gen(function* () {
          yield* Effect.ignore(inTransaction(Effect.zipRight(any, new Undone())))
          yield* any
          yield* any
        })
      )
      const work = Effect.flatMap(Random.next, (dice) =>
        dice < 0.7
          ? Effect.asVoid(any)
          : dice < 0.85
            ? several
            : Effect.ignore(inTransaction(Effect.zipRight(any, new Undone())))
      )
      const worker = (index: number): Effect.Effect<void, unknown, Services | There> => {
        const all = Effect.repeatN(Effect.retry(work, { times: 20 }), inject("runs") > 100 ? 400 : 11).pipe(
          Effect.withRandom(Random.make(`${seed}-${index}`))
        )
        return index % 2 === 0 ? all : elsewhere(all)
      }
      let isOver = false
      const reader = Effect.gen(function* () {
        let after = first
        const seen: Array<string> = []
        for (let rounds = 0; !isOver || rounds < 2; rounds = isOver ? rounds + 1 : 0) {
          const page = yield* EventFeed.read({ after, limit: 1 + (seen.length % 7) })
          seen.push(...page.events.map(textOf))
          after = page.position
          if (page.more) rounds = 0
        }
        return seen
      })
      const reading = yield* Effect.fork(Effect.replicateEffect(reader, 2, { concurrency: 2 }))
      yield* Effect.forEach(Arr.range(1, 8), worker, { concurrency: "unbounded" })
      isOver = true
      const feed = [...(yield* Stream.runCollect(EventFeed.streamStored({ after: first })))]
      expect(verdictOf(feed, [], undone)).toEqual(clean)
      for (const { position } of feed) expect(position).toMatch(/^0-\d+-[0-9a-f]{12}$/)
      const places = feed.map(textOf)
      for (const seen of yield* Fiber.join(reading)) expect(seen).toEqual(places)
      const numbered = yield* sql<{ place: string }>`select place from numbered order by number`
      expect(numbered.length).toBeGreaterThan(20)
      const order = new Map(numbered.map(({ place }, index) => [place, index]))
      const projected = places.filter((place) => order.has(place))
      expect(projected).toEqual(numbered.map(({ place }) => place))
    })
  )

  it.scoped("a transaction that has appended makes all appends wait, and fails none, and reads go on", () =>
    Effect.gen(function* () {
      const after = yield* EventFeed.head
      const open = yield* openTransaction
      const callers = Arr.range(1, 60).map((n) => [n, newId(`waits-${n}`)] as const)
      const appending = yield* Effect.fork(
        Effect.forEach(callers, ([n, id]) => count(n, id), { concurrency: "unbounded" })
      )
      yield* eventually(waiting, (found) => found >= 2)
      // Longer than the 100 ms after which a batch gives up a wait on a log with the other order.
      yield* eventually(waitingLong, (found) => found >= 2)
      expect(yield* waiting).toBeLessThan(7)
      expect(yield* feedFrom(after)).toEqual([])
      expect(yield* EventFeed.heldBack()).toMatchObject({ _tag: "None" })
      expect(appending.unsafePoll()).toBeNull()
      yield* open.end
      yield* Fiber.join(appending)
      const shown = yield* feedFrom(after)
      expect(shown[0]).toBe(open.place)
      expect(shown).toHaveLength(61)
    })
  )

  it.scoped("callers that are interrupted while they wait store nothing, and hold up no other", () =>
    Effect.gen(function* () {
      const after = yield* EventFeed.head
      const open = yield* openTransaction
      const ids = Arr.makeBy(9, (n) => [n, newId(`gone-${n}`)] as const)
      const appending = yield* Effect.forEach(ids, ([n, id]) => Effect.fork(count(n, id)))
      yield* eventually(waiting, (found) => found >= 2)
      const exits = yield* Effect.forEach(appending, (fiber) => Fiber.interrupt(fiber), { concurrency: "unbounded" })
      expect(exits.every(Exit.isInterrupted)).toBe(true)
      yield* open.end
      const later = newId("later")
      yield* Effect.forEach([0, 1, 2], (n) => count(n, later))
      expect(yield* feedFrom(after)).toEqual([
        open.place,
        ...["Plain", "WithEffect", "WithSql"].map((kind) => `${kind}/${later}/1`)
      ])
    })
  )

  it.scoped(
    "a savepoint that is rolled back gives the counter to others, and the transaction appends behind them",
    () =>
      Effect.gen(function* () {
        const after = yield* EventFeed.head
        const [a, b, c] = [newId("a"), newId("b"), newId("c")]
        yield* inTransaction(
          Effect.gen(function* () {
            yield* Effect.ignore(inTransaction(Effect.zipRight(commit(event(a, 1)), new Undone())))
            yield* elsewhere(commit(event(b, 1), event(b, 2)))
            expect(yield* feedFrom(after)).toEqual([`${b}/1`, `${b}/2`])
            yield* commit(event(a, 1))
            // A savepoint after an append keeps the counter, and what it hides.
            yield* Effect.ignore(inTransaction(Effect.zipRight(commit(event(c, 1)), new Undone())))
            expect(yield* feedFrom(after)).toEqual([`${b}/1`, `${b}/2`])
            yield* commit(event(c, 1))
            expect(yield* EventFeed.head).not.toBe(after)
            expect(yield* elsewhere(feedFrom(after))).toEqual([`${b}/1`, `${b}/2`])
          })
        )
        expect(yield* feedFrom(after)).toEqual([`${b}/1`, `${b}/2`, `${a}/1`, `${c}/1`])
      })
  )

  for (const level of ["repeatable read", "serializable"] as const) {
    it.scoped(
      `a ${level} transaction fails with Contention if others have appended since its snapshot, and else succeeds`,
      () =>
        Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          const isolated = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
            inTransaction(
              Effect.zipRight(
                Effect.zipRight(sql`set transaction isolation level ${sql.literal(level)}`, sql`select 1 from numbers`),
                effect
              )
            )
          const [a, b] = [newId("a"), newId("b")]
          yield* isolated(Effect.zipRight(commit(event(a, 1)), commit(event(a, 2), event(b, 1))))
          const error = yield* Effect.flip(
            isolated(Effect.zipRight(elsewhere(commit(event(newId("c"), 1))), commit(event(a, 3))))
          )
          expect(error).toMatchObject({ _tag: "StoreError", reason: "Contention", code: "40001" })
          // A retry inside sees the same snapshot, so a command fails alike.
          const ofCommand = yield* Effect.flip(
            isolated(Effect.zipRight(elsewhere(commit(event(newId("c"), 1))), withEffect(a)))
          )
          expect(ofCommand).toMatchObject({ _tag: "StoreError", reason: "Contention", code: "40001" })
          yield* isolated(Effect.zipRight(commit(event(a, 3)), withEffect(a)))
        })
    )
  }

  it.scoped("a deadlock between the counter and a row of a projection is Contention for one of the two", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const [locked, id] = [yield* Deferred.make<void>(), newId("deadlock")]
      const own = yield* Effect.fork(
        Effect.either(
          inTransaction(
            Effect.gen(function* () {
              yield* sql`update numbers set last = last`
              yield* Deferred.succeed(locked, undefined)
              yield* eventually(
                sql<{ n: number }>`select count(*)::int as n from pg_stat_activity
                  where wait_event_type = 'Lock' and datname = current_database()`,
                ([row]) => (row?.n ?? 0) > 0
              )
              yield* commit(event(id, 1))
            })
          )
        )
      )
      yield* Deferred.await(locked)
      // Its transaction is repeated, if it is the one that the database ends.
      yield* elsewhere(withEffect(id))
      const result = yield* Fiber.join(own)
      if (result._tag === "Left") expect(result.left).toMatchObject({ reason: "Contention" })
    })
  )

  it.scoped("where the default isolation is stricter, concurrent appends of several nodes all succeed", () =>
    Effect.gen(function* () {
      const url = yield* makeDatabase
      const strict = `${url}?options=-c%20default_transaction_isolation%3Drepeatable%5C%20read`
      const services = yield* Effect.replicateEffect(Layer.build(nodeOn(strict, 6)), 3)
      const storing = services.flatMap((node, index) =>
        Arr.makeBy(20, (n) => Effect.provide(commit(event(`${index}-${n}`, 1), event(`${index}-${n}`, 2)), node))
      )
      yield* Effect.all(storing, { concurrency: "unbounded" })
    })
  )

  it.scoped(
    "a transaction that appends to two logs is shown what others committed to each, and nothing of its own",
    () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const storeOf = (schema: string) =>
          Layer.build(Layer.fresh(SqlStore.layerWith({ schema, feedOrder: "counter" })))
        const [low, high] = [yield* storeOf("low"), yield* storeOf("high")]
        yield* Effect.repeatN(
          Effect.provide(
            Effect.suspend(() => commit(event(newId("two"), 1))),
            high
          ),
          9
        )
        yield* Effect.provide(commit(event(newId("two"), 1)), low)
        const count = Effect.flatMap(EventFeed.EventFeed, (feed) => feed.count({}))
        const counts = Effect.all([Effect.provide(count, low), Effect.provide(count, high)])
        for (const [first, second] of [
          [low, high],
          [high, low]
        ] as const) {
          yield* sql.withTransaction(
            Effect.gen(function* () {
              const before = yield* counts
              yield* Effect.provide(commit(event(newId("two"), 1)), first)
              yield* Effect.provide(commit(event(newId("two"), 1)), second)
              expect(yield* counts).toEqual(before)
            })
          )
        }
        expect(yield* counts).toEqual([3, 12])
      })
  )

  it.scoped("a counter that is behind its log is raised by a repair, and a missing one is named by the failure", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const feed = yield* EventFeed.EventFeed
      yield* commit(event(newId("before"), 1))
      const after = yield* feed.head
      yield* sql`update maestro.feed_counter set last = 0`
      expect(yield* SqlStore.repairAfterRestore()).toBe(true)
      expect(yield* SqlStore.repairAfterRestore()).toBe(false)
      const id = newId("after")
      yield* commit(event(id, 1))
      expect((yield* feed.read({ after })).events.map(({ aggregateId }) => aggregateId)).toEqual([id])
      const [row] = yield* sql<{ last: string }>`select last::text from maestro.feed_counter`
      yield* sql`delete from maestro.feed_counter`
      expect(`${yield* Effect.flip(commit(event(newId("lost"), 1)))}`).toContain("the row of feed_counter is missing")
      yield* sql`insert into maestro.feed_counter values (1, ${row?.last ?? "0"}::bigint)`
    })
  )

  it.scoped(
    "after a loss of the last events the counter gives their positions to others, and a reader there fails",
    () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const feed = yield* EventFeed.EventFeed
        const store = yield* StoreAdapter.StoreAdapter
        const [kept, lost] = [newId("kept"), newId("lost")]
        yield* commit(event(kept, 1))
        const [counter] = yield* sql<{ last: string }>`select last::text from maestro.feed_counter`
        yield* commit(event(lost, 1), event(lost, 2))
        const after = yield* feed.head
        yield* sql`delete from maestro.event_log where aggregate_id = ${lost}`
        yield* sql`update maestro.feed_counter set last = ${counter?.last ?? "0"}::bigint`
        for (let n = 1; n <= 10; n++) yield* Effect.flatMap(event(newId("new"), 1), (one) => store.commitEvents([one]))
        const { events } = yield* feed.read({})
        expect(events.some(({ position }) => EventFeed.order(position, after) === 0)).toBe(true)
        const error = yield* Effect.flip(feed.read({ after }))
        expect(error).toMatchObject({ reason: "Misconfigured" })
        expect(`${error}`).toContain("the log has lost its last events")
      })
  )
})
