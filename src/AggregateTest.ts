/**
 * Tests of domain code: given events, when a command, then events. They need no store and no set-up, and run on any
 * test runner, because an assertion throws where it fails.
 *
 * - `of` tests decisions, projections and process managers.
 * - `stored` tests how events of older releases are read.
 * - `sequences` tests random sequences of commands.
 *
 * Events are encoded, stored in memory and read again, and the command handler of the aggregate decides. So a test that
 * succeeds says what a store would do. `TestStore` is a store for tests of trouble.
 *
 * Given, when and then are known from behaviour-driven development; Axon and Emmett have such tests for event sourcing.
 *
 * @since 0.1.0
 */
import type * as Layer from "effect/Layer"
import type * as Schema from "effect/Schema"
import type { Aggregate } from "./Aggregate.js"
import type { Tagged } from "./internal/codec/eventCodec.js"
import { checkAggregate } from "./internal/test/checkInput.js"
import { start } from "./internal/test/database.js"
import type { AnyAggregate, StoredForm } from "./internal/test/given.js"
import { sequencesOf } from "./internal/test/random.js"
import { of as makeScenario, usualId } from "./internal/test/scenario.js"
import type { Of, Stored } from "./internal/test/scenarioTypes.js"
import type { SequenceOptions, Sequences } from "./internal/test/sequenceTypes.js"
import { reading } from "./internal/test/stored.js"
import type { Provided } from "./internal/test/world.js"
import type { Projection } from "./Projection.js"

export {
  /**
   * What an assertion fails with. Its message has what was given, done, expected and got.
   *
   * @since 0.1.0
   * @category errors
   */
  AssertionFailed
} from "./internal/test/failure.js"
export type {
  /**
   * An event as an older release has stored it.
   *
   * @since 0.1.0
   * @category models
   */
  StoredForm
} from "./internal/test/given.js"
export type {
  /**
   * SQL, or a function that returns statements of the `sql` that it is given.
   *
   * @since 0.1.0
   * @category models
   */
  Statements
} from "./internal/test/projected.js"
export type {
  /**
   * The result of a command, and the assertions on it.
   *
   * @since 0.1.0
   * @category models
   */
  Done,
  /**
   * The assertions on the result of a command.
   *
   * @since 0.1.0
   * @category models
   */
  DoneChecks,
  /**
   * The tables that projections have written, and the assertions on them.
   *
   * @since 0.1.0
   * @category models
   */
  Projected,
  /**
   * The assertions on projections.
   *
   * @since 0.1.0
   * @category models
   */
  ProjectedChecks,
  /**
   * The options of `project`.
   *
   * @since 0.1.0
   * @category models
   */
  ProjectOptions,
  /**
   * The commands that a process manager has evaluated, and the assertions on them.
   *
   * @since 0.1.0
   * @category models
   */
  Reacted,
  /**
   * The assertions on what a process manager has done.
   *
   * @since 0.1.0
   * @category models
   */
  ReactedChecks,
  /**
   * An event that a process manager is to receive.
   *
   * @since 0.1.0
   * @category models
   */
  Received,
  /**
   * A test of domain code, up to what is done.
   *
   * @since 0.1.0
   * @category models
   */
  Scenario,
  /**
   * A stored event of an older release, and the assertions on how it is read.
   *
   * @since 0.1.0
   * @category models
   */
  Stored
} from "./internal/test/scenarioTypes.js"
export type {
  /**
   * The options of random sequences of commands.
   *
   * @since 0.1.0
   * @category models
   */
  SequenceOptions,
  /**
   * Random sequences of commands, and what they must not break.
   *
   * @since 0.1.0
   * @category models
   */
  Sequences
} from "./internal/test/sequenceTypes.js"

/**
 * Begins a test of an aggregate: given events, when a command, then events, a refusal or a state.
 *
 * - Assertions are synchronous. Where a handler waits for a promise or a timer, use `when(...).promise`, and where the
 *   test runner runs effects, `when(...).effect`. Tests of projections are promises.
 * - `thenEvents` and the others compare the events as a load returns them. Values of other classes differ.
 * - Strong projections do not run when a command is evaluated. `project` tests them.
 * - A handler that needs services compiles after `provide(layer)` only.
 *
 * No assertion is named `then`, because `await` would call it.
 *
 * @since 0.1.0
 * @category constructors
 *
 * @example
 * ```ts
 * import { Aggregate } from "effect-maestro"
 * import * as AggregateTest from "effect-maestro/AggregateTest"
 * import * as Effect from "effect/Effect"
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
 *     Increase: ({ by }, { state: { count } }) =>
 *       count + by > 10 ? new TooHigh({ limit: 10 }) : Effect.succeed([new Increased({ by })])
 *   },
 *   evolve: { Increased: ({ count }, { by }) => ({ count: count + by }) }
 * })
 *
 * AggregateTest.of(Counter)
 *   .given(new Increased({ by: 3 }))
 *   .when(new Increase({ by: 4 }))
 *   .thenEvents(new Increased({ by: 4 }))
 *   .thenState({ count: 7 })
 *
 * AggregateTest.of(Counter)
 *   .given(new Increased({ by: 8 }))
 *   .when(new Increase({ by: 4 }))
 *   .thenFails(TooHigh)
 * ```
 */
