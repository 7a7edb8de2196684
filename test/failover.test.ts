/**
 * A database that has lost its last events while nodes run, as a failover to a replica that lacked them leaves it. What the nodes have in
 * memory is ahead of the log then. `npm run test:failover` does it with two servers.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import { expect, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { Aggregate, EventFeed, SqlStore, Subscription, SubscriptionStore } from "effect-maestro"
import { inject } from "vitest"
import { makeMigratedDatabase } from "./database.js"
import { accounts, InsufficientFunds, PayIn, PayOut, Purse, remember, Till, tills } from "./failover/domain.js"
import { caughtUp, commitOf, eventually, Ledger, newId, placesOf, start, write, written } from "./subscribers.js"

/** The URL of the database of a case. */
class Url extends Context.Tag("test/failover/Url")<Url, string>() {}

const aNode = Effect.flatMap(Url, (url) =>
  Layer.build(
    Layer.fresh(
      Layer.merge(Purse.layer, Till.layer).pipe(
        Layer.provideMerge(Layer.merge(SqlStore.layer, Ledger.layerSql)),
        Layer.provideMerge(PgClient.layer({ url: Redacted.make(url), maxConnections: 6 }))
      )
    )
  )
)

const inDatabase = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.provideServiceEffect(effect, Url, makeMigratedDatabase)

const positionLost = {
  _tag: "StoreError",
  reason: "Misconfigured",
  message: expect.stringContaining("the log has lost its last events")
}

