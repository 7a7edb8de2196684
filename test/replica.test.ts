/** Queries that a replica answers, and pages of the feed that come from it, also while it lags, is down or was promoted. */
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import { describe, expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Config from "effect/Config"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Aggregate, EventFeed, SqlStore } from "effect-maestro"
import { Deposit, definition, Limits, Open, Withdraw } from "./account.js"
import { uniqueName } from "./database.js"
import { setUpPair, until, type Watched, watch } from "./replicas.js"
import { commitOf, newId, placeOf, placesOf, shortly } from "./subscribers.js"

const { caughtUp, onStandby, primaryClient, servers, standbyClient, store, whilePaused } = setUpPair()

/** An account whose states are not cached, so that each read is one of a database. */
const Account = Aggregate.make("Account", { ...definition, cache: { capacity: 0 } })

/** Another node on the same streams, with a cache. */
const Cached = Aggregate.make("Cached", { ...definition, kind: "Account" })

class Counted extends Schema.TaggedClass<Counted>()("Counted", { balance: Schema.Number }) {}
class Count extends Schema.TaggedClass<Count>()("Count", { account: Schema.String }) {}

/** Its decision reads the state of an account. */
const Audit = Aggregate.make("Audit", {
  state: Schema.Number,
  initialState: 0,
  events: Counted,
  commands: Count,
  decide: {
    Count: ({ account }) =>
      Effect.map(Account.fetch(account).pipe(SqlStore.fromReplica()), ({ balance }) => [new Counted({ balance })])
  },
  evolve: { Counted: (_, { balance }) => balance }
})

const aggregates = Layer.mergeAll(Account.layer, Cached.layer, Audit.layer.pipe(Layer.provide(Account.layer)))

const withStore = (options?: Parameters<typeof store>[0]) =>
  Effect.provide(
    aggregates.pipe(Layer.provideMerge(Limits.layer), Layer.provideMerge(Layer.suspend(() => store(options))))
  )

/** An account of 100 that the standby has. */
const account = Effect.gen(function* () {
  const id = newId("account")
  yield* Account.evaluate(id, new Open({ owner: "Ada" }))
  yield* Account.evaluate(id, new Deposit({ amount: 100 }))
  yield* caughtUp
  return id
})

const deposit = (id: string) => Effect.map(Account.evaluate(id, new Deposit({ amount: 1 })), ({ position }) => position)

const balance = (id: string) => Effect.map(Account.fetch(id), ({ balance }) => balance)

const collectWarnings = (lines: Array<string>) =>
  Logger.replace(
    Logger.defaultLogger,
    Logger.make(({ logLevel, message }) => {
      lines.push(`${logLevel.label} ${String(message)}`)
    })
  )

