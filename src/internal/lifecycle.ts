/**
 * The way of a command: state, decision, commit; and the ways to a state: from the snapshot on, up to a sequence.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import type * as Schedule from "effect/Schedule"
import { type Event, maxSequence } from "../Event.js"
import type { Projection } from "../Projection.js"
import type { StoreAdapterService } from "../StoreAdapter.js"
import { RetryCommand, StoreError, type StoreErrorReason, ValidationError, ValidationIssue } from "../StoreError.js"
import type { HybridClockService, Timestamp } from "../Timestamp.js"
import type { EventCodec, Tagged } from "./eventCodec.js"
import type { StateCodec } from "./stateCodec.js"

/** What an aggregate is made of, compiled. */
export interface Definition<State, A extends Tagged, C extends Tagged, E, R> {
  readonly name: string
  readonly initialState: State
  readonly events: EventCodec<A>
  readonly state: StateCodec<State>
  readonly evolve: (state: State, event: A) => State
  readonly decide: (command: C, root: Loaded<State>) => Effect.Effect<ReadonlyArray<A>, E | ValidationError, R>
  readonly projections: ReadonlyArray<Projection<E, R>>
  readonly snapshotEvery: number | undefined
  readonly retry: Schedule.Schedule<unknown>
}

/** A state and where in the stream it stands. */
export interface Loaded<State> {
  readonly id: string
  readonly sequence: number
  readonly state: State
  /** Of the last event; there is none at sequence 0. */
  readonly timestamp: Timestamp | undefined
}

/** The aggregate's state in the store, or the one that it had at a sequence. */
export const load = <State, A extends Tagged, C extends Tagged, E, R>(
  definition: Definition<State, A, C, E, R>,
  store: StoreAdapterService,
  id: string,
  upTo: number = maxSequence
): Effect.Effect<Loaded<State>, ValidationError | StoreError> =>
  Effect.gen(function* () {
    const snapshot = yield* store.getSnapshot(id, 1, { maxSequence: upTo })
    const start = Option.flatMap(snapshot, (found) =>
      Option.map(
        definition.state.decode(found),
        (state): Loaded<State> => ({ id, sequence: found.sequence, state, timestamp: found.timestamp })
      )
    )
    const initial: Loaded<State> = { id, sequence: 0, state: definition.initialState, timestamp: undefined }
    return yield* readOn(
      definition,
      store,
      Option.getOrElse(start, () => initial),
      upTo
    )
  })

/** The state after the events that the store has beyond a known one. */
const readOn = <State, A extends Tagged, C extends Tagged, E, R>(
  definition: Definition<State, A, C, E, R>,
  store: StoreAdapterService,
  from: Loaded<State>,
  upTo: number = maxSequence
): Effect.Effect<Loaded<State>, ValidationError | StoreError> =>
  Effect.gen(function* () {
    let root = from
    while (root.sequence < upTo) {
      // In pages, so that a stream of millions takes no more memory than a page and the state.
      const last = Math.min(root.sequence + pageSize, upTo)
      const page = yield* store.getEvents(root.id, root.sequence + 1, { maxSequence: last })
      for (const event of page) root = yield* fold(definition, root, event)
      if (root.sequence < last) break
    }
    return root
  })

/** What a command came to. */
export interface Outcome<State, A> {
  readonly root: Loaded<State>
  readonly events: ReadonlyArray<A>
}

/**
 * Decides and commits, and again by the `retry` schedule while others come first, or while the store can't be read for a reason
 * that may pass. What was read once is not read again: a further round begins where the one before ended.
 */
export const evaluate = <State, A extends Tagged, C extends Tagged, E, R>(
  definition: Definition<State, A, C, E, R>,
  store: StoreAdapterService,
  clock: HybridClockService,
  metadata: Readonly<Record<string, unknown>>,
  inTransaction: boolean,
  id: string,
  command: C
): Effect.Effect<Outcome<State, A>, E | RetryCommand | ValidationError | StoreError, R> =>
  Effect.suspend(() => {
    let known: Loaded<State> | undefined
    const round = Effect.gen(function* () {
      const root: Loaded<State> = yield* Effect.mapError(
        known === undefined ? load(definition, store, id) : readOn(definition, store, known),
        (error) => (!inTransaction && isPassing(error) ? new ReadFailed({ error }) : error)
      )
      known = root
      const decided = yield* definition.decide(command, root)
      if (decided.length === 0) return { root, events: decided }
      const events = yield* record(definition, clock, metadata, root, decided)
      yield* inTransaction
        ? store.commitAll(events, definition.projections)
        : settle(definition.retry, store.commitAll(events, definition.projections))
      const after = decided.reduce(definition.evolve, root.state)
      const last = events.at(-1)
      return {
        root: {
          id,
          sequence: root.sequence + events.length,
          state: after,
          timestamp: last === undefined ? root.timestamp : last.timestamp
        },
        events: decided
      }
    })
    return Effect.mapError(
      Effect.retry(round, { schedule: definition.retry, while: mayPass }),
      (error): E | RetryCommand | ValidationError | StoreError => (error instanceof ReadFailed ? error.error : error)
    )
  }).pipe(Effect.tap(({ events, root }) => snapshotWhenDue(definition, store, root, events.length)))

/** Stores a snapshot of the state. */
export const commitSnapshot = <State, A extends Tagged, C extends Tagged, E, R>(
  definition: Definition<State, A, C, E, R>,
  store: StoreAdapterService,
  { id, sequence, state, timestamp }: Loaded<State>
): Effect.Effect<void, ValidationError | StoreError> =>
  // An aggregate without events has nothing to save.
  timestamp === undefined
    ? Effect.void
    : Effect.flatMap(definition.state.encode(state), (encoded) =>
        store.commitSnapshot({ timestamp, aggregateId: id, sequence, ...encoded })
      )

