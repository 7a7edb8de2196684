/**
 * Define an aggregate, and evaluate commands on it: from a command to durable events and back to state.
 *
 * Deciding and evolving are plain functions over your own schemas (the decider of Jérémie Chassaing); the lifecycle around
 * them is that of Maestro's `Aggregate.Root`: load, decide, commit with the strong projections, and start over when
 * somebody else came first.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import type { StreamPosition } from "./EventFeed.js"
import { makeService, operating, type Service } from "./internal/aggregateService.js"
import { define, keepingOf } from "./internal/design.js"
import { decodeInput, type HandlerContext, type HandlerError, type Tagged, tagOf } from "./internal/eventCodec.js"
import type { Historic } from "./internal/history.js"
import type { StreamIds } from "./internal/origin.js"
import type { Projection } from "./Projection.js"
import type { StoreAdapter } from "./StoreAdapter.js"
import type { RetryCommand, StoreError, ValidationError } from "./StoreError.js"
import { HybridClock } from "./Timestamp.js"

/**
 * What a decision is made on: an aggregate's state, and how far along its stream that is.
 *
 * @since 0.1.0
 * @category models
 */
export interface Root<out State> {
  readonly id: string
  /** The sequence of the last event that the state contains; 0 before the first. */
  readonly sequence: number
  readonly state: State
}

/**
 * What a command came to: the events it caused, and state and sequence after them.
 *
 * @since 0.1.0
 * @category models
 */
export interface Evaluated<out State, out A> {
  readonly state: State
  readonly sequence: number
  readonly events: ReadonlyArray<A>
  /**
   * Where the aggregate stands now: what `Subscription.waitFor` takes, to read your own write from what a subscription keeps. It is
   * plain JSON, so it may travel with an answer, and another node may wait for it.
   */
  readonly position: StreamPosition
  /**
   * Whether a command of this `CommandId` had taken effect on the aggregate before, so that nothing was done now: there are no events, and
   * the state is the current one. Never so for a command without an id.
   */
  readonly repeated: boolean
}

/**
 * A stored event of an aggregate, decoded, with what is stored beside it.
 *
 * @since 0.1.0
 * @category models
 */
export interface HistoricEvent<out A> extends Historic<A> {}

/**
 * The failures that any operation of any aggregate can have.
 *
 * @since 0.1.0
 * @category models
 */
export type Failure = RetryCommand | ValidationError | StoreError

/**
 * The service that an aggregate's operations need, and that its layer provides. It is told from others by the
 * aggregate's name.
 *
 * @since 0.1.0
 * @category models
 */
export interface Instance<out Name extends string> {
  readonly _: unique symbol
  readonly name: Name
}

/**
 * One decision for each command: the events that follow from it, or a typed refusal.
 *
 * @since 0.1.0
 * @category models
 */
export type DecideHandlers<State, A, C extends Tagged> = {
  readonly [K in C["_tag"]]: (
    command: Extract<C, { readonly _tag: K }>,
    root: Root<State>
    // biome-ignore lint/suspicious/noExplicitAny: the bound of a type parameter that takes every handler
  ) => Effect.Effect<ReadonlyArray<A>, any, any>
}

/**
 * One step for each event: the state after it. Pure and total; it runs again at every load.
 *
 * @since 0.1.0
 * @category models
 */
export type EvolveHandlers<State, A extends Tagged> = {
  readonly [K in A["_tag"]]: (state: State, event: Extract<A, { readonly _tag: K }>) => State
}

/**
 * An aggregate: its operations, and the layer that they need.
 *
 * @since 0.1.0
 * @category models
 */
export interface Aggregate<
  Name extends string,
  State,
  A extends Tagged,
  C extends Tagged,
  Decide extends DecideHandlers<State, A, C>,
  Projections extends ReadonlyArray<Projection.Any>,
  R
