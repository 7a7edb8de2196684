/**
 * The fast path of decoding and encoding: returns the same value as `effect/Schema` for valid input, in a fraction of
 * the time (`fastClass` has the figures). `eventCodec`, `stateCodec` and the digests and inputs of commands call it.
 *
 * - For invalid input, and for a schema that it does not support, it falls back to `effect/Schema`, which also produces
 *   the error.
 * - It keeps the key `__proto__`. Where a schema would lose that key, the value is refused, because `effect/Schema`
 *   loses it without an error.
 */
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import * as ParseResult from "effect/ParseResult"
import * as Schema from "effect/Schema"
import * as AST from "effect/SchemaAST"
import { type Construct, constructLike, type Fields, prototypeOfClass } from "./fastClass.js"
import { countProtoKeys, protoKey, setProperty, takesProtoKey } from "./protoKey.js"

type Parse<A> = (u: unknown) => Either.Either<A, ParseResult.ParseError>

/** `Schema.decodeUnknownEither`. */
export const decodeUnknownEither = <A, I>(schema: Schema.Schema<A, I>, options?: AST.ParseOptions): Parse<A> =>
  keepingProtoKeys(schema, withFallback(fastOf(schema.ast, "decoding"), Schema.decodeUnknownEither(schema, options)))

/** `Schema.encodeUnknownEither`. */
export const encodeUnknownEither = <A, I>(schema: Schema.Schema<A, I>): Parse<I> =>
  keepingProtoKeys(schema, withFallback(fastOf(schema.ast, "encoding"), Schema.encodeUnknownEither(schema)))

// --- internal ---

/** Returns the parsed value, or `fallback`. */
type FastParse = (u: unknown) => unknown

/** Tells that only `effect/Schema` can parse the value. */
const fallback = Symbol("effect-maestro/fallback")

type Direction = "decoding" | "encoding"

const withFallback =
  <A>(fast: FastParse, slow: Parse<A>): Parse<A> =>
  (u) => {
    try {
      const value = fast(u)
      if (value !== fallback) return Either.right(value as A)
    } catch {
      // A filter or a getter of the value throws. `effect/Schema` meets it too, and reports it.
    }
    return slow(u)
  }

const keepingProtoKeys = <A>(schema: Schema.Schema.Any, parse: Parse<A>): Parse<A> => {
  let takes: boolean | undefined
  return (u) => {
    const parsed = parse(u)
    // When it is needed first: a suspended schema may name one that is not defined yet.
    takes ??= takesProtoKey(schema)
    if (!takes || Either.isLeft(parsed)) return parsed
    const given = countProtoKeys(u)
    return given > 0 && countProtoKeys(parsed.right) < given ? Either.left(losesProtoKey(schema.ast, u)) : parsed
  }
}

const losesProtoKey = (ast: AST.AST, u: unknown): ParseResult.ParseError =>
  ParseResult.parseError(new ParseResult.Type(ast, u, `the schema would lose the key ${JSON.stringify(protoKey)}`))

const fastOf = (ast: AST.AST, direction: Direction): FastParse =>
  // Options change what everything below does.
  Option.isSome(AST.getParseOptionsAnnotation(ast)) ? slowOf(ast, direction) : fastOfShape(ast, direction)

const fastOfShape = (ast: AST.AST, direction: Direction): FastParse => {
  const check = checkOf(ast)
  if (check !== undefined) return (u) => (check(u) ? u : fallback)
  switch (ast._tag) {
    case "TypeLiteral":
      return ofStruct(ast, direction)
    case "TupleType":
      return ofArray(ast, direction)
    case "Refinement":
      return ofRefinement(ast, direction)
    case "Union":
      return ofUnion(ast, direction)
    case "Transformation":
      return ofTransformation(ast, direction)
    case "UnknownKeyword":
    case "AnyKeyword":
      return (u) => u
    default:
      return slowOf(ast, direction)
  }
}

/** Parses a part of the value by `effect/Schema`. */
const slowOf = (ast: AST.AST, direction: Direction): FastParse => {
  const schema = Schema.make<unknown>(ast)
  const parse =
    direction === "decoding" ? ParseResult.decodeUnknownEither(schema) : ParseResult.encodeUnknownEither(schema)
  return (u) => {
    const result = parse(u)
    return Either.isRight(result) ? result.right : fallback
  }
}

/** The check of a value that is equal decoded and encoded, and no object. */
const checkOf = (ast: AST.AST): ((u: unknown) => boolean) | undefined => {
  switch (ast._tag) {
    case "Literal":
      return (u) => u === ast.literal
    case "UndefinedKeyword":
      return (u) => u === undefined
    case "StringKeyword":
      return (u) => typeof u === "string"
    case "NumberKeyword":
      return (u) => typeof u === "number"
    case "BooleanKeyword":
      return (u) => typeof u === "boolean"
    case "Refinement": {
      const check = plain(ast.from) ? checkOf(ast.from) : undefined
      return check && ((u) => check(u) && passes(ast, u))
    }
    case "Union": {
      const checks = ast.types.flatMap((type) => (plain(type) && checkOf(type)) || [])
      return checks.length === ast.types.length ? (u) => checks.some((check) => check(u)) : undefined
    }
    default:
      return undefined
  }
}

const plain = (ast: AST.AST): boolean => Option.isNone(AST.getParseOptionsAnnotation(ast))

const passes = (ast: AST.Refinement, u: unknown): boolean => Option.isNone(ast.filter(u, AST.defaultParseOption, ast))

