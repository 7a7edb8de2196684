/**
 * Decoding and encoding the short way: what `Schema.decodeUnknownEither` and `Schema.encodeUnknownEither` come to for a valid value,
 * in a fraction of their time. It says nothing of invalid values, and of whatever it does not know it knows nothing: those go the long way.
 */
import * as Data from "effect/Data"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import * as ParseResult from "effect/ParseResult"
import * as Schema from "effect/Schema"
import * as AST from "effect/SchemaAST"

type Parse<A> = (u: unknown) => Either.Either<A, ParseResult.ParseError>

/** `Schema.decodeUnknownEither`. */
export const decodeUnknownEither = <A, I>(schema: Schema.Schema<A, I>): Parse<A> =>
  firstShort(shortOf(schema.ast, "decoding"), Schema.decodeUnknownEither(schema))

/** `Schema.encodeUnknownEither`. */
export const encodeUnknownEither = <A, I>(schema: Schema.Schema<A, I>): Parse<I> =>
  firstShort(shortOf(schema.ast, "encoding"), Schema.encodeUnknownEither(schema))

// --- internal ---

/** What the value comes to, or `unsure`. */
type Short = (u: unknown) => unknown

/** The long way knows. */
const fallback = Symbol("effect-maestro/unsure")

type Direction = "decoding" | "encoding"

const firstShort =
  <A>(short: Short, long: Parse<A>): Parse<A> =>
  (u) => {
    try {
      const value = short(u)
      if (value !== fallback) return Either.right(value as A)
    } catch {
      // A filter that throws, or a getter of the value's: the long way meets it too.
    }
    return long(u)
  }

const shortOf = (ast: AST.AST, direction: Direction): Short =>
  // Options change what everything below does.
  Option.isSome(AST.getParseOptionsAnnotation(ast)) ? longOf(ast, direction) : shortOfShape(ast, direction)

const shortOfShape = (ast: AST.AST, direction: Direction): Short => {
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
      return longOf(ast, direction)
  }
}

/** A part of the value goes the long way, the rest need not. */
const longOf = (ast: AST.AST, direction: Direction): Short => {
  const schema = Schema.make<unknown>(ast)
  const parse =
    direction === "decoding" ? ParseResult.decodeUnknownEither(schema) : ParseResult.encodeUnknownEither(schema)
  return (u) => {
    const result = parse(u)
    return Either.isRight(result) ? result.right : fallback
  }
}

/** Of what is the same decoded and encoded, and no object. */
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

const ofRefinement = (ast: AST.Refinement, direction: Direction): Short => {
  if (direction === "decoding") {
    const from = shortOf(ast.from, direction)
    return (u) => {
      const value = from(u)
      return value !== fallback && passes(ast, value) ? value : fallback
    }
  }
  const refined = shortOf(AST.typeAST(ast), "decoding")
  let unrefined = ast.from
  while (AST.isRefinement(unrefined)) unrefined = unrefined.from
  const to = shortOf(unrefined, direction)
  return (u) => {
    const value = refined(u)
    return value === fallback ? fallback : to(value)
  }
}

interface Property {
  readonly name: PropertyKey
  readonly isOptional: boolean
  readonly short: Short
}

/** Also the only way that keeps the key `__proto__`: that of `effect/Schema` sets it as the prototype. */
const ofRecord = ({ parameter, type }: AST.IndexSignature, ast: AST.TypeLiteral, direction: Direction): Short => {
  if (!AST.isStringKeyword(parameter)) return longOf(ast, direction)
  const short = shortOf(type, direction)
  return (u) => {
    if (typeof u !== "object" || u === null || Array.isArray(u)) return fallback
    const entries: Array<[string, unknown]> = []
    for (const key of Object.keys(u)) {
      const value = short((u as Record<string, unknown>)[key])
      if (value === fallback) return fallback
      entries.push([key, value])
    }
    return Object.fromEntries(entries)
  }
}

