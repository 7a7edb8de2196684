/**
 * Defines an aggregate, and evaluates commands on it: from a command to stored events, and from stored events to a state.
 *
 * `decide` and `evolve` are plain functions over your own schemas (the decider of Jérémie Chassaing). The command handler around them loads
 * the state, decides, commits the events with the strong projections, and decides again if another commit came first.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type { StreamIds } from "./Event.js"
import type { Aggregate } from "./internal/aggregate/aggregateType.js"
import type { Evaluated, Reply } from "./internal/aggregate/commandResult.js"
import { defaultRetry } from "./internal/aggregate/commandRetry.js"
import { decodeStored } from "./internal/aggregate/decodeStored.js"
import { compile } from "./internal/aggregate/definition.js"
import type {
  AllowedError,
  BoundProjections,
  EventOf,
  NoSuch,
  RefusalSchemas,
  StateOf
} from "./internal/aggregate/handlerTypes.js"
import type { NewIdOf } from "./internal/aggregate/idTypes.js"
import { makeOperations, serviceTag } from "./internal/aggregate/operations.js"
import { withParts } from "./internal/aggregate/parts.js"
import { makeService } from "./internal/aggregate/service.js"
import { type CacheOptions, cacheLimits } from "./internal/aggregate/stateCache.js"
import { makeTargetedCommand, type TargetedCommand } from "./internal/aggregate/targetedCommand.js"
import type { HandlerContext, HandlerError, Tagged } from "./internal/codec/eventCodec.js"
import { withIdsOf } from "./internal/store/origin.js"
import type { Projection } from "./Projection.js"
import type { RetryCommand, StoreError, ValidationError } from "./StoreError.js"
import type { Time } from "./Timestamp.js"

/**
 * The state of an aggregate that a handler decides on, with the aggregate's id and sequence.
 *
 * @since 0.1.0
 * @category models
 */
export interface Root<out State, out Id extends string = string> {
  readonly id: Id
  /** The sequence of the last event that the state contains; 0 before the first event. */
  readonly sequence: number
  readonly state: State
}

/**
 * A time that `replay` returns the state of.
 *
 * @since 0.1.0
 * @category models
 */
export interface AsOf {
  readonly asOf: Time
}

export type {
  /**
   * The result of a command with `reply: "position"`: where the aggregate is after it. It has no state and no events.
   *
   * @since 0.1.0
   * @category models
   */
  Acknowledged,
  /**
   * The result of a command: its events, and the state and the sequence after them.
   *
   * @since 0.1.0
   * @category models
   */
  Evaluated
} from "./internal/aggregate/commandResult.js"

export type {
  /**
   * A stored event of an aggregate, decoded, with its sequence, timestamp and metadata.
   *
   * @since 0.1.0
   * @category models
   */
  HistoricEvent
} from "./internal/aggregate/history.js"

export type {
  /**
   * A command with the aggregate that it is for: a value that `command` of an aggregate makes, for `evaluateAll`. Its
   * type has the result of the command and its refusals.
   *
   * @since 0.1.0
   * @category models
   */
  TargetedCommand
} from "./internal/aggregate/targetedCommand.js"

/**
 * The failures that a command of any aggregate can have. `withCommandId` and `withExpectedSequence` add one each.
 *
 * @since 0.1.0
 * @category models
 */
export type Failure = RetryCommand | ValidationError | StoreError

/**
 * The service that an aggregate's operations need, and that its layer provides. The name of the aggregate is its key.
 *
 * @since 0.1.0
 * @category models
 */
export interface Instance<out Name extends string> {
  readonly _: unique symbol
  readonly name: Name
}

/**
 * One handler for each command. It returns the events of the command, or fails with a typed refusal.
 *
 * @since 0.1.0
 * @category models
 */
export type DecideHandlers<
  State,
  A extends Tagged,
  C extends Tagged,
  Declared = undefined,
  Id extends string = string
> = {
  readonly [K in C["_tag"]]: (
    command: Extract<C, { readonly _tag: K }>,
    root: Root<State, Id>
    // biome-ignore lint/suspicious/noExplicitAny: the bound of a type parameter that takes every handler
  ) => Effect.Effect<ReadonlyArray<EventOf<A>>, AllowedError<Declared, K>, any>
}

