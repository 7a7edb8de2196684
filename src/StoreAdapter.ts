/**
 * The port of event stores: the operations that aggregates call, and `makeEncoded`, by which adapters implement them.
 * `MemoryStore` and `SqlStore` are two adapters; `examples/custom-adapter` is a third one, on files.
 *
 * The five operations are those of `Maestro.Store.Adapter`; where Maestro raises, these fail with a type.
 *
 * @since 0.1.0
 */
import type { Statement } from "@effect/sql/Statement"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type { Event, NewEvent, StoredEvent } from "./Event.js"
import type { StreamPosition } from "./EventFeed.js"
import { flatMapSync } from "./internal/runtime/syncEffect.js"
import { withSpanIfTracedIn } from "./internal/runtime/tracing.js"
import { atCommit, handles, projectionWork } from "./internal/store/runProjections.js"
import {
  decodeEvent,
  decodeSnapshot,
  encodeEvents,
  encodeSnapshot,
  validateRange
} from "./internal/store/storedRecord.js"
import type { Projection } from "./Projection.js"
import type { Snapshot, StoredSnapshot } from "./Snapshot.js"
import { type RetryCommand, type StoreError, ValidationError, ValidationIssue } from "./StoreError.js"

/**
 * The bounds of a read.
 *
 * @since 0.1.0
 * @category models
 */
export interface ReadOptions {
  /** The highest sequence to read, inclusive; the last there is by default. */
  readonly maxSequence?: number | undefined
}

/**
 * The operations of an event store.
 *
 * @since 0.1.0
 * @category models
 */
export interface StoreAdapterService {
  /**
   * Stores the events, all or none, of one aggregate or of several.
   *
   * - An empty list succeeds and writes nothing.
   * - Every event is validated first. `ValidationError` has an issue for each mistake, and nothing is written.
   * - `RetryCommand`: a sequence is taken, or an aggregate's first sequence is not its stored head + 1. It does not
   *   matter whether the conflict existed before or arose in a race. So it is where an aggregate's first event `follows`
   *   another event than the stored head. Nothing is written.
   * - Committing stored events again (all of them, with the same timestamps and sequences) succeeds and writes nothing.
   *   So a second commit settles a commit whose result was lost. Stored and new events in one commit are a conflict.
   * - Inside your own `SqlClient.withTransaction` it is part of that transaction, which stays usable after any failure.
   * - An interrupted commit stores all events or none.
   * - Every other failure is a `StoreError`. After `CommitUnknown` only a second commit shows whether the events
   *   are stored.
   */
  readonly commitEvents: (
    events: ReadonlyArray<NewEvent>
  ) => Effect.Effect<void, RetryCommand | ValidationError | StoreError>

  /**
   * Stores the events and runs the projections in one transaction: first the events, then projection by projection,
   * event by event, and never two concurrently. A projection runs for the events that it handles: their type is among
   * its `events`, and their aggregate is the one that it is `of`. It does not run for a commit that is stored already.
   * Without projections, `commitAll` is `commitEvents`.
   *
   * A failed projection rolls the whole transaction back, and the commit fails with the failure of the projection. A
   * `StoreError` without an aggregate gets the names of the projection and the event.
   *
   * Where COMMIT fails with `Constraint`, the commit fails with the refusal that a projection declares for it
   * (`refusalOf`).
   *
   * A projection that reads the store finds the events of its commit. No other reader finds them before all projections
   * have succeeded.
   */
  readonly commitAll: <E = never, R = never>(
    events: ReadonlyArray<NewEvent>,
    projections: ReadonlyArray<Projection<E, R>>
  ) => Effect.Effect<void, RetryCommand | ValidationError | StoreError | E, R>

  /**
   * Stores the snapshot in place of the one that its aggregate has. A stored snapshot of a higher sequence stays, also
   * in a race, and the commit succeeds. One of the same sequence is replaced, because it may hold another version of
   * the state.
   */
  readonly commitSnapshot: (snapshot: Snapshot) => Effect.Effect<void, ValidationError | StoreError>

  /**
   * The events of an aggregate in order of sequence, from `minSequence` to `maxSequence`, both inclusive. The lower
   * bounds `0` and `1` both select all. An aggregate without events has an empty list.
   *
   * It returns all events in the range, however large they are. Ask for a part of a stream that may be long, or whose
   * events are large.
   */
  readonly getEvents: (
    aggregateId: string,
    minSequence: number,
    options?: ReadOptions
  ) => Effect.Effect<ReadonlyArray<Event>, ValidationError | StoreError>

