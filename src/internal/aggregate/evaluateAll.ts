/**
 * `Aggregate.evaluateAll`, which `Aggregate.ts` exports: finds the layers of the commands in the context of the caller,
 * checks the list, and evaluates it by `severalCommands.ts` in a span.
 */
import * as Effect from "effect/Effect"
import type * as Schedule from "effect/Schedule"
import { flatMapSync } from "../runtime/syncEffect.js"
import { makeInSpanIfTraced } from "../runtime/tracing.js"
import { callOf, makeCallerReader } from "./commandContext.js"
import { hasConditions, withoutConditions } from "./conditions.js"
import { type Answers, evaluateSeveral } from "./severalCommands.js"
import { readInput } from "./severalInput.js"

/** Evaluates a list of `TargetedCommand`. The public function says which failures it has, and which services it needs. */
export const evaluateAll = (
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
