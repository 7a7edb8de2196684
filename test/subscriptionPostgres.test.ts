/**
 * Subscriptions of several nodes on one server: one holds the lease, another takes over, and a broken connection or a
 * crash loses nothing.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Random from "effect/Random"
import { EventFeed, StoreAdapter, Subscription, SubscriptionStore, Timestamp } from "effect-maestro"
import type { Mishap } from "./faults/proxy.js"
import { commitOf, event, eventually, Ledger, newId, placesOf, start, write, written } from "./subscribers.js"
import {
  aNode,
  Database,
  holderOf,
  reached,
  storeLayer,
  terminateOthers,
  withoutInnerSpans,
  writing
} from "./subscriptionNodes.js"

layer(storeLayer, { excludeTestServices: true, timeout: 60_000 })("nodes", (it) => {
  it.scoped("one node works, and the other takes over immediately when it ends", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("hand-over")]
      const [one, two] = [yield* aNode(), yield* aNode()]
      const first = yield* start(writing(by, a, { holder: "one", lease: "1 hour" })).pipe(
        Effect.zipRight(Effect.never),
        Effect.scoped,
        Effect.provide(one),
        Effect.fork
      )
      yield* eventually(holderOf(by), (holder) => holder === "one")
      yield* Effect.provide(start(writing(by, a, { holder: "two", lease: "1 hour" })), two)
      yield* commitOf(a, 1, 5, a)
      yield* reached(by, a, 5)
      expect(yield* holderOf(by)).toBe("one")
      yield* Fiber.interrupt(first)
      yield* eventually(holderOf(by), (holder) => holder === "two")
      yield* commitOf(a, 6, 9, a)
      yield* reached(by, a, 9)
      expect(yield* written(by)).toEqual(placesOf(a, 1, 9))
    })
  )

  it.scoped("an idle node and a busy node keep their lease", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("keeps")]
      const sql = yield* SqlClient.SqlClient
      const state = Effect.map(
        sql<{ token: string; until: string }>`select token, leased_until::text as until from maestro.subscriptions
          where name = ${by}`,
        ([row]) => row
      )
      let begun = 0
      const keeps = Subscription.make(by, {
        filter: { types: [a] },
        lease: "900 millis",
        holder: "one",
        handle: (event) => {
          begun++
          return Effect.zipRight(Effect.repeatN(sql`select pg_sleep(0.1)`, 12), write(by)(event))
        }
      })
      yield* Effect.provide(start(keeps), yield* aNode())
      // A registered row without a holder has a null here.
      const had = yield* eventually(state, (row) => typeof row?.until === "string")
      yield* Effect.provide(start(writing(by, a, { lease: "900 millis", holder: "two" })), yield* aNode())
      // Longer than the lease, so it was renewed at least three times.
      for (const _ of Arr.range(1, 4)) {
        const before = yield* state
        yield* eventually(state, (row) => row?.until !== before?.until)
      }
      yield* commitOf(a, 1, 1, a)
      yield* reached(by, a, 1)
      expect(begun).toBe(1)
      expect((yield* state)?.token).toBe(had?.token)
      expect(yield* holderOf(by)).toBe("one")
    })
  )

  it.scoped("no state of a lease is in a connection", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("stateless")]
      const sql = yield* SqlClient.SqlClient
      const node = yield* aNode()
      yield* Effect.provide(start(writing(by, a, { lease: "3 seconds", batchSize: 1, holder: "node" })), node)
      const token = Effect.map(sql`select token from maestro.subscriptions where name = ${by}`, ([row]) => row?.token)
      yield* eventually(holderOf(by), (holder) => holder === "node")
      const before = yield* token
      for (const sequence of Arr.range(1, 6)) {
        yield* commitOf(a, sequence, sequence, a)
        expect(yield* sql`select 1 from pg_locks where locktype = 'advisory'`).toEqual([])
        // All connections are new from here on.
        yield* Effect.provide(
          Effect.flatMap(SqlClient.SqlClient, (own) => Effect.ignore(own`select 1`)),
          node
        )
        yield* terminateOthers
        // A pooler may give its own clients a connection that was cut.
        yield* Effect.retry(reached(by, a, sequence), { times: 20, while: ({ _tag }) => _tag === "StoreError" })
      }
      expect(yield* token).toBe(before)
      expect(yield* written(by)).toEqual(placesOf(a, 1, 6))
    }).pipe(withoutInnerSpans)
  )

  it.scoped("of two holders of one lease, the older writes nothing", () =>
    Effect.gen(function* () {
      const by = newId("fenced")
      const sql = yield* SqlClient.SqlClient
      const ledger = yield* Ledger
      const store = yield* SubscriptionStore.SubscriptionStore
      const take = (holder: string) =>
        store.lease({
          key: { name: by, partition: 0, partitions: 1 },
          from: EventFeed.beginning,
          holder,
          duration: 60_000
        })
      const expire = sql`update maestro.subscriptions set leased_until = clock_timestamp() where name = ${by}`
      const at = (position: string) => position as EventFeed.Position
      const line = (sequence: number): EventFeed.FeedEvent => ({
        position: at("0-1"),
        timestamp: Timestamp.fromParts({ millis: 0, counter: 0, node: 0n }),
        aggregateId: "x",
        kind: "",
        id: "x",
        sequence,
        type: "T",
        version: 1,
        body: {},
        metadata: {}
      })
      const older = yield* take("older")
      yield* older.advance(at("3-1"), ledger.write(by, line(1)))
      const [inside, leave] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      // Its lease runs out in the middle of the transaction.
      const middle = yield* ledger
        .write(by, line(2))
        .pipe(
          Effect.zipRight(Deferred.succeed(inside, undefined)),
          Effect.zipRight(Deferred.await(leave)),
          (effect) => older.advance(at("3-2"), effect),
          Effect.exit,
          Effect.fork
        )
      yield* Deferred.await(inside)
      yield* expire
      const newer = yield* take("newer")
      expect(newer.position).toBe("3-1")
      yield* Deferred.succeed(leave, undefined)
      const lost = new SubscriptionStore.LeaseLost({ subscription: by, partition: 0 })
      expect(yield* Fiber.join(middle)).toEqual(Exit.fail(lost))
      // Afterwards all its operations fail.
      expect(yield* Effect.flip(older.advance(at("3-3"), ledger.write(by, line(3))))).toEqual(lost)
      expect(yield* Effect.flip(older.checkpoint)).toEqual(lost)
      expect(yield* Effect.flip(older.recordFailure(undefined))).toEqual(lost)
      yield* newer.advance(at("3-4"), ledger.write(by, line(4)))
      expect(yield* newer.checkpoint).toBe("3-4")
      expect(yield* written(by)).toEqual(["x/1", "x/4"])
    })
  )

  it.scoped("a holder notices that its lease is lost, and waits for it again", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("learns")]
      const sql = yield* SqlClient.SqlClient
      let interrupted = 0
      const stuck = Subscription.make(by, {
        filter: { types: [a] },
        lease: "300 millis",
        delivery: "at-least-once",
        handle: () => Effect.onInterrupt(Effect.never, () => Effect.sync(() => void interrupted++))
      })
      yield* Effect.provide(start(stuck), yield* aNode())
      yield* commitOf(a, 1, 1, a)
      yield* eventually(stuck.status, ({ state }) => state === "running")
      yield* sql`update maestro.subscriptions set token = token + 1, holder = 'thief',
        leased_until = clock_timestamp() + interval '1 hour' where name = ${by}`
      yield* eventually(
        Effect.sync(() => interrupted),
        (count) => count === 1
      )
      expect(yield* holderOf(by)).toBe("thief")
    }).pipe(withoutInnerSpans)
  )

  it.scoped("a connection that is killed between the handler's write and the checkpoint", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("killed")]
      let kills = 0
      const killed = Subscription.make(by, {
        filter: { types: [a] },
        batchSize: 3,
        handle: (event) =>
          Effect.gen(function* () {
            const sql = yield* SqlClient.SqlClient
            yield* write(by)(event)
            if (event.sequence % 4 === 0 && kills < event.sequence / 4) {
              kills++
              yield* sql`select pg_terminate_backend(pg_backend_pid())`
            }
          })
      })
      yield* Effect.provide(start(killed), yield* aNode())
      yield* commitOf(a, 1, 12, a)
      yield* reached(by, a, 12)
      expect(kills).toBe(3)
      expect(yield* written(by)).toEqual(placesOf(a, 1, 12))
    }).pipe(withoutInnerSpans)
  )

  it.scoped("checkpoints whose connection is cut before, during or after the commit are stored once", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("unknown")]
      const { proxy } = yield* Database
      const node = yield* aNode("proxy")
      const mishaps = (["before", "during", "after"] as const).map((at): Mishap => ({ _tag: "Cut", at }))
      let commits = 0
      const before = proxy.counts()
      yield* commitOf(a, 1, 30, a)
      proxy.onCommit(() => (commits++ % 2 === 0 ? mishaps[(commits >> 1) % 3] : undefined))
      yield* Effect.addFinalizer(() => Effect.sync(() => proxy.onCommit(() => undefined)))
      yield* Effect.provide(start(writing(by, a, { batchSize: 2 })), node)
      yield* reached(by, a, 30)
      expect(yield* written(by)).toEqual(placesOf(a, 1, 30))
      expect(proxy.counts().swallowed).toBeGreaterThan(before.swallowed)
      expect(proxy.counts().cuts - before.cuts).toBeGreaterThan(5)
    }).pipe(withoutInnerSpans)
  )

  it.scoped("while the database can't be reached it waits, and then goes on", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("unreachable")]
      const { proxy } = yield* Database
      const node = yield* aNode("proxy")
      const waits = writing(by, a, { lease: "500 millis" })
      yield* Effect.provide(start(waits), node)
      yield* commitOf(a, 1, 3, a)
      yield* reached(by, a, 3)
      yield* Effect.addFinalizer(() => Effect.sync(() => proxy.refuse(false)))
      proxy.refuse(true)
      proxy.cutAll()
      yield* commitOf(a, 4, 6, a)
      // Its lease has run out by then.
      yield* eventually(holderOf(by), (holder) => holder === undefined)
      proxy.refuse(false)
      yield* reached(by, a, 6)
      expect(yield* written(by)).toEqual(placesOf(a, 1, 6))
    }).pipe(withoutInnerSpans)
  )

  it.scoped("when a network stalls another node takes over, and the stalled one ends in time and writes nothing", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("still")]
      const { proxy } = yield* Database
      const node = yield* aNode("proxy")
      const inside = yield* Deferred.make<void>()
      const still = Subscription.make(by, {
        filter: { types: [a] },
        lease: "500 millis",
        shutdown: "100 millis",
        holder: "still",
        handle: (event) =>
          Effect.gen(function* () {
            yield* write(by)(event)
            if (event.sequence === 3) {
              proxy.pause()
              yield* Deferred.succeed(inside, undefined)
            }
          })
      })
      yield* Effect.addFinalizer(() => Effect.sync(() => proxy.resume()))
      const running = yield* start(still).pipe(
        Effect.zipRight(Effect.never),
        Effect.scoped,
        Effect.provide(node),
        Effect.fork
      )
      yield* commitOf(a, 1, 4, a)
      yield* Deferred.await(inside)
      yield* start(writing(by, a, { lease: "500 millis", holder: "moves" }))
      yield* reached(by, a, 4)
      const [took] = yield* Effect.timed(Fiber.interrupt(running))
      expect(Duration.toMillis(took)).toBeLessThan(5000)
      proxy.resume()
      yield* commitOf(a, 5, 6, a)
      yield* reached(by, a, 6)
      expect(yield* holderOf(by)).toBe("moves")
      expect(yield* written(by)).toEqual(placesOf(a, 1, 6))
    }).pipe(withoutInnerSpans)
  )

  it.scoped(
    "at-least-once: what was handled before a crash and not stored is handled again, and nothing is skipped",
    () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("again")]
        const { proxy } = yield* Database
        const node = yield* aNode("proxy")
        const seen: Array<number> = []
        let cuts = 0
        const again = Subscription.make(by, {
          filter: { types: [a] },
          delivery: "at-least-once",
          batchSize: 4,
          handle: ({ sequence }) =>
            Effect.sync(() => {
              seen.push(sequence)
              if (sequence === 6 && cuts++ === 0) proxy.cutAll()
            })
        })
        yield* commitOf(a, 1, 10, a)
        yield* Effect.provide(start(again), node)
        yield* reached(by, a, 10)
        expect(seen).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 5, 6, 7, 8, 9, 10])
      }).pipe(withoutInnerSpans)
  )

  it.scoped("connections killed again and again, of two nodes: each event once, in order", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("many-kills")]
      const many = writing(by, a, { batchSize: 3, lease: "400 millis" })
      yield* Effect.provide(start(many), yield* aNode())
      yield* Effect.provide(start(many), yield* aNode())
      const killing = yield* Effect.fork(Effect.forever(Effect.zipRight(Effect.sleep("60 millis"), terminateOthers)))
      const store = yield* StoreAdapter.StoreAdapter
      for (const batch of Arr.range(0, 19)) {
        const sequences = Arr.range(batch * 3 + 1, batch * 3 + 3)
        const events = yield* Effect.forEach(sequences, (sequence) => event(a, sequence, { type: a }))
        // A pooler may give the connection of a commit a session that was killed.
        yield* Effect.retry(store.commitEvents(events), { times: 10, while: ({ _tag }) => _tag === "StoreError" })
        yield* Effect.sleep("25 millis")
      }
      yield* Fiber.interrupt(killing)
      yield* reached(by, a, 60)
      expect(yield* written(by)).toEqual(placesOf(a, 1, 60))
    }).pipe(withoutInnerSpans)
  )

  it.scoped("interrupted at any moment and restarted: each event once, and no connection or transaction is left", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("any-moment")]
      const sql = yield* SqlClient.SqlClient
      const node = yield* aNode("direct", 4)
      const any = writing(by, a, { batchSize: 2, lease: "1 hour", shutdown: 0 })
      for (const round of Arr.range(0, 29)) {
        yield* commitOf(a, round * 3 + 1, round * 3 + 3, a)
        const running = yield* start(any).pipe(
          Effect.zipRight(Effect.never),
          Effect.scoped,
          Effect.provide(node),
          Effect.fork
        )
        yield* Effect.sleep(yield* Random.nextIntBetween(0, 25))
        yield* Fiber.interrupt(running)
      }
      // With a lease of an hour, because a node that did not release it would keep this one waiting.
      yield* Effect.provide(start(any), node)
      yield* reached(by, a, 90)
      expect(yield* written(by)).toEqual(placesOf(a, 1, 90))
      yield* eventually(
        sql<{ open: number }>`select count(*)::int as open from pg_stat_activity
          where datname = current_database() and state like 'idle in transaction%'`,
        ([row]) => row?.open === 0
      )
      yield* Effect.provide(
        Effect.flatMap(SqlClient.SqlClient, (own) => Effect.all(Arr.replicate(own`select 1`, 8), { concurrency: 4 })),
        node
      )
    }).pipe(withoutInnerSpans)
  )
})
