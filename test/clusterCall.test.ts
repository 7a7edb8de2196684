/** The messages of one call to a runner: when they are sent, and when they end. */
import { expect, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/TestClock"
import { callLimits, callUntilAnswered } from "../src/internal/cluster/call.js"
import { makeCallTimer } from "../src/internal/cluster/callTimer.js"

const place = { operation: "Account.evaluate", aggregateId: "Account:a" }
const limits = callLimits("Account", { timeout: "10 seconds", resendAfter: "3 seconds" })

/** Messages that wait for `answer`, and how many of them were sent and have ended by an interruption. */
const makeMessages = Effect.zipWith(Deferred.make<string>(), makeCallTimer, (answer, timer) => {
  const counts = { sent: 0, interrupted: 0 }
  const message = Effect.suspend(() => {
    counts.sent++
    return Effect.onInterrupt(Deferred.await(answer), () => Effect.sync(() => counts.interrupted++))
  })
  return { answer, counts, call: callUntilAnswered(place, limits, timer, "command", () => message) }
})

it.scoped("the message is sent again after each time without an answer, and all end with the timeout", () =>
  Effect.gen(function* () {
    const { call, counts } = yield* makeMessages
    const fiber = yield* Effect.fork(Effect.flip(call))
    yield* TestClock.adjust("2999 millis")
    expect(counts).toEqual({ sent: 1, interrupted: 0 })
    yield* TestClock.adjust("1 millis")
    expect(counts).toEqual({ sent: 2, interrupted: 0 })
    yield* TestClock.adjust("6999 millis")
    expect(counts).toEqual({ sent: 4, interrupted: 0 })
    yield* TestClock.adjust("1 millis")
    expect(yield* Fiber.join(fiber)).toMatchObject({ reason: "ClusterUnavailable" })
    expect(counts).toEqual({ sent: 4, interrupted: 4 })
  })
)

for (const resendAfter of ["10 seconds", "1 minute"] as const) {
  it.scoped(`with a resendAfter of ${resendAfter}, not shorter than the timeout, one message is sent`, () =>
    Effect.gen(function* () {
      let sent = 0
      const message = Effect.suspend(() => {
        sent++
        return Effect.never
      })
      const long = callLimits("Account", { timeout: "10 seconds", resendAfter })
      const call = callUntilAnswered(place, long, yield* makeCallTimer, "command", () => message)
      const fiber = yield* Effect.fork(Effect.flip(call))
      yield* TestClock.adjust("10 seconds")
      expect(yield* Fiber.join(fiber)).toMatchObject({ reason: "ClusterUnavailable" })
      expect(sent).toBe(1)
    })
  )
}

it.effect("a call fails when its client is closed, and so does one that begins later", () =>
  Effect.gen(function* () {
    const scope = yield* Scope.make()
    const { call, counts } = yield* Scope.extend(makeMessages, scope)
    const fiber = yield* Effect.fork(Effect.flip(call))
    yield* TestClock.adjust("1 seconds")
    yield* Scope.close(scope, Exit.void)
    const closed = {
      reason: "ClusterUnavailable",
      description: expect.stringContaining("the client was closed")
    }
    expect(yield* Fiber.join(fiber)).toMatchObject(closed)
    expect(counts).toEqual({ sent: 1, interrupted: 1 })
    expect(yield* Effect.flip(call)).toMatchObject(closed)
  })
)

it.scoped("the first answer is the result, and the other messages end", () =>
  Effect.gen(function* () {
    const counts = { sent: 0, interrupted: 0 }
    const message = Effect.suspend(() =>
      counts.sent++ === 0
        ? Effect.onInterrupt(Effect.never, () => Effect.sync(() => counts.interrupted++))
        : Effect.succeed("of the second")
    )
    const timer = yield* makeCallTimer
    const fiber = yield* Effect.fork(callUntilAnswered(place, limits, timer, "command", () => message))
    yield* TestClock.adjust("3 seconds")
    expect(yield* Fiber.join(fiber)).toBe("of the second")
    expect(counts).toEqual({ sent: 2, interrupted: 1 })
  })
)

it.scoped("a call that has its answer sends no message any more", () =>
  Effect.gen(function* () {
    const { answer, call, counts } = yield* makeMessages
    const fiber = yield* Effect.fork(call)
    yield* TestClock.adjust("1 seconds")
    yield* Deferred.succeed(answer, "done")
    expect(yield* Fiber.join(fiber)).toBe("done")
    yield* TestClock.adjust("1 minute")
    expect(counts).toEqual({ sent: 1, interrupted: 0 })
  })
)

it.scoped(
  "an interruption of the caller ends the messages, and waits for one that hangs for the grace period at most",
  () =>
    Effect.gen(function* () {
      const { call, counts } = yield* makeMessages
      const fiber = yield* Effect.fork(call)
      yield* TestClock.adjust("1 seconds")
      yield* Fiber.interrupt(fiber)
      expect(counts).toEqual({ sent: 1, interrupted: 1 })
      const timer = yield* makeCallTimer
      const hanging = yield* Effect.fork(
        callUntilAnswered(place, limits, timer, "command", () => Effect.uninterruptible(Effect.never))
      )
      yield* TestClock.adjust("1 seconds")
      // The grace period is that of the live clock, which the test clock does not move.
      yield* Fiber.interrupt(hanging)
    })
)
