/**
 * The time of the machine, whatever clock the program has: for what waits for a database, or for the end of a process.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"

export const liveClock: Clock.Clock = Clock.make()

/** Runs the effect by the machine's clock. */
export const withLiveClock = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.withClock(effect, liveClock)

/** Sleeps for so many milliseconds of the machine's time. */
export const liveSleep = (millis: number): Effect.Effect<void> => withLiveClock(Effect.sleep(millis))
