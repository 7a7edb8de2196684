/**
 * Subscriptions: named readers of the feed with a stored checkpoint.
 *
 * What a handler writes through `SqlClient` is stored in the transaction of the checkpoint, so each event takes effect
 * exactly once, also after a crash. Several processes may run one subscription, and divide its partitions: one process
 * at a time holds the lease of a partition and handles the events.
 *
 * Catch-up subscriptions with checkpoints are known from EventStoreDB; leases with a fencing token from Martin
 * Kleppmann ("How to do distributed locking", 2016).
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import type { Envelope } from "./Event.js"
import type { EventFeed, Filter, Position, StreamPosition } from "./EventFeed.js"
import { bothOf } from "./internal/store/readOptions.js"
import { withoutReceipts } from "./internal/store/receiptStreams.js"
import { filterOf, handles, runProjections } from "./internal/store/runProjections.js"
import { validateStreamPosition } from "./internal/store/storedRecord.js"
import { NotReached, type SubscriptionStopped } from "./internal/subscription/errors.js"
import { handlingEach, handlingTogether } from "./internal/subscription/handler.js"
import type { EachOf, Handler, MakeOptions, OptionsWithoutTypes } from "./internal/subscription/makeTypes.js"
import type { On } from "./internal/subscription/on.js"
import { checkHandlers, checkProjections, makeRunner } from "./internal/subscription/runner.js"
import { awaitPosition, nodesOf } from "./internal/subscription/status.js"
import type { NodeStatus, Status } from "./internal/subscription/statusTypes.js"
import type { Projection } from "./Projection.js"
import { type StoreError, ValidationError, ValidationIssue } from "./StoreError.js"
import { type ParkedEvent, SubscriptionStore } from "./SubscriptionStore.js"

/**
 * A subscription, to be run as an effect or as a layer.
 *
 * @since 0.1.0
 * @category models
 */
export interface Subscription<out E = never, out R = never> {
  readonly name: string
  readonly filter: Filter | undefined
  readonly partitions: number

  /**
   * Runs the subscription without end. It fails with `SubscriptionStopped` if an event could not be handled and
   * `onFailure` is `"stop"`. It waits while the database can't be reached. When interrupted it ends its batch.
   */
  readonly run: Effect.Effect<
    never,
    SubscriptionStopped | ValidationError | StoreError,
    EventFeed | SubscriptionStore | R
  >

  /** Runs the subscription in the background. When it stops before an event it logs an error and waits for `resume`. */
  readonly layer: Layer.Layer<never, never, EventFeed | SubscriptionStore | R>

  /**
   * Handles a parked event, which is no longer parked if that succeeds. Returns whether it was parked. If several
   * events of an aggregate are parked, begin with the first.
   */
  readonly retryParked: (
    event: StreamPosition
  ) => Effect.Effect<boolean, E | ValidationError | StoreError, SubscriptionStore | R>

  /** Handles all parked events in their order, up to the first that fails. Returns how many it has handled. */
  readonly retryAllParked: Effect.Effect<number, E | StoreError, SubscriptionStore | R>

  /** The partitions that this process runs now, because it holds their leases. */
  readonly held: Effect.Effect<ReadonlyArray<number>>

  /** The state of the subscription, and how far it is behind. */
  readonly status: Effect.Effect<Status, ValidationError | StoreError, EventFeed | SubscriptionStore>
}

/**
 * The options of a subscription.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options {
  /** Selects the events that it handles; all by default. */
  readonly filter?: Filter | undefined
  /**
   * Where it begins at its first run: at the beginning (the default), after the events that are stored then, or after a
   * position. Later runs go on from the checkpoint. It must be `"beginning"` where a projection owns tables, because
   * their next version is made out of all events.
   */
  readonly from?: "beginning" | "now" | Position | undefined
  /** The maximum number of events between two checkpoints, up to 10 000: 500 by default, 50 for `"at-least-once"`. */
  readonly batchSize?: number | undefined
  /**
   * - `"exactly-once"`, the default: the handler runs in the transaction that stores the checkpoint. What it writes
   *   through `SqlClient` is stored with the checkpoint or not at all; its other effects may be repeated. On a server,
   *   the database ends a connection that the handler leaves idle for the duration of the lease, and that is a failed
   *   attempt.
   * - `"at-least-once"`: the handler runs first, outside of any transaction, and then the checkpoint is stored. After a
   *   crash the events since the last checkpoint are handled again. Use it for handlers that are slow or call other
   *   services.
   */
  readonly delivery?: "exactly-once" | "at-least-once" | undefined
  /**
   * The number of partitions, 1 by default. Each has a share of the aggregates, a lease and a checkpoint. The processes
   * that run the subscription divide them evenly.
   *
   * A later version of the program may have another number. Its processes run the stored number until all want the same
   * one. Then the partitions are replaced at one position. `delivery` holds as before, and each aggregate keeps its order.
   * While a partition is stopped, or retries an event, the change waits.
   */
  readonly partitions?: number | undefined
  /**
   * When and how often a failed event is retried, by itself: five times within about three seconds by default. The
   * store counts the attempts, so that an event which breaks its connection or its process is not retried without end.
   * Waiting for the database of the store is no attempt. An event that the handler's schemas can't read
   * (`UnreadableEvent`) is not retried.
   */
  readonly retry?: Schedule.Schedule<unknown> | undefined
  /**
   * The treatment of an event whose retries are used up.
   *
   * - `"stop"`, the default: the subscription stops before it, until `resume`.
   * - `"park"`: the event is parked with its failure, and the subscription goes on.
   * - `"parkAggregate"`: the later events of its aggregate are parked, too, while any of them is.
   */
  readonly onFailure?: "stop" | "park" | "parkAggregate" | undefined
  /**
   * The duration of the lease, 15 seconds by default. A process that did not renew its lease for so long loses it to
   * another, and the batch that it was handling is not stored.
   */
  readonly lease?: Duration.DurationInput | undefined
  /** The name of this process in `status` and `nodes`, for people to read; a new id by default. */
  readonly holder?: string | undefined
  /** How long the batch under way may go on after an interruption: 10 seconds by default. */
  readonly shutdown?: Duration.DurationInput | undefined
}

