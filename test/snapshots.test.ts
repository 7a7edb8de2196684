/** A snapshot that can't be trusted is ignored, and the events are replayed. */

import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as ParseResult from "effect/ParseResult"
import * as Schema from "effect/Schema"
import { Aggregate, MemoryStore, type Snapshot, SqlStore, StoreAdapter } from "effect-maestro"
import { fingerprint } from "../src/internal/codec/fingerprint.js"
import { Account, Deposit, type Deposited, definition, Limits } from "./account.js"
import { layerPglite } from "./database.js"

const sqlStore = Layer.provideMerge(SqlStore.layer, layerPglite)

/** The warnings that are logged while the effect runs. */
const warningsOf = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const said: Array<string> = []
    const logger = Logger.make(({ message }) => void said.push(String(message)))
    return Effect.map(Effect.provide(effect, Logger.replace(Logger.defaultLogger, logger)), (result) => ({
      result,
      said
    }))
  })

const elsewhere = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.provide(effect, Layer.fresh(Account.layer))

it.layer(sqlStore, { timeout: 60_000 })("a damaged snapshot", (it) => {
  for (const [what, change] of [
    ["whose metadata is null", "metadata = 'null'"],
    ["whose metadata is a list", "metadata = '[]'"],
    ["whose body is null", "body = 'null'"],
    ["whose body is another one's", `body = '{"state": {"balance": "six"}}'`],
    ["from beyond the last event", "sequence = 50"],
    ["of another event of its sequence", "timestamp = '00000000-0000-7000-8000-000000000000'"]
  ] as const) {
    it.effect(`${what} is ignored, and commands and reads succeed`, () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const id = yield* Account.newId
        for (const amount of [1, 2, 3]) yield* Account.evaluate(id, new Deposit({ amount }))
        yield* Account.snapshot(id)
        yield* sql.unsafe(`update maestro.snapshots set ${change} where aggregate_id = 'Account/${id}'`)
        const { result, said } = yield* warningsOf(elsewhere(Account.fetch(id)))
        expect(result).toEqual({ owner: null, balance: 6 })
        expect(said.join()).toContain(`the snapshot of "Account/${id}"`)
        expect(yield* elsewhere(Account.evaluate(id, new Deposit({ amount: 4 })))).toMatchObject({
          sequence: 4,
          state: { balance: 10 }
        })
        expect(yield* elsewhere(Account.replay(id, 4))).toEqual({ owner: null, balance: 10 })
      }).pipe(elsewhere, Effect.provide(Limits.layer))
    )
  }
})

it.effect(
  "snapshot: a new version of the state is stored also at the sequence of the old one, so that loading begins there",
  () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter.StoreAdapter
      const id = yield* Account.newId
      for (const amount of [1, 2]) yield* Account.evaluate(id, new Deposit({ amount }))
      yield* Account.snapshot(id)
      const evolve = {
        ...definition.evolve,
        Deposited: (state: typeof definition.state.Type, event: Deposited) => ({
          ...state,
          balance: state.balance + 2 * event.amount
        })
      }
      const Newer = Aggregate.make("Account", { ...definition, evolve, stateVersion: 2 })
      yield* Effect.provide(Newer.snapshot(id), Newer.layer)
      const stored: Option.Option<Snapshot.Snapshot> = yield* store.getSnapshot(Account.streamId(id), 0)
      expect(Option.getOrThrow(stored)).toMatchObject({
        sequence: 2,
        body: { state: { balance: 6 } },
        metadata: { version: 2 }
      })
    }).pipe(Effect.provide(Account.layer), Effect.provide([MemoryStore.layer, Limits.layer]))
)

interface Tree {
  readonly name: string
  readonly children: ReadonlyArray<Tree>
}

const tree = (name: Schema.Schema<string>) => {
  const recursive: Schema.Schema<Tree> = Schema.suspend(() =>
    Schema.Struct({ name, children: Schema.Array(recursive) })
  )
  return recursive
}

