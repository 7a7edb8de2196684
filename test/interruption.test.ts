/** `scoped`, in which an interruption is not lost. */
import { describe, expect, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { scoped } from "../src/internal/runtime/interruption.js"

describe("scoped", () => {
  for (const finalizers of [1, 2, 3]) {
    for (const during of Array.from({ length: finalizers }, (_, index) => index + 1)) {
      it.effect(`a loop that is interrupted during finalizer ${during} of ${finalizers} ends`, () =>
        Effect.gen(function* () {
          const [inFinalizer, go] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
          let closed = 0
          let rounds = 0
          const finalizer = Effect.suspend(() => {
            closed++
            return closed === during
              ? Effect.zipRight(Deferred.succeed(inFinalizer, undefined), Deferred.await(go))
              : Effect.void
          })
          const round = scoped(
            Effect.zipRight(
              Effect.replicateEffect(
                Effect.addFinalizer(() => finalizer),
                finalizers
              ),
              Effect.sync(() => rounds++)
            )
          )
          const looping = yield* Effect.fork(Effect.repeatN(round, 1000))
          yield* Deferred.await(inFinalizer)
          const interrupting = yield* Effect.fork(Fiber.interrupt(looping))
          yield* Effect.yieldNow()
          yield* Deferred.succeed(go, undefined)
          expect(Exit.isInterrupted(yield* Fiber.join(interrupting))).toBe(true)
          expect([rounds, closed]).toEqual([1, finalizers])
        })
      )
    }
  }

  it.effect("closes the scope before it returns, with the exit of the effect", () =>
    Effect.gen(function* () {
      const exits: Array<Exit.Exit<unknown, unknown>> = []
      const ends = <A, E>(effect: Effect.Effect<A, E>) =>
        Effect.exit(
          scoped(
            Effect.zipRight(
              Effect.addFinalizer((exit) => Effect.sync(() => exits.push(exit))),
              effect
            )
          )
        )
      expect(yield* ends(Effect.succeed(1))).toEqual(Exit.succeed(1))
      expect(yield* ends(Effect.fail("no"))).toEqual(Exit.fail("no"))
      expect(exits).toEqual([Exit.succeed(1), Exit.fail("no")])
    })
  )

  it.effect("a finalizer that dies is a defect of the whole", () =>
    Effect.gen(function* () {
      const exit = yield* Effect.exit(scoped(Effect.addFinalizer(() => Effect.die("dead"))))
      expect(exit).toEqual(Exit.die("dead"))
    })
  )
})
