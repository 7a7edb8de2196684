/**
 * A repair after a restore keeps the order of each aggregate, and no reader skips an event that was written before it,
 * in old and new streams.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import { expect, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import { EventFeed, SqlStore, Subscription } from "effect-maestro"
import { inject } from "vitest"
import { makeDatabase, outside } from "./database.js"
import { outOfOrder, placeOf, textOf } from "./feedOrderModel.js"
import {
  caughtUp,
  commit,
  commitOf,
  event,
  eventually,
  Ledger,
  lastPosition,
  newId,
  start,
  write,
  written
} from "./subscribers.js"

const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31))

/** A node that leaves the log as it was restored. */
const storeLayer = Layer.unwrapScoped(
  Effect.map(makeDatabase, (url) => {
    const client = PgClient.layer({ url: Redacted.make(url), maxConnections: 6 })
    return Layer.merge(SqlStore.layerWith({ migrate: false }), Ledger.layerSql).pipe(
      Layer.provideMerge(Layer.effectDiscard(SqlStore.migrate())),
      Layer.provideMerge(client)
    )
  })
)

/** Gives the last events, and the checkpoints at them, ids of transactions of a busier server. */
const restore = (last: number) =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const [row] = yield* sql<{ from: string }>`select min(feed_key)::text as from from (
      select feed_key from maestro.event_log order by feed_key desc, position desc limit ${last}
    ) l`
    for (const table of ["event_log", "subscriptions", "parked_events"]) {
      yield* sql`update ${sql(`maestro.${table}`)} set feed_key = (feed_key::text::bigint + 1000000)::text::xid8
        where feed_key >= ${row?.from ?? "0"}::xid8`
    }
  })

/** A transaction that writes to a stream after an event that another caller committed since its first write. */
const overlap = (mine: string, first: number, shared: string, next: number) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    sql.withTransaction(
      Effect.all([
        commit(event(mine, first)),
        outside(commit(event(shared, next))),
        commit(event(shared, next + 1)),
        commit(event(mine, first + 1))
      ])
    )
  )

/** A transaction that gets its id before another caller commits, and writes its only event after that commit. */
const late = (mine: string, sequence: number, other: string, next: number) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    sql.withTransaction(
      Effect.all([sql`select pg_current_xact_id()`, outside(commit(event(other, next))), commit(event(mine, sequence))])
    )
  )

const stored = lastPosition.pipe(
  Effect.zipRight(Stream.runCollect(EventFeed.streamStored())),
  Effect.map((events) => [...events].map(textOf))
)

