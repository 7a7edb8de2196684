/**
 * What a failure means for the database, for code that knows no SQL errors: the consumer of subscriptions, the append
 * batcher, and stores that retry a handler.
 */
import { SqlError } from "@effect/sql/SqlError"
import * as Cause from "effect/Cause"
import * as Option from "effect/Option"
import { StoreError, type StoreErrorReason } from "../../StoreError.js"
import { isTransient } from "./retry.js"
import { fromSqlError, isStrayCancel, severityOf } from "./sqlError.js"

/**
 * The failure as a `StoreError`: a handler may fail with the `SqlError` of its own statement. Undefined for all other
 * failures.
 */
export const asStoreError = (operation: string, error: unknown): StoreError | undefined =>
  error instanceof StoreError
    ? error
    : error instanceof SqlError
      ? fromSqlError(operation, "writing", error)
      : undefined

/**
 * Whether a failed transaction is due to the database, and not to the handler that ran in it. Of a failed commit the
 * handler is the cause, unless the connection broke, the database is full, or it lacks something.
 */
export const isDatabaseFault = (error: StoreError): boolean =>
  isTransient(error) || isStrayCancel(error) || error.reason === "Exhausted" || error.reason === "Misconfigured"

/**
 * Whether a statement of this library may succeed when it is run again. A limit of time or space counts, because the
 * library's own statements never fail for their content.
 */
export const mayRecover = (error: unknown): error is StoreError =>
  error instanceof StoreError && (isTransient(error) || error.reason === "Cancelled" || error.reason === "Exhausted")

/** Whether the connection of a statement was cut, so that another connection of the pool may run it. */
export const isConnectionLost = (error: unknown): boolean =>
  error instanceof StoreError && error.reason === "ConnectionLost"

/**
 * Whether a statement failed by its content, and not by its connection. Then one of several commits in it may be the
 * cause. An error of severity ERROR is one of the statement with any code, because a trigger can raise all of them.
 */
export const isOfStatement = (cause: Cause.Cause<StoreError>): boolean => {
  const failure = Cause.failureOption(cause)
  if (Option.isNone(failure)) return !Cause.isInterrupted(cause)
  const { cause: reported, reason } = failure.value
  return !ofTheConnection.has(reason) || (reported instanceof SqlError && severityOf(reported) === "ERROR")
}

// --- internal ---

const ofTheConnection: ReadonlySet<StoreErrorReason> = new Set(["CommitUnknown", "ConnectionLost", "Unavailable"])
