/** The operations of the feed inside a caller's transaction, before and after it has written. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { EventFeed, SqlStore, Subscription } from "effect-maestro"
import { inject } from "vitest"
import { layerPg } from "./database.js"
import { textOf } from "./feedOrderModel.js"
import { caughtUp, commit, event, eventually, Ledger, newId, placesOf, start, write } from "./subscribers.js"

const storeLayer = Layer.merge(SqlStore.layer, Ledger.layerSql).pipe(Layer.provideMerge(layerPg()))

const levels = ["read committed", "repeatable read", "serializable"] as const

const inTransaction = <A, E, R>(level: (typeof levels)[number], effect: Effect.Effect<A, E, R>) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    sql.withTransaction(Effect.zipRight(sql`set transaction isolation level ${sql.literal(level)}`, effect))
  )

/** Runs the effect on a connection of its own, outside of the current transaction. */
const elsewhere = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.mapInputContext(
    effect,
    (context: Context.Context<R>) => Context.omit(SqlClient.TransactionConnection)(context) as Context.Context<R>
  )

/** A store on one connection, so that no other transaction of the server ends while one of these is open. */
layer(SqlStore.layer.pipe(Layer.provideMerge(layerPg({ maxConnections: 1 }))), {
  excludeTestServices: true,
  timeout: 60_000
})("in a caller's transaction on the only connection", (it) => {
  for (const level of levels) {
    it.effect(`that is ${level}, \`head\` is the position of what others have committed, also after a write`, () =>
      Effect.gen(function* () {
        const before = yield* EventFeed.head
        yield* commit(event(newId("a"), 1))
        const head = yield* eventually(EventFeed.head, (head) => head !== before)
        yield* inTransaction(
          level,
          Effect.gen(function* () {
            expect(yield* EventFeed.head).toBe(head)
            yield* commit(event(newId("b"), 1))
            expect(yield* EventFeed.head).toBe(head)
            yield* commit(event(newId("c"), 1))
            expect(yield* EventFeed.head).toBe(head)
          })
        )
        yield* eventually(EventFeed.head, (now) => now !== head)
      })
    )
  }
})

