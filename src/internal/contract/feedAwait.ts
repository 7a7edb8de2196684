/**
 * The contract of waiting for events: `awaitAppend` and the streams that use it, one case for each sentence.
 */
import { expect } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { beginning, order, type Position, stream as streamOf, streamStored } from "../../EventFeed.js"
import { event, macrotask, newId, stream, test } from "./case.js"
import { eventsOf, type FeedCase, macrotasks, placeOf, ports, readOn, shown } from "./feedCase.js"

export const feedAwaitCases: ReadonlyArray<FeedCase> = [
  test("awaitAppend: returns after a commit, with a position after which read shows its events", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const id = newId()
      const waiting = yield* Effect.fork(feed.awaitAppend(after))
      yield* macrotasks(3)
      yield* store.commitEvents(yield* stream(id, 1, 2))
      let position: Position = yield* Fiber.join(waiting)
      // It may also return without new events.
      for (;;) {
        expect(order(position, after)).not.toBe(-1)
        const events = eventsOf(yield* readOn(feed, { after: position }), [id])
        if (events.length > 0) return expect(events.map(placeOf)).toEqual([`${id} 1`, `${id} 2`])
        position = yield* feed.awaitAppend(position)
      }
    })),

  test("awaitAppend: returns immediately for a position with events behind it", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const id = `Test/${newId()}`
      yield* store.commitEvents([yield* event(id, 1, { type: id })])
      yield* shown(feed, { after }, [id], 1)
      for (const filter of [undefined, {}, { types: [id] }, { kinds: ["Test"] }]) {
        expect(order(yield* feed.awaitAppend(beginning, filter), beginning)).not.toBe(-1)
        const position = yield* feed.awaitAppend(after, filter)
        expect(order(position, after)).not.toBe(-1)
        expect(eventsOf(yield* readOn(feed, { after: position, filter }), [id])).toHaveLength(1)
      }
    })),

  test("awaitAppend: with a filter its position skips hidden events only", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const [id, type] = [newId(), newId()]
      const ofKind = `${type}/a`
      const following = yield* Effect.fork(shown(feed, { after, filter: { types: [type] } }, [id], 2))
      const named = yield* Effect.fork(shown(feed, { after, filter: { kinds: [type] } }, [ofKind], 1))
      yield* macrotasks(3)
      yield* store.commitEvents(yield* stream(id, 1, 3))
      yield* macrotasks(3)
      yield* store.commitEvents([yield* event(id, 4, { type })])
      yield* store.commitEvents(yield* stream(id, 5, 2))
      yield* store.commitEvents([yield* event(id, 7, { type }), yield* event(ofKind, 1)])
      expect((yield* Fiber.join(following)).map(placeOf)).toEqual([`${id} 4`, `${id} 7`])
      expect((yield* Fiber.join(named)).map(placeOf)).toEqual([`${ofKind} 1`])
    })),

  test("awaitAppend: wakes every waiter, also when other waiters were interrupted", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const [id, type] = [newId(), newId()]
      const waiting = yield* Effect.forEach(Arr.range(0, 29), (index) =>
        Effect.fork(shown(feed, { after, ...(index % 2 === 0 ? {} : { filter: { types: [type] } }) }, [id], 1))
      )
      yield* macrotasks(3)
      const gone = waiting.filter((_, index) => index % 3 === 0)
      yield* Fiber.interruptAll(gone)
      yield* store.commitEvents([yield* event(id, 1, { type })])
      for (const [index, fiber] of waiting.entries()) {
        if (index % 3 !== 0) expect((yield* Fiber.join(fiber)).map(placeOf)).toEqual([`${id} 1`])
      }
      // Each of them may wait again.
      const further = yield* Effect.forEach(Arr.range(1, 5), () => Effect.fork(shown(feed, { after }, [id], 2)))
      yield* macrotasks(3)
      yield* store.commitEvents(yield* stream(id, 2, 1))
      for (const fiber of further) expect(yield* Fiber.join(fiber)).toHaveLength(2)
    })),

  test("awaitAppend: returns after a commit with projections, and after the commits of projections", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const [id, side] = [newId(), newId()]
      const waiting = yield* Effect.fork(shown(feed, { after }, [id, side], 3))
      yield* macrotasks(3)
      const projecting = {
        name: "projecting",
        project: ({ sequence }: { readonly sequence: number }) =>
          sequence === 1 ? Effect.flatMap(stream(side, 1, 1), (events) => store.commitEvents(events)) : Effect.void
      }
      yield* store.commitAll(yield* stream(id, 1, 2), [projecting])
      expect((yield* Fiber.join(waiting)).map(placeOf)).toEqual([`${id} 1`, `${id} 2`, `${side} 1`])
    })),

  test("every operation of the feed: after an interruption at any step the next operation works", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const id = newId()
      yield* store.commitEvents(yield* stream(id, 1, 2))
      yield* shown(feed, { after }, [id], 2)
      const head = yield* feed.head
      for (let steps = 0; steps < 16; steps++) {
        const fibers = [
          yield* Effect.fork(feed.read({ after })),
          yield* Effect.fork(feed.head),
          yield* Effect.fork(feed.count({ after, filter: { types: [id] } })),
          yield* Effect.fork(feed.positionOf({ aggregateId: id, sequence: 1 })),
          yield* Effect.fork(feed.awaitAppend(after)),
          yield* Effect.fork(feed.awaitAppend(head))
        ]
        for (let step = 0; step < steps; step++) yield* step < 8 ? Effect.yieldNow() : macrotask
        yield* Fiber.interruptAll(fibers)
        expect(yield* feed.head).toBe(head)
        expect(yield* shown(feed, { after }, [id], 2)).toHaveLength(2)
      }
    })),

  test("stream: shows stored events and then new ones, each once, in the order of the feed", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const id = newId()
      yield* store.commitEvents(yield* stream(id, 1, 3))
      const three = yield* Deferred.make<void>()
      const streaming = (limit: number) =>
        streamOf({ after, limit }).pipe(
          Stream.filter(({ aggregateId }) => aggregateId === id),
          Stream.tap(({ sequence }) => (sequence === 3 ? Deferred.succeed(three, undefined) : Effect.void)),
          Stream.take(20),
          Stream.runCollect,
          Effect.fork
        )
      const readers = [yield* streaming(1), yield* streaming(4), yield* streaming(1000)]
      yield* Deferred.await(three)
      // Commits while they read, so that stored and new events meet among these.
      for (const sequence of Arr.range(4, 20)) yield* store.commitEvents(yield* stream(id, sequence, 1))
      const all = yield* shown(feed, { after }, [id], 20)
      for (const reader of readers) expect([...(yield* Fiber.join(reader))]).toEqual(all)
    })),

  test("streamStored: shows stored events, and ends", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const id = newId()
      yield* store.commitEvents(yield* stream(id, 1, 25))
      const all = yield* shown(feed, { after }, [id], 25)
      for (const limit of [1, 10, 25]) {
        const found = yield* Stream.runCollect(streamStored({ after, limit }))
        expect(eventsOf([...found], [id])).toEqual(all)
      }
      expect([...(yield* Stream.runCollect(streamStored({ after: yield* feed.head })))]).toEqual([])
    }))
]
