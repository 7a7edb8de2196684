/** A feed that an open transaction holds back: how many events wait, since when, and for which session. */
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import { expect, it, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Metric from "effect/Metric"
import * as MetricState from "effect/MetricState"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as TestClock from "effect/TestClock"
import { EventFeed, MemoryStore, SqlStore, Subscription } from "effect-maestro"
import { afterAll, beforeAll } from "vitest"
import { uniqueName } from "./database.js"
import { disposable, startPostgres } from "./postgres.globalSetup.js"
import { commitOf, newId } from "./subscribers.js"

// A server of its own, because the feed waits for the transactions of all databases, and prepared ones are off by
// default.
let server: Awaited<ReturnType<typeof startPostgres>> | undefined
beforeAll(async () => {
  server = await startPostgres([...disposable, "-c", "max_prepared_transactions=2"])
}, 60_000)
afterAll(() => server?.stop())

const clientOf = (options: { readonly user?: string; readonly applicationName?: string } = {}) =>
  Layer.fresh(
    Layer.suspend(() => {
      const url = new URL(server?.url ?? "")
      if (options.user !== undefined) url.username = url.password = options.user
      return PgClient.layer({
        url: Redacted.make(url.href),
        maxConnections: 4,
        applicationName: options.applicationName ?? "store"
      })
    })
  )

/** An open transaction of another client that has written. It ends with the scope. */
const openTransaction = (applicationName: string) =>
  Effect.gen(function* () {
    const [began, end] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
    const fiber = yield* Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* sql.withTransaction(
        sql`select pg_current_xact_id()`.pipe(
          Effect.zipRight(Deferred.succeed(began, undefined)),
          Effect.zipRight(Deferred.await(end))
        )
      )
    }).pipe(Effect.provide(clientOf({ applicationName })), Effect.forkScoped)
    yield* Effect.raceFirst(Deferred.await(began), Fiber.join(fiber))
    return { end: Effect.zipRight(Deferred.succeed(end, undefined), Fiber.join(fiber)) }
  })

const followerOf = (type: string, partitions = 1) =>
  Subscription.make(newId("follower"), { filter: { types: [type] }, partitions, handle: () => Effect.void })

/** The status of a subscription that has run before, and has handled all shown events. */
const settled = (subscription: Subscription.Subscription) =>
  Effect.scoped(
    Effect.zipRight(
      Layer.build(subscription.layer),
      Effect.flatMap(EventFeed.head, (head) => Subscription.waitFor(subscription.name, head, "20 seconds"))
    )
  )

layer(SqlStore.layer.pipe(Layer.provideMerge(clientOf()), Layer.orDie), { excludeTestServices: true, timeout: 60_000 })(
  "on Postgres",
  (it) => {
    it.scoped("status counts the held back events, and shows the session that holds them back", () =>
      Effect.gen(function* () {
        const type = newId("waits")
        const follower = followerOf(type, 2)
        yield* commitOf(newId("before"), 1, 1, type)
        yield* settled(follower)
        expect(yield* follower.status).toMatchObject({ eventsBehind: 0, heldBack: Option.none() })

        const { end } = yield* openTransaction("a long report")
        const before = Date.now()
        for (const id of ["a", "b", "c", "d"]) yield* commitOf(newId(id), 1, 2, type)
        const status = yield* follower.status
        expect(status.eventsBehind).toBe(8)
        expect(status.partitions.reduce((sum, { eventsBehind }) => sum + eventsBehind, 0)).toBe(8)
        const held = Option.getOrThrow(status.heldBack)
        expect(held).toMatchObject({
          events: 8,
          transaction: Option.some({
            pid: { _tag: "Some" },
            prepared: Option.none(),
            database: Option.some("postgres"),
            user: Option.some("postgres"),
            applicationName: Option.some("a long report"),
            state: Option.some("idle in transaction"),
            startedAt: { _tag: "Some" }
          })
        })
        expect(held.since).toBeGreaterThanOrEqual(before - 1)
        expect(status.secondsBehind).toBeLessThan(60)
        yield* end
        expect(yield* follower.status).toMatchObject({ eventsBehind: 8, heldBack: Option.none() })
      })
    )

    it.scoped("a role without rights to see other sessions sees the process id", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const [role, type] = [uniqueName("reader"), newId("waits")]
        yield* sql`create role ${sql(role)} login password ${sql.literal(`'${role}'`)}`
        yield* sql`grant usage on schema maestro to ${sql(role)}`
        yield* sql`grant select on all tables in schema maestro to ${sql(role)}`
        const { end } = yield* openTransaction("hidden")
        yield* commitOf(newId("a"), 1, 3, type)
        const held = yield* EventFeed.heldBack({ types: [type] }).pipe(
          Effect.provide(SqlStore.layerWith({ migrate: false }).pipe(Layer.provide(clientOf({ user: role }))))
        )
        expect(Option.getOrThrow(held)).toMatchObject({
          events: 3,
          transaction: Option.some({ pid: { _tag: "Some" }, state: Option.none(), startedAt: Option.none() })
        })
        yield* end
      })
    )

    it.scoped("a prepared transaction is shown with its identifier", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const [id, type] = [uniqueName("prepared"), newId("waits")]
        yield* sql`begin; select pg_current_xact_id(); prepare transaction ${sql.literal(`'${id}'`)}`
        yield* Effect.addFinalizer(() => Effect.ignore(sql`rollback prepared ${sql.literal(`'${id}'`)}`))
        yield* commitOf(newId("a"), 1, 1, type)
        expect(Option.getOrThrow(yield* EventFeed.heldBack({ types: [type] }))).toMatchObject({
          events: 1,
          transaction: Option.some({ pid: Option.none(), prepared: Option.some(id), startedAt: { _tag: "Some" } })
        })
      })
    )

    it.scoped("a transaction that only reads holds back no events", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const type = newId("waits")
        const inside = sql.withTransaction(
          Effect.gen(function* () {
            yield* sql`set transaction isolation level repeatable read`
            yield* sql`select 1`
            return yield* EventFeed.heldBack({ types: [type] })
          })
        )
        yield* commitOf(newId("a"), 1, 1, type)
        expect(yield* inside).toEqual(Option.none())
      })
    )
  }
)

