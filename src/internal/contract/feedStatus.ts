/**
 * The contract of the state of subscriptions, and of waiting for their progress, one case for each sentence.
 */
import { expect } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import { beginning } from "../../EventFeed.js"
import { newId, stream, test } from "./case.js"
import {
  at,
  briefly,
  commitShown,
  endedWithin,
  eventsOf,
  type FeedCase,
  leaseOf,
  macrotasks,
  ports,
  readOn,
  shown,
  take,
  withoutTime
} from "./feedCase.js"

export const feedStatusCases: ReadonlyArray<FeedCase> = [
  test("partitions: is empty while the subscription has never run, and then lists its partitions in their order", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const all = yield* ports
        const { subscriptions } = all
        const name = newId()
        const from = at(yield* commitShown(all, 1), 0).position
        expect(yield* subscriptions.partitions(name)).toEqual([])
        for (const partition of [2, 0, 1]) {
          yield* take(subscriptions, leaseOf(name, { partition, partitions: 3, from, holder: `holder ${partition}` }))
        }
        expect((yield* subscriptions.partitions(name)).map(withoutTime)).toEqual(
          [0, 1, 2].map((partition) => ({
            name,
            partition,
            partitions: 3,
            position: from,
            holder: Option.some(`holder ${partition}`),
            stopped: false,
            retrying: false,
            lastFailure: Option.none(),
            parked: 0
          }))
        )
        expect(yield* subscriptions.partitions(`${name} `)).toEqual([])
      })
    )),

  test("partitions: a subscription has no holder before and after the scope of a lease, and keeps its position", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const all = yield* ports
        const { subscriptions } = all
        const name = newId()
        const { position } = at(yield* commitShown(all, 1), 0)
        const held = yield* take(subscriptions, leaseOf(name))
        yield* held.lease.advanceTo(position)
        yield* held.giveBack
        expect(yield* subscriptions.partitions(name)).toMatchObject([{ holder: Option.none(), position }])
      })
    )),

  test("resume: changes nothing for a subscription that has never run, or has not stopped", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { subscriptions } = yield* ports
        const name = newId()
        yield* subscriptions.resume(name)
        expect(yield* subscriptions.partitions(name)).toEqual([])
        yield* take(subscriptions, leaseOf(name))
        const before = yield* subscriptions.partitions(name)
        yield* subscriptions.resume(name)
        expect(yield* subscriptions.partitions(name)).toEqual(before)
      })
    )),

  test("awaitPosition: returns immediately for a position that the subscription has reached, and waits for a later one", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const all = yield* ports
        const { subscriptions } = all
        const name = newId()
        const events = yield* commitShown(all, 3)
        const [first, second, third] = [at(events, 0), at(events, 1), at(events, 2)]
        const held = yield* take(subscriptions, leaseOf(name))
        yield* held.lease.advanceTo(second.position)
        for (const { aggregateId, position } of [first, second]) {
          yield* subscriptions.awaitPosition(name, position)
          yield* subscriptions.awaitPosition(name, position, aggregateId)
        }
        yield* subscriptions.awaitPosition(name, beginning)
        const waiting = yield* Effect.forEach([undefined, third.aggregateId, undefined], (aggregateId) =>
          Effect.fork(subscriptions.awaitPosition(name, third.position, aggregateId))
        )
        for (const fiber of waiting) expect(yield* endedWithin(fiber, briefly)).toEqual(Option.none())
        yield* Fiber.interrupt(at(waiting, 0))
        yield* held.lease.advance(third.position, Effect.void)
        for (const fiber of waiting.slice(1)) yield* Fiber.join(fiber)
        // It does not matter whether the subscription has a holder.
        yield* held.giveBack
        yield* subscriptions.awaitPosition(name, third.position)
      })
    )),

  test("awaitPosition: waits for a subscription that has never run", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const all = yield* ports
        const { subscriptions } = all
        const name = newId()
        const { aggregateId, position } = at(yield* commitShown(all, 1), 0)
        const waiting = [
          yield* Effect.fork(subscriptions.awaitPosition(name, position)),
          yield* Effect.fork(subscriptions.awaitPosition(name, position, aggregateId)),
          yield* Effect.fork(subscriptions.awaitPosition(name, beginning))
        ]
        for (const fiber of waiting) expect(yield* endedWithin(fiber, briefly)).toEqual(Option.none())
        const { lease } = yield* take(subscriptions, leaseOf(name))
        yield* Fiber.join(at(waiting, 2))
        expect(yield* endedWithin(at(waiting, 0), briefly)).toEqual(Option.none())
        yield* lease.advanceTo(position)
        for (const fiber of waiting) yield* Fiber.join(fiber)
      })
    )),

  test("awaitPosition: waits for all partitions, including partitions that have never run", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const all = yield* ports
        const { subscriptions } = all
        const name = newId()
        const { position } = at(yield* commitShown(all, 1), 0)
        const first = yield* take(subscriptions, leaseOf(name, { partition: 0, partitions: 2 }))
        yield* first.lease.advanceTo(position)
        const waiting = yield* Effect.fork(subscriptions.awaitPosition(name, position))
        expect(yield* endedWithin(waiting, briefly)).toEqual(Option.none())
        const second = yield* take(subscriptions, leaseOf(name, { partition: 1, partitions: 2 }))
        expect(yield* endedWithin(waiting, briefly)).toEqual(Option.none())
        yield* second.lease.advanceTo(position)
        yield* Fiber.join(waiting)
      })
    )),

  test("awaitPosition: for an aggregate it waits for one partition, which is the slice of the aggregate", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { feed, store, subscriptions } = yield* ports
        const name = newId()
        const after = yield* feed.head
        const ids = Arr.makeBy(12, newId)
        for (const id of ids) yield* store.commitEvents(yield* stream(id, 1, 1))
        yield* shown(feed, { after }, ids, ids.length)
        const position = yield* feed.head
        const slices = yield* Effect.forEach([0, 1, 2], (index) =>
          Effect.map(readOn(feed, { after, filter: { slice: { index, of: 3 } } }), (events) =>
            eventsOf(events, ids).map(({ aggregateId }) => aggregateId)
          )
        )
        const leases = yield* Effect.forEach([0, 1, 2], (partition) =>
          Effect.map(take(subscriptions, leaseOf(name, { partition, partitions: 3 })), ({ lease }) => lease)
        )
        const waiting = yield* Effect.forEach(slices, (slice) =>
          Effect.forEach(slice, (id) => Effect.fork(subscriptions.awaitPosition(name, position, id)))
        )
        const whole = yield* Effect.fork(subscriptions.awaitPosition(name, position))
        for (const [partition, lease] of leases.entries()) {
          yield* macrotasks(briefly)
          expect(yield* Fiber.poll(whole)).toEqual(Option.none())
          for (const fiber of waiting.slice(partition).flat()) expect(yield* Fiber.poll(fiber)).toEqual(Option.none())
          yield* lease.advanceTo(position)
          for (const fiber of at(waiting, partition)) yield* Fiber.join(fiber)
        }
        yield* Fiber.join(whole)
      })
    ))
]
