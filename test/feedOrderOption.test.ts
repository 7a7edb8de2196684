/** The option `feedOrder`: what it refuses, what it makes, and what a log with a counter does without. */
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import { describe, expect, it, layer as withLayer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { EventFeed, Projection, Rebuild, SqlStore, type StoreError, Subscription } from "effect-maestro"
import * as FeedContract from "effect-maestro/FeedContract"
import * as StoreContract from "effect-maestro/StoreContract"
import { afterAll, inject } from "vitest"
import { Account, Deposit } from "./account.js"
import { layerEmptyPg, uniqueName } from "./database.js"
import { ByEffect, createBooks, layerOnSql, type OnSql, Record, storm } from "./feedOrderWorkload.js"
import { disposable, startPostgres } from "./postgres.globalSetup.js"
import { commitOf, eventually, Ledger, start } from "./subscribers.js"

const build = (options: SqlStore.Options) => Layer.build(Layer.fresh(SqlStore.layerWith(options)))

/** The type of the column `feed_key`. */
const found = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  Effect.map(
    sql<{ type: string }>`select format_type(atttypid, null) as type from pg_attribute
      where attrelid = 'maestro.event_log'::regclass and attname = 'feed_key'`,
    ([row]) => row?.type
  )
)

describe("feedOrder", () => {
  it.scopedLive("the layer and SqlStore.migrate make a new log with the order that they are given", () =>
    Effect.gen(function* () {
      yield* build({ feedOrder: "counter" })
      expect(yield* found).toBe("bigint")
      yield* SqlStore.migrate({ feedOrder: "counter" })
    }).pipe(
      Effect.provide(layerEmptyPg()),
      Effect.zipRight(
        Effect.gen(function* () {
          yield* SqlStore.migrate({ feedOrder: "transactionIds" })
          expect(yield* found).toBe("xid8")
        }).pipe(Effect.provide(layerEmptyPg()))
      )
    )
  )

  it.effect("is one of two words", () =>
    Effect.gen(function* () {
      for (const wrong of ["Counter", "", "xid8", 1, null]) {
        const feedOrder = wrong as "counter"
        for (const failing of [
          Effect.scoped(build({ feedOrder })),
          Effect.scoped(build({ feedOrder, migrate: false })),
          SqlStore.migrate({ feedOrder })
        ]) {
          const error = yield* Effect.flip(failing)
          expect(error).toMatchObject({ reason: "Misconfigured" })
          expect(error.description).toContain('must be "transactionIds" or "counter"')
        }
      }
    }).pipe(Effect.provide(layerEmptyPg()))
  )

  for (const [made, other] of [
    ["counter", "transactionIds"],
    ["transactionIds", "counter"]
  ] as const) {
    it.scopedLive(`a log with the order ${made} is refused with the option ${other}, and is right without it`, () =>
      Effect.gen(function* () {
        yield* build({ feedOrder: made })
        for (const migrate of [true, false]) {
          const error = yield* Effect.flip(Effect.scoped(build({ feedOrder: other, migrate })))
          expect(error).toMatchObject({ reason: "Misconfigured" })
          expect(error.description).toContain(`has the order "${made}"`)
          expect(error.description).toContain("leave the option out")
          for (const options of [{}, { feedOrder: made }]) {
            const services = yield* build({ ...options, migrate })
            yield* Effect.provide(commitOf(`with ${JSON.stringify(options)}, ${migrate}`, 1, 2, "Happened"), services)
          }
        }
        expect(yield* Effect.flip(SqlStore.migrate({ feedOrder: other }))).toMatchObject({ reason: "Misconfigured" })
        expect(yield* SqlStore.repairAfterRestore()).toBe(false)
      }).pipe(Effect.provide(layerEmptyPg()))
    )
  }

  it.scopedLive(
    "of nodes that start on an empty database, one makes the log, and those without the option take its order",
    () =>
      Effect.gen(function* () {
        const nodes = yield* Effect.forEach(
          ["counter", "transactionIds", undefined, undefined] as const,
          (feedOrder) => Effect.either(build({ feedOrder })),
          { concurrency: "unbounded" }
        )
        expect(
          nodes
            .map(({ _tag }) => _tag)
            .slice(0, 2)
            .sort()
        ).toEqual(["Left", "Right"])
        for (const [index, node] of nodes.entries()) {
          if (node._tag === "Left") {
            expect(index).toBeLessThan(2)
            expect(node.left).toMatchObject({ reason: "Misconfigured" })
          } else {
            yield* Effect.provide(commitOf(`of ${index}`, 1, 1, "Happened"), node.right)
            yield* Effect.provide(EventFeed.head, node.right)
          }
        }
      }).pipe(Effect.provide(layerEmptyPg()))
  )
})

