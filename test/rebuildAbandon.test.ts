/**
 * Rebuilds that are abandoned, or lose their lease, in the middle of a transaction. The database waits a second before
 * it looks for a deadlock, as it does by default. The servers of tests look earlier, and end the other transaction then.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import { expect, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import { EventFeed, type Projection, Rebuild } from "effect-maestro"
import { makeMigratedDatabase, outside } from "./database.js"
import { deposit, leftovers, makeAccount, nodeAt } from "./projectionTables.js"
import { eventually } from "./subscribers.js"

type Client = SqlClient.SqlClient
type Counting = Projection.Projection.Bound<unknown, Client>

/** Counts the events of each aggregate. Its statement is not deferred, because it returns a row. */
const counting: Counting = {
  name: "counting",
  of: "all",
  project: ({ aggregateId }) =>
    Effect.flatMap(
      SqlClient.SqlClient,
      (sql) =>
        sql`insert into counts as c values (${aggregateId}, 1) on conflict (id) do update set n = c.n + 1 returning n`
    )
}

/** Has a row for each event, and fails where the row is there. */
const inserting: Counting = {
  ...counting,
  project: ({ aggregateId, sequence }) =>
    Effect.flatMap(
      SqlClient.SqlClient,
      (sql) => sql`insert into counts values (${`${aggregateId}/${sequence}`}, 1) returning n`
    )
}

const makeCounts = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`create table counts (id text primary key, n int not null)`
)

const options = { name: "again", projections: [counting], tables: ["counts"], batchSize: 4 } as const

const Account = makeAccount([])

/** Runs the effect on a new database with six events, whose table is still empty. */
const onDatabase = <A, E, R>(run: (url: string) => Effect.Effect<A, E, R>) =>
  Effect.scoped(
    Effect.gen(function* () {
      const url = yield* makeMigratedDatabase
      const patient = Effect.flatMap(SqlClient.SqlClient, (sql) =>
        sql.unsafe(`alter database "${new URL(url).pathname.slice(1)}" set deadlock_timeout = '1s'`)
      )
      yield* Effect.provide(patient, nodeAt(url))
      return yield* Effect.gen(function* () {
        yield* makeCounts
        yield* Effect.provide(
          Effect.forEach(Arr.range(1, 6), () => deposit(Account, "ann")),
          Account.layer
        )
        return yield* run(url)
      }).pipe(Effect.provide(Layer.provideMerge(nodeAt(url), Logger.remove(Logger.defaultLogger))))
    })
  )

/** An effect that waits in the middle of something. */
const makePause = Effect.gen(function* () {
  const [reached, goOn] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
  return {
    here: Effect.zipRight(Deferred.succeed(reached, undefined), Deferred.await(goOn)),
    reached: Deferred.await(reached),
    end: Deferred.succeed(goOn, undefined)
  }
})

/** Waits until a statement with this text waits for a lock. */
const waitsForLock = (text: string) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    eventually(
      sql`select 1 from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock' and query like ${`%${text}%`}`,
      (rows) => rows.length > 0
    )
  )

const counts = Effect.flatMap(SqlClient.SqlClient, (sql) => sql<{ n: number }>`select n from counts`)

const nothingIsLeft = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  expect(yield* leftovers).toEqual([])
  expect(yield* sql`select name from maestro.rebuilds`).toEqual([])
  expect(yield* sql`select name from maestro.subscriptions where name like 'effect-maestro/rebuild/%'`).toEqual([])
})

const wasAbandoned = 'rebuild "again" was abandoned'

