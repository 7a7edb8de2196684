/** `SqlStore.partitionLog` changes the log of a store, also while the store is in use, as a whole or not at all. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { EventFeed, SqlStore, StoreAdapter, Subscription } from "effect-maestro"
import { Account, Deposit, Limits } from "./account.js"
import { layerPglite, layerPgWith, outside, uniqueName } from "./database.js"
import { aNode } from "./nodes.js"
import { caughtUp, commitOf, eventually, Ledger, newId, start, write, written } from "./subscribers.js"

/** A store whose log has so many partitions, on a database of its own. */
const storeOf = (
  logPartitions: number
): Layer.Layer<Layer.Layer.Success<typeof SqlStore.layer> | Ledger | SqlClient.SqlClient, unknown> =>
  Layer.merge(SqlStore.layerWith({ logPartitions }), Ledger.layerSql).pipe(
    Layer.provideMerge(layerPgWith({ logPartitions }, { maxConnections: 16 }))
  )

const partitionLog = (partitions: number) => SqlStore.partitionLog({ partitions })

const partitionsFound = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  Effect.map(
    sql<{ name: string }>`select c.relname as name from pg_inherits i join pg_class c on c.oid = i.inhrelid
      where i.inhparent = 'maestro.event_log'::regclass order by c.relname collate "C"`,
    (rows) => rows.map(({ name }) => name)
  )
)

/** Everything stored of all events, and where the positions go on. */
const contents = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const events =
    yield* sql`select aggregate_id, sequence, position::text, feed_key::text, type, body::text, metadata::text,
    timestamp::text, version, correlation_id, causation_id::text, traceparent from maestro.event_log order by feed_key, position`
  return { events, numbers: yield* sql`select last_value::text, is_called from maestro.event_log_position_seq` }
})

const fill = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  for (const sequence of [1, 2, 3]) {
    yield* sql`insert into maestro.event_log
      (aggregate_id, sequence, type, body, metadata, timestamp, version, correlation_id, causation_id, traceparent)
      select 'Filled/' || n, ${sequence}::int, 'Happened', '{ "n":1e308,"zero":-0 }', '{"by": "Ann"}', gen_random_uuid(), 1 + n % 3,
        case n % 2 when 0 then 'chain-' || n end, case n % 3 when 0 then gen_random_uuid() end, case n % 5 when 0 then 'trace' end
      from generate_series(1, 200) n`
  }
})

/** Builds of an index wait while this lock is held, and so does a change of the log that has an index by this function. */
const slowIndex = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  yield* sql`create function slow(id text) returns text language plpgsql immutable as
    $$ begin perform pg_catalog.pg_advisory_xact_lock_shared(42); return id; end $$`
  yield* sql`create index slow on maestro.event_log (slow(aggregate_id))`
})

/** Holds the change of the log back shortly before its end until the effect has run. Returns the result of both. */
const duringChange = <A, E, R>(partitions: number, effect: Effect.Effect<A, E, R>) =>
  Effect.scoped(
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const holder = yield* sql.reserve
      yield* holder.executeUnprepared("select pg_advisory_lock(42)", [], undefined)
      const changing = yield* Effect.forkScoped(Effect.either(partitionLog(partitions)))
      yield* eventually(waiting("advisory"), (pids) => pids.length === 1)
      const during = yield* effect
      yield* holder.executeUnprepared("select pg_advisory_unlock(42)", [], undefined)
      return [yield* Fiber.join(changing), during] as const
    })
  )

/** The sessions of this database that wait for a lock of that type. */
const waiting = (type: string) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    Effect.map(
      sql<{ pid: number }>`select pid from pg_locks where not granted and locktype = ${type}
        and database = (select oid from pg_database where datname = current_database())`,
      (rows) => rows.map(({ pid }) => pid)
    )
  )

const stores: ReadonlyArray<readonly [name: string, counts: ReadonlyArray<number>, store: ReturnType<typeof storeOf>]> =
  [
    ["Postgres", [4, 11, 1, 2, 1], storeOf(1)],
    [
      "PGlite",
      [2, 1],
      Layer.merge(SqlStore.layerWith({ logPartitions: 1 }), Ledger.layerSql).pipe(Layer.provideMerge(layerPglite))
    ]
  ]