// --- internal ---

const pageSize = 5000

/**
 * Reading failed before anything was decided. It is told from a failed commit, since trying that again would be deciding again.
 */
class ReadFailed extends Data.TaggedError("ReadFailed")<{ readonly error: StoreError | ValidationError }> {}

const mayPass = (error: unknown): boolean => error instanceof RetryCommand || error instanceof ReadFailed

const fold = <State, A extends Tagged, C extends Tagged, E, R>(
  definition: Definition<State, A, C, E, R>,
  root: Loaded<State>,
  stored: Event
): Effect.Effect<Loaded<State>, StoreError> => {
  const { aggregate } = stored.metadata
  if (aggregate !== undefined && aggregate !== definition.name) {
    return Effect.fail(
      unusable(definition.name, stored, "ForeignEvent", `was written by an aggregate ${JSON.stringify(aggregate)}`)
    )
  }
  if (stored.sequence !== root.sequence + 1) {
    return Effect.fail(
      unusable(definition.name, stored, "UnreadableEvent", `stands where event ${root.sequence + 1} is missing`)
    )
  }
  return Effect.map(definition.events.decode(definition.name, stored), (event) => ({
    id: root.id,
    sequence: stored.sequence,
    state: definition.evolve(root.state, event),
    timestamp: stored.timestamp
  }))
}

/** Numbers and stamps what was decided. */
const record = <State, A extends Tagged, C extends Tagged, E, R>(
  definition: Definition<State, A, C, E, R>,
  clock: HybridClockService,
  metadata: Readonly<Record<string, unknown>>,
  root: Loaded<State>,
  decided: ReadonlyArray<A>
): Effect.Effect<ReadonlyArray<Event>, ValidationError | StoreError> =>
  Effect.gen(function* () {
    // So that time rises along the aggregate, whichever node wrote its last event.
    if (root.timestamp !== undefined) yield* clock.receive(root.timestamp)
    const common = Either.map(readMetadata(metadata), (own) => ({ ...own, aggregate: definition.name }))
    const issues: Array<ValidationIssue> = Either.isLeft(common) ? [common.left] : []
    const events: Array<Event> = []
    for (const [index, event] of decided.entries()) {
      const body = definition.events.encode(event, index)
      if (Either.isLeft(body)) issues.push(...body.left)
      if (Either.isLeft(body) || Either.isLeft(common)) continue
      events.push({
        timestamp: yield* clock.now,
        aggregateId: root.id,
        sequence: root.sequence + 1 + index,
        type: event._tag,
        body: body.right,
        metadata: common.right
      })
    }
    const [first, ...rest] = issues
    return first === undefined
      ? events
      : yield* new ValidationError({ operation: `${definition.name}.evaluate`, issues: [first, ...rest] })
  })

/** What was set around the command; it comes from the application, and may be anything. */
const readMetadata = (metadata: unknown): Either.Either<object, ValidationIssue> => {
  try {
    if (typeof metadata === "object" && metadata !== null && !Array.isArray(metadata)) {
      return Either.right({ ...metadata })
    }
  } catch {
    // A proxy or getter that throws.
  }
  return Either.left(new ValidationIssue({ index: 0, path: ["metadata"], message: "must be a JSON object" }))
}

/**
 * Finds out what became of a commit by committing the same events again: if they were stored that succeeds and writes
 * nothing. Deciding again instead could apply a command twice. Where the schedule ends before it is known, the failure is
 * `CommitUnknown`, whatever the last attempt said.
 */
const settle = <E, R>(
  schedule: Schedule.Schedule<unknown>,
  commit: Effect.Effect<void, E | StoreError, R>
): Effect.Effect<void, E | StoreError, R> =>
  Effect.suspend(() => {
    let unknown: StoreError | undefined
    return commit.pipe(
      Effect.tapError((error) =>
        Effect.sync(() => {
          if (error instanceof StoreError && error.reason === "CommitUnknown") unknown = error
        })
      ),
      Effect.retry({ schedule, while: isPassing }),
      Effect.mapError((error) => (isPassing(error) && unknown !== undefined ? unknown : error))
    )
  })

/** Whether a failure of the store may be gone the next time. */
const isPassing = (error: unknown): boolean => error instanceof StoreError && passing.has(error.reason)

const passing: ReadonlySet<StoreErrorReason> = new Set(["CommitUnknown", "ConnectionLost", "Unavailable", "Contention"])

const snapshotWhenDue = <State, A extends Tagged, C extends Tagged, E, R>(
  definition: Definition<State, A, C, E, R>,
  store: StoreAdapterService,
  root: Loaded<State>,
  added: number
): Effect.Effect<void> => {
  const every = definition.snapshotEvery
  const due = every !== undefined && Math.floor(root.sequence / every) > Math.floor((root.sequence - added) / every)
  // The command is stored already; that the shortcut to its state is not must not make it fail.
  return due
    ? Effect.catchAll(commitSnapshot(definition, store, root), (error) =>
        Effect.logWarning(`no snapshot of ${definition.name} ${root.id} at ${root.sequence}: ${error.message}`)
      )
    : Effect.void
}

const unusable = (
  operation: string,
  { aggregateId, sequence, type }: Event,
  reason: "ForeignEvent" | "UnreadableEvent",
  why: string
): StoreError =>
  new StoreError({
    reason,
    operation,
    description: `event ${sequence} of aggregate ${JSON.stringify(aggregateId)}, of type ${JSON.stringify(type)}, ${why}`,
    aggregateId,
    sequence,
    type
  })
