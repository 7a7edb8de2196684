/** A command id belongs to one command: another command of the id fails with CommandIdReused. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as FastCheck from "effect/FastCheck"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { Aggregate, MemoryStore, SqlStore, StoreAdapter, StoreError } from "effect-maestro"
import { inject } from "vitest"
import { makeCommandDigest } from "../src/internal/aggregate/commandDigest.js"
import { everyCase } from "../src/internal/contract/case.js"
import { anyValue } from "../src/internal/contract/hostile.js"
import { Account, Deposit, definition, Limits, type Open, Touch, Withdraw } from "./account.js"
import { layerPg } from "./database.js"
import { aNode } from "./nodes.js"

const stores = {
  MemoryStore: MemoryStore.layer,
  "SqlStore on Postgres": SqlStore.layer.pipe(Layer.provideMerge(layerPg()), Layer.orDie)
}

for (const [name, store] of Object.entries(stores)) {
  const layer = Account.layer.pipe(Layer.provideMerge(Limits.layer), Layer.provideMerge(store))
  it.layer(layer, { timeout: 60_000 })(`Command ids of other commands on ${name}`, (it) => {
    it.effect(
      "another command, or other fields, fail with CommandIdReused, and the command itself is a duplicate",
      () =>
        Effect.gen(function* () {
          const id = yield* Account.newId
          const evaluate = (command: Deposit | Withdraw | Open | Touch) =>
            Account.evaluate(id, command).pipe(Aggregate.withCommandId("c"))
          yield* evaluate(new Deposit({ amount: 10 }))
          for (const other of [
            new Deposit({ amount: 11 }),
            new Withdraw({ amount: 10 }),
            // A command that its handler would refuse, and a decision of no events.
            new Withdraw({ amount: 500 }),
            new Touch()
          ]) {
            const error = yield* Effect.flip(evaluate(other))
            expect(error).toEqual(new StoreError.CommandIdReused({ kind: "Account", id, commandId: "c" }))
            expect(error.message).toContain(`Command id "c" of Account "${id}" belongs to another command`)
          }
          expect(yield* evaluate(new Deposit({ amount: 10 }))).toMatchObject({ duplicate: true, sequence: 1 })
          expect(yield* amounts(id)).toEqual([10])
          // On another aggregate the id belongs to another command.
          const elsewhere = Account.evaluate(yield* Account.newId, new Deposit({ amount: 11 }))
          expect(yield* Aggregate.withCommandId("c")(elsewhere)).toMatchObject({ duplicate: false })
        })
    )

    it.effect("a command from JSON with another order of keys is the same command", () =>
      Effect.gen(function* () {
        const id = yield* Account.newId
        yield* Account.evaluate(id, new Deposit({ amount: 10 })).pipe(Aggregate.withCommandId("c"))
        const json: unknown = JSON.parse('{"amount": 10.0, "_tag": "Deposit"}')
        expect(yield* Account.evaluateUnknown(id, json).pipe(Aggregate.withCommandId("c"))).toMatchObject({
          duplicate: true
        })
      })
    )

    it.scoped("CommandIdReused is not retried", () =>
      Effect.gen(function* () {
        // A retry that has to wait can't end under the clock of this test.
        const Hanging = Aggregate.make("Account", { ...definition, retry: Schedule.spaced("1 hour") })
        const limits = yield* Limits
        const node = yield* aNode(Hanging.layer)
        const id = yield* Account.newId
        yield* Account.evaluate(id, new Deposit({ amount: 10 })).pipe(Aggregate.withCommandId("c"))
        const asked = limits.asked
        const withdraw = Hanging.evaluate(id, new Withdraw({ amount: 5 })).pipe(Aggregate.withCommandId("c"))
        expect(yield* Effect.flip(Effect.provide(withdraw, node))).toMatchObject({ _tag: "CommandIdReused" })
        expect(limits.asked - asked).toBe(1)
      })
    )

    it.scoped("of two concurrent commands of one id on several nodes one takes effect, once", () =>
      Effect.gen(function* () {
        const nodes = yield* Effect.replicateEffect(aNode(Account.layer), 3)
        const id = yield* Account.newId
        const results = yield* Effect.forEach(
          nodes.flatMap((node) => Arr.makeBy(4, (index) => ({ node, amount: 1 + (index % 2) }))),
          ({ amount, node }) =>
            Account.evaluate(id, new Deposit({ amount })).pipe(
              Aggregate.withCommandId("c"),
              Effect.either,
              Effect.provide(node),
              Effect.map((result) => ({ amount, result }))
            ),
          { concurrency: "unbounded" }
        )
        const [stored = 0, ...more] = yield* amounts(id)
        expect(more).toEqual([])
        for (const { amount, result } of results) {
          expect(Either.isRight(result)).toBe(amount === stored)
          if (Either.isLeft(result)) expect(result.left).toMatchObject({ _tag: "CommandIdReused" })
        }
        expect(results.filter(({ result }) => Either.isRight(result) && !result.right.duplicate)).toHaveLength(1)
      })
    )

    if (name.includes("SqlStore")) {
      it.effect("in the caller's transaction the failure leaves the transaction usable", () =>
        Effect.gen(function* () {
          const sql = Option.getOrThrow(yield* Effect.serviceOption(SqlClient.SqlClient))
          const id = yield* Account.newId
          const deposit = (amount: number) =>
            Account.evaluate(id, new Deposit({ amount })).pipe(Aggregate.withCommandId("c"))
          yield* sql.withTransaction(
            Effect.gen(function* () {
              yield* deposit(1)
              expect(yield* Effect.flip(deposit(2))).toMatchObject({ _tag: "CommandIdReused" })
              expect(yield* deposit(1)).toMatchObject({ duplicate: true })
              yield* Account.evaluate(id, new Deposit({ amount: 4 }))
            })
          )
          expect(yield* amounts(id)).toEqual([1, 4])
        })
      )
    }
  })
}

// --- equal commands ---

class Noted extends Schema.TaggedClass<Noted>()("Noted", {}) {}

/** The fields of a case. */
interface Note {
  readonly _tag: "Note"
}

