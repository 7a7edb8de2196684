/** A short history under faults (`npm run test:faults` is the long one). Stores and feeds that are broken on purpose are caught. */
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import { expect, inject, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { type Projection, SqlStore, StoreAdapter, Timestamp } from "effect-maestro"
import * as Broken from "./brokenStores.js"
import { connect, makeDatabase } from "./faults/database.js"
import { Deposit, Wallet } from "./faults/domain.js"
import { cutEverything, type Fault, faults, mishaps, noFault, underFault } from "./faults/faults.js"
import { clean, type Verdict } from "./faults/history.js"
import { makeProxy, type Proxy } from "./faults/proxy.js"
import { makeServer, type Server } from "./faults/server.js"
import { type Breaking, makeNode } from "./faults/workload.js"

class Ground extends Context.Tag("test/Ground")<Ground, { readonly server: Server; readonly proxy: Proxy }>() {
  static readonly layer = Layer.scoped(
    Ground,
    Effect.gen(function* () {
      const server = yield* makeServer(["-c", "deadlock_timeout=50ms"])
      return { server, proxy: yield* makeProxy({ host: "127.0.0.1", port: server.port }) }
    })
  )
}

layer(Ground.layer, { timeout: "60 seconds", excludeTestServices: true })("faults", (it) => {
  for (const fault of faults) {
    // With a counter commits with projections follow one another, so there is no deadlock to wait for.
    if (fault.deadlocks && inject("feedOrder") === "counter") continue
    const rounds = Math.max(Math.ceil(fault.rounds / 50), 2)
    it.effect(`${fault.name}: nothing is lost, doubled, torn, untrue, leaked, out of order, or felt by another`, () =>
      Effect.gen(function* () {
        const { proxy, server } = yield* Ground
        const report = yield* underFault(server, proxy, fault, rounds)
        expect(report.acknowledged).toBeGreaterThan(0)
        expect(report).toMatchObject({ ...clean, leaked: 0 })
      })
    )
  }

  // --- the check of the history can fail ---

  const [cutBefore, , swallowed] = mishaps
  const caught: ReadonlyArray<
    readonly [breaking: typeof Broken.skipsTheConflictCheck, fault: typeof noFault, by: ReadonlyArray<keyof Verdict>]
  > = [
    [Broken.skipsTheConflictCheck, noFault, ["untrue"]],
    [Broken.commitsOneByOne, cutBefore ?? noFault, ["torn"]],
    [Broken.projectsAfterTheCommit, cutEverything, ["projectionsOff"]],
    [Broken.trustsWhatItKept, noFault, ["untrue"]],
    [Broken.forgetsWhatItStored, swallowed ?? noFault, ["ghosts", "doubled"]],
    [forgetsTheIdsOfCommands, noFault, ["doubled"]],
    [Broken.acknowledgesEarly, cutBefore ?? noFault, ["lost"]],
    [Broken.projectsInTheContextOfTheLastCaller, noFault, ["felt"]]
  ]
  for (const [breaking, fault, by] of caught) {
    it.effect(`a store that ${breaking.name.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`)} is caught`, () =>
      Effect.gen(function* () {
        const { proxy, server } = yield* Ground
        // It is wrong under a race, so it may take more than one.
        let found = 0
        for (let attempt = 0; attempt < 120 && found === 0; attempt++) {
          // Outside of its transaction, a projection that commits may wait for the list that it belongs to.
          const lists = breaking !== Broken.projectsAfterTheCommit
          const report = yield* underFault(server, proxy, fault, 6, breaking, lists)
          found += by.reduce((sum, column) => sum + report[column], 0)
        }
        expect(found).toBeGreaterThan(0)
      })
    )
  }

  it.effect("a feed that is ordered by the ids of transactions is caught", () =>
    Effect.gen(function* () {
      const { proxy, server } = yield* Ground
      const ordersByTransaction: Fault = {
        ...noFault,
        once: ({ admin }) =>
          Effect.as(
            Effect.zipRight(
              admin`create or replace function by_id() returns trigger language plpgsql as
                $$ begin new.feed_key := pg_current_xact_id(); return new; end $$`,
              admin`create or replace trigger by_id before insert or update on maestro.event_log for each row execute function by_id()`
            ),
            0
          )
      }
      let found = 0
      for (let attempt = 0; attempt < 40 && found === 0; attempt++) {
        found += (yield* underFault(server, proxy, ordersByTransaction, 6)).outOfOrder
      }
      expect(found).toBeGreaterThan(0)
    })
  )

  // --- exactly once ---

  const commands = inject("runs") > 100 ? 1000 : 200

  it.scoped(`${commands} commands whose acknowledgements are swallowed again and again give as many events`, () =>
    Effect.gen(function* () {
      const { proxy, url } = yield* database
      const accounts = commands / 20
      const node = yield* makeNode("node", 1, proxy.url(url))
      let commits = 0
      // Of every four commits one is cut while the server is at it, one when it has done.
      proxy.onCommit(() => {
        commits++
        return commits % 2 === 0 ? undefined : { _tag: "Cut", at: commits % 4 === 1 ? "during" : "after" }
      })
      const before = proxy.counts().swallowed
      const answers = yield* Effect.forEach(
        Arr.range(1, commands),
        (index) =>
          Effect.provide(Wallet.evaluate(`account-${index % accounts}`, new Deposit({ amount: 1 })), node.services),
        { concurrency: 16 }
      )
      proxy.onCommit(() => undefined)
      expect(answers).toHaveLength(commands)
      expect(new Set(answers.map(({ sequence, state }) => `${sequence} ${state.balance}`)).size).toBe(20)
      const admin = yield* connect(url)
      expect(
        yield* admin`select count(*)::int as events, count(distinct aggregate_id)::int as accounts, max(sequence) as last
          from maestro.event_log`
      ).toEqual([{ events: commands, accounts, last: 20 }])
      expect(yield* admin`select sum(balance)::int as total from balances`).toEqual([{ total: commands }])
      // It did happen, and a COMMIT carries several commands.
      expect(proxy.counts().swallowed - before).toBeGreaterThan(accounts)
    }).pipe(withoutInnerSpans)
  )

  // --- time limits ---

  it.scoped("on a network that stands still every operation keeps its time limit, and the connections come back", () =>
    Effect.gen(function* () {
      const { proxy, url } = yield* database
      const services = yield* Layer.build(storeAt(proxy.url(url)))
      const store = Context.get(services, StoreAdapter.StoreAdapter)
      const sql = Context.get(services, SqlClient.SqlClient)
      yield* store.getEvents("a", 1)
      for (const rounds of Arr.range(1, 3)) {
        proxy.pause()
        const events = [yield* event(`a-${rounds}`, 1)]
        // More than there are connections, so some wait for one.
        const operations: ReadonlyArray<Effect.Effect<unknown, unknown>> = [
          store.commitEvents(events),
          store.commitAll(events, [nothing]),
          store.commitAll(events, [nothing]),
          store.getEvents("a", 1),
          store.getSnapshot("a", 1),
          store.commitSnapshot({ ...(yield* event("a", 1)) })
        ]
        const took = yield* Effect.forEach(
          operations,
          (operation) =>
            Effect.map(Effect.timed(Effect.timeoutOption(Effect.exit(operation), "100 millis")), ([time]) => time),
          { concurrency: "unbounded" }
        )
        for (const time of took) expect(Duration.toMillis(time)).toBeLessThan(1500)
        proxy.resume()
        yield* allConnectionsWork(sql)
        // The commits were whole or nothing; doing them again settles it.
        yield* store.commitEvents(events)
        expect(yield* store.getEvents(`a-${rounds}`, 1)).toEqual(events)
      }
    })
  )

  it.scoped(
    "on a network that stands still a layer that is built, a migration and a repair keep their time limit",
    () =>
      Effect.gen(function* () {
        const { proxy, url } = yield* database
        yield* Effect.scoped(Effect.flatMap(connect(url), (sql) => sql`drop schema maestro cascade`))
        const client = PgClient.layer({ url: Redacted.make(proxy.url(url)), maxConnections: poolSize })
        const context = yield* Layer.build(client)
        const inTime = (operation: Effect.Effect<unknown, unknown, SqlClient.SqlClient | Scope.Scope>) =>
          Effect.gen(function* () {
            // The connections are there, and answer no more.
            yield* allConnectionsWork(Context.get(context, SqlClient.SqlClient))
            proxy.pause()
            const [time] = yield* Effect.timed(
              Effect.timeoutOption(Effect.exit(Effect.scoped(Effect.provide(operation, context))), "100 millis")
            )
            proxy.resume()
            expect(Duration.toMillis(time)).toBeLessThan(1500)
          })
        // Once where the tables are still to be made, and once where they are there.
        for (const _ of ["new", "made"]) {
          yield* inTime(SqlStore.make())
          yield* inTime(SqlStore.make({ migrate: false }))
          yield* inTime(SqlStore.migrate())
          yield* inTime(Layer.build(Layer.fresh(SqlStore.layer)))
          yield* Effect.provide(SqlStore.migrate(), context)
          yield* inTime(SqlStore.repairAfterRestore())
        }
      })
  )

  it.scoped("statements that wait for each other on an exhausted pool keep their time limit", () =>
    Effect.gen(function* () {
      const { url } = yield* database
      const services = yield* Layer.build(storeAt(url))
      const store = Context.get(services, StoreAdapter.StoreAdapter)
      const sql = Context.get(services, SqlClient.SqlClient)
      const admin = yield* connect(url)
      // Another transaction holds the sequence that all of them want.
      const [holds, end] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      const blocking = yield* Effect.fork(
        admin`insert into maestro.event_log (position, aggregate_id, sequence, type, body, metadata, timestamp)
          values (1, 'held', 1, 't', '{}', '{}', gen_random_uuid())`.pipe(
          Effect.zipRight(Deferred.succeed(holds, undefined)),
          Effect.zipRight(Deferred.await(end)),
          Effect.zipRight(Effect.fail("rolled back")),
          admin.withTransaction
        )
      )
      yield* Deferred.await(holds)
      const commits = yield* Effect.forEach(Arr.range(1, 8), () => Effect.map(event("held", 1), Arr.of))
      const results = yield* Effect.forEach(
        commits,
        (events, index) =>
          Effect.timed(
            Effect.timeoutOption(
              Effect.exit(index % 2 === 0 ? store.commitEvents(events) : store.commitAll(events, [nothing])),
              "100 millis"
            )
          ),
        { concurrency: "unbounded" }
      )
      for (const [time, result] of results) {
        expect(Option.isNone(result)).toBe(true)
        expect(Duration.toMillis(time)).toBeLessThan(800)
      }
      yield* Deferred.succeed(end, undefined)
      yield* Fiber.await(blocking)
      yield* allConnectionsWork(sql)
      // No connection was left to cancel them by, so one of them may have come through when the place was free.
      const { length } = yield* store.getEvents("held", 1)
      expect(length).toBeLessThan(2)
      yield* store.commitEvents([yield* event("held", length + 1)])
    })
  )
})

// --- what the cases are made of ---

/** A snapshot that could not be written is a warning. */
const withoutInnerSpans = Logger.withMinimumLogLevel(LogLevel.Error)

/** It stores no receipts, so a command with an id takes effect each time that it comes. */
const forgetsTheIdsOfCommands: Breaking = (store) => {
  const commitAll: typeof store.commitAll = (events, projections) =>
    store.commitAll(
      events.filter(({ type }) => type !== "effect-maestro/CommandHandled"),
      projections
    )
  return { ...store, commitAll, commitEvents: (events) => commitAll(events, []) }
}

/** A new database with the tables of the workload, on the server behind the proxy. */
const database = Effect.gen(function* () {
  const { proxy, server } = yield* Ground
  const name = `db_${crypto.randomUUID().replaceAll("-", "")}`
  return { proxy, server, url: yield* makeDatabase(server, name) }
})

const poolSize = 3

const storeAt = (url: string) =>
  SqlStore.layer.pipe(Layer.provideMerge(PgClient.layer({ url: Redacted.make(url), maxConnections: poolSize })))

const event = (aggregateId: string, sequence: number) =>
  Effect.gen(function* () {
    const { now } = yield* Timestamp.HybridClock
    return { timestamp: yield* now, aggregateId, sequence, type: "Happened", version: 1, body: {}, metadata: {} }
  })

const nothing: Projection.Projection = { name: "nothing", project: () => Effect.void }

/** Runs as many concurrent transactions as the pool has connections, each with a statement that must not be cancelled. */
const allConnectionsWork = (sql: SqlClient.SqlClient) =>
  Effect.gen(function* () {
    const arrived = yield* Effect.makeLatch(false)
    let inside = 0
    yield* Effect.forEach(
      Arr.range(1, poolSize),
      () =>
        sql.withTransaction(
          Effect.gen(function* () {
            yield* sql`select 1`
            inside++
            if (inside === poolSize) yield* arrived.open
            yield* arrived.await
            yield* sql`select pg_sleep(0.02)`
          })
        ),
      { concurrency: "unbounded" }
    )
  })