class Named extends Schema.Class<Named>("Node")({
  name: Schema.String,
  next: Schema.suspend((): Schema.Schema<Named | null> => Schema.NullOr(Schema.typeSchema(Named)))
}) {}

class Renamed extends Schema.Class<Renamed>("Node")({
  title: Schema.String,
  next: Schema.suspend((): Schema.Schema<Renamed | null> => Schema.NullOr(Schema.typeSchema(Renamed)))
}) {}

it("fingerprint: schemas of different shapes have different fingerprints, also recursive ones and those without a JSON Schema", () => {
  const widened: Schema.Schema<unknown> = Schema.suspend(() =>
    Schema.Struct({
      name: Schema.String,
      children: Schema.Array(widened),
      size: Schema.optionalWith(Schema.Number, { default: () => 0 })
    })
  ) as Schema.Schema<unknown>
  const endless = (depth: number): Schema.Schema<unknown> =>
    Schema.Struct({
      depth: Schema.Literal(depth),
      next: Schema.suspend(() => endless(depth + 1))
    }) as Schema.Schema<unknown>
  const different: ReadonlyArray<Schema.Schema.Any> = [
    tree(Schema.String),
    tree(Schema.NonEmptyString),
    tree(Schema.String.pipe(Schema.maxLength(5))),
    tree(Schema.String.pipe(Schema.maxLength(6))),
    widened,
    Schema.NullOr(tree(Schema.String)),
    Named,
    Renamed,
    Schema.Struct({ a: Schema.BigIntFromSelf }),
    Schema.Struct({ a: Schema.optional(Schema.BigIntFromSelf) }),
    Schema.Struct({ a: Schema.BigInt }),
    Schema.Struct({ a: Schema.Literal("1") }),
    Schema.Struct({ a: Schema.Literal(1) }),
    Schema.Struct({ a: Schema.Map({ key: Schema.String, value: Schema.Number }) }),
    Schema.Struct({ a: Schema.Map({ key: Schema.String, value: Schema.String }) }),
    Schema.Struct({ a: Schema.Tuple(Schema.String) }),
    Schema.Struct({ a: Schema.Array(Schema.String) }),
    Schema.Struct({ a: Schema.Record({ key: Schema.String, value: Schema.String }) }),
    endless(0)
  ]
  expect(new Set(different.map(fingerprint)).size).toBe(different.length)
  for (const make of [() => tree(Schema.String), () => Schema.Struct({ at: Schema.Date }), () => endless(0)]) {
    expect(fingerprint(make())).toBe(fingerprint(make()))
  }
})

