/** A repair numbers the events in a copy of the log, which keeps what belongs to it, and in their rows where it can't be copied. */
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import { expect, it } from "@effect/vitest"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { EventFeed, SqlStore, SubscriptionStore } from "effect-maestro"
import { Account, Deposit, Limits } from "./account.js"
import { layerPglite, makeDatabase, outside, uniqueName } from "./database.js"
import { textOf } from "./feedOrderModel.js"
import { aNode } from "./nodes.js"
import { as, makeRole } from "./roles.js"
import { commitOf, newId } from "./subscribers.js"

/** A log whose events have keys of another server, in the order of their names, which is not the order in which they are stored. */
const restored = (partitions: number) =>
  Effect.gen(function* () {
    const url = yield* makeDatabase
    const client = PgClient.layer({ url: Redacted.make(url), maxConnections: 3 })
    const layer = SqlStore.layerWith({ migrate: false, logPartitions: partitions }).pipe(
      Layer.provideMerge(Layer.effectDiscard(SqlStore.migrate({ logPartitions: partitions }))),
      Layer.provideMerge(client)
    )
    const context = yield* Layer.build(layer)
    return { url, layer: Layer.succeedContext(context) }
  })

/** The same on PGlite, with a client of one connection. */
const restoredPglite = Effect.map(
  Layer.build(
    SqlStore.layerWith({ migrate: false }).pipe(
      Layer.provideMerge(Layer.effectDiscard(SqlStore.migrate())),
      Layer.provideMerge(layerPglite)
    )
  ),
  (context) => ({ layer: Layer.succeedContext(context) })
)

/** Stores the events, and returns the order that the feed must have after the repair. */
const breakOrder = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const ids = [newId("c"), newId("a"), newId("b")]
  for (const id of ids) yield* commitOf(id, 1, 2, "Happened")
  // The aggregate that was stored last comes first.
  for (const [index, id] of [...ids].reverse().entries()) {
    yield* sql`update maestro.event_log set feed_key = ${String(9_000_000_000 + index)}::xid8 where aggregate_id = ${id}`
  }
  return [...ids].reverse().flatMap((id) => [`${id}/1`, `${id}/2`])
})

class Undone extends Data.TaggedError("Undone") {}

const shown = Effect.map(Stream.runCollect(EventFeed.streamStored()), (events) => [...events].map(textOf))

const oidOf = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  Effect.map(sql<{ oid: string }>`select 'maestro.event_log'::regclass::oid::text as oid`, ([row]) => row?.oid)
)

const definitions = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`
  select 'index' as kind, pg_get_indexdef(indexrelid) as text from pg_index where indrelid = 'maestro.event_log'::regclass
  union all select 'constraint', conname || pg_get_constraintdef(oid) from pg_constraint where conrelid = 'maestro.event_log'::regclass
  union all select 'grant', relacl::text from pg_class where oid = 'maestro.event_log'::regclass
  union all select 'column', format('%s %s %s', attname, attnotnull, attidentity) from pg_attribute where attrelid = 'maestro.event_log'::regclass and attnum > 0
  order by 1, 2`
)

for (const [what, make] of [
  ["a log on Postgres", restored(1)],
  ["a log on Postgres with partitions", restored(4)],
  ["a log on PGlite", restoredPglite]
] as const) {
  it.scopedLive(`the copy of ${what} keeps indexes, constraints, privileges and the sequence`, () =>
    Effect.gen(function* () {
      const { layer } = yield* make
      yield* Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const role = yield* makeRole
        yield* sql`grant select on maestro.event_log to ${sql(role)}`
        yield* sql`create index own on maestro.event_log (type, sequence)`
        const order = yield* breakOrder
        const [before, kept] = [yield* oidOf, yield* definitions]
        expect(yield* SqlStore.repairAfterRestore()).toBe(true)
        expect(yield* shown).toEqual(order)
        expect(yield* oidOf).not.toBe(before)
        expect(yield* definitions).toEqual(kept)
        const positions =
          yield* sql`select position::int as position from maestro.event_log order by feed_key, position`
        expect(positions).toEqual(order.map((_, index) => ({ position: index + 1 })))
        const id = newId("later")
        yield* commitOf(id, 1, 1, "Happened")
        expect(yield* shown).toEqual([...order, `${id}/1`])
        expect(yield* SqlStore.repairAfterRestore()).toBe(false)
      }).pipe(Effect.provide(layer))
    })
  )
}

