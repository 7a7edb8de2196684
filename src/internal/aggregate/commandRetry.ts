/**
 * The retry loop of commands: `commandHandler.ts` and `idempotentCommand.ts` run every attempt in it.
 *
 * An attempt is repeated in two cases. Another commit came first (`RetryCommand`), so the command must be decided on
 * the new state. Or a read failed for a transient reason. A failed commit is never a reason to decide again, because it
 * may be stored: `settleCommit` finds that out.
 */
import * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import { RetryCommand, type StoreError, type ValidationError } from "../../StoreError.js"
import { isTransient, retryAfter } from "../runtime/retry.js"
import { catchFailure } from "../runtime/syncEffect.js"

/** The schedule of aggregates that have no option `retry`. `Aggregate` exports it. */
export const defaultRetry: Schedule.Schedule<unknown> = Schedule.exponential("2 millis").pipe(
  Schedule.union(Schedule.spaced("200 millis")),
  Schedule.jittered,
  Schedule.intersect(Schedule.recurs(15))
)

/** A transient failure of a read, before anything was decided. */
export class TransientReadError extends Data.TaggedError("TransientReadError")<{
  readonly error: StoreError | ValidationError
}> {}

/** Marks the transient failures of a read. */
export const retryableRead = <A>(
  read: Effect.Effect<A, ValidationError | StoreError>
): Effect.Effect<A, ValidationError | StoreError | TransientReadError> =>
  catchFailure(read, (error) => Effect.fail(isTransient(error) ? new TransientReadError({ error }) : error))

/**
 * Runs attempts by the schedule after a first one, until one succeeds or fails finally. It sets up nothing before the
 * first one has failed.
 */
export const retrying = <A, E>(
  schedule: Schedule.Schedule<unknown>,
  first: Effect.Effect<A, E | TransientReadError>,
  attempt: () => Effect.Effect<A, E | TransientReadError>
): Effect.Effect<A, E | StoreError | ValidationError> =>
  catchFailure(first, (error) =>
    isRetryable(error)
      ? Effect.mapError(retryAfter(error, Effect.suspend(attempt), schedule, isRetryable), unwrapped)
      : Effect.fail(unwrapped(error))
  )

/** Whether the failure of a batch is that of each of its commands: a lost race, or a store that can't be reached. */
export const failsWholeBatch = (cause: Cause.Cause<unknown>): boolean =>
  Option.exists(Cause.failureOption(cause), (error) => error instanceof RetryCommand || isTransient(error))

// --- internal ---

const isRetryable = (error: unknown): boolean => error instanceof RetryCommand || error instanceof TransientReadError

const unwrapped = <E>(error: E | TransientReadError): E | StoreError | ValidationError =>
  error instanceof TransientReadError ? error.error : error