layer(Layer.empty, { excludeTestServices: true, timeout: 60_000 })("after the loss of the last events", (it) => {
  for (const account of accounts) {
    it.scoped(
      `a cached state of ${account.name} that is ahead of the log is not decided on, however many events were stored since`,
      () =>
        inDatabase(
          Effect.gen(function* () {
            const [ahead, other] = [yield* aNode, yield* aNode]
            yield* Effect.provide(tills, ahead)
            // As many events as before the loss, fewer, and more.
            for (const since of [2, 1, 0, 3]) {
              const id = newId("purse")
              yield* Effect.provide(account.evaluate(id, new PayIn({ amount: 1 })), ahead)
              const restore = yield* Effect.provide(remember, ahead)
              for (const amount of [1000, 2000])
                yield* Effect.provide(account.evaluate(id, new PayIn({ amount })), ahead)
              yield* restore()
              for (let n = 0; n < since; n++)
                yield* Effect.provide(account.evaluate(id, new PayIn({ amount: 10 })), other)

              const balance = 1 + 10 * since
              const refused = account.evaluate(id, new PayOut({ amount: 500 }))
              expect(yield* Effect.flip(Effect.provide(refused, ahead))).toEqual(new InsufficientFunds({ balance }))
              const answer = yield* Effect.provide(account.evaluate(id, new PayIn({ amount: 5 })), ahead)
              expect(answer).toMatchObject({ sequence: since + 2, state: { balance: balance + 5 } })
              expect(yield* Effect.provide(account.fetch(id), other)).toEqual({ balance: balance + 5 })
            }
          })
        )
    )
  }

  it.scoped("an id that is not fresh any more is one without events, if its events are lost", () =>
    inDatabase(
      Effect.gen(function* () {
        const node = yield* aNode
        const restore = yield* Effect.provide(remember, node)
        const id = yield* Effect.provide(Purse.newId, node)
        yield* Effect.provide(Purse.evaluate(id, new PayIn({ amount: 100 })), node)
        yield* restore()
        const refused = Effect.flip(Effect.provide(Purse.evaluate(id, new PayOut({ amount: 50 })), node))
        expect(yield* refused).toEqual(new InsufficientFunds({ balance: 0 }))
        const answer = yield* Effect.provide(Purse.evaluate(id, new PayIn({ amount: 1 })), node)
        expect(answer).toMatchObject({ sequence: 1, state: { balance: 1 } })
      })
    )
  )

  it.scoped("a command whose receipt is lost takes effect again when it is repeated, and once", () =>
    inDatabase(
      Effect.gen(function* () {
        const node = yield* aNode
        const id = newId("purse")
        const command = Aggregate.withCommandId("payment")(Purse.evaluate(id, new PayIn({ amount: 100 })))
        const restore = yield* Effect.provide(remember, node)
        yield* Effect.provide(command, node)
        yield* restore()
        expect(yield* Effect.provide(command, node)).toMatchObject({ duplicate: false, state: { balance: 100 } })
        expect(yield* Effect.provide(command, node)).toMatchObject({ duplicate: true, state: { balance: 100 } })
      })
    )
  )

  it.scoped("a reader at a lost event fails with Misconfigured, also where it waits, and others read on", () =>
    inDatabase(
      Effect.gen(function* () {
        const node = yield* aNode
        yield* Effect.gen(function* () {
          const feed = yield* EventFeed.EventFeed
          const [a, b] = [newId("a"), newId("b")]
          yield* commitOf(a, 1, 2, "T")
          const kept = yield* eventually(feed.head, (head) => head !== EventFeed.beginning)
          const restore = yield* remember
          yield* commitOf(a, 3, 9, "T")
          const lost = yield* eventually(feed.head, (head) => head !== kept)
          const follower = yield* Effect.fork(Stream.runDrain(EventFeed.stream({ after: lost })))
          yield* restore()
          expect(yield* Effect.flip(Fiber.join(follower))).toMatchObject(positionLost)
          yield* commitOf(b, 1, 1, "T")
          for (const filter of [undefined, { types: ["T"] }, { kinds: ["none"] }, { correlationId: "none" }]) {
            expect(yield* Effect.flip(feed.read({ after: lost, filter }))).toMatchObject(positionLost)
          }
          const page = yield* eventually(feed.read({ after: kept }), ({ events }) => events.length > 0)
          expect(page.events.map(({ aggregateId }) => aggregateId)).toEqual([b])
          // It waits for the next event.
          const waiting = yield* Effect.fork(feed.awaitAppend(page.position))
          yield* commitOf(b, 2, 2, "T")
          expect(yield* Fiber.join(waiting)).toBe(page.position)
        }).pipe(Effect.provide(node))
      })
    )
  )

  it.scoped("a reader at a lost event fails with Misconfigured where another event has taken its very place", () =>
    inDatabase(
      Effect.gen(function* () {
        const node = yield* aNode
        yield* Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          const feed = yield* EventFeed.EventFeed
          const [a, b] = [newId("a"), newId("b")]
          yield* commitOf(a, 1, 2, "T")
          const kept = yield* eventually(feed.head, (head) => head !== EventFeed.beginning)
          const restore = yield* remember
          yield* commitOf(a, 3, 3, "T")
          const lost = yield* eventually(feed.head, (head) => head !== kept)
          yield* restore()
          yield* commitOf(b, 1, 2, "T")
          const { events } = yield* eventually(feed.read({ after: kept }), ({ events }) => events.length === 2)
          const [feedKey, number] = lost.split("-")
          const keyType = sql.literal(inject("feedOrder") === "counter" ? "bigint" : "xid8")
          yield* sql`update maestro.event_log set feed_key = ${feedKey}::${keyType}, position = ${number}::bigint
            where aggregate_id = ${b} and sequence = 1`
          for (const filter of [undefined, { types: ["T"] }, { kinds: ["none"] }, { correlationId: "none" }]) {
            expect(yield* Effect.flip(feed.read({ after: lost, filter }))).toMatchObject(positionLost)
          }
          expect(yield* Effect.flip(Stream.runDrain(EventFeed.stream({ after: lost })))).toMatchObject(positionLost)
          const subscription = Subscription.make("from", { handle: write("from"), from: lost })
          expect(yield* Effect.flip(subscription.run)).toMatchObject(positionLost)
          // A reader at the place of the event that is there now reads on.
          const first = yield* Effect.map(feed.positionOf({ aggregateId: b, sequence: 1 }), Option.getOrThrow)
          expect(EventFeed.order(first, lost)).toBe(0)
          expect((yield* feed.read({ after: first })).events.map(({ position }) => position)).toEqual([
            events[1]?.position
          ])
        }).pipe(Effect.provide(node))
      })
    )
  )

  for (const delivery of ["exactly-once", "at-least-once"] as const) {
    it.scoped(
      `a subscription that handles events ${delivery} goes on from the checkpoint that is left, and misses no event`,
      () =>
        inDatabase(
          Effect.gen(function* () {
            const node = yield* aNode
            yield* Effect.gen(function* () {
              const [a, b] = [newId("a"), newId("b")]
              const subscription = Subscription.make("all", { handle: write("all"), delivery, lease: "2 seconds" })
              yield* commitOf(a, 1, 2, "T")
              const running = yield* Effect.fork(subscription.run)
              yield* caughtUp(subscription)
              const restore = yield* remember
              yield* commitOf(a, 3, 4, "T")
              yield* caughtUp(subscription)
              yield* restore()
              yield* commitOf(b, 1, 8, "T")
              expect(yield* Effect.flip(Fiber.join(running))).toMatchObject(positionLost)
              yield* start(subscription)
              const expected = [...placesOf(a, 1, 2), ...placesOf(b, 1, 8)]
              expect(yield* eventually(written("all"), ({ length }) => length >= expected.length)).toEqual(expected)
            }).pipe(Effect.provide(node))
          })
        )
    )
  }

  it.scoped("a checkpoint that is lost with the writes of its transaction is not passed over", () =>
    inDatabase(
      Effect.gen(function* () {
        const node = yield* aNode
        yield* Effect.gen(function* () {
          const a = newId("a")
          const subscription = Subscription.make("all", { handle: write("all"), lease: "2 seconds" })
          yield* start(subscription)
          yield* commitOf(a, 1, 1, "T")
          yield* caughtUp(subscription)
          const restore = yield* remember
          yield* commitOf(a, 2, 3, "T")
          yield* caughtUp(subscription)
          // The events are left, the checkpoint and the rows of the handler are not.
          yield* restore({ keepsEvents: true })
          yield* commitOf(a, 4, 4, "T")
          const expected = placesOf(a, 1, 4)
          expect(yield* eventually(written("all"), ({ length }) => length >= expected.length)).toEqual(expected)
        }).pipe(Effect.provide(node))
      })
    )
  )

  it.scoped("of two holders with one fencing token only one moves the checkpoint", () =>
    inDatabase(
      Effect.gen(function* () {
        const node = yield* aNode
        yield* Effect.gen(function* () {
          const subscriptions = yield* SubscriptionStore.SubscriptionStore
          const feed = yield* EventFeed.EventFeed
          const a = newId("a")
          yield* commitOf(a, 1, 2, "T")
          const { events } = yield* eventually(feed.read({}), ({ events }) => events.length === 2)
          const leaseOf = (holder: string) =>
            subscriptions.lease({
              key: { name: "one", partition: 0, partitions: 1 },
              from: EventFeed.beginning,
              holder,
              duration: 10_000
            })
          yield* Effect.scoped(leaseOf("before"))
          const restore = yield* remember
          const first = yield* leaseOf("first")
          yield* restore()
          const second = yield* leaseOf("second")
          const [one] = events
          const to = one?.position ?? EventFeed.beginning
          expect(yield* Effect.flip(first.advanceTo(to))).toBeInstanceOf(SubscriptionStore.LeaseLost)
          expect(yield* Effect.flip(first.advance(to, Effect.void))).toBeInstanceOf(SubscriptionStore.LeaseLost)
          yield* second.advance(to, Effect.void)
        }).pipe(Effect.provide(node))
      })
    )
  )
})
