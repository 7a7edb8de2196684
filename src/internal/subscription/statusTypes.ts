/**
 * The state of a subscription, as `Subscription` shows it. `status.ts` makes it.
 */
import type * as Option from "effect/Option"
import type { HeldBack } from "../../EventFeed.js"
import type { PartitionState } from "../../SubscriptionStore.js"

/**
 * The state of a subscription.
 */
export interface Status {
  /** `idle` if no process holds a lease of it. */
  readonly state: "running" | "idle" | "stopped"
  /** The number of committed events that it has not handled yet, including held back events. */
  readonly eventsBehind: number
  /** The age of the first of these, in seconds; 0 if there is none. */
  readonly secondsBehind: number
  /** The events that it can't handle before an older transaction has ended. A warning is logged after half a minute. */
  readonly heldBack: Option.Option<HeldBack>
  /** The number of parked events. */
  readonly parked: number
  /** As many as the store has, which may be another number than the option `partitions` until all nodes want it. */
  readonly partitions: ReadonlyArray<PartitionStatus>
}

/**
 * The state of a partition of a subscription.
 */
export interface PartitionStatus extends PartitionState {
  readonly eventsBehind: number
  readonly secondsBehind: number
}

/**
 * A node of a subscription: one run of it, in a process.
 */
export interface NodeStatus {
  /** The option `holder`, or the id that the run was given. */
  readonly holder: string
  /** When it began, in milliseconds since 1970. */
  readonly since: number
  /** How many partitions it wants, by its option `partitions`. */
  readonly partitions: number
  /** The partitions whose lease it holds. If several nodes have one name, each shows the partitions of all of them. */
  readonly holds: ReadonlyArray<number>
}
