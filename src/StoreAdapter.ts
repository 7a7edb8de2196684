/**
 * The port: what every event store does, whatever it keeps its events in.
 *
 * The five operations are those of `Maestro.Store.Adapter`; where Maestro raises, these fail with a type.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Option from "effect/Option"
import type { Event } from "./Event.js"
import type { Projection } from "./Projection.js"
import type { Snapshot } from "./Snapshot.js"
import type { RetryCommand, StoreError, ValidationError } from "./StoreError.js"

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
   * by event, never two at once. A projection's failure rolls all of it back and comes back unchanged. For a commit that
   * is stored already no projection runs. Without projections it is `commitEvents`.
   *
   * A projection that reads the store finds the events of its commit; nobody else does before all projections succeeded.
   */
  readonly commitAll: <E = never, R = never>(
    events: ReadonlyArray<Event>,
    projections: ReadonlyArray<Projection<E, R>>
  ) => Effect.Effect<void, RetryCommand | ValidationError | StoreError | E, R>

  /**
   * Stores the snapshot if there is none of its aggregate yet, or an older one, which it replaces; also in a race. One that
   * is as old or older is passed over without a failure.
   */
  readonly commitSnapshot: (snapshot: Snapshot) => Effect.Effect<void, ValidationError | StoreError>

  /**
   * The events of an aggregate in order of sequence, from `minSequence` to `maxSequence`, both inclusive. `0` and `1` as
   * lower bounds mean all. An aggregate without events has an empty list.
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
