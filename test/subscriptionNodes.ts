/** Nodes that run subscriptions on one database, for the tests of several nodes. */
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import { SqlStore, Subscription, SubscriptionStore } from "effect-maestro"
import { makeDatabase } from "./database.js"
import { makeProxy, type Proxy } from "./faults/proxy.js"
import { Ledger, write } from "./subscribers.js"

/** A database, a proxy before it that tests can break, and a client that connects directly. */
export class Database extends Context.Tag("test/Database")<
  Database,
  { readonly url: string; readonly proxy: Proxy }
>() {
  static readonly layer = Layer.scoped(
    Database,
    Effect.gen(function* () {
      const url = yield* makeDatabase
      const { hostname, port } = new URL(url)
      return { url, proxy: yield* makeProxy({ host: hostname, port: Number(port) }) }
    })
  )
}

const storeAt = (url: string, applicationName: string, maxConnections = 6) =>
  Layer.merge(SqlStore.layer, Ledger.layerSql).pipe(
    Layer.provideMerge(PgClient.layer({ url: Redacted.make(url), maxConnections, applicationName }))
  )

export const storeLayer = Layer.unwrapEffect(Effect.map(Database, ({ url }) => storeAt(url, "ground"))).pipe(
  Layer.provideMerge(Database.layer)
)

/** Another node with its own pool: directly connected, or through the proxy. */
export const aNode = (how: "direct" | "proxy" = "direct", maxConnections?: number) =>
  Effect.flatMap(Database, ({ proxy, url }) =>
    Layer.build(Layer.fresh(storeAt(how === "direct" ? url : proxy.url(url), "node", maxConnections)))
  )

/** A node behind a proxy of its own, so that a test can cut it off the database. */
export const aNodeApart = Effect.gen(function* () {
  const { url } = yield* Database
  const { hostname, port } = new URL(url)
  const proxy = yield* makeProxy({ host: hostname, port: Number(port) })
  return { proxy, node: yield* Layer.build(Layer.fresh(storeAt(proxy.url(url), "node"))) }
})

export const holderOf = (name: string) =>
  Effect.flatMap(SubscriptionStore.SubscriptionStore, (store) =>
    Effect.map(store.partitions(name), ([only]) => Option.getOrUndefined(only?.holder ?? Option.none()))
  )

/** Hides the warnings of subscriptions that wait for the database. */
export const withoutInnerSpans = Logger.withMinimumLogLevel(LogLevel.Error)

/** A subscription that writes each event to the ledger. */
export const writing = (by: string, type: string, settings: Subscription.Options = {}) =>
  Subscription.make(by, { filter: { types: [type] }, handle: write(by), ...settings })

/** Waits until the subscription has handled the event. */
export const reached = (name: string, aggregateId: string, sequence: number) =>
  Subscription.waitFor(name, { aggregateId, sequence }, "30 seconds")

/** Kills the connections of all nodes. */
export const terminateOthers = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and application_name = 'node' and pid <> pg_backend_pid()`
).pipe(Effect.ignore)
