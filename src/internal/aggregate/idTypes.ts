/**
 * The type of `newId` of an aggregate, by the type of its ids.
 */
import type { Brand } from "effect/Brand"
import type * as Effect from "effect/Effect"

/**
 * The effect that makes ids, if the option `newId` is given, or if the ids are any text by their type. Otherwise a type
 * whose name is the reason.
 */
export type NewIdOf<Id extends string, Option> = [Option] extends [undefined]
  ? true extends IsText<Id>
    ? Effect.Effect<Id>
    : Missing<"ids of this type can't be made of a timestamp: give the option newId">
  : Effect.Effect<Id>

/** The type of `newId` where it can't be used. A compiler's message about it has the reason. */
export interface Missing<Reason extends string> {
  readonly missing: Reason
}

// --- internal ---

/** Whether a type is that of all texts, apart from its brands. Each member of a union is looked at by itself. */
type IsText<Id> = Id extends unknown ? (string extends Brand.Unbranded<Id> ? true : false) : never
