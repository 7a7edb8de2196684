/** `Aggregate.check`: whether the code can read what is stored, before a command or a reader has to. */
import { describe, expect, it, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import {
  Aggregate,
  EventFeed,
  MemoryStore,
  SqlStore,
  StoreAdapter,
  StoreError,
  Timestamp,
  Upcast
} from "effect-maestro"
import { layerPg } from "./database.js"

class Opened extends Schema.TaggedClass<Opened>()("Opened", { owner: Schema.String }) {}
class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", {
  amount: Schema.Number,
  currency: Schema.String
}) {}

const DepositedV1 = Schema.Struct({ amount: Schema.Number })

const events = Upcast.events(Schema.Union(Opened, Deposited), {
  Deposited: Upcast.from(1, DepositedV1).pipe(Upcast.toEvent(2, ({ amount }) => ({ amount, currency: "EUR" }))),
  PaidIn: Upcast.renamed("Deposited"),
  Viewed: Upcast.dropped,
  Moved: Upcast.from(2, DepositedV1).pipe(
    Upcast.toEvents(({ amount }) => [{ _tag: "Deposited", amount, currency: "EUR" }])
  )
})

/** An aggregate without commands, whose state is the number of its events. */
const counting = <A extends { readonly _tag: string }, I extends { readonly _tag: string }>(
  name: string,
  options: {
    readonly events: Schema.Schema<A, I>
    readonly kind?: string
    readonly streams?: "byKind" | "plain"
  }
): Aggregate.Checkable => ({ name, kind: name, streams: "byKind", id: Schema.String, ...options })

const Account = counting("Account", { events })

/** Commits one event of a stream of its own. */
const store = (aggregateId: string, type: string, version: number, body: Record<string, unknown>) =>
  Effect.gen(function* () {
    const { commitEvents } = yield* StoreAdapter.StoreAdapter
    const timestamp = yield* Effect.flatMap(Timestamp.HybridClock, ({ now }) => now)
    yield* commitEvents([{ timestamp, aggregateId, sequence: 1, type, version, body, metadata: {} }])
  })

/** The failure as a list of the types that can't be read. */
const unreadableOf = (aggregates: Aggregate.Checkable | ReadonlyArray<Aggregate.Checkable>) =>
  Effect.map(Effect.flip(Aggregate.check(aggregates)), (error) =>
    error instanceof StoreError.UnreadableTypes
      ? error.unreadable.map(({ aggregate, reason, type, version }) => [aggregate, type, version, reason])
      : error
  )

const fresh = <A, E>(
  effect: Effect.Effect<A, E, StoreAdapter.StoreAdapter | EventFeed.EventFeed>
): Effect.Effect<A, E> => Effect.provide(effect, Layer.fresh(MemoryStore.layer))

