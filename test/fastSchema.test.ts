/** The fast path of schemas returns the results of `effect/Schema`, for every schema and value. */
// @effect-diagnostics overriddenSchemaConstructor:off
// Applications have such classes, so the fast path must leave them to their constructors.
import { describe, expect, it } from "@effect/vitest"
import * as Arbitrary from "effect/Arbitrary"
import * as Either from "effect/Either"
import * as Equal from "effect/Equal"
import * as FastCheck from "effect/FastCheck"
import * as Hash from "effect/Hash"
import * as Schema from "effect/Schema"
import { inject, vi } from "vitest"
import { decodeBodyEither, decodeUnknownEither, encodeUnknownEither } from "../src/internal/codec/fastSchema.js"
import { countProtoKeys } from "../src/internal/codec/protoKey.js"
import { literalTagOf } from "../src/internal/codec/taggedMembers.js"

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
  // The constructor fills in the optional field where the stored event lacks it.
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
  "union of classes": Schema.Union(Plain, Rich, WithMembers, WithConstructor, Filtered, Empty),
  "union of tagged structs": Schema.Struct({
    many: Schema.Array(
      Schema.Union(
        Schema.TaggedStruct("A", { at: Schema.Date }),
        Schema.TaggedStruct("B", { nested: Schema.Union(Plain, WithField) }),
        Failing
      )
    )
  }),
  "union of tagged structs with other literals": Schema.Union(
    Schema.TaggedStruct("A", { kind: Schema.Literal("a") }),
    Schema.TaggedStruct("B", { kind: Schema.Literal("a", "b") }),
    Plain
  ),
  "union of tags that are transformed": Schema.Union(
    Schema.Struct({ _tag: Schema.transformLiteral("A", "B") }),
    Schema.Struct({ _tag: Schema.transformLiteral("B", "A"), a: Schema.Number }),
    Plain
  ),
  "union of tagged members and others": Schema.Union(Plain, Rich, Schema.String),
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
  "optional tag": Schema.Struct({ _tag: Schema.optionalWith(Schema.Literal("A"), { exact: true }), a: Schema.Number }),
  "transformed tag": Schema.Struct({ _tag: Schema.transformLiteral("A", "B"), a: Schema.Number }),
  "tag with a filter": Schema.Struct({ _tag: Schema.Literal("A").pipe(Schema.filter(() => true)), a: Schema.Number }),
  "tag in a record": Schema.Struct({ _tag: Schema.Literal("A") }, { key: Schema.String, value: Schema.Unknown }),
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
  Tree
}

describe.each(Object.entries(schemas))("%s", (_, schema) => {
  const slow = { decode: Schema.decodeUnknownEither(schema), encode: Schema.encodeUnknownEither(schema) }
  // Compiled once, because the first value decides how instances of a class are made.
  const fast = { decode: decodeUnknownEither(schema), encode: encodeUnknownEither(schema) }
  const decoded = Arbitrary.make(Schema.typeSchema(schema))
  const encoded = Arbitrary.make(Schema.encodedSchema(schema))

  it("decodes as effect/Schema does", () => {
    check(damaged(encoded), (input) => same(ended(fast.decode, input), ended(slow.decode, input)))
  })

  const tag = literalTagOf(schema.ast)
  it.skipIf(tag === undefined)(
    "decodes a body without its tag, or with any tag, as effect/Schema does the whole",
    () => {
      if (tag === undefined) return
      const ofBody = decodeBodyEither(tag, schema)
      const decode = (body: unknown) => ofBody(body as object)
      check(damaged(encoded), (input) => {
        if (typeof input !== "object" || input === null || Array.isArray(input)) return
        const { _tag, ...body } = input as { readonly _tag?: unknown }
        same(ended(decode, body), ended(slow.decode, { _tag: tag, ...body }))
        same(ended(decode, { ...body, _tag: "another" }), ended(slow.decode, { ...body, _tag: tag }))
      })
    }
  )

  it("encodes as effect/Schema does", () => {
    check(damaged(decoded), (input) => same(ended(fast.encode, input), ended(slow.encode, input)))
    // Decoded instances, and plain objects with their fields.
    check(encoded, (input) => {
      const instance = ended(fast.decode, input)
      if (!("value" in instance)) return
      same(ended(fast.encode, instance.value), ended(slow.encode, instance.value))
      const plain = typeof instance.value === "object" ? { ...instance.value } : instance.value
      same(ended(fast.encode, plain), ended(slow.encode, plain))
    })
  })
})

