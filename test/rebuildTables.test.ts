/** A rebuild keeps what belongs to a table, and is refused before the first event where it would lose something. */
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import { expect, it, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import { type Event, type Projection, Rebuild, SqlStore, StoreAdapter, Timestamp } from "effect-maestro"
import { layerPg, makeDatabase, uniqueName } from "./database.js"
import { type Case, carried, reader, refused, space, usual, writer } from "./rebuildCases.js"
import { catalogueOf } from "./rebuiltTable.js"

const event: Effect.Effect<Event.Event> = Effect.map(
  Effect.flatMap(Timestamp.HybridClock, ({ now }) => now),
  (timestamp) => ({ timestamp, aggregateId: "a", sequence: 1, type: "Deposited", version: 1, body: {}, metadata: {} })
)

/** A projection that inserts one row. */
const into = (table: string): Projection.Projection.Bound<unknown, SqlClient.SqlClient> => ({
  of: "all",
  name: table,
  project: ({ aggregateId }) =>
    Effect.flatMap(
      SqlClient.SqlClient,
      (sql) =>
        sql`insert into ${sql(table)} (account, amount) values (${aggregateId}, 7) on conflict (account) do nothing`
    )
})

const rebuildOf = (table: string) => ({ name: table, projections: [into(table)], tables: [table] as const })

/** A database with one event. Two roles and a tablespace exist as long as the layer. */
const onPostgres = Layer.scopedDiscard(
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    yield* Effect.acquireRelease(
      Effect.gen(function* () {
        for (const role of [reader, writer]) yield* sql`create role ${sql(role)}`
        yield* sql`grant usage, create on schema public to ${sql(writer)}`
        yield* sql`create table other (x int)`
        yield* Effect.scoped(
          Effect.flatMap(sql.reserve, (connection) =>
            Effect.forEach(
              [
                "set allow_in_place_tablespaces = true",
                `create tablespace ${space} location ''`,
                "reset allow_in_place_tablespaces"
              ],
              (statement) => connection.executeRaw(statement, [])
            )
          )
        )
      }),
      () =>
        Effect.gen(function* () {
          yield* sql`drop schema public cascade`
          for (const role of [reader, writer]) {
            yield* sql`drop owned by ${sql(role)}`
            yield* sql`drop role ${sql(role)}`
          }
          yield* sql`drop tablespace ${sql(space)}`
        }).pipe(Effect.orDie)
    )
    yield* Effect.flatMap(StoreAdapter.StoreAdapter, (store) =>
      Effect.flatMap(event, (one) => store.commitEvents([one]))
    )
  })
).pipe(Layer.provideMerge(SqlStore.layer), Layer.provideMerge(layerPg()))

