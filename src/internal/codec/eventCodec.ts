/**
 * Encodes and decodes the events of an application by their tagged schemas: the tag is the stored type, the other
 * fields are the body. Aggregates, projections and subscriptions call it, and it maps schema errors to typed failures.
 */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import * as ParseResult from "effect/ParseResult"
import * as Schema from "effect/Schema"
import * as AST from "effect/SchemaAST"
import type { Event } from "../../Event.js"
import { StoreError, ValidationError, ValidationIssue } from "../../StoreError.js"
import { originsOf, versionOf } from "./eventHistory.js"
import { decodeBodyEither, encodeUnknownEither } from "./fastSchema.js"
import { isBounded, thrownMessage, withoutUndefined } from "./json.js"
import { makeStoredVersions, Parts, type StoredVersions } from "./storedVersions.js"
import { membersByTag } from "./taggedMembers.js"

/** Every event, command and refusal of an application has a tag. */
export interface Tagged {
  readonly _tag: string
}

/** The failures of a handler. */
export type HandlerError<F> = F extends (...args: infer _A) => Effect.Effect<infer _B, infer E, infer _R> ? E : never

/** The services that a handler needs. */
export type HandlerContext<F> = F extends (...args: infer _A) => Effect.Effect<infer _B, infer _E, infer R> ? R : never

/** Encodes and decodes the events of a union of tagged schemas. It is compiled once. */
export interface EventCodec<A extends Tagged> {
  /**
   * Returns the event of today that a stored event is read as. Where the history of its type splits or drops it, that is
   * `Parts`. `UnreadableEvent` names aggregate, sequence and type.
   */
  readonly decode: (operation: string, stored: Event) => Either.Either<A | Parts<A>, StoreError>
  /**
   * Encodes an event, and decodes it again. Returns the body to store and the event as every later load will return it,
   * or the issues of an event that can't be stored or read again.
   */
  readonly record: (event: A, index: number) => Either.Either<Recorded<A>, ReadonlyArray<ValidationIssue>>
  /** Why no event of that stored type and version can be read, or undefined. */
  readonly problemOf: (type: string, version: number) => Unknown | undefined
}

/** A stored type or version that the schemas do not have. */
export interface Unknown {
  readonly _tag: "UnknownType" | "NewerVersion" | "OlderVersion"
  readonly why: string
}

/** An event that can be stored. */
export interface Recorded<A> {
  /** The version of its type. */
  readonly version: number
  readonly body: Record<string, unknown>
  readonly decoded: A
}

export const makeEventCodec = <A extends Tagged, I>(schema: Schema.Schema<A, I>): EventCodec<A> => {
  const origins = originsOf(schema)
  const members = new Map<string, MemberCodec<A>>()
  for (const [tag, member] of schemasByTag(schema)) {
    members.set(tag, {
      version: versionOf(origins, tag),
      decode: guarded(decodeBodyEither(tag, member)),
      encode: guarded(encodeUnknownEither(member))
    })
  }
  const past = makeStoredVersions(schema, origins, members)
  const problemOf = problemIn(members, past)
  return {
    problemOf,
    decode: (operation, stored) => {
      const member = members.get(stored.type)
      if (member === undefined || member.version !== stored.version) {
        const { body, type, version } = stored
        const read = past.get(type)?.readerOf(version)
        return read === undefined
          ? Either.left(unreadable(operation, stored, problemOf(type, version)?.why ?? "no schema has this type"))
          : Either.mapLeft(read(body), ({ cause, why }) => unreadable(operation, stored, why, cause))
      }
      return Either.mapLeft(member.decode(stored.body), (error) =>
        unreadable(operation, stored, notDecoded(error.message), error)
      )
    },
    record: (event, index) => {
      const member = members.get(event?._tag)
      if (member === undefined) return Either.left([unknownTag([...members.keys()], event, index)])
      const encoded = member.encode(event)
      if (Either.isLeft(encoded)) return Either.left(parseIssues(encoded.left, index))
      const { _tag, ...fields } = encoded.right
      const body = isFlat(fields) ? fields : withoutUndefined(fields)
      const decoded = member.decode(body)
      return Either.isLeft(decoded)
        ? Either.left([new ValidationIssue({ index, path: [], message: notDecoded(decoded.left.message) })])
        : Either.right({ version: member.version, body, decoded: decoded.right })
    }
  }
}

/** The events of today that a stored event is read as, in order. */
export const partsOf = <A>(decoded: A | Parts<A>): ReadonlyArray<A> =>
  decoded instanceof Parts ? decoded.events : [decoded]

