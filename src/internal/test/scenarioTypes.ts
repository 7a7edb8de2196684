/**
 * The types of a test of domain code: what `AggregateTest.of` returns, and the assertions at its end.
 *
 * No assertion is named `then`. `await`, and the return of an async function, would call a method of that name with two
 * functions, and would take them for events.
 */
import type * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import type { Aggregate, Failure, Instance, TargetedCommand } from "../../Aggregate.js"
import type { Projection } from "../../Projection.js"
import type { On } from "../../Subscription.js"
import type { Time } from "../../Timestamp.js"
import type { Tagged } from "../codec/eventCodec.js"
import type { AssertionFailed } from "./failure.js"
import type { AnyAggregate, StoredForm } from "./given.js"
import type { Database, Statements } from "./projected.js"
import type { Provided } from "./world.js"

/** A test of domain code, up to what is done. It is a value: each method returns a new one. */
export interface Scenario<State, A extends Tagged, C extends Tagged, Refusals, Id extends string, Needs, Has = never> {
  /** The id of the aggregate that the following steps are about. By default it is one id that the schema accepts. */
  readonly id: (id: Id) => Scenario<State, A, C, Refusals, Id, Needs, Has>
  /**
   * The time of the following steps: of given events, and of `Clock` and `DateTime.now` in handlers. By default it is
   * the time of the clock around the test.
   */
  readonly at: (time: Time) => Scenario<State, A, C, Refusals, Id, Needs, Has>
  /** Events that the aggregate has. They are stored as those of commands, and read again. */
  readonly given: (...events: ReadonlyArray<A>) => Scenario<State, A, C, Refusals, Id, Needs, Has>
  /** Events that the aggregate has in the form in which an older release has stored them. */
  readonly givenStored: (...events: ReadonlyArray<StoredForm>) => Scenario<State, A, C, Refusals, Id, Needs, Has>
  /** The following steps are about another aggregate. What was given stays. */
  readonly of: Of<Has>
  /**
   * Provides services to handlers. The layer may use the store of the test, so it may have layers of other aggregates.
   */
  readonly provide: <ROut, E, RIn extends Provided>(
    layer: Layer.Layer<ROut, E, RIn>
  ) => Scenario<State, A, C, Refusals, Id, Needs, Has | ROut>
  /** Evaluates a command on the aggregate, at the first assertion. */
  readonly when: If<Exclude<Needs, Has | Provided>, <K extends C>(command: K) => Done<State, A, RefusalOf<Refusals, K>>>
  /** The event that handlers of a process manager receive. It is stored after the given events. */
  readonly on: (event: A) => Received<Has>
  /**
   * Runs a projection, or a list of them, for the given events, on an embedded Postgres. All of it is rolled back.
   */
  readonly project: <P extends Projection.Any | ReadonlyArray<Projection.Any>>(
    projections: P,
    ...options: [Exclude<Projection.Context<EachOf<P>>, Has | Provided | Database>] extends [never]
      ? [options?: ProjectOptions]
      : [missing: Missing<Exclude<Projection.Context<EachOf<P>>, Has | Provided | Database>>]
  ) => Projected<Projection.Error<EachOf<P>>>
}

/** `AggregateTest.of`. */
export type Of<Has = never> = <
  Name extends string,
  State,
  A extends Tagged,
  C extends Tagged,
  CI,
  Refusals extends { readonly [K in C["_tag"]]: unknown },
  Declared,
  Projections extends ReadonlyArray<Projection.Any>,
  R,
  Id extends string,
  NewId
>(
  aggregate: Aggregate<Name, State, A, C, CI, Refusals, Declared, Projections, R, Id, NewId>
) => Scenario<State, A, C, Refusals, Id, Exclude<R, Projection.Context<Projections[number]>>, Has>

/** The result of a command, and the assertions on it. They run synchronously, and may follow each other. */
export interface Done<State, A, E> extends DoneChecks<State, A, E, Done<State, A, E>> {
  /** The assertions as promises, for handlers that wait. */
  readonly promise: DoneChecks<State, A, E, Promise<void>>
  /** The assertions as effects, for a test runner of effects. The clock is that of the effect. */
  readonly effect: DoneChecks<State, A, E, Effect.Effect<void, AssertionFailed>>
}

/** The assertions on the result of a command. `Out` is what an assertion returns. */
export interface DoneChecks<State, A, E, out Out> {
  /** The command stores these events, and no others. */
  readonly thenEvents: (...events: readonly [A, ...ReadonlyArray<A>]) => Out
  /** The command stores no event, and is not refused. */
  readonly thenNothing: () => Out
  /** The command is refused: with a failure of this class, or with one that equals this instance. */
  readonly thenFails: (refusal: Expected<E | Failure>) => Out
  /** The command is not refused, and the state afterwards equals this one. */
  readonly thenState: (state: State) => Out
}

