/**
 * The contract of a change of the number of partitions of a subscription, one case for each sentence.
 */
import { expect } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type { Position } from "../../EventFeed.js"
import type { StoreError } from "../../StoreError.js"
import {
  type JoinOptions,
  LeaseLost,
  PartitionsChanged,
  type SubscriptionStoreService
} from "../../SubscriptionStore.js"
import { newId, stream, test } from "./case.js"
import {
  at,
  commitShown,
  eventsOf,
  type FeedCase,
  failureAt,
  leaseOf,
  macrotasks,
  placeOf,
  ports,
  readOn,
  shown,
  take
} from "./feedCase.js"

export const feedRepartitionCases: ReadonlyArray<FeedCase> = [
  test("lease: the first lease of a subscription makes all its partitions, at its position", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const all = yield* ports
        const { subscriptions } = all
        const name = newId()
        const events = yield* commitShown(all, 2)
        const from = at(events, 0).position
        yield* take(subscriptions, leaseOf(name, { partition: 1, partitions: 3, from }))
        expect(yield* subscriptions.partitions(name)).toMatchObject(
          [0, 1, 2].map((partition) => ({ partition, partitions: 3, position: from }))
        )
        const other = yield* take(subscriptions, leaseOf(name, { partitions: 3, from: at(events, 1).position }))
        expect(other.lease.position).toBe(from)
      })
    )),

  test("look: shows how many partitions the store has, none before the first lease, and how many each node wants", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { subscriptions } = yield* ports
        const name = newId()
        const two = yield* subscriptions.join(nodeOf(name, 2, "two"))
        expect((yield* two.look([])).partitions).toBe(undefined)
        yield* take(subscriptions, leaseOf(name, { partition: 2, partitions: 4 }))
        const five = yield* subscriptions.join(nodeOf(name, 5, "five"))
        for (const { look } of [two, five]) {
          const { nodes, partitions } = yield* look([])
          expect(partitions).toBe(4)
          expect(nodes.map((one) => [one.node, one.partitions])).toEqual([
            ["two", 2],
            ["five", 5]
          ])
        }
        expect(yield* subscriptions.nodes(name)).toMatchObject([{ partitions: 2 }, { partitions: 5 }])
      })
    )),

  test("repartition: the new partitions begin where all were, and leases of the earlier number are refused", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { name, position, subscriptions } = yield* settled(2)
        yield* change(subscriptions, name, 2, 3)
        expect(yield* subscriptions.partitions(name)).toMatchObject(
          [0, 1, 2].map((partition) => ({
            partition,
            partitions: 3,
            position,
            holder: Option.none(),
            stopped: false,
            retrying: false,
            lastFailure: Option.none(),
            parked: 0
          }))
        )
        const old = Effect.scoped(subscriptions.lease(leaseOf(name, { partition: 1, partitions: 2 })))
        expect(yield* Effect.flip(old)).toEqual(new PartitionsChanged({ subscription: name, stored: 3, requested: 2 }))
        for (const partition of [0, 1, 2]) {
          const held = yield* take(subscriptions, leaseOf(name, { partition, partitions: 3 }))
          expect(held.lease.position).toBe(position)
          expect(held.lease.attempts).toEqual(Option.none())
          yield* held.giveBack
        }
        yield* change(subscriptions, name, 3, 1)
        expect(yield* subscriptions.partitions(name)).toMatchObject([{ partition: 0, partitions: 1, position }])
        const gone = Effect.scoped(subscriptions.lease(leaseOf(name, { partition: 2, partitions: 3 })))
        expect(yield* Effect.flip(gone)).toMatchObject({ _tag: "PartitionsChanged", stored: 1, requested: 3 })
      })
    )),

  test("repartition: does nothing while a partition is elsewhere, leased, stopped or retrying, or a node wants another", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { last, name, position, subscriptions } = yield* settled(2)
        const { repartition } = yield* subscriptions.join(nodeOf(name, 3))
        const refused = Effect.gen(function* () {
          const before = yield* subscriptions.partitions(name)
          expect(yield* repartition(2)).toBe(false)
          expect(yield* subscriptions.partitions(name)).toEqual(before)
        })
        expect(yield* repartition(3)).toBe(false)
        expect(yield* repartition(1)).toBe(false)

        const held = yield* take(subscriptions, leaseOf(name, { partition: 1, partitions: 2 }))
        yield* refused
        yield* held.lease.recordAttempt({ position: last.position, attempts: 1 })
        yield* held.giveBack
        yield* refused
        expect((yield* subscriptions.partitions(name)).map(({ retrying }) => retrying)).toEqual([false, true])

        const again = yield* take(subscriptions, leaseOf(name, { partition: 1, partitions: 2 }))
        yield* again.lease.advanceTo(last.position)
        yield* again.giveBack
        yield* refused
        const other = yield* take(subscriptions, leaseOf(name, { partition: 0, partitions: 2 }))
        yield* other.lease.advanceTo(last.position)
        yield* other.lease.stop(failureAt(last))
        yield* other.giveBack
        yield* refused
        yield* subscriptions.resume(name)

        yield* Effect.scoped(Effect.zipRight(subscriptions.join(nodeOf(name, 2)), refused))
        expect(yield* repartition(2)).toBe(true)
        expect(yield* repartition(2)).toBe(false)
        expect(yield* subscriptions.partitions(name)).toMatchObject(Arr.makeBy(3, () => ({ position: last.position })))
        expect(last.position).not.toBe(position)
      })
    )),

  test("repartition: of several nodes one at most replaces the partitions", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { name, position, subscriptions } = yield* settled(2)
        const nodes = yield* Effect.replicateEffect(subscriptions.join(nodeOf(name, 5)), 4)
        let changes = 0
        // Nodes that get into the way of each other try again.
        for (let round = 0; changes === 0 && round < 50; round++) {
          const done = yield* Effect.all(
            nodes.map(({ repartition }) => repartition(2)),
            { concurrency: "unbounded" }
          )
          changes += done.filter((one) => one).length
        }
        expect(changes).toBe(1)
        expect(yield* subscriptions.partitions(name)).toMatchObject(
          Arr.makeBy(5, (partition) => ({ partition, partitions: 5, position }))
        )
      })
    )),

  test("repartition: a lease from before is lost, also when there are as many partitions again", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { last, name, position, store, subscriptions } = yield* settled(2)
        const held = yield* take(subscriptions, leaseOf(name, { partition: 1, partitions: 2 }))
        const older = held.lease
        yield* held.giveBack
        const lost = new LeaseLost({ subscription: name, partition: 1 })
        const inside = newId()
        const refused = Effect.gen(function* () {
          const commit = store.commitEvents(yield* stream(inside, 1, 1))
          const operations = [
            older.advanceTo(last.position),
            older.checkpoint,
            older.recordAttempt({ position: last.position, attempts: 1 }),
            older.stop(failureAt(last))
          ]
          for (const operation of operations) expect(yield* Effect.flip(operation)).toEqual(lost)
          expect(yield* Effect.flip(older.advance(last.position, commit))).toEqual(lost)
        })
        yield* refused
        for (const [from, to] of [
          [2, 1],
          [1, 4],
          [4, 2]
        ] as const) {
          yield* change(subscriptions, name, from, to)
          yield* refused
          const next = yield* take(subscriptions, leaseOf(name, { partition: Math.min(1, to - 1), partitions: to }))
          yield* refused
          expect(yield* next.lease.checkpoint).toBe(position)
          yield* next.giveBack
          yield* refused
        }
        expect(yield* subscriptions.partitions(name)).toMatchObject([{ position }, { position }])
      })
    )),

  test("repartition: a wait for a lease of the earlier number fails with PartitionsChanged", () =>
    Effect.gen(function* () {
      for (let round = 0; ; round++) {
        const { changed, ended, name } = yield* Effect.scoped(
          Effect.gen(function* () {
            const { name, subscriptions } = yield* settled(2)
            const { repartition } = yield* subscriptions.join(nodeOf(name, 3))
            const held = yield* take(subscriptions, leaseOf(name, { partitions: 2 }))
            const waiting = yield* Effect.fork(
              Effect.scoped(Effect.either(subscriptions.lease(leaseOf(name, { partitions: 2 }))))
            )
            yield* macrotasks(round)
            yield* held.giveBack
            return { name, changed: yield* repartition(2), ended: yield* Fiber.join(waiting) }
          })
        )
        if (Either.isLeft(ended)) {
          expect(changed).toBe(true)
          expect(ended.left).toEqual(new PartitionsChanged({ subscription: name, stored: 3, requested: 2 }))
          return
        }
        // The wait got the lease before the change.
        expect(round).toBeLessThan(100)
      }
    })),

  test("repartition: interrupted at any step, it leaves the old partitions or the new ones", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { name, position, subscriptions } = yield* settled(2)
        const { repartition } = yield* subscriptions.join(nodeOf(name, 3))
        for (let steps = 0, changed = false; !changed; steps++) {
          const fiber = yield* Effect.fork(repartition(2))
          for (let step = 0; step < steps; step++) yield* steps < 20 ? Effect.yieldNow() : macrotasks(1)
          yield* Fiber.interrupt(fiber)
          const states = yield* subscriptions.partitions(name)
          changed = states[0]?.partitions === 3
          const partitions = changed ? 3 : 2
          expect(states).toMatchObject(Arr.makeBy(partitions, (partition) => ({ partition, partitions, position })))
          yield* Effect.forEach(states, (key) =>
            Effect.scoped(subscriptions.lease(leaseOf(name, { partition: key.partition, partitions })))
          )
          expect(steps).toBeLessThan(1000)
        }
      })
    )),

  test("repartition: parked events stay parked, each in the partition of its aggregate, and can be retried", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { feed, store, subscriptions } = yield* ports
        const name = newId()
        const after = yield* feed.head
        const ids = Arr.makeBy(9, newId)
        for (const id of ids) yield* store.commitEvents(yield* stream(id, 1, 1))
        const events = yield* shown(feed, { after }, ids, ids.length)
        const position = at(events, -1).position
        const sliceOf = (of: number) =>
          Effect.forEach(Arr.range(0, of - 1), (index) =>
            Effect.map(readOn(feed, { after, filter: { slice: { index, of } } }), (found) =>
              eventsOf(found, ids).map(({ aggregateId }) => aggregateId)
            )
          )
        for (const [partition, slice] of (yield* sliceOf(2)).entries()) {
          const { giveBack, lease } = yield* take(subscriptions, leaseOf(name, { partition, partitions: 2 }))
          const own = events.filter(({ aggregateId }) => slice.includes(aggregateId))
          yield* lease.advance(
            position,
            Effect.forEach(own, (one) => lease.park(failureAt(one)), { discard: true })
          )
          yield* giveBack
        }
        for (const [from, to] of [
          [2, 5],
          [5, 3]
        ] as const) {
          yield* change(subscriptions, name, from, to)
          const parked = yield* subscriptions.parked(name)
          expect(parked.map(placeOf)).toEqual(events.map(placeOf))
          const slices = yield* sliceOf(to)
          for (const { aggregateId, partition } of parked) expect(at(slices, partition)).toContain(aggregateId)
          expect((yield* subscriptions.partitions(name)).map((one) => one.parked)).toEqual(
            slices.map(({ length }) => length)
          )
        }
        const [first, ...others] = events
        if (first === undefined) return
        const ofFirst = (yield* sliceOf(3)).findIndex((slice) => slice.includes(first.aggregateId))
        const { lease } = yield* take(subscriptions, leaseOf(name, { partition: ofFirst, partitions: 3 }))
        const isParked = Effect.gen(function* () {
          let found: ReadonlySet<string> = new Set()
          yield* lease.advance(
            position,
            Effect.map(lease.parkedAggregates([first.aggregateId]), (aggregates) => {
              found = aggregates
            })
          )
          return found.has(first.aggregateId)
        })
        expect(yield* isParked).toBe(true)
        expect(yield* subscriptions.retryParked(name, first, () => Effect.void)).toBe(true)
        expect(yield* isParked).toBe(false)
        expect((yield* subscriptions.parked(name)).map(placeOf)).toEqual(others.map(placeOf))
        for (const one of others) expect(yield* subscriptions.discardParked(name, one)).toBe(true)
      })
    )),

  test("repartition: leaves no assignments, and the nodes look within a third of the duration", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { name, subscriptions } = yield* settled(2)
        const other = yield* subscriptions.join({ ...nodeOf(name, 3, "other"), duration: 900 })
        const { assign, repartition } = yield* subscriptions.join(nodeOf(name, 3, "node"))
        yield* assign([0, 1].map((partition) => ({ partition, from: undefined, to: "node" })))
        expect((yield* other.look([])).assigned).toHaveLength(2)
        const due = yield* Effect.fork(other.due)
        expect(yield* repartition(2)).toBe(true)
        // Three times as long, because a busy machine is late.
        yield* Effect.timeout(Fiber.join(due), 900)
        expect(yield* other.look([])).toMatchObject({ partitions: 3, assigned: [] })
        yield* other.assign([{ partition: 2, from: undefined, to: "other" }])
        expect((yield* other.look([])).assigned).toEqual([{ partition: 2, node: "other" }])
      })
    )),

  test("repartition: a position that was reached stays reached, and later ones are waited for", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { last, name, position, subscriptions } = yield* settled(2)
        const waiting = yield* Effect.fork(subscriptions.awaitPosition(name, last.position))
        const ofAggregate = yield* Effect.fork(subscriptions.awaitPosition(name, last.position, last.aggregateId))
        yield* change(subscriptions, name, 2, 4)
        yield* subscriptions.awaitPosition(name, position)
        yield* subscriptions.awaitPosition(name, position, newId())
        for (const fiber of [waiting, ofAggregate]) expect(yield* Fiber.poll(fiber)).toEqual(Option.none())
        for (const partition of [0, 1, 2, 3]) {
          const { giveBack, lease } = yield* take(subscriptions, leaseOf(name, { partition, partitions: 4 }))
          yield* lease.advanceTo(last.position)
          yield* giveBack
        }
        for (const fiber of [waiting, ofAggregate]) yield* Fiber.join(fiber)
      })
    ))
]

