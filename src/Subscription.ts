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
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import type * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type { EventFeed, FeedEvent, Filter, HeldBack, Position, StreamPosition } from "./EventFeed.js"
import { bothOf } from "./internal/store/readOptions.js"
import { withoutReceipts } from "./internal/store/receiptStreams.js"
import { filterOf, handles, runProjections } from "./internal/store/runProjections.js"
import { validateStreamPosition } from "./internal/store/storedRecord.js"
import type { On } from "./internal/subscription/on.js"
import { makeRunner } from "./internal/subscription/runner.js"
import { awaitArrival } from "./internal/subscription/status.js"
import type { Projection } from "./Projection.js"
import { type StoreError, ValidationError, ValidationIssue } from "./StoreError.js"
import { type EventFailure, type ParkedEvent, type PartitionState, SubscriptionStore } from "./SubscriptionStore.js"

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
   * Handles an event that was parked, and takes it off the list where that succeeds. Answers whether it was on it. Where later
   * events of its aggregate are parked too, begin with the first.
   */
  readonly retryParked: (
    place: StreamPosition
  ) => Effect.Effect<boolean, E | ValidationError | StoreError, SubscriptionStore | R>

  /** Handles all events that are parked, in their order, up to the first that fails. Answers how many. */
  readonly retryAllParked: Effect.Effect<number, E | StoreError, SubscriptionStore | R>

  /** How it stands, and how far behind it is. */
  readonly status: Effect.Effect<Status, ValidationError | StoreError, EventFeed | SubscriptionStore>
}

/**
 * How a subscription is to run.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options {
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
  /** Into how many shares of the aggregates it is cut, each with a lease and a checkpoint of its own; 1 by default. It can't be changed later: with another number `run` fails with `Misconfigured`, the layer logs that failure as an error again and again, and the state of `status` is `misconfigured`. */
  readonly partitions?: number | undefined
  /**
   * When and how often an event that failed is tried again, by itself: five times within some three seconds by default. The attempts
   * are counted in the store, so an event that breaks its connection, or ends its process, is not tried for ever. Waiting for the
   * database of the store is no attempt. An event that the handler's schemas can't read (`UnreadableEvent`) is not retried.
   */
  readonly retry?: Schedule.Schedule<unknown> | undefined
  /**
   * What becomes of an event whose retries are used up.
   *
   * - `"stop"`, the default: the subscription stops before it, until somebody calls `resume`.
   * - `"park"`: the event is parked with its failure, and the subscription goes on.
   * - `"parkAggregate"`: so are the later events of its aggregate, in their order, until the first is retried or discarded.
   */
  readonly onFailure?: "stop" | "park" | "parkAggregate" | undefined
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

export {
  /**
   * What `on` takes for each event type: a handler of the decoded event, and of the stored one around it, with the `id` of its aggregate.
   *
   * @since 0.1.0
   * @category models
   */
  type EventHandlers,
  /**
   * What a subscription does with the events of one aggregate. `on` makes one.
   *
   * @since 0.1.0
   * @category models
   */
  type On,
  /**
   * Typed handlers for events of one aggregate, by their type: what `make` takes as `on`. They are given events of that aggregate only,
   * though others have events of the same type. An event that its schema can't decode fails with `UnreadableEvent`, which is not retried.
   *
   * @since 0.1.0
   * @category constructors
   */
  on
} from "./internal/subscription/on.js"

