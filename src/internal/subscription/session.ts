/**
 * What a consumer of a subscription is made of, and its session: all that it knows while it holds one lease.
 */
import type { NonEmptyReadonlyArray } from "effect/Array"
import type * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Schedule from "effect/Schedule"
import type { EventFeedService, FeedEvent, Filter, Position } from "../../EventFeed.js"
import type { EventFailure, Lease } from "../../SubscriptionStore.js"
import { type EventAttempts, makeEventAttempts } from "./eventAttempts.js"
import { firstPause } from "./retryWhileUnavailable.js"
import type { Turn } from "./turn.js"

/** A subscription, with the defaults of its options filled in. */
export interface ConsumerOptions<E, R> {
  readonly name: string
  readonly filter: Filter | undefined
  readonly from: "beginning" | "now" | Position
  readonly batchSize: number
  readonly handle: (events: NonEmptyReadonlyArray<FeedEvent>) => Effect.Effect<unknown, E, R>
  /** Whether the handler runs in the transaction that stores the checkpoint. */
  readonly transactional: boolean
  readonly retry: Schedule.Schedule<unknown>
  readonly onFailure: "stop" | "park" | "parkAggregate"
  /** The duration of the lease, in milliseconds. */
  readonly lease: number
  readonly holder: string
  /** How long a batch may go on after an interruption, in milliseconds. */
  readonly grace: number
  readonly observe: (event: ConsumerEvent) => Effect.Effect<void>
}

/** What a consumer reports to `observe`, for metrics. */
export type ConsumerEvent =
  | { readonly _tag: "Held"; readonly partition: number }
  | { readonly _tag: "Released"; readonly partition: number }
  | { readonly _tag: "Handled"; readonly partition: number; readonly events: number }
  | { readonly _tag: "Failed"; readonly partition: number; readonly failure: EventFailure }
  | { readonly _tag: "Parked"; readonly partition: number; readonly failure: EventFailure }

/** The state of a consumer under one lease. A new lease begins with a new session. */
export interface Session<R> {
  readonly options: ConsumerOptions<unknown, R>
  readonly feed: EventFeedService
  /** The filter of the subscription, cut down to the partition. */
  readonly filter: Filter | undefined
  readonly partition: number
  readonly turn: Turn
  readonly lease: Lease
  /** Whether the lease is lost. A batch under way can't be stored then, so its end is not awaited. */
  isLost: boolean
  /**
   * Whether the next events may break the connection, the lease or the process, as the last ones did. Then each event
   * is handled by itself, and each attempt is counted in the store before it begins.
   */
  isCareful: boolean
  /** The attempts at the event that is being retried. */
  retrying: EventAttempts | undefined
  /** The last stored position, and when it was stored, in milliseconds since 1970. */
  checkpoint: Position
  checkpointAt: number
  /** Whether the store may hold a failure that is out of date. */
  mayHaveFailure: boolean
  /** Whether the handler ran in the last batch. */
  handlerRan: boolean
  /** The pause after the next failure of the database, in milliseconds. */
  pause: number
}

export const makeSession = <R>(
  parts: Pick<Session<R>, "options" | "feed" | "filter" | "partition" | "turn" | "lease">,
  wasLost: boolean
): Session<R> => {
  const { lease, options } = parts
  const retrying = Option.getOrUndefined(Option.map(lease.attempts, (known) => makeEventAttempts(options.retry, known)))
  return {
    ...parts,
    isLost: false,
    isCareful: wasLost || lease.isTakenOver || retrying !== undefined,
    retrying,
    checkpoint: lease.position,
    checkpointAt: 0,
    mayHaveFailure: true,
    handlerRan: false,
    pause: firstPause
  }
}