/** An aggregate with one command, of these fields. */
const taking = (fields: Schema.Struct.Fields) =>
  Aggregate.make("Notes", {
    state: Schema.Number,
    initialState: 0,
    events: Noted,
    commands: Schema.make<Note>(Schema.Struct({ _tag: Schema.Literal("Note"), ...fields }).ast),
    decide: { Note: () => Effect.succeed([new Noted()]) },
    evolve: { Noted: (count) => count + 1 }
  })

type Notes = ReturnType<typeof taking>

const note = (aggregate: Notes, fields: object) =>
  Effect.gen(function* () {
    const services = yield* Layer.build(aggregate.layer)
    const command = { _tag: "Note", ...fields } as const
    return yield* aggregate.evaluate("a", command).pipe(Aggregate.withCommandId("c"), Effect.provide(services))
  }).pipe(Effect.scoped)

const isRepeated = (first: readonly [Notes, object], second: readonly [Notes, object]) =>
  Effect.gen(function* () {
    yield* note(...first)
    const again = yield* Effect.either(note(...second))
    if (Either.isRight(again)) return again.right.duplicate
    expect(again.left).toMatchObject({ _tag: "CommandIdReused" })
    return false
  }).pipe(Effect.provide(MemoryStore.layer))

const Anything = taking({ value: Schema.Unknown })

it.effect("commands are compared as their schema encodes them", () =>
  Effect.gen(function* () {
    const Typed = taking({
      at: Schema.Date,
      tags: Schema.Record({ key: Schema.String, value: Schema.Number }),
      text: Schema.optional(Schema.String)
    })
    const at = new Date(1000)
    const command = { at, tags: { b: 1, a: 2 } }
    for (const same of [
      { tags: { a: 2, b: 1 }, at: new Date(1000) },
      { at, tags: { b: 1, a: 2 }, text: undefined },
      { at, tags: { b: 1, a: 2 }, excess: 1 }
    ]) {
      expect(yield* isRepeated([Typed, command], [Typed, same])).toBe(true)
    }
    for (const other of [
      { at: new Date(1001), tags: { b: 1, a: 2 } },
      { at, tags: { b: 2, a: 1 } },
      { at, tags: { b: 1, a: 2 }, text: "" }
    ]) {
      expect(yield* isRepeated([Typed, command], [Typed, other])).toBe(false)
    }
  })
)

const digestOfAnything = makeCommandDigest("Notes.evaluate", Anything.commands)

const digest = (value: unknown) => {
  const command = { _tag: "Note", value } as const
  return digestOfAnything(command)
}

