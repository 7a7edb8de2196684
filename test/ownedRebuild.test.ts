/** `Rebuild.run` of tables that projections own: a rebuild that does not fit the record is refused. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { Projection, ProjectionTables, Rebuild, Subscription } from "effect-maestro"
import { makeMigratedDatabase } from "./database.js"
import { amounts, balances, balancesTwo, createOne, deposit, makeAccount, nodeAt } from "./projectionTables.js"

/** Runs the effect on a new database. */
const onDatabase = <A, E, R>(run: Effect.Effect<A, E, R>) =>
  Effect.scoped(Effect.flatMap(makeMigratedDatabase, (url) => Effect.provide(run, nodeAt(url))))

const refusalOf = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.map(Effect.flip(effect), (error) => `${error}`)

const Plain = makeAccount([])

const five = Effect.provide(Effect.replicateEffect(deposit(Plain, "ann"), 5, { discard: true }), Plain.layer)

/** Counts events in a row that the statements of the projection insert. */
const counter = (version = 1, name = "counter") =>
  Projection.makeSql({
    name,
    of: Plain,
    version,
    tables: {
      counter: (sql) => [sql`create table counter (events int not null)`, sql`insert into counter values (0)`]
    },
    project: { Deposited: (_, __, sql) => sql`update counter set events = events + 1` }
  })

const counted = Effect.flatMap(SqlClient.SqlClient, (sql) => sql`select events from counter`)

