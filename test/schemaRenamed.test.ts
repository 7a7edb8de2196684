/** A schema of the store that was renamed or copied: its functions work on its own tables, or the layer says that they do not. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { SqlStore, StoreAdapter } from "effect-maestro"
import { inject } from "vitest"
import { layerEmptyPg, uniqueName } from "./database.js"
import { event, newId } from "./subscribers.js"

const storeIn = (schema: string, options?: { readonly migrate: boolean }) =>
  Effect.flatMap(StoreAdapter.StoreAdapter, Effect.succeed).pipe(
    Effect.provide(Layer.fresh(SqlStore.layerWith({ schema, ...options })))
  )

/** Commits an event of a new aggregate, and returns its id. */
const commitIn = (schema: string) =>
  Effect.gen(function* () {
    const id = newId("a")
    const [store, one] = [yield* SqlStore.make({ schema }), yield* event(id, 1)]
    yield* store.commitEvents([one])
    expect(yield* store.getEvents(id, 1)).toEqual([one])
    return id
  })

const idsIn = (schema: string) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    Effect.map(sql<{ id: string }>`select aggregate_id as id from ${sql(schema)}.event_log order by position`, (rows) =>
      rows.map(({ id }) => id)
    )
  )

layer(layerEmptyPg(), { excludeTestServices: true, timeout: 60_000 })("a schema", (it) => {
  for (const [what, first, second] of [
    ["plain", uniqueName("shop"), uniqueName("tenant")],
    ["quoted", `The "first" ${uniqueName("shop")}`, `A.second, ${uniqueName("tenant")}`]
  ] as const) {
    it.scoped(`that was renamed (${what} names) keeps its log, and a new one of the old name has its own`, () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const quoted = (name: string) => sql.literal(`"${name.replaceAll('"', '""')}"`)
        const logOf = (name: string) =>
          Effect.map(sql<{ id: string }>`select aggregate_id as id from ${quoted(name)}.event_log`, (rows) =>
            rows.map(({ id }) => id).sort()
          )
        const before = yield* commitIn(first)
        yield* sql`alter schema ${quoted(first)} rename to ${quoted(second)}`
        const inFirst = yield* commitIn(first)
        expect(yield* Effect.flip(storeIn(second, { migrate: false }))).toMatchObject({
          _tag: "StoreError",
          reason: "Misconfigured",
          description: expect.stringContaining("SqlStore.migrate")
        })
        const inSecond = yield* commitIn(second)
        expect(yield* logOf(first)).toEqual([inFirst])
        expect(yield* logOf(second)).toEqual([before, inSecond].sort())
        // Now that it is mended, a layer that may not migrate works, too.
        const store = yield* storeIn(second, { migrate: false })
        expect(yield* store.getEvents(before, 1)).toHaveLength(1)
        expect(yield* store.getEvents(inFirst, 1)).toEqual([])
      })
    )
  }

  it.scoped("whose names were swapped with another one's by three renames keeps its log", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const [a, b, aside] = [uniqueName("a"), uniqueName("b"), uniqueName("aside")]
      const [ofA, ofB] = [yield* commitIn(a), yield* commitIn(b)]
      for (const [from, to] of [
        [a, aside],
        [b, a],
        [aside, b]
      ] as const) {
        yield* sql`alter schema ${sql(from)} rename to ${sql(to)}`
      }
      const [nowA, nowB] = [yield* commitIn(a), yield* commitIn(b)]
      expect(yield* idsIn(a)).toEqual([ofB, nowA])
      expect(yield* idsIn(b)).toEqual([ofA, nowB])
    })
  )

  it.scoped("that was copied with the functions of its model gets functions of its own", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const [model, copy] = [uniqueName("model"), uniqueName("copy")]
      const ofModel = yield* commitIn(model)
      yield* sql`create schema ${sql(copy)}`
      const counter = inject("feedOrder") === "counter" ? ["feed_counter"] : []
      const tables = ["migrations", "event_log", "snapshots", "subscriptions", "parked_events", "rebuilds", ...counter]
      for (const table of tables) {
        yield* sql`create table ${sql(copy)}.${sql(table)} (like ${sql(model)}.${sql(table)} including all)`
      }
      for (const table of ["migrations", ...counter]) {
        yield* sql`insert into ${sql(copy)}.${sql(table)} select * from ${sql(model)}.${sql(table)}`
      }
      // As tools do that copy a schema: the functions by their definitions, with the name of the schema replaced where they are made.
      const definitions = yield* sql<{ text: string }>`select replace(
          pg_get_functiondef(p.oid), 'FUNCTION ' || n.nspname || '.', 'FUNCTION ' || ${copy} || '.') as text
        from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname = ${model}`
      for (const { text } of definitions) yield* sql.unsafe(text)
      expect(yield* Effect.flip(storeIn(copy, { migrate: false }))).toMatchObject({ reason: "Misconfigured" })
      const ofCopy = yield* commitIn(copy)
      expect(yield* idsIn(copy)).toEqual([ofCopy])
      expect(yield* idsIn(model)).toEqual([ofModel])
      // Without functions, as where only the tables were copied.
      yield* sql`drop function ${sql(copy)}.read_page`
      expect(yield* Effect.flip(storeIn(copy, { migrate: false }))).toMatchObject({ reason: "Misconfigured" })
      yield* SqlStore.migrate({ schema: copy })
      yield* storeIn(copy, { migrate: false })
    })
  )
})
