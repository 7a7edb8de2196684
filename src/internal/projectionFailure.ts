/**
 * What a failure of a projection means: a refusal where the projection declares the violated constraint, else a `StoreError` that names
 * projection and event.
 */
import { SqlError } from "@effect/sql/SqlError"
import type { Event } from "../Event.js"
import { StoreError } from "../StoreError.js"
import { fromProjection, violatedConstraint } from "./sqlError.js"

/** The refusal that a projection declares for the constraint that a statement has violated. */
export const refusalFor = <E>(
  refusalOf: ((constraint: string, event: Event) => E | undefined) | undefined,
  event: Event,
  error: unknown
): E | undefined => {
  if (refusalOf === undefined || !(error instanceof SqlError)) return undefined
  const constraint = violatedConstraint(error)
  return constraint === undefined ? undefined : refusalOf(constraint, event)
}

/** A failed statement becomes a `StoreError`; any other failure stays. */
export const withoutSqlError = <E>(projection: string, event: Event, error: E): Exclude<E, SqlError> | StoreError =>
  error instanceof SqlError ? fromProjection(projection, event, error) : (error as Exclude<E, SqlError>)

/**
 * Names projection and event in a `StoreError`. One that names an aggregate already is of a commit inside the projection, unless it is of
 * the same event, and stays.
 */
export const located = <E>(projection: string, event: Event, error: E): E | StoreError =>
  error instanceof StoreError &&
  error.projection === undefined &&
  (error.aggregateId === undefined ||
    (error.aggregateId === event.aggregateId && (error.sequence ?? event.sequence) === event.sequence))
    ? new StoreError({
        ...error,
        projection,
        aggregateId: event.aggregateId,
        sequence: event.sequence,
        type: event.type
      })
    : error