/** What the copy would lose, or what keeps it from being made. Each returns an effect that runs the repair. */
const obstacles: Record<string, (sql: SqlClient.SqlClient) => Effect.Effect<unknown, unknown>> = {
  "a view": (sql) => sql`create view public.recent as select position from maestro.event_log`,
  "a publication": (sql) => sql`create publication ${sql(uniqueName("pub"))} for table maestro.event_log`,
  "a rule": (sql) => sql`create rule quiet as on delete to maestro.event_log do instead nothing`,
  "a foreign key": (sql) =>
    Effect.zipRight(
      sql`create table public.kinds (type text primary key)`,
      Effect.zipRight(
        sql`insert into public.kinds select distinct type from maestro.event_log`,
        sql`alter table maestro.event_log add constraint known foreign key (type) references public.kinds`
      )
    ),
  "a subscription of logical replication": (sql) =>
    Effect.zipRight(
      sql.unsafe(
        `create subscription ${uniqueName("sub")} connection 'host=127.0.0.1' publication p with (connect = false)`
      ),
      sql`insert into pg_subscription_rel (srsubid, srrelid, srsubstate, srsublsn)
        select oid, 'maestro.event_log'::regclass, 'r', null from pg_subscription`
    ),
  "an event trigger that lets no table be dropped": (sql) =>
    Effect.zipRight(
      sql`create function public.refuse() returns event_trigger language plpgsql as $$ begin raise 'no drops'; end $$`,
      sql`create event trigger refuse on sql_drop execute function public.refuse()`
    ),
  "a storage parameter": (sql) => sql`alter table maestro.event_log set (fillfactor = 90)`,
  "a table of the name of the copy": (sql) => sql`create table maestro.event_log_copy ()`
}
const partitionedBy: Readonly<Record<string, ReadonlyArray<string>>> = {
  "partitions by ranges": [
    "partition by range (aggregate_id)",
    "maestro.event_log_0 partition of maestro.event_log for values from (minvalue) to ('b')",
    "maestro.event_log_1 partition of maestro.event_log for values from ('b') to (maxvalue)"
  ],
  "one partition": [
    "partition by hash (aggregate_id)",
    "maestro.event_log_0 partition of maestro.event_log for values with (modulus 1, remainder 0)"
  ],
  "a partition of another name": [
    "partition by hash (aggregate_id)",
    "maestro.event_log_0 partition of maestro.event_log for values with (modulus 2, remainder 0)",
    "maestro.others partition of maestro.event_log for values with (modulus 2, remainder 1)"
  ]
}
for (const [what, [key = "", ...leaves]] of Object.entries(partitionedBy)) {
  obstacles[what] = (sql) =>
    Effect.gen(function* () {
      yield* sql`alter table maestro.event_log rename to old`
      yield* sql.unsafe(`create table maestro.event_log (like maestro.old including all excluding identity) ${key}`)
      for (const leaf of leaves) yield* sql.unsafe(`create table ${leaf}`)
      yield* sql`insert into maestro.event_log select * from maestro.old`
      yield* sql`drop table maestro.old`
    })
}
for (const [what, put] of Object.entries(obstacles)) {
  it.scopedLive(`with ${what} the events are numbered in their rows, and it stays`, () =>
    Effect.gen(function* () {
      const { layer } = yield* restored(1)
      yield* Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const order = yield* breakOrder
        yield* put(sql)
        const [before, kept] = [yield* oidOf, yield* definitions]
        expect(yield* SqlStore.repairAfterRestore()).toBe(true)
        expect(yield* shown).toEqual(order)
        expect(yield* oidOf).toBe(before)
        expect(yield* definitions).toEqual(kept)
        const received = yield* sql`select from pg_subscription_rel where srrelid = 'maestro.event_log'::regclass`
        expect(received).toHaveLength(what === "a subscription of logical replication" ? 1 : 0)
        // A database with a subscription can't be dropped.
        for (const { name } of yield* sql<{ name: string }>`select quote_ident(subname) as name from pg_subscription
          where subdbid = (select oid from pg_database where datname = current_database())`) {
          yield* sql.unsafe(`alter subscription ${name} set (slot_name = none)`)
          yield* sql.unsafe(`drop subscription ${name}`)
        }
      }).pipe(Effect.provide(layer))
    })
  )
}

it.scopedLive("columns of any name keep their values", () =>
  Effect.gen(function* () {
    const { layer } = yield* restored(1)
    yield* Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const order = yield* breakOrder
      for (const name of ['"o.type"', '"e.type"', "place", '"a ""b"" ?"']) {
        yield* sql.unsafe(`alter table maestro.event_log add column ${name} text`)
        yield* sql.unsafe(`update maestro.event_log set ${name} = 'kept ' || sequence`)
      }
      const before = yield* oidOf
      expect(yield* SqlStore.repairAfterRestore()).toBe(true)
      expect(yield* oidOf).not.toBe(before)
      expect(yield* shown).toEqual(order)
      const rows = yield* sql<
        Record<string, string>
      >`select sequence::text, to_jsonb(l) - 'sequence' as row from maestro.event_log l`
      for (const { row, sequence } of rows) {
        expect(row).toMatchObject({
          "o.type": `kept ${sequence}`,
          "e.type": `kept ${sequence}`,
          place: `kept ${sequence}`,
          'a "b" ?': `kept ${sequence}`
        })
      }
    }).pipe(Effect.provide(layer))
  })
)

