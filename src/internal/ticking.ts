/**
 * How a hybrid clock is asked without the runtime: by its own short way, where it has one.
 */
import type * as Clock from "effect/Clock"
import type * as Effect from "effect/Effect"

/** `now` and `receive` of a hybrid clock, by a wall clock; the second answers why the timestamp is refused, if it is. */
export interface Ticking<T, E> {
  readonly now: (clock: Clock.Clock) => T
  readonly receive: (timestamp: T, clock: Clock.Clock) => E | undefined
}

/** One that is wrapped, by `{ ...clock, now }`, is another object: it is asked by its effects. */
export const tickingOf = <T, E>(clock: Hybrid<T, E>): Ticking<T, E> | undefined =>
  // `provideTicking` has put it there for this very clock, with its types.
  shortWays.get(clock) as Ticking<T, E> | undefined

/** Says that the clock has a short way. */
export const provideTicking = <T, E>(clock: Hybrid<T, E>, ticking: Ticking<T, E>): void => {
  shortWays.set(clock, ticking)
}

// --- internal ---

/** `HybridClockService`, which stands above this. */
interface Hybrid<T, E> {
  readonly now: Effect.Effect<T>
  readonly receive: (timestamp: T) => Effect.Effect<void, E>
}

const shortWays = new WeakMap<object, unknown>()