/** An event that a process manager is to receive. */
export interface Received<Has = never> {
  /**
   * The handlers of the process manager, made by `Subscription.on`, and the aggregates whose commands they evaluate. An
   * aggregate whose handlers evaluate commands of another one stands after it.
   */
  readonly handledBy: <
    const Ons extends On.Any | ReadonlyArray<On.Any>,
    const Aggregates extends ReadonlyArray<AnyAggregate> = readonly []
  >(
    handlers: Ons,
    ...aggregates: [Exclude<NeedsOf<Ons, Aggregates>, Has | Provided>] extends [never]
      ? [aggregates?: Aggregates]
      : [aggregates: Aggregates, missing: Missing<Exclude<NeedsOf<Ons, Aggregates>, Has | Provided>>]
  ) => Reacted<On.Error<EachOf<Ons>>>
}

/**
 * The commands that a process manager has evaluated, and the assertions on them. They are promises, because a command
 * with an id is hashed by the platform's cryptography, which returns promises.
 */
export interface Reacted<E> extends ReactedChecks<E, Promise<void>> {
  /** The assertions as effects, for a test runner of effects. */
  readonly effect: ReactedChecks<E, Effect.Effect<void, AssertionFailed>>
}

/** The assertions on what a process manager has done. */
export interface ReactedChecks<E, out Out> {
  /**
   * The handlers evaluate these commands, in this order, and no others. A refused command counts. `Account.command(id,
   * command)` makes one. The handlers must not fail.
   */
  readonly thenCommands: (...commands: readonly [TargetedCommand.Any, ...ReadonlyArray<TargetedCommand.Any>]) => Out
  /** The handlers evaluate no command, and do not fail. */
  readonly thenNothing: () => Out
  /** A handler fails: with a failure of this class, or with one that equals this instance. */
  readonly thenFails: (failure: Expected<E>) => Out
}

/** The tables that projections have written, and the assertions on them. Each runs on tables of its own. */
export interface Projected<E> extends ProjectedChecks<E, Promise<void>> {
  /** The assertions as effects, for a test runner of effects. */
  readonly effect: ProjectedChecks<E, Effect.Effect<void, AssertionFailed>>
}

/** The assertions on projections. */
export interface ProjectedChecks<E, out Out> {
  /** The query returns these rows, in this order. */
  readonly thenRows: (query: Statements, rows: ReadonlyArray<object>) => Out
  /** A projection fails: with a failure of this class, or with one that equals this instance. */
  readonly thenFails: (failure: Expected<E>) => Out
}

/** The options of `project`. */
export interface ProjectOptions {
  /** Creates what the projection needs and does not own: SQL, or statements of the `sql` that it is given. */
  readonly setup?: Statements | undefined
}

/** A stored event of an older release, and the assertions on how it is read. */
export interface Stored<A> {
  /** It is read as these events of today. */
  readonly reads: (...events: readonly [A, ...ReadonlyArray<A>]) => void
  /** It is read as no event. */
  readonly readsNothing: () => void
  /** It can't be read: each load fails with `UnreadableEvent`, whose message has this text. */
  readonly isUnreadable: (text?: string) => void
}

/** A class of failures, or an instance that the failure must equal. */
export type Expected<E> = E | (abstract new (...args: ReadonlyArray<never>) => E)

/** The items of a list, or the one item. */
export type EachOf<P> = P extends ReadonlyArray<infer One> ? One : P

/** The type of a parameter that names the services which a test lacks. */
export interface Missing<Needs> {
  readonly "services are missing: provide them by `provide(layer)`": Needs
}

/** A function, or in its place what it lacks. */
export type If<Needs, F> = [Needs] extends [never] ? F : Missing<Needs>

// --- internal ---

type RefusalOf<Refusals, K extends Tagged> = K["_tag"] extends keyof Refusals ? Refusals[K["_tag"]] : never

/** The services of the handlers, and of the handlers of the aggregates, without those of the aggregates themselves. */
type NeedsOf<Ons, Aggregates extends ReadonlyArray<AnyAggregate>> = Exclude<
  On.Context<EachOf<Ons>> | LayerNeeds<Aggregates[number]>,
  Instance<Aggregates[number]["name"]>
>

type LayerNeeds<One> =
  One extends Aggregate<
    infer _Name,
    infer _State,
    infer _A,
    infer _C,
    infer _CI,
    infer _Refusals,
    infer _Declared,
    infer Projections,
    infer R,
    infer _Id,
    infer _NewId
  >
    ? Exclude<R, Projection.Context<Projections[number]>>
    : never
