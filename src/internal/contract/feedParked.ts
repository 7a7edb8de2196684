/**
 * The contract of parked events, one case for each sentence.
 */
import { expect } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type { FeedEvent } from "../../EventFeed.js"
import { event, macrotask, newId, stream, test } from "./case.js"
import { at, commitShown, type FeedCase, failureAt, leaseOf, placeOf, ports, shown, take } from "./feedCase.js"

export const feedParkedCases: ReadonlyArray<FeedCase> = [
  test("parked: events are listed in the order of the feed, with their failures", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const all = yield* ports
        const { feed, store, subscriptions } = all
        const name = newId()
        const after = yield* feed.head
        const awkward = [`\ufeff${newId()}`, `'"\\${newId()}`, `🎉{a,b}${newId()}`]
        yield* store.commitEvents(yield* Effect.forEach(awkward, (id) => event(id, 1, { type: id })))
        const events = yield* shown(feed, { after }, awkward, 3)
        const failures = events.map((one, index) => ({
          ...failureAt(one, `\ufeffno ${index} 🎉 '"\\ {a,b}\n`),
          attempts: index + 1
        }))
        const one = yield* take(subscriptions, leaseOf(name, { partition: 0, partitions: 2 }))
        const two = yield* take(subscriptions, leaseOf(name, { partition: 1, partitions: 2 }))
        const now = yield* Clock.currentTimeMillis
        const last = at(events, 2).position
        yield* two.lease.advance(last, two.lease.park(at(failures, 2)))
        yield* one.lease.advance(
          last,
          Effect.zipRight(one.lease.park(at(failures, 1)), one.lease.park(at(failures, 0)))
        )
        const listed = yield* subscriptions.parked(name)
        expect(listed.map(({ since: _, ...rest }) => rest)).toEqual([
          { ...at(failures, 0), partition: 0 },
          { ...at(failures, 1), partition: 0 },
          { ...at(failures, 2), partition: 1 }
        ])
        // On the clock of the store, which may differ from the clock of this process.
        for (const { since } of listed) expect(Math.abs(since - now)).toBeLessThan(3_600_000)
        expect(yield* subscriptions.partitions(name)).toMatchObject([{ parked: 2 }, { parked: 1 }])
        expect(yield* subscriptions.parked(newId())).toEqual([])
      })
    )),

  test("parked: an event that is parked again is parked once", () =>
    Effect.gen(function* () {
      const { events, lease, name, subscriptions } = yield* scene
      const one = at(events, 0)
      yield* lease.advance(one.position, lease.park(failureAt(one)))
      yield* lease.advance(one.position, lease.park(failureAt(one)))
      expect((yield* subscriptions.parked(name)).map(placeOf)).toEqual(events.map(placeOf))
      expect(yield* subscriptions.retryParked(name, one, () => Effect.void)).toBe(true)
      expect((yield* subscriptions.parked(name)).map(placeOf)).toEqual(events.slice(1).map(placeOf))
    }).pipe(Effect.scoped)),

  test(
    "parked: an effect that fails parks nothing",
    () =>
      Effect.scoped(
        Effect.gen(function* () {
          const all = yield* ports
          const { subscriptions } = all
          const name = newId()
          const one = at(yield* commitShown(all, 1), 0)
          const { lease } = yield* take(subscriptions, leaseOf(name))
          const failing = Effect.zipRight(lease.park(failureAt(one)), Effect.fail("no"))
          expect(yield* Effect.flip(lease.advance(one.position, failing))).toBe("no")
          expect(yield* subscriptions.parked(name)).toEqual([])
          expect(yield* subscriptions.partitions(name)).toMatchObject([{ parked: 0 }])
        })
      ),
    "transactionalEffects"
  ),

  test("parkedAggregates: returns the given aggregates that have events parked", () =>
    Effect.gen(function* () {
      const { events, lease, subscriptions } = yield* scene
      const { aggregateId, position } = at(events, 0)
      let found: ReadonlyArray<ReadonlySet<string>> = []
      const look = (ids: ReadonlyArray<string>) =>
        Effect.gen(function* () {
          yield* lease.advance(
            position,
            Effect.map(Effect.all([lease.parkedAggregates(ids), lease.parkedAggregates([])]), (sets) => {
              found = sets
            })
          )
          return found
        })
      const none = new Set()
      expect(yield* look([newId(), aggregateId])).toEqual([new Set([aggregateId]), none])
      expect(yield* look([newId()])).toEqual([none, none])
      // Parked events of another subscription do not count.
      const other = yield* take(subscriptions, leaseOf(newId()))
      let others: ReadonlySet<string> | undefined
      yield* other.lease.advance(
        position,
        Effect.map(other.lease.parkedAggregates([aggregateId]), (ids) => {
          others = ids
        })
      )
      expect(others).toEqual(none)
    }).pipe(Effect.scoped)),

  test("retryParked: an effect that succeeds removes the event from the parked ones, and one that fails leaves it parked", () =>
    Effect.gen(function* () {
      const { events, name, subscriptions } = yield* scene
      const [first, second] = [at(events, 0), at(events, 1)]
      const seen: Array<FeedEvent> = []
      const handling = (one: FeedEvent) =>
        Effect.sync(() => {
          seen.push(one)
        })
      const failure = { reason: "not today" }
      const failing = subscriptions.retryParked(name, first, (one) =>
        Effect.zipRight(handling(one), Effect.fail(failure))
      )
      expect(yield* Effect.flip(failing)).toStrictEqual(failure)
      const dying = subscriptions.retryParked(name, first, () => Effect.die("defect"))
      expect(yield* Effect.exit(dying)).toEqual(Exit.die("defect"))
      expect((yield* subscriptions.parked(name)).map(placeOf)).toEqual(events.map(placeOf))
      expect(yield* subscriptions.retryParked(name, first, handling)).toBe(true)
      expect((yield* subscriptions.parked(name)).map(placeOf)).toEqual([placeOf(second)])
      expect(yield* subscriptions.partitions(name)).toMatchObject([{ parked: 1 }])
      // The event as the feed shows it.
      expect(seen).toEqual([first, first])
      expect(yield* subscriptions.retryParked(name, first, handling)).toBe(false)
      expect(seen).toHaveLength(2)
    }).pipe(Effect.scoped)),

  test("retryParked, discardParked: return false for an event that is not parked, and run nothing", () =>
    Effect.gen(function* () {
      const { events, name, subscriptions } = yield* scene
      const { aggregateId } = at(events, 0)
      const unknown = [
        [name, { aggregateId, sequence: 1000 }],
        [name, { aggregateId: newId(), sequence: 1 }],
        [newId(), at(events, 0)]
      ] as const
      for (const [of, place] of unknown) {
        expect(yield* subscriptions.retryParked(of, place, () => Effect.die("it runs"))).toBe(false)
        expect(yield* subscriptions.discardParked(of, place)).toBe(false)
      }
      expect((yield* subscriptions.parked(name)).map(placeOf)).toEqual(events.map(placeOf))
    }).pipe(Effect.scoped)),

  test("retryParked: of many concurrent calls exactly one runs the effect and removes the event", () =>
    Effect.gen(function* () {
      const { events, name, subscriptions } = yield* scene
      let ran = 0
      const taking = subscriptions.retryParked(name, at(events, 0), () =>
        Effect.map(macrotask, () => {
          ran++
        })
      )
      const answers = yield* Effect.all([taking, taking, taking, taking], { concurrency: "unbounded" })
      expect(answers.filter((taken) => taken)).toHaveLength(1)
      expect(ran).toBe(1)
    }).pipe(Effect.scoped)),

  test("retryParked: an interrupted call leaves the event parked, and the next call removes it", () =>
    Effect.gen(function* () {
      const { events, name, subscriptions } = yield* scene
      const one = at(events, 0)
      const began = yield* Deferred.make<void>()
      const hanging = yield* Effect.fork(
        subscriptions.retryParked(name, one, () => Effect.zipRight(Deferred.succeed(began, undefined), Effect.never))
      )
      yield* Deferred.await(began)
      yield* Fiber.interrupt(hanging)
      expect((yield* subscriptions.parked(name)).map(placeOf)).toEqual(events.map(placeOf))
      expect(yield* subscriptions.retryParked(name, one, () => Effect.void)).toBe(true)
    }).pipe(Effect.scoped)),

  test(
    "retryParked: events that its effect commits are stored if it succeeds, and undone if it fails",
    () =>
      Effect.gen(function* () {
        const { events, feed, name, store, subscriptions } = yield* scene
        const one = at(events, 0)
        const inside = yield* stream(newId(), 1, 1)
        const { aggregateId } = at(inside, 0)
        const failing = Effect.zipRight(store.commitEvents(inside), Effect.fail("no"))
        expect(yield* Effect.flip(subscriptions.retryParked(name, one, () => failing))).toBe("no")
        expect(yield* store.getEvents(aggregateId, 1)).toEqual([])
        const after = yield* feed.head
        expect(yield* subscriptions.retryParked(name, one, () => store.commitEvents(inside))).toBe(true)
        expect(yield* shown(feed, { after }, [aggregateId], 1)).toHaveLength(1)
      }).pipe(Effect.scoped),
    "transactionalEffects"
  ),

  test("discardParked: removes the event, and no other", () =>
    Effect.gen(function* () {
      const { events, feed, name, subscriptions } = yield* scene
      const [first, second] = [at(events, 0), at(events, 1)]
      expect(yield* subscriptions.discardParked(name, first)).toBe(true)
      expect((yield* subscriptions.parked(name)).map(placeOf)).toEqual([placeOf(second)])
      expect(yield* subscriptions.discardParked(name, first)).toBe(false)
      expect(yield* subscriptions.retryParked(name, first, () => Effect.die("it runs"))).toBe(false)
      expect(yield* subscriptions.partitions(name)).toMatchObject([{ parked: 1 }])
      // The feed keeps it.
      expect(yield* feed.positionOf(first)).toEqual(Option.some(first.position))
    }).pipe(Effect.scoped))
]

// --- internal ---

/** A subscription with two events parked. */
const scene = Effect.gen(function* () {
  const all = yield* ports
  const name = newId()
  const events = yield* commitShown(all, 2)
  const { lease } = yield* take(all.subscriptions, leaseOf(name))
  yield* lease.advance(
    at(events, 1).position,
    Effect.forEach(events, (one) => lease.park(failureAt(one)), { discard: true })
  )
  return { ...all, name, events, lease }
})
