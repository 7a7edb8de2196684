/**
 * Digests of commands: a receipt has one, so that another command of the same id is found. `definition.ts` makes them.
 *
 * A digest is a hash of the command as its schema encodes it, with its keys in order. Two schemas may encode one
 * command differently, for instance before and after a deployment that adds an optional field. So a digest names its
 * schema, and the hashes of two schemas are not compared.
 */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import type * as ParseResult from "effect/ParseResult"
import type * as Schema from "effect/Schema"
import { ValidationError, ValidationIssue } from "../../StoreError.js"
import { guarded, parseIssues, schemasByTag, type Tagged, tagOf, unknownTag } from "../codec/eventCodec.js"
import { encodeUnknownEither } from "../codec/fastSchema.js"
import { fingerprint } from "../codec/fingerprint.js"
import { isPlain, type Report, thrownMessage } from "../codec/json.js"
import { sha256 } from "../codec/sha256.js"

/** The digest of a command. It is stored as JSON, in the receipt. */
export interface CommandDigest {
  /** The command's tag. */
  readonly type: string
  /** The fingerprint of the command's schema. */
  readonly schema: string
  /** The SHA-256 of the encoded command. */
  readonly hash: string
}

/**
 * Makes the digests of an aggregate's commands. A command that its schema can't encode is a `ValidationError` of the
 * operation.
 */
export const makeCommandDigest = <C extends Tagged, CI>(
  operation: string,
  schema: Schema.Schema<C, CI>
): ((command: C) => Effect.Effect<CommandDigest, ValidationError>) => {
  const members = new Map(
    [...schemasByTag(schema)].map(([tag, member]) => [tag, { encode: guarded(encodeUnknownEither(member)), member }])
  )
  const fingerprints = new Map<string, string>()
  // Made when it is needed first, because a suspended schema may not be defined yet.
  const fingerprintOf = (tag: string, member: Schema.Schema.Any): string => {
    const known = fingerprints.get(tag) ?? fingerprint(member)
    fingerprints.set(tag, known)
    return known
  }
  return (command) =>
    Effect.suspend(() => {
      const type = tagOf(command) ?? ""
      const known = members.get(type)
      if (known === undefined) return refused(operation, [unknownTag([...members.keys()], command)])
      const text = canonicalText(known.encode, command)
      return Either.isLeft(text)
        ? refused(operation, text.left.map(explained))
        : Effect.succeed({ type, schema: fingerprintOf(type, known.member), hash: sha256(text.right) })
    })
}

/** Whether a stored digest is of another command. Of two schemas only the tags can be compared. */
export const isOfAnother = (command: CommandDigest, stored: unknown): boolean => {
  // Another program may have written to the store. A receipt without a digest does not identify its command.
  if (typeof stored !== "object" || stored === null) return false
  const { hash, schema, type } = stored as Readonly<Record<string, unknown>>
  return type !== command.type || (schema === command.schema && hash !== command.hash)
}

// --- internal ---

const refused = (operation: string, [first, ...rest]: ReadonlyArray<ValidationIssue>): ValidationError =>
  new ValidationError({ operation, issues: [first ?? issue([], "can't be encoded"), ...rest] })

const explained = ({ message, path }: ValidationIssue): ValidationIssue =>
  issue(path, `can't be encoded, as a command with an id must be: ${message}`)

const issue = (path: ReadonlyArray<string | number>, message: string): ValidationIssue =>
  new ValidationIssue({ path, message })

/** A text that is equal for equal commands, or the issues that prevent it. */
const canonicalText = (
  encode: (command: unknown) => Either.Either<unknown, ParseResult.ParseError>,
  command: unknown
): Either.Either<string, ReadonlyArray<ValidationIssue>> => {
  try {
    const encoding = Either.mapLeft(encode(command), (error) => parseIssues(error))
    return Either.flatMap(encoding, (encoded) => {
      const issues: Array<ValidationIssue> = []
      const text = textOf(encoded, (path, message) => issues.push(issue(path, message)))
      return issues.length === 0 ? Either.right(text) : Either.left(issues)
    })
  } catch (thrown) {
    // A getter or a proxy can throw, and nesting can exceed the stack.
    return Either.left([issue([], `can't be read: ${thrownMessage(thrown)}`)])
  }
}

/**
 * Commands are not stored, so their encoded form may hold values that JSON can't: `undefined`, `NaN`, a `bigint`, a
 * `Date` or bytes. -0 is 0, as in JSON, because a repeated command may have been through JSON. A hole of a list is
 * `undefined`.
 *
 * Each value has a tag and delimiters, and the text between them has complete pairs of delimiters only. So two
 * different values never have one text.
 */
const textOf = (value: unknown, report: Report): string => {
  const path: Array<string | number> = []
  const ancestors = new Set<object>()
  let left = maxValues

  const write = (current: unknown): string => {
    switch (typeof current) {
      case "string":
        return JSON.stringify(current)
      case "bigint":
        return `bigint(${current})`
      case "object":
        return current === null ? "null()" : writeContainer(current)
      case "number":
        return `number(${current})`
      case "boolean":
        return `boolean(${current})`
      case "undefined":
        return "undefined()"
      default:
        report([...path], `a ${typeof current} can't be compared`)
        return ""
    }
  }

  const writeAt = (key: string | number, current: unknown): string => {
    path.push(key)
    const text = write(current)
    path.pop()
    return text
  }

  const writeContainer = (container: object): string => {
    if (container instanceof Date) return `Date(${Date.prototype.getTime.call(container)})`
    // The methods of the prototype, because those of a Node.js Buffer read the bytes as a text.
    if (container instanceof Uint8Array) return `bytes(${Uint8Array.prototype.join.call(container, ",")})`
    if (ancestors.has(container)) {
      report([...path], "a cycle: the value contains itself")
      return ""
    }
    ancestors.add(container)
    const text = Array.isArray(container) ? writeArray(container) : writeObject(container)
    ancestors.delete(container)
    return text
  }

  const writeArray = (items: ReadonlyArray<unknown>): string => {
    count(items.length)
    return `[${Array.from(items, (item, index) => writeAt(index, item))}]`
  }

  const writeObject = (container: object): string => {
    if (!isPlain(container)) {
      report([...path], "an object that is no plain one can't be compared: its schema must encode it")
      return ""
    }
    if (Object.getOwnPropertySymbols(container).length > 0) {
      report([...path], "a key that is a symbol can't be compared")
      return ""
    }
    const keys = Object.keys(container).filter((key) => container[key] !== undefined)
    count(keys.length)
    return `{${keys.sort().map((key) => `${JSON.stringify(key)}:${writeAt(key, container[key])}`)}}`
  }

  const count = (values: number): void => {
    left -= values
    if (left < 0) throw new RangeError(`it has more than ${maxValues} values`)
  }

  return write(value)
}

/** The limit of one command's values: a list of four billion holes would block the process for hours. */
const maxValues = 1_000_000
