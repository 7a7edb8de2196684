/**
 * Reads the options of `Aggregate.evaluate` and `evaluateUnknown`. `operations.ts` calls it where a caller gives options.
 *
 * Callers that circumvent the types may give anything. `only` decides which commands from outside are evaluated, so an
 * option of another name is refused, because it may be a mistyped `only`.
 */
import { ValidationError, ValidationIssue } from "../../StoreError.js"
import { isPlain, thrownMessage } from "../codec/json.js"
import type { Reply } from "./commandResult.js"

/** The options that were read. */
export interface CommandOptions {
  readonly only: ReadonlyArray<string> | undefined
  readonly reply: Reply | undefined
}

/** Makes the reader for an operation that has the options `keys`. It returns all mistakes as one failure. */
export const makeOptionsReader =
  (operation: string, keys: ReadonlyArray<keyof CommandOptions>, tags: ReadonlyArray<string>) =>
  (options: unknown): CommandOptions | ValidationError => {
    const refused = (first: ValidationIssue, ...rest: Array<ValidationIssue>) =>
      new ValidationError({ operation, issues: [first, ...rest] })
    try {
      if (typeof options !== "object" || options === null || !isPlain(options)) {
        return refused(issue(["options"], `must be a plain object with ${keys.join(", ")}, or left out`))
      }
      // Each is read once, because a getter may change.
      const { only: given, reply } = options
      const only = keys.includes("only") ? copyOf(given) : undefined
      const [first, ...rest] = [...unknownKeys(options, keys), ...onlyIssues(only, tags), ...replyIssues(reply)]
      // The issues above say what either value may be.
      return first === undefined ? ({ only, reply } as CommandOptions) : refused(first, ...rest)
    } catch (thrown) {
      return refused(issue(["options"], `can't be read: ${thrownMessage(thrown)}`))
    }
  }

// --- internal ---

const issue = (path: ReadonlyArray<string | number>, message: string): ValidationIssue =>
  new ValidationIssue({ path, message })

const copyOf = (value: unknown): unknown => (Array.isArray(value) ? Array.from<unknown>(value) : value)

const unknownKeys = (options: object, keys: ReadonlyArray<string>): ReadonlyArray<ValidationIssue> =>
  Object.keys(options)
    .filter((key) => !keys.includes(key))
    .map((key) => issue([key.slice(0, 100)], `is no option here: the options are ${keys.join(", ")}`))

const onlyIssues = (only: unknown, tags: ReadonlyArray<string>): ReadonlyArray<ValidationIssue> => {
  if (only === undefined) return []
  const known = tags.join(", ")
  if (!Array.isArray(only)) return [issue(["only"], `must be an array of tags of commands: ${known}`)]
  return only.flatMap((tag: unknown, index) => {
    if (typeof tag !== "string") return [issue(["only", index], `must be the tag of a command: ${known}`)]
    if (tags.includes(tag)) return []
    return [
      issue(["only", index], `must be the tag of a command: ${known}, and is ${JSON.stringify(tag.slice(0, 100))}`)
    ]
  })
}

const replyIssues = (reply: unknown): ReadonlyArray<ValidationIssue> =>
  reply === undefined || reply === "position"
    ? []
    : [issue(["reply"], 'must be "position", or left out for the whole result')]