for (const [name, counts, store] of stores) {
  it.scopedLive(`on ${name} each column of each event stays, and positions go on behind the last one`, () =>
    Effect.gen(function* () {
      const empty = yield* contents
      expect(yield* partitionLog(3)).toBe(true)
      expect(yield* contents).toEqual(empty)
      expect(yield* partitionLog(1)).toBe(true)
      expect(yield* contents).toEqual(empty)
      yield* fill
      const before = yield* contents
      const after = yield* EventFeed.head
      for (const partitions of counts) {
        expect(yield* partitionLog(partitions)).toBe(true)
        expect(yield* partitionsFound).toEqual(
          partitions === 1 ? [] : Arr.makeBy(partitions, (number) => `event_log_${number}`).sort()
        )
        expect(yield* contents).toEqual(before)
        expect(yield* partitionLog(partitions)).toBe(false)
      }
      yield* commitOf(newId("next"), 1, 2, "Happened")
      const { events } = yield* EventFeed.read({ after })
      expect(events.map(({ sequence }) => sequence)).toEqual([1, 2])
      const [numbers] = (yield* contents).numbers
      expect(numbers).toEqual({ last_value: "602", is_called: true })
    }).pipe(Effect.provide(store))
  )
}

it.scopedLive("the samples of each type are among its oldest and its newest events, on each log", () =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    yield* sql`insert into maestro.event_log (aggregate_id, sequence, type, body, metadata, timestamp)
      select 'Sampled/' || n, 1, case n % 2 when 0 then 'Even' else 'Odd' end, '{}', '{}', gen_random_uuid()
      from generate_series(1, 40000) n`
    yield* sql`analyze maestro.event_log`
    for (const partitions of [4, 2, 1]) {
      yield* partitionLog(partitions)
      const { samples } = yield* EventFeed.EventFeed
      const found = Arr.fromIterable(yield* Stream.runCollect(samples()))
      expect(found.map(({ type }) => type).sort()).toEqual(["Even", "Even", "Odd", "Odd"])
      const numbers = found.map(({ id }) => Number(id))
      // The places in a table are nearly, and not always, in the order of writing.
      expect(numbers.filter((number) => number < 1000)).toHaveLength(2)
      expect(numbers.filter((number) => number > 39_000)).toHaveLength(2)
    }
  }).pipe(Effect.provide(storeOf(1)))
)

it.scopedLive("names, indexes, triggers, privileges and the owner stay", () =>
  Effect.scoped(
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const [owner, reader] = [uniqueName("owner"), uniqueName("reader")]
      yield* Effect.acquireRelease(
        Effect.zipRight(sql`create role ${sql(owner)}`, sql`create role ${sql(reader)}`),
        () =>
          Effect.orDie(
            Effect.all(
              [owner, reader].flatMap((role) => [sql`drop owned by ${sql(role)} cascade`, sql`drop role ${sql(role)}`]),
              { discard: true }
            )
          )
      )
      yield* fill
      yield* sql`create index own on maestro.event_log (type) where version > 1`
      yield* sql`create function noted() returns trigger language plpgsql as $$ begin return new; end $$`
      yield* sql`create trigger noted before insert on maestro.event_log for each row execute function noted()`
      yield* sql`grant select, insert on maestro.event_log to ${sql(reader)} with grant option`
      yield* sql`grant select on maestro.event_log to public`
      yield* sql`grant usage on sequence maestro.event_log_position_seq to ${sql(reader)}`
      yield* sql`grant create, usage on schema maestro to ${sql(owner)}`
      yield* sql`alter table maestro.event_log owner to ${sql(owner)}`
      const parts = Effect.all([
        sql`select indexrelid::regclass::text as index, regexp_replace(pg_get_indexdef(indexrelid), ' ON ONLY ', ' ON ') as definition
        from pg_index where indrelid = 'maestro.event_log'::regclass order by 1`,
        sql`select tgname, pg_get_triggerdef(oid) as definition from pg_trigger
        where tgrelid = 'maestro.event_log'::regclass and not tgisinternal`,
        sql`select relname, relowner::regrole::text as owner, a.grantee::regrole::text as grantee, a.privilege_type, a.is_grantable
        from pg_class, aclexplode(relacl) a where relname in ('event_log', 'event_log_position_seq') order by 1, 3, 4`,
        sql`select conname, pg_get_constraintdef(oid) as definition from pg_constraint
        where conrelid = 'maestro.event_log'::regclass and contype in ('c', 'p') order by 1`,
        sql`select attname, attnotnull, atttypid::regtype::text as type, attcollation::regcollation::text as collation
        from pg_attribute where attrelid = 'maestro.event_log'::regclass and attnum > 0 order by attnum`
      ])
      // A number on a table without partitions is an identity column, whose internal parts differ.
      for (const partitions of [5, 3, 1]) {
        const before = yield* parts
        yield* partitionLog(partitions)
        expect(yield* parts).toEqual(before)
        const owners = yield* sql<{ owner: string }>`select distinct relowner::regrole::text as owner from pg_class
        where relnamespace = 'maestro'::regnamespace and relname like 'event_log%'`
        expect(owners).toEqual([{ owner }])
      }
    })
  ).pipe(Effect.provide(storeOf(1)))
)

