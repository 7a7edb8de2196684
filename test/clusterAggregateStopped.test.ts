/** What a client does where a runner is stopped: its connections stay open, and no answer comes. */
import { expect, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
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

it("a time that is no duration above 0 throws by its name", () => {
  expect(() => ClusterAggregate.make(Account, { resendAfter: 0 })).toThrow("resendAfter of the cluster of Account")
})