describe("a query from the replica", () => {
  it.live("returns the state that the replica has, without the events that it has not replayed", () =>
    Effect.gen(function* () {
      const id = yield* account
      yield* whilePaused(
        Effect.gen(function* () {
          yield* deposit(id)
          expect(yield* balance(id)).toBe(101)
          const queries = Effect.all({
            fetch: balance(id),
            get: Effect.map(Account.get(id), ({ balance }) => balance),
            root: Effect.map(Account.root(id), ({ sequence }) => sequence),
            exists: Account.exists(id),
            history: Effect.map(Stream.runCollect(Account.history(id)), ({ length }) => length),
            asOf: Effect.map(Account.replay(id, { asOf: new Date(Date.now() + 60_000) }), ({ balance }) => balance)
          })
          expect(yield* queries.pipe(SqlStore.fromReplica())).toEqual({
            fetch: 100,
            get: 100,
            root: 2,
            exists: true,
            history: 2,
            asOf: 100
          })
        })
      )
    }).pipe(withStore())
  )

  it.live("sees the events of `after`: it waits for the replica, and after `maxWait` the primary answers", () =>
    Effect.gen(function* () {
      const id = yield* account
      const after = yield* whilePaused(
        Effect.gen(function* () {
          const after = yield* deposit(id)
          const hasAll = [after, { aggregateId: "Account/none", sequence: 0 }]
          for (const expected of [after, hasAll]) {
            expect(yield* balance(id).pipe(SqlStore.fromReplica({ after: expected, maxWait: "20 millis" }))).toBe(101)
          }
          // The state is that of the primary, and another query reads the replica still.
          expect(yield* balance(id).pipe(SqlStore.fromReplica())).toBe(100)
          return after
        })
      )
      expect(yield* balance(id).pipe(SqlStore.fromReplica({ after, maxWait: "1 minute" }))).toBe(101)
    }).pipe(withStore())
  )

  it.live("is answered by the primary after `maxWait`, also where the replica does not reply", () => {
    const watched: Watched = { reads: 0, failure: undefined }
    return Effect.gen(function* () {
      const id = yield* account
      const after = yield* deposit(id)
      expect(yield* balance(id).pipe(SqlStore.fromReplica({ after, maxWait: "1 minute" }))).toBe(101)
      const replies = yield* Deferred.make<void>()
      watched.hold = Deferred.await(replies)
      // A connection of the query before is kept for the rest of its macrotask.
      yield* shortly
      const query = balance(id).pipe(SqlStore.fromReplica({ after, maxWait: "50 millis" }))
      // A read that the replica does not answer is given up after 5 seconds.
      expect(yield* Effect.timeout(query, "4 seconds")).toBe(101)
      yield* Deferred.succeed(replies, undefined)
    }).pipe(withStore({ readFrom: watch(watched, Layer.fresh(standbyClient)) }))
  })

  it.live("waits for an event of another aggregate, and then sees what was committed before that", () => {
    const watched: Watched = { reads: 0, failure: undefined }
    return Effect.gen(function* () {
      const [id, other] = [yield* account, yield* account]
      const waiting = yield* whilePaused(
        Effect.gen(function* () {
          yield* deposit(id)
          const after = yield* deposit(other)
          const before = watched.reads
          const waiting = yield* Effect.fork(balance(id).pipe(SqlStore.fromReplica({ after, maxWait: "1 minute" })))
          // It asks again and again.
          yield* until(Effect.sync(() => watched.reads > before + 2))
          return waiting
        })
      )
      expect(yield* Fiber.join(waiting)).toBe(101)
    }).pipe(withStore({ readFrom: watch(watched, Layer.fresh(standbyClient)) }))
  })

  it.live("is refused where `after` is no position of a stream", () =>
    Effect.gen(function* () {
      for (const after of [
        { aggregateId: "", sequence: 1 },
        { aggregateId: "Account/1", sequence: -1 }
      ]) {
        const failure = yield* Effect.flip(Account.fetch("1").pipe(SqlStore.fromReplica({ after })))
        expect(failure).toMatchObject({ _tag: "ValidationError", operation: "SqlStore.fromReplica" })
      }
    }).pipe(withStore())
  )
})

describe("the primary is read", () => {
  it.live("by `evaluate`, and by what a decision reads, also where the program asks for the replica", () =>
    Effect.gen(function* () {
      const id = yield* account
      yield* whilePaused(
        Effect.gen(function* () {
          yield* deposit(id)
          // The replica has not enough for it.
          yield* Account.evaluate(id, new Withdraw({ amount: 101 })).pipe(SqlStore.fromReplica())
          const counted = yield* Audit.evaluate(newId("audit"), new Count({ account: id })).pipe(SqlStore.fromReplica())
          expect(counted.state).toBe(0)
          expect(yield* balance(id).pipe(SqlStore.fromReplica())).toBe(100)
        })
      )
    }).pipe(withStore())
  )

  it.live("inside of a transaction of the caller, which sees its own events", () =>
    Effect.gen(function* () {
      const id = yield* account
      const sql = yield* SqlClient.SqlClient
      const inside = sql.withTransaction(
        Effect.zipRight(deposit(id), Effect.all([balance(id), Account.exists(id)]).pipe(SqlStore.fromReplica()))
      )
      expect(yield* whilePaused(inside)).toEqual([101, true])
    }).pipe(withStore())
  )

  it.live("for a sequence that the replica does not have yet", () =>
    Effect.gen(function* () {
      const id = yield* account
      yield* whilePaused(
        Effect.gen(function* () {
          yield* deposit(id)
          expect(yield* Account.replay(id, 3).pipe(SqlStore.fromReplica())).toMatchObject({ balance: 101 })
          expect(yield* Effect.flip(Account.replay(id, 4).pipe(SqlStore.fromReplica()))).toMatchObject({
            _tag: "ValidationError"
          })
        })
      )
    }).pipe(withStore())
  )
})

