/**
 * Which events concern projections, and having projections do their work for one.
 */
import * as Effect from "effect/Effect"
import type { Event } from "../Event.js"
import type { Projection } from "../Projection.js"

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

/** Projects an event by each projection that it concerns, one after the other. */
export const projectBy =
  <E, R>(projections: ReadonlyArray<Projection<E, R>>) =>
  (event: Event): Effect.Effect<void, E, R> =>
    Effect.forEach(
      projections.filter((projection) => concerns(projection, event.type)),
      (projection) => projection.project(event),
      { discard: true }
    )