it("fingerprint: schemas with another transformation, filter, declaration or annotation have different fingerprints", () => {
  const filtered = (annotations: Schema.Annotations.Filter<string>) =>
    Schema.String.pipe(Schema.filter(() => true, annotations))
  const coded = (annotations: Schema.Annotations.Schema<number>) =>
    Schema.transform(Schema.Number, Schema.Number, { decode: (x) => x, encode: (x) => x }).annotations(annotations)
  const setting = Symbol.for("setting")
  const set = (value: unknown) => Schema.String.annotations({ [setting]: value })
  const cyclic: Record<string, unknown> = {}
  cyclic.self = cyclic
  const fallback = (value: string) => Schema.String.annotations({ decodingFallback: () => ParseResult.succeed(value) })
  const declared = (accepts: (u: unknown) => u is string, identifier: string) => Schema.declare(accepts, { identifier })
  const isText = (u: unknown): u is string => typeof u === "string"
  const characters = [..."!?@ABCDEabcde01234]^_"]
  const groups: ReadonlyArray<ReadonlyArray<Schema.Schema.Any>> = [
    [Schema.String, Schema.StringFromHex, Schema.StringFromBase64, Schema.StringFromBase64Url],
    [Schema.Uint8ArrayFromHex, Schema.Uint8ArrayFromBase64, Schema.Uint8Array],
    [Schema.Date, Schema.DateFromNumber, Schema.DateFromSelf, Schema.ValidDateFromSelf],
    [Schema.Trim, Schema.Lowercase, Schema.Uppercase, Schema.Capitalize, Schema.Uncapitalize],
    [coded({}), coded({ identifier: "Cents" }), coded({ title: "Cents" }), coded({ description: "Cents" })],
    [coded({ jsonSchema: { a: 1 } }), coded({ jsonSchema: { a: 2 } }), coded({ jsonSchema: { b: 1 } })],
    [Schema.compose(Schema.Number, Schema.Number), coded({})],
    [
      Schema.transformOrFail(Schema.Number, Schema.Number, {
        decode: (x) => ParseResult.succeed(x + 1),
        encode: (x) => ParseResult.succeed(x - 1)
      }),
      Schema.transformOrFail(Schema.Number, Schema.Number, {
        decode: (x) => ParseResult.succeed(x + 1),
        encode: (x) => ParseResult.succeed(x - 2)
      })
    ],
    [filtered({}), filtered({ description: "x" }), filtered({ schemaId: Symbol.for("x") }), filtered({ title: "x" })],
    [declared(isText, "A"), declared(isText, "B")],
    [
      Schema.String,
      fallback(""),
      set(1),
      set("1"),
      set(1n),
      set([1]),
      set({ a: 1 }),
      set({ a: { a: 1 } }),
      set(cyclic)
    ],
    [Schema.Struct({ a: set(1) }), Schema.Struct({ a: set(2) })],
    [
      Schema.Struct({ a: Schema.propertySignature(Schema.String).annotations({ title: "x" }) }),
      Schema.Struct({ a: Schema.propertySignature(Schema.String).annotations({ title: "y" }) })
    ],
    [Schema.Tuple(Schema.element(Schema.String).annotations({ title: "x" })), Schema.Tuple(Schema.String)],
    [
      Schema.suspend(() => Schema.String).annotations({ title: "x" }),
      Schema.suspend(() => Schema.String).annotations({ title: "y" })
    ],
    [
      Schema.Struct({ a: Schema.propertySignature(Schema.String).pipe(Schema.fromKey("b")) }),
      Schema.Struct({ a: Schema.propertySignature(Schema.String).pipe(Schema.fromKey("c")) })
    ],
    [Schema.TemplateLiteral("a", Schema.String), Schema.TemplateLiteral("a", Schema.Number)],
    // Many of these texts have equal `Hash.string` values.
    characters.flatMap((one) => characters.map((other) => Schema.Literal(`${one}${other}`)))
  ]
  for (const [index, group] of groups.entries()) {
    const inPlaces = group.flatMap((schema) => [schema, Schema.Struct({ a: schema }), Schema.Array(schema)])
    expect(new Set(inPlaces.map(fingerprint)).size, `group ${index}`).toBe(inPlaces.length)
  }
  // An annotation for messages or generators changes nothing.
  expect(fingerprint(Schema.String.annotations({ message: () => "no", examples: ["a"], documentation: "x" }))).toBe(
    fingerprint(Schema.String)
  )
})

it.effect("a snapshot of a state whose schema has another encoding now is ignored", () =>
  Effect.gen(function* () {
    const spelled = (s: Schema.Schema<string>) =>
      Aggregate.make("Spelled", {
        state: Schema.Struct({ s }),
        initialState: { s: "" },
        events: Spelled,
        commands: Spelled,
        decide: { Spelled: (command: Spelled) => Effect.succeed([command]) },
        evolve: { Spelled: ({ s }: { readonly s: string }) => ({ s: `${s}A` }) }
      })
    const [Old, New] = [spelled(Schema.StringFromHex), spelled(Schema.StringFromBase64)]
    const spell = Effect.provide(Old.evaluate("a", new Spelled()), Old.layer)
    yield* Effect.replicateEffect(spell, 4)
    yield* Effect.provide(Old.snapshot("a"), Old.layer)
    expect(yield* Effect.provide(New.fetch("a"), New.layer)).toEqual({ s: "AAAA" })
  }).pipe(Effect.provide(MemoryStore.layer))
)

class Spelled extends Schema.TaggedClass<Spelled>()("Spelled", {}) {}