// --- tables of another log in a schema with functions ---

/** The names of the functions of a schema. */
const functionsIn = (schema: string) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    Effect.map(
      sql<{
        name: string
      }>`select proname as name from pg_proc where pronamespace = ${schema}::regnamespace order by 1`,
      (rows) => rows.map(({ name }) => name)
    )
  )

/** Runs the effect in a transaction, as a role that may read and write all tables of the schema, and create nothing. */
const asWriter = <A, E, R>(schema: string, effect: Effect.Effect<A, E, R>) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    Effect.acquireUseRelease(
      Effect.gen(function* () {
        const role = uniqueName("writer")
        yield* sql`create role ${sql(role)}`
        yield* sql`grant usage on schema ${sql(schema)} to ${sql(role)}`
        yield* sql`grant select, insert, update, delete on all tables in schema ${sql(schema)} to ${sql(role)}`
        return role
      }),
      (role) => sql.withTransaction(Effect.zipRight(sql`set local role ${sql(role)}`, effect)),
      (role) => Effect.orDie(Effect.zipRight(sql`drop owned by ${sql(role)}`, sql`drop role ${sql(role)}`))
    )
  )

/** Builds a layer, and commits by its store. */
const commitBy = (options: SqlStore.Options) =>
  Effect.scoped(
    Effect.flatMap(build(options), (services) =>
      Effect.provide(commitOf(uniqueName("written"), 1, 2, "Happened"), services)
    )
  )

/** A store on the schema may commit, as a layer that may not migrate, and as a role that may not create anything. */
const isMigrated = (schema: string) =>
  Effect.zipRight(commitBy({ schema, migrate: false }), asWriter(schema, commitBy({ schema })))

describe("functions of a log with the other order", () => {
  for (const [before, after] of [
    ["counter", "transactionIds"],
    ["transactionIds", "counter"]
  ] as const) {
    it.scopedLive(`are replaced where the tables were dropped and are made anew, with ${after} after ${before}`, () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* SqlStore.migrate({ feedOrder: before })
        const tables = yield* sql<{
          name: string
        }>`select tablename as name from pg_tables where schemaname = 'maestro'`
        for (const { name } of tables) yield* sql`drop table if exists maestro.${sql(name)} cascade`
        yield* SqlStore.migrate({ feedOrder: after })
        yield* isMigrated("maestro")
        yield* SqlStore.migrate({ schema: "other", feedOrder: after })
        expect(yield* functionsIn("maestro")).toEqual(yield* functionsIn("other"))
      }).pipe(Effect.provide(layerEmptyPg()))
    )

    it.scopedLive(`are not used for a log with ${after} that was put in the place of one with ${before}`, () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const schema = "moved"
        yield* SqlStore.migrate({ schema, feedOrder: before })
        const services = yield* build({ feedOrder: after })
        yield* Effect.provide(commitOf("before", 1, 2, "Happened"), services)
        for (const table of ["event_log", "subscriptions", "parked_events", "feed_counter"]) {
          yield* sql`drop table if exists moved.${sql(table)}`
          if (table !== "feed_counter" || after === "counter")
            yield* sql`alter table maestro.${sql(table)} set schema moved`
        }
        expect(yield* Effect.flip(Effect.scoped(build({ schema, migrate: false })))).toMatchObject({
          reason: "Misconfigured",
          description: expect.stringContaining("belong to a log with another order")
        })
        yield* SqlStore.migrate({ schema })
        yield* isMigrated(schema)
        expect(yield* sql`select 1 from moved.event_log`).toHaveLength(6)
      }).pipe(Effect.provide(layerEmptyPg()))
    )
  }
})

