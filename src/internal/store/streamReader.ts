/**
 * How aggregates read streams: by the reader of the store if it has one, else by the operations of the port.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { type Event, maxSequence as last } from "../../Event.js"
import type { EventPage, ReplicaReader, StoreAdapterService, StoreReads, StreamReads } from "../../StoreAdapter.js"
import type { StoreError, ValidationError } from "../../StoreError.js"

/** A page of decoded events. `more` says whether events may follow the last one. */
export const eventPage = (events: ReadonlyArray<Event>, more: boolean): EventPage => ({
  events: () => events,
  moreAfter: more ? events.at(-1)?.sequence : undefined
})

/** The reader of the store, unless the store is a wrapper that replaces an operation that the reader stands for. */
export const streamReaderOf = (store: StoreReads): StreamReads<ValidationError | StoreError> => {
  const { getEvents, getSnapshot, streamReader } = store
  return streamReader?.replaces.getEvents === getEvents && streamReader.replaces.getSnapshot === getSnapshot
    ? streamReader
    : readsByPort(store)
}

/** The replica of the store, unless the store is a wrapper that replaces an operation that the replica stands for. */
export const replicaOf = ({ getEvents, getSnapshot, replica }: StoreAdapterService): ReplicaReader | undefined =>
  replica?.replaces.getEvents === getEvents && replica.replaces.getSnapshot === getSnapshot ? replica : undefined

// --- internal ---

const readsByPort = (store: StoreReads): StreamReads<ValidationError | StoreError> => {
  const page: StreamReads<ValidationError | StoreError>["page"] = (id, minSequence, limit) =>
    Effect.map(store.getEvents(id, minSequence, { maxSequence: Math.min(minSequence + limit - 1, last) }), (found) =>
      eventPage(found, found.length >= limit)
    )
  return {
    exists: (id) => Effect.map(store.getEvents(id, 1, { maxSequence: 1 }), ({ length }) => length > 0),
    page,
    fromSnapshot: (id, maxSequence, limit) =>
      Effect.flatMap(store.getSnapshot(id, 1, { maxSequence }), (snapshot) => {
        const first = Option.match(snapshot, { onNone: () => 1, onSome: ({ sequence }) => sequence })
        return first > maxSequence
          ? Effect.succeed({ ...eventPage([], false), snapshot })
          : Effect.map(page(id, first, Math.min(limit, maxSequence - first + 1)), (found) => ({ ...found, snapshot }))
      })
  }
}
