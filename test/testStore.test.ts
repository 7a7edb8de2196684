/** The store for tests of trouble: what a command does when the store fails, waits, or loses an acknowledgement. */
import { expect, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as TestClock from "effect/TestClock"
import { Event, EventFeed, MemoryStore, StoreAdapter, StoreError, Timestamp } from "effect-maestro"
import * as StoreContract from "effect-maestro/StoreContract"
import * as TestStore from "effect-maestro/TestStore"
import { Account, Deposit, Limits } from "./account.js"

const layer = Account.layer.pipe(Layer.provide(Limits.layer), Layer.provideMerge(TestStore.layer))

const deposit = (amount: number) => Account.evaluate("a", new Deposit({ amount }))

StoreContract.suite("TestStore without trouble", TestStore.layer, { lacks: ["callerTransaction"], runs: 20 })

it.effect("failNext fails the next call with the error, or with the reason, and stores nothing", () =>
  Effect.gen(function* () {
    const store = yield* StoreAdapter.StoreAdapter
    yield* TestStore.failNext("commitAll", "Misconfigured")
    const failed = yield* Effect.flip(deposit(1))
    expect(failed).toMatchObject({ _tag: "StoreError", reason: "Misconfigured", operation: "commitAll" })
    expect(yield* store.getEvents("Account/a", 1)).toEqual([])
    const own = new StoreError.StoreError({ reason: "Exhausted", operation: "mine", description: "full" })
    yield* TestStore.failNext("commitAll", own)
    expect(yield* Effect.flip(deposit(1))).toBe(own)
    expect((yield* deposit(1)).sequence).toBe(1)
    yield* TestStore.failNext("getEvents", "UnreadableEvent")
    expect(yield* Effect.flip(Account.fetch("b"))).toMatchObject({ reason: "UnreadableEvent" })
  }).pipe(Effect.provide(layer))
)

it.effect("a number of times that is no whole number above 0 is a TypeError", () =>
  Effect.gen(function* () {
    const { failNext } = yield* TestStore.TestStore
    expect(() => failNext("commitAll", "Unavailable", { times: 0 })).toThrow(TypeError)
  }).pipe(Effect.provide(layer))
)

it.effect("an operation or a trouble that does not exist is a TypeError that names it", () =>
  Effect.gen(function* () {
    const { calls, delay, failNext } = yield* TestStore.TestStore
    const commit = "commit" as TestStore.Operation
    const refused: ReadonlyArray<readonly [call: () => unknown, message: string]> = [
      [
        () => failNext(commit, "Unavailable"),
        "operation of TestStore.failNext must be one of commitEvents, commitAll,"
      ],
      [
        () => calls(commit),
        'operation of TestStore.calls must be one of commitEvents, commitAll, commitSnapshot, getEvents, getSnapshot, and is "commit"'
      ],
      [() => calls("constructor" as TestStore.Operation), 'and is "constructor"'],
      [() => delay(commit, "1 second"), "operation of TestStore.delay must be one of commitEvents"],
      [() => delay("commitAll", JSON.parse('"soon"')), 'duration of TestStore.delay must be a duration, and is "soon"'],
      [() => failNext("commitAll", JSON.parse('"Down"')), 'Unknown, or RetryCommand, and is "Down"'],
      [() => failNext("commitAll", JSON.parse("null")), "and is null"],
      [() => failNext("commitAll", JSON.parse("{}")), "and is {}"],
      [() => failNext("getEvents", JSON.parse('"RetryCommand"')), 'Unknown, and is "RetryCommand"'],
      [
        // @ts-expect-error a read has no conflicts
        () => failNext("getEvents", new StoreError.RetryCommand({ aggregateId: "a", sequence: 1 })),
        "and is RetryCommand"
      ]
    ]
    for (const [call, message] of refused) {
      expect(call).toThrow(TypeError)
      expect(call).toThrow(message)
    }
    // The functions of the module say it when they run.
    const exit = yield* Effect.exit(TestStore.failNext(commit, "Unavailable"))
    expect(Exit.isFailure(exit) && Cause.pretty(exit.cause)).toContain('and is "commit"')
  }).pipe(Effect.provide(layer))
)

it.live("a command is retried after lost races and transient failures, as often as it is set", () =>
  Effect.gen(function* () {
    yield* TestStore.failNext("commitAll", "RetryCommand", { times: 2 })
    yield* TestStore.failNext("commitAll", "ConnectionLost")
    const evaluated = yield* deposit(2)
    expect(evaluated).toMatchObject({ sequence: 1, state: { balance: 2 } })
    expect(yield* TestStore.calls("commitAll")).toBe(4)
  }).pipe(Effect.provide(layer))
)

it.live("a lost acknowledgement leaves the events stored, and a command takes effect once", () =>
  Effect.gen(function* () {
    yield* deposit(1)
    yield* TestStore.loseNextAcknowledgement
    expect((yield* deposit(2)).state.balance).toBe(3)
    const store = yield* StoreAdapter.StoreAdapter
    expect(yield* store.getEvents("Account/a", 1)).toHaveLength(2)
    yield* TestStore.loseNextAcknowledgement
    const event = {
      timestamp: yield* Effect.flatMap(Timestamp.HybridClock, ({ now }) => now),
      aggregateId: "other",
      sequence: 1,
      type: "Seen",
      body: {},
      metadata: {}
    }
    expect(yield* Effect.flip(store.commitEvents([event]))).toMatchObject({ reason: "CommitUnknown" })
    expect(yield* store.getEvents("other", 1)).toEqual([Event.make(event)])
  }).pipe(Effect.provide(layer))
)

it.effect("delay makes each call wait by the clock of the test, until it is zero", () =>
  Effect.gen(function* () {
    yield* TestStore.delay("commitAll", "1 minute")
    const waiting = yield* Effect.fork(deposit(1))
    yield* TestClock.adjust("59 seconds")
    expect(yield* TestStore.calls("commitAll")).toBe(1)
    expect(Exit.isExit(waiting.unsafePoll())).toBe(false)
    yield* TestClock.adjust("1 second")
    expect((yield* Fiber.join(waiting)).sequence).toBe(1)
    yield* TestStore.delay("commitAll", 0)
    expect((yield* deposit(1)).sequence).toBe(2)
  }).pipe(Effect.provide(layer))
)

it.effect("events of the real time are no ClockDrift under TestClock", () =>
  Effect.gen(function* () {
    const store = yield* StoreAdapter.StoreAdapter
    yield* store.commitEvents([
      {
        timestamp: Timestamp.fromParts({ millis: Date.parse("2026-01-01"), counter: 0, node: 1n }),
        aggregateId: "Account/a",
        sequence: 1,
        type: "Deposited",
        body: { amount: 5 },
        metadata: {}
      }
    ])
    expect((yield* deposit(1)).state.balance).toBe(6)
  }).pipe(Effect.provide(layer))
)

it.effect("reset ends all trouble, and the feed of the store has none", () =>
  Effect.gen(function* () {
    yield* TestStore.failNext("commitAll", "Misconfigured", { times: 5 })
    yield* TestStore.delay("commitAll", "1 hour")
    yield* TestStore.loseNextAcknowledgement
    yield* TestStore.reset
    yield* deposit(1)
    expect(yield* TestStore.calls("commitAll")).toBe(1)
    const feed = yield* EventFeed.EventFeed
    expect((yield* feed.read({})).events).toHaveLength(1)
  }).pipe(Effect.provide(layer))
)

it.effect("layerOver sets trouble for another store", () =>
  Effect.gen(function* () {
    yield* TestStore.failNext("commitEvents", "Unavailable")
    const store = yield* StoreAdapter.StoreAdapter
    expect(yield* Effect.flip(store.commitEvents([]))).toMatchObject({ reason: "Unavailable" })
    yield* store.commitEvents([])
  }).pipe(Effect.provide(TestStore.layerOver(Layer.effect(StoreAdapter.StoreAdapter, MemoryStore.make))))
)