/**
 * A subscription stopped at an event that it could not handle, until `resume`.
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
  position: Schema.String,
  /**
   * - `Behind`: it is at work, and needs more time.
   * - `Idle`: no process runs it, or one of its partitions.
   * - `Stopped`: it has stopped, at the event of `failure`, and waits for `resume`.
   * - `NeverRun`: no subscription of that name has run on this store.
   */
  reason: Schema.Literal("Behind", "Idle", "Stopped", "NeverRun"),
  /** The event that it stopped at, and why. */
  failure: Schema.optional(
    Schema.Struct({
      aggregateId: Schema.String,
      sequence: Schema.Number,
      type: Schema.String,
      error: Schema.String,
      attempts: Schema.Number
    })
  )
}) {
  override get message(): string {
    const name = JSON.stringify(this.subscription)
    const why = {
      Behind: "it is at work",
      Idle: "no process runs it, or one of its partitions",
      Stopped:
        this.failure === undefined
          ? "it has stopped"
          : `it has stopped at event ${this.failure.sequence} of aggregate ${JSON.stringify(this.failure.aggregateId)}, of type ${JSON.stringify(this.failure.type)}: ${this.failure.error.split("\n")[0]}`,
      NeverRun: "no subscription of that name has run"
    }[this.reason]
    return `subscription ${name} has not come to position ${this.position} in time: ${why}`
  }
}

/**
 * How a subscription stands.
 *
 * @since 0.1.0
 * @category models
 */
export interface Status {
  /**
   * `idle` when no process works for it; `misconfigured` when it has another number of partitions in the store than in this program, so
   * that this program can't work for it. `partitions` tells the stored number.
   */
  readonly state: "running" | "idle" | "stopped" | "misconfigured"
  /** How many committed events it has not handled yet, those that the feed holds back included. */
  readonly eventsBehind: number
  /** How old the first of these is, in seconds; 0 when there is none. */
  readonly secondsBehind: number
  /** The events that it can't handle before an older transaction has ended. It warns in the log after half a minute. */
  readonly heldBack: Option.Option<HeldBack>
  /** How many events are parked. */
  readonly parked: number
  readonly partitions: ReadonlyArray<PartitionStatus>
}

/**
 * How a partition of a subscription stands.
 *
 * @since 0.1.0
 * @category models
 */
export interface PartitionStatus extends PartitionState {
  readonly eventsBehind: number
  readonly secondsBehind: number
}

/**
 * Makes a subscription: of typed handlers for the events of one or several aggregates (`on`), or of a handler for whatever its filter lets
 * through (`handle`, `handleBatch`).
 *
 * A name is a text of 1 to 255 characters, which does not begin with `effect-maestro`.
 *
 * It throws a `TypeError` for a setting out of its bounds, and where no handler or no event is left: `on: []`, or a filter that lets none through.
 *
 * @since 0.1.0
 * @category constructors
 *
 * @example
 * ```ts
 * import { SqlClient } from "@effect/sql"
 * import { Aggregate, Subscription } from "effect-maestro"
 * import * as Effect from "effect/Effect"
 * import * as Schema from "effect/Schema"
 *
 * class Renamed extends Schema.TaggedClass<Renamed>()("Renamed", { name: Schema.String }) {}
 *
 * const Product = Aggregate.make("Product", {
 *   state: Schema.String,
 *   initialState: "",
 *   events: Renamed,
 *   commands: Renamed,
 *   decide: { Renamed: (command) => Effect.succeed([command]) },
 *   evolve: { Renamed: (_, { name }) => name }
 * })
 *
 * export const Search = Subscription.make("search", {
 *   on: Subscription.on(Product, {
 *     Renamed: ({ name }, { id, sequence }) =>
 *       Effect.flatMap(
 *         SqlClient.SqlClient,
 *         (sql) => sql`insert into product_names (product, version, name) values (${id}, ${sequence}, ${name})`
 *       )
 *   })
 * })
 * ```
 */
