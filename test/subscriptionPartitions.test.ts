/** The number of partitions of a subscription follows what all its nodes want, and no event is lost or handled twice. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, layer, it as plain } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { EventFeed, Subscription, SubscriptionStore } from "effect-maestro"
import { inject } from "vitest"
import { nextStep } from "../src/internal/subscription/repartition.js"
import { commitOf, eventually, lastPosition, newId, placesOf, start, stores, write, written } from "./subscribers.js"
import { aNode, aNodeApart, reached, storeLayer, withoutInnerSpans } from "./subscriptionNodes.js"

const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31))

// The contract tries the embedded database.
for (const [name, store] of stores.filter(([name]) => !name.includes("PGlite"))) {
  layer(store, { excludeTestServices: true, timeout: 60_000 })(name, (it) => {
    it.scoped(
      "a program that wants another number of partitions runs that number, and goes on where the last one ended",
      () =>
        Effect.gen(function* () {
          const [a, by] = [newId("a"), newId("changes")]
          const ids = Arr.makeBy(12, () => newId("any"))
          let last = 0
          for (const partitions of [2, 5, 1]) {
            for (const id of ids) yield* commitOf(id, last + 1, last + 2, a)
            last += 2
            const subscription = wanting(by, a, partitions)
            yield* Effect.scoped(
              Effect.gen(function* () {
                yield* start(subscription)
                yield* eventually(numberOf(by), (number) => number === partitions)
                expect(yield* Subscription.nodes(by)).toMatchObject([{ partitions }])
                for (const id of ids) yield* commitOf(id, last + 1, last + 2, a)
                last += 2
                for (const id of ids) yield* reached(by, id, last)
                const status = yield* eventually(subscription.status, ({ state }) => state === "running")
                expect(status.partitions).toHaveLength(partitions)
              })
            )
            const all = yield* written(by)
            for (const id of ids) expect(ofAggregate(all, id)).toEqual(placesOf(id, 1, last))
          }
        })
    )

    it.scoped("a subscription about a slice does not run while the store has several partitions", () =>
      Effect.gen(function* () {
        const by = newId("slice")
        yield* Effect.scoped(
          Effect.zipRight(
            start(Subscription.make(by, { partitions: 2, handle: () => Effect.void })),
            eventually(numberOf(by), (number) => number === 2)
          )
        )
        // Two positions, so that the number can't change before.
        const subscriptions = yield* SubscriptionStore.SubscriptionStore
        yield* commitOf(newId("any"), 1, 1, by)
        const head = yield* lastPosition
        const key = { name: by, partition: 0, partitions: 2 }
        const lease = subscriptions.lease({ key, from: EventFeed.beginning, holder: "test", duration: 1000 })
        yield* Effect.scoped(Effect.flatMap(lease, ({ advanceTo }) => advanceTo(head)))
        const sliced = Subscription.make(by, { filter: { slice: { index: 0, of: 3 } }, handle: () => Effect.void })
        expect(yield* Effect.flip(sliced.run)).toMatchObject({
          reason: "Misconfigured",
          description: expect.stringContaining("has 2 partitions in the store, so its filter can't have a slice")
        })
      })
    )
  })
}

layer(storeLayer, { excludeTestServices: true, timeout: 120_000 })("nodes", (it) => {
  it.scoped(
    "a rolling deployment: new nodes run the stored number until the last old one has left, then all theirs",
    () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("rolling")]
        const ids = Arr.makeBy(10, () => newId("any"))
        const writer = yield* Effect.fork(appendingTo(ids, a))
        const old = yield* Effect.forEach(["old 1", "old 2"], (holder) => nodeWanting(by, a, 4, { holder }))
        yield* eventually(numberOf(by), (number) => number === 4)
        const [first, second] = [at(old, 0), at(old, 1)]
        yield* nodeWanting(by, a, 6, { holder: "new 1" })
        yield* eventually(holdersOf(by), (holders) => holders.length === 4 && new Set(holders).size === 3)
        yield* Scope.close(first, Exit.void)
        yield* nodeWanting(by, a, 6, { holder: "new 2" })
        yield* eventually(holdersOf(by), (holders) => holders.includes("new 2") && holders.includes("old 2"))
        expect(yield* numberOf(by)).toBe(4)
        const wanted = (yield* Subscription.nodes(by)).map(({ holder, partitions }) => [holder, partitions])
        expect(Object.fromEntries(wanted)).toEqual({ "old 2": 4, "new 1": 6, "new 2": 6 })
        yield* Scope.close(second, Exit.void)
        yield* eventually(holdersOf(by), (holders) => holders.length === 6 && new Set(holders).size === 2)
        const last = yield* Fiber.interrupt(writer).pipe(Effect.zipRight(lastPosition))
        yield* Subscription.waitFor(by, last, "30 seconds")
        yield* expectEachOnce(by, ids)
      })
  )

  it.scoped("a node of the old number that joins during the change: the change waits until it has left", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("joins")]
      const ids = Arr.makeBy(8, () => newId("any"))
      const [inHandler, goOn] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      const blocking = (partitions: number, before: Effect.Effect<void>) =>
        Subscription.make(by, {
          ...optionsOf(a, partitions),
          batchSize: 1,
          shutdown: 0,
          handle: (event) => Effect.zipRight(event.aggregateId === blocked ? before : Effect.void, write(by)(event))
        })
      for (const id of ids) yield* commitOf(id, 1, 3, a)
      // Of partition 0, because the other one passes to the node that joins.
      const blocked = yield* Effect.flatMap(EventFeed.EventFeed, ({ read }) =>
        Effect.map(
          read({
            after: EventFeed.beginning,
            limit: 1,
            filter: { types: [a], slice: { index: 0, of: 2 } }
          }),
          ({ events }) => at(events, 0).aggregateId
        )
      )
      const head = yield* eventually(EventFeed.head, (position) => position !== EventFeed.beginning)
      // Partition 1 ends at the head, and partition 0 before the events of the blocked aggregate.
      yield* Effect.scoped(
        Effect.zipRight(
          start(blocking(2, Effect.never)),
          eventually(statesOf(by), (states) => states.some(({ position }) => EventFeed.order(position, head) >= 0))
        )
      )
      yield* start(blocking(3, Effect.zipRight(Deferred.succeed(inHandler, undefined), Deferred.await(goOn))))
      yield* Deferred.await(inHandler)
      const old = yield* nodeWanting(by, a, 2, { holder: "old" })
      yield* eventually(holdersOf(by), (holders) => holders.includes("old"))
      yield* Deferred.succeed(goOn, undefined)
      yield* eventually(holdersOf(by), (holders) => holders.length === 2 && holders.includes("old"))
      for (const id of ids) yield* commitOf(id, 4, 5, a)
      for (const id of ids) yield* reached(by, id, 5)
      expect(yield* numberOf(by)).toBe(2)
      yield* Scope.close(old, Exit.void)
      yield* eventually(holdersOf(by), (holders) => holders.length === 3)
      for (const id of ids) yield* commitOf(id, 6, 6, a)
      for (const id of ids) yield* reached(by, id, 6)
      const all = yield* written(by)
      for (const id of ids) expect(ofAggregate(all, id)).toEqual(placesOf(id, 1, 6))
    })
  )

  it.scoped("while a partition is stopped the others go on, and the number changes when it was resumed", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("stopped")]
      const ids = Arr.makeBy(10, () => newId("any"))
      let fails = true
      const subscription = (partitions: number) =>
        Subscription.make(by, {
          ...optionsOf(a, partitions),
          retry: Schedule.stop,
          handle: (event) => (fails && event.aggregateId === ids[0] ? Effect.fail("no") : write(by)(event))
        })
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* start(subscription(2))
          for (const id of ids) yield* commitOf(id, 1, 2, a)
          yield* eventually(subscription(2).status, ({ state }) => state === "stopped")
        })
      )
      yield* start(subscription(5))
      const stopped = (yield* subscription(5).status).partitions.findIndex((one) => one.stopped)
      yield* eventually(holdersOf(by), ({ length }) => length === 1)
      for (const id of ids) yield* commitOf(id, 3, 4, a)
      const head = yield* lastPosition
      yield* eventually(
        subscription(5).status,
        ({ partitions }) => EventFeed.order(at(partitions, 1 - stopped).position, head) >= 0
      )
      expect(yield* numberOf(by)).toBe(2)
      fails = false
      yield* Subscription.resume(by)
      yield* eventually(holdersOf(by), (holders) => holders.length === 5)
      for (const id of ids) yield* reached(by, id, 4)
      const all = yield* written(by)
      for (const id of ids) expect(ofAggregate(all, id)).toEqual(placesOf(id, 1, 4))
    }).pipe(withoutInnerSpans)
  )

  it.scoped("while an event is retried the others go on, and its attempts are kept", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("retried")]
      const ids = Arr.makeBy(10, () => newId("any"))
      const subscription = (partitions: number, pause: "1 day" | "1 millis") =>
        Subscription.make(by, {
          ...optionsOf(a, partitions),
          retry: Schedule.recurs(3).pipe(Schedule.addDelay(() => pause)),
          onFailure: "park",
          handle: (event) => (event.aggregateId === ids[0] ? Effect.fail("no") : write(by)(event))
        })
      const slow = yield* Effect.fork(Effect.scoped(Effect.zipRight(start(subscription(2, "1 day")), Effect.never)))
      for (const id of ids) yield* commitOf(id, 1, 1, a)
      yield* eventually(subscription(2, "1 day").status, ({ partitions }) => partitions.some((one) => one.retrying))
      yield* Fiber.interrupt(slow)
      // The node has yet to make the remaining attempts, and wants another number.
      yield* start(subscription(3, "1 millis"))
      yield* eventually(holdersOf(by), (holders) => holders.length === 3)
      expect(yield* Subscription.parked(by)).toMatchObject([{ aggregateId: ids[0], attempts: 4 }])
      const all = yield* written(by)
      for (const id of ids.slice(1)) expect(ofAggregate(all, id)).toEqual(placesOf(id, 1, 1))
    }).pipe(withoutInnerSpans)
  )

  it.scoped("nodes that want different numbers and begin together: the subscription has one of the numbers", () =>
    Effect.gen(function* () {
      const subscriptions = yield* SubscriptionStore.SubscriptionStore
      for (let round = 0; round < 10; round++) {
        const name = newId("together")
        yield* Effect.forEach(
          [3, 5, 4, 6],
          (partitions, partition) => {
            const key = { name, partition, partitions }
            return Effect.ignore(
              Effect.scoped(subscriptions.lease({ key, from: EventFeed.beginning, holder: "any", duration: 1000 }))
            )
          },
          { concurrency: "unbounded" }
        )
        const states = yield* subscriptions.partitions(name)
        expect(states.map(({ partition, partitions }) => [partition, partitions])).toEqual(
          Arr.makeBy(states.length, (partition) => [partition, states.length])
        )
      }
    })
  )

  it.scoped(
    "a lease that ran out before the change makes the new partitions careful, and parked events wait for a retry",
    () =>
      Effect.gen(function* () {
        const by = newId("expired")
        const sql = yield* SqlClient.SqlClient
        const subscriptions = yield* SubscriptionStore.SubscriptionStore
        const id = newId("any")
        yield* commitOf(id, 1, 1, by)
        yield* eventually(
          EventFeed.EventFeed.pipe(Effect.flatMap((feed) => feed.read({ limit: 1 }))),
          ({ events }) => events.length > 0
        )
        const lease = (partition: number, partitions: number) =>
          subscriptions.lease({
            key: { name: by, partition, partitions },
            from: EventFeed.beginning,
            holder: "any",
            duration: 60_000
          })
        const partition = yield* Effect.scoped(
          Effect.gen(function* () {
            const { park } = yield* lease(0, 2)
            const failure = {
              position: EventFeed.beginning,
              aggregateId: id,
              sequence: 1,
              type: by,
              error: "",
              attempts: 1
            }
            yield* park(failure)
            return 0
          })
        )
        yield* sql`update maestro.subscriptions set leased_until = clock_timestamp() - interval '1 second'
        where name = ${by} and partition = ${partition}`
        const join = { name: by, partitions: 3, node: "node", holder: "any", duration: 60_000 }
        const { repartition } = yield* subscriptions.join(join)
        const [inside, goOn] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
        const retry = yield* Effect.fork(
          subscriptions.retryParked(by, { aggregateId: id, sequence: 1 }, () =>
            Effect.zipRight(Deferred.succeed(inside, undefined), Deferred.await(goOn))
          )
        )
        yield* Deferred.await(inside)
        expect(yield* repartition(2)).toBe(false)
        yield* Deferred.succeed(goOn, undefined)
        expect(yield* Fiber.join(retry)).toBe(true)
        expect(yield* repartition(2)).toBe(true)
        for (const one of [0, 1, 2]) expect((yield* lease(one, 3)).isTakenOver).toBe(true)
      })
  )

  for (const delivery of ["exactly-once", "at-least-once"] as const) {
    it.scoped(
      `${delivery}: nodes of random numbers come, go and are killed: each event handled in order, and the number follows (seed ${seed})`,
      () =>
        Effect.gen(function* () {
          const [a, by] = [newId("a"), newId("random")]
          const ids = Arr.makeBy(10, (index) => newId(`r${index}`))
          const running = new Map<
            string,
            { readonly wants: number; readonly scope: Scope.CloseableScope; readonly cut: () => void }
          >()
          let started = 0
          const startOne = (wants: number) =>
            Effect.gen(function* () {
              const { node, proxy } = yield* aNodeApart
              const holder = `node ${started++}`
              const subscription = Subscription.make(by, {
                ...optionsOf(a, wants),
                delivery,
                lease: "500 millis",
                batchSize: 3,
                holder,
                handle: write(by)
              })
              const scope = yield* startApart(Effect.provide(start(subscription), node))
              const cut = () => {
                proxy.refuse(true)
                proxy.cutAll()
              }
              running.set(holder, { wants, scope, cut })
            })
          const endOne = (holder: string) =>
            Effect.gen(function* () {
              const one = running.get(holder)
              if (one === undefined) return
              running.delete(holder)
              if (yield* Random.nextBoolean) one.cut()
              yield* Scope.close(one.scope, Exit.void)
            })
          const writer = yield* Effect.fork(appendingTo(ids, a))
          for (let round = 0; round < (inject("runs") > 100 ? 40 : 4); round++) {
            const wants = yield* Random.nextIntBetween(1, 8)
            const leaving = [...running.keys()]
            const coming = 1 + (yield* Random.nextIntBetween(0, 2))
            // The nodes of the last round leave while those of this one come, in any order.
            const steps = yield* Random.shuffle([
              ...leaving.map((holder) => endOne(holder)),
              ...Arr.makeBy(coming, () => startOne(wants))
            ])
            for (const step of steps) {
              yield* step
              yield* Effect.sleep(yield* Random.nextIntBetween(0, 120))
            }
            yield* eventually(
              holdersOf(by),
              (holders) => holders.length === wants && holders.every((one) => running.has(one))
            )
          }
          yield* Fiber.interrupt(writer)
          yield* Subscription.waitFor(by, yield* lastPosition, "30 seconds")
          yield* expectEachOnce(by, ids, delivery === "at-least-once")
        }).pipe(Effect.withRandom(Random.make(seed)), withoutInnerSpans)
    )
  }
})

plain(
  "the next step of a change: partitions run up to the furthest checkpoint, and are replaced when all are there",
  () => {
    const [first, second] = [positionOf("1-1"), positionOf("1-2")]
    const state = (fields: Partial<SubscriptionStore.PartitionState>): SubscriptionStore.PartitionState => ({
      name: "any",
      partition: 0,
      partitions: 2,
      position: first,
      holder: Option.none(),
      heldSince: Option.none(),
      stopped: false,
      retrying: false,
      lastFailure: Option.none(),
      parked: 0,
      ...fields
    })
    const furthest = state({ partition: 1, position: second })
    expect(nextStep([state({}), furthest], 2)).toEqual({ until: second })
    expect(nextStep([furthest, state({ position: second, holder: Option.some("any") })], 2)).toEqual({ until: second })
    expect(nextStep([furthest, state({ position: second })], 2)).toBe("replace")
    for (const waits of [{ stopped: true }, { retrying: true }, { partitions: 3 }]) {
      expect(nextStep([furthest, state({ position: second, ...waits })], 2)).toBe("wait")
    }
    expect(nextStep([furthest], 2)).toBe("wait")
    expect(nextStep([], 2)).toBe("wait")
  }
)

// --- internal ---

const optionsOf = (type: string, partitions: number) =>
  ({ filter: { types: [type] }, partitions, lease: "10 seconds" }) as const

const wanting = (name: string, type: string, partitions: number, options: { readonly holder?: string } = {}) =>
  Subscription.make(name, { ...optionsOf(type, partitions), ...options, handle: write(name) })

const nodeWanting = (name: string, type: string, partitions: number, options: { readonly holder: string }) =>
  Effect.flatMap(aNode(), (node) => startApart(Effect.provide(start(wanting(name, type, partitions, options)), node)))

const statesOf = (name: string) =>
  Effect.flatMap(SubscriptionStore.SubscriptionStore, (store) => store.partitions(name))

/** The number of partitions, of which the store must have all. */
const numberOf = (name: string) =>
  Effect.map(statesOf(name), (states) => {
    for (const { partitions } of states) expect(partitions).toBe(states.length)
    return states.length
  })

