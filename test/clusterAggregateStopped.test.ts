/** What a client does where a runner is stopped: its connections stay open, and no answer comes. */
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as ClusterAggregate from "effect-maestro/ClusterAggregate"
import { Account, Deposit, Deposited, InsufficientFunds, id, Withdraw } from "./clusterBank.js"
import { eventsOf, faulty } from "./clusterFaults.js"

const clientAfter = (resendAfter: Duration.DurationInput) =>
  ClusterAggregate.make(Account, { timeout: "20 seconds", resendAfter }).layerClient

/** The calls of runners by their number, from 0. */
const numbered = (
  fault: (call: Effect.Effect<unknown, unknown>, number: number) => Effect.Effect<unknown, unknown>,
  resendAfter: Duration.DurationInput = "20 millis"
) => {
  let count = 0
  return faulty((call) => Effect.suspend(() => fault(call, count++)), clientAfter(resendAfter))
}

for (const [when, hanging] of [
  ["before it has the message", () => Effect.never],
  ["after the command took effect", (call: Effect.Effect<unknown, unknown>) => Effect.zipRight(call, Effect.never)]
] as const) {
  it.live(`a command whose runner stops ${when} is sent again, and takes effect once`, () =>
    Effect.gen(function* () {
      const made = yield* Account.evaluate(id("a"), new Deposit({ amount: 3 }))
      expect(made).toMatchObject({ sequence: 1, duplicate: false, events: [new Deposited({ amount: 3 })] })
      expect(yield* eventsOf("Account/a")).toHaveLength(1)
    }).pipe(Effect.provide(numbered((call, number) => (number === 0 ? hanging(call) : call))))
  )
}

it.live("a read whose runner stops is sent again", () =>
  Effect.gen(function* () {
    expect(yield* Account.get(id("a"))).toMatchObject({ balance: 0 })
  }).pipe(Effect.provide(numbered((call, number) => (number === 0 ? Effect.never : call))))
)

it.live("a handler that is slow goes on, and its result is that of the command", () => {
  const third = Effect.runSync(Deferred.make<void>())
  let interrupted = 0
  return Effect.gen(function* () {
    const made = yield* Account.evaluate(id("a"), new Deposit({ amount: 3 }))
    expect(made).toMatchObject({ sequence: 1, duplicate: false })
    expect(interrupted).toBe(0)
    expect(yield* eventsOf("Account/a")).toHaveLength(1)
  }).pipe(
    Effect.provide(
      numbered((call, number) => {
        if (number === 2) return Effect.zipRight(Deferred.succeed(third, undefined), Effect.never)
        if (number > 0) return Effect.never
        return Effect.onInterrupt(Effect.zipRight(Deferred.await(third), call), () => Effect.sync(() => interrupted++))
      })
    )
  )
})

it.live("a refusal of the first message is no result while another message may still take effect", () => {
  const sent = Effect.runSync(Deferred.make<void>())
  const released = Effect.runSync(Deferred.make<void>())
  const late = Effect.runSync(Deferred.make<Fiber.Fiber<unknown, unknown>>())
  return Effect.gen(function* () {
    const refused = yield* Effect.flip(Account.evaluate(id("a"), new Withdraw({ amount: 3 })))
    expect(refused).toBeInstanceOf(InsufficientFunds)
    yield* Account.evaluate(id("a"), new Deposit({ amount: 10 }))
    // The second message arrives now, and the balance would suffice for it.
    yield* Deferred.succeed(released, undefined)
    yield* Fiber.await(yield* Deferred.await(late))
    expect((yield* eventsOf("Account/a")).map(({ type }) => type)).toEqual(["Deposited"])
    expect(yield* Account.fetch(id("a"))).toMatchObject({ balance: 10 })
  }).pipe(
    Effect.provide(
      numbered((call, number) => {
        if (number === 0)
          return Effect.flatMap(Effect.exit(call), (exit) => Effect.zipRight(Deferred.await(sent), exit))
        if (number !== 1) return call
        return Effect.forkDaemon(Effect.zipRight(Deferred.await(released), call)).pipe(
          Effect.tap((fiber) => Deferred.succeed(late, fiber)),
          Effect.zipRight(Deferred.succeed(sent, undefined)),
          Effect.zipRight(Effect.never)
        )
      }, "400 millis")
    )
  )
})

// --- histories ---

/** The stream of an entity, which the type of a fault does not say. */
type Events = Stream.Stream<{ readonly index: number }, unknown>

/** The messages of a history by their number, from 0. */
const histories = (
  fault: (events: Events, number: number) => Events,
  {
    resendAfter = "20 millis",
    timeout = "20 seconds"
  }: { readonly resendAfter?: Duration.DurationInput; readonly timeout?: Duration.DurationInput } = {}
) => {
  const calls = { count: 0 }
  const { layerClient } = ClusterAggregate.make(Account, { resendAfter, timeout })
  const layer = faulty(
    (call, tag) =>
      tag === "history" ? (fault(call as unknown as Events, calls.count++) as unknown as typeof call) : call,
    layerClient
  )
  return { calls, layer }
}

