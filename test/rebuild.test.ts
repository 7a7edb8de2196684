/** Rebuilds: the new table is equal to a fold of the log, while other connections go on reading and writing. */
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import { expect, expectTypeOf, it, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import {
  type Event,
  MemoryStore,
  Projection,
  Rebuild,
  SqlStore,
  StoreAdapter,
  Subscription,
  Timestamp
} from "effect-maestro"
import { layerPg, layerPglite, makeDatabase } from "./database.js"
import { eventually, shortly } from "./subscribers.js"

class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", { amount: Schema.Int }) {}

/** Adds up deposits, in a column and a unit of choice. */
const balances = (column = "amount", factor = 1) =>
  Projection.make({
    name: "balances",
    of: "all",
    events: Deposited,
    project: {
      Deposited: ({ amount }, { aggregateId }) =>
        Effect.flatMap(
          SqlClient.SqlClient,
          (sql) =>
            sql`insert into balances as b (account, ${sql(column)}) values (${aggregateId}, ${amount * factor})
            on conflict on constraint balances_account_key do update set ${sql(column)} = b.${sql(column)} + excluded.${sql(column)}`
        )
    }
  })

const Balances = balances()

const makeTable = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) =>
    sql`create table balances (id serial primary key, account text not null constraint balances_account_key unique, amount int not null)`
)

const event = (aggregateId: string, sequence: number, amount = 1): Effect.Effect<Event.Event> =>
  Effect.map(
    Effect.flatMap(Timestamp.HybridClock, ({ now }) => now),
    (timestamp) => ({
      timestamp,
      aggregateId,
      sequence,
      type: "Deposited",
      version: 1,
      body: { amount },
      metadata: {}
    })
  )

/** Commits one deposit with the projections. */
const deposit = (account: string, sequence: number, projections: ReadonlyArray<typeof Balances> = [], amount = 1) =>
  Effect.gen(function* () {
    const store = yield* StoreAdapter.StoreAdapter
    yield* store.commitAll([yield* event(account, sequence, amount)], projections)
  })

const deposits = (account: string, count: number, projections: ReadonlyArray<typeof Balances> = []) =>
  Effect.forEach(Arr.range(1, count), (sequence) => deposit(account, sequence, projections), { discard: true })

/** The amounts in the table, and those of a fold of the log. */
const table = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  Effect.map(sql<{ account: string; amount: number }>`select account, amount from balances`, (rows) =>
    Object.fromEntries(rows.map(({ account, amount }) => [account, amount]))
  )
)
const folded = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  Effect.map(
    sql<{
      account: string
      amount: number
    }>`select aggregate_id as account, sum((body ->> 'amount')::int)::int as amount
      from maestro.event_log group by aggregate_id`,
    (rows) => Object.fromEntries(rows.map(({ account, amount }) => [account, amount]))
  )
)

/** Waits until there is an exclusive lock request that waits, or none. */
const lockWanted = (wanted: boolean) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    eventually(
      sql`select 1 from pg_locks where mode = 'AccessExclusiveLock' and not granted
        and database = (select oid from pg_database where datname = current_database())`,
      (waiting) => waiting.length > 0 === wanted
    )
  )

/** The store on a new database, with the table. */
const onPostgres = Layer.effectDiscard(makeTable).pipe(
  Layer.provideMerge(SqlStore.layer),
  Layer.provideMerge(layerPg())
)

const strong = { projections: [Balances], tables: ["balances"] } as const

