/**
 * Makes instances of simple `Schema.Class` and `Schema.TaggedClass` classes without their constructors, and recognizes
 * their instances. `fastSchema` calls it when it decodes and encodes.
 *
 * The constructors are nine tenths of the time that decoding an event takes. Measured on Node 22 and two shared cores:
 * 10 000 events of a `Schema.TaggedClass` with four fields decode in 25 ms here. By the constructors it is 195 ms, and by
 * `Schema.decodeUnknownEither` 320 ms. A load of 10 000 events takes 27 ms in all, so it would take several times as long.
 *
 * For valid fields that are all present, the constructors only copy them, the tag last. That holds as long as nothing
 * but these constructors runs, and no public property of a class says so. So the text of each class in the chain is
 * compared: with the text of Effect's classes, and with the form of a class without constructor and fields. A class of
 * any other text is constructed as usual, so a new version of Effect can make decoding slower, but not wrong. The first
 * instance is constructed as usual too, and its copy must equal it.
 */
import * as Data from "effect/Data"
import * as Schema from "effect/Schema"
import type * as AST from "effect/SchemaAST"

/** How to make an instance of a simple class without its constructor: an object with its prototype gets the fields. */
export interface Instances {
  readonly prototype: object
  /** The fields that the constructor fills in where they are missing. */
  readonly defaulted: ReadonlyArray<PropertyKey>
  /** Whether the constructor sets the tag, after the other fields. */
  readonly isTagged: boolean
}

/**
 * How to make further instances of the class of an example, if copying fields makes the same instance as its
 * constructor.
 */
export const instancesLike = (ast: AST.Transformation, fields: object, example: unknown): Instances | undefined => {
  const found = simpleClassOf(ast, example)
  if (found === undefined) return undefined
  const { defaulted, isTagged, prototype } = found
  if (isTagged) defaulted.delete("_tag")
  const copy = copyFields(Object.create(prototype), fields, isTagged)
  return isEqual(copy, found.example) ? { prototype, defaulted: [...defaulted], isTagged } : undefined
}

/** Copies the fields to an instance, in the order of the constructor. */
export const copyFields = (instance: object, fields: object, isTagged: boolean): object => {
  if (!isTagged) return Object.assign(instance, fields)
  const { _tag, ...rest } = fields as { readonly _tag: unknown }
  return Object.assign(instance, rest, { _tag })
}

/**
 * The prototype of the class of an example. An instance of that prototype is encoded by its fields alone, because the
 * class lets its instances through as they are.
 */
export const prototypeOfClass = (ast: AST.Transformation, example: unknown): object | undefined =>
  simpleClassOf(ast, example)?.prototype

/** Whether the value was made by the class of the transformation itself. */
export const isInstanceOf = (ast: AST.Transformation, value: object): boolean => {
  const prototype: unknown = Object.getPrototypeOf(value)
  const made = (prototype as { readonly constructor?: unknown } | null)?.constructor
  return typeof made === "function" && made.prototype === prototype && isSameClass(made, ast)
}

// --- internal ---

interface SimpleClass {
  readonly example: object
  readonly prototype: object
  readonly defaulted: Set<PropertyKey>
  readonly isTagged: boolean
}

/** The class of an example, if nothing but the constructors of Effect's classes runs for its instances. */
const simpleClassOf = (ast: AST.Transformation, example: unknown): SimpleClass | undefined => {
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
  return { example, prototype: made.prototype, defaulted, isTagged }
}

const isSameClass = (made: unknown, ast: AST.Transformation): boolean => {
  const found = Schema.isSchema(made) ? made.ast : undefined
  return found?._tag === "Transformation" && found.transformation === ast.transformation && found.to === ast.to
}

/** The fields that the constructor fills in where they are missing. */
const defaultedIn = (madeClass: object): ReadonlyArray<PropertyKey> => {
  const fields = Reflect.get(madeClass, "fields") as Schema.Struct.Fields
  return Reflect.ownKeys(fields).filter((key) => {
    const field = fields[key as string]
    if (!Schema.isPropertySignature(field)) return false
    const { ast } = field as Schema.PropertySignature.All
    return (ast._tag === "PropertySignatureDeclaration" ? ast : ast.to).defaultValue !== undefined
  })
}

const isEqual = (one: object, other: object): boolean => {
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
 * Matches a class without a constructor or fields of its own: nothing between the last braces but a static block by
 * which compilers keep names. A brace inside a comment of one line does not count.
 */
const emptyClass =
  /^class\b(?:.*\n)?(?:(?!\/\/|<!--|-->)[^\n])*\{\s*(?:static\s*\{\s*[\w$]+\(this, ?"[\w$]*"\);?\s*\}\s*)?\}$/s
