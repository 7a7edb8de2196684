/**
 * Compiles the history of a schema of events to readers, one for each stored type and version. `eventCodec` calls it for
 * what is not an event of today's version.
 *
 * A reader decodes the body by the schema of its version, runs the steps from there on, and makes sure that the result is
 * an event. An instance of the event's class is taken as it is. Any other result must satisfy the schema's decoded side,
 * and becomes an instance.
 */
import * as Either from "effect/Either"
import type * as ParseResult from "effect/ParseResult"
import * as Schema from "effect/Schema"
import * as AST from "effect/SchemaAST"
import type { Tagged } from "./eventCodec.js"
import type { ChainEntry, Origin, ReplacedEntry, Run, Shape } from "./eventHistory.js"
import { isInstanceOf } from "./fastClass.js"
import { decodeBodyEither, decodeUnknownEither } from "./fastSchema.js"
import { thrownMessage } from "./json.js"
import { literalTagOf, membersByTag } from "./taggedMembers.js"

/** What is read instead of a stored event that is no single event of today: its parts in order, or none. */
export class Parts<out A> {
  constructor(readonly events: ReadonlyArray<A>) {}
}

/** Why a stored event can't be read. */
export interface Unread {
  readonly why: string
  readonly cause: unknown
}

/** Reads the body of a stored event. */
export type Reader<A> = (body: object) => Either.Either<A | Parts<A>, Unread>

/** The readers of a stored type. */
export interface StoredVersions<A> {
  /** The name of the type in failures: that of today if it was renamed. */
  readonly name: string
  readonly readerOf: (version: number) => Reader<A> | undefined
  readonly oldest: number
  readonly newest: number
}

/** The readers of all stored types that have a history. `members` decode the events of today, by their tags. */
export const makeStoredVersions = <A extends Tagged, I>(
  schema: Schema.Schema<A, I>,
  origins: ReadonlyMap<string, Origin>,
  members: Members<A>
): ReadonlyMap<string, StoredVersions<A>> => {
  if (origins.size === 0) return new Map()
  const checks = checksOf<A>(schema.ast)
  return new Map([...origins].map(([type, origin]) => [type, versionsOf(type, origin, checks, members)]))
}

// --- internal ---

/** Makes sure that the result of a step is an event, or events. */
type Check<A> = (value: unknown) => Either.Either<A, ParseResult.ParseError | string>

interface Checks<A> {
  /** The check of an event of the tag, or of its fields. */
  readonly ofTag: (tag: string) => Check<A>
  /** The check of an event of any tag. */
  readonly ofAny: Check<A>
  readonly ofParts: Check<A | Parts<A>>
}

type Members<A> = ReadonlyMap<string, { readonly decode: (body: object) => Either.Either<A, ParseResult.ParseError> }>

const versionsOf = <A extends Tagged>(
  type: string,
  origin: Origin,
  checks: Checks<A>,
  members: Members<A>
): StoredVersions<A> => {
  if (origin._tag === "Dropped") {
    return { name: type, readerOf: () => readDropped, oldest: 1, newest: Number.POSITIVE_INFINITY }
  }
  const isOwn = origin._tag === "Own"
  const name = isOwn ? origin.tag : type
  const chain = isOwn ? origin.chain : origin
  const check = isOwn ? checks.ofTag(origin.tag) : checks.ofAny
  const readers = new Map<number, Reader<A>>([
    ...(chain === undefined ? [] : readersOfChain(name, chain, check, checks.ofParts)),
    ...(isOwn ? readersOfToday(origin, check, members) : [])
  ])
  const versions = [...readers.keys()]
  return {
    name,
    readerOf: (version) => readers.get(version),
    oldest: Math.min(...versions),
    newest: Math.max(...versions)
  }
}

/** The readers of older versions. */
const readersOfChain = <A>(
  name: string,
  { last, shapes, steps }: ChainEntry | ReplacedEntry,
  check: Check<A>,
  checkParts: Check<A | Parts<A>>
): ReadonlyArray<readonly [version: number, Reader<A>]> => {
  const named = steps.map((run, index): Step => {
    const version = shapes[index]?.version ?? 0
    return { what: `the step from version ${version} to ${version + 1} of ${name}`, run }
  })
  if (last === undefined) return []
  const end: LastStep<A> = {
    what: `the last step from version ${shapes.at(-1)?.version} of ${name}`,
    run: last.run,
    check: last.parts ? checkParts : check
  }
  return shapes.map((shape, index) => [shape.version, readerOf(name, shape, named.slice(index), end)])
}

