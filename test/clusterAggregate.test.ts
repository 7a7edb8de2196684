/**
 * What `evaluate` and the reads of the local layer promise, on runners of a cluster: the cases are the same, and so are the
 * results and the failures.
 */
import { describe, expect, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Chunk from "effect/Chunk"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import * as Tracer from "effect/Tracer"
import { Aggregate, EventFeed, StoreAdapter, StoreError, Timestamp } from "effect-maestro"
import * as ClusterAggregate from "effect-maestro/ClusterAggregate"
import {
  Account,
  Ask,
  Break,
  Deposit,
  Deposited,
  Frozen,
  Id,
  InsufficientFunds,
  id,
  Query,
  Teller,
  Touch,
  Withdraw,
  Withdrawn
} from "./clusterBank.js"
import { type Services, storedOf, ways } from "./clusterWays.js"
import { collectSpans } from "./spans.js"

/** An id that the types refuse. */
const unsafeId = (text: string) => Id.make(text, { disableValidation: true })

for (const [way, layer] of Object.entries(ways)) {
  describe(`on ${way}`, () => {
    const test = (name: string, run: () => Effect.Effect<void, unknown, Services>) =>
      it.live(name, () => Effect.scoped(Effect.provide(Effect.suspend(run), layer)))

    test("a command returns its events as instances, and the state after them", () =>
      Effect.gen(function* () {
        const at = new Date(0)
        const made = yield* Account.evaluate(id("a"), new Deposit({ amount: 3, at }))
        expect(made).toEqual({
          state: { balance: 3, last: at, names: new Set(["Deposited"]) },
          sequence: 1,
          events: [new Deposited({ amount: 3, at })],
          position: { aggregateId: "Account/a", sequence: 1 },
          duplicate: false
        })
        expect(made.events[0]).toBeInstanceOf(Deposited)
        const second = yield* Account.evaluate(id("a"), new Deposit({ amount: 1 }))
        expect(second.state.last).toBeUndefined()
        const touched = yield* Account.evaluate(id("a"), new Touch())
        expect([touched.sequence, touched.events]).toEqual([2, []])
        expect(yield* Account.evaluate(id("a"), new Withdraw({ amount: 4 }))).toMatchObject({
          events: [new Withdrawn({ amount: 4 })],
          state: { balance: 0 }
        })
      }))

    test("a refusal is an instance of its class", () =>
      Effect.gen(function* () {
        const refused = yield* Effect.flip(Account.evaluate(id("a"), new Withdraw({ amount: 1 })))
        expect(refused).toBeInstanceOf(InsufficientFunds)
        expect(refused).toMatchObject({ balance: 0, message: "the balance is 0" })
        expect(yield* Effect.flip(Account.evaluate(id("a"), new Deposit({ amount: 666 })))).toBeInstanceOf(Frozen)
        const failed = yield* Effect.flip(Account.evaluate(id("a"), new Query()))
        expect(failed).toMatchObject({ _tag: "SqlError", message: "Failed to execute statement" })
        // A command that was sent once and refused stores nothing, and no receipt either.
        expect((yield* EventFeed.read()).events).toEqual([])
      }))

    test("a command with an id takes effect once", () =>
      Effect.gen(function* () {
        const once = Account.evaluate(id("a"), new Deposit({ amount: 3 })).pipe(Aggregate.withCommandId("1"))
        expect(yield* once).toMatchObject({ duplicate: false, sequence: 1 })
        expect(yield* once).toMatchObject({ duplicate: true, sequence: 1, events: [], state: { balance: 3 } })
        const other = Account.evaluate(id("a"), new Deposit({ amount: 4 })).pipe(Aggregate.withCommandId("1"))
        expect(yield* Effect.flip(other)).toBeInstanceOf(StoreError.CommandIdReused)
        const invalid = Account.evaluate(id("a"), new Touch()).pipe(Aggregate.withCommandId(""))
        expect(yield* Effect.flip(invalid)).toMatchObject({ issues: [{ path: ["commandId"] }] })
      }))

    test("equal commands without an id take effect each", () =>
      Effect.gen(function* () {
        const all = yield* Effect.all(
          Array.from({ length: 20 }, () => Account.evaluate(id("a"), new Deposit({ amount: 1 }))),
          { concurrency: "unbounded" }
        )
        expect(all.map(({ sequence }) => sequence).sort((a, b) => a - b)).toEqual(
          Array.from({ length: 20 }, (_, index) => index + 1)
        )
        expect(all.every(({ duplicate, events }) => !duplicate && events.length === 1)).toBe(true)
      }))

    test("a command under an expected sequence is evaluated at that sequence alone", () =>
      Effect.gen(function* () {
        const at = (sequence: number) =>
          Account.evaluate(id("a"), new Deposit({ amount: 3 })).pipe(Aggregate.withExpectedSequence(sequence))
        yield* at(0)
        const failed = yield* Effect.flip(at(0))
        expect(failed).toBeInstanceOf(StoreError.UnexpectedSequence)
        expect(failed).toMatchObject({ kind: "Account", id: "a", expected: 0, actual: 1 })
        expect(yield* Effect.flip(at(-1))).toMatchObject({ issues: [{ path: ["expectedSequence"] }] })
      }))

    test("events have the metadata, the chain and the cause that their caller has set", () =>
      Effect.gen(function* () {
        const metadata = { user: "anna", roles: ["a", "b"], nested: { depth: 1 } }
        const timestamp = yield* Effect.flatMap(Timestamp.HybridClock, ({ now }) => now)
        yield* Account.evaluate(id("a"), new Deposit({ amount: 3 })).pipe(
          Effect.provideService(Aggregate.Metadata, metadata),
          Aggregate.withCorrelationId("chain")
        )
        yield* Account.evaluate(id("a"), new Deposit({ amount: 3 })).pipe(
          Aggregate.causedBy({ timestamp, correlationId: "other" })
        )
        yield* Account.evaluate(id("a"), new Deposit({ amount: 3 }))
        const [first, second, third] = yield* storedOf("Account/a")
        expect(first).toMatchObject({ metadata, correlationId: "chain" })
        expect(second).toMatchObject({ metadata: {}, correlationId: "other", causationId: timestamp })
        expect(third).toMatchObject({ metadata: {}, correlationId: third?.timestamp })
        const history = yield* Stream.runCollect(Account.history(id("a")))
        expect(Chunk.toReadonlyArray(history).map(({ correlationId }) => correlationId)).toEqual([
          "chain",
          "other",
          third?.timestamp
        ])
      }))

    test("metadata that JSON would change is refused", () =>
      Effect.gen(function* () {
        for (const metadata of [{ at: new Date() }, { count: Number.NaN }, { big: 1n }]) {
          const failed = yield* Account.evaluate(id("a"), new Deposit({ amount: 3 })).pipe(
            Effect.provideService(Aggregate.Metadata, metadata),
            Effect.flip
          )
          expect(failed).toBeInstanceOf(StoreError.ValidationError)
        }
        expect(yield* Account.exists(id("a"))).toBe(false)
      }))

    test("the commands of a handler belong to the chain of their command, and name it by their first event", () =>
      Effect.gen(function* () {
        yield* Teller.evaluate("t", new Ask({ account: "a" })).pipe(
          Effect.provide(Layer.fresh(Teller.layer)),
          Effect.provideService(Aggregate.Metadata, { user: "anna" })
        )
        const [[inner], [outer]] = [yield* storedOf("Account/a"), yield* storedOf("Teller/t")]
        expect(inner?.correlationId).toBe(inner?.timestamp)
        expect(outer?.correlationId).toBe(inner?.timestamp)
        expect(outer?.metadata).toEqual(inner?.metadata)
      }))

    test("the span of the caller is the parent of the span that stores the events", () =>
      Effect.gen(function* () {
        const traceId = "a".repeat(32)
        const { spans, tracer } = yield* collectSpans
        yield* Account.evaluate(id("a"), new Deposit({ amount: 3 })).pipe(
          Effect.withParentSpan(Tracer.externalSpan({ traceId, spanId: "b".repeat(16), sampled: true })),
          Effect.withTracer(tracer)
        )
        expect(spans.filter(({ name }) => name === "Aggregate.evaluate").map((span) => span.traceId)[0]).toBe(traceId)
      }))

    test("reads return what the store has", () =>
      Effect.gen(function* () {
        const initial = { balance: 0, last: undefined, names: new Set() }
        expect([yield* Account.exists(id("a")), yield* Account.get(id("a")), yield* Account.fetch(id("a"))]).toEqual([
          false,
          initial,
          initial
        ])
        const before = new Date()
        yield* Account.evaluate(id("a"), new Deposit({ amount: 3 }))
        yield* Account.evaluate(id("a"), new Deposit({ amount: 4 }))
        expect(yield* Account.exists(id("a"))).toBe(true)
        expect(yield* Account.root(id("a"))).toMatchObject({ id: "a", sequence: 2, state: { balance: 7 } })
        expect(yield* Account.replay(id("a"), 1)).toMatchObject({ balance: 3 })
        const later = DateTime.unsafeMake(before.getTime() + 3_600_000)
        expect(yield* Account.replay(id("a"), { asOf: later })).toMatchObject({ balance: 7 })
        expect(yield* Account.replay(id("a"), { asOf: new Date(0) })).toEqual(initial)
        expect(yield* Effect.flip(Account.replay(id("a"), 3))).toMatchObject({ issues: [{ path: ["sequence"] }] })
        expect(yield* Effect.flip(Account.replay(id("a"), { asOf: new Date("") }))).toMatchObject({
          issues: [{ path: ["asOf"] }]
        })
        yield* Account.snapshot(id("a"))
        const store = yield* StoreAdapter.StoreAdapter
        expect((yield* store.getSnapshot("Account/a", 1))._tag).toBe("Some")
      }))

    test("a history has all events in order", () =>
      Effect.gen(function* () {
        yield* Effect.forEach(Array.from({ length: 30 }), () => Account.evaluate(id("a"), new Deposit({ amount: 1 })))
        const history = Chunk.toReadonlyArray(yield* Stream.runCollect(Account.history(id("a"))))
        expect(history.map(({ sequence }) => sequence)).toEqual(Array.from({ length: 30 }, (_, index) => index + 1))
        expect(history[0]?.event).toBeInstanceOf(Deposited)
        const stored = yield* storedOf("Account/a")
        expect(history.map(({ timestamp }) => timestamp)).toEqual(stored.map(({ timestamp }) => timestamp))
        expect(yield* Stream.runCount(Stream.take(Account.history(id("a")), 3))).toBe(3)
        expect(yield* Stream.runCount(Account.history(id("none")))).toBe(0)
      }))

    test("a mistake in a command has the same path on every layer: that in the command", () =>
      Effect.gen(function* () {
        for (const fields of ['"amount":-1', '"amount":"1"', '"at":0']) {
          const command = JSON.parse(`{"_tag":"Deposit",${fields}}`)
          const failed = yield* Effect.flip(Account.evaluate(id("a"), command))
          expect(failed).toMatchObject({
            _tag: "ValidationError",
            operation: "Account.evaluate",
            issues: [{ path: ["amount"] }]
          })
        }
        expect(yield* Account.exists(id("a"))).toBe(false)
      }))

    test("an id that the schema refuses, or an unknown command, is a ValidationError", () =>
      Effect.gen(function* () {
        const wrong: ReadonlyArray<Effect.Effect<unknown, unknown, Aggregate.Instance<"Account">>> = [
          Account.evaluate(unsafeId("a!"), new Touch()),
          Account.evaluate(unsafeId(""), new Touch()),
          Account.evaluate(id("a"), JSON.parse(`{"_tag":"Unknown"}`)),
          Account.evaluateUnknown(id("a"), { _tag: "Deposit", amount: -1 }),
          Account.exists(unsafeId("a!")),
          Stream.runCount(Account.history(unsafeId("a!")))
        ]
        for (const effect of wrong) expect(yield* Effect.flip(effect)).toBeInstanceOf(StoreError.ValidationError)
        expect(
          yield* Account.evaluateUnknown(id("a"), { _tag: "Deposit", amount: 1, at: "1970-01-01T00:00:00.000Z" })
        ).toMatchObject({ sequence: 1 })
      }))

    test("ids with spaces, slashes and of the greatest length are ids of their own", () =>
      Effect.gen(function* () {
        const ids = [" a", "a ", "a", "A", "a/b", "ä€😀", " ", `"a"`, "x".repeat(247)]
        for (const [index, one] of ids.entries()) {
          const made = yield* Account.evaluate(id(one), new Deposit({ amount: index + 1 }))
          expect([made.sequence, made.state.balance]).toEqual([1, index + 1])
        }
        expect(yield* Account.root(id(" a"))).toMatchObject({ id: " a", state: { balance: 1 } })
      }))

    test("a defect of a handler is that of its command alone", () =>
      Effect.gen(function* () {
        const [broken, other] = yield* Effect.all(
          [
            Effect.exit(Account.evaluate(id("a"), new Break())),
            Effect.exit(Account.evaluate(id("a"), new Deposit({ amount: 1 })))
          ],
          { concurrency: "unbounded" }
        )
        expect(Exit.isFailure(broken) && Cause.isDie(broken.cause) && Cause.pretty(broken.cause)).toContain(
          "the handler is broken"
        )
        expect(Exit.isSuccess(other)).toBe(true)
        expect(yield* Account.evaluate(id("a"), new Deposit({ amount: 1 }))).toMatchObject({ sequence: 2 })
      }))
  })
}

describe("what can't work throws a TypeError when it is made", () => {
  const madeBy = (name: string, tag: string, timeout?: number) => () => {
    const Command = Schema.TaggedStruct(tag, {})
    const made = Aggregate.make(name, {
      state: Schema.Number,
      initialState: 0,
      events: Command,
      commands: Command,
      refusals: {},
      decide: { [tag]: () => Effect.succeed([]) },
      evolve: { [tag]: (state: number) => state }
    })
    return ClusterAggregate.make(made, { timeout })
  }

  it("a name of more than 40 characters", () => {
    expect(madeBy("n".repeat(40), "Do")).not.toThrow()
    expect(madeBy("n".repeat(41), "Do")).toThrow(TypeError)
  })

  it("a tag of more than 50 characters, of a read, or of a property of every object", () => {
    expect(madeBy("Counter", "t".repeat(50))).not.toThrow()
    expect(madeBy("Counter", "t".repeat(51))).toThrow(TypeError)
    expect(madeBy("Counter", "history")).toThrow(TypeError)
    for (const tag of ["constructor", "toString", "valueOf"]) expect(madeBy("Counter", tag)).toThrow(TypeError)
  })

  it("a timeout that is none", () => {
    expect(madeBy("Counter", "Do", 0)).toThrow(TypeError)
    expect(madeBy("Counter", "Do", Number.NaN)).toThrow(TypeError)
  })
})
