/**
 * Events whose handling breaks the connection, or finds another database down: each attempt counts, and the event is
 * parked or stops the subscription.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import { SqlError } from "@effect/sql/SqlError"
import { PgClient } from "@effect/sql-pg"
import { expect, layer, type Vitest } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import { type EventFeed, SqlStore, StoreError, Subscription } from "effect-maestro"
import { Pool } from "pg"
import { makeMigratedDatabase } from "./database.js"
import {
  caughtUp,
  commitOf,
  eventually,
  Ledger,
  newId,
  placesOf,
  type StoreServices,
  start,
  stores,
  write,
  written
} from "./subscribers.js"
import { withoutInnerSpans } from "./subscriptionNodes.js"

/** A node whose pool times out a query after a second. */
const onPostgres = Layer.unwrapScoped(
  Effect.map(makeMigratedDatabase, (url) => {
    const acquire = Effect.acquireRelease(
      Effect.sync(() => {
        const pool = new Pool({ connectionString: url, max: 6, query_timeout: 1000 })
        pool.on("error", () => {})
        return pool
      }),
      (pool) => Effect.promise(() => pool.end())
    )
    return Layer.provideMerge(Layer.merge(SqlStore.layer, Ledger.layerSql), PgClient.layerFromPool({ acquire }))
  })
)

const client = Effect.map(Effect.serviceOption(SqlClient.SqlClient), Option.getOrThrow)

const otherIsDown = new SqlError({
  cause: Object.assign(new Error("connect ECONNREFUSED 10.0.0.9:5432"), { code: "ECONNREFUSED" }),
  message: "Failed to connect"
})

type Breaking = (event: EventFeed.FeedEvent) => Effect.Effect<unknown, unknown>

const fails: Breaking = () => Effect.fail(otherIsDown)
const unavailable: Breaking = () =>
  new StoreError.StoreError({ reason: "Unavailable", operation: "elsewhere", description: "it is down" })
const terminated: Breaking = () => Effect.flatMap(client, (sql) => sql`select pg_terminate_backend(pg_backend_pid())`)
const idle: Breaking = (event) => Effect.zipRight(Effect.sleep("900 millis"), Effect.succeed(event))
const slowTransaction: Breaking = () =>
  Effect.flatMap(client, (sql) =>
    Effect.zipRight(sql`select set_config('transaction_timeout', '200', true)`, sql`select pg_sleep(1)`)
  )
const slowQuery: Breaking = () => Effect.flatMap(client, (sql) => sql`select pg_sleep(1.5)`)

for (const [name, store] of stores) {
  layer(store, { excludeTestServices: true, timeout: 60_000 })(name, (it) => {
    for (const [way, breaking] of [
      ["a SqlError of another database that is down", fails],
      ["a StoreError of another store that is down", unavailable]
    ] as const) {
      for (const delivery of ["exactly-once", "at-least-once"] as const) {
        isSetAside(it, `${delivery}: ${way}`, breaking, { delivery })
        stops(it, `${delivery}: ${way}`, breaking, { delivery })
      }
    }
  })
}

layer(onPostgres, { excludeTestServices: true, timeout: 60_000 })(
  "SqlStore on Postgres, a connection that breaks",
  (it) => {
    for (const [way, breaking] of [
      ["its backend is terminated", terminated],
      ["it idles in the transaction beyond the lease", idle],
      ["it runs into transaction_timeout", slowTransaction],
      ["it runs into the query_timeout of the pool", slowQuery]
    ] as const) {
      isSetAside(it, `exactly-once: ${way}`, breaking, { lease: "600 millis" })
    }
    isSetAside(it, "at-least-once: its backend is terminated", terminated, { delivery: "at-least-once" })
    stops(it, "exactly-once: its backend is terminated", terminated, {})
  }
)

function isSetAside(
  it: Pick<Vitest.MethodsNonLive<StoreServices, true>, "scoped">,
  way: string,
  breaking: Breaking,
  settings: Subscription.Options
): void {
  it.scoped(
    `${way}: the event is parked after its retries, and the next one is handled`,
    () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("aside")]
        const seen: Array<number> = []
        const aside = Subscription.make(by, {
          filter: { types: [a] },
          retry: Schedule.recurs(2),
          onFailure: "park",
          ...settings,
          handle: (event): Effect.Effect<unknown, unknown, Ledger> => {
            seen.push(event.sequence)
            return event.sequence === 2 ? Effect.zipRight(breaking(event), write(by)(event)) : write(by)(event)
          }
        })
        yield* commitOf(a, 1, 3, a)
        yield* start(aside)
        yield* caughtUp(aside)
        expect(yield* Subscription.parked(by)).toMatchObject([{ sequence: 2, attempts: 3 }])
        // Once in a batch, and three times alone.
        expect(seen.filter((sequence) => sequence === 2)).toHaveLength(4)
        // An at-least-once event leaves a dead connection in the pool, which the other handler may get once.
        expect(seen.filter((sequence) => sequence === 1).length).toBeLessThanOrEqual(3)
        const once = (yield* written(by)).filter((place, index, all) => all.indexOf(place) === index)
        expect(once).toEqual([...placesOf(a, 1, 1), ...placesOf(a, 3, 3)])
      }).pipe(withoutInnerSpans),
    60_000
  )
}

function stops(
  it: Pick<Vitest.MethodsNonLive<StoreServices, true>, "scoped">,
  way: string,
  breaking: Breaking,
  settings: Subscription.Options
): void {
  it.scoped(
    `${way}: the subscription stops before the event with the reason, and counts from zero after \`resume\``,
    () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("stop")]
        let isBroken = true
        let tries = 0
        const stopping = Subscription.make(by, {
          filter: { types: [a] },
          retry: Schedule.recurs(1),
          ...settings,
          handle: (event): Effect.Effect<unknown, unknown, Ledger> => {
            if (event.sequence === 2) tries++
            return event.sequence === 2 && isBroken
              ? Effect.zipRight(breaking(event), write(by)(event))
              : write(by)(event)
          }
        })
        yield* commitOf(a, 1, 3, a)
        expect(yield* Effect.flip(stopping.run)).toMatchObject({
          _tag: "SubscriptionStopped",
          sequence: 2,
          attempts: 2
        })
        const status = yield* stopping.status
        expect(status).toMatchObject({
          state: "stopped",
          eventsBehind: 2,
          partitions: [{ lastFailure: { value: { sequence: 2, attempts: 2 } } }]
        })
        const before = tries
        yield* Subscription.resume(by)
        yield* Effect.flip(stopping.run)
        expect(tries).toBe(before + 3)
        isBroken = false
        yield* Subscription.resume(by)
        yield* start(stopping)
        yield* eventually(stopping.status, ({ eventsBehind }) => eventsBehind === 0)
      }).pipe(withoutInnerSpans),
    60_000
  )
}