layer(Layer.empty, { excludeTestServices: true, timeout: 30_000 })("abandoning a rebuild", (it) => {
  it.effect("waits for a batch that has written, and ends without a deadlock", () =>
    onDatabase(() =>
      Effect.gen(function* () {
        const pause = yield* makePause
        const waiting: Counting = {
          ...counting,
          project: (event) =>
            Effect.zipRight(
              counting.project(event),
              Effect.when(pause.here, () => event.sequence === 3)
            )
        }
        const running = yield* Effect.fork(Effect.flip(Rebuild.run({ ...options, projections: [waiting] })))
        yield* pause.reached
        const abandoning = yield* Effect.fork(Effect.exit(Rebuild.abandon("again")))
        yield* waitsForLock("")
        yield* pause.end
        expect(yield* Fiber.join(abandoning)).toEqual(Exit.void)
        expect(`${yield* Fiber.join(running)}`).toContain(wasAbandoned)
        yield* nothingIsLeft
        expect(yield* counts).toEqual([])
      })
    )
  )

  for (const others of [0, 1]) {
    it.effect(`ends the process that makes the tables, and ${others} that wait for it`, () =>
      onDatabase((url) =>
        Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          const pause = yield* makePause
          const run = (create: Effect.Effect<unknown, SqlError, Client>) =>
            Effect.flip(Rebuild.run({ ...options, create }))
          const first = yield* Effect.fork(run(Effect.zipRight(makeCounts, pause.here)))
          yield* pause.reached
          expect(yield* Rebuild.status("again")).toEqual(Option.none())
          const waiter = nodeAt(url, {}, { maxConnections: 1, applicationName: "waiter" })
          const waiting = yield* Effect.replicateEffect(Effect.fork(Effect.provide(run(makeCounts), waiter)), others)
          yield* eventually(
            sql`select 1 from pg_stat_activity where datname = current_database() and application_name = 'waiter'
              and query like '%leased_until - clock_timestamp()%'`,
            (rows) => rows.length === others
          )
          yield* Rebuild.abandon("again")
          yield* pause.end
          for (const fiber of [first, ...waiting]) expect(`${yield* Fiber.join(fiber)}`).toContain(wasAbandoned)
          yield* nothingIsLeft
          expect(yield* counts).toEqual([])
        })
      )
    )
  }

  it.effect("ends a process that works for it, also where the rebuild is begun again under its name", () =>
    onDatabase((url) =>
      Effect.gen(function* () {
        const pause = yield* makePause
        const run = (onProgress: Effect.Effect<unknown>) => Rebuild.run({ ...options, onProgress: () => onProgress })
        const running = yield* Effect.fork(Effect.flip(run(pause.here)))
        yield* pause.reached
        yield* Rebuild.abandon("again")
        expect(yield* Effect.provide(run(Effect.void), nodeAt(url))).toBe(6)
        yield* pause.end
        expect(`${yield* Fiber.join(running)}`).toContain(wasAbandoned)
        expect(yield* counts).toEqual([{ n: 6 }])
      })
    )
  )

  it.effect(
    "a batch that fails because the next holder of the lease has written it is no failure of the projection",
    () =>
      onDatabase((url) =>
        Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          const pause = yield* makePause
          const feed = yield* EventFeed.EventFeed
          const read: typeof feed.read = (options) => Effect.zipRight(pause.here, feed.read(options))
          const run = Effect.provideService(
            Rebuild.run({ ...options, projections: [inserting] }),
            EventFeed.EventFeed,
            { ...feed, read }
          )
          const running = yield* Effect.fork(Effect.flip(run))
          yield* pause.reached
          const node = yield* Layer.build(nodeAt(url))
          // The first process has checked its lease, and waits for the record. Meanwhile the next one takes the lease, and projects.
          yield* Effect.provide(
            Effect.gen(function* () {
              const sql = yield* SqlClient.SqlClient
              yield* sql.withTransaction(
                Effect.gen(function* () {
                  yield* sql`select from maestro.rebuilds for update`
                  yield* pause.end
                  yield* outside(waitsForLock("rebuilds where name"))
                  yield* sql`update maestro.subscriptions set token = token + 1, holder = 'next',
                  leased_until = clock_timestamp() + interval '1 minute' where name like 'effect-maestro/rebuild/%'`
                  const [shadow] = yield* sql<{ schema: string }>`select schemaname as schema from pg_tables
                  where tablename = 'counts' and schemaname <> 'public'`
                  yield* sql`insert into ${sql(`${shadow?.schema}.counts`)}
                  select format('%s/%s', aggregate_id, sequence), 1 from maestro.event_log`
                })
              )
            }),
            node
          )
          yield* eventually(
            sql`select from pg_stat_activity where datname = current_database() and query like '%leased_until - clock_timestamp()%'`,
            (rows) => rows.length > 0
          )
          yield* Rebuild.abandon("again")
          expect(`${yield* Fiber.join(running)}`).toContain(wasAbandoned)
        })
      )
  )

  it.effect("a rebuild whose `create` fails has no status, and the next run begins it", () =>
    onDatabase(() =>
      Effect.gen(function* () {
        expect(yield* Effect.flip(Rebuild.run({ ...options, create: Effect.fail("broken") }))).toBe("broken")
        expect(yield* Rebuild.status("again")).toEqual(Option.none())
        expect(yield* Rebuild.run({ ...options, create: makeCounts })).toBe(6)
        yield* Rebuild.abandon("again")
        yield* nothingIsLeft
      })
    )
  )

  it.effect("a process that loses its lease while it makes the tables leaves them to the next, and both end", () =>
    onDatabase((url) =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const pause = yield* makePause
        const run = (create: Effect.Effect<unknown, SqlError, Client>) => Rebuild.run({ ...options, create })
        const first = yield* Effect.fork(Effect.exit(run(Effect.zipRight(makeCounts, pause.here))))
        yield* pause.reached
        yield* sql`update maestro.subscriptions set token = token + 1, holder = null, leased_until = null
          where name like 'effect-maestro/rebuild/%'`
        const second = yield* Effect.fork(Effect.exit(Effect.provide(run(makeCounts), nodeAt(url))))
        yield* waitsForLock("create schema")
        yield* pause.end
        expect([yield* Fiber.join(first), yield* Fiber.join(second)]).toEqual([Exit.succeed(0), Exit.succeed(6)])
        expect(yield* counts).toEqual([{ n: 6 }])
        expect(yield* leftovers).toEqual([])
      })
    )
  )
})