const ofStruct = (ast: AST.TypeLiteral, direction: Direction): Short => {
  const [index, ...more] = ast.indexSignatures
  if (index !== undefined && more.length === 0 && ast.propertySignatures.length === 0) {
    return ofRecord(index, ast, direction)
  }
  const properties: ReadonlyArray<Property> = ast.propertySignatures.map(({ isOptional, name, type }) => ({
    name,
    isOptional,
    short: shortOf(type, direction)
  }))
  if (
    properties.length === 0 ||
    ast.indexSignatures.length > 0 ||
    // It would be set as something else than a property.
    properties.some(({ name }) => name === "__proto__")
  ) {
    return longOf(ast, direction)
  }
  return (u) => {
    if (typeof u !== "object" || u === null || Array.isArray(u)) return fallback
    const input = u as Record<PropertyKey, unknown>
    const output: Record<PropertyKey, unknown> = {}
    for (const { isOptional, name, short } of properties) {
      if (isOptional && !Object.hasOwn(input, name)) continue
      const value = short(input[name])
      if (value === fallback) return fallback
      output[name] = value
    }
    return output
  }
}

const ofArray = (ast: AST.TupleType, direction: Direction): Short => {
  const [rest, ...others] = ast.rest
  if (rest === undefined || others.length > 0 || ast.elements.length > 0) return longOf(ast, direction)
  const short = shortOf(rest.type, direction)
  return (u) => {
    if (!Array.isArray(u)) return fallback
    const output: Array<unknown> = []
    for (let index = 0; index < u.length; index++) {
      const value = short(u[index])
      if (value === fallback) return fallback
      output.push(value)
    }
    return output
  }
}

/** Several plain ones and one of objects, in any order: no two of them can take the same value. */
const ofUnion = (ast: AST.Union, direction: Direction): Short => {
  const objects = ast.types.filter((type) => !plain(type) || checkOf(type) === undefined)
  const [only, ...others] = objects
  if (only === undefined || others.length > 0 || !isOfObjects(only)) return longOf(ast, direction)
  const object = shortOf(only, direction)
  const check = checkOf(AST.Union.make(ast.types.filter((type) => type !== only)))
  return (u) => (typeof u === "object" && u !== null ? object(u) : check?.(u) ? u : fallback)
}

/** Those with a literal are looked for by their own properties, not by inherited ones. */
const isOfObjects = (ast: AST.AST): boolean =>
  AST.isTupleType(ast) ||
  (AST.isTypeLiteral(ast) &&
    ast.propertySignatures.length > 0 &&
    !ast.propertySignatures.some(({ type }) => AST.isLiteral(AST.encodedAST(type)) || AST.isLiteral(AST.typeAST(type))))

const ofTransformation = (ast: AST.Transformation, direction: Direction): Short => {
  const { transformation } = ast
  if (!AST.isFinalTransformation(transformation)) return longOf(ast, direction)
  const [first, last] = direction === "decoding" ? [ast.from, ast.to] : [ast.to, ast.from]
  const from = shortOf(first, direction)
  const to = shortOf(last, direction)
  const transform = direction === "decoding" ? transformation.decode : transformation.encode
  const finish = (value: unknown, u: unknown): unknown => {
    const transformed = transform(value, AST.defaultParseOption, ast, u)
    return Either.isEither(transformed) && Either.isRight(transformed) ? to(transformed.right) : fallback
  }
  // The first instance tells how the others come to be.
  let construct: Construct | undefined
  let isKnown = direction === "encoding" || !AST.isDeclaration(ast.to)
  return (u) => {
    const value = from(u)
    if (value === fallback) return fallback
    const constructed = construct?.(value as Fields)
    if (constructed !== undefined) return constructed
    const finished = finish(value, u)
    if (!isKnown && finished !== fallback) {
      isKnown = true
      construct = constructOf(ast, value, finished)
    }
    return finished
  }
}

