/** Tables that projections own: one process creates them, and a higher version is built beside those in use. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, expectTypeOf, it, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Random from "effect/Random"
import { type Event, MemoryStore, Projection, ProjectionTables, SqlStore, Subscription } from "effect-maestro"
import { layerPglite, makeDatabase, makeMigratedDatabase } from "./database.js"
import { macrotask } from "./nodes.js"
import {
  amounts,
  balances,
  balancesTwo,
  createOne,
  createTwo,
  Deposited,
  deposit,
  folded,
  leftovers,
  makeAccount,
  nodeAt,
  records
} from "./projectionTables.js"
import { eventually, shortly } from "./subscribers.js"

const One = makeAccount([balances(1)])
const Two = makeAccount([balancesTwo()])

/** Runs the effect on a new database. */
const onDatabase = <A, E, R>(run: (url: string) => Effect.Effect<A, E, R>) =>
  Effect.scoped(
    Effect.flatMap(makeMigratedDatabase, (url) => Effect.provide(run(url), nodeAt(url)).pipe(Effect.provide(quiet)))
  )

const quiet = Logger.remove(Logger.defaultLogger)

const failureOf = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.map(Effect.flip(effect), (error) => `${error}`)

/** Runs the effect, and returns the messages that it logs. */
const loggedBy = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const lines: Array<string> = []
    const logger = Logger.make(({ logLevel, message }) => void lines.push(`${logLevel.label} ${String(message)}`))
    return Effect.as(Effect.provide(effect, Logger.replace(Logger.defaultLogger, logger)), lines)
  })

/** Commits deposits of 1, with a strong projection. */
const deposits = (account: typeof One | typeof Two, id: string, count: number) =>
  Effect.forEach(Arr.range(1, count), () => deposit(account, id), { discard: true }).pipe(Effect.provide(account.layer))

/** Commits deposits of 1 without a projection. */
const depositsBefore = (id: string, count: number) => {
  const Plain = makeAccount([])
  return Effect.forEach(Arr.range(1, count), () => deposit(Plain, id), { discard: true }).pipe(
    Effect.provide(Plain.layer)
  )
}

const inherited = ["constructor", "valueOf", "__proto__"]

const createCount = (table: string) => (sql: SqlClient.SqlClient) =>
  sql`create table ${sql.literal(table)} (account text not null)`

/** Version 2. It waits for `goOn` before the nth event that it projects. */
const held = (nth: number) =>
  Effect.gen(function* () {
    const reached = yield* Deferred.make<void>()
    const goOn = yield* Deferred.make<void>()
    const counter = { events: 0 }
    const project = (event: Event.Event) =>
      Effect.suspend(() => {
        counter.events++
        const held = counter.events === nth
        return held ? Effect.zipRight(Deferred.succeed(reached, undefined), Deferred.await(goOn)) : Effect.void
      }).pipe(Effect.zipRight(Projection.toEffect(balancesTwo()).project(event)))
    return { Account: makeAccount([{ ...Projection.toEffect(balancesTwo()), project }]), counter, goOn, reached }
  })