layer(onPostgres, { excludeTestServices: true, timeout: 60_000 })("a rebuilt table", (it) => {
  /** Runs the statements of a case on a table of that name. */
  const arrange = (name: string, { statements = [], table = usual }: Case) =>
    Effect.flatMap(SqlClient.SqlClient, (sql) =>
      Effect.forEach([table, ...statements], (statement) => sql.unsafe(named(name, statement)), { discard: true })
    )
  const cleanUp = (name: string, { after = [] }: Case) =>
    Effect.flatMap(SqlClient.SqlClient, (sql) =>
      Effect.gen(function* () {
        const [last, first] = [after.filter((text) => /access method|domain|type/.test(text)), after]
        for (const statement of first) if (!last.includes(statement)) yield* sql.unsafe(named(name, statement))
        yield* sql`drop table if exists ${sql(name)} cascade`
        for (const statement of last) yield* sql.unsafe(named(name, statement))
      })
    )
  const named = (name: string, text: string): string => text.replaceAll(/\bT(?=\b|_)/g, name)

  for (const [index, [what, one]] of Object.entries(carried).entries()) {
    it.effect(`keeps ${what}`, () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const name = `carried_${index}`
        yield* arrange(name, one)
        yield* sql`insert into ${sql(name)} (account, amount) values ('a', 7)`
        const before = yield* catalogueOf(name)
        expect(yield* Rebuild.run(rebuildOf(name))).toBe(1)
        expect(yield* catalogueOf(name)).toEqual(before)
        expect(yield* sql`select account, amount from ${sql(name)}`).toEqual([{ account: "a", amount: 7 }])
        yield* cleanUp(name, one)
      })
    )
  }

  for (const [index, [what, one]] of Object.entries(refused).entries()) {
    it.effect(`is refused by name: ${what}`, () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const name = `refused_${index}`
        yield* arrange(name, one)
        const before = yield* catalogueOf(name)
        const error = yield* Effect.flip(Rebuild.run(rebuildOf(name)))
        expect(error).toMatchObject({ _tag: "StoreError", reason: "Misconfigured" })
        expect(`${error}`).toContain(named(name, one.names))
        expect(yield* catalogueOf(name)).toEqual(before)
        expect(yield* Rebuild.status(name)).toEqual(Option.none())
        expect(yield* sql`select nspname from pg_namespace where nspname like 'rebuild%'`).toEqual([])
        yield* cleanUp(name, one)
      })
    )
  }

  it.effect(
    "an object that depends on the table since the rebuild began refuses the swap, and the next run continues",
    () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const name = "meanwhile"
        yield* arrange(name, {})
        yield* sql`insert into meanwhile (account, amount) values ('old', 1)`
        const before = yield* catalogueOf(name)
        const onProgress = () => Effect.orDie(sql`create or replace view late as select account from public.meanwhile`)
        const error = yield* Effect.flip(Rebuild.run({ ...rebuildOf(name), onProgress }))
        expect(error).toMatchObject({ _tag: "StoreError", reason: "Misconfigured" })
        expect(`${error}`).toContain("view public.late")
        expect(yield* sql`select account from meanwhile`).toEqual([{ account: "old" }])
        expect(yield* Rebuild.status(name)).toEqual(Option.some({ done: 1, total: 1, finished: false }))
        yield* sql`drop view late`
        // Rights and comments that are new since the rebuild began are kept.
        yield* sql`grant insert on meanwhile to ${sql(reader)}`
        yield* sql`comment on table meanwhile is 'new'`
        const changed = yield* catalogueOf(name)
        expect(yield* Rebuild.run(rebuildOf(name))).toBe(0)
        expect(yield* catalogueOf(name)).toEqual(changed)
        expect(changed).not.toEqual(before)
        expect(yield* sql`select account from meanwhile`).toEqual([{ account: "a" }])
      })
  )

  it.effect("leaves out the option that PGlite sets on each column, and keeps the others", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* arrange("embedded", { statements: ["alter table T alter account set (n_distinct = 9)"] })
      const { columns } = yield* catalogueOf("embedded")
      yield* sql`update pg_attribute set attoptions = array['pg_attver=1'] || attoptions
        where attrelid = 'embedded'::regclass and attnum > 0`
      expect(yield* catalogueOf("embedded")).not.toMatchObject({ columns })
      yield* Rebuild.run(rebuildOf("embedded"))
      expect(yield* catalogueOf("embedded")).toMatchObject({ columns })
    })
  )

  it.effect("a column that was added since the rebuild began refuses the swap by name", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* arrange("widened", {})
      const onProgress = () => Effect.orDie(sql`alter table public.widened add column if not exists note text`)
      const error = yield* Effect.flip(Rebuild.run({ ...rebuildOf("widened"), onProgress }))
      expect(`${error}`).toContain("column note would be lost")
      expect(`${error}`).toContain("abandon")
      yield* Rebuild.abandon("widened")
      yield* Rebuild.run(rebuildOf("widened"))
      expect(yield* sql`select account, note from widened`).toEqual([{ account: "a", note: null }])
    })
  )

  const another = (name: string, ...statements: ReadonlyArray<string>) => ({
    ...rebuildOf(name),
    create: Effect.flatMap(SqlClient.SqlClient, (sql) =>
      Effect.forEach(statements, (statement) => sql.unsafe(named(name, statement)))
    )
  })

  it.effect("keeps owner, rights and row level security where it has another shape", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* arrange("shaped", {
        statements: [
          `grant select (id, account), update (amount) on T to ${reader}`,
          `grant insert on T to ${reader}`,
          "alter table T enable row level security",
          "create policy mine on T using (account = current_user)",
          "alter table T replica identity full",
          "comment on table T is 'shaped'",
          `alter table T owner to ${writer}`
        ]
      })
      const before = yield* catalogueOf("shaped")
      yield* Rebuild.run(
        another(
          "shaped",
          `alter default privileges grant delete on tables to ${reader}`,
          "create table T (account varchar unique, amount bigint)"
        )
      )
      yield* sql.unsafe(`alter default privileges revoke delete on tables from ${reader}`)
      const after = yield* catalogueOf("shaped")
      expect(after.policies).toEqual(["mine | PERMISSIVE | {public} | ALL | ((account)::text = CURRENT_USER)"])
      expect(after.relations?.filter((line) => line.startsWith("table"))).toEqual(
        before.relations?.filter((line) => line.startsWith("table"))
      )
      expect(after.columns?.map((line) => [line.includes(`${reader}=r/`), line.includes(`${reader}=w/`)])).toEqual([
        [true, false],
        [false, true]
      ])
      expect(after.comments).toEqual(["table shaped | shaped"])
      // Row level security of the statements replaces that of the old table.
      yield* Rebuild.abandon("shaped")
      yield* Rebuild.run(
        another(
          "shaped",
          "create table T (account varchar unique, amount bigint)",
          "create policy theirs on T using (false)"
        )
      )
      expect((yield* catalogueOf("shaped")).policies).toEqual(["theirs | PERMISSIVE | {public} | ALL | false"])
    })
  )

  it.effect(
    "is refused in another shape where it can't have a policy of the old one, or where other objects were created",
    () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* arrange("unshaped", {
          statements: ["create policy mine on T using (id > 0)", "create index taken on other (x)"]
        })
        const refusal = (...statements: ReadonlyArray<string>) =>
          Effect.map(Effect.flip(Rebuild.run(another("unshaped", ...statements))), (error) => `${error}`)
        const table = "create table T (account text unique, amount int)"
        expect(yield* refusal(table)).toContain('column "id" does not exist')
        yield* sql`drop policy mine on unshaped`
        expect(
          yield* refusal("create type level as enum ('a')", "create table T (account text unique, amount int, l level)")
        ).toContain("type rebuild_")
        expect(yield* refusal(table, "create index taken on T (amount)")).toContain(
          "names that are taken: index public.taken"
        )
        expect(yield* Rebuild.run(another("unshaped", table))).toBe(1)
      })
  )

  it.effect("may have an array type whose usual name is taken by another table or type", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* sql`create table _arrays (x int)`
      yield* sql`create type _enums as enum ('a')`
      for (const name of ["arrays", "enums"]) {
        yield* arrange(name, {})
        const before = yield* catalogueOf(name)
        expect(yield* Rebuild.run(rebuildOf(name))).toBe(1)
        expect(yield* catalogueOf(name)).toEqual(before)
        expect(yield* sql`select amount from unnest((select array_agg(t) from ${sql(name)} t))`).toEqual([
          { amount: 7 }
        ])
      }
      // One table has the usual name of the other's array type, and both are rebuilt.
      yield* arrange("rows", {})
      yield* arrange("_rows", {})
      const projections = [into("rows"), into("_rows")]
      yield* Rebuild.run({ name: "rows", projections, tables: ["rows", "_rows"] })
      yield* Rebuild.run({ name: "rows again", projections, tables: ["_rows", "rows"] })
      expect(yield* sql`select count(*)::int as count from rows natural join _rows`).toEqual([{ count: 1 }])
      yield* sql`drop table _arrays, arrays, enums, rows, _rows`
      yield* sql`drop type _enums`
    })
  )

  it.effect("foreign keys among the tables are those of the statements that make the new ones", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const made = [
        "create table parents (account text primary key, amount int)",
        "create table children (account text unique references parents, amount int)"
      ]
      for (const statement of made) yield* sql.unsafe(statement)
      const options = {
        name: "family",
        projections: [into("parents"), into("children")],
        tables: ["parents", "children"] as const
      }
      expect(`${yield* Effect.flip(Rebuild.run(options))}`).toContain(
        "constraint children_account_fkey on table public.children"
      )
      yield* Rebuild.run({ ...options, create: Effect.forEach(made, (statement) => sql.unsafe(statement)) })
      expect(
        yield* sql`select conname, confrelid::regclass::text as to from pg_constraint where contype = 'f' and conrelid = 'children'::regclass`
      ).toEqual([{ conname: "children_account_fkey", to: "parents" }])
      expect(yield* sql`select * from children`).toEqual([{ account: "a", amount: 7 }])
    })
  )

  it.effect("tables whose policies and defaults read each other are rebuilt together", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* arrange("ours", {})
      yield* arrange("theirs", {
        table: "create table T (id int default nextval('ours_id_seq'), account text unique, amount int)",
        statements: ["create policy p on T using (exists (select 1 from ours))"]
      })
      yield* sql`create policy p on ours using (exists (select 1 from theirs))`
      const before = [yield* catalogueOf("ours"), yield* catalogueOf("theirs")]
      yield* Rebuild.run({ name: "both", projections: [into("ours"), into("theirs")], tables: ["ours", "theirs"] })
      expect([yield* catalogueOf("ours"), yield* catalogueOf("theirs")]).toEqual(before)
      expect(`${yield* Effect.flip(Rebuild.run(rebuildOf("theirs")))}`).toContain("policy p on table public.ours")
    })
  )

  it.effect("is not rebuilt inside of a transaction", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* arrange("inside", {})
      expect(yield* Effect.flip(sql.withTransaction(Rebuild.run(rebuildOf("inside"))))).toMatchObject({
        _tag: "StoreError",
        reason: "Misconfigured"
      })
    })
  )
})

