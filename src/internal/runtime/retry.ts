/**
 * Trying again: what failed for a reason that may pass, and commits whose outcome nobody knows.
 */
import { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import type * as Schedule from "effect/Schedule"
import { StoreError } from "../../StoreError.js"
import { isTransientSqlError, transientReasons } from "./sqlError.js"

/** `Effect.retry`, which sets up nothing before the first failure. */
export const retryWhile = <A, E, R>(
  effect: Effect.Effect<A, E, R>,
  schedule: Schedule.Schedule<unknown>,
  mayPass: (error: E) => boolean
): Effect.Effect<A, E, R> =>
  Effect.catchAll(effect, (error) =>
    mayPass(error) ? retryAfter(error, effect, schedule, mayPass) : Effect.fail(error)
  )

/**
 * Finds out what became of a commit by committing the same events again: if they were stored that succeeds and writes
 * nothing. Deciding again instead could apply a command twice. Where the schedule ends before it is known, or the store fails
 * otherwise, the failure is `CommitUnknown`, whatever the last attempt said. A projection that fails for good shows that the events
 * were not stored before, because projections run only for events that the store has just accepted.
 *
 * A statement of a projection that the database broke off by a deadlock, a serialization failure or a lost connection has undone the whole
 * commit, which was not at fault: it is tried again, too.
 */
export const settleCommit = <E, R>(
  schedule: Schedule.Schedule<unknown>,
  commit: Effect.Effect<void, E | StoreError, R>
): Effect.Effect<void, E | StoreError, R> =>
  Effect.catchAll(commit, (error) => {
    if (!mayCommit(error)) return Effect.fail(error)
    let unknown: StoreError | undefined
    const told = (error: E | StoreError): E | StoreError => {
      if (error instanceof StoreError && error.reason === "CommitUnknown") unknown = error
      return error
    }
    return Effect.mapError(retryAfter(told(error), Effect.mapError(commit, told), schedule, mayCommit), (last) =>
      last instanceof StoreError && unknown !== undefined && !isOfProjection(last) ? unknown : last
    )
  })

/** Whether a failure of the store may be gone the next time. */
export const isTransient = (error: unknown): boolean =>
  error instanceof StoreError && transientReasons.has(error.reason)

/** The same, also of a statement of a projection. */
const mayCommit = (error: unknown): boolean =>
  error instanceof SqlError ? isTransientSqlError(error) : isTransient(error)

/** The retries after the first failure. */
export const retryAfter = <A, E, R>(
  error: E,
  effect: Effect.Effect<A, E, R>,
  schedule: Schedule.Schedule<unknown>,
  mayPass: (error: E) => boolean
): Effect.Effect<A, E, R> => {
  let first = true
  const again = Effect.suspend(() => {
    if (!first) return effect
    first = false
    return Effect.fail(error)
  })
  return Effect.retry(again, { schedule, while: mayPass })
}

// --- internal ---

const isOfProjection = (error: StoreError): boolean => error.projection !== undefined && !isTransient(error)