export {
  /**
   * A subscription had not reached a position within the timeout of `waitFor`.
   *
   * @since 0.1.0
   * @category errors
   */
  NotReached,
  /**
   * A subscription stopped before an event that it could not handle, until `resume`.
   *
   * @since 0.1.0
   * @category errors
   */
  SubscriptionStopped
} from "./internal/subscription/errors.js"
export type {
  /**
   * The handler of a subscription: of one event after the other, or of a batch. It gets events as they are stored;
   * `Account.decode(event)` reads one as events of today. The commands that `handle` evaluates follow from its event
   * (`correlationId`, `causationId`). For a batch, put `Aggregate.causedBy(event)` around each command.
   *
   * @since 0.1.0
   * @category models
   */
  Handler
} from "./internal/subscription/makeTypes.js"
export {
  /**
   * The handlers that `on` takes, by event type. Each gets the decoded event, and the stored one with the `id`.
   *
   * @since 0.1.0
   * @category models
   */
  type EventHandlers,
  /**
   * The handlers of a subscription for the events of one aggregate. `on` makes them.
   *
   * @since 0.1.0
   * @category models
   */
  type On,
  /**
   * Makes typed handlers for the events of one aggregate, for the option `on` of `make`. They get no events of other
   * aggregates, also not of an equal type. An event that its schema can't decode is an `UnreadableEvent`: no retries.
   *
   * @since 0.1.0
   * @category constructors
   */
  on
} from "./internal/subscription/on.js"
export type {
  /**
   * A node of a subscription: one run of it, in a process.
   *
   * @since 0.1.0
   * @category models
   */
  NodeStatus,
  /**
   * The state of a partition of a subscription.
   *
   * @since 0.1.0
   * @category models
   */
  PartitionStatus,
  /**
   * The state of a subscription.
   *
   * @since 0.1.0
   * @category models
   */
  Status
} from "./internal/subscription/statusTypes.js"

/**
 * Makes a subscription: of typed handlers for the events of one or several aggregates (`on`), or of a handler for all
 * events that its filter lets through (`handle`, `handleBatch`).
 *
 * A name is a text of 1 to 255 characters, which does not begin with `effect-maestro`.
 *
 * It throws a `TypeError` for an option out of its bounds, and for a subscription without a handler or without events
 * (`on: []`, an empty filter).
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
  checkHandlers(name, all)
  const { filter, ...others }: Options = options
  return makeOf<E, R>(name, {
    ...others,
    filter: bothOf(filterOf(all), filter),
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
 * Makes a subscription that runs projections, which are then eventual instead of strong. Each must say of which
 * aggregate it is: it is made with `of`, one of `Account.projections`, or `Projection.of(Account, Balances)`. A
 * projection without event types gets no receipts of commands.
 *
 * It throws a `TypeError` for options as `make` does, and for another `from` than `"beginning"` where a projection owns
 * tables.
 *
 * @since 0.1.0
 * @category constructors
 */
export const fromProjections = <const Projections extends ReadonlyArray<Projection.AnyBound>>(
  name: string,
  projections: Projections,
  options?: OptionsWithoutTypes
): Subscription<Projection.Error<Projections[number]>, Projection.Context<Projections[number]>> & {
  readonly projections: Projections
} => {
  type E = Projection.Error<Projections[number]>
  type R = Projection.Context<Projections[number]>
  checkProjections(name, projections, options?.from)
  const filter = bothOf(filterOf(projections), options?.filter)
  const handle = runProjections<E, R>(projections.map((projection) => withoutReceipts(projection)))
  return { ...makeOf<E, R>(name, { ...options, filter, handle }), projections }
}

