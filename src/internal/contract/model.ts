/**
 * The contract as a pure value: the content of an event store, and the result of a commit. It is as simple as possible
 * and shares no code with any store, because `modelCheck` compares stores with it.
 */
import type { Event } from "../../Event.js"
import type { Snapshot } from "../../Snapshot.js"

/** The content of a store. */
export interface Model {
  readonly streams: ReadonlyMap<string, ReadonlyArray<Event>>
  readonly snapshots: ReadonlyMap<string, Snapshot>
}

export const empty: Model = { streams: new Map(), snapshots: new Map() }

/** The result of a commit: written, stored before, or refused because of one event. */
export type Outcome =
  | { readonly _tag: "Written" }
  | { readonly _tag: "Stored" }
  | { readonly _tag: "Refused"; readonly aggregateId: string; readonly sequence: number }

export const streamOf = (model: Model, aggregateId: string): ReadonlyArray<Event> =>
  model.streams.get(aggregateId) ?? []

export const isStored = (model: Model, event: Event): boolean =>
  streamOf(model, event.aggregateId)[event.sequence - 1]?.timestamp === event.timestamp

export const commit = (model: Model, events: ReadonlyArray<Event>): readonly [Outcome, Model] => {
  if (events.every((event) => isStored(model, event))) return [{ _tag: "Stored" }, model]
  const streams = new Map(model.streams)
  for (const event of events) {
    const before = streams.get(event.aggregateId) ?? []
    if (event.sequence !== before.length + 1) {
      return [{ _tag: "Refused", aggregateId: event.aggregateId, sequence: event.sequence }, model]
    }
    streams.set(event.aggregateId, [...before, event])
  }
  return [{ _tag: "Written" }, { ...model, streams }]
}

export const commitSnapshot = (model: Model, snapshot: Snapshot): Model => {
  const before = model.snapshots.get(snapshot.aggregateId)
  if (before !== undefined && before.sequence > snapshot.sequence) return model
  return { ...model, snapshots: new Map(model.snapshots).set(snapshot.aggregateId, snapshot) }
}
