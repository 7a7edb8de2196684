/**
 * What a failure says of the database, for code that knows no SQL errors: the consumer of subscriptions, and stores
 * that retry a handler.
 */
import { SqlError } from "@effect/sql/SqlError"
import { StoreError } from "../../StoreError.js"
import { isTransient } from "./retry.js"
import { fromSqlError, isStrayCancel } from "./sqlError.js"

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