/**
 * One step for each event. It returns the state after the event, and must be pure and total because it runs again at every load.
 *
 * @since 0.1.0
 * @category models
 */
export type EvolveHandlers<State, A extends Tagged> = {
  readonly [K in A["_tag"]]: (state: State, event: Extract<A, { readonly _tag: K }>) => StateOf<State>
}

export type {
  /**
   * An aggregate: its operations, and the layer that they need. `Refusals` has the failures of each command's handler.
   *
   * @since 0.1.0
   * @category models
   */
  Aggregate
} from "./internal/aggregate/aggregateType.js"

/**
 * The options of `make`.
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
  Projections,
  Declared = undefined,
  Id extends string = string,
  NewId extends Effect.Effect<Id> | undefined = undefined
> {
  /** The schema of the state. It encodes snapshots. A snapshot of another schema is ignored. */
  readonly state: Schema.Schema<State, StateEncoded>
  /** The state before the first event. */
  readonly initialState: NoInfer<State>
  /** The events: one tagged schema, or a union of them. The tag is stored as the event's type. */
  readonly events: Schema.Schema<A, I>
  /** The commands: one tagged schema, or a union of them. */
  readonly commands: Schema.Schema<C, CI>
  /** A handler for each command. */
  readonly decide: Decide
  /** A step for each event. */
  readonly evolve: NoInfer<EvolveHandlers<State, A>>
  /**
   * The schemas of the refusals, by command: classes of `Schema.TaggedError`. With them, a handler that fails with anything else does not
   * compile, except for failures of this library (a handler may evaluate other commands) and for `SqlError`.
   */
  readonly refusals?: Declared | undefined
  /**
   * The schema of the ids: a brand, a template literal, a UUID, a pattern. It must not transform, because the id itself is stored. All
   * operations take ids of its type, and an id from outside that does not fit is a `ValidationError`. By default an id is any text.
   *
   * Subscriptions, and projections `of` the aggregate or among its `projections`, get ids of this type. A stored event whose id does not
   * fit fails there with `UnreadableEvent`. A projection of `"all"` gets every id.
   */
  // biome-ignore lint/suspicious/noExplicitAny: the encoded form is text of any type
  readonly id?: Schema.Schema<Id, any> | undefined
  /** Makes the ids of `Aggregate.newId`: timestamps by default. A template literal needs it, for instance. */
  readonly newId?: NewId | undefined
  /** The kind under which its events are stored: the name by default. Give the former name to an aggregate that is renamed. */
  readonly kind?: string | undefined
  /** Projections that are part of the transaction that commits the events. One that is `of` another aggregate is refused. */
  readonly projections?: Projections | undefined
  /**
   * - `"byKind"`, the default: the stream of an aggregate is named by its kind and its id, `Account/42`, so aggregates of different kinds
   *   may share an id.
   * - `"plain"`: the id is the name of the stream, for logs that were written by other programs. Then aggregates of all kinds share their
   *   ids: an id of another kind leads to the events of that kind. Subscriptions, projections and rebuilds know the aggregate's events by
   *   their types alone, so types must differ between aggregates, and a filter by `kinds` does not find them.
   */
  readonly streams?: StreamIds | undefined
  /** Stores a snapshot when the sequence passes a multiple of this number; never by default. */
  readonly snapshotEvery?: number | undefined
  /** Raise it when `evolve` returns other states under the same schema, because snapshots of another version are ignored. 1 by default. */
  readonly stateVersion?: number | undefined
  /** How many states are cached, and for how long: 10 000 for 10 minutes by default. */
  readonly cache?: CacheOptions | undefined
  /** The retries after a lost race, or after a transient failure of the store: `defaultRetry` by default. */
  readonly retry?: Schedule.Schedule<unknown> | undefined
}

