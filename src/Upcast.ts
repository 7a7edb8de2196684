/**
 * The history of event types: how stored events of older releases are read as the events of today.
 *
 * Each stored event has the version of its type. `events` gives a union of event schemas its history: the steps from each
 * older version to the next, and types that were renamed, split or dropped. The result is a schema of the same type, so
 * it is the `events` of an aggregate or a projection, and every read goes through it. Nothing stored is changed.
 *
 * Axon, Marten and EventSauce call such a step an upcast, too.
 *
 * @since 0.1.0
 */
import type { Pipeable } from "effect/Pipeable"
import type * as Schema from "effect/Schema"
import type { Tagged } from "./internal/codec/eventCodec.js"
import {
  type ChainEntry,
  type DroppedEntry,
  makePart,
  type RenamedEntry,
  type ReplacedEntry,
  type Run,
  type StepsEntry,
  type UpcastTypeId,
  withHistory
} from "./internal/codec/eventHistory.js"
import type { Checked, OnlyFieldsOf } from "./internal/codec/upcastTypes.js"

/**
 * A chain that has come as far as a shape of an older release. It must end in `toEvent` or `toEvents`.
 *
 * @since 0.1.0
 * @category models
 */
export interface Steps<out Shape> extends Pipeable {
  /** @internal */
  readonly [UpcastTypeId]: { readonly shape: () => Shape }
  readonly entry: StepsEntry
}

/**
 * The chain of a type that is still written, from the oldest stored version to the version of today. `Own` is what its
 * steps return for an event of its own type, and `Part` are the events into which an older version is split.
 *
 * @since 0.1.0
 * @category models
 */
export interface Chain<out Own, out Part> extends Pipeable {
  /** @internal */
  readonly [UpcastTypeId]: { readonly own: () => Own; readonly part: () => Part }
  readonly entry: ChainEntry
}

/**
 * The chain of a type that is written no more: each of its events is read as events of other types.
 *
 * @since 0.1.0
 * @category models
 */
export interface Replaced<out Part> extends Pipeable {
  /** @internal */
  readonly [UpcastTypeId]: { readonly part: () => Part }
  readonly entry: ReplacedEntry
}

/**
 * A type that has another name today.
 *
 * @since 0.1.0
 * @category models
 */
export interface Renamed<out Type extends string> extends Pipeable {
  /** @internal */
  readonly [UpcastTypeId]: { readonly type: () => Type }
  readonly entry: RenamedEntry
}

/**
 * A type whose events change nothing any more.
 *
 * @since 0.1.0
 * @category models
 */
export interface Dropped extends Pipeable {
  /** @internal */
  readonly [UpcastTypeId]: { readonly dropped: true }
  readonly entry: DroppedEntry
}

/**
 * The history of stored types: one part for each type that has one.
 *
 * @since 0.1.0
 * @category models
 */
export type History = Readonly<
  Record<string, Steps<unknown> | Chain<unknown, unknown> | Replaced<unknown> | Renamed<string> | Dropped>
>

/**
 * Gives a schema of events its history. The keys are types as they are stored.
 *
 * - A type of today has a chain that ends in the version of today: `toEvent(version, …)`. New events are stored with that
 *   version. A type without a chain has version 1.
 * - A type that is written no more is `renamed`, or has a chain that ends in `toEvent(…)` or `toEvents(…)`, or is
 *   `dropped`.
 *
 * The compiler checks each step against the shape after it, and the last step against the events of the schema. Versions
 * that leave a gap or come twice, a circle of new names and the like throw a `TypeError`.
 *
 * A stored event of a version that the history does not have is an `UnreadableEvent`, which says whether it is newer. So
 * is an event at which a step throws, or returns something that is no event. Steps must be pure, because they run at
 * every read.
 *
 * A snapshot is used only with the history by which it was made: its versions, shapes, and the source text of its steps.
 * After a change the events are replayed, so a snapshot changes no state, also where an older release made it by a
 * downcast.
 *
 * @since 0.1.0
 * @category constructors
 *
 * @example
 * ```ts
 * import { Upcast } from "effect-maestro"
 * import * as Schema from "effect/Schema"
 *
 * class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", {
 *   amount: Schema.Number,
 *   currency: Schema.String,
 *   by: Schema.String
 * }) {}
 * class Withdrawn extends Schema.TaggedClass<Withdrawn>()("Withdrawn", { amount: Schema.Number }) {}
 *
 * const DepositedV1 = Schema.Struct({ amount: Schema.Number })
 * const DepositedV2 = Schema.Struct({ amount: Schema.Number, currency: Schema.String })
 * const MovedV1 = Schema.Struct({ amount: Schema.Number })
 *
 * export const AccountEvents = Upcast.events(Schema.Union(Deposited, Withdrawn), {
 *   Deposited: Upcast.from(1, DepositedV1).pipe(
 *     Upcast.to(2, DepositedV2, (old) => ({ ...old, currency: "EUR" })),
 *     Upcast.toEvent(3, (old) => ({ ...old, by: "unknown" }))
 *   ),
 *   PaidIn: Upcast.renamed("Deposited"),
 *   Moved: Upcast.from(1, MovedV1).pipe(
 *     Upcast.toEvents(({ amount }) => [
 *       { _tag: "Withdrawn", amount },
 *       { _tag: "Deposited", amount, currency: "EUR", by: "unknown" }
 *     ])
 *   ),
 *   Viewed: Upcast.dropped
 * })
 * ```
 */
