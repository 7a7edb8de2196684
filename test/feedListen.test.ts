/** Waiting readers are woken by commits of other clients. When they no longer wait, no listener is left. */
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import { expect, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { EventFeed, SqlStore, StoreAdapter, Subscription, SubscriptionStore } from "effect-maestro"
import { makeSqlFeed } from "../src/internal/sql/feed.js"
import { makeNotifications } from "../src/internal/sql/notifications.js"
import { CommandRunner } from "../src/internal/sql/pg/commandRunner.js"
import { makeSqlSubscriptions } from "../src/internal/sql/subscriptions.js"
import { makeDatabase } from "./database.js"
import { commitOf, eventually, newId, shortly } from "./subscribers.js"

class Url extends Context.Tag("test/Url")<Url, string>() {
  static readonly layer = Layer.scoped(Url, makeDatabase)
}

const pgAt = (url: string, maxConnections = 6) => PgClient.layer({ url: Redacted.make(url), maxConnections })

const storeLayer = Layer.unwrapEffect(
  Effect.map(Url, (url) => SqlStore.layer.pipe(Layer.provideMerge(pgAt(url))))
).pipe(Layer.provideMerge(Url.layer))

/** Another client of the database. */
const aClient = (maxConnections?: number) =>
  Effect.flatMap(Url, (url) => Layer.build(Layer.fresh(pgAt(url, maxConnections))))

const aNode = (maxConnections: number, options: SqlStore.Options = { pollInterval: "1 hour" }) =>
  Effect.flatMap(aClient(maxConnections), (client) =>
    Effect.map(
      Layer.build(Layer.fresh(SqlStore.layerWith(options)).pipe(Layer.provide(Layer.succeedContext(client)))),
      (store) => Context.merge(client, store)
    )
  )

layer(storeLayer, { excludeTestServices: true, timeout: 60_000 })("waiting readers", (it) => {
  /** The server processes that listen. */
  const listeners = Effect.flatMap(SqlClient.SqlClient, (sql) =>
    Effect.map(
      sql<{ pid: number }>`select pid from pg_stat_activity
        where datname = current_database() and query like 'LISTEN%' order by pid`,
      Arr.map(({ pid }) => pid)
    )
  )

  /** Reads the event after the position, on the node. */
  const waitingOn = (node: Context.Context<EventFeed.EventFeed>, after: EventFeed.Position) =>
    EventFeed.stream({ after }).pipe(Stream.take(1), Stream.runCollect, Effect.provide(node), Effect.fork)

  it.scoped("are woken by commits of another client, also after the connection that listens was killed", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const node = yield* aNode(6)
      let killed = 0
      for (const sequence of Arr.range(1, 3)) {
        const a = newId("a")
        const reading = yield* waitingOn(node, yield* EventFeed.head)
        const [pid = 0] = yield* eventually(listeners, ([first]) => first !== undefined && first !== killed)
        yield* commitOf(a, 1, 1, "T")
        expect([...(yield* Fiber.join(reading))]).toMatchObject([{ aggregateId: a }])
        if (sequence === 3) continue
        killed = pid
        yield* sql`select pg_terminate_backend(${pid})`
      }
    })
  )

  it.scoped("listening calls back for each commit of another client, and ends with its connection", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const client = Context.get(yield* aClient(), SqlClient.SqlClient)
      let heard = 0
      const { listen } = yield* makeNotifications(client, "maestro", new CommandRunner(client, true))
      const listening = yield* Effect.fork(listen(() => void heard++))
      // Once for the commits before it listened.
      yield* eventually(
        Effect.sync(() => heard),
        (count) => count === 1
      )
      yield* commitOf(newId("a"), 1, 1, "T")
      yield* eventually(
        Effect.sync(() => heard),
        (count) => count === 2
      )
      yield* eventually(
        sql`select pg_terminate_backend(pid) from pg_stat_activity where query like 'LISTEN%'`,
        (rows) => rows.length > 0
      )
      expect(yield* Fiber.join(listening)).toBe(true)
      const again = yield* Effect.fork(listen(() => void heard++))
      yield* eventually(
        Effect.sync(() => heard),
        (count) => count === 3
      )
      yield* Fiber.interrupt(again)
      yield* eventually(listeners, (all) => all.length === 0)
    })
  )

  for (const maxConnections of [1, 2, 3]) {
    it.scoped(`do not listen on a pool of ${maxConnections}, and find events by polling`, () =>
      Effect.gen(function* () {
        const node = yield* aNode(maxConnections, { pollInterval: "100 millis" })
        const a = newId("a")
        const reading = yield* waitingOn(node, yield* EventFeed.head)
        // It takes less time to begin to listen.
        yield* Effect.sleep("400 millis")
        expect(yield* listeners).toEqual([])
        yield* commitOf(a, 1, 1, "T")
        expect([...(yield* Fiber.join(reading))]).toMatchObject([{ aggregateId: a }])
        const by = newId("small")
        const small = Subscription.make(by, { from: "now", handle: () => Effect.void })
        yield* Effect.provide(Layer.build(small.layer), node)
        yield* Effect.provide(Subscription.waitFor(by, { aggregateId: a, sequence: 1 }, "30 seconds"), node)
      })
    )
  }

  it.scoped("give the connection back to the pool when the layer ends, and leave no waiter, fiber or listener", () =>
    Effect.gen(function* () {
      const client = yield* aClient(4)
      const sql = Context.get(client, SqlClient.SqlClient)
      const roots = Effect.map(Fiber.roots, (all) => [...all].length)
      const before = yield* roots
      for (const _ of Arr.range(1, 3)) {
        const scope = yield* Scope.make()
        const { node, waiters } = yield* Scope.extend(aCountingNode(client), scope)
        const reading = yield* waitingOn(node, yield* EventFeed.head)
        yield* eventually(listeners, (all) => all.length === 1)
        const by = newId("left")
        const left = Subscription.make(by, { handle: () => Effect.void })
        yield* Layer.build(left.layer).pipe(Effect.provide(node), Scope.extend(scope))
        const a = newId("a")
        const waiting = yield* Subscription.waitFor("never", EventFeed.beginning, "1 minute").pipe(
          Effect.provide(node),
          Effect.fork
        )
        yield* Effect.provide(
          Effect.flatMap(StoreAdapter.StoreAdapter, () => commitOf(a, 1, 1, "T")),
          node
        )
        yield* Effect.provide(Subscription.waitFor(by, { aggregateId: a, sequence: 1 }, "30 seconds"), node)
        yield* Fiber.interrupt(reading)
        yield* Fiber.interrupt(waiting)
        yield* Scope.close(scope, Exit.void)
        expect(waiters()).toBe(0)
        yield* eventually(listeners, (all) => all.length === 0)
      }
      yield* eventually(roots, (now) => now <= before)
      // All four connections can be used concurrently.
      const all = yield* Effect.makeLatch(false)
      let inside = 0
      yield* Effect.forEach(
        Arr.range(1, 4),
        () =>
          sql.withTransaction(
            Effect.suspend(() => Effect.zipRight(++inside === 4 ? all.open : Effect.void, all.await))
          ),
        { concurrency: 4 }
      )
    })
  )

  it.scoped("no waiter is left after a wait that timed out", () =>
    Effect.gen(function* () {
      const { node, waiters } = yield* Effect.flatMap(aClient(6), aCountingNode)
      // The feed waits for commits as long as it is open.
      const before = waiters()
      const waits = yield* Effect.forEach(
        Arr.range(1, 20),
        () => Effect.option(Subscription.waitFor("no subscription", EventFeed.beginning, "60 millis")),
        { concurrency: "unbounded" }
      ).pipe(Effect.provide(node))
      expect(waits).toHaveLength(20)
      yield* shortly
      expect(waiters()).toBe(before)
    })
  )
})

