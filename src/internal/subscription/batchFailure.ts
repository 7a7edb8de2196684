/**
 * The ways in which a batch of a subscription fails: by its handler, or by the database. The consumer and its parts use
 * it.
 *
 * The two are kept apart because they are treated differently. A failure of the handler counts as an attempt at the
 * event, and uses up its retries. After a failure of the database the consumer waits, reads the checkpoint, and goes on
 * from there.
 */
import * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { StoreError } from "../../StoreError.js"
import { type EventFailure, LeaseLost } from "../../SubscriptionStore.js"
import { asStoreError, isConnectionLost, isDatabaseFault, mayRecover } from "../runtime/storeFailure.js"
import { textOf } from "./failureText.js"

/** The subscription stopped before an event that its handler could not handle. */
export class HasStopped extends Data.TaggedError("HasStopped")<{
  readonly partition: number
  readonly failure: EventFailure
}> {}

/** The handler failed, died, or interrupted itself. */
export class HandlerFailed extends Data.TaggedError("HandlerFailed")<{ readonly cause: Cause.Cause<unknown> }> {}

/** The database failed. The batch may be stored all the same, so the checkpoint has to be read again. */
export class DatabaseFailed extends Data.TaggedError("DatabaseFailed")<{
  readonly error: StoreError
  /** Whether the handler had begun, so that it may have broken the connection. */
  readonly handlerRan: boolean
}> {}

/**
 * The failure of a batch. A failure that comes out of the handler is the handler's, also where it names a database:
 * that may be another database, or a connection that the handler broke.
 */
export const batchFailureOf = (
  cause: Cause.Cause<unknown>,
  handlerRan: boolean
): LeaseLost | HandlerFailed | DatabaseFailed => {
  const failure = Cause.squash(cause)
  if (failure instanceof LeaseLost || failure instanceof HandlerFailed) return failure
  const error = storeErrorOf(cause)
  return error !== undefined && isDatabaseFault(error)
    ? new DatabaseFailed({ error, handlerRan })
    : new HandlerFailed({ cause })
}

/** The store's error in a cause, if there is one. */
export const storeErrorOf = (cause: Cause.Cause<unknown>): StoreError | undefined =>
  asStoreError("Subscription", Cause.squash(cause))

/** A failure of the database in a batch that ran no handler. */
export const databaseFailedBy = (cause: Cause.Cause<unknown>): DatabaseFailed =>
  new DatabaseFailed({
    error:
      storeErrorOf(cause) ??
      new StoreError({
        reason: "Unknown",
        operation: "Subscription",
        description: textOf(cause),
        cause: Cause.squash(cause)
      }),
    handlerRan: false
  })

/**
 * Calls the store: retries a lost connection, because a pool may still hold several that are cut, and then fails with
 * `DatabaseFailed`.
 */
export const callStore = <A, E, R>(call: Effect.Effect<A, E, R>): Effect.Effect<A, E | DatabaseFailed, R> =>
  orDatabaseFailed(Effect.retry(call, { times: 10, while: isConnectionLost }))

/** Fails with `DatabaseFailed` where the call may succeed later. */
export const orDatabaseFailed = <A, E, R>(call: Effect.Effect<A, E, R>): Effect.Effect<A, E | DatabaseFailed, R> =>
  Effect.mapError(call, (error) => (mayRecover(error) ? new DatabaseFailed({ error, handlerRan: false }) : error))
