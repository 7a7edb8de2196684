/** What hangs on a table is carried over by a rebuild, or refuses it before it begins. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { type Event, type Projection, Rebuild, SqlStore, StoreAdapter, Timestamp } from "effect-maestro"
import { layerPg, uniqueName } from "./database.js"
import { catalogueOf } from "./rebuiltTable.js"

const [reader, writer] = [uniqueName("reader"), uniqueName("writer")]
const space = uniqueName("space")

const usual =
  "create table T (id serial primary key, account text not null constraint T_account unique, amount int not null default 0)"

interface Case {
  /** Makes the table, where it is another than the usual one. */
  readonly table?: string
  /** What is done to it, with `T` for its name. */
  readonly statements?: ReadonlyArray<string>
  /** Takes back what is not dropped with the table. */
  readonly after?: ReadonlyArray<string>
}

/** What belongs to the table itself. */
const carried: Record<string, Case> = {
  nothing: {},
  owner: { statements: [`alter table T owner to ${writer}`] },
  "rights of a role": {
    statements: [`grant select, insert on T to ${reader} with grant option`, `grant truncate on T to public`]
  },
  "rights that the owner has revoked from itself": { statements: ["revoke delete, truncate on T from current_user"] },
  "rights that default privileges give, and that are revoked": {
    table: `alter default privileges grant all on tables to ${reader}; ${usual}`,
    statements: [`revoke all on T from ${reader}`, `grant insert on T to ${writer}`],
    after: [`alter default privileges revoke all on tables from ${reader}`]
  },
  "rights of another owner": {
    statements: [
      `alter table T owner to ${writer}`,
      `grant select on T to ${reader}`,
      `revoke update on T from ${writer}`
    ]
  },
  "rights on columns": { statements: [`grant select (account), update (amount) on T to ${reader} with grant option`] },
  "row level security": { statements: ["alter table T enable row level security"] },
  "row level security that its owner has to keep": {
    statements: ["alter table T enable row level security, force row level security"]
  },
  "policies, and comments on them": {
    statements: [
      `create policy "own rows" on T using (account = current_user)`,
      `create policy p2 on T as restrictive for insert to ${reader}, ${writer} with check (amount > 0 and exists (select 1 from other where x = amount))`,
      `create policy p3 on T for update using (true) with check (false)`,
      `comment on policy "own rows" on T is 'it''s "theirs"'`
    ]
  },
  "storage parameters": {
    statements: ["alter table T set (fillfactor = 70, autovacuum_enabled = false, toast.autovacuum_enabled = false)"]
  },
  "storage parameters of indexes": {
    statements: ["create index on T (amount) with (fillfactor = 50)", "alter index T_pkey set (fillfactor = 60)"]
  },
  "replica identity full": { statements: ["alter table T replica identity full"] },
  "replica identity nothing": { statements: ["alter table T replica identity nothing"] },
  "replica identity by an index": { statements: ["alter table T replica identity using index T_account"] },
  "an unlogged table": { statements: ["alter table T set unlogged"] },
  "an unlogged table with an identity": {
    table: "create unlogged table T (id int generated always as identity, account text unique, amount int)"
  },
  "the index that it is clustered by": { statements: ["alter table T cluster on T_account"] },
  "an access method": {
    table: `create access method heap_too type table handler heap_tableam_handler; create table T (account text unique, amount int) using heap_too`,
    after: ["drop access method heap_too"]
  },
  tablespaces: {
    statements: [`alter table T set tablespace ${space}`, `create index on T (amount) tablespace ${space}`]
  },
  comments: {
    statements: [
      "create statistics T_s on account, amount from T",
      "create index T_i on T (amount)",
      "alter table T add constraint T_c check (amount > -5)",
      ...[
        "table T",
        "type T",
        "column T.account",
        "constraint T_c on T",
        "constraint T_account on T",
        "index T_i",
        "statistics T_s",
        "sequence T_id_seq"
      ].map((what) => `comment on ${what} is 'a comment on ${what}, with T and ''quotes'''`)
    ]
  },
  "what columns have": {
    statements: [
      "alter table T alter account set storage external, alter account set statistics 500, alter amount set (n_distinct = -0.5)",
      "alter table T add note text compression pglz collate \"C\" default upper('x'), add twice int generated always as (amount * 2) stored"
    ]
  },
  "dropped columns": { statements: ["alter table T add gone int, add note text", "alter table T drop gone"] },
  constraints: {
    statements: [
      "alter table T add constraint positive check (amount >= 0)",
      "alter table T add constraint later check (amount <> 17) not valid",
      "alter table T add constraint pair unique nulls not distinct (account, amount) include (id) deferrable initially deferred",
      "alter table T add constraint none exclude using btree (account with =) where (amount > 1000)",
      "alter table T rename constraint T_amount_not_null to amount_is_there"
    ]
  },
  "a table and indexes that were renamed": {
    table:
      "create table was (id serial primary key, account text not null unique, amount int not null default 0); alter table was rename to T",
    statements: [
      "alter table T rename account to name; alter table T rename name to account",
      "create index a1 on T (amount)",
      "create index a2 on T (lower(account)) where amount > 0",
      "alter index a1 rename to a3; alter index a2 rename to a1; alter index a3 rename to a2"
    ],
    after: ["drop table if exists was"]
  },
  "two equal indexes": {
    statements: ["create index T_z on T (amount)", "create index T_a on T (amount)", "comment on index T_z is 'z'"]
  },
  "statistics of an index": {
    statements: ["create index T_i on T ((amount + 1))", "alter index T_i alter column 1 set statistics 77"]
  },
  "extended statistics": {
    statements: [
      "create statistics T_s (ndistinct, mcv) on account, amount from T",
      "alter statistics T_s set statistics 33",
      "create statistics T_e on (amount % 10), account from T",
      `alter statistics T_e owner to ${writer}`
    ]
  },
  "a sequence that a column owns": {
    statements: [
      "alter sequence T_id_seq increment 5",
      `grant usage on sequence T_id_seq to ${reader}`,
      "create sequence T_extra owned by T.amount",
      "select setval('T_extra', 42)",
      "create table T_user (id int default nextval('T_id_seq'))"
    ],
    after: ["drop table T_user"]
  },
  "an identity, and where it is": {
    table:
      "create table T (id int generated by default as identity (start 10 increment -2 minvalue -1000 maxvalue 1000), account text unique, amount int)",
    statements: [
      "select setval('T_id_seq', -600)",
      'alter sequence T_id_seq rename to "T ids"',
      `grant select on sequence "T ids" to ${reader}`,
      `comment on sequence "T ids" is 'ids'`
    ]
  },
  "an identity that default privileges concern": {
    table: `alter default privileges grant all on sequences to ${reader}; create table T (id int generated always as identity, account text unique, amount int)`,
    statements: [`revoke all on sequence T_id_seq from ${reader}`],
    after: [`alter default privileges revoke all on sequences from ${reader}`]
  },
  "a domain and an enumeration": {
    table:
      "create domain T_d as int check (value >= 0); create type T_e as enum ('a', 'b'); create table T (account text unique, amount T_d, e T_e default 'a')",
    after: ["drop domain T_d", "drop type T_e"]
  }
}