export const of: Of = makeScenario

/**
 * An event in the form in which an older release of the aggregate has stored it. The version is 1 by default.
 *
 * @since 0.1.0
 * @category constructors
 *
 * @example
 * ```ts
 * import { Aggregate, Upcast } from "effect-maestro"
 * import * as AggregateTest from "effect-maestro/AggregateTest"
 * import * as Effect from "effect/Effect"
 * import * as Schema from "effect/Schema"
 *
 * class Paid extends Schema.TaggedClass<Paid>()("Paid", { cents: Schema.Int }) {}
 *
 * const Invoice = Aggregate.make("Invoice", {
 *   state: Schema.Int,
 *   initialState: 0,
 *   events: Upcast.events(Paid, {
 *     Paid: Upcast.from(1, Schema.Struct({ euros: Schema.Number })).pipe(
 *       Upcast.toEvent(2, ({ euros }) => ({ cents: Math.round(euros * 100) }))
 *     )
 *   }),
 *   commands: Paid,
 *   decide: { Paid: (command) => Effect.succeed([command]) },
 *   evolve: { Paid: (sum, { cents }) => sum + cents }
 * })
 *
 * AggregateTest.stored(Invoice, { type: "Paid", body: { euros: 2.5 } }).reads(new Paid({ cents: 250 }))
 * ```
 */
export const stored = <A extends Tagged>(
  // biome-ignore lint/suspicious/noExplicitAny: stored events have any encoded form
  aggregate: AnyAggregate & { readonly events: Schema.Schema<A, any> },
  event: StoredForm
): Stored<A> => {
  checkAggregate("AggregateTest.stored", aggregate)
  return reading(aggregate, usualId(aggregate.id), event)
}

/**
 * Random sequences of commands, from the `Arbitrary` of their schema, on an aggregate without events. A sequence that
 * breaks the property is shrunk to a short one, in which every command is needed. The failure prints it with the seed.
 *
 * A handler that waits for a promise or a timer fails the test. Handlers that need services take a layer as `provide`.
 * It throws a `TypeError` for an option that can't work, such as `runs: 0`.
 *
 * @since 0.1.0
 * @category constructors
 *
 * @example
 * ```ts
 * import { Aggregate } from "effect-maestro"
 * import * as AggregateTest from "effect-maestro/AggregateTest"
 * import * as Effect from "effect/Effect"
 * import * as Schema from "effect/Schema"
 *
 * const Amount = Schema.Int.pipe(Schema.between(1, 100))
 * class Moved extends Schema.TaggedClass<Moved>()("Moved", { by: Schema.Int }) {}
 * class Add extends Schema.TaggedClass<Add>()("Add", { amount: Amount }) {}
 * class Take extends Schema.TaggedClass<Take>()("Take", { amount: Amount }) {}
 * class OutOfStock extends Schema.TaggedError<OutOfStock>()("OutOfStock", {}) {}
 *
 * const Stock = Aggregate.make("Stock", {
 *   state: Schema.Int,
 *   initialState: 0,
 *   events: Moved,
 *   commands: Schema.Union(Add, Take),
 *   decide: {
 *     Add: ({ amount }) => Effect.succeed([new Moved({ by: amount })]),
 *     Take: ({ amount }, { state }) =>
 *       amount > state ? new OutOfStock() : Effect.succeed([new Moved({ by: -amount })])
 *   },
 *   evolve: { Moved: (stock, { by }) => stock + by }
 * })
 *
 * AggregateTest.sequences(Stock).keepInvariant((stock) => stock >= 0)
 * AggregateTest.sequences(Stock).replayToSameState()
 * AggregateTest.sequences(Stock, { runs: 20 }).restoreFromSnapshots()
 * ```
 */
export const sequences = <
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
  aggregate: Aggregate<Name, State, A, C, CI, Refusals, Declared, Projections, R, Id, NewId>,
  ...options: OptionsFor<C, Exclude<R, Projection.Context<Projections[number]> | Provided>>
): Sequences<State> => {
  checkAggregate("AggregateTest.sequences", aggregate)
  return sequencesOf<State, C>(aggregate, usualId(aggregate.id), options[0] ?? {})
}

/**
 * Starts the embedded Postgres of the process, on which `project` runs. The first test that uses `project` starts it in
 * any case. The start takes a second, and on a busy machine more than the usual time limit of a test. So call this
 * where no time limit holds, as in `await AggregateTest.startDatabase()` at the top of a test file, or in `beforeAll`
 * with a limit of its own.
 *
 * @since 0.1.0
 * @category databases
 */
export const startDatabase: () => Promise<void> = start

// --- internal ---

/** A layer is an option only where a handler needs one, and is then required. */
type OptionsFor<C, Needs> = [Needs] extends [never]
  ? [options?: SequenceOptions<C>]
  : [options: SequenceOptions<C> & { readonly provide: Layer.Layer<Needs, unknown, Provided> }]
