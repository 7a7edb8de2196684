/**
 * The port: what every event store does, whatever it keeps its events in.
 *
 * The five operations are those of `Maestro.Store.Adapter`; where Maestro raises, these fail with a type.
 *
 * @since 0.1.0
 */
import type { SqlClient } from "@effect/sql/SqlClient"
import type { Statement } from "@effect/sql/Statement"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type { Event, StoredEvent } from "./Event.js"
import { inStoreTransaction } from "./internal/runtime/ambientTransaction.js"
import { flatMapSync } from "./internal/runtime/syncEffect.js"
import { withSpanIfTracedIn } from "./internal/runtime/tracing.js"
import { atCommit, handles, projectEvent } from "./internal/store/runProjections.js"
import { provideStatements, type StatementsFor, statementsFor } from "./internal/store/statements.js"
import {
  decodeEvent,
  decodeSnapshot,
  encodeEvents,
  encodeSnapshot,
  type Range,
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
   * - Every event is checked first. `ValidationError` names all that is wrong, and nothing is written.
   * - `RetryCommand`: a sequence is taken, or an aggregate's first sequence is not its stored head + 1; whether the conflict
   *   was there before or came up in a race. Nothing is written.
   * - Committing the very same events again (the same timestamps at the same places, all of them) succeeds and writes
   *   nothing; so a commit whose answer got lost is settled by committing again. Stored and new events in one commit are
   *   a conflict.
   * - Inside your own `SqlClient.withTransaction` it is part of that transaction, which stays usable after any failure.
   * - All or nothing holds under interruption too.
   * - Everything else is a `StoreError`; with `CommitUnknown` only a second commit tells what happened.
   */
  readonly commitEvents: (
    events: ReadonlyArray<Event>
  ) => Effect.Effect<void, RetryCommand | ValidationError | StoreError>

  /**
   * Stores the events and runs the projections in one transaction: first the events, then projection by projection, event
   * by event, and never concurrently. A failed projection rolls all of it back. Its failure is that of the commit; a `StoreError` that names
   * no aggregate gets the projection's name and its event. For a commit that is stored already no projection runs. Without projections it
   * is `commitEvents`. A projection runs for the events that concern it only: those whose type is among its `events`, and whose aggregate
   * is the one that it is `of`.
   *
   * Where COMMIT fails with `Constraint`, it is the refusal that the projections declare for that constraint (`Projection.refusalOf`).
   *
   * A projection that reads the store finds the events of its commit. No other reader finds them before all projections have succeeded.
   */
  readonly commitAll: <E = never, R = never>(
    events: ReadonlyArray<Event>,
    projections: ReadonlyArray<Projection<E, R>>
  ) => Effect.Effect<void, RetryCommand | ValidationError | StoreError | E, R>

  /**
   * Stores the snapshot, and replaces the one that its aggregate has, unless that has a higher sequence; also in a race. One that is
   * older is passed over without a failure. One of the same sequence may be of another version of the state, so it replaces the stored one.
   */
  readonly commitSnapshot: (snapshot: Snapshot) => Effect.Effect<void, ValidationError | StoreError>

  /**
   * The events of an aggregate in order of sequence, from `minSequence` to `maxSequence`, both inclusive. `0` and `1` as
   * lower bounds mean all. An aggregate without events has an empty list.
   *
   * It returns all events in the range, however large they are: ask for a part of a stream that may be long, or whose events are large.
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
 *   return yield* store.getEvents("account-1", 1, { maxSequence: 10 })
 * }).pipe(Effect.provide(MemoryStore.layer))
 * ```
 */
export class StoreAdapter extends Context.Tag("effect-maestro/StoreAdapter")<StoreAdapter, StoreAdapterService>() {}

/**
 * What is left of an event store for an adapter to write, when `makeEncoded` does what all of them have in common: checking
 * the input, JSON, and running the projections.
 *
 * Everything is checked before it comes here: lists of events are never empty, within one list the sequences of an aggregate rise
 * by one, and JSON is text. So it is in the records that come back.
 *
 * Which transaction a fiber is in is for the adapter to know, by a `Context.Tag` of its own, one for each store: all five
 * operations, called inside the `project` of an `appendWith`, are part of that transaction, and see what it wrote. Waiting must
 * be interruptible; an interruption during the last write may leave all of it stored, or nothing.
 *
 * A `StoreError` names the operation as the port does (`commitEvents` for `append`, `commitAll` for `appendWith`). Its reason
 * decides what an aggregate does: `Unavailable`, `ConnectionLost` and `Contention` say that nothing is stored and that trying
 * again may help, `CommitUnknown` that only the same commit again will tell; all others are final. A constraint that is violated at the
 * end of `appendWith`, after `project` has succeeded, is `Constraint`, with its name as `constraint`.
 *
 * @since 0.1.0
 * @category models
 */
export interface EncodedStore {
  /** Names the store in traces, such as `SqlStore`. */
  readonly name: string

  /**
   * Stores the events, all or none, and answers `written`; or finds all of them there already, with the same timestamps at
   * the same places, and answers `stored`. `RetryCommand` names the first event that can't be stored.
   * Called inside the effect of `appendWith` it is part of that transaction.
   */
  readonly append: (
    events: ReadonlyArray<StoredEvent>
  ) => Effect.Effect<"written" | "stored", RetryCommand | StoreError>

  /**
   * One transaction: the events as `append` stores them, then `project`, unless they were stored already. When `project` fails,
   * dies or is interrupted, nothing of it all stays, and that is the result. Until it has succeeded only `project` itself sees
   * the events. Called inside the `project` of another commit it is part of that transaction, and undoes only itself; two such
   * at once take turns. A commit of a fiber that `project` left running must not succeed once the transaction has ended.
   */
  readonly appendWith: <E, R>(
    events: ReadonlyArray<StoredEvent>,
    project: Effect.Effect<void, E, R>
  ) => Effect.Effect<void, RetryCommand | StoreError | E, R>

  /** Stores the snapshot, unless the stored one has a higher sequence. */
  readonly putSnapshot: (snapshot: StoredSnapshot) => Effect.Effect<void, StoreError>

  /** The events of the aggregate within the bounds, both inclusive, in order of sequence. */
  readonly readEvents: (range: SequenceRange) => Effect.Effect<ReadonlyArray<StoredEvent>, StoreError>

  /** The aggregate's snapshot, if its sequence is within the bounds, both inclusive. */
  readonly readSnapshot: (range: SequenceRange) => Effect.Effect<Option.Option<StoredSnapshot>, StoreError>
}

/**
 * What a read asks for: an aggregate, and the sequences from a lower to an upper bound, both inclusive.
 *
 * @since 0.1.0
 * @category models
 */
export interface SequenceRange extends Range {}

/**
 * Makes a store of what only this adapter can know. `effect-maestro/StoreContract` has the suite that tells whether it is
 * right; `examples/custom-adapter` is a whole adapter, on files.
 *
 * Named after `MessageStorage.makeEncoded` of `@effect/cluster`, whose split this is.
 *
 * @since 0.1.0
 * @category constructors
 */
export const makeEncoded = (store: EncodedStore): StoreAdapterService => {
  /** Checks the input when the operation is begun, and does the operation with what it comes to, in a span. */
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

  const concernedBy = <E, R>(
    prepared: ReadonlyArray<StoredEvent>,
    projections: ReadonlyArray<Projection<E, R>>
  ): ReadonlyArray<Projection<E, R>> =>
    projections.filter((projection) => prepared.some((event) => handles(projection, event)))

  const appendWith = <E, R>(prepared: ReadonlyArray<StoredEvent>, projections: ReadonlyArray<Projection<E, R>>) =>
    Effect.mapError(store.appendWith(prepared, project(prepared, projections)), (error) =>
      atCommit(projections, () => prepared.map(decodeEvent), error)
    )

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
                  concerned: concernedBy(prepared, projections)
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
    getEvents: (aggregateId, minSequence, options) =>
      checked("getEvents")(
        () => validateRange("getEvents", aggregateId, minSequence, options),
        (range) => Effect.map(store.readEvents(range), (stored) => stored.map(decodeEvent)),
        idOf
      ),
    getSnapshot: (aggregateId, minSequence, options) =>
      checked("getSnapshot")(
        () => validateRange("getSnapshot", aggregateId, minSequence, options),
        (range) => Effect.map(store.readSnapshot(range), Option.map(decodeSnapshot)),
        idOf
      )
  }
}