it.live("a state of the replica is not cached, and a query returns none that is older than the cached one", () =>
  Effect.gen(function* () {
    const id = yield* account
    yield* whilePaused(
      Effect.gen(function* () {
        yield* deposit(id)
        expect((yield* Cached.fetch(id).pipe(SqlStore.fromReplica())).balance).toBe(100)
        // Nothing is cached, so this is the state of the store.
        expect((yield* Cached.get(id)).balance).toBe(101)
        expect((yield* Cached.fetch(id).pipe(SqlStore.fromReplica())).balance).toBe(101)
        expect((yield* Cached.root(id).pipe(SqlStore.fromReplica())).sequence).toBe(3)
        // By another node, so the cached state is not the newest.
        const after = yield* deposit(id)
        expect((yield* Cached.get(id).pipe(SqlStore.fromReplica())).balance).toBe(101)
        expect((yield* Cached.get(id).pipe(SqlStore.fromReplica({ after, maxWait: 0 }))).balance).toBe(102)
      })
    )
  }).pipe(withStore())
)

describe("without a replica that can be read, a query", () => {
  it.live(
    "reads the primary, from the start of the store until the replica has come, and again when it is gone",
    () => {
      const lines: Array<string> = []
      const watched: Watched = { reads: 0, failure: undefined }
      return Effect.gen(function* () {
        const id = newId("account")
        yield* Account.evaluate(id, new Open({ owner: "Ada" }))
        const after = yield* deposit(id)
        const query = balance(id).pipe(SqlStore.fromReplica({ after }))
        const readUntil = (logged: number) =>
          until(
            Effect.map(query, (balance) => {
              expect(balance).toBe(1)
              return lines.length === logged
            })
          )
        yield* readUntil(1)
        yield* Effect.promise(servers().startStandby)
        yield* readUntil(2)
        yield* Effect.promise(servers().stopStandby)
        yield* readUntil(3)
        const before = watched.reads
        expect(yield* query).toBe(1)
        expect(watched.reads).toBe(before)
        yield* Effect.promise(servers().startStandby)
        expect(lines).toEqual([
          expect.stringContaining("WARN SqlStore reads the primary in place of the replica: "),
          "INFO SqlStore reads the replica again",
          expect.stringContaining("WARN SqlStore reads the primary in place of the replica: ")
        ])
      }).pipe(
        withStore({ readFrom: watch(watched, Layer.fresh(standbyClient)) }),
        (program) =>
          Effect.zipRight(
            Effect.promise(() => servers().stopStandby()),
            program
          ),
        Effect.provide(collectWarnings(lines))
      )
    }
  )

  it.live("reads the primary once where the replica cancels it for what it replays", () => {
    const watched: Watched = { reads: 0, failure: undefined }
    return Effect.gen(function* () {
      const id = yield* account
      yield* whilePaused(
        Effect.gen(function* () {
          yield* deposit(id)
          watched.failure = "40001"
          expect(yield* balance(id).pipe(SqlStore.fromReplica())).toBe(101)
          watched.failure = undefined
          expect(yield* balance(id).pipe(SqlStore.fromReplica())).toBe(100)
        })
      )
    }).pipe(withStore({ readFrom: watch(watched, Layer.fresh(standbyClient)) }))
  })

  it.live("reads the primary while the replica lacks the tables of the store", () => {
    const schema = uniqueName("late")
    return Effect.gen(function* () {
      const made = Effect.gen(function* () {
        const id = newId("account")
        const { position: after } = yield* Account.evaluate(id, new Open({ owner: "Ada" }))
        expect((yield* Account.fetch(id).pipe(SqlStore.fromReplica({ after }))).owner).toBe("Ada")
        return id
      })
      const lines: Array<string> = []
      yield* whilePaused(made.pipe(withStore({ schema }), Effect.provide(collectWarnings(lines))))
      expect(lines).toEqual([expect.stringContaining("it has not replayed the migrations yet")])
    })
  })

  it.live("is interrupted while it waits", () =>
    Effect.gen(function* () {
      const id = yield* account
      yield* whilePaused(
        Effect.gen(function* () {
          const after = yield* deposit(id)
          const fiber = yield* Effect.fork(balance(id).pipe(SqlStore.fromReplica({ after, maxWait: "1 hour" })))
          yield* Effect.yieldNow()
          const exit = yield* Fiber.interrupt(fiber)
          expect(exit._tag === "Failure" && Cause.isInterruptedOnly(exit.cause)).toBe(true)
        })
      )
    }).pipe(withStore())
  )
})

