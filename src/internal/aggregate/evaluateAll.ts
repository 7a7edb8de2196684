/**
 * `Aggregate.evaluateAll`, which `Aggregate.ts` exports: finds the layers of the commands in the context of the caller,
 * checks the list, and evaluates it by `severalCommands.ts` in a span.
 */
import * as Effect from "effect/Effect"
import type * as Schedule from "effect/Schedule"
import { flatMapSync } from "../runtime/syncEffect.js"
import { makeInSpanIfTraced } from "../runtime/tracing.js"
import { callOf, makeCallerReader } from "./commandContext.js"
import { defaultRetry } from "./commandRetry.js"
import { hasConditions, withoutConditions } from "./conditions.js"
import { type Answers, evaluateSeveral } from "./severalCommands.js"
import { readInput } from "./severalInput.js"
import type { TargetedCommand } from "./targetedCommand.js"

/**
 * Evaluates commands on several aggregates, of one kind or of several, in one transaction with all their projections:
 * all take effect, or none. The results are in the order of the commands.
 *
 * - A refusal of a handler, or of a projection, fails with `CommandRefused`. It has the index of the command, the kind
 *   and the id of its aggregate, and the refusal. `RetryCommand`, `UnexpectedSequence` and `StoreError` name the
 *   aggregate, and an issue of a `ValidationError` has the index of the command. The `ValidationError` of another command
 *   that a handler or a projection evaluates stays as it is.
 * - Commands are decided in their order. A command sees the events of the commands before it on its aggregate. The
 *   events are stored in the order of the commands, which is their order in the feed. Then the projections run: those
 *   of the aggregate of the first command, then those of the next. Each handles the events of its aggregate.
 * - The locks of the aggregates are taken in one order, so that calls never wait for each other. If another commit came
 *   first on one of the aggregates, all commands are decided again, by the `retry` schedule, `defaultRetry` by default.
 * - Within `withCommandId` the list takes effect once, as a whole. The id then belongs to this list on each of its
 *   aggregates. `withExpectedSequence` is refused: give `command` the sequence.
 * - An aggregate whose commands decide no events is checked before the commit, but the commit does not guard it. If a
 *   cached state was outdated there, or at a refusal, all states are read, and all commands are decided once more.
 * - All aggregates must have the same store. A list has at most 10 000 commands. An empty list returns an empty list.
 *
 * @since 0.1.0
 * @category evaluations
 *
 * @example
 * ```ts
 * import { Aggregate, MemoryStore } from "effect-maestro"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 * import * as Schema from "effect/Schema"
 *
 * class Moved extends Schema.TaggedClass<Moved>()("Moved", { amount: Schema.Int }) {}
 * class Move extends Schema.TaggedClass<Move>()("Move", { amount: Schema.Int }) {}
 * class TooLittle extends Schema.TaggedError<TooLittle>()("TooLittle", { balance: Schema.Int }) {}
 *
 * const Account = Aggregate.make("Account", {
 *   state: Schema.Int,
 *   initialState: 0,
 *   events: Moved,
 *   commands: Move,
 *   decide: {
 *     Move: ({ amount }, { state }) =>
 *       state + amount < 0 ? new TooLittle({ balance: state }) : Effect.succeed([new Moved({ amount })])
 *   },
 *   evolve: { Moved: (balance, { amount }) => balance + amount }
 * })
 *
 * const transfer = (amount: number) =>
 *   Aggregate.evaluateAll([
 *     Account.command("anna", new Move({ amount: -amount })),
 *     Account.command("bert", new Move({ amount }))
 *   ]).pipe(
 *     Effect.map(([from, to]) => [from.state, to.state]),
 *     Effect.catchTag("CommandRefused", ({ refusal }) => Effect.succeed(refusal.balance))
 *   )
 *
 * export const program = Effect.gen(function* () {
 *   yield* Account.evaluate("anna", new Move({ amount: 100 }))
 *   return [yield* transfer(30), yield* transfer(300)] // prints: [ [ 70, 30 ], 70 ]
 * }).pipe(Effect.provide(Account.layer.pipe(Layer.provide(MemoryStore.layer))))
 * ```
 */
export const evaluateAll = <const Commands extends ReadonlyArray<TargetedCommand.Any>>(
  commands: Commands,
  options?: { readonly retry?: Schedule.Schedule<unknown> | undefined }
): TargetedCommand.Evaluation<Commands> =>
  evaluateList(commands, options?.retry ?? defaultRetry) as TargetedCommand.Evaluation<Commands>

// --- internal ---

/** Evaluates a list of `TargetedCommand`. The public function says which failures it has, and which services it needs. */
const evaluateList = (
  list: ReadonlyArray<unknown>,
  retry: Schedule.Schedule<unknown>
): Effect.Effect<Answers, unknown> =>
  Effect.withFiberRuntime((fiber) =>
    makeInSpanIfTraced(
      fiber,
      "Aggregate.evaluateAll",
      () => ({ attributes: { commands: Array.isArray(list) ? list.length : 0 } }),
      (fiber): Effect.Effect<Answers, unknown> => {
        const caller = makeCallerReader()(fiber.currentContext)
        return flatMapSync(readInput(list, caller), (input) => {
          if (input === undefined) return Effect.succeed([])
          const evaluating = evaluateSeveral({ input, caller, each: callOf(fiber, caller, "", undefined), retry })
          return hasConditions(caller.conditions) ? withoutConditions(evaluating) : evaluating
        })
      }
    )
  )
