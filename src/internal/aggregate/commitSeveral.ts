/**
 * One commit of events of several aggregates, with the projections of each. `severalCommands.ts` calls it.
 *
 * The projections of an aggregate handle its events and no other, with the services of its layer. They run aggregate by
 * aggregate, in the order of their first commands, then in the order of `projections`, then in the order of the events.
 */
import * as Effect from "effect/Effect"
import type * as Schedule from "effect/Schedule"
import type { Event } from "../../Event.js"
import type { Projection } from "../../Projection.js"
import { settleCommit } from "../runtime/retry.js"
import type { LayerContext } from "./layerContext.js"
import type { SeveralLayer } from "./member.js"

/** How events are committed. */
export interface CommitOptions {
  /** Whether the commit is a part of a transaction. Then it is not settled, and not retried. */
  readonly isInTransaction: boolean
  readonly retry: Schedule.Schedule<unknown>
  /** Maps a failure. `event` is the one at which a projection failed last. */
  readonly onFailure: (error: unknown, event: Event | undefined) => unknown
}

/**
 * Commits the events. `streams` has the layers in their order, and of each the streams of its aggregates and of their
 * receipts.
 */
export const commitSeveral = (
  events: ReadonlyArray<Event>,
  store: SeveralLayer["store"],
  streams: ReadonlyMap<SeveralLayer, ReadonlySet<string>>,
  { isInTransaction, onFailure, retry }: CommitOptions
): Effect.Effect<void, unknown> => {
  let failedAt: Event | undefined
  const note = (event: Event): void => {
    failedAt = event
  }
  const projections = [...streams].flatMap(([layer, own]) =>
    layer.projections.map((projection) => noting(projection, own, note))
  )
  const commit = [...streams.keys()].reduce(
    // A layer without projections need not have the client of its store.
    (committing, layer) => (layer.projections.length === 0 ? committing : layer.provideStore(committing)),
    store.commitAll(events, projections)
  )
  return Effect.mapError(isInTransaction ? commit : settleCommit(retry, commit), (error) => onFailure(error, failedAt))
}

/** The projection with the services of its layer. */
export const withServices = <E, R>(
  projection: Projection.Bound<E, R>,
  provide: LayerContext<R>["provide"]
): Projection.Bound<E> => {
  if (projection.project === undefined) {
    const { statements } = projection
    return { ...projection, statements: (event) => provide(statements(event)) }
  }
  const { project } = projection
  return { ...projection, project: (event) => provide(project(event)) }
}

// --- internal ---

/**
 * The projection for the events of these streams alone. Its `of` is not enough: that of an aggregate with plain ids, or
 * of `"all"`, takes the streams of other aggregates, too. It notes the event of a failure.
 */
const noting = (
  projection: Projection.Bound<unknown>,
  streams: ReadonlySet<string>,
  note: (event: Event) => void
): Projection.Bound<unknown> => {
  const { refusalOf } = projection
  const noted = <A>(event: Event, effect: Effect.Effect<A, unknown>): Effect.Effect<A, unknown> =>
    Effect.tapErrorCause(effect, () => Effect.sync(() => note(event)))
  const refusals =
    refusalOf === undefined
      ? {}
      : {
          refusalOf: (constraint: string, event: Event): unknown => {
            const refusal = streams.has(event.aggregateId) ? refusalOf(constraint, event) : undefined
            if (refusal !== undefined) note(event)
            return refusal
          }
        }
  if (projection.project === undefined) {
    const { statements } = projection
    return {
      ...projection,
      ...refusals,
      statements: (event) => (streams.has(event.aggregateId) ? noted(event, statements(event)) : Effect.succeed([]))
    }
  }
  const { project } = projection
  return {
    ...projection,
    ...refusals,
    project: (event) => (streams.has(event.aggregateId) ? noted(event, project(event)) : Effect.void)
  }
}