// --- a log without its counter ---

/** The failures of all that looks at a log first: layers, migrations, the repair and the change of partitions. */
const refusals = Effect.forEach(
  [
    Effect.scoped(build({})),
    Effect.scoped(build({ migrate: false })),
    Effect.scoped(build({ feedOrder: "transactionIds" })),
    SqlStore.migrate(),
    SqlStore.repairAfterRestore(),
    SqlStore.partitionLog({ partitions: 3 })
  ] as ReadonlyArray<Effect.Effect<unknown, StoreError.StoreError, SqlClient.SqlClient>>,
  Effect.flip
)

describe("a log that was copied or restored", () => {
  for (const [what, losing, missing] of [
    ["the table", "drop table maestro.feed_counter", "its table feed_counter is missing"],
    ["the row", "delete from maestro.feed_counter", "the row of its table feed_counter is missing"]
  ] as const) {
    it.scopedLive(`without ${what} of its counter is refused, and what the failure tells to do mends it`, () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const before = yield* build({ feedOrder: "counter" })
        yield* Effect.provide(commitOf("before", 1, 3, "Happened"), before)
        yield* sql.unsafe(losing)
        const failures = yield* refusals
        for (const failure of failures) {
          expect(failure).toMatchObject({ _tag: "StoreError", reason: "Misconfigured" })
          expect(failure.description).toContain(`"maestro" has the order "counter", and ${missing}`)
          expect(failure.description).toContain("SqlStore.repairAfterRestore")
        }

        const [, statements] = failures[0]?.description?.split("`") ?? []
        yield* Effect.forEach(statements?.split("; ") ?? [], (statement) => sql.unsafe(statement))
        expect(yield* SqlStore.repairAfterRestore()).toBe(true)
        const after = yield* build({ migrate: false })
        yield* Effect.provide(commitOf("after", 1, 1, "Happened"), after)
        const positions = yield* sql`select position::int from maestro.event_log order by feed_key, position`
        expect(positions.map(({ position }) => position)).toEqual([1, 2, 3, 4])
      }).pipe(Effect.provide(layerEmptyPg()))
    )
  }

  it.scopedLive(
    "into the tables of a log with a counter has its own order, and is refused until they are one log",
    () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const before = yield* build({ feedOrder: "transactionIds" })
        yield* Effect.provide(commitOf("before", 1, 1, "Happened"), before)
        yield* sql`create table maestro.feed_counter (id int primary key, last bigint not null)`
        for (const failure of yield* refusals) {
          expect(failure).toMatchObject({ _tag: "StoreError", reason: "Misconfigured" })
          expect(failure.description).toContain('has the order "transactionIds"')
          expect(failure.description).toContain("drop feed_counter")
        }
        yield* sql`drop table maestro.feed_counter`
        yield* Effect.provide(commitOf("after", 1, 1, "Happened"), yield* build({ migrate: false }))
      }).pipe(Effect.provide(layerEmptyPg()))
  )

  for (const [what, feedOrder, change, found] of [
    ["integer", "counter", "alter column feed_key type integer", "has the type integer"],
    ["numeric", "counter", "alter column feed_key type numeric", "has the type numeric"],
    ["a domain", "counter", "alter column feed_key type whole", "has the type whole"],
    ["text", "transactionIds", "alter column feed_key type text using '5'", "has the type text"],
    ["missing", "counter", "drop column feed_key", "has no column feed_key"],
    ["missing", "transactionIds", "drop column feed_key", "has no column feed_key"]
  ] as const) {
    it.scopedLive(`whose feed key is ${what} is refused by that, and not taken for another order (${feedOrder})`, () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* SqlStore.migrate({ feedOrder })
        yield* sql`create domain whole as bigint`
        yield* sql.unsafe(`alter table maestro.event_log alter column feed_key drop default`)
        yield* sql.unsafe(`alter table maestro.event_log ${change}`)
        for (const failure of yield* refusals) {
          expect(failure).toMatchObject({ _tag: "StoreError", reason: "Misconfigured" })
          expect(failure.description).toContain(`the event log of the schema "maestro"`)
          expect(failure.description).toContain(found)
          expect(failure.description).not.toContain("drop feed_counter")
        }
      }).pipe(Effect.provide(layerEmptyPg()))
    )
  }

  it.scopedLive("needs no right to read its counter to be looked at", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const role = uniqueName("reader")
      yield* build({ feedOrder: "counter" })
      yield* sql`create role ${sql(role)}`
      yield* sql`grant usage on schema maestro to ${sql(role)}`
      yield* sql`grant select on maestro.event_log, maestro.migrations to ${sql(role)}`
      yield* sql.withTransaction(
        Effect.zipRight(sql`set local role ${sql(role)}`, Effect.scoped(build({ migrate: false })))
      )
    }).pipe(Effect.provide(layerEmptyPg()))
  )
})