/** The schema of each tag: one member of the union, or the union of the members that share the tag. */
export const schemasByTag = <A extends Tagged, I>(
  schema: Schema.Schema<A, I>
): ReadonlyMap<string, Schema.Schema<A, Tagged>> =>
  new Map(
    [...membersByTag(schema.ast)].map(([tag, asts]) => [
      tag,
      Schema.make(asts.length === 1 && asts[0] ? asts[0] : AST.Union.make(asts))
    ])
  )

/** The tags that a tagged schema, or a union of them, knows. */
export const tagsOf = (schema: Schema.Schema.Any): ReadonlyArray<string> => [...membersByTag(schema.ast).keys()]

/**
 * Finds two members of a union that share a tag, of which the first would encode events of the second without some of
 * their fields. An old form before the new one is such a case, because the first member that accepts an event encodes
 * it.
 */
export const lossyMembers = (schema: Schema.Schema.Any): readonly [first: string, second: string] | undefined => {
  for (const members of membersByTag(schema.ast).values()) {
    for (const [index, second] of members.entries()) {
      const first = members.slice(0, index).find((one) => mayTake(one, second) && omits(one, second))
      if (first !== undefined) return [String(first), String(second)]
    }
  }
  return undefined
}

/** The issues of a schema's error, for a `ValidationError`. */
export const parseIssues = (
  error: ParseResult.ParseError,
  index?: number
): readonly [ValidationIssue, ...Array<ValidationIssue>] => {
  try {
    const [first, ...rest] = ParseResult.ArrayFormatter.formatErrorSync(error).map(
      ({ message, path }) =>
        new ValidationIssue({
          ...at(index),
          path: path.map((key) => (typeof key === "symbol" ? String(key) : key)),
          message
        })
    )
    return [first ?? new ValidationIssue({ ...at(index), path: [], message: error.message }), ...rest]
  } catch (thrown) {
    // The formatter reads the value for its message, and the value throws.
    return [unreadableValue(thrown, index)]
  }
}

/** The issue of a value without a known tag. */
export const unknownTag = (tags: ReadonlyArray<string>, value: unknown, index?: number): ValidationIssue => {
  const tag = tagOf(value)
  const found = tag === undefined ? "there is none" : `is ${JSON.stringify(tag.slice(0, 100))}`
  return new ValidationIssue({
    ...at(index),
    path: ["_tag"],
    message: tags.length === 0 ? `${found}, and no tag is allowed` : `must be one of ${tags.join(", ")}, and ${found}`
  })
}

/** The tag of any value, if it has one. */
export const tagOf = (value: unknown): string | undefined => {
  try {
    const tag = typeof value === "object" && value !== null && "_tag" in value ? value._tag : undefined
    return typeof tag === "string" ? tag : undefined
  } catch {
    // A proxy or getter that throws.
    return undefined
  }
}

/** Decodes untrusted input. Input that can't be decoded or read fails with `ValidationError`. */
export const decodeInput = <A>(
  operation: string,
  decode: (u: unknown) => Either.Either<A, ParseResult.ParseError>,
  input: unknown
): Effect.Effect<A, ValidationError> =>
  Effect.try({
    try: () => {
      if (!isBounded(input)) throw new RangeError("it is larger than anything that could be stored")
      return decode(input)
    },
    catch: (thrown) => unreadableInput(operation, thrown)
  }).pipe(Effect.flatMap(Either.mapLeft((error) => new ValidationError({ operation, issues: parseIssues(error) }))))

/**
 * Maps the defect of a schema's class in a decision to `ValidationError`. The constructor of such a class throws for
 * values that the schema forbids, and in a decision these come from the command. `call` gets the failure.
 */
export const refusingBadInput = <A, E, R>(
  operation: string,
  decision: Effect.Effect<A, E, R>,
  call: BadInput
): Effect.Effect<A, E | ValidationError, R> =>
  Effect.catchSomeDefect(decision, (defect) =>
    ParseResult.isParseError(defect) ? Option.some(refusedInput(operation, defect, call)) : Option.none()
  )

/**
 * The failure of a handler that threw: a `ValidationError` for the exception of a schema's class, else a defect. `call`
 * gets the failure.
 */
export const refusedInput = (
  operation: string,
  thrown: unknown,
  call: BadInput
): Effect.Effect<never, ValidationError> => {
  if (!ParseResult.isParseError(thrown)) return Effect.die(thrown)
  call.badInput = new ValidationError({ operation, issues: parseIssues(thrown) })
  return Effect.fail(call.badInput)
}

/** What a decision has failed with, if its own input is bad. The failure of a nested command is another one. */
export interface BadInput {
  badInput?: ValidationError
}

