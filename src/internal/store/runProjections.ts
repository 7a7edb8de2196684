/**
 * Which events a projection handles, and how projections run: in a commit, in a subscription and in a rebuild.
 */
import { SqlError } from "@effect/sql/SqlError"
import type { Statement } from "@effect/sql/Statement"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { Event, StoredEvent } from "../../Event.js"
import type { Projection, SqlProjection } from "../../Projection.js"
import type { ProjectionWork } from "../../StoreAdapter.js"
import { StoreError } from "../../StoreError.js"
import { inStoreTransaction } from "../runtime/ambientTransaction.js"
import { followingEvents } from "../runtime/commandCause.js"
import { fromProjection, isTransientSqlError, transientReasons } from "../runtime/sqlError.js"
import { isOf, kindOf } from "./origin.js"
import { located, refusalFor, withMissingTable } from "./projectionFailure.js"
import { decodeEvent } from "./storedRecord.js"

/** The part of a projection or a subscription that says which events it handles. */
export type Concern = Pick<Projection.Any, "events" | "of">

/** Whether the type and the aggregate of the event are among those of the projection. */
export const handles = ({ events, of }: Concern, { aggregateId, type }: Pick<Event, "aggregateId" | "type">): boolean =>
  (events === undefined || events.includes(type)) && isOf(of, aggregateId)

/** A filter for the events that at least one of them handles. It may let through more events: `handles` decides. */
export const filterOf = (
  concerned: ReadonlyArray<Concern>
): { readonly types: ReadonlyArray<string> | undefined; readonly kinds: ReadonlyArray<string> | undefined } => ({
  types: unionOf(concerned.map(({ events }) => events)),
  kinds: unionOf(
    concerned.map(({ of }) => {
      const kind = kindOf(of)
      return kind === undefined ? undefined : [kind]
    })
  )
})

/** How projections run. */
export interface ProjectOptions {
  /** Whether a failure that is not retried ends the run, as in a rebuild. Such a failure is logged as an error. */
  readonly endsRun?: boolean | undefined
}

/** Runs a projection for an event: its effect, or its statements. */
export const project = <E, R>(projection: Projection<E, R>, event: Event): Effect.Effect<void, E | StoreError, R> =>
  projection.project === undefined ? runStatements(projection, event) : projection.project(event)

/**
 * Runs a projection for an event. A `StoreError` gets the names of both. Any other failure stays as it is, so the names
 * go to the span and to the log.
 */
export const projectEvent = <E, R>(
  projection: Projection<E, R>,
  event: Event,
  options?: ProjectOptions
): Effect.Effect<void, E, R> =>
  Effect.catchAllCause(
    Effect.suspend(() => project(projection, event)),
    (cause) =>
      Cause.isInterruptedOnly(cause)
        ? Effect.failCause(cause as Cause.Cause<never>)
        : Effect.zipRight(
            report(projection, event, cause, options?.endsRun === true),
            // The failure of a statement is a `StoreError`, which the types of all callers have.
            Effect.failCause(
              Cause.map(cause, (error) => located(projection.name, event, withMissingTable(projection, error)) as E)
            )
          )
  )

/** Runs the projections that handle the event, one after the other. */
export const runProjections =
  <E, R>(projections: ReadonlyArray<Projection<E, R>>, options?: ProjectOptions) =>
  (event: Event): Effect.Effect<void, E, R> =>
    Effect.forEach(
      projections.filter((projection) => handles(projection, event)),
      (projection) => projectEvent(projection, event, options),
      { discard: true }
    )

/**
 * The projections of one commit, for `EncodedStore.appendWith`: they share one transaction, so no two run concurrently.
 */
export const projectionWork = <E, R>(
  stored: ReadonlyArray<StoredEvent>,
  projections: ReadonlyArray<Projection<E, R>>
): ProjectionWork<E, R> => ({
  project: inStoreTransaction(
    followingEvents((follow) => {
      const events = stored.map(decodeEvent)
      const [projection, ...others] = projections
      const [event, ...further] = events
      // The usual commit has one event and one projection, and needs no loop.
      if (projection !== undefined && event !== undefined && others.length === 0 && further.length === 0) {
        follow(event)
        return projectEvent(projection, event)
      }
      return Effect.forEach(
        projections,
        (projection) =>
          Effect.forEach(
            events.filter((event) => handles(projection, event)),
            (event) => {
              follow(event)
              return projectEvent(projection, event)
            },
            { discard: true }
          ),
        { discard: true }
      )
    })
  ),
  statements: projections.every(isSqlProjection) ? statementsOf(stored, projections) : undefined
})

