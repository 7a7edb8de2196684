/** The short way through a schema comes to what the long one comes to, whatever the schema and whatever the value. */
// @effect-diagnostics overriddenSchemaConstructor:off
// Applications have such classes, so they must go the long way.
import { describe, expect, it } from "@effect/vitest"
import * as Arbitrary from "effect/Arbitrary"
import * as Either from "effect/Either"
import * as Equal from "effect/Equal"
import * as FastCheck from "effect/FastCheck"
import * as Hash from "effect/Hash"
import * as Schema from "effect/Schema"
import { inject, vi } from "vitest"
import { decodeUnknownEither, encodeUnknownEither } from "../src/internal/codec/fastSchema.js"

class Plain extends Schema.TaggedClass<Plain>()("Plain", { amount: Schema.Number }) {}

class Rich extends Schema.TaggedClass<Rich>()("Rich", {
  amount: Schema.Positive,
  name: Schema.NonEmptyString,
  note: Schema.optional(Schema.String),
  exact: Schema.optionalWith(Schema.Int, { exact: true }),
  kind: Schema.Literal("a", "b", 1, null),
  maybe: Schema.NullOr(Schema.Struct({ a: Schema.Boolean })),
  list: Schema.Array(Schema.NullishOr(Schema.Number.pipe(Schema.between(0, 10)))),
  nested: Schema.Struct({ deep: Schema.Struct({ 1: Schema.String, b: Schema.UndefinedOr(Schema.String) }) })
}) {}

class WithMembers extends Schema.TaggedClass<WithMembers>()("WithMembers", { amount: Schema.Number }) {
  get double() {
    return 2 * this.amount
  }
  times(factor: number) {
    return factor * this.amount
  }
}

class WithField extends Schema.TaggedClass<WithField>()("WithField", { amount: Schema.Number }) {
  readonly double = 2 * this.amount
}

class WithPrivateField extends Schema.TaggedClass<WithPrivateField>()("WithPrivateField", { amount: Schema.Number }) {
  readonly #double = 2 * this.amount
  get double() {
    return this.#double
  }
}

class WithConstructor extends Schema.TaggedClass<WithConstructor>()("WithConstructor", { amount: Schema.Number }) {
  constructor(props: { readonly amount: number }, options?: Schema.MakeOptions) {
    super({ ...props, amount: Math.max(0, props.amount) }, options)
  }
}

class Frozen extends Schema.TaggedClass<Frozen>()("Frozen", { amount: Schema.Number }) {
  constructor(props: { readonly amount: number }, options?: Schema.MakeOptions) {
    super(props, options)
    Object.freeze(this)
  }
}

class OfPlain extends Plain {}

class OfConstructor extends WithConstructor {}

class Extended extends Plain.extend<Extended>("Extended")({ more: Schema.optional(Schema.String) }) {}

class ExtendedField extends WithField.extend<ExtendedField>("ExtendedField")({ more: Schema.String }) {}

class Transformed extends Plain.transformOrFail<Transformed>("Transformed")(
  { more: Schema.Number },
  {
    decode: (fields) => Either.right({ ...fields, more: fields.amount + 1 }),
    encode: ({ more: _, ...fields }) => Either.right(fields)
  }
) {}

let made = 0
class WithDefaults extends Schema.TaggedClass<WithDefaults>()("WithDefaults", {
  amount: Schema.Number.pipe(
    Schema.propertySignature,
    Schema.withConstructorDefault(() => 7)
  ),
  // What is optional is filled in by the constructor where the stored event lacks it.
  note: Schema.optional(Schema.String).pipe(Schema.withConstructorDefault(() => "none")),
  old: Schema.optionalWith(Schema.Boolean, { default: () => true }),
  renamed: Schema.propertySignature(Schema.String).pipe(Schema.fromKey("was"))
}) {}

class WithCountingDefault extends Schema.TaggedClass<WithCountingDefault>()("WithCountingDefault", {
  count: Schema.optional(Schema.Number).pipe(Schema.withConstructorDefault(() => ++made % 1))
}) {}

class OwnTag extends Schema.Class<OwnTag>("OwnTag")({ _tag: Schema.tag("OwnTag"), amount: Schema.Number }) {}

class Untagged extends Schema.Class<Untagged>("Untagged")({ _tag: Schema.Literal("Untagged"), when: Schema.Date }) {}

class Filtered extends Schema.TaggedClass<Filtered>()(
  "Filtered",
  Schema.Struct({ low: Schema.Number, high: Schema.Number }).pipe(
    Schema.filter(({ high, low }) => low <= high || "low must not be above high")
  )
) {}

