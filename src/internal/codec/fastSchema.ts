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
import { copyFields, type Instances, instancesLike, prototypeOfClass } from "./fastClass.js"
import { countProtoKeys, protoKey, setProperty, takesProtoKey } from "./protoKey.js"

type Parse<A> = (u: unknown) => Either.Either<A, ParseResult.ParseError>

/** `Schema.decodeUnknownEither`. */
export const decodeUnknownEither = <A, I>(schema: Schema.Schema<A, I>, options?: AST.ParseOptions): Parse<A> =>
  keepingProtoKeys(schema, withFallback(fastOf(schema.ast, "decoding"), Schema.decodeUnknownEither(schema, options)))

/**
 * Decodes the event of a tag from its body, which has no tag. The tag does not have to be copied into the body first,
 * which takes a tenth of the time of a load.
 */
export const decodeBodyEither = <A, I>(
  tag: string,
  schema: Schema.Schema<A, I>
): ((body: object) => Either.Either<A, ParseResult.ParseError>) => {
  const slow = Schema.decodeUnknownEither(schema)
  const parse = withFallback(fastOfBody(tag, schema.ast), (body) => slow(withTag(tag, body as object)))
  return keepingProtoKeys(schema, parse)
}

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

const fastOf = (ast: AST.AST, direction: Direction): FastParse => {
  // Options change what everything below does.
  if (!plain(ast)) return slowOf(ast, direction)
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

const fastOfBody = (tag: string, ast: AST.AST): FastParse => {
  const struct = isFastClass(ast) ? ast.from : ast
  if (isFastStruct(struct) && hasTag(struct, tag)) {
    return isFastClass(ast) ? toInstance(ast, tag) : ofStruct(struct, "decoding", tag)
  }
  const parse = fastOf(ast, "decoding")
  return (body) => parse(withTag(tag, body as object))
}

/** Whether the tag may be left out, because nothing but this literal is valid. */
const hasTag = ({ indexSignatures, propertySignatures }: AST.TypeLiteral, tag: string): boolean =>
  indexSignatures.length === 0 &&
  propertySignatures.some(
    ({ isOptional, name, type }) =>
      name === "_tag" && !isOptional && AST.isLiteral(type) && plain(type) && type.literal === tag
  )

/** The tag comes first, because V8 takes fifteen times as long to add a property to a copy of what JSON.parse made. */
const withTag = (tag: string, body: object): object =>
  "_tag" in body ? { ...body, _tag: tag } : { _tag: tag, ...body }

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

/**
 * Structs, and records with the properties of a struct. Every key must match the index signature, as in
 * `effect/Schema`. If a tag is given, the input is a body without it.
 */
const ofStruct = (ast: AST.TypeLiteral, direction: Direction, tag?: string): FastParse => {
  if (!isFastStruct(ast)) return slowOf(ast, direction)
  const fill = fillOf(ast, direction, propertiesOf(ast, direction, tag))
  return (u) => {
    if (!isFields(u)) return fallback
    const output: Fields = {}
    return fill(output, u) ? output : fallback
  }
}

const isFastStruct = (ast: AST.AST): ast is AST.TypeLiteral => {
  if (!AST.isTypeLiteral(ast) || !plain(ast)) return false
  const [index, ...more] = ast.indexSignatures
  return index === undefined
    ? ast.propertySignatures.length > 0
    : more.length === 0 && AST.isStringKeyword(index.parameter)
}

type Fields = Record<PropertyKey, unknown>

const isFields = (u: unknown): u is Fields => typeof u === "object" && u !== null && !Array.isArray(u)

interface Property {
  readonly name: PropertyKey
  readonly isOptional: boolean
  readonly fast: FastParse
}

const propertiesOf = (ast: AST.TypeLiteral, direction: Direction, tag?: string): ReadonlyArray<Property> =>
  ast.propertySignatures.map(({ isOptional, name, type }) => ({
    name,
    isOptional,
    fast: name === "_tag" && tag !== undefined ? () => tag : fastOf(type, direction)
  }))

/** Parses the fields of the input into the output. Returns false if only `effect/Schema` can parse one of them. */
type Fill = (output: Fields, input: Fields) => boolean

const fillOf = (ast: AST.TypeLiteral, direction: Direction, properties: ReadonlyArray<Property>): Fill => {
  const [index] = ast.indexSignatures
  const names = new Set(properties.map(({ name }) => name))
  const further = index && fastOf(index.type, direction)
  return (output, input) => {
    for (const { isOptional, name, fast } of properties) {
      if (isOptional && !Object.hasOwn(input, name)) continue
      const value = fast(input[name])
      if (value === fallback) return false
      setProperty(output, name, value)
    }
    if (further === undefined) return true
    for (const key of Object.keys(input)) {
      const value = further(input[key])
      if (value === fallback) return false
      if (!names.has(key)) setProperty(output, key, value)
    }
    return true
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
 * matter. So it is for members that have different tags.
 */
const ofUnion = (ast: AST.Union, direction: Direction): FastParse => {
  const objects = ast.types.filter((type) => !plain(type) || checkOf(type) === undefined)
  const [only, ...others] = objects
  if (others.length > 0) return ofTagged(ast, direction)
  if (only === undefined || !isOfObjects(only)) return slowOf(ast, direction)
  const object = fastOf(only, direction)
  const check = checkOf(AST.Union.make(ast.types.filter((type) => type !== only)))
  return (u) => (typeof u === "object" && u !== null ? object(u) : check?.(u) ? u : fallback)
}

/** Parses by the member that has the tag of the value. `effect/Schema` finds it by an own property, too. */
const ofTagged = (ast: AST.Union, direction: Direction): FastParse => {
  const members = new Map<unknown, FastParse>()
  for (const type of ast.types) {
    const tag = onlyLiteral(AST.encodedAST(type))
    if (tag === undefined || tag !== onlyLiteral(AST.typeAST(type)) || members.has(tag)) return slowOf(ast, direction)
    members.set(tag, fastOf(type, direction))
  }
  return (u) => {
    const member = isFields(u) && Object.hasOwn(u, "_tag") ? members.get(u._tag) : undefined
    return member === undefined ? fallback : member(u)
  }
}

/** The tag of a struct, or of the instances of a class, if no other field is a literal. */
const onlyLiteral = (ast: AST.AST): AST.LiteralValue | undefined => {
  const struct = AST.isDeclaration(ast) ? Option.getOrUndefined(AST.getSurrogateAnnotation(ast)) : ast
  if (struct === undefined || !AST.isTypeLiteral(struct)) return undefined
  const [only, ...others] = struct.propertySignatures.filter(({ type }) => AST.isLiteral(type))
  return only?.name === "_tag" && !only.isOptional && others.length === 0 && AST.isLiteral(only.type)
    ? only.type.literal
    : undefined
}

/** `effect/Schema` finds a struct with a literal by own properties only, so such a struct is left to it. */
const isOfObjects = (ast: AST.AST): boolean =>
  AST.isTupleType(ast) ||
  (AST.isTypeLiteral(ast) &&
    ast.propertySignatures.length > 0 &&
    !ast.propertySignatures.some(({ type }) => AST.isLiteral(AST.encodedAST(type)) || AST.isLiteral(AST.typeAST(type))))

const ofTransformation = (ast: AST.Transformation, direction: Direction): FastParse => {
  if (!AST.isFinalTransformation(ast.transformation)) return slowOf(ast, direction)
  if (isFastClass(ast)) return direction === "decoding" ? toInstance(ast) : ofInstance(ast)
  return throughOf(ast, direction)
}

const throughOf = (ast: AST.Transformation, direction: Direction): FastParse => {
  const from = fastOf(direction === "decoding" ? ast.from : ast.to, direction)
  const finish = finishOf(ast, direction)
  return (u) => {
    const value = from(u)
    return value === fallback ? fallback : finish(value, u)
  }
}

const isFastClass = (ast: AST.AST): ast is AST.Transformation =>
  AST.isTransformation(ast) && plain(ast) && AST.isDeclaration(ast.to) && AST.isFinalTransformation(ast.transformation)

/** Transforms what one side of a transformation was parsed to, and parses the other side. */
const finishOf = (ast: AST.Transformation, direction: Direction): ((value: unknown, u: unknown) => unknown) => {
  const { transformation } = ast
  if (!AST.isFinalTransformation(transformation)) return () => fallback
  const to = fastOf(direction === "decoding" ? ast.to : ast.from, direction)
  const transform = direction === "decoding" ? transformation.decode : transformation.encode
  return (value, u) => {
    const transformed = transform(value, AST.defaultParseOption, ast, u)
    return Either.isEither(transformed) && Either.isRight(transformed) ? to(transformed.right) : fallback
  }
}

/** Encodes instances of a class. The first one shows how further ones are recognized. */
const ofInstance = (ast: AST.Transformation): FastParse => {
  const parse = throughOf(ast, "encoding")
  const to = fastOf(ast.from, "encoding")
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

/** Decodes to instances of a class. The first one shows how further ones are made. */
const toInstance = (ast: AST.Transformation, tag?: string): FastParse => {
  const from = tag === undefined ? fastOf(ast.from, "decoding") : fastOfBody(tag, ast.from)
  const finish = finishOf(ast, "decoding")
  let copy: FastParse = () => fallback
  let isKnown = false
  return (u) => {
    const copied = copy(u)
    if (copied !== fallback) return copied
    const fields = from(u)
    if (fields === fallback) return fallback
    const instance = finish(fields, u)
    if (!isKnown && instance !== fallback) {
      isKnown = true
      const made = instancesLike(ast, fields as object, instance)
      if (made !== undefined) copy = copyOf(made, fillOfInstance(ast.from, from, made, tag))
    }
    return instance
  }
}

/** Makes an instance without the constructor. It must run where it would fill in a field. */
const copyOf =
  ({ defaulted, prototype }: Instances, fill: Fill): FastParse =>
  (u) => {
    if (!isFields(u)) return fallback
    const instance: Fields = Object.create(prototype)
    if (!fill(instance, u)) return fallback
    for (const key of defaulted) if (instance[key] === undefined) return fallback
    return instance
  }

/** Parses the fields of a struct right into the instance, and those of other schemas before. */
const fillOfInstance = (ast: AST.AST, from: FastParse, { isTagged }: Instances, tag?: string): Fill => {
  const properties = isFastStruct(ast) && ast.indexSignatures.length === 0 ? propertiesOf(ast, "decoding", tag) : []
  // The constructor would lose the key `__proto__`.
  if (AST.isTypeLiteral(ast) && properties.length > 0 && properties.every(({ name }) => name !== protoKey)) {
    const last = isTagged ? properties.filter(({ name }) => name === "_tag") : []
    return fillOf(ast, "decoding", [...properties.filter((property) => !last.includes(property)), ...last])
  }
  return (output, input) => {
    const fields = from(input)
    if (fields !== fallback) copyFields(output, fields as object, isTagged)
    return fields !== fallback
  }
}
