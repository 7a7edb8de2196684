/**
 * Continues effects without a step of the runtime, where they are an `Exit` already or succeed. A short command costs
 * little more than such steps, so the command handler and the stores avoid them.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"

/** `Effect.flatMap`, which calls `next` immediately if the effect is an exit. */
export const flatMapSync = <A, E, R, B, E2, R2>(
  effect: Effect.Effect<A, E, R>,
  next: (a: A) => Effect.Effect<B, E2, R2>
): Effect.Effect<B, E | E2, R | R2> =>
  !isSettled(effect)
    ? Effect.flatMap(effect, next)
    : Exit.isSuccess(effect)
      ? next(effect.value)
      : Exit.failCause(effect.cause)

/** `Effect.catchAll`, which takes no step where the effect succeeds. */
export const catchFailure = <A, E, R, B, E2, R2>(
  effect: Effect.Effect<A, E, R>,
  recover: (error: E) => Effect.Effect<B, E2, R2>
): Effect.Effect<A | B, E2, R | R2> =>
  Effect.catchAllCause(effect, (cause) => Effect.catchAll(Effect.failCause(cause), recover))

/** Whether the effect is an exit. */
export const isSettled = <A, E, R>(effect: Effect.Effect<A, E, R> | Exit.Exit<A, E>): effect is Exit.Exit<A, E> =>
  Exit.isExit(effect)

/** `Effect.suspend`, which calls `make` immediately. An exception becomes a defect of the effect. */
export const called = <A, E, R>(make: () => Effect.Effect<A, E, R>): Effect.Effect<A, E, R> => {
  try {
    return make()
  } catch (thrown) {
    return Exit.die(thrown)
  }
}
