/**
 * What a caller sets around one command: the id of the command, and the sequence that the aggregate must be at.
 *
 * The reference is not public, because each condition brings a failure of its own: only the functions of `Aggregate` set it, and they add
 * the failure to the type of the effect.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { maxSequence } from "../../Event.js"
import { UnexpectedSequence, ValidationError, ValidationIssue } from "../../StoreError.js"

interface Values {
  readonly commandId?: string
  readonly expectedSequence?: number
}

export class Conditions extends Context.Reference<Conditions>()("effect-maestro/internal/Conditions", {
  defaultValue: (): Values => none
}) {}

/** Sets conditions beside those that are set already. */
export const withConditions =
  (values: Values) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.mapInputContext(effect, (context: Context.Context<R>) =>
      Context.add(context, Conditions, { ...Context.get(context, Conditions), ...values })
    )

/** Conditions are meant for one command: those that its handler or a projection evaluates have none. */
export const withoutConditions = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.provideService(effect, Conditions, none)

/** Whether a caller has set any. */
export const hasConditions = (values: Values): boolean => values !== none

/** The sequence that the caller expects, if one is set. One that can be none is refused, and so is `undefined` in place of one. */
export const expectedOf = (kind: string, values: Values): Effect.Effect<number | undefined, ValidationError> =>
  "expectedSequence" in values && !isSequence(values.expectedSequence)
    ? new ValidationError({
        operation: `${kind}.evaluate`,
        issues: [
          new ValidationIssue({
            path: ["expectedSequence"],
            message: `must be an integer from 0 to ${maxSequence}`
          })
        ]
      })
    : Effect.succeed(values.expectedSequence)

export const unexpected = (kind: string, id: string, expected: number, actual: number): UnexpectedSequence =>
  new UnexpectedSequence({ kind, id, expected, actual })

// --- internal ---

const none: Values = {}

const isSequence = (value: unknown): boolean =>
  typeof value === "number" && Number.isInteger(value) && value >= 0 && value <= maxSequence