/**
 * Maps the failure of a commit whose projections had succeeded. A deferred constraint fails at COMMIT, which names no
 * statement. So the first projection and event that declare a refusal for it give the refusal. Without one, the
 * `StoreError` gets the names of projection and event where there is only one.
 */
export const atCommit = <E, E2>(
  projections: ReadonlyArray<Pick<Projection<E, unknown>, "events" | "name" | "of" | "refusalOf">>,
  events: () => ReadonlyArray<Event>,
  error: E2
): E | E2 | StoreError => {
  if (!(error instanceof StoreError) || error.reason !== "Constraint" || isLocated(error)) return error
  const all = events()
  const concerned = projections.flatMap((projection) =>
    all.filter((event) => handles(projection, event)).map((event) => [projection, event] as const)
  )
  const { constraint } = error
  if (constraint !== undefined) {
    for (const [projection, event] of concerned) {
      const refusal = projection.refusalOf?.(constraint, event)
      if (refusal !== undefined) return refusal
    }
  }
  const [first, ...others] = concerned
  if (first === undefined || projections.length > 1) return error
  const [{ name }, event] = first
  return others.length === 0 ? located(name, event, error) : new StoreError({ ...error, projection: name })
}

/** Whether the projection is statements and nothing else. */
export const isSqlProjection = <E, R>(projection: Projection<E, R>): projection is SqlProjection<E, R> =>
  projection.statements !== undefined

// --- internal ---

const runStatements = <E, R>(
  { name, refusalOf, statements }: SqlProjection<E, R>,
  event: Event
): Effect.Effect<void, E | StoreError, R> =>
  Effect.flatMap(statements(event), (all) =>
    Effect.mapError(
      Effect.forEach(all, (statement) => statement, { discard: true }),
      (error) => refusalFor(refusalOf, event, error) ?? fromProjection(name, event, error)
    )
  )

const statementsOf = <E, R>(
  stored: ReadonlyArray<StoredEvent>,
  projections: ReadonlyArray<SqlProjection<E, R>>
): Effect.Effect<ReadonlyArray<Statement<unknown>>, E, R> =>
  Effect.suspend(() => {
    const events = stored.map(decodeEvent)
    const each = projections.flatMap((projection) =>
      events.filter((event) => handles(projection, event)).map((event) => projection.statements(event))
    )
    const [only, ...others] = each
    return only !== undefined && others.length === 0 ? only : Effect.map(Effect.all(each), (lists) => lists.flat())
  })

/** The names of all lists, or undefined where one of the lists is. */
const unionOf = (lists: ReadonlyArray<ReadonlyArray<string> | undefined>): ReadonlyArray<string> | undefined => {
  const names = new Set<string>()
  for (const list of lists) {
    if (list === undefined) return undefined
    for (const name of list) names.add(name)
  }
  return [...names]
}

/** Whether the error names a projection, or the aggregate of a commit inside a projection. */
const isLocated = ({ aggregateId, projection }: StoreError): boolean =>
  projection !== undefined || aggregateId !== undefined

/**
 * Names a failed projection and its event in the current span and in the log. A refusal is an expected result and a
 * transient failure is retried, so both are logged at debug level. A failure that ends a rebuild is logged as an error,
 * also if it is a refusal.
 */
const report = (
  { name, version }: Pick<Projection, "name" | "version">,
  { aggregateId, sequence, type }: Event,
  cause: Cause.Cause<unknown>,
  endsRun: boolean
): Effect.Effect<void> => {
  const names = {
    "projection.name": name,
    "event.type": type,
    "event.sequence": sequence,
    "aggregate.id": aggregateId
  }
  const which = `projection ${JSON.stringify(name)}${endsRun && version !== undefined ? ` of version ${version}` : ""}`
  const message = `${which} failed at event ${sequence} of aggregate ${JSON.stringify(aggregateId)}, of type ${JSON.stringify(type)}`
  const error = Option.getOrUndefined(Cause.failureOption(cause))
  const log = Cause.isDie(cause)
    ? Effect.logError(message, cause)
    : endsRun && !isRetried(error)
      ? Effect.logError(`a rebuild ends, because ${message}`, cause)
      : error instanceof SqlError && !isTransientSqlError(error)
        ? Effect.logWarning(message, cause)
        : Effect.logDebug(message, cause)
  return Effect.zipRight(Effect.annotateCurrentSpan(names), Effect.annotateLogs(log, names))
}

/** Whether a rebuild retries after the failure. */
const isRetried = (error: unknown): boolean =>
  error instanceof SqlError
    ? isTransientSqlError(error)
    : error instanceof StoreError && transientReasons.has(error.reason)
