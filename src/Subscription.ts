/**
 * Subscriptions: named readers of the feed that remember how far they have come.
 *
 * What a handler writes through `SqlClient` is stored in the same transaction as the checkpoint, so each event takes effect exactly
 * once, whatever breaks in between. Any number of processes may run the same subscription: one of them works, the others stand by.
 *
 * The idea of catch-up subscriptions with checkpoints is that of EventStoreDB; that of a lease with a fencing token is Martin Kleppmann's
 * ("How to do distributed locking", 2016).
 *
 * @since 0.1.0
 */
import type { NonEmptyReadonlyArray } from "effect/Array"
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import {
  EventFeed,
  type FeedEvent,
  type Filter,
  type HeldBack,
  type Position,
  type StreamPosition
} from "./EventFeed.js"
import { HasStopped, type Work, work } from "./internal/consumer.js"
import { textProblem } from "./internal/json.js"
import { projectBy, typesOf } from "./internal/projecting.js"
import { withoutReceipts } from "./internal/receipt.js"
import { measured, measureLag } from "./internal/subscriptionMetrics.js"
import { statusOf } from "./internal/subscriptionStatus.js"
import type { Projection } from "./Projection.js"
import { type StoreError, ValidationError, ValidationIssue } from "./StoreError.js"
import { type Failure, type SetAside, type Standing, SubscriptionStore } from "./SubscriptionStore.js"
import { HybridClock } from "./Timestamp.js"

/**
 * A subscription: what it does, and how to run it.
 *
 * @since 0.1.0
 * @category models
 */
export interface Subscription<out E = never, out R = never> {
  readonly name: string
  readonly filter: Filter | undefined
  readonly partitions: number

  /**
   * Works for ever. It fails with `SubscriptionStopped` when an event could not be handled and `onFailure` is `"stop"`; while the
   * database can't be reached it waits. When it is interrupted it finishes the batch that is under way.
   */
  readonly run: Effect.Effect<
    never,
    SubscriptionStopped | ValidationError | StoreError,
    EventFeed | SubscriptionStore | R
  >

  /**
   * Runs it in the background for as long as the layer lives. When it stops at an event it says so in the log, and goes on once
   * somebody calls `resume`.
   */
  readonly layer: Layer.Layer<never, never, EventFeed | SubscriptionStore | R>

  /**
   * Handles an event that was set aside, and takes it off the list where that succeeds. Answers whether it was on it. Where later
   * events of its aggregate are set aside too, begin with the first.
   */
  readonly retry: (place: StreamPosition) => Effect.Effect<boolean, E | StoreError, SubscriptionStore | R>

  /** Handles all events that are set aside, in their order, up to the first that fails. Answers how many. */
  readonly retryAll: Effect.Effect<number, E | StoreError, SubscriptionStore | R>

  /** How it stands, and how far behind it is. */
  readonly status: Effect.Effect<Status, ValidationError | StoreError, EventFeed | SubscriptionStore>
}

/**
 * How a subscription is to run.
 *
 * @since 0.1.0
 * @category models
 */