layer(Layer.empty, { excludeTestServices: true, timeout: 60_000 })("a rebuild of owned tables", (it) => {
  it.effect("of tables that a subscription keeps is refused without it, and works with it", () =>
    onDatabase(
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const Counts = Subscription.fromProjections("counts", [counter(), Projection.of(Plain, balances(1))], {
          lease: "300 millis"
        })
        const Live = Counts.layer.pipe(Layer.provide(ProjectionTables.layer(Counts)))
        const followed = Effect.gen(function* () {
          yield* five
          const [head] = yield* sql<{ head: number }>`select max(sequence)::int as head from maestro.event_log`
          const sequence = head?.head ?? 0
          yield* Subscription.waitFor("counts", { aggregateId: "Account/ann", sequence }, "20 seconds")
        })
        yield* Effect.provide(followed, Live)
        expect(yield* counted).toEqual([{ events: 5 }])

        const only = { name: "again", projections: [counter()], tables: ["counter"] } as const
        const without = yield* refusalOf(Rebuild.run(only))
        expect(without).toContain("Misconfigured")
        expect(without).toContain(
          'subscription "counts" keeps public.counter of projection "counter": pass it as `subscription`'
        )
        const Other = Subscription.fromProjections("others", only.projections)
        expect(yield* refusalOf(Rebuild.run({ ...only, subscription: Other }))).toContain('subscription "counts" keeps')
        // It moves the subscription, so all tables of the subscription must be named.
        expect(yield* refusalOf(Rebuild.run({ ...only, subscription: Counts }))).toContain(
          'keeps those of projection "balances" too'
        )
        // A table without a record, with a subscription that keeps other tables.
        yield* sql`create table seen (events int)`
        expect(yield* refusalOf(Rebuild.run({ ...only, tables: ["seen"], subscription: Counts }))).toContain(
          "name public.counter in `tables` too"
        )
        yield* sql`update counter set events = 77`
        const all = { name: "again", projections: Counts.projections, tables: ["public.counter", "balances"] } as const
        expect(yield* Rebuild.run({ ...all, subscription: Counts })).toBe(5)
        expect(yield* counted).toEqual([{ events: 5 }])
        yield* Effect.provide(followed, Live)
        expect(yield* counted).toEqual([{ events: 10 }])
        expect(yield* amounts).toEqual({ ann: 10 })
      })
    )
  )

  it.effect(
    "of tables that commits keep is refused with a subscription, another projection or version, or `create`",
    () =>
      onDatabase(
        Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          const Account = makeAccount([balances(1), counter()])
          yield* ProjectionTables.prepare(Account.projections)
          yield* Effect.provide(Effect.replicateEffect(deposit(Account, "ann"), 5), Account.layer)
          yield* sql`update balances set amount = 77`
          yield* sql`update counter set events = 77`
          const all = { name: "again", projections: Account.projections, tables: ["balances", "counter"] } as const
          const Kept = { name: "kept", partitions: 1, filter: undefined }
          expect(yield* refusalOf(Rebuild.run({ ...all, subscription: Kept }))).toContain("leave out `subscription`")
          const others = [counter(1, "counters")]
          expect(yield* refusalOf(Rebuild.run({ ...all, projections: others, tables: ["counter"] }))).toContain(
            'which projection "counter" owns'
          )
          const Two = makeAccount([balancesTwo()])
          expect(
            yield* refusalOf(Rebuild.run({ ...all, projections: Two.projections, tables: ["balances"] }))
          ).toContain("are of version 1, and the projection is of version 2")
          const Savings = makeAccount([balances(1)], "Savings")
          expect(
            yield* refusalOf(Rebuild.run({ ...all, projections: Savings.projections, tables: ["balances"] }))
          ).toContain("hold events of Account")
          expect(yield* refusalOf(Rebuild.run({ ...all, create: sql`create table balances ()` }))).toContain(
            "leave out `create`"
          )
          yield* sql`create table seen (events int)`
          expect(yield* refusalOf(Rebuild.run({ ...all, tables: ["balances", "counter", "seen"] }))).toContain(
            "no projection owns public.seen"
          )
          // A table whose schema was renamed is found by its name.
          yield* sql`update maestro.projection_tables set tables = replace(tables::text, 'public.', 'former.')::json`
          const kept = yield* refusalOf(Rebuild.run({ ...all, subscription: Kept }))
          expect(kept).toContain("commits themselves keep public.balances")
          expect(yield* Rebuild.run(all)).toBe(5)
          expect(yield* amounts).toEqual({ ann: 5 })
          expect(yield* counted).toEqual([{ events: 5 }])
        })
      )
  )

  it.effect(
    "is refused before the first event without a table that a projection declares, and the table is named",
    () =>
      onDatabase(
        Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          yield* sql`create table other (account text primary key)`
          yield* sql`create table "Counter" (events int)`
          const Account = makeAccount([balances(1), counter()])
          const refused = (tables: readonly [string, ...ReadonlyArray<string>]) =>
            refusalOf(Rebuild.run({ name: "again", projections: Account.projections, tables }))
          const expectRefusals = (where: string) =>
            Effect.gen(function* () {
              for (const tables of [["other"], ["blances"], ["other", '"Counter"']] as const) {
                const text = yield* refused(tables)
                expect(text).toContain("Misconfigured")
                expect(text).toContain(
                  `"balances" owns ${where}balances, which the rebuild of ${tables.join(", ")} leaves out`
                )
              }
              expect(yield* refused(["balances"])).toContain(`"counter" owns ${where}counter, which the rebuild of`)
              expect(yield* Rebuild.status("again")).toEqual(Option.none())
            })
          // The tables are those of the application, and have no record.
          yield* Effect.forEach(createOne(sql), (statement) => statement)
          yield* sql`create table counter (events int not null)`
          yield* sql`insert into counter values (0)`
          yield* Effect.provide(Effect.replicateEffect(deposit(Account, "ann"), 5), Account.layer)
          yield* expectRefusals("")
          const all = { projections: Account.projections, tables: ["public.balances", "counter"] } as const
          expect(yield* Rebuild.run({ ...all, name: "all" })).toBe(5)
          yield* ProjectionTables.prepare(Account.projections, { onExisting: "adopt" })
          yield* expectRefusals("public.")
          expect(yield* amounts).toEqual({ ann: 5 })
        })
      )
  )

  it.effect("is refused at its swap where a projection owns the tables since it began", () =>
    onDatabase(
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* Effect.forEach(createOne(sql), (statement) => statement)
        yield* five
        const Kept = Subscription.fromProjections("kept", [Projection.of(Plain, balances(1))])
        const projections = [Projection.of(Plain, balances(1))] as const
        const context =
          yield* Effect.context<Effect.Effect.Context<ReturnType<typeof ProjectionTables.prepare<typeof Kept>>>>()
        const running = Rebuild.run({
          name: "again",
          projections,
          tables: ["balances"],
          onProgress: () =>
            ProjectionTables.prepare(Kept, { onExisting: "adopt" }).pipe(Effect.orDie, Effect.provide(context))
        })
        expect(yield* refusalOf(running)).toContain('subscription "kept" keeps public.balances')
        expect(yield* amounts).toEqual({})
      })
    )
  )
})
