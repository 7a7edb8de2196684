/**
 * The third port of a store: the state of subscriptions, which is their checkpoints, their leases and the events that
 * they have parked.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type { FeedEvent, Position } from "./EventFeed.js"
import type { StoreError, ValidationError } from "./StoreError.js"

/**
 * A partition of a subscription. A subscription that is not divided has one.
 *
 * @since 0.1.0
 * @category models
 */
export interface Key {
  readonly name: string
  /** From 0. */
  readonly partition: number
  /** How many partitions the subscription has. */
  readonly partitions: number
}

/**
 * The lease is lost: it ran out, and another process may have taken it. What this process did since its last checkpoint
 * is not stored.
 *
 * @since 0.1.0
 * @category errors
 */
export class LeaseLost extends Schema.TaggedError<LeaseLost>("effect-maestro/LeaseLost")("LeaseLost", {
  subscription: Schema.String,
  partition: Schema.Number
}) {
  override get message(): string {
    return `subscription ${JSON.stringify(this.subscription)}, partition ${this.partition}: another process holds the lease`
  }
}

/**
 * The failure of an event, as the store keeps it for people to read.
 *
 * @since 0.1.0
 * @category models
 */
export interface EventFailure {
  readonly position: Position
  readonly aggregateId: string
  readonly sequence: number
  readonly type: string
  /** What the handler failed with, as text. */
  readonly error: string
  /** How many attempts there were. */
  readonly attempts: number
}

/**
 * The attempts at one event.
 *
 * @since 0.1.0
 * @category models
 */
export interface Attempts {
  readonly position: Position
  /** How many have begun without success, including an attempt that has not ended. */
  readonly attempts: number
}

/**
 * An event that a subscription has parked.
 *
 * @since 0.1.0
 * @category models
 */
export interface ParkedEvent extends EventFailure {
  readonly partition: number
  /** When it was parked, in milliseconds since 1970. */
  readonly since: number
}

/**
 * The lease of a partition. At most one process holds it at a time.
 *
 * Its effects, except `lost`, run in the current transaction if there is one. They fail with `LeaseLost` when another
 * process holds the lease. `park` and `parkedAggregates` leave that to `advance`, in whose effect they run.
 *
 * @since 0.1.0
 * @category models
 */
export interface Lease {
  /** The checkpoint when the lease was taken. */
  readonly position: Position
  /** The attempts that were recorded when the lease was taken, by any process. */
  readonly attempts: Option.Option<Attempts>
  /**
   * Whether the last holder did not release the lease. Its process ended, or lost the lease, perhaps while it handled
   * an event.
   */
  readonly isTakenOver: boolean
  /** Succeeds when the lease is lost. */
  readonly lost: Effect.Effect<void>
  /** The stored checkpoint. */
  readonly checkpoint: Effect.Effect<Position, LeaseLost | StoreError>
  /**
   * Runs the effect and stores the checkpoint, both or neither where the store has transactions. It fails with the
   * failures of the effect, unchanged.
   */
  readonly advance: <E, R>(
    position: Position,
    effect: Effect.Effect<void, E, R>
  ) => Effect.Effect<void, E | LeaseLost | StoreError, R>
  /** Stores the checkpoint where no event had to be handled up to it. */
  readonly advanceTo: (position: Position) => Effect.Effect<void, LeaseLost | StoreError>
  /** Parks the event of the failure. It runs in the effect of `advance`. */
  readonly park: (failure: EventFailure) => Effect.Effect<void, StoreError>
  /**
   * The given aggregates that have parked events. It runs in the effect of `advance`: until that ends, `retryParked`
   * waits for the aggregates that were found.
   */
  readonly parkedAggregates: (aggregateIds: ReadonlyArray<string>) => Effect.Effect<ReadonlySet<string>, StoreError>
  /**
   * Records an attempt before it begins, so that the count outlives the connection and the process. A new checkpoint
   * and `resume` clear the count.
   */
  readonly recordAttempt: (attempts: Attempts) => Effect.Effect<void, LeaseLost | StoreError>
  /** Records the last failure and its attempts. Undefined clears both. */
  readonly recordFailure: (failure: EventFailure | undefined) => Effect.Effect<void, LeaseLost | StoreError>
  /** Stops the subscription until it is resumed. */
  readonly stop: (failure: EventFailure) => Effect.Effect<void, LeaseLost | StoreError>
}

/**
 * The state of a partition.
 *
 * @since 0.1.0
 * @category models
 */
export interface PartitionState extends Key {
  readonly position: Position
  /** The holder of the lease; none while no process holds it. */
  readonly holder: Option.Option<string>
  /** Whether it stopped before an event that could not be handled, and waits for `resume`. */
  readonly stopped: boolean
  /** The failure at which it stopped, or of the event that it retries. */
  readonly lastFailure: Option.Option<EventFailure>
  /** The number of parked events. */
  readonly parked: number
}

/**
 * The options of a lease.
 *
 * @since 0.1.0
 * @category models
 */
export interface LeaseOptions {
  readonly key: Key
  /** The first checkpoint, of a subscription that has never run. */
  readonly from: Position
  /** The name of the process, for people to read. */
  readonly holder: string
  /** In milliseconds. Another process may take a lease that was not renewed for so long. */
  readonly duration: number
}

/**
 * The operations of the port.
 *
 * @since 0.1.0
 * @category models
 */
export interface SubscriptionStoreService {
  /**
   * Waits for the lease, renews it, and releases it when the scope closes. It waits while the subscription is stopped.
   * If the state of the subscription is deleted during the wait, the wait goes on as for one that has never run. It
   * fails with `ValidationError` if `from` is no position.
   */
  readonly lease: (options: LeaseOptions) => Effect.Effect<Lease, ValidationError | StoreError, Scope.Scope>

  /** The states of the partitions, in their order; empty while the subscription has never run. */
  readonly partitions: (name: string) => Effect.Effect<ReadonlyArray<PartitionState>, StoreError>

  /**
   * Waits until the subscription has reached the position, also one that has never run. All its partitions must reach
   * it, or the partition of the given aggregate. Parked events count as reached. It fails with `ValidationError` if
   * `position` is no position.
   */
  readonly awaitPosition: (
    name: string,
    position: Position,
    aggregateId?: string
  ) => Effect.Effect<void, ValidationError | StoreError>

  /** Resumes a subscription that has stopped. */
  readonly resume: (name: string) => Effect.Effect<void, StoreError>

  /** The parked events, in the order of the feed. */
  readonly parked: (name: string) => Effect.Effect<ReadonlyArray<ParkedEvent>, StoreError>

  /**
   * Runs the effect on a parked event. If that succeeds the event is no longer parked, in one transaction where the
   * store has them. Returns whether the event was parked.
   */
  readonly retryParked: <E, R>(
    name: string,
    event: { readonly aggregateId: string; readonly sequence: number },
    effect: (event: FeedEvent) => Effect.Effect<void, E, R>
  ) => Effect.Effect<boolean, E | StoreError, R>

  /** Discards a parked event. Returns whether it was parked. */
  readonly discardParked: (
    name: string,
    event: { readonly aggregateId: string; readonly sequence: number }
  ) => Effect.Effect<boolean, StoreError>
}

/**
 * The store of the state of subscriptions. Layers: `MemoryStore.layer`, `SqlStore.layer`.
 *
 * @since 0.1.0
 * @category tags
 */
export class SubscriptionStore extends Context.Tag("effect-maestro/SubscriptionStore")<
  SubscriptionStore,
  SubscriptionStoreService
>() {}
