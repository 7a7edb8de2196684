/**
 * Nodes that wait for the rebuild of another node. Their wait ends when that rebuild finishes, fails or is abandoned.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, inject, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import { type Event, EventFeed, Projection, ProjectionTables, Rebuild, SubscriptionStore } from "effect-maestro"
import { makeMigratedDatabase } from "./database.js"
import { amounts, balances, balancesTwo, deposit, leftovers, makeAccount, nodeAt } from "./projectionTables.js"
import { eventually } from "./subscribers.js"

const One = makeAccount([balances(1)])

const quiet = Logger.remove(Logger.defaultLogger)

/** Runs the effect on a new database, where version 1 has projected six deposits. */
const onDatabase = <A, E, R>(run: (url: string) => Effect.Effect<A, E, R>) =>
  Effect.scoped(
    Effect.flatMap(makeMigratedDatabase, (url) =>
      Effect.gen(function* () {
        yield* ProjectionTables.prepare(One.projections)
        yield* Effect.provide(
          Effect.forEach(Arr.range(1, 6), () => deposit(One, "ann")),
          One.layer
        )
        return yield* run(url)
      }).pipe(Effect.provide(Layer.provideMerge(nodeAt(url), quiet)))
    )
  )

/** The leases of rebuilds that are left. */
const leases = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`select name from maestro.subscriptions where name like 'effect-maestro/rebuild/%'`
)

/** Waits until the node `waiter` has found that the lease is held. */
const hasAsked = (url: string) => {
  const database = new URL(url).pathname.slice(1)
  return Effect.flatMap(SqlClient.SqlClient, (sql) =>
    eventually(
      sql`select 1 from pg_stat_activity where datname = ${database} and application_name = 'waiter'
        and query like '%leased_until - clock_timestamp()%'`,
      (rows) => rows.length > 0
    )
  )
}

/** Version 2. It fails at the fourth event when `goOn` is completed. */
const failing = Effect.gen(function* () {
  const reached = yield* Deferred.make<void>()
  const goOn = yield* Deferred.make<void>()
  const project = (event: Event.Event) =>
    event.sequence < 4
      ? Projection.toEffect(balancesTwo()).project(event)
      : Effect.zipRight(
          Deferred.succeed(reached, undefined),
          Effect.zipRight(Deferred.await(goOn), Effect.fail("broken" as const))
        )
  return { Account: makeAccount([{ ...Projection.toEffect(balancesTwo()), project }]), goOn, reached }
})

