/** What is answered is what is loaded, for any JSON, on every store and by every way of reading. */

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

/** Another instance of the aggregate, which has kept nothing. */
const elsewhere = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.provide(effect, Layer.fresh(Notes.layer))

/** The constructor of a `Schema.Class` drops the key `__proto__` of a record before the library sees it. */
const ofClasses = jsonObject.filter((value) => !JSON.stringify(value).includes('"__proto__"'))

for (const [name, layer] of Object.entries(stores)) {
  it.layer(layer, { timeout: 60_000 })(name, (it) => {
    it.effect(
      "the state that a command is answered with is the one that is loaded, from events and from a snapshot",
      () =>
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

    it.effect("any JSON is loaded as it was committed where a stream is read page by page", () =>
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
    // JSON would make it null.
    const refused = yield* Effect.flip(Shop.evaluate(id, new Close({ details: [undefined] })))
    expect(refused).toMatchObject({ _tag: "ValidationError" })
  }).pipe(Effect.provide(Layer.provideMerge(Shop.layer, MemoryStore.layer)))
)

it.layer(sqlStore, { timeout: 60_000 })("SqlStore", (it) => {
  it.effect("keeps JSON as the text that was written, so that what is accepted is short enough to be read", () =>
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
