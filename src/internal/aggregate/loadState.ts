/**
 * Loads the state of an aggregate: from its snapshot on, from a cached state on, or up to a sequence.
 *
 * `commandHandler.ts` and `service.ts` call it. A state is folded from the events of its stream without a gap: a
 * missing event, or one that can't be decoded, is `UnreadableEvent`. A snapshot is used only if the event that it was
 * made at is stored with the same timestamp.
 */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type { Root } from "../../Aggregate.js"
import { type Event, maxSequence } from "../../Event.js"
import type { Snapshot } from "../../Snapshot.js"
import type { EventPage, StoreReads } from "../../StoreAdapter.js"
import { StoreError, type ValidationError } from "../../StoreError.js"
import type { Timestamp } from "../../Timestamp.js"
import type { Tagged } from "../codec/eventCodec.js"
import type { Unusable } from "../codec/stateCodec.js"
import { Parts } from "../codec/storedVersions.js"
import { macrotask } from "../runtime/macrotask.js"
import { streamReaderOf } from "../store/streamReader.js"
import type { AggregateDefinition } from "./definition.js"

/** A state, with the stream and the sequence that it belongs to. */
export interface VersionedState<out State> extends Root<State> {
  readonly streamId: string
  /** The timestamp of the last event. There is none at sequence 0. */
  readonly timestamp: Timestamp | undefined
}

/** The state before the first event. */
export const initial = <State, A extends Tagged>(
  { initialState, streams }: AggregateDefinition<State, A>,
  id: string
): VersionedState<State> => ({
  streamId: streams.streamId(id),
  id,
  sequence: 0,
  state: initialState,
  timestamp: undefined
})

/** Reads the state of an aggregate from the store, as it is after its last event, or after the event `upTo`. */
export const load = <State, A extends Tagged>(
  definition: AggregateDefinition<State, A>,
  store: StoreReads,
  id: string,
  upTo: number = maxSequence
): Effect.Effect<VersionedState<State>, ValidationError | StoreError> => {
  const root = initial(definition, id)
  return Effect.flatMap(streamReaderOf(store).fromSnapshot(root.streamId, upTo, firstPage), (stream) => {
    if (Option.isNone(stream.snapshot)) return foldPages(definition, store, root, stream, upTo)
    const snapshot = stream.snapshot.value
    // The page begins with the event that the snapshot was made at.
    const [last, ...news] = stream.events()
    const state: Either.Either<State, Unusable> = isAt(last, snapshot)
      ? definition.state.decode(snapshot)
      : Either.left({ _tag: "Damaged", why: "it was made at another event than the stored one" })
    return Either.match(state, {
      onLeft: (unusable) =>
        Effect.zipRight(
          unusable._tag === "Outdated" ? Effect.void : warnIgnored(definition.name, snapshot, unusable.why),
          loadFrom(definition, store, root, upTo)
        ),
      onRight: (state) =>
        foldPages(
          definition,
          store,
          { ...root, sequence: snapshot.sequence, state, timestamp: snapshot.timestamp },
          { ...stream, events: () => news },
          upTo
        )
    })
  })
}

/**
 * Brings a known state up to date. It reads the last event of that state again, with the events after it. If the store
 * lacks that event, or has another one there, its log was replaced (by a backup, for instance). The state is then loaded
 * from the beginning, or by `otherwise`. If there is no newer event, the result is the known state itself.
 */
export const refresh = <State, A extends Tagged>(
  definition: AggregateDefinition<State, A>,
  store: StoreReads,
  known: VersionedState<State>,
  otherwise?: Effect.Effect<VersionedState<State>, ValidationError | StoreError>
): Effect.Effect<VersionedState<State>, ValidationError | StoreError> =>
  known.sequence === 0
    ? Effect.map(load(definition, store, known.id), (root) => (root.sequence === 0 ? known : root))
    : Effect.flatMap(streamReaderOf(store).page(known.streamId, known.sequence, firstPage), (stream) => {
        const [last, ...news] = stream.events()
        return last !== undefined && last.sequence === known.sequence && last.timestamp === known.timestamp
          ? foldPages(definition, store, known, { ...stream, events: () => news }, maxSequence)
          : (otherwise ?? Effect.zipRight(warnReplaced(definition.name, known), load(definition, store, known.id)))
      })

/** The state after a stored event. */
export const fold = <State, A extends Tagged>(
  definition: AggregateDefinition<State, A>,
  root: VersionedState<State>,
  stored: Event
): Either.Either<VersionedState<State>, StoreError> => {
  if (stored.sequence !== root.sequence + 1) return Either.left(missing(definition.name, stored, root.sequence + 1))
  return Either.map(definition.events.decode(definition.name, stored), (event) => ({
    streamId: root.streamId,
    id: root.id,
    sequence: stored.sequence,
    state: evolveBy(definition, root.state, event),
    timestamp: stored.timestamp
  }))
}