export interface Settings {
  /** Which events it is about; all by default. */
  readonly filter?: Filter | undefined
  /**
   * Where it begins when it runs for the first time: before all events (the default), after those that are there, or after a
   * position. Later it goes on where it was.
   */
  readonly from?: "beginning" | "now" | Position | undefined
  /** As many events as are handled in one transaction, or between two checkpoints: 500 by default, at most 10 000. */
  readonly batchSize?: number | undefined
  /**
   * - `"exactly-once"`, the default: the handler runs in the transaction that stores the checkpoint. What it writes through `SqlClient`
   *   is stored with it or not at all; what it does elsewhere may be done again. On a server it must not leave the connection idle for
   *   as long as the lease lasts: the database ends it, and that is a failed attempt.
   * - `"at-least-once"`: the handler runs first, outside of any transaction, and the checkpoint is stored when it is done. After a crash the
   *   events since the last checkpoint are handled again. For handlers that call other services, or take their time.
   */
  readonly delivery?: "exactly-once" | "at-least-once" | undefined
  /** Into how many shares of the aggregates it is cut, each with a lease and a checkpoint of its own; 1 by default. It can't be changed later. */
  readonly partitions?: number | undefined
  /**
   * When and how often an event that failed is tried again, by itself: five times within some three seconds by default. The attempts
   * are counted in the store, so an event that breaks its connection, or ends its process, is not tried for ever. Waiting for the
   * database of the store is no attempt. An event that the handler's schemas can't read (`UnreadableEvent`, `ForeignEvent`) is not retried.
   */
  readonly retry?: Schedule.Schedule<unknown> | undefined
  /**
   * What becomes of an event whose retries are used up.
   *
   * - `"stop"`, the default: the subscription stops before it, until somebody calls `resume`.
   * - `"setAside"`: the event is set aside with its failure, and the subscription goes on.
   * - `"setAsideAggregate"`: so are the later events of its aggregate, in their order, until the first is retried or discarded.
   */
  readonly onFailure?: "stop" | "setAside" | "setAsideAggregate" | undefined
  /**
   * How long a process that gives no sign keeps others waiting: 15 seconds by default. One that comes back later finds its lease
   * lost, and nothing of what it was doing is stored.
   */
  readonly lease?: Duration.DurationInput | undefined
  /** Who this process is, for people to read; a new id by default. */
  readonly holder?: string | undefined
  /** How long a batch that is under way may go on when the process is to end: 10 seconds by default. */
  readonly shutdown?: Duration.DurationInput | undefined
}

/**
 * What a subscription does with events: one after the other, or a batch at once.
 *
 * @since 0.1.0
 * @category models
 */
export type Handler<E, R> =
  | { readonly handle: (event: FeedEvent) => Effect.Effect<unknown, E, R>; readonly handleBatch?: undefined }
  | {
      readonly handleBatch: (events: NonEmptyReadonlyArray<FeedEvent>) => Effect.Effect<unknown, E, R>
      readonly handle?: undefined
    }

/**
 * A subscription stopped at an event that it could not handle. It stays there until `resume`.
 *
 * @since 0.1.0
 * @category errors
 */
export class SubscriptionStopped extends Schema.TaggedError<SubscriptionStopped>("effect-maestro/SubscriptionStopped")(
  "SubscriptionStopped",
  {
    subscription: Schema.String,
    partition: Schema.Number,
    aggregateId: Schema.String,
    sequence: Schema.Number,
    type: Schema.String,
    /** What the handler failed with, as text. */
    error: Schema.String,
    attempts: Schema.Number
  }
) {
  override get message(): string {
    return `subscription ${JSON.stringify(this.subscription)} stopped at event ${this.sequence} of aggregate ${JSON.stringify(this.aggregateId)}, of type ${JSON.stringify(this.type)}, after ${this.attempts} attempts: ${this.error}`
  }
}

/**
 * A subscription had not come so far in the time given.
 *
 * @since 0.1.0
 * @category errors
 */
export class NotReached extends Schema.TaggedError<NotReached>("effect-maestro/NotReached")("NotReached", {
  subscription: Schema.String,
  position: Schema.String
}) {
  override get message(): string {
    return `subscription ${JSON.stringify(this.subscription)} has not come to position ${this.position} in time`
  }
}

/**
 * How a subscription stands.
 *
 * @since 0.1.0
 * @category models
 */
export interface Status {
  /** `idle` when no process works for it. */
  readonly state: "running" | "idle" | "stopped"
  /** How many committed events it has not handled yet, those that the feed holds back included. */
  readonly eventsBehind: number
  /** How old the first of these is, in seconds; 0 when there is none. */
  readonly secondsBehind: number
  /** The events that it can't handle before an older transaction has ended. It warns in the log after half a minute. */
  readonly heldBack: Option.Option<HeldBack>
  /** How many events are set aside. */
  readonly setAside: number
  readonly partitions: ReadonlyArray<PartitionStatus>
}

