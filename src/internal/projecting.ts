/**
 * Which events concern projections, and having projections do their work for one.
 */
import * as Effect from "effect/Effect"
import type { Event } from "../Event.js"
import type { Projection } from "../Projection.js"
import { isOf, kindOf } from "./origin.js"

/** What tells which events concern a projection, or a part of a subscription. */
export type Concern = Pick<Projection.Any, "events" | "of">

/** Whether a projection has anything to do for the event: its type and its aggregate are the projection's. */
export const concerns = (
  { events, of }: Concern,
  { aggregateId, type }: Pick<Event, "aggregateId" | "type">
): boolean => (events === undefined || events.includes(type)) && isOf(of, aggregateId)

/** The filter that lets through whatever concerns one of them. It may let through more: `concerns` tells exactly. */
export const filterOf = (
  concerned: ReadonlyArray<Concern>
): { readonly types: ReadonlyArray<string> | undefined; readonly aggregates: ReadonlyArray<string> | undefined } => ({
  types: unionOf(concerned.map(({ events }) => events)),
  aggregates: unionOf(
    concerned.map(({ of }) => {
      const kind = kindOf(of)
      return kind === undefined ? undefined : [kind]
    })
  )
})

/** Projects an event by each projection that it concerns, one after the other. */
export const projectBy =
  <E, R>(projections: ReadonlyArray<Projection<E, R>>) =>
  (event: Event): Effect.Effect<void, E, R> =>
    Effect.forEach(
      projections.filter((projection) => concerns(projection, event)),
      (projection) => projection.project(event),
      { discard: true }
    )

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
