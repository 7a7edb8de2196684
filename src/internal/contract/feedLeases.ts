/**
 * The contract of leases: the holder of a partition, and its checkpoint, one case for each sentence.
 */
import { expect } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import { beginning } from "../../EventFeed.js"
import { LeaseLost, PartitionsChanged } from "../../SubscriptionStore.js"
import { macrotask, newId, stream, test } from "./case.js"
import {
  at,
  briefly,
  commitShown,
  endedWithin,
  type FeedCase,
  failureAt,
  leaseOf,
  macrotasks,
  ports,
  take,
  withoutTime
} from "./feedCase.js"

export const feedLeaseCases: ReadonlyArray<FeedCase> = [
  test("lease: a subscription has one holder at a time, and a second request waits until the scope of the first ends", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { subscriptions } = yield* ports
        const name = newId()
        const first = yield* take(subscriptions, leaseOf(name, { holder: "first" }))
        const lost = yield* Effect.fork(first.lease.lost)
        const waiting = yield* Effect.fork(take(subscriptions, leaseOf(name, { holder: "second" })))
        expect(yield* endedWithin(waiting, briefly)).toEqual(Option.none())
        expect(yield* Fiber.poll(lost)).toEqual(Option.none())
        expect(yield* holderOf(name)).toBe("first")
        yield* first.giveBack
        const second = yield* Fiber.join(waiting)
        expect(yield* holderOf(name)).toBe("second")
        yield* second.giveBack
        expect(yield* holderOf(name)).toBeUndefined()
        yield* Fiber.interrupt(lost)
      })
    )),

  test("lease: concurrent requests get the lease one after another, and each gets it", () =>
    Effect.gen(function* () {
      const { subscriptions } = yield* ports
      const name = newId()
      let [holding, most, ended] = [0, 0, 0]
      const working = Effect.gen(function* () {
        yield* subscriptions.lease(leaseOf(name))
        most = Math.max(most, ++holding)
        yield* macrotasks(20)
        holding--
        ended++
      })
      yield* Effect.all(Arr.replicate(Effect.scoped(working), 3), { concurrency: "unbounded" })
      expect({ most, ended }).toEqual({ most: 1, ended: 3 })
    })),

  test("lease: interrupting a waiting request affects neither the holder nor the next request", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const all = yield* ports
        const { subscriptions } = all
        const name = newId()
        const events = yield* commitShown(all, 12)
        const first = yield* take(subscriptions, leaseOf(name, { holder: "first" }))
        for (const [steps, { position }] of events.entries()) {
          const waiting = yield* Effect.fork(Effect.scoped(subscriptions.lease(leaseOf(name, { holder: "waits" }))))
          for (let step = 0; step < steps; step++) yield* step < 5 ? Effect.yieldNow() : macrotask
          yield* Fiber.interrupt(waiting)
          yield* first.lease.advanceTo(position)
          expect(yield* holderOf(name)).toBe("first")
        }
        yield* first.giveBack
        // An interrupted request that still waited would have the lease now.
        yield* macrotasks(10)
        expect(yield* holderOf(name)).toBeUndefined()
        const next = yield* take(subscriptions, leaseOf(name, { holder: "next" }))
        expect(next.lease.position).toBe(at(events, -1).position)
        expect(yield* holderOf(name)).toBe("next")
      })
    )),

  test("lease: a request that is interrupted at any step holds nothing, and the next request gets the lease", () =>
    Effect.gen(function* () {
      const { subscriptions } = yield* ports
      const name = newId()
      for (let steps = 0; steps < 18; steps++) {
        const asking = yield* Effect.fork(
          Effect.scoped(Effect.zipRight(subscriptions.lease(leaseOf(name)), Effect.never))
        )
        for (let step = 0; step < steps; step++) yield* step < 8 ? Effect.yieldNow() : macrotask
        yield* Fiber.interrupt(asking)
        yield* Effect.scoped(subscriptions.lease(leaseOf(name)))
      }
      expect(yield* holderOf(name)).toBeUndefined()
    })),

  test("lease: a subscription begins at `from` the first time, and at its checkpoint later", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const all = yield* ports
        const { subscriptions } = all
        const name = newId()
        const events = yield* commitShown(all, 3)
        const [first, second, third] = [at(events, 0).position, at(events, 1).position, at(events, 2).position]
        const one = yield* take(subscriptions, leaseOf(name, { from: first }))
        expect(one.lease.position).toBe(first)
        expect(yield* one.lease.checkpoint).toBe(first)
        yield* one.giveBack
        // The subscription has begun, although its checkpoint has not advanced.
        const two = yield* take(subscriptions, leaseOf(name, { from: third }))
        expect(two.lease.position).toBe(first)
        yield* two.lease.advanceTo(second)
        // The checkpoint at the time of the lease.
        expect(two.lease.position).toBe(first)
        yield* two.giveBack
        for (const from of [beginning, third]) {
          const later = yield* take(subscriptions, leaseOf(name, { from }))
          expect(later.lease.position).toBe(second)
          expect(yield* later.lease.checkpoint).toBe(second)
          yield* later.giveBack
        }
      })
    )),

  test("lease: names and partitions have leases and checkpoints of their own", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const all = yield* ports
        const { subscriptions } = all
        const own = newId()
        const keys = awkwardNames.flatMap((name) =>
          [0, 1].map((partition) => ({ name: `${name}${own}${name}`, partition }))
        )
        const events = yield* commitShown(all, keys.length)
        const held = yield* Effect.forEach(keys, ({ name, partition }, index) =>
          take(subscriptions, leaseOf(name, { partition, partitions: 2, holder: `holder ${index}` }))
        )
        for (const [index, { lease }] of held.entries()) {
          expect(lease.position).toBe(beginning)
          yield* index % 2 === 0
            ? lease.advanceTo(at(events, index).position)
            : lease.advance(at(events, index).position, Effect.void)
        }
        for (const [index, { name, partition }] of keys.entries()) {
          expect(yield* at(held, index).lease.checkpoint).toBe(at(events, index).position)
          expect(withoutTime((yield* subscriptions.partitions(name))[partition])).toEqual({
            name,
            partition,
            partitions: 2,
            position: at(events, index).position,
            holder: Option.some(`holder ${index}`),
            stopped: false,
            retrying: false,
            lastFailure: Option.none(),
            parked: 0
          })
        }
      })
    )),

  test("partitions: shows since when a lease is held, until it is released", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { subscriptions } = yield* ports
        const name = newId()
        const heldSince = Effect.map(subscriptions.partitions(name), ([only]) =>
          Option.getOrUndefined(only?.heldSince ?? Option.none())
        )
        const first = yield* take(subscriptions, leaseOf(name))
        const since = yield* heldSince
        // The clock of a database may differ from this one.
        expect(Math.abs((since ?? 0) - (yield* Clock.currentTimeMillis))).toBeLessThan(86_400_000)
        yield* first.lease.advanceTo(first.lease.position)
        expect(yield* heldSince).toBe(since)
        yield* first.giveBack
        expect(yield* heldSince).toBeUndefined()
        yield* take(subscriptions, leaseOf(name))
        expect(yield* heldSince).toBeGreaterThanOrEqual(since ?? Number.POSITIVE_INFINITY)
      })
    )),

  test("lease: another number of partitions is refused, also while there is a holder", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { subscriptions } = yield* ports
        const name = newId()
        const first = yield* take(subscriptions, leaseOf(name, { partition: 1, partitions: 2 }))
        for (const [partition, partitions] of [
          [0, 1],
          [0, 3],
          [1, 3]
        ] as const) {
          const refused = Effect.scoped(subscriptions.lease(leaseOf(name, { partition, partitions })))
          expect(yield* Effect.flip(refused)).toEqual(
            new PartitionsChanged({ subscription: name, stored: 2, requested: partitions })
          )
        }
        expect(yield* subscriptions.partitions(name)).toHaveLength(2)
        yield* first.giveBack
        yield* take(subscriptions, leaseOf(name, { partition: 0, partitions: 2 }))
      })
    )),

  test("lease: a lease that another holder has taken over fails with LeaseLost, and stores nothing", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const all = yield* ports
        const { store, subscriptions } = all
        const name = newId()
        const events = yield* commitShown(all, 3)
        const [first, second, third] = [at(events, 0), at(events, 1), at(events, 2)]
        const key = { partition: 1, partitions: 2 }
        const older = yield* take(subscriptions, leaseOf(name, { ...key, holder: "older" }))
        yield* older.lease.advanceTo(first.position)
        yield* older.giveBack
        const newer = yield* take(subscriptions, leaseOf(name, { ...key, holder: "newer" }))
        yield* newer.lease.advanceTo(second.position)
        const lost = new LeaseLost({ subscription: name, partition: 1 })
        const inside = newId()
        const operations: Record<string, Effect.Effect<unknown, unknown>> = {
          advance: older.lease.advance(third.position, store.commitEvents(yield* stream(inside, 1, 1))),
          pass: older.lease.advanceTo(third.position),
          checkpoint: older.lease.checkpoint,
          failing: older.lease.recordFailure(failureAt(third)),
          "failing taken off": older.lease.recordFailure(undefined),
          stop: older.lease.stop(failureAt(third))
        }
        for (const [operation, effect] of Object.entries(operations)) {
          expect(yield* Effect.exit(effect), operation).toEqual(Exit.fail(lost))
        }
        expect(yield* newer.lease.checkpoint).toBe(second.position)
        expect(yield* subscriptions.partitions(name)).toMatchObject([
          {},
          { holder: Option.some("newer"), stopped: false, lastFailure: Option.none(), position: second.position }
        ])
        yield* newer.lease.advance(third.position, Effect.void)
        expect(yield* newer.lease.checkpoint).toBe(third.position)
      })
    )),

  test(
    "advance: events that the effect of a holder without its lease committed are undone",
    () =>
      Effect.scoped(
        Effect.gen(function* () {
          const all = yield* ports
          const { store, subscriptions } = all
          const [name, id] = [newId(), newId()]
          const { position } = at(yield* commitShown(all, 1), 0)
          const older = yield* take(subscriptions, leaseOf(name))
          yield* older.giveBack
          yield* take(subscriptions, leaseOf(name))
          const committing = store.commitEvents(yield* stream(id, 1, 1))
          expect(yield* Effect.flip(older.lease.advance(position, committing))).toBeInstanceOf(LeaseLost)
          expect(yield* store.getEvents(id, 1)).toEqual([])
        })
      ),
    "transactionalEffects"
  ),

  test(
    "advance: a lease that is lost while the effect runs fails it with LeaseLost, and the checkpoint stays",
    () =>
      Effect.scoped(
        Effect.gen(function* () {
          const all = yield* ports
          const { subscriptions } = all
          const name = newId()
          const { position } = at(yield* commitShown(all, 1), 0)
          const [inside, leave] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
          const older = yield* take(subscriptions, leaseOf(name))
          const middle = yield* Effect.fork(
            older.lease.advance(position, Effect.zipRight(Deferred.succeed(inside, undefined), Deferred.await(leave)))
          )
          yield* Deferred.await(inside)
          yield* older.giveBack
          const newer = yield* take(subscriptions, leaseOf(name))
          yield* Deferred.succeed(leave, undefined)
          expect(yield* Fiber.await(middle)).toEqual(Exit.fail(new LeaseLost({ subscription: name, partition: 0 })))
          expect(newer.lease.position).toBe(beginning)
          expect(yield* newer.lease.checkpoint).toBe(beginning)
        })
      ),
    "concurrentReads"
  ),

  test("stop: no request gets the lease until the subscription is resumed, which then continues at its checkpoint", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const all = yield* ports
        const { subscriptions } = all
        const name = newId()
        const events = yield* commitShown(all, 2)
        const [done, failed] = [at(events, 0), at(events, 1)]
        const failure = failureAt(failed)
        const first = yield* take(subscriptions, leaseOf(name))
        yield* first.lease.advanceTo(done.position)
        yield* first.lease.stop(failure)
        yield* first.giveBack
        const stopped = { stopped: true, lastFailure: Option.some(failure), holder: Option.none() }
        expect(yield* subscriptions.partitions(name)).toMatchObject([{ ...stopped, position: done.position }])
        const waiting = yield* Effect.fork(take(subscriptions, leaseOf(name)))
        expect(yield* endedWithin(waiting, briefly)).toEqual(Option.none())
        expect(yield* subscriptions.partitions(name)).toMatchObject([stopped])
        yield* subscriptions.resume(name)
        const { lease } = yield* Fiber.join(waiting)
        expect(lease.position).toBe(done.position)
        expect(yield* subscriptions.partitions(name)).toMatchObject([{ stopped: false, lastFailure: Option.none() }])
      })
    )),

  test("stop: a request that waits for the lease already does not get it either", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const all = yield* ports
        const { subscriptions } = all
        const name = newId()
        const first = yield* take(subscriptions, leaseOf(name))
        const waiting = yield* Effect.fork(take(subscriptions, leaseOf(name)))
        yield* macrotasks(3)
        yield* first.lease.stop(failureAt(at(yield* commitShown(all, 1), 0)))
        yield* first.giveBack
        expect(yield* endedWithin(waiting, briefly)).toEqual(Option.none())
        yield* subscriptions.resume(name)
        yield* Fiber.join(waiting)
      })
    ))
]

// --- internal ---

const awkwardNames = ["a", "A", "á", "a\u0301", " ", "'\"\\", "{a,b}", "\ufeff🎉"]

const holderOf = (name: string) =>
  Effect.gen(function* () {
    const { subscriptions } = yield* ports
    const [only] = yield* subscriptions.partitions(name)
    return Option.getOrUndefined(only?.holder ?? Option.none())
  })