/**
 * How a partition of a subscription stands.
 *
 * @since 0.1.0
 * @category models
 */
export interface PartitionStatus extends Standing {
  readonly eventsBehind: number
  readonly secondsBehind: number
}

/**
 * Makes a subscription.
 *
 * @since 0.1.0
 * @category constructors
 *
 * @example
 * ```ts
 * import { SqlClient } from "@effect/sql"
 * import { Subscription } from "effect-maestro"
 * import * as Effect from "effect/Effect"
 *
 * export const Search = Subscription.make("search", {
 *   filter: { aggregates: ["Product"] },
 *   handle: (event) =>
 *     Effect.flatMap(
 *       SqlClient.SqlClient,
 *       (sql) => sql`insert into product_history (product, what) values (${event.aggregateId}, ${event.type})`
 *     )
 * })
 * ```
 */
export const make = <E, R>(name: string, options: Settings & Handler<E, R>): Subscription<E, R> => {
  const partitions = options.partitions ?? 1
  const filter = options.filter
  const { handle, handleBatch } = options
  checkSettings(name, options)
  const handler = (events: NonEmptyReadonlyArray<FeedEvent>): Effect.Effect<unknown, E, R> =>
    handleBatch === undefined
      ? handle === undefined
        ? Effect.void
        : Effect.forEach(events, handle, { discard: true })
      : handleBatch(events)

  const job = Effect.map(
    options.holder === undefined ? Effect.flatMap(HybridClock, ({ now }) => now) : Effect.succeed(options.holder),
    (holder): Work<E, R> => ({
      name,
      filter,
      from: options.from ?? "beginning",
      partitions,
      batchSize: options.batchSize ?? (options.delivery === "at-least-once" ? 50 : 500),
      handle: handler,
      transactional: options.delivery !== "at-least-once",
      retry: options.retry ?? defaultRetry,
      onFailure: options.onFailure ?? "stop",
      lease: Duration.toMillis(options.lease ?? "15 seconds"),
      holder,
      grace: Duration.toMillis(options.shutdown ?? "10 seconds"),
      observe: measured(name)
    })
  )

  const runPartition = (partition: number) =>
    Effect.gen(function* () {
      const feed = yield* EventFeed
      const store = yield* SubscriptionStore
      return yield* work(yield* job, feed, store, partition)
    }).pipe(
      Effect.mapError((error) => (error instanceof HasStopped ? stoppedAt(name, error) : error)),
      Effect.annotateLogs({ subscription: name, partition })
    )

  const all = Array.from({ length: partitions }, (_, partition) => partition)

  const retry = (place: StreamPosition) =>
    Effect.flatMap(SubscriptionStore, (store) =>
      store.takeBack(name, place, (event) => Effect.asVoid(handler([event])))
    )

  const status = statusOf(name, filter)
  const inAll = <A, E2, R2>(runOne: (partition: number) => Effect.Effect<A, E2, R2>) =>
    Effect.scoped(
      Effect.zipRight(
        Effect.forkScoped(measureLag(name, status)),
        Effect.zipRight(Effect.forEach(all, runOne, { concurrency: "unbounded", discard: true }), Effect.never)
      )
    )

  return {
    name,
    filter,
    partitions,
    run: inAll(runPartition),
    layer: Layer.scopedDiscard(
      Effect.forkScoped(
        inAll((partition) =>
          Effect.forever(
            // A defect too is to be told, and to be tried again. The end of the layer, which interrupts, is not caught.
            Effect.catchAllCause(runPartition(partition), (cause) => {
              const error = Cause.squash(cause)
              return Effect.zipRight(
                Effect.logError(error instanceof Error ? error.message : error),
                // Stopped, it waits for `resume`. Anything else is a mistake in the program or the database: not too often.
                error instanceof SubscriptionStopped ? Effect.void : Effect.sleep("10 seconds")
              )
            })
          )
        )
      )
    ),
    retry,
    retryAll: Effect.flatMap(setAside(name), (events) =>
      Effect.reduce(events, 0, (count, event) => Effect.map(retry(event), (done) => count + (done ? 1 : 0)))
    ),
    status
  }
}

