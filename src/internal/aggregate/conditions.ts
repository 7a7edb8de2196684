/**
 * The conditions that a caller sets around one command: the id of the command, and the sequence that the aggregate must
 * be at.
 *
 * `Aggregate.withCommandId` and `Aggregate.withExpectedSequence` set them, and `service.ts` reads them. The reference
 * is not public, because each condition has a failure that those functions add to the type of the effect.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { maxSequence } from "../../Event.js"
import { UnexpectedSequence, ValidationError, ValidationIssue } from "../../StoreError.js"

/** The conditions of a call. */
export interface ConditionValues {
  readonly commandId?: string
  readonly expectedSequence?: number
}

export class Conditions extends Context.Reference<Conditions>()("effect-maestro/internal/Conditions", {
  defaultValue: (): ConditionValues => none
}) {}

/** Adds conditions to the ones that are set already. */
export const withConditions =
  (values: ConditionValues) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.mapInputContext(effect, (context: Context.Context<R>) =>
      Context.add(context, Conditions, { ...Context.get(context, Conditions), ...values })
    )

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

const none: ConditionValues = {}