> {
  /** The kind of its aggregates. */
  readonly name: Name
  /** How its streams are named in the store. */
  readonly streams: StreamIds
  /** The schema of its events. */
  // biome-ignore lint/suspicious/noExplicitAny: followers decode stored events of whatever encoded form
  readonly events: Schema.Schema<A, any>
  /** Its strong projections, bound to it: a rebuild or a subscription takes them. */
  readonly projections: {
    readonly [K in keyof Projections]: Projection.Bound<
      Projection.Error<Projections[K]>,
      Projection.Context<Projections[K]>
    >
  }

  /** The `aggregateId` of its events in the store and in the feed: `Account/42` of the id `42`, or the id itself with `streams: "plain"`. */
  readonly streamId: (id: string) => string

  /**
   * An id for a new aggregate: a timestamp, so ids rise with time. Any other text will do as well; but of an id that was made here the
   * first command need not look for events in the store.
   */
  readonly newId: Effect.Effect<string>

  /**
   * Evaluates a command: decides on the current state, and commits the events that follow, with the strong projections,
   * in one transaction. When others come first it decides again on what is new, by the `retry` schedule; when that is
   * exhausted, the `RetryCommand` is the failure. A refusal stores nothing.
   *
   * Commands on one aggregate take turns within a process; those that wait are decided one on the other and committed together,
   * each answered after the commit. A commit of unknown outcome (a connection lost at COMMIT) is
   * settled by committing the same events again, so a command is applied once.
   *
   * Inside your own `SqlClient.withTransaction` all of it is part of that transaction. With a `CommandId` around it, the command takes
   * effect once, however often it is evaluated.
   */
  readonly evaluate: <K extends C>(
    id: string,
    command: K
  ) => Effect.Effect<
    Evaluated<State, A>,
    HandlerError<Decide[K["_tag"] & keyof Decide]> | Projection.Error<Projections[number]> | Failure,
    Instance<Name>
  >

  /**
   * Evaluates a command that comes from outside, as JSON: one that is no command of this aggregate is refused by a
   * `ValidationError` that says where. (`evaluate` takes its command's type at its word.)
   */
  readonly evaluateUnknown: (
    id: string,
    command: unknown
  ) => Effect.Effect<
    Evaluated<State, A>,
    HandlerError<Decide[keyof Decide]> | Projection.Error<Projections[number]> | Failure,
    Instance<Name>
  >

  /** The state as it is known here: that which is kept, if one is, else that of the store. It may be older than the store's. */
  readonly get: (id: string) => Effect.Effect<State, ValidationError | StoreError, Instance<Name>>

  /** The state after reading the store. An aggregate without events has the initial state. */
  readonly fetch: (id: string) => Effect.Effect<State, ValidationError | StoreError, Instance<Name>>

  /**
   * The state that the aggregate had after its event of that sequence; the initial state at 0. A sequence beyond the last
   * event is a `ValidationError`.
   */
  readonly replay: (id: string, sequence: number) => Effect.Effect<State, ValidationError | StoreError, Instance<Name>>

  /** Stores a snapshot of the state, so that loading begins there. It replaces the stored one, unless that is newer. */
  readonly snapshot: (id: string) => Effect.Effect<void, ValidationError | StoreError, Instance<Name>>

  /**
   * All events of the aggregate, in order, as they are stored when the stream is run. It reads page by page, so memory does not grow with
   * the number of events. An event that can't be decoded ends it with `UnreadableEvent`, after those before it.
   */
  readonly history: (id: string) => Stream.Stream<HistoricEvent<A>, ValidationError | StoreError, Instance<Name>>

  /**
   * What the operations need. It captures the services that the handlers and projections need, so callers of the
   * operations need only this. Services that a caller provides under the same tag win, and so does a `Context.Reference` that it sets;
   * clients of `@effect/sql` and services of this library are always those of the layer, because they belong to its store.
   */
  readonly layer: Layer.Layer<Instance<Name>, never, StoreAdapter | R>
}

/**
 * What an aggregate is made of.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options<
  State,
  StateEncoded,
  A extends Tagged,
  I extends Tagged,
  C extends Tagged,
  CI,
  Decide,
  Projections
> {
  /** The schema of the state. It encodes snapshots; a snapshot of another schema is passed over. */
  readonly state: Schema.Schema<State, StateEncoded>
  /** The state before the first event. */
  readonly initialState: NoInfer<State>
  /** The events: one tagged schema, or a union of them. The tag is stored as the event's type. */
  readonly events: Schema.Schema<A, I>
  /** The commands: one tagged schema, or a union of them. */
  readonly commands: Schema.Schema<C, CI>
  /** A decision for each command. */
  readonly decide: Decide
  /** A step for each event. */
  readonly evolve: NoInfer<EvolveHandlers<State, A>>
  /** Projections that are part of the transaction that commits the events. One that is `of` another aggregate is refused. */
  readonly projections?: Projections | undefined
  /**
   * - `"byKind"`, the default: the stream of an aggregate is named by its kind and its id, `Account/42`, so aggregates of different kinds
   *   may share an id.
   * - `"plain"`: ids are taken as they are, for logs that were written by other programs. Then aggregates of all kinds share their ids: an
   *   id that is another kind's leads to its events. Subscriptions, projections and rebuilds know the aggregate's events by their types
   *   alone, so types must differ between aggregates, and a filter by `aggregates` does not find them.
   */
  readonly streams?: StreamIds | undefined
  /** Stores a snapshot whenever the stream grows past a multiple of this many events; never by default. */
  readonly snapshotEvery?: number | undefined
  /**
   * Raise it when `evolve` comes to other states than before by the same schema: snapshots of another version are passed
   * over. 1 by default.
   */
  readonly stateVersion?: number | undefined
  /** How many states are kept in memory, and for how long: 10 000 for 10 minutes by default. */
  readonly keep?: Keep | undefined
  /** How often and when to try again after a lost race or a passing failure of the store: `defaultRetry` by default. */
  readonly retry?: Schedule.Schedule<unknown> | undefined
}

