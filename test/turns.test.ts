/** Turns: so many effects at a time, in the order of arrival. */
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as FiberId from "effect/FiberId"
import * as Scheduler from "effect/Scheduler"
import { makeTurns } from "../src/internal/runtime/turns.js"
import { macrotask } from "./nodes.js"

it.live("a caller that comes again does not overtake the callers that wait", () =>
  Effect.gen(function* () {
    const inTurn = makeTurns(2)
    const order: Array<number> = []
    let running = 0
    const work = (caller: number) =>
      inTurn(
        Effect.gen(function* () {
          expect(++running).toBeLessThanOrEqual(2)
          order.push(caller)
          yield* macrotask
          running--
        })
      )
    yield* Effect.forEach([0, 1, 2, 3, 4], (caller) => Effect.repeatN(work(caller), 4), { concurrency: "unbounded" })
    expect(order).toEqual(Arr.makeBy(25, (index) => index % 5))
  })
)

it.live("a turn is never lost, at whatever step its caller is interrupted", () =>
  Effect.gen(function* () {
    for (let steps = 1; steps <= 40; steps++) {
      for (const isTaken of [false, true]) {
        const inTurn = makeTurns(1)
        const go = yield* Deferred.make<void>()
        const holder = yield* Effect.fork(isTaken ? inTurn(Deferred.await(go)) : Effect.void)
        yield* macrotask
        // The caller pauses after so many steps, as the runtime lets a long fiber do, and is interrupted in that pause.
        let count = 0
        const pausing = new Scheduler.MixedScheduler(2048)
        pausing.shouldYield = () => {
          if (++count !== steps) return false
          queueMicrotask(() => caller.unsafeInterruptAsFork(FiberId.none))
          return 0
        }
        const caller: Fiber.RuntimeFiber<void> = yield* Effect.fork(Effect.withScheduler(inTurn(Effect.void), pausing))
        yield* macrotask
        yield* Deferred.succeed(go, undefined)
        yield* Fiber.await(caller)
        yield* Fiber.await(holder)
        const free = yield* Effect.timeout(inTurn(Effect.succeed("free")), "1 second")
        expect(free, `after ${steps} steps`).toBe("free")
      }
    }
  })
)

it.live("a caller that fails, or is interrupted while it waits or works, hands its turn on", () =>
  Effect.gen(function* () {
    const inTurn = makeTurns(1)
    expect(yield* Effect.flip(inTurn(Effect.fail("failed")))).toBe("failed")
    const begun = yield* Deferred.make<void>()
    const working = yield* Effect.fork(inTurn(Effect.zipRight(Deferred.succeed(begun, undefined), Effect.never)))
    yield* Deferred.await(begun)
    const waiting = yield* Effect.forEach(Arr.range(1, 3), (n) => Effect.fork(inTurn(Effect.succeed(n))))
    yield* macrotask
    const [first, second, third] = waiting
    if (first === undefined || second === undefined || third === undefined) return
    // The first one gets the turn and hands it on, because it is interrupted before it can begin.
    yield* Effect.all([Fiber.interrupt(working), Fiber.interrupt(first)], { concurrency: 2 })
    expect(yield* Fiber.join(second)).toBe(2)
    expect(yield* Fiber.join(third)).toBe(3)
    expect(yield* inTurn(Effect.succeed("later"))).toBe("later")
  })
)