describe("check", () => {
  it.effect("an empty store has nothing that can't be read", () =>
    fresh(
      Effect.gen(function* () {
        expect(yield* Aggregate.check(Account)).toEqual({ readable: [], others: [] })
        expect(yield* Aggregate.check([])).toEqual({ readable: [], others: [] })
      })
    )
  )

  it.effect("types of today, of older versions, renamed, split and dropped ones are readable", () =>
    fresh(
      Effect.gen(function* () {
        yield* store("Account/1", "Opened", 1, { owner: "Ann" })
        yield* store("Account/2", "Deposited", 1, { amount: 1 })
        yield* store("Account/3", "Deposited", 2, { amount: 1, currency: "EUR" })
        yield* store("Account/4", "PaidIn", 1, { amount: 1 })
        yield* store("Account/5", "Viewed", 7, { page: 1 })
        yield* store("Account/6", "Moved", 2, { amount: 1 })
        const { others, readable } = yield* Aggregate.check(Account)
        expect(readable.map(({ aggregate, kind, type, version }) => [aggregate, kind, type, version])).toEqual([
          ["Account", "Account", "Deposited", 1],
          ["Account", "Account", "Deposited", 2],
          ["Account", "Account", "Moved", 2],
          ["Account", "Account", "Opened", 1],
          ["Account", "Account", "PaidIn", 1],
          ["Account", "Account", "Viewed", 7]
        ])
        expect(others).toEqual([])
      })
    )
  )

  it.effect("what can't be read is one failure that lists all of it, each with its reason and an event", () =>
    fresh(
      Effect.gen(function* () {
        yield* store("Account/1", "Opened", 1, { owner: "Ann" })
        yield* store("Account/2", "Closed", 1, {})
        yield* store("Account/3", "Deposited", 3, { cents: 100 })
        yield* store("Account/4", "Moved", 1, { amount: 1 })
        yield* store("Account/5", "Deposited", 2, { amount: "much", currency: "EUR" })
        yield* store("Account/6", "PaidIn", 1, { sum: 1 })
        const error = yield* Effect.flip(Aggregate.check(Account))
        expect(error).toBeInstanceOf(StoreError.UnreadableTypes)
        if (!(error instanceof StoreError.UnreadableTypes)) return
        expect(
          error.unreadable.map(({ aggregateId, reason, sequence, type, version }) => [
            type,
            version,
            reason,
            aggregateId,
            sequence
          ])
        ).toEqual([
          ["Closed", 1, "UnknownType", "Account/2", 1],
          ["Deposited", 2, "Undecodable", "Account/5", 1],
          ["Deposited", 3, "NewerVersion", "Account/3", 1],
          ["Moved", 1, "OlderVersion", "Account/4", 1],
          ["PaidIn", 1, "Undecodable", "Account/6", 1]
        ])
        expect(error.readable.map(({ type }) => type)).toEqual(["Opened"])
        // The message of the schema is in it.
        expect(error.message).toContain(`Account: Deposited version 2, such as event 1 of "Account/5"`)
        expect(error.message).toContain(`Expected number, actual "much"`)
        expect(error.message.split("\n")[0]).toBe("the code can't read all stored events:")
        expect(error.message).toContain("newer")
        expect(yield* Schema.encode(StoreError.UnreadableTypes)(error)).toMatchObject({ _tag: "UnreadableTypes" })
      })
    )
  )

  it.effect("one aggregate is checked on its own kind, and a list of them on the whole log", () =>
    fresh(
      Effect.gen(function* () {
        const Room = counting("Room", { events: Opened })
        yield* store("Account/1", "Opened", 1, { owner: "Ann" })
        yield* store("Room/1", "Booked", 1, {})
        yield* store("Guest/1", "Registered", 4, {})
        yield* store("no kind", "Registered", 1, {})
        expect((yield* Aggregate.check(Account)).others).toEqual([])
        expect((yield* Aggregate.check([Account])).others).toEqual([
          { kind: "", type: "Registered", version: 1 },
          { kind: "Guest", type: "Registered", version: 4 },
          { kind: "Room", type: "Booked", version: 1 }
        ])
        expect(yield* unreadableOf([Account, Room])).toEqual([["Room", "Booked", 1, "UnknownType"]])
        expect(yield* unreadableOf(Room)).toEqual([["Room", "Booked", 1, "UnknownType"]])
      })
    )
  )

  it.effect("an aggregate with another name is checked on the kind under which it is stored", () =>
    fresh(
      Effect.gen(function* () {
        yield* store("Account/1", "Deposited", 1, { amount: 1 })
        const Konto = counting("Konto", { events, kind: "Account" })
        expect((yield* Aggregate.check(Konto)).readable).toEqual([
          { aggregate: "Konto", kind: "Account", type: "Deposited", version: 1 }
        ])
        yield* store("Account/2", "Closed", 1, {})
        expect(yield* unreadableOf([Konto])).toEqual([["Konto", "Closed", 1, "UnknownType"]])
      })
    )
  )

  it.effect("two aggregates of one kind must both be able to read its events", () =>
    fresh(
      Effect.gen(function* () {
        yield* store("Account/1", "Deposited", 1, { amount: 1 })
        const Other = counting("Other", { events: Opened, kind: "Account" })
        expect(yield* unreadableOf([Account, Other])).toEqual([["Other", "Deposited", 1, "UnknownType"]])
      })
    )
  )

  it.effect("an aggregate with plain streams has the types that it knows, of kinds that no other aggregate has", () =>
    fresh(
      Effect.gen(function* () {
        const Plain = counting("Plain", { events, streams: "plain" })
        yield* store("1", "Deposited", 2, { amount: 1, currency: "EUR" })
        yield* store("a/1", "Deposited", 3, { cents: 1 })
        yield* store("2", "Unheard", 1, {})
        yield* store("Account/1", "Closed", 1, {})
        const Closing = counting("Account", {
          events: Schema.Struct({ _tag: Schema.Literal("Closed") })
        })
        const error = yield* Effect.flip(Aggregate.check([Plain, Closing]))
        expect(error).toMatchObject({
          unreadable: [{ aggregate: "Plain", kind: "a", type: "Deposited", version: 3, reason: "NewerVersion" }],
          readable: [
            { aggregate: "Plain", kind: "", type: "Deposited", version: 2 },
            { aggregate: "Account", kind: "Account", type: "Closed", version: 1 }
          ],
          others: [{ kind: "", type: "Unheard", version: 1 }]
        })
        // Without the other aggregate its types belong to none.
        expect(yield* Effect.flip(Aggregate.check(Plain))).toMatchObject({
          others: [
            { kind: "", type: "Unheard", version: 1 },
            { kind: "Account", type: "Closed", version: 1 }
          ]
        })
      })
    )
  )

  it.effect("an id that is none of the aggregate's makes a type unreadable, as its handlers would find", () =>
    fresh(
      Effect.gen(function* () {
        yield* store("Account/1", "Opened", 1, { owner: "Ann" })
        const Typed = { ...Account, id: Schema.TemplateLiteral("account-", Schema.String) }
        expect(yield* unreadableOf(Typed)).toEqual([["Account", "Opened", 1, "Undecodable"]])
      })
    )
  )

  it.effect("receipts of command ids are left out", () =>
    fresh(
      Effect.gen(function* () {
        const Counter = Aggregate.make("Counter", {
          state: Schema.Number,
          initialState: 0,
          events: Opened,
          commands: Opened,
          decide: { Opened: (opened) => Effect.succeed([opened]) },
          evolve: { Opened: (count) => count + 1 }
        })
        yield* Counter.evaluate("1", new Opened({ owner: "Ann" })).pipe(
          Aggregate.withCommandId("once"),
          Effect.provide(Counter.layer)
        )
        expect(yield* Aggregate.check([Counter])).toEqual({
          readable: [{ aggregate: "Counter", kind: "Counter", type: "Opened", version: 1 }],
          others: []
        })
      })
    )
  )

  it.effect("a schema that throws is a failure of its type, and no defect", () =>
    fresh(
      Effect.gen(function* () {
        yield* store("Account/1", "Opened", 1, { owner: "Ann" })
        const Throwing = counting("Account", {
          events: Schema.Struct({
            _tag: Schema.Literal("Opened"),
            owner: Schema.transform(Schema.String, Schema.String, {
              decode: () => {
                throw new Error("as the test wants it")
              },
              encode: (owner) => owner
            })
          })
        })
        const error = yield* Effect.flip(Aggregate.check(Throwing))
        expect(error.message).toContain("as the test wants it")
      })
    )
  )

  it.effect("a failure of the store stays a StoreError", () =>
    Effect.gen(function* () {
      const context = yield* Layer.build(Layer.fresh(MemoryStore.layer))
      const feed = yield* Effect.provide(EventFeed.EventFeed, context)
      const failing = new StoreError.StoreError({ reason: "Unavailable", operation: "EventFeed", description: "gone" })
      expect(
        yield* Effect.flip(
          Aggregate.check(Account).pipe(
            Effect.provideService(EventFeed.EventFeed, { ...feed, samples: () => Stream.fail(failing) })
          )
        )
      ).toBe(failing)
    }).pipe(Effect.scoped)
  )
})