export {
  /**
   * Evaluates the commands of an effect as followers of an event. Subscriptions do so for `handle` and `on`.
   *
   * @since 0.1.0
   * @category causes
   */
  causedBy,
  /**
   * Names the chain that the commands of an effect belong to, such as by the id of a request.
   *
   * @since 0.1.0
   * @category causes
   */
  withCorrelationId
} from "./internal/aggregate/causes.js"
export {
  /**
   * What `check` needs of an aggregate.
   *
   * @since 0.1.0
   * @category models
   */
  type Checkable,
  /**
   * What `check` found, if the code can read all of it.
   *
   * @since 0.1.0
   * @category models
   */
  type CheckReport,
  /**
   * Checks that the code can read what is stored: at the start of a program, or before a release with a copy of the
   * production data. It decodes a few events of each stored type and version, the oldest and the newest among them, so it
   * takes milliseconds, however long the log is. What can't be read fails with `UnreadableTypes`, which lists all of it.
   *
   * - One aggregate: its own events.
   * - A list of all aggregates of the program: the whole log. `others` has the types of kinds that no given aggregate has,
   *   which is no failure. Receipts of command ids are left out.
   * - An aggregate with `streams: "plain"`: the types that its schema has, of kinds that no other given aggregate has.
   *   Nothing says whose event of an unknown type is, so that type is among `others`.
   *
   * Build it below `ProjectionTables.layer` and subscriptions. A forgotten `kind` shows in `others` only.
   *
   * @since 0.1.0
   * @category checks
   *
   * @example
   * ```ts
   * import { Aggregate } from "effect-maestro"
   * import * as Effect from "effect/Effect"
   * import * as Layer from "effect/Layer"
   *
   * declare const Account: Aggregate.Checkable
   *
   * // The program does not start on data that it can't read, or that it does not know.
   * export const layerCheck = Aggregate.check([Account]).pipe(
   *   Effect.filterOrDieMessage(({ others }) => others.length === 0, "events are stored that no aggregate reads"),
   *   Layer.effectDiscard
   * )
   * ```
   */
  check
} from "./internal/aggregate/check.js"
export {
  /**
   * The default retries: 15 at most, after 2 ms, 4 ms, 8 ms … but no more than 200 ms each, about two seconds in all. The delays are
   * jittered, so that commands that collided do not collide again.
   *
   * @since 0.1.0
   * @category schedules
   */
  defaultRetry
} from "./internal/aggregate/commandRetry.js"
export {
  /**
   * Gives a command an id, so that it takes effect at most once on its aggregate, however often it is evaluated.
   *
   * @since 0.1.0
   * @category conditions
   */
  withCommandId,
  /**
   * Evaluates a command only while the aggregate is at this sequence, which its sender has seen: an `If-Match` of HTTP.
   *
   * @since 0.1.0
   * @category conditions
   */
  withExpectedSequence
} from "./internal/aggregate/conditions.js"
export {
  /**
   * Evaluates commands on several aggregates in one transaction with all their projections: all take effect, or none.
   *
   * @since 0.1.0
   * @category evaluations
   */
  evaluateAll
} from "./internal/aggregate/evaluateAll.js"
export {
  /**
   * The metadata of every event of a command: who asked, on whose behalf, why. All keys are the application's own, and are stored as they
   * are given. Set it around `evaluate`, by `Effect.provideService(Aggregate.Metadata, { userId })`.
   *
   * @since 0.1.0
   * @category references
   */
  Metadata
} from "./internal/aggregate/metadata.js"
export type {
  /**
   * The state cache of an aggregate's layer. A command on a cached state does not read the store.
   *
   * A cached state can't lead to a wrong result. The store refuses events that were decided on an outdated state, and the command is decided
   * again. A refusal, or a decision of no events, is checked against the store before it is returned. States are handed out as they are
   * cached, so never change one in place.
   *
   * @since 0.1.0
   * @category models
   */
  CacheOptions
} from "./internal/aggregate/stateCache.js"
export {
  /**
   * Sets metadata by a schema, and reads it. `metadata` makes it.
   *
   * @since 0.1.0
   * @category models
   */
  type TypedMetadata,
  /**
   * Metadata of a schema: `provide` sets it around `evaluate`, and `of` reads it from an event.
   *
   * @since 0.1.0
   * @category constructors
   */
  typedMetadata as metadata
} from "./internal/aggregate/typedMetadata.js"

