/**
 * Retries a call of the store for as long as the database can't be reached. The consumer uses it where no event is
 * being handled.
 */
import * as Effect from "effect/Effect"
import { liveSleep } from "../runtime/clock.js"
import { mayRecover } from "../runtime/storeFailure.js"

/** The first and the longest pause between two attempts to reach the database, in milliseconds. */
export const firstPause = 50
export const longestPause = 5000

/**
 * Retries the effect without limit, with growing pauses and a warning for each, until it succeeds or fails with another
 * error.
 */
export const retryWhileUnavailable = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> => {
  const from = (pause: number): Effect.Effect<A, E, R> =>
    Effect.catchAll(effect, (error) =>
      mayRecover(error)
        ? Effect.logWarning(`waiting for the database: ${error}`).pipe(
            Effect.zipRight(liveSleep(pause)),
            Effect.zipRight(from(Math.min(pause * 2, longestPause)))
          )
        : Effect.fail(error)
    )
  return from(firstPause)
}
