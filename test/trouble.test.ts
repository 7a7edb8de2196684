/** Transient failures, databases with other settings, and layers that are built inside of transactions. */
import * as SqlClient from "@effect/sql/SqlClient"
import { SqlError } from "@effect/sql/SqlError"
import { PgClient } from "@effect/sql-pg"
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import {
  Aggregate,
  Event,
  MemoryStore,
  Projection,
  SqlStore,
  StoreAdapter,
  StoreError,
  Timestamp
} from "effect-maestro"
import * as StoreContract from "effect-maestro/StoreContract"
import { fromSqlError } from "../src/internal/runtime/sqlError.js"
import { Account, Deposit, Limits } from "./account.js"
import { layerPg, layerPglite, makeDatabase, uniqueName } from "./database.js"
import { aNode, aNodeOn, failure, macrotask } from "./nodes.js"

for (const reason of ["ConnectionLost", "Unavailable", "Contention"] as const) {
  it.scoped(`evaluate: a read or a commit that fails by ${reason} is retried`, () =>
    Effect.gen(function* () {
      const store = yield* MemoryStore.make
      let reads = 0
      let commits = 0
      const node = yield* aNodeOn(Account.layer, {
        ...store,
        getEvents: (...args) =>
          Effect.suspend(() => (++reads === 1 ? Effect.fail(failure(reason)) : store.getEvents(...args))),
        commitAll: (...args) =>
          Effect.suspend(() => (++commits === 1 ? Effect.fail(failure(reason)) : store.commitAll(...args)))
      })
      // An id that was not made here has to be read.
      const id = crypto.randomUUID()
      yield* Effect.provide(Account.evaluate(id, new Deposit({ amount: 1 })), node)
      expect([reads, commits]).toEqual([2, 2])
      expect(yield* store.getEvents(Account.streamId(id), 1)).toHaveLength(1)
    }).pipe(Effect.provide(Limits.layer))
  )
}

it.scoped("a stream that lacks an event in the middle is UnreadableEvent", () =>
  Effect.gen(function* () {
    const store = yield* MemoryStore.make
    const node = yield* aNodeOn(Account.layer, {
      ...store,
      getEvents: (...args) =>
        Effect.map(store.getEvents(...args), (events) => events.filter(({ sequence }) => sequence !== 2))
    })
    const id = yield* Account.newId
    for (const sequence of [1, 2, 3]) yield* store.commitEvents([yield* deposited(Account.streamId(id), sequence)])
    expect(yield* Effect.flip(Effect.provide(Account.fetch(id), node))).toMatchObject({
      reason: "UnreadableEvent",
      sequence: 3
    })
  }).pipe(Effect.provide(Limits.layer))
)

for (const [what, from, to] of [
  ["an event far on", 2000, 2000],
  ["the first events of a page", 501, 510],
  ["as many as a page and more", 501, 4000],
  ["the event before a page", 3000, 3000]
] as const) {
  it.scoped(`a stream on Postgres that lacks ${what} is UnreadableEvent`, () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter.StoreAdapter
      const sql = yield* SqlClient.SqlClient
      const id: string = crypto.randomUUID()
      const stream = Account.streamId(id)
      const events = yield* Effect.forEach(Arr.range(1, 6000), (sequence) => deposited(stream, sequence))
      yield* store.commitEvents(events)
      yield* sql`delete from maestro.event_log where aggregate_id = ${stream} and sequence between ${from} and ${to}`
      const node = yield* aNodeOn(Account.layer, store)
      expect(yield* Effect.flip(Effect.provide(Account.fetch(id), node))).toMatchObject({
        reason: "UnreadableEvent",
        sequence: to + 1
      })
    }).pipe(Effect.provide(Layer.merge(Limits.layer, SqlStore.layer.pipe(Layer.provideMerge(layerPg())))))
  )
}