const ofRefinement = (ast: AST.Refinement, direction: Direction): FastParse => {
  if (direction === "decoding") {
    const from = fastOf(ast.from, direction)
    return (u) => {
      const value = from(u)
      return value !== fallback && passes(ast, value) ? value : fallback
    }
  }
  const refined = fastOf(AST.typeAST(ast), "decoding")
  let unrefined = ast.from
  while (AST.isRefinement(unrefined)) unrefined = unrefined.from
  const to = fastOf(unrefined, direction)
  return (u) => {
    const value = refined(u)
    return value === fallback ? fallback : to(value)
  }
}

interface Property {
  readonly name: PropertyKey
  readonly isOptional: boolean
  readonly fast: FastParse
}

/**
 * Structs, and records with the properties of a struct. Every key must match the index signature, as in
 * `effect/Schema`.
 */
const ofStruct = (ast: AST.TypeLiteral, direction: Direction): FastParse => {
  const [index, ...more] = ast.indexSignatures
  const properties: ReadonlyArray<Property> = ast.propertySignatures.map(({ isOptional, name, type }) => ({
    name,
    isOptional,
    fast: fastOf(type, direction)
  }))
  if (more.length > 0 || (index === undefined ? properties.length === 0 : !AST.isStringKeyword(index.parameter))) {
    return slowOf(ast, direction)
  }
  const names = new Set(properties.map(({ name }) => name))
  const further = index && fastOf(index.type, direction)
  return (u) => {
    if (typeof u !== "object" || u === null || Array.isArray(u)) return fallback
    const input = u as Record<PropertyKey, unknown>
    const output: Record<PropertyKey, unknown> = {}
    for (const { isOptional, name, fast } of properties) {
      if (isOptional && !Object.hasOwn(input, name)) continue
      const value = fast(input[name])
      if (value === fallback) return fallback
      setProperty(output, name, value)
    }
    if (further === undefined) return output
    for (const key of Object.keys(input)) {
      const value = further(input[key])
      if (value === fallback) return fallback
      if (!names.has(key)) setProperty(output, key, value)
    }
    return output
  }
}

const ofArray = (ast: AST.TupleType, direction: Direction): FastParse => {
  const [rest, ...others] = ast.rest
  if (rest === undefined || others.length > 0 || ast.elements.length > 0) return slowOf(ast, direction)
  const fast = fastOf(rest.type, direction)
  return (u) => {
    if (!Array.isArray(u)) return fallback
    const output: Array<unknown> = []
    for (let index = 0; index < u.length; index++) {
      const value = fast(u[index])
      if (value === fallback) return fallback
      output.push(value)
    }
    return output
  }
}

/**
 * A union of plain members and one member of objects: no two of them take the same value, so their order does not
 * matter.
 */
const ofUnion = (ast: AST.Union, direction: Direction): FastParse => {
  const objects = ast.types.filter((type) => !plain(type) || checkOf(type) === undefined)
  const [only, ...others] = objects
  if (only === undefined || others.length > 0 || !isOfObjects(only)) return slowOf(ast, direction)
  const object = fastOf(only, direction)
  const check = checkOf(AST.Union.make(ast.types.filter((type) => type !== only)))
  return (u) => (typeof u === "object" && u !== null ? object(u) : check?.(u) ? u : fallback)
}

/** `effect/Schema` finds a struct with a literal by own properties only, so such a struct is left to it. */
const isOfObjects = (ast: AST.AST): boolean =>
  AST.isTupleType(ast) ||
  (AST.isTypeLiteral(ast) &&
    ast.propertySignatures.length > 0 &&
    !ast.propertySignatures.some(({ type }) => AST.isLiteral(AST.encodedAST(type)) || AST.isLiteral(AST.typeAST(type))))

const ofTransformation = (ast: AST.Transformation, direction: Direction): FastParse => {
  const { transformation } = ast
  if (!AST.isFinalTransformation(transformation)) return slowOf(ast, direction)
  const [first, last] = direction === "decoding" ? [ast.from, ast.to] : [ast.to, ast.from]
  const from = fastOf(first, direction)
  const to = fastOf(last, direction)
  const transform = direction === "decoding" ? transformation.decode : transformation.encode
  const finish = (value: unknown, u: unknown): unknown => {
    const transformed = transform(value, AST.defaultParseOption, ast, u)
    return Either.isEither(transformed) && Either.isRight(transformed) ? to(transformed.right) : fallback
  }
  const parse: FastParse = (u) => {
    const value = from(u)
    return value === fallback ? fallback : finish(value, u)
  }
  return AST.isDeclaration(ast.to) ? ofClass(ast, direction, { from, to, finish, parse }) : parse
}

/** The parts of a transformation. */
interface Steps {
  readonly from: FastParse
  readonly to: FastParse
  readonly finish: (value: unknown, u: unknown) => unknown
  readonly parse: FastParse
}

/** The transformation of a class. An instance shows how further ones are made or recognized. */
const ofClass = (ast: AST.Transformation, direction: Direction, { finish, from, parse, to }: Steps): FastParse => {
  if (direction === "encoding") {
    let tried: object | undefined
    let known: object | undefined
    return (u) => {
      const prototype = Object.getPrototypeOf(u)
      if (prototype === known && known !== undefined) return to(u)
      const parsed = parse(u)
      if (prototype !== tried && parsed !== fallback) {
        tried = prototype
        known = prototypeOfClass(ast, u)
      }
      return parsed
    }
  }
  let construct: Construct | undefined
  let isKnown = false
  return (u) => {
    const value = from(u)
    if (value === fallback) return fallback
    const constructed = construct?.(value as Fields)
    if (constructed !== undefined) return constructed
    const finished = finish(value, u)
    if (!isKnown && finished !== fallback) {
      isKnown = true
      construct = constructLike(ast, value, finished)
    }
    return finished
  }
}
