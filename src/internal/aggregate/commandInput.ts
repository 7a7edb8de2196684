/**
 * Decodes the input of `Aggregate.evaluateUnknown` to a command. `operations.ts` calls it.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { ValidationError } from "../../StoreError.js"
import { decodeInput, type Tagged, tagOf, unknownTag } from "../codec/eventCodec.js"

/**
 * Decodes a command. With `only`, a command of another tag is refused, and the failure names the allowed tags. The tag
 * is compared before decoding, so that the failure does not list commands that are not allowed, and again afterwards,
 * because a getter may change.
 */
export const makeCommandInput = <C extends Tagged, CI>(
  operation: string,
  schema: Schema.Schema<C, CI>
): ((input: unknown, only: ReadonlyArray<string> | undefined) => Effect.Effect<C, ValidationError>) => {
  const decode = Schema.decodeUnknownEither(schema, { errors: "all" })
  return (input, only) => {
    if (only === undefined) return decodeInput(operation, decode, input)
    const isAllowed = (command: unknown) => only.includes(tagOf(command) ?? "")
    const refused = (command: unknown) =>
      Effect.suspend(() => new ValidationError({ operation, issues: [unknownTag(only, command)] }))
    return isAllowed(input)
      ? Effect.filterOrElse(decodeInput(operation, decode, input), isAllowed, refused)
      : refused(input)
  }
}
