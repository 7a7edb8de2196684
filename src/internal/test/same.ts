/**
 * Whether two values are equal for a test: by their fields, and by the equality of Effect where they have one.
 */
import * as Chunk from "effect/Chunk"
import * as Equal from "effect/Equal"
import * as HashMap from "effect/HashMap"
import * as HashSet from "effect/HashSet"
import * as List from "effect/List"
import * as SortedMap from "effect/SortedMap"
import * as SortedSet from "effect/SortedSet"

/**
 * Compares by fields. Values of other classes differ, and a field that is `undefined` is like one that is absent,
 * because JSON has no `undefined`. An object whose content can't be seen equals itself only.
 */
export const isSame = (one: unknown, other: unknown): boolean => compare(one, other, new Map())

// --- internal ---

/** The pairs whose comparison has begun: a cycle that both values have leads to one of them. */
type Begun = Map<object, Set<object>>

const compare = (one: unknown, other: unknown, begun: Begun): boolean => {
  if (Object.is(one, other)) return true
  if (typeof one !== "object" || typeof other !== "object" || one === null || other === null) return false
  if (prototypeOf(one) !== prototypeOf(other)) return false
  const others = begun.get(one) ?? new Set()
  if (others.has(other)) return true
  begun.set(one, others.add(other))
  const same = areSameObjects(one, other, begun)
  others.delete(other)
  return same
}

/** Objects without a prototype are like those of a literal. */
const prototypeOf = (value: object): unknown => Object.getPrototypeOf(value) ?? Object.prototype

/** Objects of one class. */
const areSameObjects = (one: object, other: object, begun: Begun): boolean => {
  const [text, otherText] = [textOf(one), textOf(other)]
  if (text !== undefined) return Object.is(text, otherText)
  const [items, otherItems] = [itemsOf(one), itemsOf(other)]
  if (items !== undefined && otherItems !== undefined) return areSame(items, otherItems, begun)
  const [entries, otherEntries] = [entriesOf(one), entriesOf(other)]
  if (entries !== undefined && otherEntries !== undefined) return areSameEntries(entries, otherEntries, begun)
  if (one instanceof Error && other instanceof Error) {
    const parts = [one.name, one.message, one.cause]
    if (!areSame(parts, [other.name, other.message, other.cause], begun)) return false
    return areSameFields(one, other, begun)
  }
  if (!Equal.isEqual(one)) return hasFields(one) && areSameFields(one, other, begun)
  if (Equal.equals(one, other)) return true
  // Effect compares contents that are plain objects by reference. Where all contents are equal, the class knows more.
  return hasPlainContent(one, other) && areSameFields(one, other, begun)
}

/** What a value without enumerable fields is compared by. */
const textOf = (value: object): unknown => {
  if (value instanceof Date) return value.getTime()
  if (value instanceof RegExp || value instanceof URL || value instanceof URLSearchParams) return String(value)
  if (value instanceof Number || value instanceof String || value instanceof Boolean) return value.valueOf()
  if (value instanceof BigInt || value instanceof Symbol) return value.valueOf()
  return undefined
}

/** The items of a value that is a list. */
const itemsOf = (value: object): ReadonlyArray<unknown> | undefined => {
  if (Array.isArray(value)) return value
  if (ArrayBuffer.isView(value)) return bytesOf(value.buffer, value.byteOffset, value.byteLength)
  if (value instanceof ArrayBuffer) return bytesOf(value, 0, value.byteLength)
  if (typeof Headers === "function" && value instanceof Headers) return [...value]
  if (Chunk.isChunk(value) || List.isList(value) || SortedSet.isSortedSet(value)) return [...value]
  if (SortedMap.isSortedMap(value)) return [...value]
  return undefined
}

/** The items of a value that has them in any order. */
const entriesOf = (value: object): ReadonlyArray<unknown> | undefined =>
  value instanceof Map || value instanceof Set || HashMap.isHashMap(value) || HashSet.isHashSet(value)
    ? [...value]
    : undefined

const areSame = (one: ReadonlyArray<unknown>, other: ReadonlyArray<unknown>, begun: Begun): boolean =>
  // `every` alone leaves out the holes of a list.
  one.length === other.length && Array.from(one).every((item, index) => compare(item, other[index], begun))

/** In any order. */
const areSameEntries = (one: ReadonlyArray<unknown>, other: ReadonlyArray<unknown>, begun: Begun): boolean => {
  const rest = [...other]
  return (
    one.length === other.length &&
    one.every((item) => {
      const index = rest.findIndex((candidate) => compare(item, candidate, begun))
      if (index >= 0) rest.splice(index, 1)
      return index >= 0
    })
  )
}

const areSameFields = (one: object, other: object, begun: Begun): boolean => {
  const [fields, others] = [fieldsOf(one), fieldsOf(other)]
  return (
    fields.size === others.size &&
    [...fields].every(([key, value]) => others.has(key) && compare(value, others.get(key), begun))
  )
}

/** Whether fields say what an object is: an instance of a class without them may have its content elsewhere. */
const hasFields = (value: object): boolean => prototypeOf(value) === Object.prototype || keysOf(value).length > 0

/** Whether a field is another object that Effect does not find equal. */
const hasPlainContent = (one: object, other: object): boolean => {
  const others = fieldsOf(other)
  return [...fieldsOf(one)].some(([key, value]) => !Equal.equals(value, others.get(key)))
}

const fieldsOf = (value: object): ReadonlyMap<PropertyKey, unknown> =>
  new Map(
    keysOf(value)
      .map((key): [PropertyKey, unknown] => [key, Reflect.get(value, key)])
      .filter(([, field]) => field !== undefined)
  )

const keysOf = (value: object): ReadonlyArray<PropertyKey> =>
  Reflect.ownKeys(value).filter((key) => Object.prototype.propertyIsEnumerable.call(value, key))

const bytesOf = (buffer: ArrayBufferLike, offset: number, length: number): ReadonlyArray<number> =>
  Array.from(new Uint8Array(buffer, offset, length))
