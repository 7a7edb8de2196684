/**
 * Which events concern projections, and running projections for one.
 */
import { SqlError } from "@effect/sql/SqlError"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { Event } from "../Event.js"
import type { Projection } from "../Projection.js"
import { StoreError } from "../StoreError.js"
import { located } from "./projectionFailure.js"
import { isTransient } from "./sqlError.js"

/** Whether a projection has anything to do for an event of that type. */
export const concerns = ({ events }: Pick<Projection.Any, "events">, type: string): boolean =>
  events === undefined || events.includes(type)

/** The types that projections are about; none where one of them is about all. */
export const typesOf = (
  projections: ReadonlyArray<Pick<Projection.Any, "events">>
): { readonly types: ReadonlyArray<string> } | undefined => {
  const types = new Set<string>()
  for (const { events } of projections) {
    if (events === undefined) return undefined
    for (const type of events) types.add(type)
  }
  return { types: [...types] }
}

/**
 * Runs a projection for an event. A `StoreError` gets their names; every other failure stays what it is, so the span and the log have the
 * names.
 */
export const projectEvent = <E, R>(projection: Projection<E, R>, event: Event): Effect.Effect<void, E, R> =>
  Effect.catchAllCause(
    Effect.suspend(() => projection.project(event)),
    (cause) =>
      Cause.isInterruptedOnly(cause)
        ? Effect.failCause(cause)
        : Effect.zipRight(
            report(projection.name, event, cause),
            // A `StoreError` stays one.
            Effect.failCause(Cause.map(cause, (error) => located(projection.name, event, error) as E))
          )
  )

/** Projects an event by each projection that it concerns, one after the other. */
export const projectBy =
  <E, R>(projections: ReadonlyArray<Projection<E, R>>) =>
  (event: Event): Effect.Effect<void, E, R> =>
    Effect.forEach(
      projections.filter((projection) => concerns(projection, event.type)),
      (projection) => projectEvent(projection, event),
      { discard: true }
    )

/**
 * What it means that a commit failed after its projections had succeeded. A constraint that was deferred to COMMIT names no statement,
 * so it is the refusal of the first projection and event that declare one. A constraint that none declares is still of the projection and
 * the event, where there is only one.
 */
export const atCommit = <E, E2>(
  projections: ReadonlyArray<Pick<Projection<E, unknown>, "events" | "name" | "refusalOf">>,
  events: () => ReadonlyArray<Event>,
  error: E2
): E | E2 | StoreError => {
  if (!(error instanceof StoreError) || error.reason !== "Constraint" || isLocated(error)) return error
  const all = events()
  const concerned = projections.flatMap((projection) =>
    all.filter(({ type }) => concerns(projection, type)).map((event) => [projection, event] as const)
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

/** Whether it is the failure of a projection, or of a commit inside of one. */
const isLocated = ({ aggregateId, projection }: StoreError): boolean =>
  projection !== undefined || aggregateId !== undefined

/**
 * Names a failed projection and its event in the current span and in the log. A refusal is no news, and what may not happen again is retried,
 * so those are logged at the level of debugging.
 */
const report = (
  projection: string,
  { aggregateId, sequence, type }: Event,
  cause: Cause.Cause<unknown>
): Effect.Effect<void> => {
  const names = {
    "projection.name": projection,
    "event.type": type,
    "event.sequence": sequence,
    "aggregate.id": aggregateId
  }
  const message = `projection ${JSON.stringify(projection)} failed at event ${sequence} of aggregate ${JSON.stringify(aggregateId)}, of type ${JSON.stringify(type)}`
  const error = Option.getOrUndefined(Cause.failureOption(cause))
  const log = Cause.isDie(cause)
    ? Effect.logError(message, cause)
    : error instanceof SqlError && !isTransient(error)
      ? Effect.logWarning(message, cause)
      : Effect.logDebug(message, cause)
  return Effect.zipRight(Effect.annotateCurrentSpan(names), Effect.annotateLogs(log, names))
}
