/**
 * Which events concern projections, and running projections for one.
 */
import { SqlError } from "@effect/sql/SqlError"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { Event } from "../../Event.js"
import type { Projection } from "../../Projection.js"
import { StoreError } from "../../StoreError.js"
import { isTransientSqlError, transientReasons } from "../runtime/sqlError.js"
import { isOf, kindOf } from "./origin.js"
import { located, withMissingTable } from "./projectionFailure.js"

/** What tells which events concern a projection, or a part of a subscription. */
export type Concern = Pick<Projection.Any, "events" | "of">

/** Whether a projection has anything to do for the event: its type and its aggregate are the projection's. */
export const handles = ({ events, of }: Concern, { aggregateId, type }: Pick<Event, "aggregateId" | "type">): boolean =>
  (events === undefined || events.includes(type)) && isOf(of, aggregateId)

/** The filter that lets through whatever concerns one of them. It may let through more: `concerns` tells exactly. */
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

/** How projections are run. */
export interface ProjectOptions {
  /** Whether they are run by a rebuild, which ends by every failure that it does not retry, so that it is logged as an error. */
  readonly endsRun?: boolean | undefined
}

/**
 * Runs a projection for an event. A `StoreError` gets their names; every other failure stays what it is, so the span and the log have the
 * names.
 */
export const projectEvent = <E, R>(
  projection: Projection<E, R>,
  event: Event,
  options?: ProjectOptions
): Effect.Effect<void, E, R> =>
  Effect.catchAllCause(
    Effect.suspend(() => projection.project(event)),
    (cause) =>
      Cause.isInterruptedOnly(cause)
        ? Effect.failCause(cause)
        : Effect.zipRight(
            report(projection, event, cause, options?.endsRun === true),
            // A `StoreError` stays one.
            Effect.failCause(
              Cause.map(cause, (error) => located(projection.name, event, withMissingTable(projection, error)) as E)
            )
          )
  )

/** Projects an event by each projection that it concerns, one after the other. */
export const runProjections =
  <E, R>(projections: ReadonlyArray<Projection<E, R>>, options?: ProjectOptions) =>
  (event: Event): Effect.Effect<void, E, R> =>
    Effect.forEach(
      projections.filter((projection) => handles(projection, event)),
      (projection) => projectEvent(projection, event, options),
      { discard: true }
    )

/**
 * What it means that a commit failed after its projections had succeeded. A constraint that was deferred to COMMIT names no statement,
 * so it is the refusal of the first projection and event that declare one. A constraint that none declares is still of the projection and
 * the event, where there is only one.
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

// --- internal ---

/** All names of the lists; none where one of them is about all. */
const unionOf = (lists: ReadonlyArray<ReadonlyArray<string> | undefined>): ReadonlyArray<string> | undefined => {
  const names = new Set<string>()
  for (const list of lists) {
    if (list === undefined) return undefined
    for (const name of list) names.add(name)
  }
  return [...names]
}

/** Whether it is the failure of a projection, or of a commit inside of one. */
const isLocated = ({ aggregateId, projection }: StoreError): boolean =>
  projection !== undefined || aggregateId !== undefined

/**
 * Names a failed projection and its event in the current span and in the log. A refusal of a command is no news, and a transient failure
 * is retried, so those are logged at the level of debugging. A failure that ends a rebuild is an error, a refusal too.
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

/** Whether a rebuild retries it. */
const isRetried = (error: unknown): boolean => error instanceof StoreError && transientReasons.has(error.reason)