/**
 * The states that an aggregate's layer keeps in memory, so that a command on a known aggregate needs no read. A kept state can't
 * lead to a wrong answer: events decided on an outdated one are refused by the store and decided again, and a refusal, or a
 * decision of no events, is checked against the store before it is answered. States are handed out as they are kept: never change
 * one in place.
 *
 * @since 0.1.0
 * @category models
 */
export interface Keep {
  /** How many, those used last; with 0, only while commands wait for each other. 10 000 by default. */
  readonly capacity?: number | undefined
  /** How long one is kept that is not used; 10 minutes by default. */
  readonly idleTimeToLive?: Duration.DurationInput | undefined
}

/**
 * What every event of a command carries in its metadata: who asked, on whose behalf, why. All keys are the application's own, and are
 * stored as they are given. Set it around `evaluate`.
 *
 * @since 0.1.0
 * @category references
 *
 * @example
 * ```ts
 * import { Aggregate } from "effect-maestro"
 * import * as Effect from "effect/Effect"
 *
 * export const asUser = (userId: string) => Effect.provideService(Aggregate.Metadata, { userId })
 * ```
 */
export class Metadata extends Context.Reference<Metadata>()("effect-maestro/Aggregate/Metadata", {
  defaultValue: (): Readonly<Record<string, unknown>> => ({})
}) {}

/**
 * The id of a command, set around `evaluate`: with one, a command takes effect at most once on its aggregate, for ever, however often and
 * on however many nodes it is evaluated, whatever crashed in between. None by default. `withCommandId` sets it.
 *
 * With the command's events a receipt is stored, in the same commit, so one is there if and only if the others are. Where it is there already,
 * `evaluate` answers with the current state and `repeated: true`. A refusal stores no receipt: the command is decided again the next
 * time. A decision of no events stores the receipt alone, and the next time is a repetition.
 *
 * - An id is a text of 1 to 1000 characters; any other is a `ValidationError`. The same id on another aggregate is another command. What
 *   the command is does not matter: a different one of the same id is taken for a repetition.
 * - It is meant for one command. Those that a handler or a projection evaluates have no id, unless they are given their own.
 * - A handler may run more than once, as always; what it does beside its decision is not covered.
 *
 * A receipt is an event of type `effect-maestro/CommandHandled`, in a stream of the kind `effect-maestro:Receipt`, and tells command id,
 * aggregate and sequence. Loading an aggregate never meets one, but the feed has them: a subscription sees them unless its filter names
 * types or aggregates. Of projections only those are given receipts that are `of: "all"` and name their type.
 *
 * @since 0.1.0
 * @category references
 */
export class CommandId extends Context.Reference<CommandId>()("effect-maestro/Aggregate/CommandId", {
  defaultValue: (): string | undefined => undefined
}) {}

/**
 * Gives a command its `CommandId`: a key that its sender keeps for as long as it may send the command again.
 *
 * @since 0.1.0
 * @category references
 *
 * @example
 * ```ts
 * import { Aggregate } from "effect-maestro"
 * import type * as Effect from "effect/Effect"
 *
 * declare const deposit: Effect.Effect<unknown, never, Aggregate.Instance<"Account">>
 *
 * // However often this request comes, the money comes once.
 * export const once = (idempotencyKey: string) => deposit.pipe(Aggregate.withCommandId(idempotencyKey))
 * ```
 */
export const withCommandId =
  (commandId: string) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.mapInputContext(effect, (context: Context.Context<R>) => Context.add(context, CommandId, commandId))

/**
 * The retries of an aggregate that does not say otherwise: 15 at most, after 2 ms, 4 ms, 8 ms … but no more than 200 ms
 * each, jittered so that those who collided do not meet again. About two seconds in all.
 *
 * @since 0.1.0
 * @category schedules
 */
export const defaultRetry: Schedule.Schedule<unknown> = Schedule.exponential("2 millis").pipe(
  Schedule.union(Schedule.spaced("200 millis")),
  Schedule.jittered,
  Schedule.intersect(Schedule.recurs(15))
)