/** Maps an exception of a schema's transformation to a `ParseError`. */
export const guarded =
  <U, A>(parse: (u: U) => Either.Either<A, ParseResult.ParseError>) =>
  (u: U): Either.Either<A, ParseResult.ParseError> => {
    try {
      return parse(u)
    } catch (thrown) {
      return Either.left(
        ParseResult.parseError(
          new ParseResult.Type(AST.unknownKeyword, undefined, `can't be read: ${thrownMessage(thrown)}`)
        )
      )
    }
  }

// --- internal ---

const unreadableInput = (operation: string, thrown: unknown): ValidationError =>
  new ValidationError({
    operation,
    issues: [unreadableValue(thrown)]
  })

/** The index of an item, for an operation that takes a list. */
const at = (index: number | undefined): { readonly index?: number } => (index === undefined ? {} : { index })

const unreadableValue = (thrown: unknown, index?: number): ValidationIssue =>
  new ValidationIssue({ ...at(index), path: [], message: `can't be read: ${thrownMessage(thrown)}` })

interface MemberCodec<A> {
  /** The version of today. */
  readonly version: number
  readonly decode: (body: object) => Either.Either<A, ParseResult.ParseError>
  readonly encode: (u: unknown) => Either.Either<Tagged, ParseResult.ParseError>
}

/** Whether the first member may encode events that the second decodes. A class only encodes its own instances. */
const mayTake = (first: AST.AST, second: AST.AST): boolean => {
  const [one, other] = [AST.typeAST(first), AST.typeAST(second)]
  if (AST.isDeclaration(one)) return AST.isDeclaration(other) && nameOf(one) === nameOf(other)
  const [own, others] = [fieldsOf(one), fieldsOf(other)]
  if (own === undefined || others === undefined) return true
  return own.every(({ isOptional, name, type }) => {
    const same = others.find((field) => field.name === name)
    if (same === undefined) return isOptional
    return !(AST.isLiteral(type) && AST.isLiteral(same.type) && type.literal !== same.type.literal)
  })
}

/** Whether the second member writes a field that the first does not. */
const omits = (first: AST.AST, second: AST.AST): boolean => {
  const [one, other] = [AST.encodedAST(first), AST.encodedAST(second)]
  if (!AST.isTypeLiteral(one) || !AST.isTypeLiteral(other)) return true
  const written = new Set(one.propertySignatures.map(({ name }) => name))
  return one.indexSignatures.length === 0 && other.propertySignatures.some(({ name }) => !written.has(name))
}

const nameOf = (ast: AST.Annotated): string => Option.getOrElse(AST.getIdentifierAnnotation(ast), () => String(ast))

/** The fields of a struct, or of a class. */
const fieldsOf = (ast: AST.AST): ReadonlyArray<AST.PropertySignature> | undefined => {
  const struct = AST.isDeclaration(ast) ? ast.typeParameters[0] : ast
  return struct !== undefined && AST.isTypeLiteral(struct) ? struct.propertySignatures : undefined
}

/** Whether all values are defined, and none is a container. */
const isFlat = (fields: Readonly<Record<string, unknown>>): boolean => {
  for (const key of Object.keys(fields)) {
    const value = fields[key]
    if (value === undefined || (typeof value === "object" && value !== null)) return false
  }
  return true
}

const notDecoded = (why: string): string => `it can't be decoded: ${why}`

const problemIn =
  <A>(
    members: ReadonlyMap<string, MemberCodec<A>>,
    past: ReadonlyMap<string, StoredVersions<A>>
  ): EventCodec<A & Tagged>["problemOf"] =>
  (type, version) => {
    const { name, newest, oldest, readerOf } = past.get(type) ?? {
      name: type,
      newest: 1,
      oldest: 1,
      readerOf: undefined
    }
    if (readerOf === undefined && !members.has(type)) {
      return { _tag: "UnknownType", why: notDecoded("no schema has this type") }
    }
    if (version > newest) {
      return {
        _tag: "NewerVersion",
        why: `it is of version ${version}, which is newer than this release: its schemas know ${name} up to version ${newest}. If its \`events\` have a history, use the schema that has it`
      }
    }
    return version >= oldest
      ? undefined
      : {
          _tag: "OlderVersion",
          why: `it is of version ${version}, and the oldest version of ${name} that the schemas know is ${oldest}`
        }
  }

const unreadable = (operation: string, stored: Event, description: string, cause?: unknown): StoreError =>
  new StoreError({
    reason: "UnreadableEvent",
    operation,
    description,
    aggregateId: stored.aggregateId,
    sequence: stored.sequence,
    type: stored.type,
    ...(cause === undefined ? {} : { cause })
  })