it("a class whose text only looks as if it were empty is constructed as usual", () => {
  const bodies = ["", "\n", "x = 1", "x = 1 // {\n", "x = 1 /* { */", "x = 1\n// {\n", "// a comment {\n", "m() {}"]
  for (const body of bodies) {
    for (const name of ["A", "A /* { */", "A // {\n"]) {
      const source = `return class ${name} extends Base {${body}}`
      const Subclass = new Function("Base", source)(Plain) as typeof Plain
      const [fast, slow] = [decodeUnknownEither(Subclass), Schema.decodeUnknownEither(Subclass)]
      for (const amount of [1, 2]) {
        same(ended(fast, { _tag: "Plain", amount }), ended(slow, { _tag: "Plain", amount }))
      }
    }
  }
})

it("only instances of simple classes are made without their constructors", () => {
  const create = vi.spyOn(Object, "create")
  const isFast = (schema: Schema.Schema.AnyNoContext, input: object): boolean => {
    const decode = decodeUnknownEither(schema)
    decode(input)
    create.mockClear()
    const prototype = Object.getPrototypeOf(Either.getOrThrow(decode(input)))
    return create.mock.calls.some(([made]) => made === prototype)
  }
  expect(isFast(Schema.Union(Rich, Plain), { _tag: "Plain", amount: 1 })).toBe(true)
  for (const simple of [Plain, OfPlain]) expect(isFast(simple, { _tag: "Plain", amount: 1 })).toBe(true)
  expect(isFast(OwnTag, { _tag: "OwnTag", amount: 1 })).toBe(true)
  expect(isFast(Extended, { _tag: "Plain", amount: 1 })).toBe(true)
  expect(isFast(Filtered, { _tag: "Filtered", low: 1, high: 2 })).toBe(true)
  expect(isFast(WithDefaults, { _tag: "WithDefaults", amount: 1, note: "a", was: "b" })).toBe(true)
  expect(isFast(WithDefaults, { _tag: "WithDefaults", amount: 1, was: "b" })).toBe(false)
  for (const other of [WithMembers, WithField, WithPrivateField, WithConstructor, Frozen]) {
    expect(isFast(other, { _tag: other.identifier, amount: 1 })).toBe(false)
  }
  expect(isFast(OfConstructor, { _tag: "WithConstructor", amount: 1 })).toBe(false)
  expect(isFast(ExtendedField, { _tag: "WithField", amount: 1, more: "" })).toBe(false)
  create.mockRestore()
})

it("instances that were changed, or made without a constructor, are encoded as effect/Schema does", () => {
  const compare = (schema: Schema.Schema.AnyNoContext, tag: string): void => {
    const [fast, slow] = [encodeUnknownEither(schema), Schema.encodeUnknownEither(schema)]
    const fields = { _tag: tag, amount: 1, low: 1, high: 2, note: "a", was: "b" }
    const instance: object = Either.getOrThrow(decodeUnknownEither(schema)(fields))
    const copyWith = (fields: object): object =>
      Object.assign(Object.create(Object.getPrototypeOf(instance)), instance, fields)
    const inputs = [
      instance,
      copyWith({ amount: "1", low: 3 }),
      copyWith({ more: 1 }),
      Object.create(instance),
      { ...instance }
    ]
    // Twice, because the first instance decides how further ones are encoded.
    for (const input of [...inputs, null, 1, "", ...inputs]) same(ended(fast, input), ended(slow, input))
  }
  for (const made of [Plain, WithMembers, Filtered, WithDefaults]) compare(made, made.identifier)
})

