/**
 * The third port: what subscriptions keep, which is how far they have come, who is at work, and which events they have parked.
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
 * A subscription, or one of the partitions that it is cut into.
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
 * Somebody else has taken over the subscription, after this process could not keep its lease: nothing that it did since its last
 * checkpoint is stored.
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
 * A failure as it is kept for people to read: of which event, and why.
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
  /** How often it was tried. */
  readonly attempts: number
}

/**
 * How often an event was tried by itself.
 *
 * @since 0.1.0
 * @category models
 */
export interface Attempts {
  readonly position: Position
  /** Those that have begun, and did not succeed or have not ended. */
  readonly attempts: number
}

/**
 * An event that was parked.
 *
 * @since 0.1.0
 * @category models
 */
export interface ParkedEvent extends EventFailure {
  readonly partition: number
  /** Milliseconds since 1970. */
  readonly since: number
}

/**
 * The right to work for one subscription, or partition of it: at most one process at a time has it.
 *
 * All but `lost` run in the transaction around them, where there is one. They fail with `LeaseLost` when another process has the lease, but for
 * `parked` and `blocked`: these run in the effect of `advance`, which fails so itself.
 *
 * @since 0.1.0
 * @category models
 */
export interface Lease {
  /** How far the subscription had come when the lease was had. */
  readonly position: Position
  /** The attempts that were counted when the lease was had, by whatever process. */
  readonly attempts: Option.Option<Attempts>
  /** Whether the last holder has not given the lease back: its process ended, or lost the lease, maybe while it handled an event. */
  readonly isTakenOver: boolean
  /** Ends when the lease is lost. */
  readonly lost: Effect.Effect<void>
  /** How far the subscription has come. */
  readonly checkpoint: Effect.Effect<Position, LeaseLost | StoreError>
  /**
   * Runs the effect and stores the checkpoint in one transaction, for stores that have them: both or neither. The effect's failures
   * come back unchanged.
   */
  readonly advance: <E, R>(
    position: Position,
    effect: Effect.Effect<void, E, R>
  ) => Effect.Effect<void, E | LeaseLost | StoreError, R>
  /** Stores the checkpoint alone, where there was nothing to handle up to there. */
  readonly advanceTo: (position: Position) => Effect.Effect<void, LeaseLost | StoreError>
  /** Sets the event of the failure aside. To be run in the effect of `advance`. */
  readonly park: (failure: EventFailure) => Effect.Effect<void, StoreError>
  /**
   * Those of the aggregates that have events parked. To be run in the effect of `advance`: until its end nobody else parks or
   * takes back.
   */
  readonly parkedAggregates: (aggregateIds: ReadonlyArray<string>) => Effect.Effect<ReadonlySet<string>, StoreError>
  /**
   * Counts an attempt before it begins, so that the count outlives the connection and the process. Progress of the checkpoint, and
   * `resume`, take the count off.
   */
  readonly recordAttempt: (attempts: Attempts) => Effect.Effect<void, LeaseLost | StoreError>
  /** Keeps the last failure for people to see, and its attempts as counted; or takes both off. */
  readonly recordFailure: (failure: EventFailure | undefined) => Effect.Effect<void, LeaseLost | StoreError>
  /** Stops the subscription until somebody resumes it. */
  readonly stop: (failure: EventFailure) => Effect.Effect<void, LeaseLost | StoreError>
}

/**
 * How a subscription, or partition of it, stands.
 *
 * @since 0.1.0
 * @category models
 */
export interface PartitionState extends Key {
  readonly position: Position
  /** Who has the lease; none while nobody works. */
  readonly holder: Option.Option<string>
  /** Whether it stopped at an event that could not be handled, and waits to be resumed. */
  readonly stopped: boolean
  /** Why it stopped, or what it is trying again. */
  readonly lastFailure: Option.Option<EventFailure>
  /** How many events are parked. */
  readonly parked: number
}

/**
 * What a subscription asks for a lease.
 *
 * @since 0.1.0
 * @category models
 */
export interface LeaseOptions {
  readonly key: Key
  /** Where the subscription begins, the first time. */
  readonly from: Position
  /** Who asks, for people to read. */
  readonly holder: string
  /** In milliseconds: when its holder gives no sign for so long, another may have it. */
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
   * Waits for the lease, keeps it alive, and gives it back when the scope ends. While the subscription is stopped nobody gets it.
   * Where the store deletes what it keeps of the subscription meanwhile, the wait goes on as for one that has never run. A `from` that is no
   * position is a `ValidationError`.
   */
  readonly lease: (options: LeaseOptions) => Effect.Effect<Lease, ValidationError | StoreError, Scope.Scope>

  /** How the partitions of a subscription stand, by partition; empty while it has never run. */
  readonly partitions: (name: string) => Effect.Effect<ReadonlyArray<PartitionState>, StoreError>

  /**
   * Waits until the subscription has come so far: all its partitions, or the one that the aggregate is in. One that has never run is
   * waited for. What is no position is a `ValidationError`.
   */
  readonly awaitPosition: (
    name: string,
    position: Position,
    aggregateId?: string
  ) => Effect.Effect<void, ValidationError | StoreError>

  /** Lets a subscription that has stopped go on. */
  readonly resume: (name: string) => Effect.Effect<void, StoreError>

  /** The events that are parked, in the order of the feed. */
  readonly parked: (name: string) => Effect.Effect<ReadonlyArray<ParkedEvent>, StoreError>

  /**
   * Takes an event back: runs the effect on it, and where that succeeds the event is no longer parked, in one transaction, for stores
   * that have them. Answers whether it was parked.
   */
  readonly retryParked: <E, R>(
    name: string,
    event: { readonly aggregateId: string; readonly sequence: number },
    effect: (event: FeedEvent) => Effect.Effect<void, E, R>
  ) => Effect.Effect<boolean, E | StoreError, R>

  /** Forgets an event that is parked. Answers whether it was. */
  readonly discardParked: (
    name: string,
    event: { readonly aggregateId: string; readonly sequence: number }
  ) => Effect.Effect<boolean, StoreError>
}

/**
 * What subscriptions are kept in. Layers: `MemoryStore.layer`, `SqlStore.layer`.
 *
 * @since 0.1.0
 * @category tags
 */
export class SubscriptionStore extends Context.Tag("effect-maestro/SubscriptionStore")<
  SubscriptionStore,
  SubscriptionStoreService
>() {}
