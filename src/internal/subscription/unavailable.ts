/**
 * Waiting for a database that does not answer.
 */
import * as Effect from "effect/Effect"
import { StoreError } from "../../StoreError.js"
import { liveSleep } from "../runtime/clock.js"
import { isTransient } from "../runtime/retry.js"

/** Waits between attempts to reach a database that does not answer, in milliseconds: at least and at most. */
export const firstPause = 50
export const lastPause = 5000

/** Whether a statement of this library may succeed the next time: none of them fails for what is in it. */
export const mayPass = (error: unknown): boolean =>
  isTransient(error) || (error instanceof StoreError && (error.reason === "Cancelled" || error.reason === "Exhausted"))

/** Tries again for as long as the database can't be reached. */
export const enduring = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> => {
  const from = (pause: number): Effect.Effect<A, E, R> =>
    Effect.catchAll(effect, (error) =>
      mayPass(error)
        ? Effect.logWarning(`waiting for the database: ${error}`).pipe(
            Effect.zipRight(liveSleep(pause)),
            Effect.zipRight(from(Math.min(pause * 2, lastPause)))
          )
        : Effect.fail(error)
    )
  return from(firstPause)
}