/**
 * Defines an aggregate. Its name is its kind, and part of the identity of its aggregates: `Account` and `Payment` may both have one of id
 * `42`. So names must differ, and renaming an aggregate leaves its events behind.
 *
 * - A name is a text of 1 to 253 characters without `/`. It must not begin with `effect-maestro`.
 * - An id is a text of at least 1 character. With the name and the `/` between them it has at most 255. Any other is a `ValidationError`
 *   of each operation.
 *
 * @since 0.1.0
 * @category constructors
 *
 * @example
 * ```ts
 * import { Aggregate, MemoryStore } from "effect-maestro"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 * import * as Schema from "effect/Schema"
 *
 * class Increased extends Schema.TaggedClass<Increased>()("Increased", { by: Schema.Int }) {}
 * class Increase extends Schema.TaggedClass<Increase>()("Increase", { by: Schema.Int }) {}
 * class TooHigh extends Schema.TaggedError<TooHigh>()("TooHigh", { limit: Schema.Int }) {}
 *
 * const Counter = Aggregate.make("Counter", {
 *   state: Schema.Struct({ count: Schema.Int }),
 *   initialState: { count: 0 },
 *   events: Increased,
 *   commands: Increase,
 *   decide: {
 *     Increase: (command, root) =>
 *       root.state.count + command.by > 10
 *         ? new TooHigh({ limit: 10 })
 *         : Effect.succeed([new Increased({ by: command.by })])
 *   },
 *   evolve: {
 *     Increased: (state, event) => ({ count: state.count + event.by })
 *   }
 * })
 *
 * export const program = Effect.gen(function* () {
 *   const id = yield* Counter.newId
 *   yield* Counter.evaluate(id, new Increase({ by: 3 }))
 *   return yield* Counter.fetch(id)
 * }).pipe(
 *   Effect.catchTag("TooHigh", ({ limit }) => Effect.succeed({ count: limit })),
 *   Effect.provide(Counter.layer.pipe(Layer.provide(MemoryStore.layer)))
 * )
 * ```
 */
export const make = <
  const Name extends string,
  State,
  StateEncoded,
  A extends Tagged,
  I extends Tagged,
  C extends Tagged,
  CI,
  Decide extends DecideHandlers<State, A, C>,
  const Projections extends ReadonlyArray<Projection.Any> = readonly []
>(
  name: Name,
  options: Options<
    State,
    StateEncoded,
    A,
    I,
    C,
    CI,
    Decide & { readonly [K in Exclude<keyof Decide, C["_tag"]>]: never },
    Projections
  >
): Aggregate<
  Name,
  State,
  A,
  C,
  Decide,
  Projections,
  HandlerContext<Decide[keyof Decide]> | Projection.Context<Projections[number]>
> => {
  type E = HandlerError<Decide[keyof Decide]> | Projection.Error<Projections[number]>
  type R = HandlerContext<Decide[keyof Decide]> | Projection.Context<Projections[number]>
  const streams = options.streams ?? "byKind"
  const definition = define<State, StateEncoded, A, I, C, CI, E, R>(name, {
    ...options,
    streams,
    retry: options.retry ?? defaultRetry
  })
  const decodeCommand = Schema.decodeUnknownEither(options.commands, { errors: "all" })
  const tag = Context.GenericTag<Instance<Name>, Service<State, A, C, E>>(`effect-maestro/Instance/${name}`)

  const operate = operating(name, tag)

  return {
    name,
    streams,
    events: options.events,
    // The same ones, in their order: what a mapped tuple type can't be told of `map`.
    projections: definition.projections as Aggregate<Name, State, A, C, Decide, Projections, R>["projections"],
    streamId: definition.streams.streamId,
    newId: Effect.map(
      Effect.flatMap(HybridClock, ({ now }) => now),
      (id) => {
        definition.minted.add(definition.streams.streamId(id))
        return id
      }
    ),
    evaluate: <K extends C>(id: string, command: K) =>
      operate("evaluate")(
        id,
        (service) => service.evaluate(id, command),
        () => ({ command: tagOf(command) })
      ) as Effect.Effect<
        Evaluated<State, A>,
        // Of all refusals only those of this command's own handler can come: it is the one that decides it.
        HandlerError<Decide[K["_tag"] & keyof Decide]> | Projection.Error<Projections[number]> | Failure,
        Instance<Name>
      >,
    evaluateUnknown: (id, command) =>
      operate("evaluateUnknown")(id, (service) =>
        Effect.flatMap(decodeInput(`${name}.evaluateUnknown`, decodeCommand, command), (decoded) =>
          service.evaluate(id, decoded)
        )
      ),
    get: (id) => operate("get")(id, (service) => service.get(id)),
    fetch: (id) => operate("fetch")(id, (service) => service.fetch(id)),
    replay: (id, sequence) =>
      operate("replay")(
        id,
        (service) => service.replay(id, sequence),
        () => ({ sequence })
      ),
    snapshot: (id) => operate("snapshot")(id, (service) => service.snapshot(id)),
    history: (id) =>
      Stream.unwrap(Effect.map(tag, (service) => service.history(id))).pipe(
        Stream.withSpan("Aggregate.history", { attributes: { "aggregate.name": name, "aggregate.id": id } })
      ),
    layer: Layer.scoped(tag, makeService(definition, keepingOf(name, options.keep), Metadata, CommandId))
  }
}