export const make: <const Ons extends On.Any | ReadonlyArray<On.Any> = never, E = never, R = never>(
  name: string,
  options: MakeOptions<Ons, E, R>
) => Subscription<E | On.Error<EachOf<Ons>>, R | On.Context<EachOf<Ons>>> = <E, R>(
  name: string,
  options: Options & Partial<Handler<E, R>> & { readonly on?: On<E, R> | ReadonlyArray<On<E, R>> | undefined }
): Subscription<E, R> => {
  if (options.on === undefined) return makeOf(name, options)
  const all: ReadonlyArray<On<E, R>> = "handle" in options.on ? [options.on] : options.on
  for (const { events, of } of all) {
    if (events.length > 0) continue
    throw new TypeError(`subscription ${name} has no handler for events of ${of === "all" ? "any aggregate" : of.name}`)
  }
  const settings: Options = options
  return makeOf<E, R>(name, {
    ...settings,
    filter: bothOf(filterOf(all), settings.filter),
    handleBatch: undefined,
    handle: (event) =>
      Effect.forEach(
        all.filter((one) => handles(one, event)),
        (one) => one.handle(event),
        { discard: true }
      )
  })
}

/**
 * A subscription that keeps projections: they are eventual instead of strong. Each says whose events it is about: it is made
 * with `of`, one of `Account.projections`, or `Projection.of(Account, Balances)`. One that names no types gets no receipts of commands.
 *
 * @since 0.1.0
 * @category constructors
 */
export const fromProjections = <const Projections extends ReadonlyArray<Projection.AnyBound>>(
  name: string,
  projections: Projections,
  settings?: OptionsWithoutTypes
): Subscription<Projection.Error<Projections[number]>, Projection.Context<Projections[number]>> & {
  readonly projections: Projections
} => {
  type E = Projection.Error<Projections[number]>
  type R = Projection.Context<Projections[number]>
  for (const { name: projection, of } of projections as ReadonlyArray<Projection.Any>) {
    if (of !== undefined) continue
    throw new TypeError(
      `projection ${JSON.stringify(projection)} of subscription ${name} must be of an aggregate, or of all`
    )
  }
  const filter = bothOf(filterOf(projections), settings?.filter)
  const handle = runProjections<E, R>(projections.map((projection) => withoutReceipts(projection)))
  return { ...makeOf<E, R>(name, { ...settings, filter, handle }), projections }
}

/**
 * Waits until a subscription has handled everything up to an event, or a position of the feed: then what it keeps tells of your own
 * write. Give what `evaluate` answered with as `position`, or a position that you have kept. After the timeout, `NotReached` says why it has
 * not come so far.
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
  subscription: Named,
  place: StreamPosition | Position,
  timeout: Duration.DurationInput
): Effect.Effect<void, NotReached | ValidationError | StoreError, EventFeed | SubscriptionStore> => {
  const name = nameOf(subscription)
  return Effect.flatMap(awaitArrival(name, place, timeout), (delay) =>
    delay === undefined ? Effect.void : new NotReached({ subscription: name, ...delay })
  )
}

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
 * class Placed extends Schema.TaggedClass<Placed>()("Placed", {}) {}
 * class Reserved extends Schema.TaggedClass<Reserved>()("Reserved", { order: Schema.String }) {}
 *
 * const Order = Aggregate.make("Order", {
 *   state: Schema.Boolean,
 *   initialState: false,
 *   events: Placed,
 *   commands: Placed,
 *   decide: { Placed: (command) => Effect.succeed([command]) },
 *   evolve: { Placed: () => true }
 * })
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
 *   delivery: "at-least-once",
 *   on: Subscription.on(Order, {
 *     Placed: (_, envelope) =>
 *       Stock.evaluate("stock", new Reserved({ order: envelope.id })).pipe(
 *         Aggregate.withCommandId(Subscription.commandId("reservations", envelope))
 *       )
 *   })
 * })
 * ```
 */
export const commandId = (subscription: Named, event: StreamPosition, step?: string): string =>
  // As JSON, so that no two of them come to one text, whatever is in the names.
  JSON.stringify([nameOf(subscription), event.aggregateId, event.sequence, ...(step === undefined ? [] : [step])])

/**
 * Lets a subscription that has stopped go on: with the event that it stopped at. Where no subscription of that name has run, that is a
 * `ValidationError`.
 *
 * @since 0.1.0
 * @category operations
 */
