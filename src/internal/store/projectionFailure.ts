/**
 * What a failure of a projection means: a refusal where the projection declares the violated constraint, else a `StoreError` that names
 * projection and event.
 */
import { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import type * as Schema from "effect/Schema"
import type { Envelope, Event } from "../../Event.js"
import { StoreError } from "../../StoreError.js"
import { makeEventCodec, type Tagged, tagOf } from "../codec/eventCodec.js"
import { fromProjection, fromSqlError, violatedConstraint } from "../runtime/sqlError.js"
import { quotedTable, type TableOptions } from "./declaredTables.js"
import { envelopeOf } from "./origin.js"

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

/** Where a statement has failed because a table that the projection owns, or a column of it, is not there, the failure says how it is made. */
export const withMissingTable = <E>({ tables }: TableOptions, error: E): E | SqlError | StoreError => {
  if (tables === undefined || !(error instanceof SqlError || error instanceof StoreError)) return error
  const { code, description } = error instanceof SqlError ? fromSqlError("", "writing", error) : error
  if (code !== undefinedTable && code !== undefinedColumn) return error
  const table = Object.keys(tables).find((name) => isNamedIn(description, bareName(name)))
  // The database does not always name the table of a column.
  if (table === undefined && code === undefinedTable) return error
  const hint =
    code === undefinedTable
      ? `the projection owns ${table}: provide ProjectionTables.layer, which makes it, below the aggregate or the subscription`
      : `the projection owns ${table ?? Object.keys(tables).join(", ")}: if that is of another version, provide ProjectionTables.layer, which brings it to this one, below the aggregate or the subscription`
  return error instanceof SqlError
    ? new SqlError({ cause: error.cause, message: `${error.message}; ${hint}` })
    : new StoreError({ ...error, description: `${description}; ${hint}` })
}

/** Decodes the events of a projection; the failure names the projection. */
export const decodingFor = <A extends Tagged, I extends Tagged>(
  projection: string,
  events: Schema.Schema<A, I>
): Decode<A> => {
  const codec = makeEventCodec(events)
  return (stored) =>
    Either.mapLeft(codec.decode(`Projection ${projection}`, stored), (error) => located(projection, stored, error))
}

type Decode<A> = (stored: Event) => Either.Either<A, StoreError>

/**
 * Finds the handler of a constraint, and calls it with the decoded event; none where there are no such handlers. A handler that returns
 * anything but a tagged error leaves the violation a `StoreError`, which says so.
 */
export const refusalsOf = <A extends Tagged, E>(
  projection: string,
  handled: ReadonlyMap<string, unknown>,
  decode: Decode<A>,
  onConstraint: Readonly<Record<string, unknown>> | undefined
): ((constraint: string, stored: Event) => E | StoreError | undefined) | undefined => {
  if (onConstraint === undefined) return undefined
  const handlers = new Map(Object.entries(onConstraint))
  return (constraint, stored) => {
    const handler = handlers.get(constraint) as ((event: A, envelope: Envelope) => E | undefined) | undefined
    if (handler === undefined || !handled.has(stored.type)) return undefined
    const event = decode(stored)
    if (Either.isLeft(event)) return undefined
    const refusal = handler(event.right, envelopeOf(stored)) ?? undefined
    return refusal === undefined || isRefusal(refusal) ? refusal : noRefusal(projection, constraint, stored, refusal)
  }
}

// --- internal ---

/** The `SQLSTATE` of a table that is not there. */
const undefinedTable = "42P01"

/** The `SQLSTATE` of a column that is not there. */
const undefinedColumn = "42703"

/** The name of a declared table as the catalogue has it. */
const bareName = (table: string): string => quotedTable(table).slice(1, -1).replaceAll('""', '"')

/** Whether the text has the name, and not only as a part of a longer one. The quotes around it depend on the language. */
const isNamedIn = (text: string, name: string): boolean => {
  const escaped = name.replace(/[\^$.*+?()[\]{}|/]/g, "\\$&")
  return new RegExp(`(?<![\\p{L}\\p{N}_$])${escaped}(?![\\p{L}\\p{N}_$])`, "u").test(text)
}

/** Instances of `Schema.TaggedError` are effects; an effect that is no error has not run, so it is no refusal. */
const isRefusal = (value: unknown): boolean =>
  tagOf(value) !== undefined && (value instanceof Error || !Effect.isEffect(value))

const noRefusal = (projection: string, constraint: string, stored: Event, value: unknown): StoreError =>
  located(
    projection,
    stored,
    new StoreError({
      reason: "Constraint",
      operation: `Projection ${projection}`,
      description: `constraint ${JSON.stringify(constraint)} is violated, and its handler in onConstraint returned ${Effect.isEffect(value) ? "an effect" : `a value of type ${typeof value}`}; it must return a tagged error or undefined`,
      constraint
    })
  )
