/**
 * The ways to an aggregate's state: from its snapshot on, from a state that is known, up to a sequence.
 */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type * as Schedule from "effect/Schedule"
import { type Event, maxSequence } from "../../Event.js"
import type { Snapshot } from "../../Snapshot.js"
import type { EventPage, StoreAdapterService } from "../../StoreAdapter.js"
import { StoreError, type ValidationError } from "../../StoreError.js"
import type { Timestamp } from "../../Timestamp.js"
import type { EventCodec, Tagged } from "../codec/eventCodec.js"
import type { StateCodec, Unusable } from "../codec/stateCodec.js"
import { macrotask } from "../runtime/macrotask.js"
import { streamReaderOf } from "../store/streamReader.js"
import type { Streams } from "./streamIds.js"

/** What it takes to come to a state. */
export interface Folding<State, A extends Tagged> {
  readonly name: string
  readonly streams: Streams
  readonly initialState: State
  readonly events: EventCodec<A>
  readonly state: StateCodec<State>
  readonly evolve: (state: State, event: A) => State
}

/** What an aggregate is made of beside its decisions and projections, compiled. */
export interface Definition<State, A extends Tagged> extends Folding<State, A> {
  readonly snapshotEvery: number | undefined
  readonly retry: Schedule.Schedule<unknown>
}

/** A state and where in the stream it stands. */
export interface Loaded<State> {
  readonly streamId: string
  /** The id that callers know the aggregate by. */
  readonly id: string
  readonly sequence: number
  readonly state: State
  /** Of the last event; there is none at sequence 0. */
  readonly timestamp: Timestamp | undefined
}

/** The state before the first event. */
export const initial = <State, A extends Tagged>(
  { initialState, streams }: Folding<State, A>,
  streamId: string
): Loaded<State> => ({
  streamId,
  id: streams.idOf(streamId),
  sequence: 0,
  state: initialState,
  timestamp: undefined
})

/** The aggregate's state in the store, or the one that it had at a sequence. */
export const load = <State, A extends Tagged>(
  folding: Folding<State, A>,
  store: StoreAdapterService,
  streamId: string,
  upTo: number = maxSequence
): Effect.Effect<Loaded<State>, ValidationError | StoreError> =>
  Effect.flatMap(streamReaderOf(store).fromSnapshot(streamId, upTo, firstPage), (stream) => {
    const root = initial(folding, streamId)
    if (Option.isNone(stream.snapshot)) return foldOn(folding, store, root, stream, upTo)
    const snapshot = stream.snapshot.value
    // The event that the snapshot was made at comes along with those after it.
    const [last, ...news] = stream.events()
    const state: Either.Either<State, Unusable> = isAt(last, snapshot)
      ? folding.state.decode(snapshot)
      : Either.left({ _tag: "Damaged", why: "it was made at another event than the stored one" })
    return Either.match(state, {
      onLeft: (unusable) =>
        Effect.zipRight(
          unusable._tag === "Outdated" ? Effect.void : passedOver(folding.name, snapshot, unusable.why),
          readOn(folding, store, root, upTo)
        ),
      onRight: (state) =>
        foldOn(
          folding,
          store,
          { ...root, sequence: snapshot.sequence, state, timestamp: snapshot.timestamp },
          { ...stream, events: () => news },
          upTo
        )
    })
  })

/**
 * The state after the events that the store has beyond a known one. The last event of the known state is read again: a
 * store that does not have it, or has another there, is no longer the one that the state came from, and is read anew. Where
 * there is nothing new, what is answered is the known state itself.
 */
export const refresh = <State, A extends Tagged>(
  folding: Folding<State, A>,
  store: StoreAdapterService,
  known: Loaded<State>
): Effect.Effect<Loaded<State>, ValidationError | StoreError> =>
  known.sequence === 0
    ? Effect.map(load(folding, store, known.streamId), (root) => (root.sequence === 0 ? known : root))
    : Effect.flatMap(streamReaderOf(store).page(known.streamId, known.sequence, firstPage), (stream) => {
        const [last, ...news] = stream.events()
        return last !== undefined && last.sequence === known.sequence && last.timestamp === known.timestamp
          ? foldOn(folding, store, known, { ...stream, events: () => news }, maxSequence)
          : load(folding, store, known.streamId)
      })

/** Where the event brings the state. */
export const fold = <State, A extends Tagged>(
  folding: Folding<State, A>,
  root: Loaded<State>,
  stored: Event
): Either.Either<Loaded<State>, StoreError> => {
  if (stored.sequence !== root.sequence + 1) return Either.left(missing(folding.name, stored, root.sequence + 1))
  return Either.map(folding.events.decode(folding.name, stored), (event) => ({
    streamId: root.streamId,
    id: root.id,
    sequence: stored.sequence,
    state: folding.evolve(root.state, event),
    timestamp: stored.timestamp
  }))
}

/** The failure of reading a stream that lacks the event of that sequence, and has another there. */
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

/** Most streams are no longer than that, after their snapshot. */
const firstPage = 500

/**
 * So that a stream of millions takes no more memory than two pages and the state, and is folded while the store is at the next page.
 */
const pageSize = 2500

/** Whether the snapshot was made at this event. One whose event is missing or another one comes from another history of the log. */
const isAt = (event: Event | undefined, { sequence, timestamp }: Snapshot): boolean =>
  event !== undefined && event.sequence === sequence && event.timestamp === timestamp

const passedOver = (name: string, { aggregateId, sequence }: Snapshot, why: string): Effect.Effect<void> =>
  Effect.logWarning(`${name}: the snapshot of ${JSON.stringify(aggregateId)} at ${sequence} is passed over: ${why}`)

const readOn = <State, A extends Tagged>(
  folding: Folding<State, A>,
  store: StoreAdapterService,
  root: Loaded<State>,
  upTo: number
): Effect.Effect<Loaded<State>, ValidationError | StoreError> =>
  root.sequence >= upTo
    ? Effect.succeed(root)
    : Effect.flatMap(pageAfter(store, root.streamId, root.sequence, upTo), (stream) =>
        foldOn(folding, store, root, stream, upTo)
      )

const pageAfter = (
  store: StoreAdapterService,
  streamId: string,
  sequence: number,
  upTo: number
): Effect.Effect<EventPage, ValidationError | StoreError> =>
  streamReaderOf(store).page(streamId, sequence + 1, Math.min(pageSize, upTo - sequence))

/** Folds a page, and meanwhile the store looks for the next. */
const foldOn = <State, A extends Tagged>(
  folding: Folding<State, A>,
  store: StoreAdapterService,
  root: Loaded<State>,
  { events, moreAfter }: EventPage,
  upTo: number
): Effect.Effect<Loaded<State>, ValidationError | StoreError> =>
  moreAfter !== undefined && moreAfter < upTo
    ? Effect.flatMap(
        beside(
          pageAfter(store, root.streamId, moreAfter, upTo),
          Effect.suspend(() => foldPage(folding, root, events()))
        ),
        ([next, current]) => foldOn(folding, store, current, next, upTo)
      )
    : foldPage(folding, root, events())

const foldPage = <State, A extends Tagged>(
  folding: Folding<State, A>,
  root: Loaded<State>,
  events: ReadonlyArray<Event>
): Either.Either<Loaded<State>, StoreError> => {
  let current = root
  for (const event of events) {
    const next = fold(folding, current, event)
    if (Either.isLeft(next)) return next
    current = next.right
  }
  return Either.right(current)
}

/** Both, the first under way before the second begins. It is interrupted, and waited for, where the second fails. */
const beside = <A, E1, B, E2>(
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
