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
 * The lease is lost: it ran out, and another process may have taken it, or the database has lost the last checkpoint. What
 * this process did since the stored checkpoint is not stored.
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
 * The subscription has another number of partitions in the store than the lease is for. The number was changed, or
 * nodes of another number began the subscription.
 *
 * @since 0.1.0
 * @category errors
 */
export class PartitionsChanged extends Schema.TaggedError<PartitionsChanged>("effect-maestro/PartitionsChanged")(
  "PartitionsChanged",
  { subscription: Schema.String, stored: Schema.Number, requested: Schema.Number }
) {
  override get message(): string {
    return `subscription ${JSON.stringify(this.subscription)} has ${this.stored} partitions in the store, and the lease is for one of ${this.requested}`
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
  /** Since when it holds the lease, in milliseconds since 1970. */
  readonly heldSince: Option.Option<number>
  /** Whether it stopped before an event that could not be handled, and waits for `resume`. */
  readonly stopped: boolean
  /** Whether attempts at an event are recorded. The next checkpoint clears them. */
  readonly retrying: boolean
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
 * The options of a node.
 *
 * @since 0.1.0
 * @category models
 */
export interface JoinOptions {
  /** The name of the subscription. */
  readonly name: string
  /** How many partitions the node wants. The subscription may have another number in the store. */
  readonly partitions: number
  /** The id of the node, which no other node has. */
  readonly node: string
  /** The name of the process, for people to read. */
  readonly holder: string
  /** In milliseconds. A node that gave no sign of life for so long has left. */
  readonly duration: number
}

/**
 * A node: one run of a subscription, in a process. Several nodes share the partitions of the subscription.
 *
 * @since 0.1.0
 * @category models
 */
export interface SubscriptionNode {
  readonly node: string
  readonly holder: string
  /** How many partitions it wants. */
  readonly partitions: number
  /** The partitions that it can't run at present, because its runs of them failed. */
  readonly declines: ReadonlyArray<number>
  /** When it joined, in milliseconds since 1970. */
  readonly since: number
}

/**
 * The nodes of a subscription, and which partition is assigned to which of them. An assignment says which node asks for
 * the lease. It gives no right to handle events, which only the lease does.
 *
 * @since 0.1.0
 * @category models
 */
export interface Shares {
  /** How many partitions the store has; undefined while the subscription has never run. */
  readonly partitions: number | undefined
  /** In the order in which they joined. */
  readonly nodes: ReadonlyArray<SubscriptionNode>
  /** A partition that was never assigned is missing. The node may have left. */
  readonly assigned: ReadonlyArray<{ readonly partition: number; readonly node: string }>
}

/**
 * The change of an assignment.
 *
 * @since 0.1.0
 * @category models
 */
export interface Assignment {
  readonly partition: number
  /** The node of the partition before; undefined if it was never assigned. */
  readonly from: string | undefined
  readonly to: string
}

/**
 * The part of a node in a subscription. `Subscription` decides on the assignments. A store keeps them, and notices
 * nodes that have left.
 *
 * @since 0.1.0
 * @category models
 */
export interface Membership {
  /**
   * Gives a sign of life, and returns the nodes, this one among them, and the assignments. A node is left out when its
   * scope has closed. It is left out, too, when it gave no sign of life for its duration and holds no lease.
   */
  readonly look: (declines: ReadonlyArray<number>) => Effect.Effect<Shares, StoreError>
  /** Changes each assignment that still is as `from` says, and leaves the others. */
  readonly assign: (changes: ReadonlyArray<Assignment>) => Effect.Effect<void, StoreError>
  /**
   * Replaces all partitions together by as many as this node wants, and returns whether it did. It does so only if
   *
   * - the store has as many partitions as `from` says, and all of them are at one position,
   * - no partition is leased, stopped or retrying,
   * - no node wants another number.
   *
   * The new partitions begin at that position, without assignments. Parked events stay parked, each in the partition of
   * its aggregate. All earlier leases are lost. If an earlier lease was not released, `isTakenOver` is true for the
   * first lease of each new partition.
   */
  readonly repartition: (from: number) => Effect.Effect<boolean, StoreError>
  /**
   * Waits until a look is due. It may return without a change. After a change it returns within a third of the
   * duration, so that the node gives signs of life often enough.
   */
  readonly due: Effect.Effect<void>
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
   * The first lease of a subscription makes all its partitions, at `from`. If the state of the subscription is deleted
   * during the wait, the wait goes on as for one that has never run.
   *
   * It fails with `ValidationError` if `from` is no position. It fails with `PartitionsChanged` if the subscription has
   * another number of partitions in the store, also when that becomes so during the wait.
   */
  readonly lease: (
    options: LeaseOptions
  ) => Effect.Effect<Lease, ValidationError | PartitionsChanged | StoreError, Scope.Scope>

  /**
   * Joins a subscription as a node, and leaves it when the scope closes. The node may want another number of partitions
   * than the store has.
   */
  readonly join: (options: JoinOptions) => Effect.Effect<Membership, StoreError, Scope.Scope>

  /** The nodes of the subscription, in the order in which they joined. */
  readonly nodes: (name: string) => Effect.Effect<ReadonlyArray<SubscriptionNode>, StoreError>

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