/** The readers of today's version, and of newer ones. */
const readersOfToday = <A extends Tagged>(
  { chain, tag }: Extract<Origin, { readonly _tag: "Own" }>,
  check: Check<A>,
  members: Members<A>
): ReadonlyArray<readonly [version: number, Reader<A>]> => {
  const version = chain?.version ?? 1
  const member = members.get(tag)
  const today: Reader<A> = (body) =>
    member === undefined
      ? Either.left({ why: `no schema has the tag ${tag}`, cause: undefined })
      : Either.mapLeft(member.decode(body), (error) => undecoded(tag, version, error))
  const newer = (chain?.downcasts ?? []).map((shape): readonly [number, Reader<A>] => [
    shape.version,
    readerOf(tag, shape, [], { what: `the downcast of version ${shape.version} of ${tag}`, run: shape.run, check })
  ])
  return [[version, today], ...newer]
}

const dropped = Either.right(new Parts<never>([]))
const readDropped = (): Either.Either<Parts<never>> => dropped

/** A function of the application with the words that name it. */
interface Step {
  readonly what: string
  readonly run: Run
}

interface LastStep<A> extends Step {
  readonly check: Check<A | Parts<A>>
}

const readerOf = <A>(
  name: string,
  { schema, version }: Shape,
  steps: ReadonlyArray<Step>,
  last: LastStep<A>
): Reader<A> => {
  // The schema of an older release may still have its tag, which is no part of the body.
  const tag = literalTagOf(schema.ast)
  const decode = tag === undefined ? decodeUnknownEither(schema) : decodeBodyEither(tag, schema)
  const first = `the schema of version ${version} of ${name}`
  return (body) => {
    let what = first
    try {
      const decoded = decode(body)
      if (Either.isLeft(decoded)) return Either.left(undecoded(name, version, decoded.left))
      let value: unknown = decoded.right
      for (const step of steps) {
        what = step.what
        value = step.run(value)
      }
      what = last.what
      const checked = last.check(last.run(value))
      return Either.isLeft(checked) ? Either.left(noEvent(what, checked.left)) : Either.right(checked.right)
    } catch (thrown) {
      return Either.left({ why: `${what} throws: ${thrownMessage(thrown)}`, cause: thrown })
    }
  }
}

const undecoded = (name: string, version: number, error: ParseResult.ParseError): Unread => ({
  why: `it can't be decoded as version ${version} of ${name}: ${error.message}`,
  cause: error
})

const noEvent = (what: string, error: ParseResult.ParseError | string): Unread =>
  typeof error === "string"
    ? { why: `${what} returns no event: ${error}`, cause: undefined }
    : { why: `${what} returns no event: ${error.message}`, cause: error }

const checksOf = <A extends Tagged>(ast: AST.AST): Checks<A> => {
  const byTag = new Map([...membersByTag(ast)].map(([tag, members]) => [tag, checkOf<A>(tag, members)]))
  const tags = [...byTag.keys()].join(", ")
  const ofAny: Check<A> = (value) => {
    const tag = tagIn(value)
    const check = typeof tag === "string" ? byTag.get(tag) : undefined
    return check?.(value) ?? Either.left(`its _tag must be one of ${tags}, and is ${tagText(tag)}`)
  }
  return {
    ofAny,
    ofTag: (tag) => byTag.get(tag) ?? ofAny,
    ofParts: (value) => {
      if (!Array.isArray(value)) return Either.left("it must be a list of events")
      const events: Array<A> = []
      for (const one of value) {
        const checked = ofAny(one)
        if (Either.isLeft(checked)) return Either.left(checked.left)
        events.push(checked.right)
      }
      return Either.right(new Parts(events))
    }
  }
}

/** The check of an event of one tag, given as an instance of its class, as an object of its type, or as its fields. */
const checkOf = <A extends Tagged>(tag: string, members: ReadonlyArray<AST.AST>): Check<A> => {
  const parse = decodeBodyEither(tag, Schema.make<A>(AST.Union.make(members.map(fromType))))
  const classes = members.filter(AST.isTransformation)
  let known: unknown
  return (value) => {
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      return Either.left(`it must be an event of type ${tag}, or its fields`)
    }
    const prototype: unknown = Object.getPrototypeOf(value)
    if (prototype !== null && prototype === known) return Either.right(value as A)
    if (prototype !== Object.prototype && classes.some((ast) => isInstanceOf(ast, value))) {
      known = prototype
      return Either.right(value as A)
    }
    return "_tag" in value && value._tag !== tag
      ? Either.left(`its _tag must be ${tag}, and is ${tagText(value._tag)}`)
      : parse(value)
  }
}

/** The schema that makes instances of objects with decoded fields. */
const fromType = (ast: AST.AST): AST.AST =>
  AST.isTransformation(ast) && AST.isDeclaration(ast.to)
    ? new AST.Transformation(AST.typeAST(ast.from), ast.to, ast.transformation)
    : AST.typeAST(ast)

const tagIn = (value: unknown): unknown =>
  typeof value === "object" && value !== null && "_tag" in value ? value._tag : undefined

const tagText = (tag: unknown): string => (typeof tag === "string" ? JSON.stringify(tag.slice(0, 100)) : typeof tag)