class Holder extends Schema.TaggedClass<Holder>()("Holder", {
  one: Plain,
  field: WithField,
  many: Schema.Array(Rich),
  maybe: Schema.optional(OwnTag)
}) {}

class Empty extends Schema.TaggedClass<Empty>()("Empty", {}) {}

class Failing extends Schema.TaggedError<Failing>()("Failing", { why: Schema.String }) {}

class Strict extends Schema.TaggedClass<Strict>()(
  "Strict",
  { amount: Schema.Number },
  { parseOptions: { onExcessProperty: "error" } }
) {}

interface Tree {
  readonly value: number
  readonly children: ReadonlyArray<Tree>
}

const Tree: Schema.Schema<Tree> = Schema.Struct({
  value: Schema.Number,
  children: Schema.Array(Schema.suspend(() => Tree))
})

const symbol = Symbol.for("test")

const positive = (n: number): number => {
  if (n > 0) return n
  throw new Error("not positive")
}

const schemas: Readonly<Record<string, Schema.Schema.AnyNoContext>> = {
  Plain,
  Rich,
  WithMembers,
  WithField,
  WithPrivateField,
  WithConstructor,
  Frozen,
  OfPlain,
  OfConstructor,
  Extended,
  ExtendedField,
  Transformed,
  WithDefaults,
  WithCountingDefault,
  OwnTag,
  Untagged,
  Filtered,
  Holder,
  Empty,
  Failing,
  Strict,
  "annotated class": Plain.annotations({ title: "plain" }),
  "class with options": Plain.annotations({ parseOptions: { onExcessProperty: "error" } }),
  "class with a filter": Plain.pipe(Schema.filter(({ amount }) => amount > 0)),
  "class with a fallback": Plain.annotations({ decodingFallback: () => Either.right(new Plain({ amount: 0 })) }),
  "two versions of a class": Schema.Union(Rich, Schema.TaggedStruct("Rich", { amount: Schema.Number }), Plain),
  "type side of a class": Schema.typeSchema(Plain),
  struct: Schema.TaggedStruct("Struct", {
    amount: Schema.Number,
    nested: Schema.optional(Schema.Struct({ a: Plain }))
  }),
  "strict struct": Schema.Struct({
    a: Schema.Struct({ b: Schema.Number }).annotations({ parseOptions: { onExcessProperty: "error" } })
  }),
  "preserving struct": Schema.Struct({ a: Schema.Struct({ b: Schema.Number }) }).annotations({
    parseOptions: { onExcessProperty: "preserve", propertyOrder: "original" }
  }),
  "exact struct": Schema.Struct({ a: Schema.UndefinedOr(Schema.Number) }).annotations({
    parseOptions: { exact: true }
  }),
  "struct of symbols and numbers": Schema.Struct({ z: Schema.Number, 1: Schema.String, [symbol]: Schema.String }),
  record: Schema.Struct({ a: Schema.Number }, { key: Schema.String, value: Schema.Unknown }),
  tuple: Schema.Tuple(Schema.Number, Schema.optionalElement(Schema.String)),
  "tuple with a rest": Schema.Tuple([Schema.Number], Schema.String),
  union: Schema.Union(
    Schema.Struct({ kind: Schema.Literal("a"), a: Schema.Number }),
    Schema.Struct({ kind: Schema.Literal("b"), b: Schema.NumberFromString }),
    Schema.String,
    Schema.Null
  ),
  "union of numbers": Schema.Union(Schema.NumberFromString, Schema.String, Schema.Number),
  "union with a literal struct": Schema.NullOr(Schema.Struct({ kind: Schema.Literal("a") })),
  "union with an array": Schema.Struct({ a: Schema.optional(Schema.Array(Schema.Positive)) }),
  "union with a strict struct": Schema.NullOr(
    Schema.Struct({ a: Schema.Number }).annotations({ parseOptions: { onExcessProperty: "error" } })
  ),
  transformations: Schema.Struct({
    date: Schema.Date,
    number: Schema.NumberFromString,
    trimmed: Schema.Trim,
    bigint: Schema.BigInt,
    list: Schema.NonEmptyArray(Schema.split(",")),
    set: Schema.ReadonlySet(Schema.Number),
    option: Schema.Option(Schema.String),
    composed: Schema.compose(Schema.Trim, Schema.NumberFromString)
  }),
  brand: Schema.Struct({ id: Schema.UUID.pipe(Schema.brand("Id")), unknown: Schema.Unknown }),
  "transformation that throws": Schema.Struct({
    a: Schema.transform(Schema.Number, Schema.Number, { decode: positive, encode: positive })
  }),
  fallback: Schema.Struct({ a: Schema.Number.annotations({ decodingFallback: () => Either.right(0) }) }),
  "struct with names of Object's": Schema.Struct({
    constructor: Schema.optional(Schema.String),
    toString: Schema.Unknown,
    hasOwnProperty: Schema.optional(Schema.Number)
  }),
  nothing: Schema.Struct({}),
  proto: Schema.Struct({ ["__proto__"]: Schema.optional(Schema.Number), a: Schema.Number }),
  Tree
}