/**
 * Waits until a subscription has handled all events up to an event or a position of the feed, so that its tables
 * include your own write. Pass the `position` that `evaluate` returned, or a stored position. It fails with
 * `NotReached` after the timeout, which has the reason, and with `ValidationError` for an event that is not stored.
 *
 * It also succeeds if the event was parked, because the subscription has gone on behind it; `parked` lists the event. A
 * subscription moves beyond events that its filter does not let through within about two seconds.
 *
 * It waits for the one subscription only. A process manager commits further events when it handles your event, and
 * these come after your position. To wait for their effect, too, wait for the process manager, and then for
 * `EventFeed.head`. The head leaves out events that the feed holds back.
 *
 * @since 0.1.0
 * @category accessors
 *
 * @example
 * ```ts
 * import { EventFeed, Subscription } from "effect-maestro"
 * import * as Effect from "effect/Effect"
 *
 * export const afterOwnWrite = (position: EventFeed.StreamPosition) =>
 *   Subscription.waitFor("search", position, "2 seconds")
 *
 * // The process manager "reservations" evaluates a command for the event, and "search" projects its events.
 * export const afterReservation = (position: EventFeed.StreamPosition) =>
 *   Subscription.waitFor("reservations", position, "2 seconds").pipe(
 *     Effect.zipRight(EventFeed.head),
 *     Effect.flatMap((head) => Subscription.waitFor("search", head, "2 seconds"))
 *   )
 * ```
 */
export const waitFor = (
  subscription: Named,
  position: StreamPosition | Position,
  timeout: Duration.DurationInput
): Effect.Effect<void, NotReached | ValidationError | StoreError, EventFeed | SubscriptionStore> => {
  const name = nameOf(subscription)
  return Effect.flatMap(awaitPosition(name, position, timeout), (delay) =>
    delay === undefined ? Effect.void : new NotReached({ subscription: name, ...delay })
  )
}

/**
 * The id of a command that a subscription evaluates for an event. It is equal for equal subscriptions, events and
 * steps. With it, `Aggregate.withCommandId` does not repeat the command when the event is handled again after a crash
 * or a retry. Several commands on one aggregate need different steps. The parts of a split event (`Upcast.toEvents`) have
 * ids of their own.
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
export const commandId = (
  subscription: Named,
  { aggregateId, part, sequence }: StreamPosition & Pick<Envelope, "part">,
  step?: string
): string =>
  // JSON, because different parts then never make an equal text.
  JSON.stringify([
    nameOf(subscription),
    aggregateId,
    part === undefined ? sequence : [sequence, part],
    ...(step === undefined ? [] : [step])
  ])

/**
 * Resumes a subscription that has stopped, with the event before which it stopped. It fails with `ValidationError` if
 * no subscription of that name has run.
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
 * The processes that run a subscription, in the order in which they began, with the partitions that each holds. A
 * process that was killed or stopped is listed until its lease has run out.
 *
 * @since 0.1.0
 * @category operations
 */
export const nodes = (subscription: Named): Effect.Effect<ReadonlyArray<NodeStatus>, StoreError, SubscriptionStore> =>
  nodesOf(nameOf(subscription))

/**
 * The events that a subscription has parked, in the order of the feed.
 *
 * @since 0.1.0
 * @category operations
 */
export const parked = (subscription: Named): Effect.Effect<ReadonlyArray<ParkedEvent>, StoreError, SubscriptionStore> =>
  Effect.flatMap(SubscriptionStore, (store) => store.parked(nameOf(subscription)))

/**
 * Discards a parked event. Returns whether it was parked.
 *
 * @since 0.1.0
 * @category operations
 */
export const discardParked = (
  subscription: Named,
  event: StreamPosition
): Effect.Effect<boolean, ValidationError | StoreError, SubscriptionStore> =>
  Effect.zipRight(
    validateStreamPosition("Subscription.discardParked", event),
    Effect.flatMap(SubscriptionStore, (store) => store.discardParked(nameOf(subscription), event))
  )

/**
 * The default of `retry`: five retries, after 100 ms, 200 ms, 400 ms and so on, with jitter.
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

/** The subscription of one handler, with the defaults of its options. */
const makeOf = <E, R>(name: string, options: Options & Partial<Handler<E, R>>): Subscription<E, R> => {
  const { handle: handleOne, handleBatch } = options
  const handle: Handler<E, R>["handleBatch"] =
    handleBatch === undefined ? handleOne && handlingEach(name, handleOne) : handlingTogether(name, handleBatch)
  if (handle === undefined) {
    throw new TypeError(`subscription ${name} has no handler: it takes \`on\`, \`handle\` or \`handleBatch\``)
  }
  return makeRunner<E, R>({
    name,
    filter: options.filter,
    from: options.from ?? "beginning",
    partitions: options.partitions ?? 1,
    batchSize: options.batchSize ?? (options.delivery === "at-least-once" ? 50 : 500),
    handle,
    transactional: options.delivery !== "at-least-once",
    retry: options.retry ?? defaultRetry,
    onFailure: options.onFailure ?? "stop",
    lease: Duration.toMillis(options.lease ?? "15 seconds"),
    holder: options.holder,
    grace: Duration.toMillis(options.shutdown ?? "10 seconds")
  })
}