/**
 * An eventual projection: strong ones, as they are, kept by a subscription instead of by those who commit. It follows the types that the
 * projections name; with one that names none it follows all, but for the receipts of `Aggregate.CommandId`.
 *
 * @since 0.1.0
 * @category constructors
 */
export const fromProjections = <const Projections extends ReadonlyArray<Projection.Any>>(
  name: string,
  projections: Projections,
  settings?: Omit<Settings, "filter"> & { readonly filter?: Omit<Filter, "types"> | undefined }
): Subscription<Projection.Error<Projections[number]>, Projection.Context<Projections[number]>> => {
  type E = Projection.Error<Projections[number]>
  type R = Projection.Context<Projections[number]>
  const types = typesOf(projections)
  return make<E, R>(name, {
    ...settings,
    filter: types === undefined ? settings?.filter : { ...settings?.filter, ...types },
    handle: projectBy<E, R>(projections.map((projection) => withoutReceipts(projection)))
  })
}

/**
 * Waits until a subscription has handled everything up to an event, or a position of the feed: then what it keeps tells of your own
 * write. Give what `evaluate` answered with as `position`, or a position that you have kept.
 *
 * An event that the subscription's filter does not let through is passed within a second or two.
 *
 * @since 0.1.0
 * @category accessors
 *
 * @example
 * ```ts
 * import { type EventFeed, Subscription } from "effect-maestro"
 *
 * export const afterMyOwnWrite = (position: EventFeed.StreamPosition) =>
 *   Subscription.waitFor("search", position, "2 seconds")
 * ```
 */
export const waitFor = (
  name: string,
  place: StreamPosition | Position,
  timeout: Duration.DurationInput
): Effect.Effect<void, NotReached | ValidationError | StoreError, EventFeed | SubscriptionStore> =>
  Effect.gen(function* () {
    const feed = yield* EventFeed
    const store = yield* SubscriptionStore
    if (typeof place !== "string" && place.sequence === 0) return
    const position = typeof place === "string" ? place : Option.getOrUndefined(yield* feed.positionOf(place))
    if (position === undefined) {
      return yield* new ValidationError({
        operation: "Subscription.waitFor",
        issues: [new ValidationIssue({ index: 0, path: ["sequence"], message: "must be that of a stored event" })]
      })
    }
    yield* Effect.timeoutFail(
      store.reached(name, position, typeof place === "string" ? undefined : place.aggregateId),
      {
        duration: timeout,
        onTimeout: () => new NotReached({ subscription: name, position })
      }
    )
  })

/**
 * The id of a command that a subscription evaluates because of an event: for the same subscription, event and step it is always the same. Set
 * by `Aggregate.withCommandId`, it sees to it that an event that is handled again, after a crash or a retry, does not
 * repeat the command. Give each of several commands on one aggregate a step of its own.
 *
 * @since 0.1.0
 * @category constructors
 *
 * @example
 * ```ts
 * import { Aggregate, Subscription } from "effect-maestro"
 * import * as Effect from "effect/Effect"
 * import * as Schema from "effect/Schema"
 *
 * class Reserved extends Schema.TaggedClass<Reserved>()("Reserved", { order: Schema.String }) {}
 *
 * const Stock = Aggregate.make("Stock", {
 *   state: Schema.Number,
 *   initialState: 100,
 *   events: Reserved,
 *   commands: Reserved,
 *   decide: { Reserved: (command) => Effect.succeed([command]) },
 *   evolve: { Reserved: (left) => left - 1 }
 * })
 *
 * // Outside of any transaction, so that a slow command holds no locks.
 * export const Reservations = Subscription.make("reservations", {
 *   filter: { types: ["OrderPlaced"] },
 *   delivery: "at-least-once",
 *   handle: (event) =>
 *     Stock.evaluate("stock", new Reserved({ order: event.aggregateId })).pipe(
 *       Aggregate.withCommandId(Subscription.commandId("reservations", event))
 *     )
 * })
 * ```
 */