describe.each(Object.entries(schemas))("%s", (_, schema) => {
  const long = { decode: Schema.decodeUnknownEither(schema), encode: Schema.encodeUnknownEither(schema) }
  // Compiled once: what they learn of the first value must hold for all others.
  const short = { decode: decodeUnknownEither(schema), encode: encodeUnknownEither(schema) }
  const decoded = Arbitrary.make(Schema.typeSchema(schema))
  const encoded = Arbitrary.make(Schema.encodedSchema(schema))

  it("decodes as the long way", () => {
    check(damaged(encoded), (input) => same(ended(short.decode, input), ended(long.decode, input)))
  })

  it("encodes as the long way", () => {
    check(damaged(decoded), (input) => same(ended(short.encode, input), ended(long.encode, input)))
    // Instances as they are when they have been decoded, and as plain objects.
    check(encoded, (input) => {
      const instance = ended(short.decode, input)
      if (!("value" in instance)) return
      same(ended(short.encode, instance.value), ended(long.encode, instance.value))
      const plain = typeof instance.value === "object" ? { ...instance.value } : instance.value
      same(ended(short.encode, plain), ended(long.encode, plain))
    })
  })
})

it("a class is as simple as its text: what looks like an end may be a comment", () => {
  const bodies = ["", "\n", "x = 1", "x = 1 // {\n", "x = 1 /* { */", "x = 1\n// {\n", "// a comment {\n", "m() {}"]
  for (const body of bodies) {
    for (const name of ["A", "A /* { */", "A // {\n"]) {
      const source = `return class ${name} extends Base {${body}}`
      const Subclass = new Function("Base", source)(Plain) as typeof Plain
      const [short, long] = [decodeUnknownEither(Subclass), Schema.decodeUnknownEither(Subclass)]
      for (const amount of [1, 2]) {
        same(ended(short, { _tag: "Plain", amount }), ended(long, { _tag: "Plain", amount }))
      }
    }
  }
})

it("simple classes, and no others, are made without their constructors", () => {
  const create = vi.spyOn(Object, "create")
  const isShort = (schema: Schema.Schema.AnyNoContext, input: object): boolean => {
    const decode = decodeUnknownEither(schema)
    decode(input)
    create.mockClear()
    const prototype = Object.getPrototypeOf(Either.getOrThrow(decode(input)))
    return create.mock.calls.some(([made]) => made === prototype)
  }
  for (const simple of [Plain, OfPlain]) expect(isShort(simple, { _tag: "Plain", amount: 1 })).toBe(true)
  expect(isShort(OwnTag, { _tag: "OwnTag", amount: 1 })).toBe(true)
  expect(isShort(Extended, { _tag: "Plain", amount: 1 })).toBe(true)
  expect(isShort(Filtered, { _tag: "Filtered", low: 1, high: 2 })).toBe(true)
  expect(isShort(WithDefaults, { _tag: "WithDefaults", amount: 1, note: "a", was: "b" })).toBe(true)
  expect(isShort(WithDefaults, { _tag: "WithDefaults", amount: 1, was: "b" })).toBe(false)
  for (const other of [WithMembers, WithField, WithPrivateField, WithConstructor, Frozen]) {
    expect(isShort(other, { _tag: other.identifier, amount: 1 })).toBe(false)
  }
  expect(isShort(OfConstructor, { _tag: "WithConstructor", amount: 1 })).toBe(false)
  expect(isShort(ExtendedField, { _tag: "WithField", amount: 1, more: "" })).toBe(false)
  create.mockRestore()
})

it("what a constructor does is done every time", () => {
  const seen: Array<number> = []
  class Seen extends Schema.TaggedClass<Seen>()("Seen", { amount: Schema.Number }) {
    constructor(props: { readonly amount: number }, options?: Schema.MakeOptions) {
      super(props, options)
      seen.push(props.amount)
    }
  }
  const decode = decodeUnknownEither(Seen)
  for (const amount of [1, 2, 3]) decode({ _tag: "Seen", amount })
  expect(seen).toEqual([1, 2, 3])
})

