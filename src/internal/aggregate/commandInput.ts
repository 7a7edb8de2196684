/**
 * Decodes the input of `Aggregate.evaluateUnknown` to a command. `operations.ts` calls it.
 */
import * as Effect from "effect/Effect"
import type * as Schema from "effect/Schema"
import { ValidationError, ValidationIssue } from "../../StoreError.js"
import { decodeInput, type Tagged, tagOf, tagsOf, unknownTag } from "../codec/eventCodec.js"
import { decodeUnknownEither } from "../codec/fastSchema.js"

/**
 * Decodes a command. With `only`, a command of another tag is refused, and the failure names the allowed tags. The tag
 * is compared before decoding, so that the failure does not list commands that are not allowed, and again afterwards,
 * because a getter may change.
 */
export const makeCommandInput = <C extends Tagged, CI>(
  operation: string,
  schema: Schema.Schema<C, CI>
): ((input: unknown, only: ReadonlyArray<string> | undefined) => Effect.Effect<C, ValidationError>) => {
  const decode = decodeUnknownEither(schema, { errors: "all" })
  const tags = tagsOf(schema)
  return (input, only) => {
    const allowed = only ?? tags
    const isAllowed = (command: unknown) => allowed.includes(tagOf(command) ?? "")
    const refused = (command: unknown) =>
      Effect.suspend(() => {
        const issue = only === undefined ? noCommand(tags, command) : unknownTag(only, command)
        return new ValidationError({ operation, issues: [issue] })
      })
    return isAllowed(input)
      ? Effect.filterOrElse(decodeInput(operation, decode, input), isAllowed, refused)
      : refused(input)
  }
}

// --- internal ---

/** Names the tags instead of the schema, whose text shows every command with all its fields. */
const noCommand = (tags: ReadonlyArray<string>, input: unknown): ValidationIssue => {
  const tag = tagOf(input)
  return new ValidationIssue({
    path: typeof input === "object" && input !== null ? ["_tag"] : [],
    message: `must be a command: an object with \`_tag\` one of ${tags.join(", ")}${tag === undefined ? "" : `, and is ${JSON.stringify(tag.slice(0, 100))}`}`
  })
}