export const commandId = (
  subscription: string | Pick<Subscription<unknown, unknown>, "name">,
  event: StreamPosition,
  step?: string
): string => {
  const name = typeof subscription === "string" ? subscription : subscription.name
  // As JSON, so that no two of them come to one text, whatever is in the names.
  return JSON.stringify([name, event.aggregateId, event.sequence, ...(step === undefined ? [] : [step])])
}

/**
 * Lets a subscription that has stopped go on: with the event that it stopped at.
 *
 * @since 0.1.0
 * @category operations
 */
export const resume = (name: string): Effect.Effect<void, StoreError, SubscriptionStore> =>
  Effect.flatMap(SubscriptionStore, (store) => store.resume(name))

/**
 * The events that a subscription has set aside, in the order of the feed.
 *
 * @since 0.1.0
 * @category operations
 */
export const setAside = (name: string): Effect.Effect<ReadonlyArray<SetAside>, StoreError, SubscriptionStore> =>
  Effect.flatMap(SubscriptionStore, (store) => store.setAside(name))

/**
 * Forgets an event that was set aside. Answers whether it was.
 *
 * @since 0.1.0
 * @category operations
 */
export const discard = (name: string, place: StreamPosition): Effect.Effect<boolean, StoreError, SubscriptionStore> =>
  Effect.flatMap(SubscriptionStore, (store) => store.discard(name, place))

/**
 * The retries of a subscription that does not say otherwise: after 100 ms, 200 ms, 400 ms … five times, jittered.
 *
 * @since 0.1.0
 * @category schedules
 */
export const defaultRetry: Schedule.Schedule<unknown> = Schedule.exponential("100 millis").pipe(
  Schedule.jittered,
  Schedule.intersect(Schedule.recurs(5))
)

// --- internal ---

const checkSettings = (name: string, { batchSize, filter, lease, partitions }: Settings): void => {
  const whole = (value: number | undefined, field: string, max: number) => {
    if (value !== undefined && !(Number.isInteger(value) && value >= 1 && value <= max)) {
      throw new TypeError(`${field} of subscription ${name} must be a whole number from 1 to ${max}, and is ${value}`)
    }
  }
  const problem = name === "" ? "must not be empty" : textProblem(name)
  if (problem !== undefined) throw new TypeError(`the name of subscription ${JSON.stringify(name)} ${problem}`)
  whole(batchSize, "batchSize", 10_000)
  whole(partitions, "partitions", 1000)
  if (filter?.slice !== undefined && (partitions ?? 1) > 1) {
    throw new TypeError(`subscription ${name} can't be cut into partitions and be about a slice: partitions are slices`)
  }
  const millis = lease === undefined ? undefined : Duration.toMillis(lease)
  if (millis !== undefined && !(millis >= 10 && millis <= 86_400_000)) {
    throw new TypeError(`lease of subscription ${name} must be from 10 milliseconds to a day`)
  }
}

const stoppedAt = (name: string, { failure, partition }: { readonly failure: Failure; readonly partition: number }) =>
  new SubscriptionStopped({
    subscription: name,
    partition,
    aggregateId: failure.aggregateId,
    sequence: failure.sequence,
    type: failure.type,
    error: failure.error,
    attempts: failure.attempts
  })
