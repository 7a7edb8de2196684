/** Mistakes with tables that projections own: each fails, and the failure says what to do. */

import * as SqlClient from "@effect/sql/SqlClient"
import { SqlError } from "@effect/sql/SqlError"
import { expect, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { Projection, ProjectionTables } from "effect-maestro"
import { makeMigratedDatabase } from "./database.js"
import {
  amounts,
  balances,
  balancesTwo,
  createOne,
  Deposited,
  deposit,
  makeAccount,
  nodeAt,
  records
} from "./projectionTables.js"

/** Runs the effect on a new database. */
const onDatabase = <A, E, R>(run: (url: string) => Effect.Effect<A, E, R>) =>
  Effect.scoped(
    Effect.flatMap(makeMigratedDatabase, (url) => Effect.provide(run(url), nodeAt(url)).pipe(Effect.provide(quiet)))
  )

const quiet = Logger.remove(Logger.defaultLogger)

layer(Layer.empty, { excludeTestServices: true, timeout: 60_000 })("tables of projections", (it) => {
  it.effect("a commit without ProjectionTables.layer fails, and says to provide it", () =>
    onDatabase(() =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const failing = <const P extends ReadonlyArray<Projection.Projection.Any>>(projections: P) => {
          const Account = makeAccount(projections)
          return Effect.flip(Effect.provide(deposit(Account, "ann"), Account.layer))
        }
        const hint = "the projection owns balances: provide ProjectionTables.layer, which makes it, below"
        expect(`${yield* failing([balances(1)])}`).toContain(hint)
        const writing = (statement: Effect.Effect<unknown, SqlError>) =>
          Projection.make({
            name: "balances",
            events: Deposited,
            tables: { balances: createOne },
            project: { Deposited: () => statement }
          })
        const error = yield* failing([writing(sql`insert into public.balances values ('ann', 1)`)])
        expect(error).toBeInstanceOf(SqlError)
        expect(`${error}`).toContain(hint)
        expect(`${yield* failing([Projection.orStoreError(writing(sql`delete from balances`))])}`).toContain(hint)
        // The table is of another version.
        yield* ProjectionTables.prepare(makeAccount([balances(1)]).projections)
        const version = "the projection owns balances: if that is of another version, provide ProjectionTables.layer"
        expect(`${yield* failing([balancesTwo()])}`).toContain(version)
        expect(`${yield* failing([writing(sql`delete from balances where deposits = 0`)])}`).toContain(version)
        // The projection does not own a table of another name.
        expect(`${yield* failing([Projection.orStoreError(writing(sql`delete from balances_2`))])}`).not.toContain(
          "ProjectionTables"
        )
      })
    )
  )

  it.effect("a refusal that ends a rebuild is logged as an error, with projection, version, event and aggregate", () =>
    onDatabase(() =>
      Effect.gen(function* () {
        const One = makeAccount([balances(1)])
        yield* ProjectionTables.prepare(One.projections)
        const depositing = Effect.forEach([1, 2, 3], (amount) => deposit(One, "ann", amount))
        yield* Effect.provide(depositing, One.layer)
        const Small = makeAccount([
          Projection.makeSql({
            name: "balances",
            events: Deposited,
            version: 2,
            tables: {
              balances: (sql) =>
                sql`create table balances (account text, amount int constraint small check (amount < 3))`
            },
            project: {
              Deposited: ({ amount }, { id }, sql) => sql`insert into balances values (${id}, ${amount})`
            },
            onConstraint: { small: ({ amount }) => ({ _tag: "TooMuch", amount }) as const }
          })
        ])
        const lines: Array<string> = []
        const logger = Logger.make(({ logLevel, message }) => void lines.push(`${logLevel.label} ${String(message)}`))
        const exit = yield* Effect.exit(ProjectionTables.prepare(Small.projections)).pipe(
          Effect.provide(Logger.replace(Logger.defaultLogger, logger))
        )
        expect(exit).toEqual(Exit.fail({ _tag: "TooMuch", amount: 3 }))
        expect(lines.filter((line) => line.startsWith("ERROR"))).toEqual([
          expect.stringContaining(
            'projection "balances" of version 2 failed at event 3 of aggregate "Account/ann", of type "Deposited"'
          )
        ])
      })
    )
  )

  it.effect("an invalid option is refused at each start, also while the tables are in place", () =>
    onDatabase(() =>
      Effect.gen(function* () {
        const { projections } = makeAccount([balances(1)])
        const invalid = {
          maxHold: "99 millis",
          batchSize: 0,
          onExisting: "replace",
          onKeeperChange: "yes",
          onFewerAggregates: "yes"
        }
        const expectRefusal = Effect.forEach(Object.entries(invalid), ([option, value]) =>
          Effect.gen(function* () {
            const options = { [option]: value } as ProjectionTables.Options
            const error = yield* Effect.flip(ProjectionTables.prepare(projections, options))
            expect(error).toMatchObject({ _tag: "ValidationError", issues: [{ path: [option] }] })
            expect(`${error}`).toContain("ProjectionTables.prepare refused its input")
            const built = Effect.scoped(Layer.build(ProjectionTables.layer(projections, options)))
            expect(yield* Effect.flip(built)).toEqual(error)
          })
        )
        yield* expectRefusal
        expect(yield* records).toEqual([])
        yield* ProjectionTables.prepare(projections)
        yield* expectRefusal
        yield* ProjectionTables.prepare(projections, { maxHold: "100 millis", batchSize: 10_000 })
      })
    )
  )

  it.effect("a rebuild that projects into an unknown column does not say to provide ProjectionTables.layer", () =>
    onDatabase(() =>
      Effect.gen(function* () {
        const One = makeAccount([balances(1)])
        yield* ProjectionTables.prepare(One.projections)
        yield* Effect.provide(deposit(One, "ann"), One.layer)
        const Wrong = makeAccount([balancesTwo(2, createOne)])
        const error = `${yield* Effect.flip(ProjectionTables.prepare(Wrong.projections))}`
        expect(error).toContain('column "deposits" of relation "balances" does not exist')
        expect(error).not.toContain("ProjectionTables.layer")
      })
    )
  )

  it.effect("a version of fewer aggregates than the tables hold events of is refused, unless that is allowed", () =>
    onDatabase(() =>
      Effect.gen(function* () {
        const One = makeAccount([balances(1)])
        const Savings = makeAccount([balances(1)], "Savings")
        yield* ProjectionTables.prepare([...One.projections, ...Savings.projections])
        yield* Effect.provide(deposit(One, "ann"), One.layer)
        yield* Effect.provide(deposit(Savings, "bob"), Savings.layer)
        const Two = makeAccount([balancesTwo()])
        const refused = `${yield* Effect.flip(ProjectionTables.prepare(Two.projections))}`
        expect(refused).toContain("version 1, hold events of Account, Savings, and version 2 is of Account alone")
        expect(refused).toContain("would lose the rows of Savings")
        expect(refused).toContain('set onFewerAggregates to "allow"')
        expect(yield* amounts).toEqual({ ann: 1, bob: 1 })
        yield* ProjectionTables.prepare(Two.projections, { onFewerAggregates: "allow" })
        expect(yield* amounts).toEqual({ ann: 1 })
        expect(yield* records).toMatchObject([{ version: 2 }])
      })
    )
  )

  it.effect("names that a higher version could not use are refused at the first start", () =>
    onDatabase(() =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const create: ProjectionTables.TableStatements = (sql) =>
          sql`create table balances (account text primary key, amount int not null, id serial)`
        const prepare = (version: number) =>
          ProjectionTables.prepare(makeAccount([balances(version, create)]).projections)
        // The database chooses free names for the index and the sequence of version 1. Those of version 2 are in
        // another schema.
        yield* sql`create table balances_pkey (x int)`
        yield* sql`create sequence balances_id_seq`
        const refused = `${yield* Effect.flip(prepare(1))}`
        expect(refused).toContain("taken: sequence public.balances_id_seq, table public.balances_pkey. Rename them")
        expect(yield* records).toEqual([])
        yield* sql`drop table balances_pkey`
        yield* sql`drop sequence balances_id_seq`
        // The database chooses a free name for the array type when it moves the table.
        yield* sql`create table _balances (x int)`
        for (const version of [1, 2, 3]) yield* prepare(version)
        expect(yield* records).toMatchObject([{ version: 3 }])
      })
    )
  )

  it.effect("statements that could not make the tables of a higher version are refused at the first start", () =>
    onDatabase(() =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const made = (create: ProjectionTables.TableStatements) => makeAccount([balances(1, create)])
        const refused = (create: ProjectionTables.TableStatements) =>
          Effect.map(Effect.flip(ProjectionTables.prepare(made(create).projections)), (error) => `${error}`)
        const qualified: ReadonlyArray<ProjectionTables.TableStatements> = [
          (sql) => sql`create table public.balances (account text primary key, amount int)`,
          (sql) => sql`create table if not exists public.balances (account text primary key, amount int)`,
          (sql) => sql`do $$ begin execute 'create table public.balances (account text, amount int)'; end $$`
        ]
        for (const create of qualified) {
          const text = yield* refused(create)
          expect(text).toContain("Misconfigured")
          expect(text).toContain("must name a table without a schema")
        }
        const moods = yield* refused((sql) => [
          sql`create type mood as enum ('glad')`,
          sql`create table balances (account text, amount int, mood mood)`
        ])
        expect(moods).toContain("make more than the tables and what belongs to them: type")
        expect(yield* records).toEqual([])
        expect(yield* sql`select 1 from pg_class where relname = 'balances'`).toEqual([])
        // Where events are stored, a rebuild makes the tables of version 1.
        const Plain = makeAccount([])
        yield* Effect.provide(deposit(Plain, "ann"), Plain.layer)
        for (const create of qualified.slice(0, 2)) {
          const text = yield* refused(create)
          expect(text).toContain("Misconfigured")
          expect(text).toContain("without a schema")
        }
      })
    )
  )
})