layer(Layer.empty, { excludeTestServices: true, timeout: 30_000 })("waiting for a rebuild", (it) => {
  it.effect("when the rebuild fails, each waiting node begins it again, and fails with its own failure", () =>
    onDatabase((url) =>
      Effect.gen(function* () {
        const { Account, goOn, reached } = yield* failing
        const prepare = Effect.exit(ProjectionTables.prepare(Account.projections, { batchSize: 2 }))
        const first = yield* Effect.fork(Effect.provide(prepare, nodeAt(url)))
        yield* Deferred.await(reached)
        const second = yield* Effect.fork(
          Effect.provide(prepare, nodeAt(url, {}, { maxConnections: 1, applicationName: "waiter" }))
        )
        yield* hasAsked(url)
        yield* Deferred.succeed(goOn, undefined)
        expect([yield* Fiber.join(first), yield* Fiber.join(second)]).toEqual([
          Exit.fail("broken"),
          Exit.fail("broken")
        ])
        expect(yield* leftovers).toEqual([])
        expect(yield* leases).toEqual([])
      })
    )
  )

  it.effect("when the rebuild is abandoned, the waiting run fails, and says so", () =>
    onDatabase((url) =>
      Effect.gen(function* () {
        const reached = yield* Deferred.make<void>()
        const rebuild = (onProgress: Effect.Effect<unknown>) =>
          Rebuild.run({
            name: "again",
            projections: One.projections,
            tables: ["balances"],
            batchSize: 2,
            onProgress: () => onProgress
          })
        const first = yield* Effect.fork(
          Effect.flip(rebuild(Effect.zipRight(Deferred.succeed(reached, undefined), Effect.never)))
        )
        yield* Deferred.await(reached)
        const second = yield* Effect.fork(
          Effect.provide(
            Effect.flip(rebuild(Effect.void)),
            nodeAt(url, {}, { maxConnections: 1, applicationName: "waiter" })
          )
        )
        yield* hasAsked(url)
        yield* Rebuild.abandon("again")
        expect(`${yield* Fiber.join(second)}`).toContain('rebuild "again" was abandoned')
        expect(`${yield* Fiber.join(first)}`).toContain('rebuild "again" was abandoned')
        expect(yield* leases).toEqual([])
        expect(yield* amounts).toEqual({ ann: 6 })
      })
    )
  )

  it.effect("a rebuild that loses its lease before it has begun to project begins again", () =>
    onDatabase(() =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const log = yield* sql.reserve
        const onLog = (statement: string) => log.executeUnprepared(statement, [], undefined)
        yield* onLog("begin; lock table maestro.event_log in access exclusive mode")
        const running = yield* Effect.fork(
          Effect.exit(Rebuild.run({ name: "again", projections: One.projections, tables: ["balances"] }))
        )
        // It looks at the log, to count the events that it has to project.
        const looking = sql`select 1 from pg_stat_activity
          where datname = current_database() and wait_event_type = 'Lock' and query like '%event_log%'`
        yield* eventually(looking, (rows) => rows.length > 0)
        expect(yield* Rebuild.status("again")).toEqual(Option.none())
        yield* sql`update maestro.subscriptions set token = token + 1, holder = null, leased_until = null
          where name like 'effect-maestro/rebuild/%'`
        yield* eventually(
          sql`select 1 from maestro.subscriptions where name like 'effect-maestro/rebuild/%' and holder is not null`,
          (rows) => rows.length > 0 || running.unsafePoll() !== null
        )
        yield* onLog("rollback")
        expect(yield* Fiber.join(running)).toEqual(Exit.succeed(6))
        expect(yield* amounts).toEqual({ ann: 6 })
        expect(yield* leases).toEqual([])
      }).pipe(Effect.scoped)
    )
  )

  it.effect("a node that waits for a lease whose row is deleted takes the lease, from the beginning", () =>
    onDatabase((url) =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const holding = yield* Scope.make()
        const lease = Effect.flatMap(SubscriptionStore.SubscriptionStore, (store) =>
          store.lease({
            key: { name: "letters", partition: 0, partitions: 1 },
            from: EventFeed.beginning,
            holder: "test",
            duration: 60_000
          })
        )
        yield* Scope.extend(lease, holding)
        const waiting = yield* Effect.fork(
          Effect.provide(
            Effect.scoped(Effect.map(lease, ({ position }) => position)),
            nodeAt(url, {}, { maxConnections: 1, applicationName: "waiter" })
          )
        )
        yield* hasAsked(url)
        yield* sql`delete from maestro.subscriptions where name = 'letters'`
        expect(yield* Fiber.join(waiting)).toEqual(EventFeed.beginning)
        yield* Scope.close(holding, Exit.void)
      })
    )
  )

  // A counter holds no event back.
  it.effect.skipIf(inject("feedOrder") === "counter")(
    "while a transaction holds back many events the tables stay unlocked, and a warning names its session",
    () =>
      onDatabase((url) =>
        Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          const end = yield* Deferred.make<void>()
          const begun = yield* Deferred.make<void>()
          const holding = yield* sql`select pg_current_xact_id()`.pipe(
            Effect.zipRight(Deferred.succeed(begun, undefined)),
            Effect.zipRight(Deferred.await(end)),
            sql.withTransaction,
            Effect.provide(nodeAt(url)),
            Effect.fork
          )
          yield* Deferred.await(begun)
          yield* Effect.provide(
            Effect.forEach(Arr.range(1, 510), (n) => deposit(One, `account-${n}`), { concurrency: 50, discard: true }),
            One.layer
          )
          const warned = yield* Deferred.make<string>()
          const logger = Logger.make(({ message }) => {
            if (String(message).includes("waits before")) Deferred.unsafeDone(warned, Exit.succeed(String(message)))
          })
          const running = yield* Rebuild.run({ name: "held", projections: One.projections, tables: ["balances"] }).pipe(
            Effect.provide(Logger.add(logger)),
            Effect.fork
          )
          expect(yield* Deferred.await(warned)).toMatch(
            /held back 510 .* until the transaction of process \d+ has ended/
          )
          expect(Object.keys(yield* amounts)).toHaveLength(511)
          expect(yield* Rebuild.status("held")).toMatchObject({ value: { finished: false } })
          yield* Deferred.succeed(end, undefined)
          yield* Fiber.join(holding)
          expect(yield* Fiber.join(running)).toBe(516)
          expect(Object.values(yield* amounts).reduce((sum, amount) => sum + amount, 0)).toBe(516)
        })
      )
  )
})