layer(storeLayer, { excludeTestServices: true, timeout: 60_000 })("in a caller's transaction", (it) => {
  for (const level of levels) {
    it.effect(`that is ${level}, \`read\`, \`streamStored\` and \`count\` show nothing that it has written`, () =>
      Effect.gen(function* () {
        const feed = yield* EventFeed.EventFeed
        const after = yield* EventFeed.head
        const [a, b] = [newId("a"), newId("b")]
        yield* commit(event(a, 1))
        yield* eventually(EventFeed.head, (head) => head !== after)
        const shown = Effect.all({
          read: Effect.map(EventFeed.read({ after }), ({ events }) => events.map(textOf)),
          filtered: Effect.map(EventFeed.read({ after, filter: { types: ["Happened"] } }), ({ events }) =>
            events.map(textOf)
          ),
          streamed: Effect.map(Stream.runCollect(EventFeed.streamStored({ after })), (events) =>
            [...events].map(textOf)
          ),
          count: feed.count({ after })
        })
        const one = { read: [`${a}/1`], filtered: [`${a}/1`], streamed: [`${a}/1`], count: 1 }
        yield* inTransaction(
          level,
          Effect.gen(function* () {
            expect(yield* shown).toEqual(one)
            yield* commit(event(a, 2), event(b, 1))
            expect(yield* shown).toEqual(one)
          })
        )
        expect((yield* eventually(shown, ({ count }) => count > 1)).read).toEqual([`${a}/1`, `${a}/2`, `${b}/1`])
      })
    )

    it.effect(`that is ${level}, \`positionOf\` tells where an event will be that it has written`, () =>
      Effect.gen(function* () {
        const feed = yield* EventFeed.EventFeed
        const a = newId("a")
        const inside = yield* inTransaction(
          level,
          Effect.zipRight(commit(event(a, 1)), feed.positionOf({ aggregateId: a, sequence: 1 }))
        )
        expect(Option.isSome(inside)).toBe(true)
        expect(yield* feed.positionOf({ aggregateId: a, sequence: 1 })).toEqual(inside)
        const undone = yield* inTransaction(level, Effect.zipRight(commit(event(a, 2)), Effect.fail("undone"))).pipe(
          Effect.ignore,
          Effect.zipRight(feed.positionOf({ aggregateId: a, sequence: 2 }))
        )
        expect(undone).toEqual(Option.none())
      })
    )

    it.scoped(`that is ${level}, \`waitFor\` finds what was handled, and not what the transaction has written`, () =>
      Effect.gen(function* () {
        const subscription = Subscription.make(newId("waited for"), {
          from: yield* EventFeed.head,
          handle: write(newId("w"))
        })
        yield* start(subscription)
        const [a, b] = [newId("a"), newId("b")]
        yield* commit(event(a, 1))
        yield* caughtUp(subscription)
        yield* inTransaction(
          level,
          Effect.gen(function* () {
            const done = Subscription.waitFor(subscription.name, { aggregateId: a, sequence: 1 }, "10 seconds")
            yield* done
            yield* commit(event(b, 1))
            yield* done
            const own = { aggregateId: b, sequence: 1 }
            const error = yield* Effect.flip(Subscription.waitFor(subscription.name, own, "50 millis"))
            expect(error).toMatchObject({ _tag: "NotReached" })
            // The transaction is still usable.
            yield* commit(event(b, 2))
          })
        )
        yield* Subscription.waitFor(subscription.name, { aggregateId: b, sequence: 2 }, "10 seconds")
      })
    )
  }

  it.scoped("`waitFor` that runs out of time while it reads leaves the transaction usable", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const [name, a] = [newId("locked"), newId("a")]
      yield* commit(event(a, 1))
      const locked = yield* Deferred.make<void>()
      const done = yield* Deferred.make<void>()
      const holder = yield* Effect.fork(
        Effect.provide(
          sql`lock table maestro.subscriptions in access exclusive mode`.pipe(
            Effect.zipRight(Deferred.succeed(locked, undefined)),
            Effect.zipRight(Deferred.await(done)),
            sql.withTransaction
          ),
          Context.empty()
        )
      )
      yield* Deferred.await(locked)
      yield* sql.withTransaction(
        Effect.gen(function* () {
          const error = yield* Effect.flip(Subscription.waitFor(name, { aggregateId: a, sequence: 1 }, "50 millis"))
          expect(error).toMatchObject({ _tag: "NotReached", reason: "Behind" })
          yield* commit(event(a, 2))
        })
      )
      yield* Deferred.succeed(done, undefined)
      yield* Fiber.join(holder)
      expect(
        yield* Effect.flatMap(EventFeed.EventFeed, (feed) => feed.positionOf({ aggregateId: a, sequence: 2 }))
      ).toMatchObject({
        _tag: "Some"
      })
    })
  )

  // With a counter the commit beside the transaction would wait for it.
  it.effect.skipIf(inject("feedOrder") === "counter")(
    "a reader outside sees concurrent commits only when the transaction has ended, and then all of them",
    () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const after = yield* EventFeed.head
        const [a, b] = [newId("a"), newId("b")]
        const places = elsewhere(Effect.map(EventFeed.read({ after }), ({ events }) => events.map(textOf)))
        yield* sql.withTransaction(
          Effect.gen(function* () {
            yield* commit(event(a, 1))
            yield* elsewhere(commit(event(b, 1), event(b, 2)))
            expect(yield* places).toEqual([])
            expect(yield* EventFeed.head).toBe(after)
          })
        )
        expect((yield* eventually(places, ({ length }) => length > 0)).toSorted()).toEqual(
          [`${a}/1`, ...placesOf(b, 1, 2)].toSorted()
        )
      })
  )
})
