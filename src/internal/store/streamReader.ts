/**
 * How aggregates read streams: by the store's own short way where it has one, or by the operations of the port.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { type Event, maxSequence as last } from "../../Event.js"
import type { Snapshot } from "../../Snapshot.js"
import type { StoreAdapterService } from "../../StoreAdapter.js"
import type { StoreError, ValidationError } from "../../StoreError.js"

/** Some events of one aggregate, in order. */
export interface Stream {
  /** To be asked for once: they may be put together only then, while the store is at the next ones. */
  readonly events: () => ReadonlyArray<Event>
  /** The sequence of the last of them, if there may be more after it. */
  readonly moreAfter: number | undefined
}

/** Those that are at hand. */
export const streamOf = (events: ReadonlyArray<Event>, more: boolean): Stream => ({
  events: () => events,
  moreAfter: more ? events.at(-1)?.sequence : undefined
})

export interface StreamReader {
  /** So many events at most, from a sequence on. */
  readonly events: (
    id: string,
    minSequence: number,
    limit: number
  ) => Effect.Effect<Stream, ValidationError | StoreError>

  /**
   * The newest snapshot up to a sequence, and so many events, up to that sequence too: from the one that the snapshot was made at, or from
   * the first where there is no snapshot.
   */
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
    Effect.map(store.getEvents(id, minSequence, { maxSequence: Math.min(minSequence + limit - 1, last) }), (found) =>
      streamOf(found, found.length >= limit)
    )
  return {
    events,
    fromSnapshot: (id, maxSequence, limit) =>
      Effect.flatMap(store.getSnapshot(id, 1, { maxSequence }), (snapshot) => {
        const first = Option.match(snapshot, { onNone: () => 1, onSome: ({ sequence }) => sequence })
        return first > maxSequence
          ? Effect.succeed({ ...streamOf([], false), snapshot })
          : Effect.map(events(id, first, Math.min(limit, maxSequence - first + 1)), (stream) => ({
              ...stream,
              snapshot
            }))
      })
  }
}