it.effect("values that JSON can't hold are compared, too", () =>
  Effect.gen(function* () {
    const values = [
      ...[null, 0, "0", 1n, "1n", Number.NaN, "NaN", "\ud800", "\udfff", new Date(0), "Date 0", "Uint8Array 1"],
      ...[new Uint8Array([1, 2]), [1, 2], [[1], 2], [undefined, 1], {}, { a: 1 }, { a: { b: 1 } }, { a: 1, b: 1 }],
      ...[[new Uint8Array([1]), 2], [[new Uint8Array([1]), 2]], [new Uint8Array([1]), [2]], [new Uint8Array([1, 2])]],
      ...[[new Uint8Array(), 1], [new Uint8Array()], [new Date(1), 2], [1n, 2], [[1, 2]], [], [[]], [undefined], [null]]
    ]
    const hashes = yield* Effect.forEach(values, (value) => Effect.map(digest(value), ({ hash }) => hash))
    expect(new Set(hashes).size).toBe(values.length)
    for (const [a, b] of [
      [0, -0],
      [
        { a: 1, b: 2 },
        { b: 2, a: 1 }
      ],
      [{ a: 1, b: undefined }, { a: 1 }],
      [new Date(0), new Date(0)],
      [Buffer.from([1, 2]), new Uint8Array([1, 2])],
      [new Array(1), [undefined]]
    ]) {
      expect(yield* digest(a)).toEqual(yield* digest(b))
    }
  })
)

it.effect("values have equal digests if, and only if, they have equal structures", () =>
  Effect.gen(function* () {
    const seed = Math.floor(Math.random() * 2 ** 31)
    const firsts = new Map<string, unknown>()
    for (const value of FastCheck.sample(FastCheck.oneof(regrouped, awkward), { numRuns: 2000, seed })) {
      const { hash } = yield* digest(value)
      const first = firsts.get(hash) ?? value
      firsts.set(hash, first)
      expect(isSame(first, value), `seed ${seed}: ${FastCheck.stringify([first, value])}`).toBe(true)
      expect((yield* digest(copy(value))).hash, `seed ${seed}: ${FastCheck.stringify(value)}`).toBe(hash)
    }
    expect(firsts.size).toBeGreaterThan(300)
  })
)

/** Values of few texts, numbers and keys, so that the texts of many values are similar. */
const awkward: FastCheck.Arbitrary<unknown> = FastCheck.letrec<{ value: unknown }>((tie) => ({
  value: FastCheck.oneof(
    { maxDepth: 3 },
    FastCheck.constantFrom<unknown>(
      1,
      2,
      -0,
      0,
      1.5,
      1e21,
      Number.NaN,
      Number.POSITIVE_INFINITY,
      true,
      null,
      undefined
    ),
    FastCheck.constantFrom<unknown>(1n, 2n, -1n, new Date(1), new Date(2), new Date(Number.NaN)),
    FastCheck.string({ unit: FastCheck.constantFrom(...'1,"\\[]{}():ab\ud800\ufffd'), maxLength: 3 }),
    FastCheck.constantFrom("1", "1n", "NaN", "null", "Date(1)", "bytes(1)", "number(1)", "undefined()", '"', '","'),
    FastCheck.array(FastCheck.integer({ min: 1, max: 2 }), { maxLength: 3 }).map((bytes) => new Uint8Array(bytes)),
    FastCheck.array(tie("value"), { maxLength: 3 }),
    FastCheck.integer({ min: 0, max: 3 }).map((length) => new Array(length)),
    FastCheck.dictionary(FastCheck.constantFrom("a", "b", "1", "__proto__", 'a":', ""), tie("value"), { maxKeys: 3 })
  )
})).value

const bytes = FastCheck.array(FastCheck.constantFrom(1, 2), { maxLength: 2 }).map((numbers) => new Uint8Array(numbers))

/** Few numbers, as numbers, bytes and lists, which differ only by their grouping. */
const regrouped: FastCheck.Arbitrary<unknown> = FastCheck.array(
  FastCheck.oneof(FastCheck.constantFrom<unknown>(1, 2, [1], [2]), bytes),
  { maxLength: 3 }
)

/** Whether two values have equal structures: 0 is -0, a hole is `undefined`, and a field that is `undefined` is missing. */
const isSame = (one: unknown, other: unknown): boolean => {
  if (typeof one !== "object" || typeof other !== "object" || one === null || other === null) {
    return one === other || (Number.isNaN(one) && Number.isNaN(other))
  }
  if (one instanceof Date && other instanceof Date) return Object.is(one.getTime(), other.getTime())
  if (kindOf(one) !== kindOf(other)) return false
  const [some, others] = [new Map(fieldsOf(one)), new Map(fieldsOf(other))]
  return (
    some.size === others.size && [...some].every(([key, field]) => others.has(key) && isSame(field, others.get(key)))
  )
}