for (const [name, client] of [
  ["Postgres", layerPg()],
  ["PGlite", layerPglite]
] as const) {
  it.scoped(`a long stream on ${name} is read whole, with events of any size and content`, () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter.StoreAdapter
      const id: string = crypto.randomUUID()
      const texts = ["\ufeff", '",', "\\", "\u2028", "é\u0301", "[]"]
      const large = Arr.makeBy(8_000, () => crypto.randomUUID()).join("")
      const events = yield* Effect.forEach(Arr.range(1, 6000), (sequence) =>
        Effect.map(deposited(`Notes/${id}`, sequence), (event) => ({
          ...event,
          body: { amount: sequence, ...(sequence % 61 === 0 && sequence > 3500 ? { large } : {}) },
          metadata: { text: texts[sequence % texts.length] ?? "" }
        }))
      )
      yield* store.commitEvents(events)
      const seen: Array<number> = []
      const Deposited = Schema.TaggedStruct("Deposited", {
        amount: Schema.Number,
        large: Schema.optional(Schema.String)
      })
      const Notes = Aggregate.make("Notes", {
        state: Schema.Number,
        initialState: 0,
        events: Deposited,
        commands: Schema.TaggedStruct("Nothing", {}),
        decide: { Nothing: () => Effect.succeed([]) },
        evolve: {
          Deposited: (state, { amount, large: text }) => {
            seen.push(amount)
            expect(text === undefined || text === large).toBe(true)
            return state + amount
          }
        }
      })
      const node = yield* aNodeOn(Notes.layer, store)
      expect(yield* Effect.provide(Notes.fetch(id), node)).toBe((6000 * 6001) / 2)
      expect(seen).toEqual(Arr.range(1, 6000))
    }).pipe(Effect.provide(SqlStore.layer.pipe(Layer.provideMerge(client))))
  )
}

it.scoped("the type of an event is its type, and not that in its body", () =>
  Effect.gen(function* () {
    const store = yield* MemoryStore.make
    const node = yield* aNodeOn(Account.layer, store)
    const id = yield* Account.newId
    yield* store.commitEvents([
      { ...(yield* deposited(Account.streamId(id), 1)), body: { _tag: "Withdrawn", amount: 5 } }
    ])
    expect(yield* Effect.provide(Account.fetch(id), node)).toMatchObject({ balance: 5 })
  }).pipe(Effect.provide(Limits.layer))
)

it.scoped("a schema that throws while it reads is a typed failure; a snapshot by it is ignored", () =>
  Effect.gen(function* () {
    const Throwing = Schema.transform(Schema.String, Schema.BigIntFromSelf, {
      strict: true,
      decode: (text) => BigInt(text),
      encode: String
    })
    class Counted extends Schema.TaggedClass<Counted>()("Counted", { to: Throwing }) {}
    class Count extends Schema.TaggedClass<Count>()("Count", { to: Schema.BigIntFromSelf }) {}
    const Counter = Aggregate.make("Counter", {
      state: Schema.Struct({ at: Throwing }),
      initialState: { at: 0n },
      events: Counted,
      commands: Count,
      decide: { Count: ({ to }) => Effect.succeed([new Counted({ to })]) },
      evolve: { Counted: (_, { to }) => ({ at: to }) }
    })
    const store = yield* MemoryStore.make
    const node = yield* aNodeOn(Counter.layer, store)
    const [whole, broken] = ["whole", "broken"]
    yield* Effect.provide(Counter.evaluate(whole, new Count({ to: 7n })), node)
    yield* Effect.provide(Counter.snapshot(whole), node)
    const elsewhere = yield* aNodeOn(Counter.layer, {
      ...store,
      getSnapshot: (...args) =>
        Effect.map(
          store.getSnapshot(...args),
          Option.map((snapshot) => ({ ...snapshot, body: { state: { at: "no number" } } }))
        )
    })
    expect(yield* Effect.provide(Counter.fetch(whole), elsewhere)).toEqual({ at: 7n })
    yield* store.commitEvents([
      { ...(yield* deposited(Counter.streamId(broken), 1)), type: "Counted", version: 1, body: { to: "no number" } }
    ])
    expect(yield* Effect.flip(Effect.provide(Counter.fetch(broken), node))).toMatchObject({
      reason: "UnreadableEvent",
      sequence: 1
    })
  })
)

it("a broken connection has the reason of its message, and is CommitUnknown during a commit", () => {
  for (const code of [
    "ECONNRESET",
    "ERR_SSL_DECRYPTION_FAILED_OR_BAD_RECORD_MAC",
    "ERR_STREAM_DESTROYED",
    "57P01",
    "40003"
  ]) {
    const error = new SqlError({ cause: Object.assign(new Error("it broke"), { code }) })
    expect(fromSqlError("commitEvents", "committing", error).reason, code).toBe("CommitUnknown")
    expect(fromSqlError("commitAll", "writing", error).reason, code).toBe("ConnectionLost")
  }
})