/** The holders of the partitions that are held. */
const holdersOf = (name: string) =>
  Effect.map(statesOf(name), (states) => states.flatMap(({ holder }) => Option.toArray(holder)))

/** Appends to all aggregates, one event after the other, without end. */
const appendingTo = (ids: ReadonlyArray<string>, type: string) =>
  Effect.gen(function* () {
    for (let sequence = 1; ; sequence++) {
      for (const id of ids) yield* commitOf(id, sequence, sequence, type)
      yield* Effect.sleep("20 millis")
    }
  })

const ofAggregate = (all: ReadonlyArray<string>, id: string): ReadonlyArray<string> =>
  all.filter((place) => place.startsWith(`${id}/`))

/** All stored events of the aggregates were handled in their order, and once unless `again`. */
const expectEachOnce = (name: string, ids: ReadonlyArray<string>, again = false) =>
  Effect.gen(function* () {
    const feed = yield* EventFeed.EventFeed
    const counts = new Map<string, number>()
    let after = EventFeed.beginning
    for (let more = true; more; ) {
      const page = yield* feed.read({ after, limit: 10_000 })
      for (const { aggregateId, sequence } of page.events) counts.set(aggregateId, sequence)
      after = page.position
      more = page.more
    }
    // The feed may show more by now, as the transaction of a killed node holds it back.
    for (const id of ids) if (counts.has(id)) yield* reached(name, id, counts.get(id) ?? 0)
    const all = yield* written(name)
    for (const id of ids) {
      const own = ofAggregate(all, id)
      expect(again ? [...new Set(own)] : own).toEqual(placesOf(id, 1, counts.get(id) ?? 0))
    }
  })

/** Runs an effect in a scope of its own, which the scope of the test closes, too. */
const startApart = <A, E, R>(effect: Effect.Effect<A, E, R | Scope.Scope>) =>
  Effect.gen(function* () {
    const own = yield* Scope.fork(yield* Effect.scope, ExecutionStrategy.sequential)
    yield* Scope.extend(effect, own)
    return own
  })

const positionOf = (text: string): EventFeed.Position => {
  if (!EventFeed.isPosition(text)) throw new Error(`${text} is no position`)
  return text
}

const at = <A>(list: ReadonlyArray<A>, index: number): A => {
  const found = list[index]
  if (found === undefined) throw new Error(`there is no item ${index}`)
  return found
}