layer(Layer.fresh(onPostgres), { excludeTestServices: true, timeout: 60_000 })("on Postgres", (it) => {
  it.effect("a rebuild corrects a wrong table, and is done once under its name", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* deposits("wrong", 5, [Balances])
      yield* sql`update balances set amount = 77`
      expect(yield* Rebuild.run({ ...strong, name: "puts right" })).toBe(5)
      expect(yield* table).toEqual(yield* folded)
      expect(yield* Rebuild.status("puts right")).toEqual(Option.some({ done: 5, total: 5, finished: true }))
      yield* sql`update balances set amount = 77 where account = 'wrong'`
      const lines: Array<string> = []
      const logger = Logger.make(({ logLevel, message }) => void lines.push(`${logLevel.label} ${String(message)}`))
      const again = Rebuild.run({ ...strong, name: "puts right" })
      expect(yield* Effect.provide(again, Logger.replace(Logger.defaultLogger, logger))).toBe(0)
      expect(lines).toEqual([
        expect.stringMatching(/^INFO rebuild "puts right" was done before under this name.*use another name/)
      ])
      expect(yield* table).toMatchObject({ wrong: 77 })
      yield* Rebuild.abandon("puts right")
      expect(yield* Rebuild.run({ ...strong, name: "puts right" })).toBe(5)
      expect(yield* table).toEqual(yield* folded)
    })
  )

  it.effect(
    "commits with strong projections go on during a rebuild, and the new table is equal to a fold of the log",
    () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* Effect.forEach(Arr.range(1, 8), (n) => deposits(`before-${n}`, 20, [Balances]), { concurrency: 4 })
        const going = { on: true }
        const written: Array<number> = []
        const storm = yield* Effect.forkAll(
          Arr.makeBy(3, (writer) =>
            Effect.iterate(0, {
              while: () => going.on,
              body: (count) => Effect.as(deposit(`storm-${writer}`, count + 1, [Balances]), count + 1)
            }).pipe(Effect.tap((count) => written.push(count)))
          )
        )
        // One transaction has written the table, and stays open until the swap waits for it.
        const early = yield* Deferred.make<void>()
        const holding = yield* sql
          .withTransaction(Effect.zipRight(deposit("slow", 1, [Balances]), Deferred.await(early)))
          .pipe(Effect.fork)
        const running = yield* Effect.fork(Rebuild.run({ ...strong, name: "storm", batchSize: 50 }))
        // The swap waits for that transaction.
        yield* lockWanted(true)
        yield* Deferred.succeed(early, undefined)
        yield* Fiber.join(holding)
        yield* Fiber.join(running)
        // All writers continue in the new table.
        const before = yield* table
        yield* eventually(table, (now) =>
          Arr.range(0, 2).every((writer) => (now[`storm-${writer}`] ?? 0) > (before[`storm-${writer}`] ?? 0))
        )
        going.on = false
        yield* Fiber.join(storm)
        expect(written.every((count) => count > 0)).toBe(true)
        expect(yield* table).toEqual(yield* folded)
      })
  )

  it.effect("while a transaction uses the table for long, commands go on, and a warning names its session", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* deposit("held", 1, [Balances])
      const end = yield* Deferred.make<void>()
      const reading = yield* Deferred.make<void>()
      const reader = yield* sql
        .withTransaction(
          sql`select * from balances`.pipe(
            Effect.zipRight(Deferred.succeed(reading, undefined)),
            Effect.zipRight(Deferred.await(end))
          )
        )
        .pipe(Effect.fork)
      yield* Deferred.await(reading)
      const warned = yield* Deferred.make<string>()
      const logger = Logger.make(({ message }) => {
        if (String(message).includes("waits before")) Deferred.unsafeDone(warned, Exit.succeed(String(message)))
      })
      const running = yield* Rebuild.run({ ...strong, name: "patient" }).pipe(
        Effect.provide(Logger.replace(Logger.defaultLogger, logger)),
        Effect.fork
      )
      // A commit waits for the first attempt only. Then there is no further attempt until the reader has ended.
      yield* lockWanted(true)
      yield* deposit("held", 2, [Balances])
      expect(yield* Deferred.await(warned)).toMatch(
        /^rebuild patient waits .*: public\.balances in use by process \d+ \(.*user "postgres", idle in transaction, open for \d+ seconds\)$/
      )
      for (const sequence of Arr.range(3, 60)) {
        yield* deposit("held", sequence, [Balances])
        expect(yield* sql`select 1 from pg_locks where mode = 'AccessExclusiveLock' and not granted`).toEqual([])
        yield* shortly
      }
      expect(yield* Rebuild.status("patient")).toMatchObject({ value: { finished: false } })
      yield* Deferred.succeed(end, undefined)
      yield* Fiber.join(reader)
      yield* Fiber.join(running)
      expect(yield* table).toEqual(yield* folded)
    })
  )

  it.effect("a subscription continues where the rebuild has ended, while events are committed", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* sql`delete from balances`
      const Eventual = Subscription.fromProjections("balances", [Balances], { batchSize: 7, partitions: 2 })
      yield* Effect.gen(function* () {
        yield* deposits("eventual", 30)
        yield* Subscription.waitFor("balances", { aggregateId: "eventual", sequence: 30 }, "20 seconds")
        yield* sql`update balances set amount = -1000`
        const storm = yield* Effect.forkAll(Arr.makeBy(4, (writer) => deposits(`eventual-${writer}`, 60)))
        yield* Rebuild.run({ ...strong, name: "eventual", batchSize: 20, subscription: Eventual })
        yield* Fiber.join(storm)
        for (const writer of Arr.range(0, 3)) {
          yield* Subscription.waitFor("balances", { aggregateId: `eventual-${writer}`, sequence: 60 }, "20 seconds")
        }
        expect(yield* table).toEqual(yield* folded)
      }).pipe(Effect.provide(Eventual.layer))
      yield* sql`delete from maestro.subscriptions where name = 'balances'`
    })
  )

  it.effect("the new table may have another shape than the old one", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* deposit("cents", 1)
      yield* Rebuild.run({
        name: "cents",
        projections: [balances("cents", 100)],
        tables: ["balances"],
        create: sql`create table balances (account text constraint balances_account_key primary key, cents bigint not null)`
      })
      expect(yield* sql`select account, cents::int from balances where account = 'cents'`).toEqual([
        { account: "cents", cents: 100 }
      ])
      yield* Rebuild.run({
        name: "and back",
        projections: [Balances],
        tables: ["balances"],
        create: sql`create table balances (id serial primary key, account text constraint balances_account_key unique, amount int not null)`
      })
      expect(yield* table).toEqual(yield* folded)
    })
  )

  it.effect("a rebuild keeps indexes by their names, sequences, rights and defaults", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* sql`create index richest_first on balances (amount desc) where amount > 0`
      yield* sql`create role reader`
      yield* sql`grant select, insert on balances to reader with grant option`
      const of = Effect.all([
        sql`select indexname, indexdef from pg_indexes where tablename = 'balances' order by 1`,
        sql`select conname, pg_get_constraintdef(oid) as definition from pg_constraint where conrelid = 'balances'::regclass order by 1`,
        sql`select column_name, column_default, is_nullable from information_schema.columns where table_name = 'balances' order by 1`,
        sql`select grantee, privilege_type, is_grantable from information_schema.role_table_grants where table_name = 'balances' order by 1, 2`
      ])
      const before = yield* of
      yield* Rebuild.run({ ...strong, name: "keeps" })
      expect(yield* of).toEqual(before)
      yield* deposit("sequence goes on", 1, [Balances])
      expect(yield* table).toEqual(yield* folded)
      yield* sql`drop owned by reader`
      yield* sql`drop role reader`
    })
  )

  it.effect(
    "an invalid batch size is refused and moves nothing, and a subscription keeps its stored number of partitions",
    () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* sql`insert into maestro.subscriptions (name, partition, partitions, feed_key, position)
        select 'cut in three', partition, 3, '0', 0 from generate_series(0, 2) partition`
        const options = { name: "cut", projections: [Balances], tables: ["balances"] } as const
        for (const batchSize of [0, 0.5, Number.NaN, 10_001]) {
          expect(yield* Effect.flip(Rebuild.run({ ...options, batchSize }))).toMatchObject({
            _tag: "ValidationError",
            issues: [{ path: ["batchSize"] }]
          })
        }
        expect(
          yield* sql`select distinct partitions, position::int from maestro.subscriptions where name = 'cut in three'`
        ).toEqual([{ partitions: 3, position: 0 }])
        expect(yield* Rebuild.status("cut")).toEqual(Option.none())
        yield* deposit("cut", 1)
        for (const partitions of [1, 4]) {
          const subscription = { name: "cut in three", partitions, filter: undefined }
          yield* Rebuild.run({ ...options, name: `cut ${partitions}`, subscription })
          expect(
            yield* sql`select partition, partitions, position > 0 as moved from maestro.subscriptions
              where name = 'cut in three' order by 1`
          ).toEqual([0, 1, 2].map((partition) => ({ partition, partitions: 3, moved: true })))
        }
      })
  )

  it.effect("a missing table is refused by name", () =>
    Effect.gen(function* () {
      expect(`${yield* Effect.flip(Rebuild.run({ ...strong, tables: ["nowhere"], name: "none" }))}`).toContain(
        'there is no table "nowhere"'
      )
    })
  )

  it.effect("a projection that writes another table is refused, and its rows are rolled back", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* sql`create table elsewhere (account text)`
      const Elsewhere: Projection.Projection.Bound<unknown> = {
        name: "elsewhere",
        of: "all",
        project: ({ aggregateId }) => sql`insert into public.elsewhere values (${aggregateId})`
      }
      const error = yield* Effect.flip(
        Rebuild.run({ name: "elsewhere", projections: [Balances, Elsewhere], tables: ["balances"] })
      )
      expect(error).toMatchObject({ _tag: "StoreError", reason: "Misconfigured" })
      expect(`${error}`).toContain("public.elsewhere")
      expect(yield* sql`select * from elsewhere`).toEqual([])
    })
  )

  it.effect("a rebuild fails with the failure of the projection, and the next run continues after the last batch", () =>
    Effect.gen(function* () {
      yield* deposits("fails", 30)
      let broken = true
      let projected = 0
      const Fragile: Projection.Projection.Bound<"broken" | unknown, SqlClient.SqlClient> = {
        name: "fragile",
        of: "all",
        project: (event) => {
          if (broken && event.aggregateId === "fails" && event.sequence === 15) return Effect.fail("broken" as const)
          projected++
          return Projection.toEffect(Balances).project(event)
        }
      }
      const total = Object.values(yield* folded).length
      expect(total).toBeGreaterThan(0)
      const running = Rebuild.run({ name: "fails", projections: [Fragile], tables: ["balances"], batchSize: 10 })
      expect(yield* Effect.exit(running)).toEqual(Exit.fail("broken"))
      const status = Option.getOrThrow(yield* Rebuild.status("fails"))
      expect(status.done).toBeGreaterThan(0)
      expect(status.finished).toBe(false)
      broken = false
      projected = 0
      expect(yield* running).toBe(status.total - status.done)
      expect(projected).toBe(status.total - status.done)
      expect(yield* table).toEqual(yield* folded)
    })
  )

  it.effect(
    "a violated deferred constraint fails the rebuild, and the failure names rebuild, projection and version",
    () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* sql`create table deferred (account text, amount int, constraint one_each unique (amount) deferrable initially deferred)`
        yield* Effect.forEach(["deferred-1", "deferred-2"], (account) => deposit(account, 1, [], 4711))
        const Deferring: Projection.Projection.Bound<unknown, SqlClient.SqlClient> = {
          name: "deferring",
          version: 2,
          of: "all",
          project: ({ aggregateId, body }) =>
            body.amount === 4711
              ? Effect.asVoid(sql`insert into deferred values (${aggregateId}, ${body.amount})`)
              : Effect.void
        }
        const lines: Array<string> = []
        const logger = Logger.make(({ logLevel, message }) => void lines.push(`${logLevel.label} ${String(message)}`))
        const failing = Rebuild.run({ name: "deferred", projections: [Deferring], tables: ["deferred"] }).pipe(
          Effect.provide(Logger.replace(Logger.defaultLogger, logger)),
          Effect.flip
        )
        const error = yield* failing
        expect(error).toMatchObject({ reason: "Constraint", constraint: "one_each", projection: "deferring" })
        const which = 'rebuild "deferred" of projection "deferring" of version 2 violates a deferred constraint'
        expect(`${error}`).toContain(which)
        expect(`${error}`).toContain('aggregate "deferred-2"')
        expect(lines).toEqual([expect.stringContaining(`ERROR a rebuild ends, because ${which}`)])
        yield* Rebuild.abandon("deferred")
        // The constraint may be violated until the end of the batch.
        yield* sql`delete from maestro.event_log where aggregate_id = 'deferred-2'`
        yield* Rebuild.run({
          name: "deferred",
          projections: [
            {
              ...Deferring,
              project: (event) =>
                Effect.zipRight(
                  sql`insert into deferred values ('other', 4711)`,
                  Effect.zipRight(Deferring.project(event), sql`delete from deferred where account = 'other'`)
                )
            }
          ],
          tables: ["deferred"]
        })
        expect(yield* sql`select account from deferred`).toEqual([{ account: "deferred-1" }])
        yield* sql`drop table deferred`
      })
  )

  it.effect("two rebuilds whose long names differ only at the end have different shadow tables", () =>
    Effect.gen(function* () {
      yield* deposits("long", 20)
      const name = "n".repeat(100)
      const broken: Projection.Projection.Bound<string> = {
        name: "broken",
        of: "all",
        project: ({ sequence }) => (sequence === 15 ? Effect.fail("broken") : Effect.void)
      }
      const first = (projections: ReadonlyArray<Projection.Projection.Bound<unknown, SqlClient.SqlClient>>) =>
        Rebuild.run({ name: `${name}1`, projections, tables: ["balances"], batchSize: 10 })
      expect(yield* Effect.exit(first([Balances, broken]))).toEqual(Exit.fail("broken"))
      yield* Rebuild.run({ ...strong, name: `${name}2` })
      expect(yield* table).toEqual(yield* folded)
      yield* first([Balances])
      expect(yield* table).toEqual(yield* folded)
    })
  )

  it.effect("a rebuild that was begun for other tables is refused", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* sql`create table more (account text)`
      const broken: Projection.Projection.Bound<string> = {
        name: "broken",
        of: "all",
        project: () => Effect.fail("broken")
      }
      yield* Effect.exit(Rebuild.run({ name: "others", projections: [broken], tables: ["balances"] }))
      const error = yield* Effect.flip(
        Rebuild.run({ name: "others", projections: [Balances], tables: ["balances", "more"] })
      )
      expect(error).toMatchObject({ _tag: "StoreError", reason: "Misconfigured" })
      expect(`${error}`).toContain("without more")
      yield* Rebuild.abandon("others")
    })
  )

  it.effect("onProgress receives the progress after each batch", () =>
    Effect.gen(function* () {
      const told: Array<Rebuild.Progress> = []
      const events = yield* Rebuild.run({
        ...strong,
        name: "progress",
        batchSize: 50,
        onProgress: (progress) => Effect.sync(() => told.push(progress))
      })
      const done = told.map((progress) => progress.done)
      expect(done).toEqual(done.toSorted((a, b) => a - b))
      expect(told.at(0)?.total).toBe(events)
      expect(told.at(0)?.done).toBe(50)
      expect(told.at(0)?.eventsPerSecond).toBeGreaterThan(0)
      expect(told.at(-1)).toMatchObject({ done: events, total: events, secondsLeft: 0 })
    })
  )

  it.effect("a rebuild that is killed several times ends with the table of an undisturbed one", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* Effect.forEach(Arr.range(1, 8), (n) => deposits(`killed-${n}`, 20), { concurrency: 4 })
      let events = 0
      const Slow: Projection.Projection.Bound<unknown, SqlClient.SqlClient> = {
        name: "slow",
        of: "all",
        project: (event) => {
          events++
          return Projection.toEffect(Balances).project(event)
        }
      }
      const running = Rebuild.run({ name: "killed", projections: [Slow], tables: ["balances"], batchSize: 10 })
      for (const round of Arr.range(1, 6)) {
        const fiber = yield* Effect.fork(running)
        const before = events
        yield* Effect.iterate(0, {
          while: () => events < before + 15,
          body: () => Effect.as(shortly, 0)
        })
        // By terminating its connections, or by interrupting its fiber.
        if (round % 2 === 0) {
          yield* sql`select pg_terminate_backend(pid) from pg_stat_activity
            where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'`
        }
        yield* Fiber.interrupt(fiber)
      }
      // The pool may still have dead connections.
      const status = yield* Effect.retry(Rebuild.status("killed"), { times: 20 })
      expect(status).toMatchObject({ value: { finished: false } })
      yield* running
      expect(yield* table).toEqual(yield* folded)
    })
  )
})