it.scopedLive(
  "a role that owns the table and is no superuser can rebuild it, and is refused early where its rights are not enough",
  () =>
    Effect.gen(function* () {
      const url = new URL(yield* makeDatabase)
      const admin = PgClient.layer({ url: Redacted.make(url.href), maxConnections: 1 })
      const onServer = (...statements: ReadonlyArray<string>) =>
        Effect.flatMap(SqlClient.SqlClient, (sql) =>
          Effect.forEach(statements, (statement) => sql.unsafe(statement), { discard: true })
        ).pipe(Effect.provide(admin))
      const [owner, group] = [uniqueName("owner"), uniqueName("group")]
      yield* Effect.acquireRelease(
        onServer(
          `create role ${owner} login password 'secret'`,
          `create role ${group}`,
          `grant create on database "${url.pathname.slice(1)}" to ${owner}`,
          `grant create on schema public to ${owner}`
        ),
        () => Effect.orDie(onServer(`drop owned by ${owner}, ${group} cascade`, `drop role ${owner}, ${group}`))
      )
      const own = new URL(url)
      own.username = owner
      own.password = "secret"
      yield* Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* sql`create table owned (id int generated always as identity, account text unique, amount int)`
        yield* sql`alter table owned enable row level security, force row level security`
        yield* sql`create policy mine on owned using (account = 'a')`
        yield* sql`revoke truncate on owned from current_user`
        yield* sql`create statistics s on account, amount from owned`
        const before = yield* catalogueOf("owned")
        yield* Effect.flatMap(StoreAdapter.StoreAdapter, (store) =>
          Effect.flatMap(event, (one) => store.commitEvents([one]))
        )
        expect(yield* Rebuild.run(rebuildOf("owned"))).toBe(1)
        expect({ ...(yield* catalogueOf("owned")), sequences: [] }).toEqual({ ...before, sequences: [] })
        // This role can't make the owner of this table the owner of the new one.
        yield* sql`create table lost (id int generated always as identity, account text unique, amount int)`
        yield* onServer(`alter table lost owner to ${group}`, `grant select on lost to ${owner}`)
        const error = yield* Effect.flip(Rebuild.run(rebuildOf("lost")))
        expect(error).toMatchObject({ _tag: "StoreError", reason: "Misconfigured" })
        expect(`${error}`).toContain(`owner to ${group}`)
      }).pipe(Effect.provide(SqlStore.layer.pipe(Layer.provideMerge(PgClient.layer({ url: Redacted.make(own.href) })))))
    })
)