it.scoped("a running subscription logs a warning after half a minute, and again when that time has doubled", () =>
  Effect.gen(function* () {
    const messages: Array<string> = []
    const logger = Logger.make(({ message }) => void messages.push(String(message)))
    let held: Option.Option<EventFeed.HeldBack> = Option.none()
    const context = yield* Layer.build(MemoryStore.layer)
    const feed = Context.get(context, EventFeed.EventFeed)
    const services = Context.add(context, EventFeed.EventFeed, { ...feed, heldBack: () => Effect.sync(() => held) })
    const name = newId("warned")
    const warned = Subscription.make(name, { handle: () => Effect.void })
    yield* Layer.build(warned.layer).pipe(
      Effect.provide(services),
      Effect.provide(Logger.replace(Logger.defaultLogger, logger))
    )
    const gauge = (metric: string) =>
      Effect.map(Metric.snapshot, (pairs) => {
        const pair = pairs.find(
          ({ metricKey }) => metricKey.name === metric && metricKey.tags.some(({ value }) => value === name)
        )
        return pair !== undefined && MetricState.isGaugeState(pair.metricState) ? pair.metricState.value : undefined
      })
    yield* TestClock.adjust("1 minute")
    expect(messages).toEqual([])
    held = Option.some({
      events: 7,
      since: 60_000,
      transaction: Option.some({
        pid: Option.some(42),
        prepared: Option.none(),
        database: Option.some("shop"),
        user: Option.none(),
        applicationName: Option.some("psql"),
        state: Option.some("idle in transaction"),
        startedAt: Option.some(30_000)
      })
    })
    yield* TestClock.adjust("15 seconds")
    expect(messages).toEqual([])
    yield* TestClock.adjust("15 seconds")
    expect(messages).toEqual([
      `subscription ${name}: the feed has held back 7 committed events for 30 seconds, until the transaction of process 42 has ended (application "psql", database "shop", idle in transaction, open for 60 seconds)`
    ])
    yield* TestClock.adjust("15 seconds")
    expect(messages).toHaveLength(1)
    yield* TestClock.adjust("15 seconds")
    expect(messages).toHaveLength(2)
    expect(yield* gauge("effect_maestro_subscription_events_held_back")).toBe(7)
    expect(yield* gauge("effect_maestro_subscription_seconds_held_back")).toBe(60)
    held = Option.none()
    yield* TestClock.adjust("15 seconds")
    expect(yield* gauge("effect_maestro_subscription_events_held_back")).toBe(0)
    expect(messages).toHaveLength(2)
  })
)
