/**
 * Retries transient failures, and settles commits of unknown outcome. The command handler and subscriptions use it.
 */
import { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import type * as Schedule from "effect/Schedule"
import { StoreError } from "../../StoreError.js"
import { isTransientSqlError, transientReasons } from "./sqlError.js"
import { catchFailure } from "./syncEffect.js"

/**
 * Settles a commit of unknown outcome by committing the same events again. If they were stored, that succeeds and writes nothing. Deciding
 * again instead could apply a command twice. If the schedule ends before the outcome is known, the failure is `CommitUnknown`, and not that of
 * the last attempt. A final failure of a projection shows that the events were not stored, because projections run for accepted events only.
 *
 * It also retries a commit whose projection failed by a deadlock, a serialization failure or a lost connection, because the database has
 * rolled back the whole commit.
 */
export const settleCommit = <E, R>(
  schedule: Schedule.Schedule<unknown>,
  commit: Effect.Effect<void, E | StoreError, R>
): Effect.Effect<void, E | StoreError, R> =>
  catchFailure(commit, (error) => {
    if (!isRetryableCommit(error)) return Effect.fail(error)
    let unknown: StoreError | undefined
    const remember = (error: E | StoreError): E | StoreError => {
      if (error instanceof StoreError && error.reason === "CommitUnknown") unknown = error
      return error
    }
    return Effect.mapError(
      retryAfter(remember(error), Effect.mapError(commit, remember), schedule, isRetryableCommit),
      (last) => (last instanceof StoreError && unknown !== undefined && !isOfProjection(last) ? unknown : last)
    )
  })

/** Whether a failure of the store is transient. */
export const isTransient = (error: unknown): boolean =>
  error instanceof StoreError && transientReasons.has(error.reason)

/** Whether a failure of the store, or of a projection's statement, is transient. */
const isRetryableCommit = (error: unknown): boolean =>
  error instanceof SqlError ? isTransientSqlError(error) : isTransient(error)

/** Retries an effect after its first failure. */
export const retryAfter = <A, E, R>(
  error: E,
  effect: Effect.Effect<A, E, R>,
  schedule: Schedule.Schedule<unknown>,
  isRetryable: (error: E) => boolean
): Effect.Effect<A, E, R> => {
  let first = true
  const again = Effect.suspend(() => {
    if (!first) return effect
    first = false
    return Effect.fail(error)
  })
  return Effect.retry(again, { schedule, while: isRetryable })
}

// --- internal ---

const isOfProjection = (error: StoreError): boolean => error.projection !== undefined && !isTransient(error)