it("a server without room for locks is Exhausted, and the failure says what to raise", () => {
  const failure = (message: string) =>
    fromSqlError("EventFeed", "reading", new SqlError({ cause: Object.assign(new Error(message), { code: "53200" }) }))
  const ofLocks = failure("out of shared memory")
  expect(ofLocks.reason).toBe("Exhausted")
  expect(ofLocks.description).toContain("max_locks_per_transaction")
  expect(failure("out of memory").description).not.toContain("max_locks_per_transaction")
})

it("a role without a right is Misconfigured, and the failure says so and not to migrate", () => {
  const failure = (code: string) =>
    fromSqlError(
      "EventFeed",
      "reading",
      new SqlError({ cause: Object.assign(new Error("permission denied"), { code }) })
    )
  const { description, reason } = failure("42501")
  expect(reason).toBe("Misconfigured")
  expect(description).toContain("the role of the connection lacks a right")
  expect(description).not.toContain("migrate")
  expect(failure("42P01").description).not.toContain("lacks a right")
})

it("a dead connection of the pool is Unavailable, because nothing was sent", () => {
  const error = new SqlError({
    cause: new Error("Client has encountered a connection error and is not queryable"),
    message: "Failed to execute statement"
  })
  expect(fromSqlError("commitEvents", "committing", error).reason).toBe("Unavailable")
})

it.layer(Layer.merge(SqlStore.layer.pipe(Layer.provideMerge(layerPg()), Layer.orDie), Limits.layer), {
  timeout: 60_000
})("on Postgres", (it) => {
  it.scoped("inside the caller's transaction nothing is retried, because it is lost with its connection", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter.StoreAdapter
      const sql = yield* SqlClient.SqlClient
      let reads = 0
      const node = yield* aNodeOn(Account.layer, {
        ...store,
        getEvents: () =>
          Effect.suspend(() => {
            reads++
            return Effect.fail(failure("ConnectionLost"))
          })
      })
      const id = yield* Account.newId
      const error = yield* Effect.flip(
        sql.withTransaction(Effect.provide(Account.evaluate(id, new Deposit({ amount: 1 })), node))
      )
      expect(error).toMatchObject({ reason: "ConnectionLost" })
      expect(reads).toBe(1)
    })
  )

  it.scoped("an aggregate's layer that was built inside a transaction does not stay in it", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const node = yield* sql.withTransaction(aNode(Account.layer))
      const id = yield* Account.newId
      yield* Effect.provide(Account.evaluate(id, new Deposit({ amount: 1 })), node)
      const store = yield* StoreAdapter.StoreAdapter
      expect(yield* store.getEvents(Account.streamId(id), 1)).toHaveLength(1)
    })
  )

  it.scoped("a store that was built inside a transaction does not stay in it", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const store = yield* sql.withTransaction(SqlStore.make({ migrate: false }))
      const id = yield* Account.newId
      yield* store.commitEvents([yield* deposited(id, 1)])
      expect(yield* (yield* StoreAdapter.StoreAdapter).getEvents(id, 1)).toHaveLength(1)
    })
  )

  it.effect("a statement that is cancelled by mistake is sent again", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter.StoreAdapter
      const sql = yield* SqlClient.SqlClient
      const id = yield* Account.newId
      const [holding, go] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      const holder = yield* Effect.fork(
        sql.withTransaction(
          Effect.gen(function* () {
            yield* store.commitEvents([yield* deposited(id, 1)])
            yield* Deferred.succeed(holding, undefined)
            yield* Deferred.await(go)
          })
        )
      )
      yield* Deferred.await(holding)
      const waiting = yield* Effect.fork(Effect.flip(store.commitEvents([yield* deposited(id, 1)])))
      // The first wait ends by itself, in favour of others; the second is the commit's own.
      for (const _ of [1, 2]) {
        yield* sql`select pg_cancel_backend(pid) from pg_stat_activity
          where datname = current_database() and wait_event_type = 'Lock'`.pipe(
          Effect.zipLeft(macrotask),
          Effect.repeat({ until: (rows) => rows.length > 0 })
        )
      }
      yield* Deferred.succeed(go, undefined)
      yield* Fiber.join(holder)
      expect(yield* Fiber.join(waiting)).toEqual(new StoreError.RetryCommand({ aggregateId: id, sequence: 1 }))
    })
  )
})

