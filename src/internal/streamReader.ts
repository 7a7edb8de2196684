/**
 * How aggregates read streams: by the store's own short way where it has one, or by the operations of the port.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { type Event, maxSequence as last } from "../Event.js"
import type { Snapshot } from "../Snapshot.js"
import type { StoreAdapterService } from "../StoreAdapter.js"
import type { StoreError, ValidationError } from "../StoreError.js"

/** Some events of one aggregate, in order, and whether there may be more after them. */
export interface Stream {
  readonly events: ReadonlyArray<Event>
  readonly more: boolean
}

export interface StreamReader {
  /** So many events at most, from a sequence on. */
  readonly events: (
    id: string,
    minSequence: number,
    limit: number
  ) => Effect.Effect<Stream, ValidationError | StoreError>

  /** The newest snapshot up to a sequence, and so many events after it, up to that sequence too. */
  readonly fromSnapshot: (
    id: string,
    maxSequence: number,
    limit: number
  ) => Effect.Effect<Stream & { readonly snapshot: Option.Option<Snapshot> }, ValidationError | StoreError>
}

/** A store that is wrapped, by `{ ...store, getEvents }`, is another object: it is read by what it has now. */
export const streamReaderOf = (store: StoreAdapterService): StreamReader => shortWays.get(store) ?? byThePort(store)

/** Says that the store has a short way. */
export const provideStreamReader = (store: StoreAdapterService, reader: StreamReader): void => {
  shortWays.set(store, reader)
}

// --- internal ---

const shortWays = new WeakMap<StoreAdapterService, StreamReader>()

const byThePort = (store: StoreAdapterService): StreamReader => {
  const events: StreamReader["events"] = (id, minSequence, limit) =>
    Effect.map(store.getEvents(id, minSequence, { maxSequence: Math.min(minSequence + limit - 1, last) }), (found) => ({
      events: found,
      more: found.length >= limit
    }))
  return {
    events,
    fromSnapshot: (id, maxSequence, limit) =>
      Effect.flatMap(store.getSnapshot(id, 1, { maxSequence }), (snapshot) => {
        const after = Option.match(snapshot, { onNone: () => 0, onSome: ({ sequence }) => sequence })
        return after >= maxSequence
          ? Effect.succeed({ snapshot, events: [], more: false })
          : Effect.map(events(id, after + 1, Math.min(limit, maxSequence - after)), (stream) => ({
              ...stream,
              snapshot
            }))
      })
  }
}
