/** The state that a command returns is the state that is loaded, for any JSON, on every store and by every read. */

import { mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as FastCheck from "effect/FastCheck"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { Aggregate, MemoryStore, SqlStore, StoreAdapter } from "effect-maestro"
import * as FileStore from "../examples/custom-adapter/FileStore.js"
import { jsonObject } from "../src/internal/contract/awkward.js"
import { event, everyCase, expectExactly, newId } from "../src/internal/contract/case.js"
import { layerPg, layerPglite } from "./database.js"

class Noted extends Schema.TaggedClass<Noted>()("Noted", {
  value: Schema.Record({ key: Schema.String, value: Schema.Unknown })
}) {}
class Note extends Schema.TaggedClass<Note>()("Note", {
  value: Schema.Record({ key: Schema.String, value: Schema.Unknown })
}) {}

const Notes = Aggregate.make("Notes", {
  state: Schema.Struct({
    last: Schema.Record({ key: Schema.String, value: Schema.Unknown }),
    all: Schema.Array(Schema.Unknown)
  }),
  initialState: { last: {}, all: [] },
  events: Noted,
  commands: Note,
  decide: { Note: ({ value }) => Effect.succeed([new Noted({ value })]) },
  evolve: { Noted: ({ all }, { value }) => ({ last: value, all: [...all, value] }) },
  snapshotEvery: 2
})

const makeFolder = Effect.acquireRelease(
  Effect.promise(() => mkdtemp(join(tmpdir(), "maestro-json-"))),
  (folder) => Effect.promise(() => rm(folder, { recursive: true, force: true }))
)

const sqlStore = Layer.provideMerge(SqlStore.layer, layerPg({ maxConnections: 4 }))

const stores: Readonly<Record<string, Layer.Layer<StoreAdapter.StoreAdapter, unknown>>> = {
  memory: MemoryStore.layer,
  PGlite: Layer.provide(SqlStore.layer, layerPglite),
  Postgres: sqlStore,
  files: Layer.unwrapScoped(Effect.map(makeFolder, FileStore.layer))
}

/** Another instance of the aggregate, with an empty state cache. */
const elsewhere = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.provide(effect, Layer.fresh(Notes.layer))

/** The constructor of a `Schema.Class` drops the key `__proto__` of a record before the library sees it. */
const ofClasses = jsonObject.filter((value) => !JSON.stringify(value).includes('"__proto__"'))

for (const [name, layer] of Object.entries(stores)) {
  it.layer(layer, { timeout: 60_000 })(name, (it) => {
    it.effect("the state that a command returns is the state that is loaded, from events and from a snapshot", () =>
      everyCase({ runs: 30, seed: undefined }, FastCheck.array(ofClasses, { minLength: 1, maxLength: 3 }), (values) =>
        Effect.gen(function* () {
          const id = newId()
          let answered: unknown
          for (const value of values) answered = (yield* Notes.evaluate(id, new Note({ value }))).state
          expectExactly(answered, { last: values.at(-1), all: values })
          expectExactly(yield* elsewhere(Notes.fetch(id)), answered)
          expectExactly(yield* elsewhere(Notes.replay(id, values.length)), answered)
          expectExactly(yield* elsewhere(Notes.replay(id, 1)), { last: values[0], all: values.slice(0, 1) })
        }).pipe(elsewhere)
      )
    )

    it.effect("any JSON is loaded as it was committed when a stream is read page by page", () =>
      everyCase({ runs: 3, seed: undefined }, FastCheck.array(ofClasses, { minLength: 1, maxLength: 20 }), (values) =>
        Effect.gen(function* () {
          const store = yield* StoreAdapter.StoreAdapter
          const id = newId()
          const all = Arr.makeBy(1200, (index) => values[index % values.length])
          yield* store.commitEvents(
            yield* Effect.forEach(all, (value, index) =>
              event(Notes.streamId(id), index + 1, { type: "Noted", body: { value } })
            )
          )
          expectExactly(yield* elsewhere(Notes.fetch(id)), { last: all.at(-1), all })
        })
      )
    )
  })
}

class Closed extends Schema.TaggedClass<Closed>()("Closed", {
  reason: Schema.optional(Schema.String),
  details: Schema.Unknown
}) {}
class Close extends Schema.TaggedClass<Close>()("Close", {
  reason: Schema.optional(Schema.String),
  details: Schema.Unknown
}) {}

const Shop = Aggregate.make("Shop", {
  state: Schema.Struct({ reason: Schema.optional(Schema.String), details: Schema.Unknown }),
  initialState: { details: null },
  events: Closed,
  commands: Close,
  decide: { Close: ({ details, reason }) => Effect.succeed([new Closed({ reason, details })]) },
  evolve: { Closed: (_, { details, reason }) => ({ reason, details }) },
  snapshotEvery: 1
})

const Labelled = Schema.TaggedStruct("Labelled", {
  labels: Schema.Record({ key: Schema.String, value: Schema.Unknown })
})

const Labels = Aggregate.make("Labels", {
  state: Schema.Record({ key: Schema.String, value: Schema.Unknown }),
  initialState: {},
  events: Labelled,
  commands: Labelled,
  decide: { Labelled: (command) => Effect.succeed([command]) },
  evolve: { Labelled: (_, { labels }) => labels },
  snapshotEvery: 1
})

it.effect("the key __proto__ of a record is kept in events and states", () =>
  Effect.gen(function* () {
    const labels: Record<string, unknown> = JSON.parse('{"__proto__": {"a": 1}, "b": 2}')
    const id = newId()
    const { state } = yield* Labels.evaluate(id, { _tag: "Labelled", labels })
    expectExactly(state, labels)
    expectExactly(yield* Effect.provide(Labels.fetch(id), Layer.fresh(Labels.layer)), labels)
    expectExactly(yield* Effect.provide(Labels.replay(id, 1), Layer.fresh(Labels.layer)), labels)
  }).pipe(Effect.provide(Layer.provideMerge(Labels.layer, MemoryStore.layer)))
)

it.effect("a command whose schema would lose the key __proto__ is refused", () =>
  Effect.gen(function* () {
    const labels = Schema.Record({ key: Schema.NonEmptyString, value: Schema.Unknown })
    const Tagged = Schema.TaggedStruct("Tagged", { labels })
    const Strict = Aggregate.make("Strict", {
      state: labels,
      initialState: {},
      events: Tagged,
      commands: Tagged,
      decide: { Tagged: (command) => Effect.succeed([command]) },
      evolve: { Tagged: (_, event) => event.labels }
    })
    const command = { _tag: "Tagged" as const, labels: JSON.parse('{"__proto__": {"a": 1}, "b": 2}') }
    yield* Effect.gen(function* () {
      for (const evaluating of [Strict.evaluate(newId(), command), Strict.evaluateUnknown(newId(), command)]) {
        const refused = yield* Effect.flip(evaluating)
        expect(refused).toMatchObject({ _tag: "ValidationError" })
        expect(String(refused)).toContain('lose the key "__proto__"')
      }
    }).pipe(Effect.provide(Strict.layer))
  }).pipe(Effect.provide(MemoryStore.layer))
)

it.effect("metadata that is undefined is left out of events, as JSON leaves it out", () =>
  Effect.gen(function* () {
    const store = yield* StoreAdapter.StoreAdapter
    const id = newId()
    const metadata = { userId: undefined, request: { trace: undefined, id: 1 } }
    yield* Effect.provideService(Shop.evaluate(id, new Close({ details: null })), Aggregate.Metadata, metadata)
    expectExactly((yield* store.getEvents(Shop.streamId(id), 1))[0]?.metadata, { request: { id: 1 } })
    // The port refuses `undefined`.
    const [event] = yield* store.getEvents(Shop.streamId(id), 1)
    if (event === undefined) return yield* Effect.dieMessage("the event is missing")
    const again = { ...event, sequence: 2, metadata }
    expect(yield* Effect.flip(store.commitEvents([again]))).toMatchObject({ _tag: "ValidationError" })
  }).pipe(Effect.provide(Layer.provideMerge(Shop.layer, MemoryStore.layer)))
)

for (const [what, evaluate] of Object.entries({
  metadata: (value: unknown) =>
    Effect.provideService(Notes.evaluate(newId(), new Note({ value: {} })), Aggregate.Metadata, { value }),
  "an event": (value: unknown) => Notes.evaluate(newId(), new Note({ value: { value } }))
})) {
  it.effect(`a list of four billion holes in ${what} is a ValidationError, and few of its items are read`, () =>
    Effect.gen(function* () {
      let reads = 0
      const list = new Proxy(Object.assign([], { length: 2 ** 32 - 1 }), {
        get: (target, key) => {
          if (typeof key === "string" && /^\d+$/.test(key) && ++reads > 100_000) throw new Error("too many reads")
          return Reflect.get(target, key)
        }
      })
      expect(yield* Effect.flip(evaluate(list))).toMatchObject({ _tag: "ValidationError" })
      expect(reads).toBeLessThan(100_000)
    }).pipe(Effect.provide(Layer.provideMerge(Notes.layer, MemoryStore.layer)))
  )
}

it.effect("evaluateUnknown of a value that is no command names the tags of commands", () =>
  Effect.gen(function* () {
    const issueOf = (input: unknown) =>
      Effect.map(Effect.flip(Shop.evaluateUnknown(newId(), input)), (error) =>
        error._tag === "ValidationError" ? error.issues : error
      )
    const message = "must be a command: an object with `_tag` one of Close"
    for (const input of ["hi", 1, null, undefined]) {
      expect(yield* issueOf(input)).toMatchObject([{ path: [], message }])
    }
    expect(yield* issueOf({ details: 1 })).toMatchObject([{ path: ["_tag"], message }])
    expect(yield* issueOf({ _tag: "Open" })).toMatchObject([{ path: ["_tag"], message: `${message}, and is "Open"` }])
  }).pipe(Effect.provide(Layer.provideMerge(Shop.layer, MemoryStore.layer)))
)

it.effect("a field that is undefined is left out of events and snapshots, as JSON leaves it out", () =>
  Effect.gen(function* () {
    const store = yield* StoreAdapter.StoreAdapter
    const id = newId()
    const details = { a: undefined, list: [{ b: undefined, c: 1 }] }
    const { state } = yield* Shop.evaluate(id, new Close({ reason: undefined, details }))
    expect(state).toEqual({ details: { list: [{ c: 1 }] } })
    expectExactly((yield* store.getEvents(Shop.streamId(id), 1))[0]?.body, { details: { list: [{ c: 1 }] } })
    expectExactly(Option.getOrThrow(yield* store.getSnapshot(Shop.streamId(id), 1)).body, {
      state: { details: { list: [{ c: 1 }] } }
    })
    expect(yield* Effect.provide(Shop.fetch(id), Layer.fresh(Shop.layer))).toEqual(state)
    // JSON would make the item null.
    const refused = yield* Effect.flip(Shop.evaluate(id, new Close({ details: [undefined] })))
    expect(refused).toMatchObject({ _tag: "ValidationError" })
  }).pipe(Effect.provide(Layer.provideMerge(Shop.layer, MemoryStore.layer)))
)

it.layer(sqlStore, { timeout: 60_000 })("SqlStore", (it) => {
  it.effect("JSON is stored as the text that was written, so an accepted value is short enough to be read", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter.StoreAdapter
      const sql = yield* SqlClient.SqlClient
      const value = Arr.makeBy(1000, () => 1e308)
      const [id, body] = [newId(), { value }]
      const text = JSON.stringify(body)
      const one = yield* event(id, 1, { body, metadata: body })
      yield* store.commitEvents([one])
      yield* store.commitSnapshot(one)
      const rows = yield* sql`
        select body::text, metadata::text from maestro.event_log where aggregate_id = ${id}
        union all select body::text, metadata::text from maestro.snapshots where aggregate_id = ${id}`
      expect(rows).toEqual([
        { body: text, metadata: text },
        { body: text, metadata: text }
      ])
      const snapshot = Option.getOrUndefined(yield* store.getSnapshot(id, 1))
      for (const read of [...(yield* store.getEvents(id, 1)), snapshot]) expectExactly(read?.body, body)
    })
  )
})