export const events: <A extends Tagged, I, const H extends History>(
  schema: Schema.Schema<A, I>,
  history: H & Checked<A, H>
) => Schema.Schema<A, I> = (schema, history) => withHistory(schema, history)

/**
 * Begins the chain of a type: the oldest version that is stored, and the schema of its body.
 *
 * @since 0.1.0
 * @category chains
 */
export const from = <Shape, Encoded>(version: number, schema: Schema.Schema<Shape, Encoded>): Steps<Shape> =>
  makePart({ _tag: "Steps", shapes: [{ version, schema }], steps: [] })

/**
 * The step to the next version of a type. The schema reads events that are stored in that version. The result of the step
 * has its decoded form, and is not decoded again.
 *
 * @since 0.1.0
 * @category chains
 */
export const to =
  <Old, Shape, Encoded, const Result extends Shape>(
    version: number,
    schema: Schema.Schema<Shape, Encoded>,
    step: (old: Old) => Result & OnlyFieldsOf<Shape, Result>
  ) =>
  (chain: Steps<Old>): Steps<Shape> =>
    makePart({
      _tag: "Steps",
      shapes: [...chain.entry.shapes, { version, schema }],
      steps: [...chain.entry.steps, step as Run]
    })

/**
 * The last step of a chain. With a version it leads to the version of today of a type that is still written: it returns an
 * event of that type, or its fields. Without one it leads to an event of another type, which is returned with its tag.
 *
 * Fields and other plain objects must satisfy the schema of the event, and become instances of its class. An instance of
 * the class is taken as it is. Fields are faster, because the constructor of a class takes longer than all other parts of
 * a read.
 *
 * @since 0.1.0
 * @category chains
 */
export const toEvent: {
  <Old, const Own>(version: number, step: (old: Old) => Own): (chain: Steps<Old>) => Chain<Own, never>
  <Old, const Part extends Tagged>(step: (old: Old) => Part): (chain: Steps<Old>) => Replaced<Part>
} = (first: number | Run, step?: Run) => ending(false, first, step)

/**
 * The last step of a chain whose events are split: it returns any number of events, each with its tag. With a version it
 * splits the older versions of a type that is still written. All parts of an event have its sequence.
 *
 * @since 0.1.0
 * @category chains
 */
export const toEvents: {
  <Old, const Part extends Tagged>(
    version: number,
    step: (old: Old) => ReadonlyArray<Part>
  ): (chain: Steps<Old>) => Chain<never, Part>
  <Old, const Part extends Tagged>(step: (old: Old) => ReadonlyArray<Part>): (chain: Steps<Old>) => Replaced<Part>
} = (first: number | Run, step?: Run) => ending(true, first, step)

/**
 * The chain of a type of which no version older than this one is stored.
 *
 * @since 0.1.0
 * @category chains
 */
export const since = (version: number): Chain<never, never> =>
  makePart({ _tag: "Chain", shapes: [], steps: [], version, last: undefined, downcasts: [] })

/**
 * Reads a version that a newer release writes, so that both releases may run side by side. The function returns an event of
 * the own type, or its fields. Without it, an event of a newer version is an `UnreadableEvent`.
 *
 * @since 0.1.0
 * @category chains
 *
 * @example
 * ```ts
 * import { Upcast } from "effect-maestro"
 * import * as Schema from "effect/Schema"
 *
 * class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", { amount: Schema.Number }) {}
 *
 * const DepositedV2 = Schema.Struct({ cents: Schema.Number })
 *
 * export const events = Upcast.events(Deposited, {
 *   Deposited: Upcast.since(1).pipe(Upcast.downcast(2, DepositedV2, ({ cents }) => ({ amount: cents / 100 })))
 * })
 * ```
 */
export const downcast =
  <Shape, Encoded, const Own>(version: number, schema: Schema.Schema<Shape, Encoded>, step: (newer: Shape) => Own) =>
  <Before, Part>(chain: Chain<Before, Part>): Chain<Before | Own, Part> =>
    makePart({
      ...chain.entry,
      downcasts: [...chain.entry.downcasts, { version, schema, run: step as Run }]
    })

/**
 * A type that has another name today: its versions are those of that type. A type whose new name begins a new history has
 * a chain of its own instead.
 *
 * @since 0.1.0
 * @category constructors
 */
export const renamed = <const Type extends string>(type: Type): Renamed<Type> => makePart({ _tag: "Renamed", type })

/**
 * A type whose events change nothing any more. They keep their sequences.
 *
 * @since 0.1.0
 * @category constructors
 */
export const dropped: Dropped = makePart({ _tag: "Dropped" })

// --- internal ---

const ending =
  (parts: boolean, first: number | Run, step: Run | undefined) =>
  ({ entry: { shapes, steps } }: Steps<unknown>): Chain<never, never> & Replaced<never> =>
    typeof first === "function"
      ? makePart({ _tag: "Replaced", shapes, steps, last: { parts, run: first } })
      : makePart({
          _tag: "Chain",
          shapes,
          steps,
          version: first,
          // Callers that circumvent the types may leave it out, which `events` refuses.
          last: { parts, run: step as Run },
          downcasts: []
        })
