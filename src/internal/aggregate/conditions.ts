/**
 * The conditions that a caller sets around one command: the id of the command, and the sequence that the aggregate must
 * be at.
 *
 * `Aggregate` exports `withCommandId` and `withExpectedSequence`, which set them, and `service.ts` reads them. The reference
 * is not public, because each condition has a failure that those functions add to the type of the effect.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { maxSequence } from "../../Event.js"
import { type CommandIdReused, UnexpectedSequence, ValidationError, ValidationIssue } from "../../StoreError.js"

/** The conditions of a call. */
export interface ConditionValues {
  readonly commandId?: string
  readonly expectedSequence?: number
  /** One call of a program, which may arrive more than once: a runner of a cluster sets it. */
  readonly attempt?: Attempt
}

/**
 * A call that may arrive more than once. All arrivals have the result of the first one that took effect. Where the command
 * has no id of its own, the id of the call is that of the command, too.
 */
export interface Attempt {
  readonly id: string
  /** The number of messages of the call that were sent before this one. */
  readonly before: number
}

export class Conditions extends Context.Reference<Conditions>()("effect-maestro/internal/Conditions", {
  defaultValue: (): ConditionValues => none
}) {}

/**
 * Gives a command an id: a key that its sender keeps as long as it may send the command again. With an id, a command takes effect at most
 * once on its aggregate, however often and on however many nodes it is evaluated.
 *
 * A receipt is stored in the same commit as the command's events. If the receipt of the id is stored already, `evaluate` returns the current
 * state and `duplicate: true`. A refusal stores no receipt, so the command is decided again the next time. A decision of no events stores
 * the receipt alone.
 *
 * - The id belongs to one command. Another command of the same id, or the same command with other fields, fails with `CommandIdReused`.
 *   Commands are compared as their schema encodes them, so one that its schema can't encode is refused by a `ValidationError`. After a
 *   deployment that changes the schema of a command, only its tag is compared with older receipts. So a command that is renamed keeps its tag,
 *   or its old form stays until no sender repeats it.
 * - The id belongs to one aggregate. Another aggregate handles a command of the same id as another command.
 * - An id is a text of 1 to 1000 characters; any other is refused by a `ValidationError`.
 * - Put it directly around `evaluate`. Commands that a handler or a projection evaluates do not inherit the id.
 * - A handler may run more than once, so effects beside its decision may be repeated.
 *
 * A receipt is an event of type `effect-maestro/CommandHandled` in a stream of the kind `effect-maestro:Receipt`, which the feed shows. A
 * projection gets it if it is `of: "all"` and names the type.
 *
 * @since 0.1.0
 * @category conditions
 *
 * @example
 * ```ts
 * import { Aggregate, MemoryStore } from "effect-maestro"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 * import * as Schema from "effect/Schema"
 *
 * class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", { amount: Schema.Positive }) {}
 *
 * const Account = Aggregate.make("Account", {
 *   state: Schema.Number,
 *   initialState: 0,
 *   events: Deposited,
 *   commands: Deposited,
 *   decide: { Deposited: (command) => Effect.succeed([command]) },
 *   evolve: { Deposited: (balance, { amount }) => balance + amount }
 * })
 *
 * const request = Account.evaluate("42", new Deposited({ amount: 100 })).pipe(Aggregate.withCommandId("request-7"))
 *
 * export const program = Effect.gen(function* () {
 *   yield* request
 *   // The client did not get the answer, and sends the request again.
 *   const { duplicate, state } = yield* request
 *   return { duplicate, state } // prints: { duplicate: true, state: 100 }
 * }).pipe(Effect.provide(Account.layer.pipe(Layer.provide(MemoryStore.layer))))
 * ```
 */
export const withCommandId = (
  commandId: string
): (<A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E | CommandIdReused, R>) =>
  withConditions({ commandId })

/**
 * Evaluates a command only while the aggregate is at this sequence, which its sender has seen: an `If-Match` of HTTP. Otherwise the command
 * fails with `UnexpectedSequence`, which is not retried. With 0 the aggregate must have no events.
 *
 * The sequence is checked against the store, also if another commit comes first while the command is decided. A command with an id that was
 * handled before is a duplicate at any sequence. Put it directly around `evaluate`: commands that a handler or a projection evaluates do not
 * inherit it. A sequence that is no integer from 0 to `Event.maxSequence` is refused by a `ValidationError`.
 *
 * @since 0.1.0
 * @category conditions
 *
 * @example
 * ```ts
 * import { Aggregate, MemoryStore } from "effect-maestro"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 * import * as Schema from "effect/Schema"
 *
 * class Renamed extends Schema.TaggedClass<Renamed>()("Renamed", { title: Schema.String }) {}
 *
 * const Page = Aggregate.make("Page", {
 *   state: Schema.String,
 *   initialState: "",
 *   events: Renamed,
 *   commands: Renamed,
 *   decide: { Renamed: (command) => Effect.succeed([command]) },
 *   evolve: { Renamed: (_, { title }) => title }
 * })
 *
 * export const program = Effect.gen(function* () {
 *   yield* Page.evaluate("home", new Renamed({ title: "Welcome" }))
 *   return yield* Page.evaluate("home", new Renamed({ title: "Hello" })).pipe(
 *     Aggregate.withExpectedSequence(0),
 *     Effect.catchTag("UnexpectedSequence", ({ actual, expected }) => Effect.succeed({ expected, actual }))
 *   ) // prints: { expected: 0, actual: 1 }
 * }).pipe(Effect.provide(Page.layer.pipe(Layer.provide(MemoryStore.layer))))
 * ```
 */
export const withExpectedSequence = (
  expectedSequence: number
): (<A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E | UnexpectedSequence, R>) =>
  withConditions({ expectedSequence })

/** Removes the conditions: the commands that a handler or a projection evaluates do not inherit them. */
export const withoutConditions = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.provideService(effect, Conditions, none)

/** Whether a caller has set any. */
export const hasConditions = (values: ConditionValues): boolean => values !== none

/** The sequence that the caller expects, if one is set. An invalid one is refused, and so is `undefined`. */
export const expectedOf = (
  name: string,
  values: ConditionValues
): Effect.Effect<number | undefined, ValidationError> =>
  "expectedSequence" in values && !isSequence(values.expectedSequence)
    ? new ValidationError({
        operation: `${name}.evaluate`,
        issues: [
          new ValidationIssue({
            path: ["expectedSequence"],
            message: sequenceRule
          })
        ]
      })
    : Effect.succeed(values.expectedSequence)

export const sequenceRule = `must be an integer from 0 to ${maxSequence}`

export const isSequence = (value: unknown): boolean =>
  typeof value === "number" && Number.isInteger(value) && value >= 0 && value <= maxSequence

export const unexpected = (kind: string, id: string, expected: number, actual: number): UnexpectedSequence =>
  new UnexpectedSequence({ kind, id, expected, actual })

// --- internal ---

/** Adds conditions to the ones that are set already. */
const withConditions =
  (values: ConditionValues) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.mapInputContext(effect, (context: Context.Context<R>) =>
      Context.add(context, Conditions, { ...Context.get(context, Conditions), ...values })
    )

const none: ConditionValues = {}
