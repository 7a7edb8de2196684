/**
 * The contract of the filters of a feed, a case to a sentence.
 */
import { expect } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import type { Event } from "../../Event.js"
import { type Filter, order, type Position } from "../../EventFeed.js"
import { event, newId, stream, test } from "./case.js"
import { eventsOf, expectRising, type FeedCase, placeOf, ports, readOn, shown } from "./feedCase.js"

export const feedFilterCases: ReadonlyArray<FeedCase> = [
  test("filter: an event is shown if its type is listed, and its aggregate's name; a list that is empty lists none", () =>
    Effect.gen(function* () {
      const { expected, of } = yield* scene
      expect(yield* of({})).toEqual(expected(() => true))
      expect(yield* of({ types: undefined, aggregates: undefined, slice: undefined })).toEqual(expected(() => true))
      expect(yield* of({ types: ["Even"] })).toEqual(expected(({ type }) => type === "Even"))
      expect(yield* of({ types: ["Even", "Nothing", "Odd"] })).toEqual(expected(() => true))
      expect(yield* of({ types: ["even"] })).toEqual([])
      expect(yield* of({ types: [] })).toEqual([])
      expect(yield* of({ aggregates: ["Third"] })).toEqual(expected(({ metadata }) => metadata.aggregate === "Third"))
      expect(yield* of({ aggregates: ["Nothing"] })).toEqual([])
      expect(yield* of({ aggregates: [] })).toEqual([])
    })),

  test("filter: an event whose metadata does not name its aggregate is of none of the listed aggregates", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const id = newId()
      const names: ReadonlyArray<Record<string, unknown>> = [{}, { aggregate: null }, { aggregate: "Named" }]
      yield* store.commitEvents(yield* Effect.forEach(names, (metadata, index) => event(id, index + 1, { metadata })))
      yield* shown(feed, { after }, [id], 3)
      const of = (aggregates: ReadonlyArray<string>) =>
        Effect.map(readOn(feed, { after, filter: { aggregates } }), (events) => eventsOf(events, [id]).map(placeOf))
      expect(yield* of(["Named"])).toEqual([`${id} 3`])
      expect(yield* of(["undefined", "null", ""])).toEqual([])
    })),

  test("filter: the slices partition the feed, and an aggregate is always in the same one", () =>
    Effect.gen(function* () {
      const { after, expected, feed, ids, of, store } = yield* scene
      const all = expected(() => true)
      for (const count of [1, 2, 3, 7]) {
        const slices = yield* Effect.forEach(Arr.range(0, count - 1), (index) => of({ slice: { index, of: count } }))
        expect(slices.flat().toSorted()).toEqual(all.toSorted())
        for (const slice of slices) {
          // In the order of the feed, and with both events of each aggregate.
          expect(slice).toEqual(all.filter((place) => slice.includes(place)))
          expect(slice.filter((place) => place.endsWith(" 1"))).toHaveLength(slice.length / 2)
        }
        // Of 24 aggregates no slice of two has all but in one of eight million cases.
        if (count > 1) expect(slices.every((slice) => slice.length < all.length)).toBe(true)
      }
      // An aggregate stays where it is when it has more events.
      const filter = { slice: { index: 1, of: 3 } }
      const before = eventsOf(yield* readOn(feed, { after, filter }), ids)
      for (const id of ids) yield* store.commitEvents(yield* stream(id, 3, 1))
      yield* shown(feed, { after }, ids, ids.length * 3)
      const later = eventsOf(yield* readOn(feed, { after, filter }), ids)
      expect(new Set(later.map(({ aggregateId }) => aggregateId))).toEqual(
        new Set(before.map(({ aggregateId }) => aggregateId))
      )
      expect(later).toHaveLength((before.length / 2) * 3)
    })),

  test("filter: an event must match all its parts", () =>
    Effect.gen(function* () {
      const { expected, of } = yield* scene
      const even = yield* of({ types: ["Even"] })
      const third = yield* of({ aggregates: ["Third"] })
      const slice = yield* of({ slice: { index: 1, of: 2 } })
      const all = expected(() => true)
      const both = (...lists: ReadonlyArray<ReadonlyArray<string>>) =>
        all.filter((place) => lists.every((list) => list.includes(place)))
      expect(yield* of({ types: ["Even"], aggregates: ["Third"] })).toEqual(both(even, third))
      expect(yield* of({ types: ["Even"], slice: { index: 1, of: 2 } })).toEqual(both(even, slice))
      expect(yield* of({ aggregates: ["Third"], slice: { index: 1, of: 2 } })).toEqual(both(third, slice))
      expect(yield* of({ types: ["Even"], aggregates: ["Third"], slice: { index: 1, of: 2 } })).toEqual(
        both(even, third, slice)
      )
    })),

  test("filter: pages of any limit show the same, and a page that shows nothing moves on all the same", () =>
    Effect.gen(function* () {
      const { after, expected, feed, ids, of } = yield* scene
      const even = expected(({ type }) => type === "Even")
      for (const limit of [1, 2, even.length - 1, even.length, even.length + 1]) {
        const events = yield* readOn(feed, { after, limit, filter: { types: ["Even"] } })
        expect(eventsOf(events, ids).map(placeOf)).toEqual(even)
        expectRising(events)
      }
      expect(yield* of({ types: ["Even"] })).toEqual(even)
      const head = yield* feed.head
      let position: Position = after
      for (let more = true; more; ) {
        const page = yield* feed.read({ after: position, filter: { types: [newId()] } })
        expect(page.events).toEqual([])
        ;({ more, position } = page)
      }
      expect(order(position, head)).not.toBe(-1)
    })),

  test("filter: an event behind ten thousand hidden ones is found", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const [many, one, type] = [newId(), newId(), newId()]
      yield* store.commitEvents(yield* stream(many, 1, 10_100))
      yield* store.commitEvents([yield* event(one, 1, { type })])
      const filter = { types: [type] }
      expect((yield* shown(feed, { after, filter }, [one], 1)).map(placeOf)).toEqual([`${one} 1`])
      expect((yield* readOn(feed, { after, filter, limit: 1 })).map(placeOf)).toEqual([`${one} 1`])
      expect(yield* feed.count({ after, filter })).toBe(1)
    }))
]

// --- internal ---

/** Two events each of 24 aggregates, of two types and of two names. */
const scene = Effect.gen(function* () {
  const { feed, store } = yield* ports
  const after = yield* feed.head
  const ids = Arr.makeBy(24, newId)
  const events = yield* Effect.forEach([1, 2], (sequence) =>
    Effect.forEach(ids, (id, index) =>
      event(id, sequence, {
        type: (index + sequence) % 2 === 0 ? "Even" : "Odd",
        metadata: { aggregate: index % 3 === 0 ? "Third" : "Other" }
      })
    )
  )
  for (const some of events) yield* store.commitEvents(some)
  yield* shown(feed, { after }, ids, ids.length * 2)
  return {
    after,
    feed,
    ids,
    store,
    /** The events that a filter lets through, read in small pages. */
    of: (filter: Filter) =>
      Effect.map(readOn(feed, { after, filter, limit: 7 }), (found) => eventsOf(found, ids).map(placeOf)),
    /** The events that it should let through. */
    expected: (keep: (one: Event) => boolean) => events.flat().filter(keep).map(placeOf)
  }
})