it.scopedLive("statements that wait for the change see all events, and none fails", () =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const node = yield* aNode(Account.layer.pipe(Layer.provide(Limits.layer)))
    const { getEvents } = yield* StoreAdapter.StoreAdapter
    const feed = yield* EventFeed.EventFeed
    const [id, other, long] = ["1", "2", newId("long")]
    yield* slowIndex
    yield* commitOf(long, 1, 1500, "Happened")
    // Each statement has been prepared before.
    const reads = Effect.all(
      [
        Account.fetch(id),
        Account.exists(id),
        Account.replay(id, 1),
        Effect.map(getEvents(long, 0), ({ length }) => length),
        Effect.map(getEvents(long, 1200), ({ length }) => length),
        Effect.map(EventFeed.read({ limit: 10 }), ({ events }) => events),
        Effect.map(EventFeed.read({ filter: { kinds: ["Account"] } }), ({ events }) => events.length > 0),
        Effect.map(feed.count(), (count) => count > 1500),
        feed.positionOf({ aggregateId: long, sequence: 700 })
      ],
      { concurrency: "unbounded" }
    )
    yield* Effect.gen(function* () {
      yield* Account.evaluate(id, new Deposit({ amount: 1 }))
      yield* Account.evaluate(other, new Deposit({ amount: 1 }))
      const before = yield* reads
      for (const partitions of [4, 1, 3]) {
        const [changed, fibers] = yield* duringChange(
          partitions,
          Effect.gen(function* () {
            const reading = yield* Effect.fork(reads)
            const writing = yield* Effect.fork(
              Effect.all(
                [Account.evaluate(other, new Deposit({ amount: 1 })), commitOf(newId("new"), 1, 3, "Happened")],
                {
                  concurrency: "unbounded"
                }
              )
            )
            yield* eventually(waiting("relation"), (pids) => pids.length >= 10)
            return [reading, writing] as const
          })
        )
        expect(changed).toEqual(Either.right(true))
        expect(yield* Fiber.join(fibers[0])).toEqual(before)
        yield* Fiber.join(fibers[1])
      }
      expect(yield* Account.fetch(other)).toMatchObject({ balance: 4 })
      const [count] = yield* sql<{ count: number }>`select count(*)::int as count from maestro.event_log`
      expect(count?.count).toBe(1500 + 5 + 9)
    }).pipe(Effect.provide(node))
  }).pipe(Effect.provide(storeOf(1)))
)

it.scopedLive("killed shortly before its end, it leaves the log as it was, and can be called again", () =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    yield* fill
    yield* slowIndex
    const before = yield* contents
    const [result] = yield* duringChange(
      4,
      Effect.flatMap(waiting("advisory"), ([pid]) => sql`select pg_terminate_backend(${pid ?? 0}::int)`)
    )
    expect(Either.isLeft(result) && result.left).toMatchObject({ operation: "partitionLog" })
    expect(yield* partitionsFound).toEqual([])
    expect(yield* contents).toEqual(before)
    const tables = sql`select relname from pg_class where relname like 'event_log_copy%'`
    expect(yield* tables).toEqual([])
    expect(yield* partitionLog(4)).toBe(true)
    expect(yield* tables).toEqual([])
    expect(yield* contents).toEqual(before)
  }).pipe(Effect.provide(storeOf(1)))
)

