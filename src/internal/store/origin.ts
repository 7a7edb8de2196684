/**
 * Which aggregate an event belongs to: how projections and subscriptions find their events, and the ids that handlers
 * receive.
 */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Schema from "effect/Schema"
import { type Envelope, type Event, identityOf, type StreamIds } from "../../Event.js"
import type { Projection } from "../../Projection.js"
import { StoreError } from "../../StoreError.js"
import { historyProblem } from "../codec/eventHistory.js"
import { type IdSchema, idProblemBy } from "../codec/ids.js"

/**
 * Whether an event of that stream is of the origin. An aggregate with plain ids takes every stream, because no stream
 * names its kind.
 */
export const isOf = (origin: Projection.Origin | undefined, aggregateId: string): boolean => {
  const kind = kindOf(origin)
  return kind === undefined || (aggregateId.charAt(kind.length) === "/" && aggregateId.startsWith(kind))
}

/** The kind of all events of the origin, if they have one. */
export const kindOf = (origin: Projection.Origin | undefined): string | undefined =>
  typeof origin === "object" && origin.streams === "byKind" ? origin.kind : undefined

/** The event with the identity of its aggregate. */
export const envelopeOf = (event: Event): Envelope =>
  isEnvelope(event) ? event : { ...event, ...identityOf(event.aggregateId) }

/** The event of an aggregate with plain ids: its id is the id of its stream. */
export const withOwnIds = <E extends Event>(event: E): E & Envelope => ({ ...event, kind: "", id: event.aggregateId })

/**
 * The projection of that aggregate, or of all. One of an aggregate with plain ids receives its events with these ids.
 */
export const bindTo = <E, R>(origin: Projection.Origin, projection: Projection<E, R>): Projection.Bound<E, R> => {
  if (origin === "all") return { ...projection, of: origin }
  // Callers pass the aggregate itself, too.
  const of = originOf(origin)
  if (of.streams !== "plain") return { ...projection, of }
  const { refusalOf } = projection
  const refusals = {
    refusalOf: refusalOf && ((constraint: string, event: Event) => refusalOf(constraint, withOwnIds(event)))
  }
  if (projection.project === undefined) {
    const { statements } = projection
    return { ...projection, of, ...refusals, statements: (event) => statements(withOwnIds(event)) }
  }
  const { project } = projection
  return { ...projection, of, ...refusals, project: (event) => project(withOwnIds(event)) }
}

/**
 * Throws a `TypeError` where the origin is an aggregate, or has its schema of events, and the projection's schema lacks the
 * history of that.
 */
export const checkHistory = (
  origin: Projection.Origin | { readonly name: string; readonly events: Schema.Schema.Any },
  { events, name, schema }: Pick<Projection.Any, "events" | "name" | "schema">
): void => {
  // Callers pass the aggregate itself, too.
  if (typeof origin !== "object" || !("events" in origin) || !Schema.isSchema(origin.events)) return
  if (schema === undefined || events === undefined) return
  const problem = historyProblem(origin.events, schema, events)
  if (problem === undefined) return
  throw new TypeError(
    `projection ${JSON.stringify(name)} ${problem}, unlike the events of ${origin.name}: give both the same schema of events`
  )
}

/** The origin of the events of an aggregate, without the rest of it. */
export const originOf = ({ kind, name, streams }: Exclude<Projection.Origin, "all">): Projection.Origin & object => ({
  name,
  kind,
  streams
})

/**
 * Adds a check of ids to the decoder of an aggregate's events. Handlers get ids of the aggregate's type, so an event
 * with another id, which was stored before the aggregate had the schema, fails as an unreadable one.
 */
export const checkingIds = <A>(
  { id: schema, name, streams }: AggregateIds,
  where: { readonly operation: string; readonly projection?: string },
  decode: (stored: Event) => Either.Either<A, StoreError>
): ((stored: Event) => Either.Either<A, StoreError>) => {
  const idProblem = idProblemBy(schema)
  if (idProblem === undefined) return decode
  return (stored) => {
    const id = streams === "plain" ? stored.aggregateId : identityOf(stored.aggregateId).id
    const problem = idProblem(id)
    return problem === undefined ? decode(stored) : Either.left(badId(where, stored, `${name}: ${problem}`))
  }
}

/**
 * Adds the check of ids to projections that an aggregate has, or that are bound to it. A rebuild and a subscription run
 * them for events that are stored already. One that is of all aggregates stays as it is.
 */
export const withIdsOf = <E, R>(
  aggregate: AggregateIds,
  projections: ReadonlyArray<Projection.Bound<E, R>>
): ReadonlyArray<Projection.Bound<E, R>> =>
  idProblemBy(aggregate.id) === undefined
    ? projections
    : projections.map((projection) => (projection.of === "all" ? projection : withIds(aggregate, projection)))

/** The aggregate, if it says which ids it has. */
export const hasIds = (origin: object): origin is AggregateIds => "id" in origin && Schema.isSchema(origin.id)

// --- internal ---

/** The ids of an aggregate, and the names of its streams. */
interface AggregateIds {
  readonly id: IdSchema
  readonly name: string
  readonly streams: StreamIds
}

const withIds = <E, R>(aggregate: AggregateIds, projection: Projection.Bound<E, R>): Projection.Bound<E, R> => {
  const { events, name, of } = projection
  const checkId = checkingIds(aggregate, { operation: `Projection ${name}`, projection: name }, Either.right)
  const checked = <A>(event: Event, run: (event: Event) => Effect.Effect<A, E, R>): Effect.Effect<A, E, R> => {
    if (!(events === undefined || events.includes(event.type)) || !isOf(of, event.aggregateId)) return run(event)
    // The types of all callers have `StoreError`.
    return Either.match(checkId(event), { onLeft: (error) => Effect.fail(error as E), onRight: () => run(event) })
  }
  if (projection.project === undefined) {
    const { statements } = projection
    return { ...projection, statements: (event) => checked(event, statements) }
  }
  const { project } = projection
  return { ...projection, project: (event) => checked(event, project) }
}

const badId = (
  where: { readonly operation: string; readonly projection?: string },
  { aggregateId, sequence, type }: Event,
  why: string
): StoreError =>
  new StoreError({
    ...where,
    reason: "UnreadableEvent",
    description: `the id of its aggregate is no id of ${why}`,
    aggregateId,
    sequence,
    type
  })

const isEnvelope = (event: Event): event is Envelope => "kind" in event && "id" in event
