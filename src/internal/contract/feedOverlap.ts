/**
 * The contract of the feed while transactions overlap, one case for each sentence.
 */
import { expect } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import { type HeldBack, order } from "../../EventFeed.js"
import { toMillis } from "../../Timestamp.js"
import { event, failureOf, newId, projecting, stream, test } from "./case.js"
import {
  again,
  at,
  commitNext,
  endedWithin,
  eventsOf,
  expectInSequence,
  expectRising,
  type FeedCase,
  opened,
  placeOf,
  ports,
  readOn,
  shown,
  transactions
} from "./feedCase.js"

export const feedOverlapCases: ReadonlyArray<FeedCase> = [
  ...transactions.flatMap(({ name, needs, run }) => [
    test(
      `order under overlapping transactions (${name}): each stream keeps its sequence when a transaction continues with an aggregate of a later one`,
      () =>
        Effect.gen(function* () {
          const { feed, store } = yield* ports
          const after = yield* feed.head
          const [a, b, c] = [newId(), newId(), newId()]
          const began = yield* Deferred.make<void>()
          const other = yield* Effect.fork(Effect.zipRight(Deferred.await(began), commitNext(store, b)))
          const goingOn = Deferred.succeed(began, undefined).pipe(
            Effect.zipRight(endedWithin(other)),
            Effect.zipRight(commitNext(store, b)),
            Effect.zipRight(commitNext(store, c))
          )
          yield* again(run(store, yield* stream(a, 1, 1), goingOn))
          const [theirs] = yield* Fiber.join(other)
          const all = yield* shown(feed, { after }, [a, b, c], 4)
          expectRising(all)
          expectInSequence(all)
          const own = all.filter(({ timestamp }) => timestamp !== theirs?.timestamp)
          expect(own.map(({ aggregateId }) => aggregateId)).toEqual([a, b, c])
        }),
      needs
    ),

    test(
      `order under overlapping transactions (${name}): each stream keeps its sequence when three transactions nest`,
      () =>
        Effect.gen(function* () {
          const { feed, store } = yield* ports
          const after = yield* feed.head
          const [a, b, c] = [newId(), newId(), newId()]
          const [first, second] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
          const last = yield* Effect.fork(Effect.zipRight(Deferred.await(second), commitNext(store, c)))
          const goOn = (signal: Deferred.Deferred<void>, other: Fiber.Fiber<unknown, unknown>, id: string) =>
            Deferred.succeed(signal, undefined).pipe(
              Effect.zipRight(endedWithin(other)),
              Effect.zipRight(commitNext(store, id))
            )
          const middle = yield* Effect.fork(
            Effect.zipRight(Deferred.await(first), again(run(store, yield* stream(b, 1, 1), goOn(second, last, c))))
          )
          yield* again(run(store, yield* stream(a, 1, 1), goOn(first, middle, c)))
          yield* Fiber.join(middle)
          yield* Fiber.join(last)
          const all = yield* shown(feed, { after }, [a, b, c], 5)
          expectRising(all)
          expectInSequence(all)
        }),
      needs
    ),

    test(
      `read (${name}): events of a transaction that began first and commits last are not skipped`,
      () =>
        Effect.gen(function* () {
          const { feed, store } = yield* ports
          const after = yield* feed.head
          const [slow, fast] = [newId(), newId()]
          const began = yield* Deferred.make<void>()
          const other = yield* Effect.fork(Effect.zipRight(Deferred.await(began), commitNext(store, fast)))
          const look = yield* Effect.fork(Effect.zipRight(Effect.exit(Fiber.join(other)), feed.read({ after })))
          yield* run(
            store,
            yield* stream(slow, 1, 1),
            Effect.zipRight(Deferred.succeed(began, undefined), endedWithin(look))
          )
          yield* Fiber.join(other)
          const early = yield* Fiber.join(look)
          const seen = eventsOf(early.events, [slow, fast])
          const late = yield* shown(feed, { after: early.position }, [slow, fast], 2 - seen.length)
          expect([...seen, ...late].map(placeOf).toSorted()).toEqual([`${fast} 1`, `${slow} 1`].toSorted())
          expect([...seen, ...late]).toEqual(eventsOf(yield* readOn(feed, { after }), [slow, fast]))
        }),
      needs
    ),

    test(
      `heldBack (${name}): counts the committed events that an older transaction holds back, since the first of them`,
      () =>
        Effect.gen(function* () {
          const { feed, store } = yield* ports
          const [slow, fast, type] = [newId(), newId(), newId()]
          const filter = { types: [type] }
          const began = yield* Deferred.make<void>()
          const committed = Effect.flatMap(
            Effect.forEach([1, 2], (sequence) => event(fast, sequence, { type })),
            (events) => Effect.as(store.commitEvents(events), events)
          )
          const other = yield* Effect.fork(Effect.zipRight(Deferred.await(began), committed))
          const look: Effect.Effect<Option.Option<HeldBack>, unknown> = Effect.gen(function* () {
            const before = (yield* readOn(feed, { filter })).length
            const held = yield* feed.heldBack(filter)
            const after = (yield* readOn(feed, { filter })).length
            // Other transactions may have ended meanwhile.
            if (before !== after) return yield* look
            expect(before + Option.match(held, { onNone: () => 0, onSome: ({ events }) => events })).toBe(2)
            return held
          })
          const looking = yield* Effect.fork(Effect.zipRight(Fiber.await(other), look))
          yield* run(
            store,
            yield* stream(slow, 1, 1),
            Effect.zipRight(Deferred.succeed(began, undefined), endedWithin(looking))
          )
          const [first] = yield* Fiber.join(other)
          const held = yield* Fiber.join(looking)
          if (Option.isSome(held)) expect(held.value.since).toBe(first === undefined ? 0 : toMillis(first.timestamp))
          yield* shown(feed, { filter }, [fast], 2)
          expect(yield* feed.heldBack(filter)).toEqual(Option.none())
        }),
      needs
    ),

    test(
      `read (${name}): inside a transaction it shows committed events of other transactions, and no uncommitted ones`,
      () =>
        Effect.gen(function* () {
          const { feed, store } = yield* ports
          const after = yield* feed.head
          const [before, own] = [newId(), newId()]
          yield* commitNext(store, before)
          const [others] = yield* shown(feed, { after }, [before], 1)
          let inside: ReadonlyArray<unknown> = []
          yield* run(
            store,
            yield* stream(own, 1, 2),
            Effect.map(readOn(feed, { after }), (events) => {
              inside = eventsOf(events, [before, own])
            })
          )
          expect(inside).toEqual([others])
          expect(yield* shown(feed, { after }, [before, own], 3)).toHaveLength(3)
        }),
      needs
    )
  ]),

  test(
    "read: shows no event of an open commit, and all of them once it has committed",
    () =>
      Effect.gen(function* () {
        const { feed, store } = yield* ports
        const after = yield* feed.head
        const [id, side, type] = [newId(), newId(), newId()]
        const inner = store.commitEvents([yield* event(side, 1, { type })])
        const open = yield* opened(store, [yield* event(id, 1, { type }), yield* event(id, 2, { type })], inner)
        expect(eventsOf(yield* readOn(feed, { after }), [id, side])).toEqual([])
        expect(yield* feed.count({ after, filter: { types: [type] } })).toBe(0)
        const head = yield* feed.head
        expect(yield* feed.positionOf({ aggregateId: id, sequence: 1 })).toEqual(Option.none())
        yield* open.commit
        const all = yield* shown(feed, { after }, [id, side], 3)
        expect(all).toHaveLength(3)
        expect(order(at(all, 0).position, head)).toBe(1)
      }),
    "concurrentReads"
  ),

  ...(["fails", "dies", "is interrupted"] as const).map((ending) =>
    test(`read: a commit that ${ending} never appears, and leaves no hole to wait at`, () =>
      Effect.gen(function* () {
        const { feed, store } = yield* ports
        const after = yield* feed.head
        const [undone, side, fast, next] = [newId(), newId(), newId(), newId()]
        const inner = store.commitEvents(yield* stream(side, 1, 1))
        const open = yield* opened(store, yield* stream(undone, 1, 2), inner)
        // The reads may wait for the end of the commit. Neither before nor after it they show its events.
        const isThere = (aggregateId: string) =>
          Effect.map(feed.positionOf({ aggregateId, sequence: 1 }), Option.isSome)
        const reading = Effect.map(readOn(feed, { after }), (events) => eventsOf(events, [undone, side]).length > 0)
        const looks = yield* Effect.forEach([reading, isThere(undone), isThere(side)], (look) => Effect.fork(look))
        yield* Effect.forEach(looks, (look) => endedWithin(look))
        const other = yield* Effect.fork(commitNext(store, fast))
        yield* endedWithin(other)
        const exit = yield* ending === "fails"
          ? open.fail("undone")
          : ending === "dies"
            ? open.die("undone")
            : Fiber.interrupt(open.fiber)
        expect(Exit.isFailure(exit)).toBe(true)
        yield* Fiber.join(other)
        yield* commitNext(store, next)
        for (const look of looks) {
          const found = yield* Fiber.await(look)
          // A store whose reads fail meanwhile has shown nothing.
          if (Exit.isSuccess(found)) expect(found.value).toBe(false)
        }
        const all = yield* shown(feed, { after }, [undone, side, fast, next], 2)
        expect(all.map(placeOf).toSorted()).toEqual([`${fast} 1`, `${next} 1`].toSorted())
        expect(yield* feed.positionOf({ aggregateId: undone, sequence: 1 })).toEqual(Option.none())
      }))
  ),

  test("read: shows no event of a nested commit that fails, although its projection continues", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const [outer, undone, kept] = [newId(), newId(), newId()]
      const failing = store.commitAll(yield* stream(undone, 1, 2), [projecting(Effect.fail("no"))])
      const keeping = store.commitEvents(yield* stream(kept, 1, 1))
      const goingOn = Effect.zipRight(Effect.ignore(failing), keeping)
      const exit = yield* Effect.exit(store.commitAll(yield* stream(outer, 1, 1), [projecting(goingOn)]))
      expect(failureOf(exit)).toBeUndefined()
      const all = yield* shown(feed, { after }, [outer, undone, kept], 2)
      expect(all.map(placeOf)).toEqual([`${outer} 1`, `${kept} 1`])
    })),

  test("positionOf: finds an event from its commit on, whether the feed shows it already or not", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const [slow, fast] = [newId(), newId()]
      const open = yield* opened(store, yield* stream(slow, 1, 1))
      const other = yield* Effect.fork(
        Effect.zipRight(commitNext(store, fast), feed.positionOf({ aggregateId: fast, sequence: 1 }))
      )
      yield* endedWithin(other)
      yield* open.commit
      const position = yield* Fiber.join(other)
      const all = yield* shown(feed, { after }, [slow, fast], 2)
      expect(position).toEqual(Option.fromNullable(all.find(({ aggregateId }) => aggregateId === fast)?.position))
    }))
]