layer(Layer.fresh(storeLayer), { excludeTestServices: true, timeout: 60_000 })("after a restore", (it) => {
  it.scoped("a subscription handles each event once and in order, also events written before the repair", () =>
    Effect.gen(function* () {
      const [a, b, c] = [newId("a"), newId("b"), newId("c")]
      const end = Subscription.make(newId("end"), { handle: write("end") })
      const shares = Subscription.make(newId("shares"), { partitions: 3, handle: write("shares") })
      const middle = Subscription.make(newId("middle"), {
        handle: (event) => (event.aggregateId === c ? Effect.fail("parked") : write("middle")(event)),
        retry: Schedule.stop,
        onFailure: "parkAggregate"
      })
      yield* overlap(a, 1, b, 1)
      yield* Effect.scoped(Effect.zipRight(start(middle), caughtUp(middle)))
      yield* commitOf(c, 1, 2, "T")
      yield* overlap(b, 3, a, 3)
      yield* Effect.scoped(Effect.zipRight(start(end), caughtUp(end)))
      yield* Effect.scoped(
        Effect.zipRight(
          start(shares),
          eventually(written("shares"), ({ length }) => length >= 10)
        )
      )
      const before = yield* stored
      expect(before).toHaveLength(10)
      expect(outOfOrder(before.map(placeOf))).toBe(0)

      yield* restore(1000)
      const d = newId("d")
      // A stream that ends early in the log, one that ends late, a new one, and several in one transaction.
      yield* commitOf(c, 3, 3, "T")
      yield* commitOf(b, 5, 5, "T")
      yield* commitOf(d, 1, 2, "T")
      yield* overlap(d, 3, c, 4)
      yield* overlap(a, 5, d, 5)
      expect(yield* SqlStore.repairAfterRestore()).toBe(true)

      const after = yield* stored
      expect(after.slice(0, before.length)).toEqual(before)
      expect(after).toHaveLength(22)
      expect(outOfOrder(after.map(placeOf))).toBe(0)
      yield* overlap(c, 6, a, 7)
      const all = yield* eventually(stored, ({ length }) => length >= 26)
      expect(outOfOrder(all.map(placeOf))).toBe(0)

      for (const one of [end, middle]) yield* Effect.zipRight(start(one), caughtUp(one))
      yield* start(shares)
      expect(yield* written("end")).toEqual(all)
      expect(yield* written("middle")).toEqual(all.filter((place) => !place.startsWith(c)))
      expect((yield* Subscription.parked(middle.name)).map(textOf)).toEqual(all.filter((place) => place.startsWith(c)))
      const shared = yield* eventually(written("shares"), ({ length }) => length >= all.length)
      expect(shared.toSorted()).toEqual(all.toSorted())
      expect(outOfOrder(shared.map(placeOf))).toBe(0)
    })
  )
})

layer(Layer.fresh(storeLayer), { excludeTestServices: true, timeout: inject("timeout") })("after restores", (it) => {
  it.scoped(`of random parts of random logs nothing is skipped, doubled or out of order (seed ${seed})`, () =>
    Effect.gen(function* () {
      const heads = new Map<string, number>()
      const next = (id: string, count = 1): number => {
        const head = heads.get(id) ?? 0
        heads.set(id, head + count)
        return head + 1
      }
      const some = Effect.map(Random.nextIntBetween(0, 6), (index) => `random-${index}`)
      const fresh = Effect.sync(() => newId("fresh"))
      const one = Effect.gen(function* () {
        const id = yield* Effect.if(Random.nextBoolean, { onTrue: () => some, onFalse: () => fresh })
        if (yield* Random.nextBoolean) return yield* Effect.asVoid(commit(event(id, next(id))))
        const shared = yield* some
        if (shared === id) return
        if (yield* Random.nextBoolean) yield* overlap(id, next(id, 2), shared, next(shared, 2))
        else yield* late(id, next(id), shared, next(shared))
      })
      const follower = Subscription.make("random", { handle: write("random"), batchSize: 3 })

      for (const round of Arr.range(1, inject("runs") > 100 ? 100 : 6)) {
        yield* Effect.repeatN(one, yield* Random.nextIntBetween(1, 8))
        const events = [...heads.values()].reduce((sum, head) => sum + head, 0)
        yield* eventually(stored, ({ length }) => length >= events)
        if (yield* Random.nextBoolean) yield* Effect.scoped(Effect.zipRight(start(follower), caughtUp(follower)))
        const before = yield* stored
        yield* restore(yield* Random.nextIntBetween(1, (yield* Random.nextBoolean) ? 3 : 20))
        yield* Effect.repeatN(one, yield* Random.nextIntBetween(0, 5))
        expect({ round, repaired: yield* SqlStore.repairAfterRestore() }).toEqual({ round, repaired: true })
        const after = yield* stored
        expect(after.slice(0, before.length)).toEqual(before)
        expect({ round, outOfOrder: outOfOrder(after.map(placeOf)) }).toEqual({ round, outOfOrder: 0 })
        expect(after).toHaveLength([...heads.values()].reduce((sum, head) => sum + head, 0))
      }
      yield* Effect.zipRight(start(follower), caughtUp(follower))
      expect(yield* written("random")).toEqual(yield* stored)
    }).pipe(Effect.withRandom(Random.make(seed)))
  )
})