  /**
   * The aggregate's snapshot, if there is one and its sequence is at least `minSequence` and at most `maxSequence`.
   */
  readonly getSnapshot: (
    aggregateId: string,
    minSequence: number,
    options?: ReadOptions
  ) => Effect.Effect<Option.Option<Snapshot>, ValidationError | StoreError>

  /** Reads streams in pages. Optional: without it, aggregates read by `getEvents` and `getSnapshot`. */
  readonly streamReader?: StreamReader | undefined

  /** Reads that may be older than the last commit, for queries that ask for them. Optional. Decisions never use it. */
  readonly replica?: ReplicaReader | undefined
}

/**
 * The reads of a store that aggregates load from.
 *
 * @since 0.1.0
 * @category models
 */
export type StoreReads = Pick<StoreAdapterService, "getEvents" | "getSnapshot" | "streamReader">

/**
 * Finds the reads for a query that a replica may answer.
 *
 * @since 0.1.0
 * @category models
 */
export interface ReplicaReader {
  /** Aggregates use the replica only while the store still has these two functions, as with a `StreamReader`. */
  readonly replaces: Pick<StoreAdapterService, "getEvents" | "getSnapshot">
  /**
   * The reads for one query. They may lack the last commits, but no event of `after`. A later read of them never has fewer
   * events than one before it. A failure of the replica is none of the query.
   */
  readonly readsFor: (query: ReplicaQuery) => Effect.Effect<StoreReads, ValidationError>
}

/**
 * What a query expects of a replica.
 *
 * @since 0.1.0
 * @category models
 */
export interface ReplicaQuery {
  /** Events that the query must see, and with them all that were committed before. */
  readonly after: ReadonlyArray<StreamPosition>
  /** How long it waits for the replica to have them, in milliseconds. */
  readonly maxWait: number
}

/**
 * Reads streams in pages, for a store that can read a page, or a snapshot with the events after it, faster than by the
 * operations of the port.
 *
 * @since 0.1.0
 * @category models
 */
export interface StreamReader extends StreamReads<ValidationError | StoreError> {
  /**
   * The operations that the reader replaces. Aggregates use the reader only while the store still has these two
   * functions. So a wrapper such as `{ ...store, getEvents }` is read by its own `getEvents`.
   */
  readonly replaces: Pick<StoreAdapterService, "getEvents" | "getSnapshot">
}

/**
 * The reads of a `StreamReader`.
 *
 * @since 0.1.0
 * @category models
 */
export interface StreamReads<out E> {
  /** Whether the aggregate has events. It reads no body. */
  readonly exists: (aggregateId: string) => Effect.Effect<boolean, E>

  /**
   * At most `limit` events of an aggregate, from a sequence on. Without `withCause` they may lack `correlationId`,
   * `causationId` and `traceparent`, because a state is folded without these.
   */
  readonly page: (
    aggregateId: string,
    minSequence: number,
    limit: number,
    options?: { readonly withCause?: boolean | undefined }
  ) => Effect.Effect<EventPage, E>

  /**
   * The newest snapshot up to a sequence, and at most `limit` events up to that sequence. They begin with the event
   * that the snapshot was made at, or with the first event if there is no snapshot. They may lack what a page without
   * `withCause` lacks.
   */
  readonly fromSnapshot: (
    aggregateId: string,
    maxSequence: number,
    limit: number
  ) => Effect.Effect<EventPage & { readonly snapshot: Option.Option<Snapshot> }, E>
}

/**
 * Some events of one aggregate, in order of sequence.
 *
 * @since 0.1.0
 * @category models
 */
export interface EventPage {
  /** Called once. A store may decode the events here, while it reads the next page. */
  readonly events: () => ReadonlyArray<Event>
  /** The sequence of the last event of the page, or `undefined` if no event follows it. */
  readonly moreAfter: number | undefined
}

/**
 * The service that aggregates commit to and load from. Layers: `MemoryStore.layer`, `SqlStore.layer`.
 *
 * @since 0.1.0
 * @category tags
 *
 * @example
 * ```ts
 * import { MemoryStore, StoreAdapter } from "effect-maestro"
 * import * as Effect from "effect/Effect"
 *
 * export const program = Effect.gen(function* () {
 *   const store = yield* StoreAdapter.StoreAdapter
 *   return yield* store.getEvents("account-1", 1, { maxSequence: 10 }) // prints: []
 * }).pipe(Effect.provide(MemoryStore.layer))
 * ```
 */
export class StoreAdapter extends Context.Tag("effect-maestro/StoreAdapter")<StoreAdapter, StoreAdapterService>() {}