/** What hangs on the table from outside, and how the failure names it. */
const refused: Record<string, Case & { readonly names: string }> = {
  "a view": { statements: ["create view T_v as select account from T"], names: "view public.T_v" },
  "a view of whole rows": { statements: ["create view T_v as select t from T t"], names: "view public.T_v" },
  "a view that groups by the key": {
    statements: ["create view T_v as select id, account from T group by id"],
    names: "view public.T_v"
  },
  "a materialized view": {
    statements: ["create materialized view T_v as select account from T"],
    names: "materialized view public.T_v"
  },
  "a rule": {
    statements: ["create rule T_r as on delete to T do also select 1"],
    names: "rule T_r on table public.T"
  },
  "a trigger": {
    statements: [
      "create trigger T_t before insert on T for each row execute function suppress_redundant_updates_trigger()"
    ],
    names: "trigger T_t on table public.T"
  },
  "a constraint trigger": {
    statements: [
      "create constraint trigger T_t after insert on T deferrable for each row execute function suppress_redundant_updates_trigger()"
    ],
    names: "constraint T_t on table public.T"
  },
  "a foreign key to another table": {
    statements: [
      "create table T_o (id int primary key)",
      "alter table T add constraint T_f foreign key (amount) references T_o"
    ],
    names: "constraint T_f on table public.T"
  },
  "a foreign key from another table": {
    statements: ["create table T_o (account text constraint T_f references T (account))"],
    names: "constraint T_f on table public.T_o"
  },
  "a foreign key to itself": {
    statements: ["alter table T add constraint T_f foreign key (amount) references T (id)"],
    names: "constraint T_f on table public.T"
  },
  "a function that takes a row": {
    statements: ["create function T_f(T) returns int language sql as 'select 1'"],
    names: "function public.T_f(public.T)"
  },
  "a function that returns rows": {
    statements: ["create function T_f() returns setof T language sql as 'select * from T'"],
    names: "function public.T_f()"
  },
  "a function with a parsed body": {
    statements: ["create function T_f() returns bigint begin atomic select count(*) from T; end"],
    names: "function public.T_f()"
  },
  "a table with a column of rows": {
    statements: ["create table T_o (x T)"],
    names: "column x of table public.T_o"
  },
  "a table with a column of arrays of rows": {
    statements: ["create table T_o (x T[])"],
    names: "column x of table public.T_o"
  },
  "a composite type": { statements: ["create type T_y as (x T)"], names: "column x of composite type public.T_y" },
  "a domain over its rows": { statements: ["create domain T_d as T"], names: "type public.T_d" },
  "a default that uses its identity": {
    table: "create table T (id int generated always as identity, account text unique, amount int)",
    statements: ["create table T_o (id int default nextval('T_id_seq'))"],
    names: "default value for column id of table public.T_o"
  },
  "a policy of another table": {
    statements: ["create table T_o (x int)", "create policy T_p on T_o using (exists (select 1 from T))"],
    names: "policy T_p on table public.T_o"
  },
  "a publication": {
    statements: ["create publication T_p for table T"],
    after: ["drop publication T_p"],
    names: "publication T_p"
  },
  "a publication of its schema": {
    statements: ["create publication T_p for tables in schema public"],
    after: ["drop publication T_p"],
    names: "publication T_p"
  },
  "a publication of all tables": {
    statements: ["create publication T_p for all tables"],
    after: ["drop publication T_p"],
    names: "publication T_p"
  },
  "a table that inherits": { statements: ["create table T_o () inherits (T)"], names: "table public.T_o" },
  "a table that it inherits": {
    table: "create table T_o (account text, amount int); create table T (unique (account)) inherits (T_o)",
    names: "table public.T_o"
  },
  "a partitioned table": {
    table:
      "create table T_o (account text, amount int) partition by list (account); create table T partition of T_o default",
    names: "table public.T_o"
  },
  "partitions of its own": {
    table: "create table T (account text unique, amount int) partition by list (account)",
    names: 'there is no table "T" that is an ordinary one'
  },
  "a table of a type": {
    table: "create type T_y as (account text, amount int); create table T of T_y (unique (account))",
    names: "reloftype of table"
  },
  "an extension": {
    statements: ["alter extension plpgsql add table T"],
    after: ["alter extension plpgsql drop table T"],
    names: "extension plpgsql"
  },
  "an index that depends on an extension": {
    statements: ["create index T_i on T (amount)", "alter index T_i depends on extension plpgsql"],
    names: "dependency x of index public.T_i on extension plpgsql would be lost"
  },
  "an event trigger": {
    statements: [
      "create function T_f() returns event_trigger language plpgsql as 'begin end'",
      "create event trigger T_e on sql_drop when tag in ('DROP TABLE') execute function T_f()"
    ],
    after: ["drop event trigger T_e"],
    names: "event trigger T_e"
  },
  "rights that a role has passed on": {
    statements: [
      `grant select on T to ${reader} with grant option`,
      `set role ${reader}; grant select on T to ${writer}; reset role`
    ],
    names: "rights of table"
  },
  "an index that is not valid": {
    statements: [
      "create index T_i on T (amount)",
      "update pg_index set indisvalid = false where indexrelid = 'T_i'::regclass"
    ],
    names: "indisvalid of index T_i is false and would be true"
  },
  "statistics in another schema": {
    statements: ["create schema T_n", "create statistics T_n.T_s on account, amount from T"],
    names: "statistics T_s"
  }
}

