/**
 * Effects that have come to their end already: what follows is done at once, without the runtime, whose steps are what a short
 * command costs.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"

/** `Effect.flatMap`; `next` is called at once where the result is there. */
export const flatMapSync = <A, E, R, B, E2, R2>(
  effect: Effect.Effect<A, E, R>,
  next: (a: A) => Effect.Effect<B, E2, R2>
): Effect.Effect<B, E | E2, R | R2> =>
  !isSettled(effect)
    ? Effect.flatMap(effect, next)
    : Exit.isSuccess(effect)
      ? next(effect.value)
      : Exit.failCause(effect.cause)

/** The result of an effect that has one already. */
export const isSettled = <A, E, R>(effect: Effect.Effect<A, E, R> | Exit.Exit<A, E>): effect is Exit.Exit<A, E> =>
  Exit.isExit(effect)

/** Calls what makes an effect; what it throws is a defect of the effect. */
export const called = <A, E, R>(make: () => Effect.Effect<A, E, R>): Effect.Effect<A, E, R> => {
  try {
    return make()
  } catch (thrown) {
    return Exit.die(thrown)
  }
}