const kindOf = (value: object): string => Object.prototype.toString.call(value)

const fieldsOf = (value: object): ReadonlyArray<readonly [string, unknown]> =>
  Array.isArray(value)
    ? Array.from(value, (item, index) => [String(index), item] as const)
    : Object.entries(value).filter(([, field]) => field !== undefined)

/** An equal value, with another order of keys. */
const copy = (value: unknown): unknown => {
  if (typeof value !== "object" || value === null) return value
  if (value instanceof Date) return new Date(value)
  if (value instanceof Uint8Array) return new Uint8Array(value)
  return Array.isArray(value)
    ? Array.from(value, copy)
    : Object.fromEntries(
        fieldsOf(value)
          .map(([key, field]) => [key, copy(field)] as const)
          .reverse()
      )
}

it.effect("a command whose schema has changed is compared by its tag alone", () =>
  Effect.gen(function* () {
    const Old = taking({ amount: Schema.Number })
    const New = taking({
      amount: Schema.Number,
      currency: Schema.optionalWith(Schema.String, { default: () => "EUR" })
    })
    expect(yield* isRepeated([Old, { amount: 1 }], [New, { amount: 1, currency: "EUR" }])).toBe(true)
    expect(yield* isRepeated([New, { amount: 1, currency: "EUR" }], [New, { amount: 1, currency: "USD" }])).toBe(false)
  })
)

it.effect("a command with an id that its schema can't encode is a ValidationError that names the field", () =>
  Effect.gen(function* () {
    const Typed = taking({ amount: Schema.Number, at: Schema.Date })
    class Custom {
      readonly x = 1
    }
    const cyclic: Record<string, unknown> = {}
    cyclic.self = cyclic
    for (const [aggregate, fields, path] of [
      [Typed, { amount: "1", at: new Date(0) }, ["amount"]],
      [Typed, { amount: 1, at: new Date(Number.NaN) }, ["at"]],
      [Anything, { value: () => 1 }, ["value"]],
      [Anything, { value: [{ deep: new Custom() }] }, ["value", 0, "deep"]],
      [Anything, { value: cyclic }, ["value", "self"]],
      [Anything, { value: new Map([[1, 2]]) }, ["value"]],
      [Anything, { value: [new Set([1])] }, ["value", 0]],
      [Anything, { value: { [Symbol("s")]: 1 } }, ["value"]]
    ] as const) {
      const error = yield* Effect.flip(note(aggregate, fields))
      expect(error).toMatchObject({ _tag: "ValidationError", operation: "Notes.evaluate", issues: [{ path }] })
      expect(error.message).toContain("can't be encoded, as a command with an id must be")
      const services = yield* Layer.build(aggregate.layer)
      yield* aggregate.evaluate("b", { _tag: "Note", ...fields } as const).pipe(Effect.provide(services))
    }
  }).pipe(Effect.scoped, Effect.provide(MemoryStore.layer))
)

it.effect("every value as a command, or in one, has a digest or is a ValidationError", () =>
  everyCase({ runs: inject("runs"), seed: undefined }, anyValue, ({ make }) =>
    Effect.gen(function* () {
      const [whole, field] = [make() as Note, make()]
      for (const digesting of [digestOfAnything(whole), digest(field)]) {
        const [first, second] = [yield* Effect.either(digesting), yield* Effect.either(digesting)]
        if (Either.isRight(first)) expect(second).toEqual(first)
        else expect(first.left).toMatchObject({ _tag: "ValidationError", operation: "Notes.evaluate" })
      }
    })
  )
)

it.effect("a large command has a digest, and a list of four billion holes is refused immediately", () =>
  Effect.gen(function* () {
    expect(yield* digest("x".repeat(5_000_000))).toMatchObject({ type: "Note" })
    expect(yield* digest(Arr.makeBy(100_000, (index) => ({ index })))).toMatchObject({ type: "Note" })
    expect((yield* Effect.flip(digest(new Array(2 ** 32 - 1)))).message).toContain("more than 1000000 values")
  })
)

const amounts = (id: string) =>
  Effect.flatMap(StoreAdapter.StoreAdapter, (store) =>
    Effect.map(store.getEvents(Account.streamId(id), 1), (events) => events.map(({ body }) => Number(body.amount)))
  )
