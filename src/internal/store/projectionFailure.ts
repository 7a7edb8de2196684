/**
 * Maps the failures of projections: to the refusal that the projection declares for a violated constraint, or to a
 * `StoreError` that names projection and event.
 */
import { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import type * as Schema from "effect/Schema"
import type { Envelope, Event } from "../../Event.js"
import { StoreError } from "../../StoreError.js"
import { makeEventCodec, type Tagged, tagOf } from "../codec/eventCodec.js"
import type { Parts } from "../codec/storedVersions.js"
import { fromProjection, fromSqlError, violatedConstraint } from "../runtime/sqlError.js"
import { quotedTable, type TableOptions } from "./declaredTables.js"
import { handledParts } from "./handledParts.js"
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

/** Maps a `SqlError` to a `StoreError`. Any other failure stays as it is. */
export const withoutSqlError = <E>(projection: string, event: Event, error: E): Exclude<E, SqlError> | StoreError =>
  error instanceof SqlError ? fromProjection(projection, event, error) : (error as Exclude<E, SqlError>)

/** The refusals of a projection, with a `StoreError` for every `SqlError` among them. */
export const convertRefusals =
  <E>(refusalOf: (constraint: string, event: Event) => E | undefined, name: string) =>
  (constraint: string, event: Event): Exclude<E, SqlError> | StoreError | undefined => {
    const refusal = refusalOf(constraint, event)
    return refusal === undefined ? undefined : withoutSqlError<E>(name, event, refusal)
  }

/**
 * Adds the names of projection and event to a `StoreError`. An error that names another aggregate or event is of a
 * commit inside the projection, and stays as it is.
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

/**
 * If a statement failed because a table that the projection owns is missing, or a column of it, the failure gets the
 * hint how it is created.
 */
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

/** Decodes the events of a projection. A failure names the projection. */
export const decodingFor = <A extends Tagged, I extends Tagged>(
  projection: string,
  events: Schema.Schema<A, I>
): Decode<A> => {
  const codec = makeEventCodec(events)
  return (stored) =>
    Either.mapLeft(codec.decode(`Projection ${projection}`, stored), (error) => located(projection, stored, error))
}

type Decode<A> = (stored: Event) => Either.Either<A | Parts<A>, StoreError>

/** The refusal of a violated constraint at an event that a stored event is read as. */
export type RefusalOfPart<A, E> = (constraint: string, event: A, envelope: Envelope) => E | StoreError | undefined

/**
 * Makes the function that calls the handler of a constraint. If a handler returns anything but a tagged error, the result
 * is a `StoreError` that says so.
 */
export const refusalOfPart = <A extends Tagged, E>(
  projection: string,
  onConstraint: Readonly<Record<string, unknown>> | undefined
): RefusalOfPart<A, E> | undefined => {
  if (onConstraint === undefined) return undefined
  const handlers = new Map(Object.entries(onConstraint))
  return (constraint, event, envelope) => {
    const handler = handlers.get(constraint) as ((event: A, envelope: Envelope) => E | undefined) | undefined
    const refusal = handler?.(event, envelope) ?? undefined
    return refusal === undefined || isRefusal(refusal) ? refusal : noRefusal(projection, constraint, envelope, refusal)
  }
}

/**
 * Makes `refusalOf` of a projection: it decodes the event and calls the handler of the constraint. Of the parts of a split
 * event, the first that has a refusal gives it.
 */
export const refusalsOf =
  <A extends Tagged, E>(
    refusalOf: RefusalOfPart<A, E>,
    handled: ReadonlySet<string>,
    handlers: ReadonlyMap<string, unknown>,
    decode: Decode<A>
  ) =>
  (constraint: string, stored: Event): E | StoreError | undefined => {
    if (!handled.has(stored.type)) return undefined
    const read = decode(stored)
    if (Either.isLeft(read)) return undefined
    for (const { envelope, event } of handledParts(handlers, read.right, envelopeOf(stored))) {
      const refusal = refusalOf(constraint, event, envelope)
      if (refusal !== undefined) return refusal
    }
    return undefined
  }

// --- internal ---

/** The `SQLSTATE` of a missing table. */
const undefinedTable = "42P01"

/** The `SQLSTATE` of a column that is not there. */
const undefinedColumn = "42703"

/** The name of a declared table as the catalogue has it. */
const bareName = (table: string): string => quotedTable(table).slice(1, -1).replaceAll('""', '"')

/** Whether the text contains the name as a whole word. The quotes around it depend on the language of the server. */
const isNamedIn = (text: string, name: string): boolean => {
  const escaped = name.replace(/[\^$.*+?()[\]{}|/]/g, "\\$&")
  return new RegExp(`(?<![\\p{L}\\p{N}_$])${escaped}(?![\\p{L}\\p{N}_$])`, "u").test(text)
}

/** Instances of `Schema.TaggedError` are effects and refusals. Any other effect has not run, so it is no refusal. */
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