it.scopedLive("the number of partitions can't be changed between the restore and the repair", () =>
  Effect.gen(function* () {
    const { layer } = yield* restored(1)
    yield* Effect.gen(function* () {
      const order = yield* breakOrder
      const refused = SqlStore.partitionLog({ partitions: 4 })
      expect(yield* Effect.flip(refused)).toMatchObject({
        reason: "Misconfigured",
        description: expect.stringContaining("SqlStore.repairAfterRestore")
      })
      expect(yield* SqlStore.repairAfterRestore()).toBe(true)
      expect(yield* refused).toBe(true)
      expect(yield* shown).toEqual(order)
    }).pipe(Effect.provide(layer))
  })
)

it.scopedLive("a batch that was read before the repair does not move its checkpoint afterwards", () =>
  Effect.gen(function* () {
    const { layer } = yield* restored(1)
    yield* Effect.gen(function* () {
      const leases = yield* SubscriptionStore.SubscriptionStore
      const lease = yield* leases.lease({
        key: { name: "reading", partition: 0, partitions: 1 },
        from: EventFeed.beginning,
        holder: "node",
        duration: 60_000
      })
      const ids = [newId("a"), newId("b")]
      for (const id of ids) yield* commitOf(id, 1, 2, "Happened")
      const { position } = yield* EventFeed.read({ limit: 1 })
      const sql = yield* SqlClient.SqlClient
      yield* sql`update maestro.event_log set feed_key = '9000000000' where aggregate_id = ${ids[1]}`
      expect(yield* SqlStore.repairAfterRestore()).toBe(true)
      expect(yield* Effect.flip(lease.advanceTo(position))).toMatchObject({ _tag: "LeaseLost" })
      const advance = lease.advance(position, Effect.void)
      expect(yield* Effect.flip(advance)).toMatchObject({ _tag: "LeaseLost" })
      const checkpoints = yield* sql`select feed_key::text, position::text from maestro.subscriptions`
      expect(checkpoints).toEqual([{ feed_key: "0", position: "0" }])
    }).pipe(Effect.provide(layer))
  })
)

it.scopedLive("a role that may only change the rows repairs the log, too", () =>
  Effect.gen(function* () {
    const { layer, url } = yield* restored(4)
    yield* Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const role = yield* makeRole
      const order = yield* breakOrder
      yield* sql`grant usage on schema maestro to ${sql(role)}`
      yield* sql`grant select, insert, update, delete on all tables in schema maestro to ${sql(role)}`
      const before = yield* oidOf
      const ofRole = PgClient.layer({ url: Redacted.make(as(url, role)), maxConnections: 1 })
      expect(yield* Effect.provide(SqlStore.repairAfterRestore(), ofRole)).toBe(true)
      expect(yield* shown).toEqual(order)
      expect(yield* oidOf).toBe(before)
    }).pipe(Effect.provide(layer))
  })
)

it.scopedLive("in a transaction of the caller it is part of it, also above READ COMMITTED", () =>
  Effect.gen(function* () {
    const { layer } = yield* restored(1)
    yield* Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const order = yield* breakOrder
      const isStillNeeded = Effect.map(
        sql`select from maestro.event_log where feed_key >= '9000000000'`,
        (rows) => rows.length > 0
      )
      for (const level of ["read committed", "repeatable read"]) {
        const inside = Effect.gen(function* () {
          yield* sql.unsafe(`set transaction isolation level ${level}`)
          expect(yield* SqlStore.repairAfterRestore()).toBe(true)
        })
        const undone = Effect.zipRight(inside, Effect.fail(new Undone()))
        expect(yield* Effect.flip(sql.withTransaction(undone))).toBeInstanceOf(Undone)
        expect(yield* isStillNeeded).toBe(true)
        if (level === "repeatable read") yield* sql.withTransaction(inside)
      }
      expect(yield* shown).toEqual(order)
    }).pipe(Effect.provide(layer))
  })
)

it.scopedLive("a transaction above READ COMMITTED that began before the copy fails when it loads an aggregate", () =>
  Effect.gen(function* () {
    const { layer } = yield* restored(1)
    yield* Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const node = yield* aNode(Account.layer.pipe(Layer.provide(Limits.layer)))
      yield* Effect.gen(function* () {
        yield* Account.evaluate("1", new Deposit({ amount: 1 }))
        yield* breakOrder
        yield* sql.withTransaction(
          Effect.gen(function* () {
            yield* sql`set transaction isolation level repeatable read`
            yield* sql`select 1 from maestro.migrations`
            expect(yield* outside(SqlStore.repairAfterRestore())).toBe(true)
            expect(yield* Effect.flip(Account.fetch("1"))).toMatchObject({ code: "40001" })
          })
        )
        expect(yield* Account.fetch("1")).toMatchObject({ balance: 1 })
      }).pipe(Effect.provide(node))
    }).pipe(Effect.provide(layer))
  })
)