describe("the layer", () => {
  it.live(
    "fails for another database and for a client that is not configured, and reads the primary alone where it is its own replica",
    () =>
      Effect.gen(function* () {
        const other = uniqueName("other")
        yield* Effect.provide(
          Effect.flatMap(SqlClient.SqlClient, (sql) => sql`create database ${sql(other)}`),
          Layer.fresh(primaryClient)
        )
        const url = new URL(servers().primary)
        url.pathname = `/${other}`
        const readFrom = PgClient.layer({ url: Redacted.make(url.href), maxConnections: 1 })
        const failure = yield* Effect.flip(Layer.build(store({ readFrom }))).pipe(Effect.provide(collectWarnings([])))
        expect(failure).toMatchObject({ _tag: "StoreError", reason: "Misconfigured" })
        expect(String(failure)).toContain("readFrom")

        const missing = PgClient.layerConfig({ host: Config.string("A_VARIABLE_THAT_IS_MISSING") })
        expect(String(yield* Effect.flip(Layer.build(store({ readFrom: missing }))))).toContain(
          "A_VARIABLE_THAT_IS_MISSING"
        )

        const lines: Array<string> = []
        yield* Layer.build(store({ readFrom: Layer.fresh(primaryClient) })).pipe(Effect.provide(collectWarnings(lines)))
        expect(lines).toEqual([expect.stringContaining("it is no standby")])
      }).pipe(Effect.scoped)
  )

  it("throws where `readFrom` is no layer", () => {
    const readFrom = "postgres://" as unknown as Layer.Layer<SqlClient.SqlClient>
    expect(() => SqlStore.layerWith({ readFrom })).toThrow(TypeError)
    expect(() => SqlStore.make({ readFrom })).toThrow("readFrom")
  })
})

const startOfFeed = Effect.flatMap(EventFeed.EventFeed, ({ head }) => head)

/** Reads the feed page by page to its end, and returns the places of its events. */
const readAll = (after: EventFeed.Position, limit: number) =>
  Effect.map(Stream.runCollect(EventFeed.streamStored({ after, limit })), (events) =>
    Arr.fromIterable(events).map(placeOf)
  )

describe("the feed", () => {
  it.live("reads pages of a reader that is behind from the replica, and the newest from the primary", () => {
    const watched: Watched = { reads: 0, failure: undefined }
    return Effect.gen(function* () {
      const start = yield* startOfFeed
      const id = newId("stream")
      yield* commitOf(id, 1, 60, "Happened")
      yield* caughtUp
      const before = watched.reads
      expect(yield* readAll(start, 10)).toEqual(placesOf(id, 1, 60))
      const pages = watched.reads - before
      expect(pages).toBeGreaterThan(0)
      // A reader that has all reads no page of the replica, also for new events.
      const end = yield* startOfFeed
      yield* commitOf(id, 61, 63, "Happened")
      const atEnd = watched.reads
      expect(yield* readAll(end, 10)).toEqual(placesOf(id, 61, 63))
      expect(watched.reads).toBe(atEnd)
    }).pipe(withStore({ readFrom: watch(watched, Layer.fresh(standbyClient)) }))
  })

  it.live("shows all events in their order while the replica has only some of them, and while it fails", () => {
    const watched: Watched = { reads: 0, failure: undefined }
    return Effect.gen(function* () {
      const start = yield* startOfFeed
      const id = newId("stream")
      yield* commitOf(id, 1, 50, "Happened")
      yield* caughtUp
      yield* whilePaused(
        Effect.gen(function* () {
          yield* commitOf(id, 51, 100, "Happened")
          for (const limit of [7, 50, 51, 1000]) expect(yield* readAll(start, limit)).toEqual(placesOf(id, 1, 100))
          for (const failure of ["40001", "57P01", "42P01"]) {
            watched.failure = failure
            expect(yield* readAll(start, 7)).toEqual(placesOf(id, 1, 100))
          }
        })
      )
      const count = yield* Effect.flatMap(EventFeed.EventFeed, (feed) => feed.count({ after: start }))
      expect(count).toBe(100)
    }).pipe(withStore({ readFrom: watch(watched, Layer.fresh(standbyClient)) }), Effect.provide(collectWarnings([])))
  })

  it.live("a stream that waits goes on with events that the replica does not have", () =>
    Effect.gen(function* () {
      const start = yield* startOfFeed
      const id = newId("stream")
      yield* commitOf(id, 1, 20, "Happened")
      yield* caughtUp
      const reading = yield* EventFeed.stream({ after: start, limit: 3 }).pipe(
        Stream.take(25),
        Stream.runCollect,
        Effect.fork
      )
      const read = whilePaused(Effect.zipRight(commitOf(id, 21, 25, "Happened"), reading.await))
      expect(Arr.fromIterable(yield* Effect.flatten(read)).map(placeOf)).toEqual(placesOf(id, 1, 25))
    }).pipe(withStore())
  )
})