// --- what the cases are made of ---

/** A node whose feed and subscriptions count the waiters for commits and progress. */
const aCountingNode = (client: Context.Context<PgClient.PgClient | SqlClient.SqlClient>) =>
  Effect.gen(function* () {
    const store = yield* Layer.build(Layer.fresh(SqlStore.layer).pipe(Layer.provideMerge(Layer.succeedContext(client))))
    const tables = Context.get(store, SqlStore.Tables)
    const runner = new CommandRunner(tables.sql, true)
    const notifications = yield* makeNotifications(Context.get(client, SqlClient.SqlClient), tables.name, runner)
    let waiters = 0
    const counting =
      <Args extends ReadonlyArray<unknown>>(subscribe: (wake: (...args: Args) => void) => () => void) =>
      (wake: (...args: Args) => void) => {
        waiters++
        const stop = subscribe(wake)
        let isStopped = false
        return () => {
          if (!isStopped) waiters--
          isStopped = true
          stop()
        }
      }
    const counted = {
      ...notifications,
      onCommit: counting(notifications.onCommit),
      onProgress: counting(notifications.onProgress)
    }
    const feed = yield* makeSqlFeed(tables, runner, counted, 500)
    return {
      waiters: () => waiters,
      node: Context.add(
        Context.add(store, EventFeed.EventFeed, feed),
        SubscriptionStore.SubscriptionStore,
        makeSqlSubscriptions(tables, runner, counted)
      )
    }
  })