type Fields = Readonly<Record<PropertyKey, unknown>>

/** What a class makes of fields that are valid, without calling its constructors; nothing where they would do more. */
type Construct = (fields: Fields) => object | undefined

/**
 * The constructors that `Schema.Class` and `Schema.TaggedClass` make do nothing, for valid fields that are all there, but to copy them, the
 * tag to the end. So where a class has no others above it and none of its own, its instances can be made by copying once.
 */
const constructOf = (ast: AST.Transformation, fields: unknown, example: unknown): Construct | undefined => {
  if (typeof example !== "object" || example === null) return undefined
  const prototype: unknown = Object.getPrototypeOf(example)
  const made = (prototype as { readonly constructor?: unknown } | null)?.constructor
  // A class keeps the transformation that constructs it.
  if (typeof made !== "function" || made.prototype !== prototype || !isSameClass(made, ast)) return undefined
  const defaulted = new Set<PropertyKey>()
  let isTagged = false
  for (let above: unknown = made; above !== Data.Class; above = Object.getPrototypeOf(above)) {
    if (typeof above !== "function") return undefined
    const text = Function.prototype.toString.call(above)
    if (text !== textOfClass && text !== textOfTaggedClass && !emptyClass.test(text)) return undefined
    isTagged ||= text === textOfTaggedClass
    if (text === textOfClass) for (const key of defaultedIn(above)) defaulted.add(key)
  }
  if (isTagged) defaulted.delete("_tag")
  const needed = [...defaulted]
  const tag = isTagged ? { _tag: Reflect.get(example, "_tag") } : undefined
  const construct: Construct = (fields) => {
    for (const key of needed) if (fields[key] === undefined) return undefined
    const instance = Object.create(prototype as object)
    if (tag === undefined) return Object.assign(instance, fields)
    const { _tag, ...rest } = fields
    return Object.assign(instance, rest, tag)
  }
  const same = construct(fields as Fields)
  return same !== undefined && isSame(same, example) ? construct : undefined
}

const isSameClass = (made: unknown, ast: AST.Transformation): boolean => {
  const found = Schema.isSchema(made) ? made.ast : undefined
  return found?._tag === "Transformation" && found.transformation === ast.transformation && found.to === ast.to
}

/** The fields that the constructor fills in where they are not given. */
const defaultedIn = (madeClass: object): ReadonlyArray<PropertyKey> => {
  const fields = Reflect.get(madeClass, "fields") as Schema.Struct.Fields
  return Reflect.ownKeys(fields).filter((key) => {
    const field = fields[key as string]
    if (!Schema.isPropertySignature(field)) return false
    const { ast } = field as Schema.PropertySignature.All
    return (ast._tag === "PropertySignatureDeclaration" ? ast : ast.to).defaultValue !== undefined
  })
}

const isSame = (one: object, other: object): boolean => {
  const [keys, others] = [Reflect.ownKeys(one), Reflect.ownKeys(other)]
  return (
    Object.isExtensible(other) &&
    keys.length === others.length &&
    keys.every((key, index) => key === others[index] && Object.is(Reflect.get(one, key), Reflect.get(other, key)))
  )
}

class Example extends Schema.TaggedClass<Example>()("Example", {}) {}
const textOfTaggedClass = Function.prototype.toString.call(Object.getPrototypeOf(Example))
const textOfClass = Function.prototype.toString.call(Object.getPrototypeOf(Object.getPrototypeOf(Example)))

/**
 * The text of a class without a constructor or fields of its own: nothing between the last braces, or but a static block by which
 * compilers keep names. A brace in a comment of one line is none.
 */
const emptyClass =
  /^class\b(?:.*\n)?(?:(?!\/\/|<!--|-->)[^\n])*\{\s*(?:static\s*\{\s*[\w$]+\(this, ?"[\w$]*"\);?\s*\}\s*)?\}$/s