it.scopedLive("of several nodes that run a rebuild concurrently one works, and all find it finished", () =>
  Effect.gen(function* () {
    const url = yield* makeDatabase
    const node = SqlStore.layer.pipe(Layer.provideMerge(PgClient.layer({ url: Redacted.make(url) })))
    yield* Effect.provide(Effect.zipRight(makeTable, deposits("nodes", 40)), node)
    const counts = yield* Effect.forEach(
      Arr.range(1, 3),
      () => Effect.provide(Rebuild.run({ ...strong, name: "nodes", batchSize: 5 }), Layer.fresh(node)),
      { concurrency: "unbounded" }
    )
    expect(counts.toSorted()).toEqual([0, 0, 40])
    expect(yield* Effect.provide(table, node)).toEqual({ nodes: 40 })
  })
)

it.live("a rebuild works on PGlite", () =>
  Effect.gen(function* () {
    yield* makeTable
    yield* deposits("embedded", 12)
    expect(yield* Rebuild.run({ ...strong, name: "embedded", batchSize: 5 })).toBe(12)
    expect(yield* table).toEqual({ embedded: 12 })
  }).pipe(Effect.provide(SqlStore.layer.pipe(Layer.provideMerge(layerPglite))))
)

it("does not compile on the memory store, because that has no tables", () => {
  const rebuilding = Rebuild.run({ name: "memory", projections: [], tables: ["balances"] })
  const onMemory = rebuilding.pipe(Effect.provide(MemoryStore.layer))
  expectTypeOf<Effect.Effect.Context<typeof onMemory>>().toEqualTypeOf<SqlStore.Tables>()
})