export const resume = (subscription: Named): Effect.Effect<void, ValidationError | StoreError, SubscriptionStore> =>
  Effect.gen(function* () {
    const store = yield* SubscriptionStore
    const name = nameOf(subscription)
    if ((yield* store.partitions(name)).length === 0) {
      const message = `no subscription of the name ${JSON.stringify(name)} has run`
      const issue = new ValidationIssue({ path: ["name"], message })
      return yield* new ValidationError({ operation: "Subscription.resume", issues: [issue] })
    }
    yield* store.resume(name)
  })

/**
 * The events that a subscription has parked, in the order of the feed.
 *
 * @since 0.1.0
 * @category operations
 */
export const parked = (subscription: Named): Effect.Effect<ReadonlyArray<ParkedEvent>, StoreError, SubscriptionStore> =>
  Effect.flatMap(SubscriptionStore, (store) => store.parked(nameOf(subscription)))

/**
 * Forgets an event that was parked. Answers whether it was.
 *
 * @since 0.1.0
 * @category operations
 */
export const discardParked = (
  subscription: Named,
  place: StreamPosition
): Effect.Effect<boolean, ValidationError | StoreError, SubscriptionStore> =>
  Effect.zipRight(
    validateStreamPosition("Subscription.discardParked", place),
    Effect.flatMap(SubscriptionStore, (store) => store.discardParked(nameOf(subscription), place))
  )

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

/** A subscription, or its name. */
type Named = string | Pick<Subscription<unknown, unknown>, "name">

const nameOf = (subscription: Named): string => (typeof subscription === "string" ? subscription : subscription.name)

/** A union instead of overloads, so that the compiler says of a wrong setting what is wrong with it, and nothing else. */
type MakeOptions<Ons, E, R> =
  | (OptionsWithoutTypes & {
      /** What is done with the events of each aggregate. From it the filter has its types and its aggregates. */
      readonly on: Ons
    })
  | (Options & Handler<E, R> & { readonly on?: undefined })

type OptionsWithoutTypes = Omit<Options, "filter"> & { readonly filter?: Omit<Filter, "types"> | undefined }

type EachOf<Ons> = Ons extends ReadonlyArray<infer One> ? One : Ons

/** The subscription of one handler. */
const makeOf = <E, R>(name: string, options: Options & Partial<Handler<E, R>>): Subscription<E, R> => {
  const { handle, handleBatch } = options
  if (handle === undefined && handleBatch === undefined) {
    throw new TypeError(`subscription ${name} has no handler: it takes \`on\`, \`handle\` or \`handleBatch\``)
  }
  return makeRunner<E, R, SubscriptionStopped>(
    {
      name,
      filter: options.filter,
      from: options.from ?? "beginning",
      partitions: options.partitions ?? 1,
      batchSize: options.batchSize ?? (options.delivery === "at-least-once" ? 50 : 500),
      handle: (events) =>
        handleBatch === undefined
          ? handle === undefined
            ? Effect.void
            : Effect.forEach(events, handle, { discard: true })
          : handleBatch(events),
      transactional: options.delivery !== "at-least-once",
      retry: options.retry ?? defaultRetry,
      onFailure: options.onFailure ?? "stop",
      lease: Duration.toMillis(options.lease ?? "15 seconds"),
      holder: options.holder,
      grace: Duration.toMillis(options.shutdown ?? "10 seconds")
    },
    (error) => stoppedAt(name, error)
  )
}

const stoppedAt = (
  name: string,
  { failure, partition }: { readonly failure: EventFailure; readonly partition: number }
) =>
  new SubscriptionStopped({
    subscription: name,
    partition,
    aggregateId: failure.aggregateId,
    sequence: failure.sequence,
    type: failure.type,
    error: failure.error,
    attempts: failure.attempts
  })