// --- what the cases are made of ---

type Ended = { readonly value: unknown } | { readonly message: string }

const ended = (parse: (u: unknown) => Either.Either<unknown, Error>, input: unknown): Ended => {
  try {
    return Either.match(parse(input), {
      onLeft: ({ message }) => ({ message }),
      onRight: (value) => ({ value })
    })
  } catch (thrown) {
    return { message: `thrown: ${thrown}` }
  }
}

const check = (values: FastCheck.Arbitrary<unknown>, holds: (value: unknown) => void): void =>
  FastCheck.assert(
    FastCheck.property(values, (value) => {
      holds(value)
    }),
    { numRuns: inject("runs") }
  )

/** Valid values, and some that are not quite. */
const damaged = (values: FastCheck.Arbitrary<unknown>): FastCheck.Arbitrary<unknown> =>
  FastCheck.oneof(
    { weight: 3, arbitrary: values },
    { weight: 1, arbitrary: FastCheck.anything() },
    {
      weight: 3,
      arbitrary: FastCheck.tuple(values, FastCheck.nat(), FastCheck.constantFrom(...damages), FastCheck.anything()).map(
        ([value, place, damage, junk]) => damage(value, place, junk)
      )
    }
  )

const onObject =
  (change: (value: Record<PropertyKey, unknown>, key: PropertyKey, junk: unknown) => void) =>
  (value: unknown, place: number, junk: unknown): unknown => {
    if (typeof value !== "object" || value === null || Array.isArray(value)) return value
    const keys = Reflect.ownKeys(value)
    const copy = Object.assign(Object.create(Object.getPrototypeOf(value)), value)
    if (keys.length > 0) change(copy, keys[place % keys.length] ?? "", junk)
    return copy
  }

const damages = [
  onObject((value, key) => {
    delete value[key]
  }),
  onObject((value, key, junk) => {
    value[key] = junk
  }),
  onObject((value, key) => {
    value[key] = undefined
  }),
  onObject((value, _, junk) => {
    value.excess = junk
  }),
  onObject((value, key) => {
    // The last comes first.
    const kept = value[key]
    delete value[key]
    value[key] = kept
  }),
  (value: unknown) => (typeof value === "object" && value !== null ? Object.create(value) : value),
  (value: unknown) => [value]
]

const same = (short: Ended, long: Ended): void => {
  if ("value" in short && "value" in long) indistinguishable(short.value, long.value)
  else expect(short).toEqual(long)
}

const indistinguishable = (one: unknown, other: unknown): void => {
  if (typeof one !== "object" || one === null || typeof other !== "object" || other === null) {
    if (!Object.is(one, other)) expect(one).toBe(other)
    return
  }
  if (one === other) return
  expect(Object.getPrototypeOf(one) === Object.getPrototypeOf(other)).toBe(true)
  expect(Object.isExtensible(one)).toBe(Object.isExtensible(other))
  if (one instanceof Date && other instanceof Date) expect(one.getTime()).toBe(other.getTime())
  if (one instanceof Set && other instanceof Set) expect([...one]).toEqual([...other])
  if (one instanceof WithPrivateField && other instanceof WithPrivateField) expect(one.double).toBe(other.double)
  // Those of an error differ by where it was made.
  const ofError = one instanceof Error ? ["stack"] : []
  const keys = Reflect.ownKeys(one)
  expect(keys).toEqual(Reflect.ownKeys(other))
  for (const key of keys) {
    if (ofError.includes(String(key))) continue
    const [a, b] = [Reflect.getOwnPropertyDescriptor(one, key), Reflect.getOwnPropertyDescriptor(other, key)]
    expect({ ...a, value: undefined }).toEqual({ ...b, value: undefined })
    indistinguishable(a?.value, b?.value)
  }
  // At the end, since a hash is kept in the object.
  if (Equal.isEqual(one) && Equal.isEqual(other) && !(one instanceof Error) && Object.isExtensible(one)) {
    // Plain objects in it are equal to themselves only.
    const areEqual = keys.every((key) => Equal.equals(Reflect.get(one, key), Reflect.get(other, key)))
    expect(Equal.equals(one, other)).toBe(areEqual)
    if (areEqual) expect(Hash.hash(one)).toBe(Hash.hash(other))
  }
}