describe("row security on the counter", () => {
  it.scopedLive("that hides the row from a role is named, instead of a row that is missing", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* commitBy({ feedOrder: "counter" })
      yield* sql`alter table maestro.feed_counter enable row level security`
      const byRole = (migrate: boolean) => Effect.either(asWriter("maestro", commitBy({ migrate })))
      const isRefused = (result: Effect.Effect.Success<ReturnType<typeof byRole>>) => {
        expect(result).toMatchObject({ left: { _tag: "StoreError", reason: "Misconfigured" } })
        expect(String(result._tag === "Left" && result.left)).toContain("row security hides the row of")
      }
      for (const migrate of [true, false]) isRefused(yield* byRole(migrate))
      yield* sql`create policy reading on maestro.feed_counter for select using (true)`
      // The layer can be built, and the commit can't raise the counter.
      yield* asWriter("maestro", Effect.scoped(build({ migrate: false })))
      isRefused(yield* byRole(false))
      yield* sql`create policy raising on maestro.feed_counter for update using (true)`
      expect(yield* byRole(false)).toMatchObject({ _tag: "Right" })
      // The owner sees all rows, so a row that it does not see is missing.
      yield* commitBy({})
      yield* sql`delete from maestro.feed_counter`
      expect(yield* Effect.flip(commitBy({}))).toMatchObject({
        description: expect.stringContaining("the row of its table feed_counter is missing")
      })
    }).pipe(Effect.provide(layerEmptyPg()))
  )
})

// --- nothing of transaction ids ---

/** What databases without rising ids of transactions lack. */
const ofTransactionIds =
  /xid8|txid_|pg_current_xact|pg_current_snapshot|pg_snapshot|pg_xact|\bxmin\b|\bxmax\b|transactionid/i

let server: Awaited<ReturnType<typeof startPostgres>> | undefined
afterAll(() => server?.stop())

/** A server that writes all statements into a log. */
const logging = Layer.unwrapEffect(
  Effect.promise(async () => {
    server ??= await startPostgres([...disposable, "-c", "log_statement=all"])
    return PgClient.layer({ url: Redacted.make(server.url), maxConnections: 10 })
  })
)

const logged = Effect.sync(() => server?.log.join("\n") ?? "")

/** The lines of the log up to now. */
const logOf = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  Effect.zipRight(
    sql`select 'the end of the test'`,
    Effect.map(
      eventually(logged, (log) => log.includes("the end of the test")),
      (log) => log.split("\n")
    )
  )
)