layer(Layer.empty, { excludeTestServices: true, timeout: 60_000 })("tables of projections, on Postgres", (it) => {
  it.effect("of nodes that start together one creates the tables, and all find them", () =>
    onDatabase((url) =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* sql`create table runs (at timestamptz default now())`
        const Counted = makeAccount([balances(1, (sql) => [...createOne(sql), sql`insert into runs default values`])])
        yield* Effect.forEach(
          Arr.range(1, 4),
          () => Effect.provide(ProjectionTables.prepare(Counted.projections), nodeAt(url)),
          { concurrency: "unbounded" }
        )
        expect(yield* sql`select 1 from runs`).toHaveLength(1)
        expect(yield* records).toEqual([
          { name: "balances", version: 1, tables: '{"balances":"public.balances"}', subscription: null }
        ])
        yield* deposits(Counted, "ann", 3)
        expect(yield* amounts).toEqual({ ann: 3 })
        expect(yield* sql`select 1 from pg_indexes where tablename = 'balances'`).toHaveLength(2)
        // The layer of the aggregate finds them in place.
        const live = Counted.layer.pipe(Layer.provide(ProjectionTables.layer(Counted.projections)))
        yield* Effect.provide(deposit(Counted, "ann"), live)
        expect(yield* amounts).toEqual({ ann: 4 })
      })
    )
  )

  it.effect("a table may have the name of a property that every object has", () =>
    onDatabase(() =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const counts = (name: string, version: number) =>
          Projection.makeSql({
            name,
            events: Deposited,
            version,
            tables: Object.fromEntries(inherited.map((table) => [table, createCount(table)])),
            project: {
              Deposited: (_, { id }, sql) =>
                inherited.map((table) => sql`insert into ${sql.literal(table)} (account) values (${id})`)
            }
          })
        const counted = Effect.forEach(inherited, (table) =>
          Effect.map(sql`select account from ${sql.literal(table)}`, (rows) => rows.length)
        )
        const [One, Two] = [makeAccount([counts("counts", 1)]), makeAccount([counts("counts", 2)])]
        // The tables are filled from stored events, stay in place at the next start, and are rebuilt for version 2.
        yield* depositsBefore("ann", 2)
        yield* ProjectionTables.prepare(One.projections)
        expect(yield* counted).toEqual([2, 2, 2])
        yield* ProjectionTables.prepare(One.projections)
        yield* Effect.provide(deposit(One, "ann"), One.layer)
        yield* ProjectionTables.prepare(Two.projections)
        yield* Effect.provide(deposit(Two, "ann"), Two.layer)
        expect(yield* counted).toEqual([4, 4, 4])
        const places = '{"constructor":"public.constructor","valueOf":"public.valueof","__proto__":"public.__proto__"}'
        expect(yield* records).toEqual([{ name: "counts", version: 2, tables: places, subscription: null }])
        const other = ProjectionTables.prepare(makeAccount([counts("others", 1)]).projections)
        expect(yield* failureOf(other)).toContain('which is that of projection "counts"')
      })
    )
  )

  it.effect("where events are stored before the first start, the tables are filled from them", () =>
    onDatabase((url) =>
      Effect.gen(function* () {
        yield* depositsBefore("ann", 12)
        yield* Effect.forEach(
          [1, 2],
          () => Effect.provide(ProjectionTables.prepare(One.projections, { batchSize: 5 }), nodeAt(url)),
          { concurrency: "unbounded" }
        )
        yield* deposits(One, "ann", 2)
        expect(yield* amounts).toEqual({ ann: 14 })
        expect(yield* leftovers).toEqual([])
      })
    )
  )

  it.effect("version 2 is built while an old node commits with version 1, and is equal to a fold of the log", () =>
    onDatabase((url) =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* ProjectionTables.prepare(One.projections)
        yield* deposits(One, "before", 30)
        const going = { on: true }
        const counts: Array<number> = []
        const old = yield* Effect.forEach(Arr.range(1, 3), (writer) =>
          Effect.fork(
            Effect.iterate(0, {
              while: () => going.on,
              // No more events than the rebuild can project.
              body: (count) => Effect.zipRight(shortly, Effect.as(deposit(One, `old-${writer}`), count + 1))
            }).pipe(
              Effect.tap((count) => counts.push(count)),
              Effect.provide(Layer.provideMerge(One.layer, nodeAt(url)))
            )
          )
        )
        yield* eventually(amounts, (now) => (now["old-1"] ?? 0) > 5)
        // Of two new nodes one works, and both continue when the tables are in place.
        const seen = yield* Effect.forEach(
          [1, 2],
          () =>
            Effect.zipRight(
              ProjectionTables.prepare(Two.projections, { batchSize: 50 }),
              Effect.flatMap(SqlClient.SqlClient, (sql) => sql`select sum(deposits)::int as deposits from balances`)
            ).pipe(Effect.provide(nodeAt(url))),
          { concurrency: "unbounded" }
        )
        expect(seen.every(([row]) => Number(row?.deposits) >= 30)).toBe(true)
        yield* deposits(Two, "new", 5)
        const before = yield* amounts
        yield* eventually(amounts, (now) => (now["old-1"] ?? 0) > (before["old-1"] ?? 0) + 3)
        going.on = false
        yield* Effect.forEach(old, Fiber.join)
        expect(counts).toHaveLength(3)
        expect(yield* amounts).toEqual(yield* folded)
        expect(yield* sql`select deposits from balances where account in ('before', 'new') order by account`).toEqual([
          { deposits: 30 },
          { deposits: 5 }
        ])
        expect(yield* records).toMatchObject([{ name: "balances", version: 2 }])
      })
    )
  )

  it.effect("after a kill the next start continues, and the old tables stay in use until then", () =>
    onDatabase((url) =>
      Effect.gen(function* () {
        yield* ProjectionTables.prepare(One.projections)
        yield* deposits(One, "ann", 40)
        const { Account, counter, reached } = yield* held(25)
        const starting = yield* ProjectionTables.prepare(Account.projections, { batchSize: 10 }).pipe(
          Effect.provide(nodeAt(url)),
          Effect.fork
        )
        yield* Deferred.await(reached)
        yield* Fiber.interrupt(starting)
        yield* deposits(One, "ann", 1)
        expect(yield* amounts).toEqual({ ann: 41 })
        expect(yield* records).toMatchObject([{ version: 1 }])
        yield* ProjectionTables.prepare(Account.projections, { batchSize: 10 })
        // At least one batch was kept.
        expect(counter.events).toBeLessThanOrEqual(25 + 31)
        expect(yield* amounts).toEqual({ ann: 41 })
        expect(yield* records).toMatchObject([{ version: 2 }])
        expect(yield* leftovers).toEqual([])
      })
    )
  )

  it.effect("an interruption at any moment leaves the tables of one version", () =>
    onDatabase(() =>
      Effect.gen(function* () {
        const seed = Math.floor(Math.random() * 1e9)
        const random = Random.make(seed)
        yield* depositsBefore("ann", 15)
        for (const version of Arr.range(1, 8)) {
          const Account = makeAccount([version % 2 === 0 ? balancesTwo(version) : balances(version)])
          const starting = yield* Effect.fork(ProjectionTables.prepare(Account.projections, { batchSize: 4 }))
          yield* Effect.repeatN(macrotask, 2 ** (yield* random.nextRange(6, 14.5)))
          yield* Fiber.interrupt(starting)
          yield* ProjectionTables.prepare(Account.projections, { batchSize: 4 })
          expect(yield* amounts, `seed ${seed}, version ${version}`).toEqual({ ann: 15 })
          expect(yield* records, `seed ${seed}, version ${version}`).toMatchObject([{ version }])
          expect(yield* leftovers, `seed ${seed}, version ${version}`).toEqual([])
        }
      })
    )
  )

  it.effect(
    "a failure of the statements or of the projection leaves the old tables, and the corrected version can be built",
    () =>
      onDatabase(() =>
        Effect.gen(function* () {
          yield* ProjectionTables.prepare(One.projections)
          yield* deposits(One, "ann", 12)
          const Wrong = makeAccount([balances(2, (sql) => sql`create table balances (account txt)`)])
          const wrong = yield* failureOf(ProjectionTables.prepare(Wrong.projections))
          expect(wrong).toContain(
            'projection "balances": a statement that makes the table balances of version 2 failed'
          )
          expect(wrong).toContain('type "txt" does not exist')
          const other = makeAccount([balances(2, (sql) => sql`create table balanced (account text)`)])
          expect(yield* failureOf(ProjectionTables.prepare(other.projections))).toContain(
            "did not make the table balances"
          )
          const Fails = makeAccount([
            {
              ...Projection.toEffect(balancesTwo()),
              project: (event: Event.Event) =>
                event.sequence === 8
                  ? Effect.fail("broken" as const)
                  : Projection.toEffect(balancesTwo()).project(event)
            }
          ])
          const failed = yield* Effect.exit(ProjectionTables.prepare(Fails.projections, { batchSize: 5 }))
          expect(failed).toEqual(Exit.fail("broken"))
          const Dies = makeAccount([
            {
              ...Projection.toEffect(balancesTwo()),
              project: (event: Event.Event) =>
                event.sequence === 8 ? Effect.die("boom") : Projection.toEffect(balancesTwo()).project(event)
            }
          ])
          const died = yield* Effect.exit(ProjectionTables.prepare(Dies.projections, { batchSize: 5 }))
          expect(died).toEqual(Exit.die("boom"))
          expect(yield* leftovers).toEqual([])
          yield* deposits(One, "ann", 1)
          expect(yield* amounts).toEqual({ ann: 13 })
          expect(yield* records).toMatchObject([{ version: 1 }])
          expect(yield* leftovers).toEqual([])
          yield* ProjectionTables.prepare(Two.projections)
          expect(yield* (yield* SqlClient.SqlClient)`select * from balances`).toEqual([
            { account: "ann", amount: 13, deposits: 13 }
          ])
        })
      )
  )

  it.effect("statements that fail at the first start leave nothing", () =>
    onDatabase(() =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const Wrong = makeAccount([balances(1, (sql) => [...createOne(sql), sql`create index on balances (nothing)`])])
        expect(yield* failureOf(ProjectionTables.prepare(Wrong.projections))).toContain(
          'column "nothing" does not exist'
        )
        expect(yield* sql`select to_regclass('balances')::text as balances`).toEqual([{ balances: null }])
        expect(yield* records).toEqual([])
        const elsewhere = makeAccount([
          balances(1, (sql) => sql`create table elsewhere.balances (account text primary key, amount int not null)`)
        ])
        yield* sql`create schema elsewhere`
        expect(yield* failureOf(ProjectionTables.prepare(elsewhere.projections))).toContain("without a schema")
        yield* ProjectionTables.prepare(One.projections)
      })
    )
  )

  it.effect("another declaration under the same version is refused, and says what differs", () =>
    onDatabase(() =>
      Effect.gen(function* () {
        yield* ProjectionTables.prepare(One.projections)
        const refused = <const S extends ProjectionTables.Source>(source: S) =>
          failureOf(ProjectionTables.prepare(source))
        const changed = makeAccount([balances(1, createTwo)])
        const text = yield* refused(changed.projections)
        expect(text).toContain("Misconfigured")
        expect(text).toContain("create table balances (account text primary key, amount int not null)")
        expect(text).toContain("deposits int not null default 0")
        expect(text).toContain("Raise `version`")
        expect(yield* refused(makeAccount([balances(1)], "Savings").projections)).toContain(
          "hold events of Account, and here the projection is of Savings"
        )
        const Kept = Subscription.fromProjections("kept", One.projections)
        expect(yield* refused(Kept)).toContain('are kept by the commits themselves, and here by subscription "kept"')
        // Different white space makes no other declaration.
        const spaced = makeAccount([
          balances(1, (sql) => [
            sql`create table balances
              (account text primary key,   amount int not null)`,
            sql`create index richest on balances (amount desc)`
          ])
        ])
        yield* ProjectionTables.prepare(spaced.projections)
        // Two projections own one table.
        const both = makeAccount([balances(1), balances(1, createOne, "others")])
        expect(yield* refused(both.projections)).toContain("both own the table balances")
        expect(yield* refused(makeAccount([balances(1, createOne, "others")]).projections)).toContain(
          'is that of projection "balances"'
        )
      })
    )
  )

  it.effect("an old node that starts after the swap logs a warning, and its rows get defaults in new columns", () =>
    onDatabase(() =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* ProjectionTables.prepare(Two.projections)
        const lines = yield* loggedBy(ProjectionTables.prepare(One.projections))
        expect(lines).toEqual([
          expect.stringMatching(/^WARN projection "balances" is of version 1, and its tables are of version 2/)
        ])
        yield* deposits(One, "ann", 2)
        expect(yield* sql`select * from balances`).toEqual([{ account: "ann", amount: 2, deposits: 0 }])
      })
    )
  )

  it.effect("after a version that requires the new column, an old node fails and says why", () =>
    onDatabase(() =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* ProjectionTables.prepare(Two.projections)
        yield* deposits(One, "ann", 2)
        yield* deposits(Two, "ann", 1)
        const Three = makeAccount([
          balancesTwo(
            3,
            (sql) => sql`create table balances (account text primary key, amount int not null, deposits int not null)`
          )
        ])
        yield* ProjectionTables.prepare(Three.projections)
        expect(yield* sql`select * from balances`).toEqual([{ account: "ann", amount: 3, deposits: 3 }])
        expect(yield* failureOf(deposits(One, "bob", 1))).toContain(
          'projection "balances", event Deposited 1 of aggregate "Account/bob": null value in column "deposits" of relation "balances"'
        )
        expect(yield* folded).toEqual({ ann: 3 })
        yield* deposits(Two, "bob", 1)
      })
    )
  )

  it.effect("existing tables without a record are refused, rebuilt or adopted", () =>
    onDatabase(() =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* Effect.forEach(createOne(sql), (statement) => statement)
        yield* deposits(One, "ann", 2)
        yield* sql`update balances set amount = 77`
        const text = yield* failureOf(ProjectionTables.prepare(One.projections))
        expect(text).toContain("these are there without a record: public.balances")
        expect(text).toContain('"rebuild"')
        expect(yield* amounts).toEqual({ ann: 77 })
        yield* ProjectionTables.prepare(One.projections, { onExisting: "adopt" })
        yield* ProjectionTables.prepare(One.projections)
        expect(yield* amounts).toEqual({ ann: 77 })
        expect(yield* ProjectionTables.forget("balances")).toBe(true)
        expect(yield* ProjectionTables.forget("balances")).toBe(false)
        yield* ProjectionTables.prepare(One.projections, { onExisting: "rebuild" })
        expect(yield* amounts).toEqual({ ann: 2 })
        expect(yield* sql`select 1 from pg_indexes where indexname = 'richest'`).toHaveLength(1)
        // A view is no table.
        yield* ProjectionTables.forget("balances")
        yield* sql`drop table balances`
        yield* sql`create view balances as select 1 as account`
        expect(yield* failureOf(ProjectionTables.prepare(One.projections, { onExisting: "adopt" }))).toContain(
          "no ordinary table"
        )
      })
    )
  )

  it.effect("a dropped table is refused, and built again when its record is forgotten", () =>
    onDatabase(() =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* ProjectionTables.prepare(One.projections)
        yield* deposits(One, "ann", 3)
        yield* sql`drop table balances`
        expect(yield* failureOf(ProjectionTables.prepare(One.projections))).toContain(
          'ProjectionTables.forget("balances")'
        )
        yield* ProjectionTables.forget("balances")
        yield* ProjectionTables.prepare(One.projections)
        expect(yield* amounts).toEqual({ ann: 3 })
        // The finished rebuild is forgotten, too.
        yield* sql`drop table balances`
        yield* ProjectionTables.forget("balances")
        yield* ProjectionTables.prepare(One.projections)
        expect(yield* amounts).toEqual({ ann: 3 })
      })
    )
  )

  it.effect("a version may declare other tables, and the old ones stay for old nodes", () =>
    onDatabase(() =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* ProjectionTables.prepare(One.projections)
        yield* deposits(One, "ann", 3)
        const Log = makeAccount([
          Projection.makeSql({
            name: "balances",
            events: Deposited,
            version: 2,
            tables: {
              log: (sql) => sql`create table log (account text, amount int)`,
              '"Sum"': (sql) => [sql`create table "Sum" (sum int)`, sql`insert into "Sum" values (0)`]
            },
            project: {
              Deposited: ({ amount }, { id }, sql) => [
                sql`insert into log values (${id}, ${amount})`,
                sql`update "Sum" set sum = sum + ${amount}`
              ]
            }
          })
        ])
        yield* ProjectionTables.prepare(Log.projections)
        yield* deposits(Log, "ann", 1)
        expect(yield* sql`select * from "Sum"`).toEqual([{ sum: 4 }])
        expect(yield* sql`select * from log`).toHaveLength(4)
        expect(yield* amounts).toEqual({ ann: 3 })
        expect(yield* records).toMatchObject([
          { version: 2, tables: '{"log":"public.log","\\"Sum\\"":"public.\\"Sum\\""}' }
        ])
      })
    )
  )

  it.effect("of two versions that start together the higher one stays in place, and both starts succeed", () =>
    onDatabase((url) =>
      Effect.gen(function* () {
        yield* ProjectionTables.prepare(One.projections)
        yield* deposits(One, "ann", 20)
        const { Account, goOn, reached } = yield* held(5)
        const lower = yield* ProjectionTables.prepare(Account.projections, { batchSize: 10 }).pipe(
          Effect.provide(nodeAt(url)),
          Effect.fork
        )
        yield* Deferred.await(reached)
        const Three = makeAccount([balancesTwo(3)])
        yield* ProjectionTables.prepare(Three.projections)
        yield* Deferred.succeed(goOn, undefined)
        yield* Fiber.join(lower)
        expect(yield* records).toMatchObject([{ version: 3 }])
        expect(yield* amounts).toEqual({ ann: 20 })
        // The next version drops the shadow tables of the lower one.
        yield* ProjectionTables.prepare(makeAccount([balances(4)]).projections)
        expect(yield* leftovers).toEqual([])
      })
    )
  )

  it.effect("a version with another keeper is refused, because processes of the old version may run", () =>
    onDatabase(() =>
      Effect.gen(function* () {
        yield* ProjectionTables.prepare(One.projections)
        yield* deposits(One, "ann", 2)
        const kept = Subscription.fromProjections("search", [Projection.of(makeAccount([]), balancesTwo())])
        const refused = yield* failureOf(ProjectionTables.prepare(kept))
        expect(refused).toContain("are kept by the commits themselves, and those of version 2 by subscription")
        expect(refused).toContain('set onKeeperChange to "allow"')
        expect(yield* records).toMatchObject([{ version: 1, subscription: null }])
        yield* ProjectionTables.prepare(kept, { onKeeperChange: "allow" })
        expect(yield* records).toMatchObject([{ version: 2, subscription: "search" }])
        expect(yield* amounts).toEqual({ ann: 2 })
      })
    )
  )

  it.effect("a start that finds its tables in place drops what a killed process has left of a lower version", () =>
    onDatabase((url) =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* ProjectionTables.prepare(One.projections)
        yield* deposits(One, "ann", 6)
        const { Account, reached } = yield* held(5)
        const lower = yield* ProjectionTables.prepare(Account.projections, { batchSize: 2 }).pipe(
          Effect.provide(nodeAt(url)),
          Effect.fork
        )
        yield* Deferred.await(reached)
        yield* Fiber.interrupt(lower)
        // The lease of a killed process runs out later.
        yield* sql`update maestro.subscriptions set leased_until = now() + interval '1 hour'`
        const Three = makeAccount([balancesTwo(3)])
        yield* ProjectionTables.prepare(Three.projections)
        expect(yield* leftovers).toHaveLength(1)
        yield* sql`update maestro.subscriptions set leased_until = now() - interval '1 hour'`
        yield* ProjectionTables.prepare(Three.projections)
        expect(yield* leftovers).toEqual([])
        expect(yield* sql`select 1 from maestro.subscriptions`).toEqual([])
      })
    )
  )

  it.effect("of two different declarations of one version that start together the second is refused", () =>
    onDatabase((url) =>
      Effect.gen(function* () {
        yield* ProjectionTables.prepare(One.projections)
        yield* deposits(One, "ann", 20)
        const { Account, goOn, reached } = yield* held(5)
        const second = yield* ProjectionTables.prepare(Account.projections, { batchSize: 10 }).pipe(
          Effect.provide(nodeAt(url)),
          Effect.fork
        )
        yield* Deferred.await(reached)
        yield* ProjectionTables.prepare(makeAccount([balances(2)]).projections)
        yield* Deferred.succeed(goOn, undefined)
        expect(yield* failureOf(Fiber.join(second))).toContain("were made by other statements")
      })
    )
  )

  it.effect("the table of one projection of two aggregates contains the events of both", () =>
    onDatabase(() =>
      Effect.gen(function* () {
        const Savings = makeAccount([balances(1)], "Savings")
        yield* ProjectionTables.prepare([...One.projections, ...Savings.projections])
        yield* deposits(One, "ann", 2)
        yield* deposits(Savings, "bob", 3)
        expect(yield* failureOf(ProjectionTables.prepare(One.projections))).toContain(
          "Give the projections of all its aggregates together"
        )
        yield* ProjectionTables.prepare([
          ...makeAccount([balancesTwo()]).projections,
          ...makeAccount([balancesTwo()], "Savings").projections
        ])
        expect(yield* amounts).toEqual({ ann: 2, bob: 3 })
      })
    )
  )

  it.effect("the tables of a subscription are rebuilt together, and it continues after the rebuild", () =>
    onDatabase(() =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const Plain = makeAccount([])
        const counts = (version: number) =>
          Projection.makeSql({
            name: "counts",
            of: Plain,
            version,
            tables: { counts: (sql) => sql`create table counts (account text primary key, events int not null)` },
            project: {
              Deposited: (_, { id }, sql) =>
                sql`insert into counts as c (account, events) values (${id}, 1)
                  on conflict (account) do update set events = c.events + 1`
            }
          })
        const both = sql`select account, amount, events from balances join counts using (account)`
        const Search = Subscription.fromProjections("search", [Projection.of(Plain, balances(1)), counts(1)])
        const depositing = (count: number) =>
          Effect.flatMap(Effect.replicateEffect(deposit(Plain, "ann"), count), (all) =>
            Effect.succeed(all.at(-1)?.position)
          )
        const waitFor = (position: Parameters<typeof Subscription.waitFor>[1] | undefined) =>
          position === undefined ? Effect.die("no position") : Subscription.waitFor("search", position, "20 seconds")
        yield* Effect.gen(function* () {
          yield* Effect.flatMap(depositing(5), waitFor).pipe(
            Effect.provide(Search.layer.pipe(Layer.provide(ProjectionTables.layer(Search))))
          )
          expect(yield* both).toEqual([{ account: "ann", amount: 5, events: 5 }])
          expect(yield* records).toMatchObject([{ subscription: "search" }, { subscription: "search" }])
          // The rows are wrong, and events are committed while no process runs the subscription.
          yield* sql`update counts set events = 77`
          yield* depositing(5)
          const Next = Subscription.fromProjections("search", [Projection.of(Plain, balancesTwo()), counts(1)], {
            lease: "300 millis"
          })
          yield* Effect.flatMap(depositing(5), waitFor).pipe(
            Effect.provide(Next.layer.pipe(Layer.provide(ProjectionTables.layer(Next))))
          )
          expect(yield* both).toEqual([{ account: "ann", amount: 15, events: 15 }])
          // A process of the older version runs the subscription during the rebuild.
          const Last = Subscription.fromProjections("search", [Projection.of(Plain, balancesTwo(3)), counts(1)])
          yield* Effect.gen(function* () {
            const storm = yield* Effect.fork(depositing(30))
            yield* ProjectionTables.prepare(Last, { batchSize: 5 })
            yield* Effect.flatMap(Fiber.join(storm), waitFor)
          }).pipe(Effect.provide(Next.layer))
          expect(yield* both).toEqual([{ account: "ann", amount: 45, events: 45 }])
          // All projections of a subscription must own tables.
          const Without = Subscription.fromProjections("search", [
            Projection.of(Plain, { name: "x", project: () => Effect.void })
          ])
          expect(yield* failureOf(ProjectionTables.prepare(Without))).toContain(
            'projection "x" of subscription "search" owns no tables'
          )
          // One version is raised and another is lowered.
          const Mixed = Subscription.fromProjections("search", [Projection.of(Plain, balances(1)), counts(2)])
          expect(yield* failureOf(ProjectionTables.prepare(Mixed))).toContain("are raised together")
        }).pipe(Effect.provide(Plain.layer))
      })
    )
  )

  it.effect(
    "prepare works with a pool of one connection, another schema, a search path, and tables by SqlStore.migrate",
    () =>
      Effect.scoped(
        Effect.gen(function* () {
          const url = yield* makeDatabase
          yield* Effect.gen(function* () {
            const sql = yield* SqlClient.SqlClient
            yield* sql`create schema shop`
            yield* SqlStore.migrate({ schema: "events" })
          }).pipe(Effect.provide(nodeAt(url)))
          const shop = new URL(url)
          shop.searchParams.set("options", "-c search_path=shop,public")
          const node = nodeAt(shop.href, { schema: "events", migrate: false }, { maxConnections: 1 })
          yield* Effect.gen(function* () {
            yield* depositsBefore("ann", 3)
            yield* ProjectionTables.prepare(One.projections)
            yield* deposits(One, "ann", 3)
            yield* ProjectionTables.prepare(Two.projections)
            yield* deposits(Two, "ann", 1)
            const sql = yield* SqlClient.SqlClient
            expect(yield* sql`select * from shop.balances`).toEqual([{ account: "ann", amount: 7, deposits: 7 }])
          }).pipe(Effect.provide(node))
          // A client whose search path leads elsewhere is refused.
          yield* Effect.gen(function* () {
            const sql = yield* SqlClient.SqlClient
            expect(yield* failureOf(ProjectionTables.prepare(Two.projections))).toContain("recorded as shop.balances")
            yield* createTwo(sql)
            expect(yield* failureOf(ProjectionTables.prepare(Two.projections))).toContain(
              "the search path of this client leads to public.balances"
            )
          }).pipe(Effect.provide(nodeAt(url, { schema: "events" })))
          // A table whose schema was renamed is found by its name.
          shop.searchParams.set("options", "-c search_path=store")
          yield* Effect.gen(function* () {
            const sql = yield* SqlClient.SqlClient
            yield* sql`drop table public.balances`
            yield* sql`alter schema shop rename to store`
            yield* ProjectionTables.prepare(Two.projections)
            yield* ProjectionTables.prepare(makeAccount([balances(3)]).projections)
            expect(yield* sql`select * from store.balances`).toEqual([{ account: "ann", amount: 7 }])
          }).pipe(Effect.provide(nodeAt(shop.href, { schema: "events" })))
        }).pipe(Effect.provide(quiet))
      )
  )
})