/**
 * The part of an event store that an adapter writes. `makeEncoded` adds the part that all stores share: validation,
 * JSON, tracing and running the projections.
 *
 * Its input is validated: lists of events are not empty, the sequences of an aggregate rise by one within a list, and
 * JSON is text. Its results have the same form.
 *
 * The adapter knows which transaction a fiber is in, by a `Context.Tag` of its own, one for each store. All operations
 * that are called inside `work.project` of `appendWith` are part of that transaction and see its writes. An operation
 * that waits must be interruptible. An interruption during the last write may store all of the commit, or nothing.
 *
 * A `StoreError` names the operation as the port does (`commitEvents` for `append`, `commitAll` for `appendWith`). Its
 * reason decides what an aggregate does next:
 *
 * - `Unavailable`, `ConnectionLost` and `Contention`: nothing is stored, and a retry may help;
 * - `CommitUnknown`: only a second commit of the same events shows whether they are stored;
 * - `Constraint` after `work.project` has succeeded: COMMIT found the constraint violated, and `constraint` is its
 *   name;
 * - all other reasons are final.
 *
 * @since 0.1.0
 * @category models
 */
export interface EncodedStore {
  /** Names the store in traces, such as `SqlStore`. */
  readonly name: string

  /**
   * Stores the events, all or none, and returns `appended`. Returns `duplicate` if all of them are stored already, with the
   * same timestamps and sequences. `RetryCommand` names the first event that can't be stored: its sequence is not the next
   * one, or it `follows` another event than the stored one. Inside `work.project` of
   * `appendWith` it is part of that transaction.
   */
  readonly append: (
    events: ReadonlyArray<StoredEvent>
  ) => Effect.Effect<"appended" | "duplicate", RetryCommand | StoreError>

  /**
   * One transaction: appends the events as `append` does, then runs `work.project`, unless the events were stored
   * already. If the work fails, dies or is interrupted, the transaction is rolled back and ends with the same result.
   * Until the work has succeeded, only the work itself sees the events.
   *
   * Inside the work of another commit it is a part of that transaction, and a failure undoes only this part. Two such
   * parts run one after the other. A commit by a fiber that the work left running must fail once the transaction has
   * ended.
   */
  readonly appendWith: <E, R>(
    events: ReadonlyArray<StoredEvent>,
    work: ProjectionWork<E, R>
  ) => Effect.Effect<void, RetryCommand | StoreError | E, R>

  /** Stores the snapshot, unless the stored one has a higher sequence. */
  readonly putSnapshot: (snapshot: StoredSnapshot) => Effect.Effect<void, StoreError>

  /** The events of the aggregate within the bounds, both inclusive, in order of sequence. */
  readonly readEvents: (range: SequenceRange) => Effect.Effect<ReadonlyArray<StoredEvent>, StoreError>

  /** The aggregate's snapshot, if its sequence is within the bounds, both inclusive. */
  readonly readSnapshot: (range: SequenceRange) => Effect.Effect<Option.Option<StoredSnapshot>, StoreError>

  /**
   * Reads streams in pages. Optional: give it if the store reads a page, or a snapshot with its events, in one step, or
   * must limit the bytes of a page. It returns decoded events, because a store may decode a page as a whole.
   */
  readonly readStream?: StreamReads<StoreError> | undefined
}

/**
 * The projections of one commit, as `appendWith` receives them.
 *
 * @since 0.1.0
 * @category models
 */
export interface ProjectionWork<out E, out R> {
  /** Runs the projections for the events, in their order. */
  readonly project: Effect.Effect<void, E, R>
  /**
   * All statements of the commit in their order, or `undefined` unless every projection is a `SqlProjection`. An
   * adapter may send them with the events in one round trip, instead of running `project`. Where this effect or a
   * statement fails, run `project`, which fails with the reason.
   */
  readonly statements: Effect.Effect<ReadonlyArray<Statement<unknown>>, E, R> | undefined
}

/**
 * The range of a read: an aggregate, and its sequences from a lower to an upper bound, both inclusive.
 *
 * @since 0.1.0
 * @category models
 */
export interface SequenceRange {
  readonly aggregateId: string
  readonly minSequence: number
  readonly maxSequence: number
}

/**
 * Makes a store of the part that the adapter writes. The suite of `effect-maestro/StoreContract` checks the result.
 *
 * The split is that of `MessageStorage.makeEncoded` in `@effect/cluster`.
 *
 * @since 0.1.0
 * @category constructors
 */