/** Everything that a store does, on a log with a counter. */
const useAll = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const feed = yield* EventFeed.EventFeed
  const services = yield* Effect.context<OnSql>()
  yield* createBooks
  const record = new Record()
  yield* storm(record, [{ onAny: services, onSql: Option.some(services) }], {
    workers: 4,
    commands: 60,
    seed: 1,
    after: () => Effect.void
  })
  expect(record.unexpected).toEqual([])
  yield* sql.withTransaction(Account.evaluate("a", new Deposit({ amount: 1 })))
  const subscription = Subscription.make("all", { partitions: 2, handle: () => Effect.void })
  yield* start(subscription)
  yield* Subscription.waitFor("all", yield* EventFeed.head, "20 seconds")
  yield* subscription.status
  const filters = [undefined, { types: ["Booked"] }, { kinds: ["SqlBook"] }, { correlationId: "a" }]
  for (const filter of filters) {
    yield* feed.read(filter === undefined ? {} : { filter })
    yield* feed.count(filter === undefined ? {} : { filter })
    yield* Stream.runDrain(feed.samples(filter))
  }
  expect(yield* feed.heldBack()).toEqual(Option.none())
  yield* Rebuild.run({ name: "books", projections: [Projection.of("all", ByEffect)], tables: ["books"] })
  const stored = sql`select * from maestro.event_log order by feed_key, position`
  for (const partitions of [3, 1]) {
    const before = yield* stored
    expect(yield* SqlStore.partitionLog({ partitions })).toBe(true)
    expect(yield* stored).toEqual(before)
    yield* Account.evaluate("a", new Deposit({ amount: 1 }))
    expect(yield* stored).toHaveLength(before.length + 1)
  }
  expect(yield* SqlStore.repairAfterRestore()).toBe(false)
})

describe("a log with a counter", () => {
  it.scopedLive(
    "has no type, default or function that needs ids of transactions, and no statement of the store does",
    () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const columns = yield* sql`select table_name, column_name, data_type, column_default, is_identity
          from information_schema.columns where table_schema = 'maestro'`
        expect(columns.length).toBeGreaterThan(40)
        expect(JSON.stringify(columns)).not.toMatch(ofTransactionIds)
        expect(columns.filter(({ is_identity }) => is_identity === "YES")).toEqual([])
        const sequences = yield* sql`select 1 from information_schema.sequences where sequence_schema = 'maestro'`
        expect(sequences).toEqual([])
        const functions = yield* sql<{ source: string }>`select prosrc as source from pg_proc p
          join pg_namespace n on n.oid = p.pronamespace where n.nspname = 'maestro'`
        expect(functions).toHaveLength(6)
        for (const { source } of functions) expect(source).not.toMatch(ofTransactionIds)

        yield* useAll
        const lines = yield* logOf
        expect(lines.filter((line) => line.includes("commit_events")).length).toBeGreaterThan(10)
        expect(lines.filter((line) => ofTransactionIds.test(line))).toEqual([])
      }).pipe(
        Effect.provide(
          layerOnSql.pipe(
            Layer.provideMerge(Layer.merge(SqlStore.layerWith({ feedOrder: "counter" }), Ledger.layerSql)),
            Layer.provideMerge(logging)
          )
        )
      )
  )
})

// Few random inputs, and of the cheaper cases what appends and what reads the log. `npm run test:counter` runs all.
const options = { runs: Math.ceil(inject("runs") / 10), timeout: inject("timeout") }
const store = SqlStore.layerWith({ feedOrder: "counter", logPartitions: 16 }).pipe(Layer.provideMerge(layerEmptyPg()))
const concernsOrder = /^(commit|caller|head|read|filter|samples|order|awaitAppend|parked)/
const isCostly = /thousand|10 000|large/

withLayer(store, { excludeTestServices: true, timeout: options.timeout })(
  "SqlStore with a counter, on a log of 16 partitions",
  (it) => {
    for (const { name, run } of [...StoreContract.cases(options), ...FeedContract.cases(options)]) {
      if (concernsOrder.test(name) && !isCostly.test(name)) it.effect(name, () => run, options.timeout)
    }
  }
)