it.layer(SqlStore.layer.pipe(Layer.provideMerge(layerPg()), Layer.orDie), { timeout: 60_000 })(
  "a store that takes the transactions of @effect/sql as they are",
  (it) => {
    for (const { name, run } of StoreContract.cases().filter(({ name }) =>
      name.includes("ignores its own failed SQL")
    )) {
      it.effect(`is caught by "${name}"`, () =>
        Effect.gen(function* () {
          const store = yield* StoreAdapter.StoreAdapter
          const sql = yield* SqlClient.SqlClient
          expect(Exit.isSuccess(yield* Effect.exit(run))).toBe(true)
          const trusting: StoreAdapter.StoreAdapterService = {
            ...store,
            commitAll: (events, projections) =>
              Effect.zipRight(
                store.commitEvents(events),
                Effect.forEach(
                  projections.map(Projection.toEffect),
                  ({ project }) => Effect.forEach(events.map(Event.make), project, { discard: true }),
                  {
                    discard: true
                  }
                )
              ).pipe(sql.withTransaction, Effect.catchIf(isSqlError, Effect.die))
          }
          const exit = yield* Effect.exit(Effect.provideService(run, StoreAdapter.StoreAdapter, trusting))
          expect(Exit.isFailure(exit)).toBe(true)
        })
      )
    }
  }
)

for (const level of ["repeatable read", "serializable"]) {
  it.scoped(`a database whose transactions are ${level} by default works, too`, () =>
    Effect.gen(function* () {
      const url = yield* makeDatabase
      const name = new URL(url).pathname.slice(1)
      yield* Effect.flatMap(
        SqlClient.SqlClient,
        (sql) => sql`alter database ${sql(name)} set default_transaction_isolation = ${sql.literal(`'${level}'`)}`
      ).pipe(Effect.provide(PgClient.layer({ url: Redacted.make(url), maxConnections: 1 })))
      const stores = yield* Effect.forEach(
        Arr.range(1, 6),
        () =>
          Effect.map(
            Layer.build(
              SqlStore.layer.pipe(Layer.provide(PgClient.layer({ url: Redacted.make(url), maxConnections: 4 })))
            ),
            Context.get(StoreAdapter.StoreAdapter)
          ),
        { concurrency: "unbounded" }
      )
      for (const sequence of Arr.range(1, 15)) {
        const results = yield* Effect.forEach(
          stores,
          (store) =>
            Effect.flatMap(deposited("contested", sequence), (event) => Effect.either(store.commitEvents([event]))),
          { concurrency: "unbounded" }
        )
        expect(results.filter(Either.isRight)).toHaveLength(1)
        for (const error of Arr.getLefts(results)) expect(error).toBeInstanceOf(StoreError.RetryCommand)
      }
    }).pipe(Effect.timeout("50 seconds"))
  )
}

it.scoped("a role that owns the schema, and may create no other, can migrate it", () =>
  Effect.gen(function* () {
    const url = yield* makeDatabase
    const role = uniqueName("owner")
    yield* Effect.flatMap(SqlClient.SqlClient, (sql) =>
      Effect.gen(function* () {
        yield* sql`create role ${sql(role)} login password 'secret'`
        yield* sql`create schema maestro authorization ${sql(role)}`
      })
    ).pipe(Effect.provide(PgClient.layer({ url: Redacted.make(url), maxConnections: 1 })))
    const asOwner = new URL(url)
    asOwner.username = role
    asOwner.password = "secret"
    yield* Layer.build(
      SqlStore.layer.pipe(Layer.provide(PgClient.layer({ url: Redacted.make(asOwner.href), maxConnections: 1 })))
    )
  })
)

// --- what the cases are made of ---

const deposited = (aggregateId: string, sequence: number): Effect.Effect<Event.Event> =>
  Effect.flatMap(Timestamp.HybridClock, ({ now }) =>
    Effect.map(now, (timestamp) => ({
      timestamp,
      aggregateId,
      sequence,
      type: "Deposited",
      version: 1,
      body: { amount: 1 },
      metadata: {}
    }))
  )

const isSqlError = (error: unknown): error is SqlError => error instanceof SqlError