const event: Effect.Effect<Event.Event> = Effect.map(
  Effect.flatMap(Timestamp.HybridClock, ({ now }) => now),
  (timestamp) => ({ timestamp, aggregateId: "a", sequence: 1, type: "Deposited", body: {}, metadata: {} })
)

/** A projection that puts one row into the table. */
const into = (table: string): Projection.Projection<unknown, SqlClient.SqlClient> => ({
  name: table,
  project: ({ aggregateId }) =>
    Effect.flatMap(
      SqlClient.SqlClient,
      (sql) =>
        sql`insert into ${sql(table)} (account, amount) values (${aggregateId}, 7) on conflict (account) do nothing`
    )
})

const rebuildOf = (table: string) => ({ name: table, projections: [into(table)], tables: [table] as const })

/** A database with one event, and two roles and a tablespace for as long as it is there. */
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

layer(onPostgres, { excludeTestServices: true, timeout: 60_000 })("What hangs on a table", (it) => {
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
    it.effect(`${what}: carried over`, () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const name = `carried_${index}`
        yield* arrange(name, one)
        yield* sql`insert into ${sql(name)} (account, amount) values ('a', 7)`
        const before = yield* catalogueOf(name)
        expect(yield* Rebuild.run(rebuildOf(name))).toBe(1)
        expect(yield* catalogueOf(name)).toEqual(before)
        expect(yield* sql`select account, amount from ${sql(name)}`).toEqual([{ account: "a", amount: 7 }])
        // It is no other table the second time.
        yield* Rebuild.abandon(name)
        yield* Rebuild.run(rebuildOf(name))
        expect(yield* catalogueOf(name)).toEqual(before)
        yield* cleanUp(name, one)
      })
    )
  }

  for (const [index, [what, one]] of Object.entries(refused).entries()) {
    it.effect(`${what}: refused by name`, () =>
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

  it.effect("what comes to hang on the table meanwhile refuses the swap, and the next run goes on", () =>
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
      // Rights and comments that are new by then are carried over.
      yield* sql`grant insert on meanwhile to ${sql(reader)}`
      yield* sql`comment on table meanwhile is 'new'`
      const changed = yield* catalogueOf(name)
      expect(yield* Rebuild.run(rebuildOf(name))).toBe(0)
      expect(yield* catalogueOf(name)).toEqual(changed)
      expect(changed).not.toEqual(before)
      expect(yield* sql`select account from meanwhile`).toEqual([{ account: "a" }])
    })
  )

  it.effect("a column that comes meanwhile refuses the swap by name", () =>
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

  it.effect("a table of another shape keeps owner, rights and row level security", () =>
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
      // What the statements say about row level security stands.
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
    "a table of another shape is refused where it can't have what the old one has, or has more than can be moved",
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

  it.effect("a rebuild inside of a transaction is refused", () =>
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