/**
 * Defines an aggregate. Its name is its kind, and part of the identity of its aggregates: `Account` and `Payment` may both have one of id
 * `42`. So names must differ. An aggregate that is renamed finds its events by the option `kind`, which is its former name.
 *
 * - A name, or a kind, is a text of 1 to 253 characters without `/`. It must not begin with `effect-maestro`. It is the key of the layer's service, so
 *   an operation dies if the context has the layer of another aggregate of the name.
 * - An id is a text of at least 1 character. With the kind and the `/` between them it has at most 255. Any other is a `ValidationError`
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
 *   evolve: { Increased: (state, event) => ({ count: state.count + event.by }) }
 * })
 *
 * export const program = Counter.evaluate("a", new Increase({ by: 3 })).pipe(
 *   Effect.map(({ sequence, state }) => [sequence, state.count]), // prints: [ 1, 3 ]
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
  Decide extends DecideHandlers<State, A, C, Declared, Id>,
  const Projections extends ReadonlyArray<Projection.Any> = readonly [],
  const Declared extends RefusalSchemas<C> | undefined = undefined,
  Id extends string = string,
  NewId extends Effect.Effect<Id> | undefined = undefined
>(
  name: Name,
  options: Options<
    State,
    StateEncoded,
    A,
    I,
    C,
    CI,
    Decide & NoSuch<Exclude<keyof Decide, C["_tag"]>, "command">,
    Projections,
    Declared & NoSuch<Exclude<keyof Declared, C["_tag"]>, "command">,
    Id,
    NewId
  >
): Aggregate<
  Name,
  State,
  A,
  C,
  CI,
  { readonly [K in C["_tag"]]: HandlerError<Decide[K]> },
  Declared,
  Projections,
  HandlerContext<Decide[keyof Decide]> | Projection.Context<Projections[number]>,
  Id,
  NewIdOf<Id, NewId>
> => {
  type E = HandlerError<Decide[keyof Decide]> | Projection.Error<Projections[number]>
  type R = HandlerContext<Decide[keyof Decide]> | Projection.Context<Projections[number]>
  const { id = Schema.String, kind = name, streams = "byKind" } = options
  /** A command fails only with the refusals of its own handler, and with the failure of a condition only if the condition is set. */
  type Evaluation<Tag extends C["_tag"]> = Effect.Effect<
    Evaluated<State, A>,
    HandlerError<Decide[Tag]> | Projection.Error<Projections[number]> | Failure,
    Instance<Name>
  >
  const defaults = { id, kind, streams, retry: options.retry ?? defaultRetry }
  const definition = compile<State, StateEncoded, A, I, C, CI, E, R, Id>(name, options, defaults)
  const parts = { definition, tag: serviceTag<Name, State, A, C, E>(name), cache: cacheLimits(name, options.cache) }
  const { severalIn, ...operations } = makeOperations(parts.tag, definition, options.commands)
  return withParts(parts, {
    ...operations,
    name,
    kind,
    // Without the option an id is any text, and `Id` is `string`.
    id: id as Schema.Schema<Id>,
    streams,
    state: options.state,
    events: options.events,
    // The same projections in the same order, which the type of `map` does not say.
    projections: withIdsOf({ id, name, streams }, definition.projections) as BoundProjections<Projections>,
    streamId: definition.streams.streamId,
    commands: options.commands,
    refusals: options.refusals as Declared,
    // The id that the option or a timestamp makes is checked, and the type says where neither can make one.
    newId: operations.newId as NewIdOf<Id, NewId>,
    decode: decodeStored({ name, kind, streams, id }, definition.events),
    // With `reply` the result is a part of this type, as the signatures of the aggregate say.
    evaluate: <K extends C>(id: Id, command: K, options?: { readonly reply?: Reply | undefined }) =>
      operations.evaluate(id, command, options) as Evaluation<K["_tag"]>,
    command: (id: Id, command: C, options?: TargetedCommand.Options) =>
      makeTargetedCommand(name, severalIn, id, command, options),
    evaluateUnknown: <Only extends C["_tag"] = C["_tag"]>(
      id: Id,
      command: unknown,
      options?: { readonly only?: ReadonlyArray<Only> | undefined; readonly reply?: Reply | undefined }
    ) => operations.evaluateUnknown(id, command, options) as Evaluation<Only>,
    layer: Layer.scoped(parts.tag, makeService(definition, parts.cache))
  })
}
