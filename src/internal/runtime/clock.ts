/**
 * Effect's live clock, for waits that depend on a database or on another process. A `TestClock` of the program does not
 * drive them.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"

export const liveClock: Clock.Clock = Clock.make()

/** Runs the effect on the live clock. */
export const withLiveClock = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.withClock(effect, liveClock)

/** Sleeps on the live clock, for a time in milliseconds. */
export const liveSleep = (millis: number): Effect.Effect<void> => withLiveClock(Effect.sleep(millis))