/** The state after an event that was read, or after its parts. */
const evolveBy = <State, A extends Tagged>(
  { evolve }: AggregateDefinition<State, A>,
  state: State,
  read: A | Parts<A>
): State => {
  if (!(read instanceof Parts)) return evolve(state, read)
  let current = state
  for (const event of read.events) current = evolve(current, event)
  return current
}

/** The failure of reading a stream that has another event where the event of the expected sequence must be. */
export const missing = (operation: string, { aggregateId, sequence, type }: Event, expected: number): StoreError =>
  new StoreError({
    reason: "UnreadableEvent",
    operation,
    description: `it stands where event ${expected} is missing`,
    aggregateId,
    sequence,
    type
  })

// --- internal ---

/** The first page. Most streams are no longer, after their snapshot. */
const firstPage = 500

/** Every further page. Loading holds two pages at most: one is folded while the store reads the next. */
const pageSize = 2500

/** Whether the snapshot was made at this event. Otherwise it belongs to a log that was replaced. */
const isAt = (event: Event | undefined, { sequence, timestamp }: Snapshot): boolean =>
  event !== undefined && event.sequence === sequence && event.timestamp === timestamp

const warnIgnored = (name: string, { aggregateId, sequence }: Snapshot, why: string): Effect.Effect<void> =>
  Effect.logWarning(`${name}: the snapshot of ${JSON.stringify(aggregateId)} at ${sequence} is ignored: ${why}`)

const warnReplaced = (name: string, { sequence, streamId }: VersionedState<unknown>): Effect.Effect<void> =>
  Effect.logWarning(
    `${name}: event ${sequence} of ${JSON.stringify(streamId)}, which was stored, is not in the store any more: the database has lost its last events, by a failover or by a backup that was restored. The state is loaded anew`
  )

const loadFrom = <State, A extends Tagged>(
  definition: AggregateDefinition<State, A>,
  store: StoreReads,
  root: VersionedState<State>,
  upTo: number
): Effect.Effect<VersionedState<State>, ValidationError | StoreError> =>
  root.sequence >= upTo
    ? Effect.succeed(root)
    : Effect.flatMap(pageAfter(store, root.streamId, root.sequence, upTo), (stream) =>
        foldPages(definition, store, root, stream, upTo)
      )

const pageAfter = (
  store: StoreReads,
  streamId: string,
  sequence: number,
  upTo: number
): Effect.Effect<EventPage, ValidationError | StoreError> =>
  streamReaderOf(store).page(streamId, sequence + 1, Math.min(pageSize, upTo - sequence))

/** Folds a page while the store reads the next one, then the next one, and so on. */
const foldPages = <State, A extends Tagged>(
  definition: AggregateDefinition<State, A>,
  store: StoreReads,
  root: VersionedState<State>,
  { events, moreAfter }: EventPage,
  upTo: number
): Effect.Effect<VersionedState<State>, ValidationError | StoreError> =>
  moreAfter !== undefined && moreAfter < upTo
    ? Effect.flatMap(
        withPrefetch(
          pageAfter(store, root.streamId, moreAfter, upTo),
          Effect.suspend(() => foldPage(definition, root, events()))
        ),
        ([next, current]) => foldPages(definition, store, current, next, upTo)
      )
    : foldPage(definition, root, events())

const foldPage = <State, A extends Tagged>(
  definition: AggregateDefinition<State, A>,
  root: VersionedState<State>,
  events: ReadonlyArray<Event>
): Either.Either<VersionedState<State>, StoreError> => {
  let current = root
  for (const event of events) {
    const next = fold(definition, current, event)
    if (Either.isLeft(next)) return next
    current = next.right
  }
  return Either.right(current)
}

/**
 * Runs both effects, with the first one started in a fiber before the second begins. If the second fails, the first is
 * interrupted.
 */
const withPrefetch = <A, E1, B, E2>(
  first: Effect.Effect<A, E1>,
  second: Effect.Effect<B, E2>
): Effect.Effect<readonly [A, B], E1 | E2> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(Effect.fork(restore(first)), (fiber) =>
      Effect.onExit(
        restore(
          Effect.flatMap(Effect.zipRight(macrotask, second), (b) =>
            Effect.map(Fiber.join(fiber), (a) => [a, b] as const)
          )
        ),
        (exit) => (Exit.isSuccess(exit) ? Effect.void : Fiber.interrupt(fiber))
      )
    )
  )