/** Commits of some events, some of them in transactions that stay open for a random time. */
const write = (writer: number, commits: number) =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const id = newId(`writer-${writer}`)
    for (let sequence = 1; sequence <= commits; sequence++) {
      const commit = commitOf(id, sequence, sequence, "Happened")
      const pause = Effect.flatMap(Random.nextIntBetween(0, 8), Effect.sleep)
      if (yield* Random.nextBoolean) yield* commit
      else {
        // Its transaction has an id before others, and commits after them.
        yield* sql.withTransaction(
          sql`select pg_current_xact_id()`.pipe(Effect.zip(pause), Effect.zip(commit), Effect.zip(pause))
        )
      }
    }
  })

it.live(
  "concurrent commits: a reader of a standby, and one of a store with a replica, skip no event and repeat none",
  () => {
    const seed = Math.floor(Math.random() * 2 ** 31)
    const [writers, commits] = [6, 15]
    return Effect.gen(function* () {
      const start = yield* startOfFeed
      // The standby alone, so each page is by its own snapshot.
      const alone = yield* Layer.build(
        Layer.fresh(SqlStore.layerWith({ migrate: false })).pipe(Layer.provide(Layer.fresh(standbyClient)))
      )
      const follow = (limit: number) => {
        const places: Array<string> = []
        let after = start
        const readPage = Effect.suspend(() =>
          Effect.map(EventFeed.read({ after, limit }), ({ events, position }) => {
            after = position
            places.push(...events.map(placeOf))
            return places.length >= writers * commits
          })
        )
        return Effect.as(until(readPage), places)
      }
      const [, ofStandby, ofStore] = yield* Effect.all(
        [
          Effect.all(
            Arr.makeBy(writers, (writer) => write(writer, commits)),
            { concurrency: "unbounded" }
          ),
          Effect.provide(follow(5), alone),
          follow(3)
        ],
        { concurrency: "unbounded" }
      )
      const order = yield* readAll(start, 1000)
      expect(order).toHaveLength(writers * commits)
      expect(ofStandby).toEqual(order)
      expect(ofStore).toEqual(order)
    }).pipe(
      Effect.withRandom(Random.make(seed)),
      Effect.tapErrorCause(() => Effect.logError(`seed ${seed}`)),
      Effect.scoped,
      withStore()
    )
  }
)

// The last one, because a promoted server follows no more.
it.live("a replica that was promoted is not read any more", () => {
  const lines: Array<string> = []
  return Effect.gen(function* () {
    const id = yield* account
    const { position } = yield* Account.evaluate(id, new Deposit({ amount: 1 }))
    yield* caughtUp
    yield* onStandby(Effect.flatMap(SqlClient.SqlClient, (sql) => sql`select pg_promote()`))
    yield* until(Effect.map(balance(id).pipe(SqlStore.fromReplica()), () => lines.length > 0))
    expect(lines).toEqual([expect.stringContaining("it is no standby: it was promoted")])
    expect(yield* balance(id).pipe(SqlStore.fromReplica({ after: position }))).toBe(101)
    expect((yield* EventFeed.read({ limit: 1 })).events).toHaveLength(1)
  }).pipe(withStore(), Effect.provide(collectWarnings(lines)))
})