// --- internal ---

/** A node that wants so many partitions. */
const nodeOf = (name: string, partitions: number, node = newId()): JoinOptions => ({
  name,
  partitions,
  node,
  holder: "holder",
  duration: 60_000
})

/** A subscription whose partitions are at the position of one event, before the last one. */
const settled = (partitions: number) =>
  Effect.gen(function* () {
    const all = yield* ports
    const { store, subscriptions } = all
    const name = newId()
    const events = yield* commitShown(all, 2)
    const { position } = at(events, 0)
    yield* reachAll(subscriptions, name, partitions, position)
    return { store, subscriptions, name, position, last: at(events, 1) }
  })

const reachAll = (subscriptions: SubscriptionStoreService, name: string, partitions: number, position: Position) =>
  Effect.forEach(
    Arr.range(0, partitions - 1),
    (partition) =>
      Effect.scoped(
        Effect.flatMap(subscriptions.lease(leaseOf(name, { partition, partitions })), (lease) =>
          lease.advanceTo(position)
        )
      ),
    { discard: true }
  )

/** Changes the number of partitions, as a node that leaves afterwards. */
const change = (
  subscriptions: SubscriptionStoreService,
  name: string,
  from: number,
  to: number
): Effect.Effect<void, StoreError> =>
  Effect.scoped(
    Effect.gen(function* () {
      const { repartition } = yield* subscriptions.join(nodeOf(name, to))
      expect(yield* repartition(from)).toBe(true)
    })
  )