it("a constructor of the application runs for every instance", () => {
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

describe("the key __proto__", () => {
  const json = (text: string): unknown => JSON.parse(text)
  const value = Schema.Union(Schema.Struct({ kind: Schema.Literal("a") }), Schema.Number, Schema.Null)
  const kept: Readonly<Record<string, Schema.Schema.AnyNoContext>> = {
    "a record": Schema.Record({ key: Schema.String, value: Schema.Unknown }),
    "a struct with an index signature": Schema.Struct(
      { z: Schema.optional(Schema.Number) },
      { key: Schema.String, value: Schema.Unknown }
    ),
    "a struct with an index signature of unions": Schema.Struct(
      { z: Schema.optional(Schema.Number) },
      { key: Schema.String, value }
    ),
    "a struct that names it": Schema.Struct({
      z: Schema.optional(Schema.Number),
      ["__proto__"]: Schema.optional(Schema.Unknown)
    }),
    unknown: Schema.Unknown
  }
  const inputs = ['{"__proto__":1,"z":1}', '{"z":2,"__proto__":null}', '{"__proto__":{"kind":"a"}}', '{"z":3}']

  it.each(Object.entries(kept))("is kept by %s", (_, schema) => {
    for (const input of inputs.map(json)) {
      for (const parse of [decodeUnknownEither(schema), encodeUnknownEither(schema)]) {
        const parsed = Either.getOrThrow(parse(input)) as object
        expect(Object.getPrototypeOf(parsed)).toBe(Object.prototype)
        expect(Object.entries(parsed).sort()).toEqual(Object.entries(input as object).sort())
      }
    }
  })

  class Labels extends Schema.Class<Labels>("Labels")({
    z: Schema.optional(Schema.Number),
    ["__proto__"]: Schema.optional(Schema.Unknown)
  }) {}
  const record = Schema.Record({ key: Schema.String, value: Schema.Number })
  const refused: Readonly<Record<string, Schema.Schema.AnyNoContext>> = {
    "a class": Labels,
    "a union of records": Schema.Union(record, Schema.Record({ key: Schema.String, value: Schema.Unknown })),
    "a record of some keys": Schema.Record({ key: Schema.NonEmptyString, value: Schema.Unknown })
  }

  it.each(Object.entries(refused))("is refused by %s, which would lose it", (_, schema) => {
    const decode = decodeUnknownEither(schema)
    // The last has no such key, and decides how instances of a class are made.
    for (const input of [...inputs.toReversed(), ...inputs].map(json)) {
      const parsed = decode(input)
      if (Object.hasOwn(input as object, "__proto__")) {
        expect(String(Either.getOrThrow(Either.flip(parsed)))).toContain('lose the key "__proto__"')
      } else {
        expect(Either.isRight(parsed)).toBe(true)
      }
    }
  })
})

// --- helpers ---

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
      // `effect/Schema` loses this key without an error. It has tests of its own.
      if (countProtoKeys(value) === 0) holds(value)
    }),
    { numRuns: inject("runs") }
  )

/** Valid values, and slightly damaged ones. */
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
    // The key moves to the end.
    const kept = value[key]
    delete value[key]
    value[key] = kept
  }),
  (value: unknown) => (typeof value === "object" && value !== null ? Object.create(value) : value),
  (value: unknown) => [value]
]

const same = (fast: Ended, slow: Ended): void => {
  if ("value" in fast && "value" in slow) indistinguishable(fast.value, slow.value)
  else expect(fast).toEqual(slow)
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
  // The stacks of two errors differ.
  const ofError = one instanceof Error ? ["stack"] : []
  const keys = Reflect.ownKeys(one)
  expect(keys).toEqual(Reflect.ownKeys(other))
  for (const key of keys) {
    if (ofError.includes(String(key))) continue
    const [a, b] = [Reflect.getOwnPropertyDescriptor(one, key), Reflect.getOwnPropertyDescriptor(other, key)]
    expect({ ...a, value: undefined }).toEqual({ ...b, value: undefined })
    indistinguishable(a?.value, b?.value)
  }
  // At the end, because an object keeps its hash.
  if (Equal.isEqual(one) && Equal.isEqual(other) && !(one instanceof Error) && Object.isExtensible(one)) {
    // Two plain objects inside are never equal.
    const areEqual = keys.every((key) => Equal.equals(Reflect.get(one, key), Reflect.get(other, key)))
    expect(Equal.equals(one, other)).toBe(areEqual)
    if (areEqual) expect(Hash.hash(one)).toBe(Hash.hash(other))
  }
}