layer(SqlStore.layer.pipe(Layer.provideMerge(layerPg())), { excludeTestServices: true, timeout: 60_000 })(
  "check on Postgres",
  (it) => {
    it.scoped("the oldest and the newest event of a type are tried, so a shape that changed unnoticed is found", () =>
      Effect.gen(function* () {
        const old = counting("Old", { events: Opened })
        const changed = counting("Changed", { events: Opened })
        for (const [kind, first, last] of [
          ["Old", { owner: 1 }, { owner: "Ann" }],
          ["Changed", { owner: "Ann" }, { owner: 1 }]
        ] as const) {
          yield* store(`${kind}/first`, "Opened", 1, first)
          for (let index = 0; index < 5; index++) yield* store(`${kind}/${index}`, "Opened", 1, { owner: "Ann" })
          yield* store(`${kind}/last`, "Opened", 1, last)
        }
        expect(yield* unreadableOf(old)).toEqual([["Old", "Opened", 1, "Undecodable"]])
        expect(yield* unreadableOf(changed)).toEqual([["Changed", "Opened", 1, "Undecodable"]])
      })
    )

    it.scoped("it runs inside a transaction of the caller, and sees what that has committed to the store", () =>
      Effect.gen(function* () {
        const { sql } = yield* SqlStore.Tables
        const Inside = counting("Inside", { events: Opened })
        const found = yield* sql.withTransaction(
          Effect.zipRight(store("Inside/1", "Opened", 1, { owner: "Ann" }), Aggregate.check(Inside))
        )
        expect(found.readable).toHaveLength(1)
      })
    )
  }
)