const makeEvents = (count: number) =>
  Effect.forEach(Arr.range(1, count), () => Account.evaluate(id("a"), new Deposit({ amount: 1 })), { discard: true })

const history = Effect.map(Stream.runCollect(Account.history(id("a"))), (events) =>
  Array.from(events, ({ sequence }) => sequence)
)

const stopping = (events: Events, after: number): Events => Stream.concat(Stream.take(events, after), Stream.never)

it.live("a history whose runner stops is sent again, and goes on after the last event, without one twice", () => {
  const { calls, layer } = histories((events, number) => (number < 6 ? stopping(events, number % 3) : events))
  return Effect.gen(function* () {
    yield* makeEvents(15)
    expect(yield* history).toEqual(Arr.range(1, 15))
    expect(calls.count).toBeGreaterThanOrEqual(7)
  }).pipe(Effect.provide(layer))
})

it.live("a history whose handler is slow goes on, and the message beside it ends", () => {
  const second = Effect.runSync(Deferred.make<void>())
  const ended = Effect.runSync(Deferred.make<void>())
  const { calls, layer } = histories(
    (events, number) =>
      number === 0
        ? Stream.drain(Stream.fromEffect(Deferred.await(second))).pipe(Stream.concat(events))
        : Stream.ensuring(
            Stream.drain(Stream.fromEffect(Effect.zipRight(Deferred.succeed(second, undefined), Effect.never))),
            Deferred.succeed(ended, undefined)
          ),
    { resendAfter: "400 millis" }
  )
  return Effect.gen(function* () {
    yield* makeEvents(15)
    expect(yield* history).toEqual(Arr.range(1, 15))
    yield* Deferred.await(ended)
    expect(calls.count).toBe(2)
  }).pipe(Effect.provide(layer))
})

it.live("the time that the reader of a history takes does not count", () => {
  const { calls, layer } = histories((events) => Stream.rechunk(events, 1), {
    resendAfter: "400 millis",
    timeout: "500 millis"
  })
  return Effect.gen(function* () {
    yield* makeEvents(3)
    const slow = Stream.tap(Account.history(id("a")), () => Effect.sleep("600 millis"))
    expect(yield* Stream.runCount(slow)).toBe(3)
    expect(calls.count).toBe(1)
  }).pipe(Effect.provide(layer))
})

it.live("a history that brings no event for the timeout fails, also where the cluster does not confirm the end", () => {
  const hanging = Stream.fromEffect(Effect.uninterruptible(Effect.never))
  const { layer } = histories((events) => Stream.concat(Stream.take(events, 2), hanging), {
    resendAfter: "100 millis",
    timeout: "300 millis"
  })
  return Effect.gen(function* () {
    yield* makeEvents(15)
    expect(yield* Stream.runCount(Stream.take(Account.history(id("a")), 3))).toBe(3)
    const failed = yield* Effect.flip(Stream.runDrain(Account.history(id("none"))))
    expect(failed).toMatchObject({
      reason: "ClusterUnavailable",
      operation: "Account.history",
      aggregateId: "Account/none"
    })
    expect(failed.message).toContain("no runner has answered within 300ms")
  }).pipe(Effect.timeout("10 seconds"), Effect.provide(layer))
})

it.live("an interruption of a history is bounded, also where the cluster does not confirm it", () => {
  const begun = Effect.runSync(Deferred.make<void>())
  const { layer } = histories(() =>
    Stream.fromEffect(Effect.zipRight(Deferred.succeed(begun, undefined), Effect.uninterruptible(Effect.never))).pipe(
      Stream.drain
    )
  )
  return Effect.gen(function* () {
    const fiber = yield* Effect.fork(history)
    yield* Deferred.await(begun)
    const exit = yield* Effect.timeout(Fiber.interrupt(fiber), "5 seconds")
    expect(Exit.isInterrupted(exit)).toBe(true)
  }).pipe(Effect.provide(layer))
})

it.scopedLive("a history that waits for a runner ends when its client is closed", () => {
  const begun = Effect.runSync(Deferred.make<void>())
  const { layer } = histories(
    () => Stream.drain(Stream.fromEffect(Effect.zipRight(Deferred.succeed(begun, undefined), Effect.never))),
    { resendAfter: "10 seconds" }
  )
  return Effect.gen(function* () {
    const scope = yield* Scope.make()
    const services = yield* Scope.extend(Layer.build(layer), scope)
    const fiber = yield* Effect.fork(Effect.flip(Effect.provide(history, services)))
    yield* Deferred.await(begun)
    yield* Scope.close(scope, Exit.void)
    const failed = yield* Effect.timeout(Fiber.join(fiber), "5 seconds")
    expect(failed).toMatchObject({ reason: "ClusterUnavailable" })
    expect(failed.message).toContain("the client was closed")
  })
})

it("a time that is no duration above 0 throws by its name", () => {
  expect(() => ClusterAggregate.make(Account, { resendAfter: 0 })).toThrow("resendAfter of the cluster of Account")
})