// --- internal ---

const idOf = ({ aggregateId }: SequenceRange) => ({ "aggregate.id": aggregateId })

/** What the types promise; what comes past them is to fail as all bad input does. */
const areProjections = (projections: ReadonlyArray<Projection.Any>): boolean =>
  Array.isArray(projections) && projections.every((projection) => typeof projection?.project === "function")

const noProjections = new ValidationError({
  operation: "commitAll",
  issues: [new ValidationIssue({ path: ["projections"], message: "must be a list of projections" })]
})

/** Projection by projection, event by event, never two at once: they share one transaction. */
const project = <E, R>(
  events: ReadonlyArray<StoredEvent>,
  projections: ReadonlyArray<Projection<E, R>>
): Effect.Effect<void, E, R> => {
  const projecting = inStoreTransaction(
    Effect.suspend(() => {
      const restored = events.map(decodeEvent)
      const [projection, ...others] = projections
      const [event, ...further] = restored
      // What is usual takes no loop.
      if (projection !== undefined && event !== undefined && others.length === 0 && further.length === 0) {
        return projectEvent(projection, event)
      }
      return Effect.forEach(
        projections,
        (projection) =>
          Effect.forEach(
            restored.filter((event) => handles(projection, event)),
            (event) => projectEvent(projection, event),
            { discard: true }
          ),
        { discard: true }
      )
    })
  )
  const known = projections.flatMap((projection) => {
    const statements = statementsFor(projection.project)
    return statements === undefined ? [] : [{ projection, statements }]
  })
  if (known.length === projections.length) {
    provideStatements(projecting, (sql) => allStatements(events.map(decodeEvent), known, sql))
  }
  return projecting
}

/** What the projections come to for the events, one after the other; nothing, where one of them can't say. */
const allStatements = (
  events: ReadonlyArray<Event>,
  projections: ReadonlyArray<{ readonly projection: Projection.Any; readonly statements: StatementsFor }>,
  sql: SqlClient
): ReadonlyArray<Statement<unknown>> | undefined => {
  const all: Array<Statement<unknown>> = []
  for (const { projection, statements } of projections) {
    for (const event of events) {
      if (!handles(projection, event)) continue
      const some = statements(event, sql)
      if (some === undefined) return undefined
      all.push(...some)
    }
  }
  return all
}