it.live("prepare works on PGlite, does not compile on the memory store, and is refused inside of a transaction", () =>
  Effect.gen(function* () {
    yield* ProjectionTables.prepare(One.projections)
    yield* deposits(One, "ann", 12)
    yield* ProjectionTables.prepare(Two.projections, { batchSize: 5 })
    yield* deposits(Two, "ann", 1)
    const sql = yield* SqlClient.SqlClient
    expect(yield* sql`select * from balances`).toEqual([{ account: "ann", amount: 13, deposits: 13 }])
    expect(yield* failureOf(ProjectionTables.prepare(makeAccount([balances(2)]).projections))).toContain(
      "Raise `version`"
    )
    expect(yield* failureOf(sql.withTransaction(ProjectionTables.prepare(One.projections)))).toContain(
      "not inside of another"
    )
    // It compiles neither without a client nor on the memory store.
    const onMemory = ProjectionTables.prepare(One.projections).pipe(Effect.provide(MemoryStore.layer))
    expectTypeOf<Effect.Effect.Context<typeof onMemory>>().toEqualTypeOf<SqlClient.SqlClient | SqlStore.Tables>()
  }).pipe(Effect.provide(SqlStore.layer.pipe(Layer.provideMerge(layerPglite), Layer.merge(quiet))))
)

it("an invalid declaration is refused by Projection.makeSql", () => {
  const made = (options: object) => () =>
    Projection.makeSql({ name: "balances", events: Deposited, project: {}, ...options })
  expect(made({ version: 2 })).toThrow("`version`, and no `tables`")
  expect(made({ tables: {} })).toThrow("names none")
  for (const version of [0, 1.5, -1, 2 ** 31, Number.NaN]) {
    expect(made({ version, tables: { a: () => [] } })).toThrow("a whole number from 1")
  }
  for (const table of ["public.a", "", "a b", '"a', "1a", "a".repeat(64), "a;drop table b"]) {
    expect(made({ tables: { [table]: () => [] } })).toThrow("must be an identifier")
  }
  expect(made({ tables: { a: () => [], '"b.c"': () => [], ü_1$: () => [] } })).not.toThrow()
  expect(made({ name: "effect-maestro/x", tables: { a: () => [] } })).toThrow("reserved")
})