it.scopedLive(
  "a transaction above READ COMMITTED that began before fails when it loads, and its other reads find no events",
  () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const { getEvents } = yield* StoreAdapter.StoreAdapter
      const node = yield* aNode(Account.layer.pipe(Layer.provide(Limits.layer)))
      const long = newId("long")
      yield* commitOf(long, 1, 600, "Happened")
      yield* Effect.gen(function* () {
        yield* Account.evaluate("1", new Deposit({ amount: 1 }))
        yield* sql.withTransaction(
          Effect.gen(function* () {
            yield* sql`set transaction isolation level repeatable read`
            yield* sql`select 1 from maestro.migrations`
            expect(yield* outside(partitionLog(4))).toBe(true)
            expect(yield* Effect.flip(Account.fetch("1"))).toMatchObject({ code: "40001" })
            expect(yield* Effect.flip(Account.evaluate("1", new Deposit({ amount: 1 })))).toMatchObject({
              code: "40001"
            })
            const page = sql`select * from maestro.read_page(${long}, 1, 10, 1000)`
            expect(yield* Effect.flip(sql.withTransaction(page))).toMatchObject({ _tag: "SqlError" })
            expect((yield* EventFeed.read()).events).toEqual([])
            expect(yield* getEvents(long, 0)).toEqual([])
          })
        )
        expect(yield* Account.fetch("1")).toMatchObject({ balance: 1 })
        expect(yield* getEvents(long, 0)).toHaveLength(600)
      }).pipe(Effect.provide(node))
    }).pipe(Effect.provide(storeOf(1)))
)

it.scopedLive("in a transaction of the caller it takes part, and fails above READ COMMITTED or without the right", () =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    yield* fill
    const before = yield* contents
    const undone = sql.withTransaction(Effect.zipRight(partitionLog(4), Effect.fail("undone")))
    expect(yield* Effect.flip(undone)).toBe("undone")
    const repeatable = Effect.zipRight(sql`set transaction isolation level repeatable read`, partitionLog(4))
    expect(yield* Effect.flip(sql.withTransaction(repeatable))).toMatchObject({ reason: "Misconfigured" })
    const powerless = Effect.zipRight(sql`set local role pg_monitor`, partitionLog(4))
    expect(yield* Effect.flip(sql.withTransaction(powerless))).toMatchObject({ code: "42501" })
    expect(yield* contents).toEqual(before)
    expect(yield* partitionsFound).toEqual([])
    const setting = sql`show synchronize_seqscans`
    const [changed, after] = yield* sql.withTransaction(Effect.all([partitionLog(4), setting]))
    expect(changed).toBe(true)
    expect(after).toEqual([{ synchronize_seqscans: "on" }])
    expect(yield* contents).toEqual(before)
  }).pipe(Effect.provide(storeOf(1)))
)

it.scopedLive("two nodes that change the log concurrently change it once", () =>
  Effect.gen(function* () {
    yield* fill
    const before = yield* contents
    const changed = yield* Effect.all([partitionLog(4), partitionLog(4), partitionLog(4)], { concurrency: "unbounded" })
    expect(Arr.sort(changed.map(Number), (a: number, b: number) => (a < b ? -1 : a > b ? 1 : 0))).toEqual([0, 0, 1])
    expect(yield* contents).toEqual(before)
  }).pipe(Effect.provide(storeOf(1)))
)

it.scopedLive("while clients commit and a subscription follows, no event is lost, doubled or skipped", () =>
  Effect.gen(function* () {
    const nodes = yield* Effect.all([
      aNode(Account.layer.pipe(Layer.provide(Limits.layer))),
      aNode(Account.layer.pipe(Layer.provide(Limits.layer)))
    ])
    const following = Subscription.make(newId("following"), { partitions: 2, handle: write("following") })
    yield* start(following)
    let done = false
    const client = (node: (typeof nodes)[number], number: number) =>
      Effect.gen(function* () {
        let committed = 0
        while (!done) {
          const { sequence, state } = yield* Account.evaluate(`${number % 6}`, new Deposit({ amount: 1 }))
          const stored = yield* Account.replay(`${number % 6}`, sequence)
          // A read sees what was committed before it.
          expect(stored).toEqual(state)
          committed++
        }
        return committed
      }).pipe(Effect.provide(node))
    const clients = yield* Effect.forkAll(Arr.makeBy(12, (number) => client(nodes[number % 2] ?? nodes[0], number)))
    for (const partitions of [4, 2, 1, 8]) expect(yield* partitionLog(partitions)).toBe(true)
    done = true
    const committed = Arr.reduce(yield* Fiber.join(clients), 0, (sum, count) => sum + count)
    yield* caughtUp(following)
    const places = (yield* Stream.runCollect(EventFeed.streamStored())).pipe(
      Arr.fromIterable,
      Arr.map(({ aggregateId, sequence }) => `${aggregateId}/${sequence}`)
    )
    expect(places).toHaveLength(committed)
    expect([...(yield* written("following"))].sort()).toEqual([...places].sort())
  }).pipe(Effect.provide(storeOf(1)))
)