export const makeEncoded = (store: EncodedStore): StoreAdapterService => {
  /** Validates the input when the operation runs, then runs the operation in a span. */
  const checked =
    (operation: string) =>
    <A, B, E, R>(
      prepare: () => Exit.Exit<A, ValidationError>,
      run: (prepared: A) => Effect.Effect<B, E, R>,
      attributes: (prepared: A) => Record<string, unknown>
    ): Effect.Effect<B, ValidationError | E, R> =>
      Effect.withFiberRuntime((fiber) =>
        flatMapSync(prepare(), (prepared) =>
          withSpanIfTracedIn(
            fiber,
            `${store.name}.${operation}`,
            () => ({ attributes: attributes(prepared) }),
            run(prepared)
          )
        )
      )

  const append = (prepared: ReadonlyArray<StoredEvent>) =>
    prepared.length === 0 ? Effect.void : Effect.asVoid(store.append(prepared))

  const commitEvents: StoreAdapterService["commitEvents"] = (events) =>
    checked("commitEvents")(
      () => encodeEvents("commitEvents", events),
      append,
      (prepared) => ({ events: prepared.length })
    )

  const handling = <E, R>(
    prepared: ReadonlyArray<StoredEvent>,
    projections: ReadonlyArray<Projection<E, R>>
  ): ReadonlyArray<Projection<E, R>> =>
    projections.filter((projection) => prepared.some((event) => handles(projection, event)))

  const appendWith = <E, R>(prepared: ReadonlyArray<StoredEvent>, projections: ReadonlyArray<Projection<E, R>>) =>
    Effect.mapError(store.appendWith(prepared, projectionWork(prepared, projections)), (error) =>
      atCommit(projections, () => prepared.map(decodeEvent), error)
    )

  const readRange = <A, E>(
    operation: "getEvents" | "getSnapshot",
    aggregateId: string,
    minSequence: number,
    options: ReadOptions | undefined,
    read: (range: SequenceRange) => Effect.Effect<A, E>
  ): Effect.Effect<A, ValidationError | E> =>
    checked(operation)(
      () => validateRange(operation, aggregateId, minSequence, options),
      read,
      () => ({ "aggregate.id": aggregateId })
    )

  const getEvents: StoreAdapterService["getEvents"] = (aggregateId, minSequence, options) =>
    readRange("getEvents", aggregateId, minSequence, options, (range) =>
      Effect.map(store.readEvents(range), (stored) => stored.map(decodeEvent))
    )

  const getSnapshot: StoreAdapterService["getSnapshot"] = (aggregateId, minSequence, options) =>
    readRange("getSnapshot", aggregateId, minSequence, options, (range) =>
      Effect.map(store.readSnapshot(range), Option.map(decodeSnapshot))
    )

  const { readStream } = store
  const streamReader: StreamReader | undefined = readStream && {
    replaces: { getEvents, getSnapshot },
    exists: (aggregateId) => readRange("getEvents", aggregateId, 1, undefined, () => readStream.exists(aggregateId)),
    page: (aggregateId, minSequence, limit, options) =>
      readRange("getEvents", aggregateId, minSequence, undefined, () =>
        readStream.page(aggregateId, minSequence, limit, options)
      ),
    fromSnapshot: (aggregateId, maxSequence, limit) =>
      readRange("getEvents", aggregateId, 1, { maxSequence }, () =>
        readStream.fromSnapshot(aggregateId, maxSequence, limit)
      )
  }

  return {
    commitEvents,
    commitAll: (events, projections) =>
      !areProjections(projections)
        ? Effect.fail(noProjections)
        : projections.length === 0
          ? commitEvents(events)
          : checked("commitAll")(
              () =>
                Exit.map(encodeEvents("commitAll", events), (prepared) => ({
                  prepared,
                  concerned: handling(prepared, projections)
                })),
              ({ concerned, prepared }) =>
                concerned.length === 0 ? append(prepared) : appendWith(prepared, concerned),
              ({ concerned, prepared }) => ({
                events: prepared.length,
                projections: concerned.map(({ name }) => name)
              })
            ),
    commitSnapshot: (snapshot) =>
      checked("commitSnapshot")(
        () => encodeSnapshot(snapshot),
        store.putSnapshot,
        ({ aggregateId }) => ({ "aggregate.id": aggregateId })
      ),
    getEvents,
    getSnapshot,
    ...(streamReader === undefined ? {} : { streamReader })
  }
}

// --- internal ---

/** Untyped callers can pass anything, and get a `ValidationError` as for all bad input. */
const areProjections = (projections: ReadonlyArray<Projection.Any>): boolean =>
  Array.isArray(projections) && projections.every(isProjection)

/** One with both members would run only its `project`, although its `statements` say something else. */
const isProjection = (projection: Projection.Any): boolean =>
  typeof projection?.project === "function"
    ? projection.statements === undefined
    : typeof projection?.statements === "function"

const noProjections = new ValidationError({
  operation: "commitAll",
  issues: [
    new ValidationIssue({
      path: ["projections"],
      message: "must be a list of projections, and each must have either `project` or `statements`"
    })
  ]
})
