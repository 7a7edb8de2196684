/**
 * The contract of the filters of a feed, one case for each sentence.
 */
import { expect } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { type Event, identityOf } from "../../Event.js"
import { type Filter, order, type Position } from "../../EventFeed.js"
import { awkwardIds } from "./awkward.js"
import { event, newId, stream, test } from "./case.js"
import { at, eventsOf, expectRising, type FeedCase, follow, placeOf, ports, readOn, shown } from "./feedCase.js"

export const feedFilterCases: ReadonlyArray<FeedCase> = [
  test("filter: an event is shown if its type is listed, and the kind of its aggregate; a list that is empty lists none", () =>
    Effect.gen(function* () {
      const { expected, of } = yield* scene
      expect(yield* of({})).toEqual(expected(() => true))
      expect(yield* of({ types: undefined, kinds: undefined, slice: undefined })).toEqual(expected(() => true))
      expect(yield* of({ types: ["Even"] })).toEqual(expected(({ type }) => type === "Even"))
      expect(yield* of({ types: ["Even", "Nothing", "Odd"] })).toEqual(expected(() => true))
      expect(yield* of({ types: ["even"] })).toEqual([])
      expect(yield* of({ types: [] })).toEqual([])
      expect(yield* of({ kinds: ["Third"] })).toEqual(expected(({ aggregateId }) => aggregateId.startsWith("Third/")))
      expect(yield* of({ kinds: ["Third", "Nothing", "Other", "Third"] })).toEqual(expected(() => true))
      expect(yield* of({ kinds: ["Thir"] })).toEqual([])
      expect(yield* of({ kinds: ["Nothing"] })).toEqual([])
      expect(yield* of({ kinds: [] })).toEqual([])
    })),

  test("filter: the kind is the text before the first slash of an aggregateId, or empty without such a text", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const [kind, type] = [newId(), newId()]
      const ids = [`${kind}/a`, `${kind}/a/b`, kind, `/${kind}`, `${kind}s/a`, `a${kind}/a`, `a/${kind}/b`]
      for (const id of ids) yield* store.commitEvents([yield* event(id, 1, { type })])
      const events = yield* shown(feed, { after }, ids, ids.length)
      expect(events.map(({ aggregateId, id, kind }) => [aggregateId, kind, id])).toEqual([
        [`${kind}/a`, kind, "a"],
        [`${kind}/a/b`, kind, "a/b"],
        [kind, "", kind],
        [`/${kind}`, "", `/${kind}`],
        [`${kind}s/a`, `${kind}s`, "a"],
        [`a${kind}/a`, `a${kind}`, "a"],
        [`a/${kind}/b`, "a", `${kind}/b`]
      ])
      const of = (...aggregates: ReadonlyArray<string>) =>
        Effect.gen(function* () {
          const filter = { kinds: aggregates, types: [type] }
          expect(yield* feed.count({ after, filter })).toBe((yield* readOn(feed, { after, filter })).length)
          return (yield* readOn(feed, { after, filter, limit: 2 })).map(({ aggregateId }) => aggregateId)
        })
      expect(yield* of(kind)).toEqual([`${kind}/a`, `${kind}/a/b`])
      expect(yield* of("")).toEqual([kind, `/${kind}`])
      expect(yield* of("a", kind, "")).toEqual([`${kind}/a`, `${kind}/a/b`, kind, `/${kind}`, `a/${kind}/b`])
      expect(yield* of("undefined", "null")).toEqual([])
    })),

  test("filter: kinds that differ only in case or Unicode form are different kinds", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const type = newId()
      const kinds = awkwardIds.filter((text) => text.length < 100 && !text.includes("/"))
      const events = yield* Effect.forEach(kinds, (kind) => event(`${kind}/${newId()}`, 1, { type }))
      yield* store.commitEvents(events)
      yield* shown(
        feed,
        { after },
        events.map(({ aggregateId }) => aggregateId),
        events.length
      )
      for (const { aggregateId } of events) {
        const filter = { kinds: [identityOf(aggregateId).kind], types: [type] }
        expect((yield* readOn(feed, { after, filter })).map((one) => one.aggregateId)).toEqual([aggregateId])
      }
    })),

  test("filter: the slices partition the feed, and an aggregate is always in the same one", () =>
    Effect.gen(function* () {
      const { after, expected, feed, ids, of, store } = yield* scene
      const all = expected(() => true)
      for (const count of [1, 2, 3, 7]) {
        const slices = yield* Effect.forEach(Arr.range(0, count - 1), (index) => of({ slice: { index, of: count } }))
        expect(slices.flat().toSorted()).toEqual(all.toSorted())
        for (const slice of slices) {
          // In the order of the feed, with both events of each aggregate.
          expect(slice).toEqual(all.filter((place) => slice.includes(place)))
          expect(slice.filter((place) => place.endsWith(" 1"))).toHaveLength(slice.length / 2)
        }
        // That one of two slices has all 24 aggregates happens once in eight million runs.
        if (count > 1) expect(slices.every((slice) => slice.length < all.length)).toBe(true)
      }
      // Further events of an aggregate are in its slice.
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

  test("filter: a correlation id shows the events of its chain, on all aggregates, and no others", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const chain = newId()
      const [one, other] = [`One/${newId()}`, `Other/${newId()}`]
      // Ids that differ only in case or Unicode form, or that read like a pattern, are different ids.
      const ids = awkwardIds.filter((text) => text.length < 100).map((text) => `${text}${chain}`)
      const events = yield* Effect.forEach(ids, (correlationId, index) =>
        Effect.all([
          event(one, index * 2 + 1, { correlationId, type: index % 2 === 0 ? "Even" : "Odd" }),
          event(other, index + 1, { correlationId }),
          event(one, index * 2 + 2)
        ])
      )
      yield* store.commitEvents(events.flat())
      yield* shown(feed, { after }, [one, other], ids.length * 3)
      for (const [index, correlationId] of ids.entries()) {
        const { events } = yield* feed.read({ after, filter: { correlationId } })
        expect(events.map(placeOf)).toEqual([`${one} ${index * 2 + 1}`, `${other} ${index + 1}`])
      }
      const of = (filter: Filter) =>
        Effect.gen(function* () {
          expect(yield* feed.count({ after, filter })).toBe((yield* readOn(feed, { after, filter })).length)
          return (yield* readOn(feed, { after, filter, limit: 1 })).map(placeOf)
        })
      const [correlationId] = ids
      expect(yield* of({ correlationId })).toEqual([`${one} 1`, `${other} 1`])
      expect(yield* of({ correlationId, kinds: ["Other"] })).toEqual([`${other} 1`])
      expect(yield* of({ correlationId, types: ["Even"] })).toEqual([`${one} 1`])
      expect(yield* of({ correlationId, types: ["Odd"] })).toEqual([])
      const slices = yield* Effect.forEach([0, 1], (index) => of({ correlationId, slice: { index, of: 2 } }))
      expect(slices.flat().toSorted()).toEqual([`${one} 1`, `${other} 1`].toSorted())
      expect(yield* of({ correlationId: newId() })).toEqual([])
      // An event without an id is in no chain.
      expect(yield* of({ correlationId: "undefined", kinds: ["One"] })).toEqual([])
    })),

  test("filter: a correlation id wakes a waiting reader by its chain, and its position goes beyond other events", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const [correlationId, id] = [newId(), newId()]
      const reading = yield* Effect.fork(
        follow(feed, { after, filter: { correlationId } }, (events) => events.length === 2)
      )
      yield* store.commitEvents([yield* event(id, 1), yield* event(id, 2, { correlationId: newId() })])
      yield* store.commitEvents([yield* event(id, 3, { correlationId })])
      yield* store.commitEvents([yield* event(id, 4), yield* event(id, 5, { correlationId })])
      expect((yield* Fiber.join(reading)).map(placeOf)).toEqual([`${id} 3`, `${id} 5`])
      const all = yield* shown(feed, { after }, [id], 5)
      const page = yield* feed.read({ after, filter: { correlationId: newId() } })
      expect(page).toMatchObject({ events: [], more: false })
      expect(order(page.position, at(all, 4).position)).not.toBe(-1)
    })),

  test("filter: an event must match all its parts", () =>
    Effect.gen(function* () {
      const { expected, of } = yield* scene
      const even = yield* of({ types: ["Even"] })
      const third = yield* of({ kinds: ["Third"] })
      const slice = yield* of({ slice: { index: 1, of: 2 } })
      const all = expected(() => true)
      const both = (...lists: ReadonlyArray<ReadonlyArray<string>>) =>
        all.filter((place) => lists.every((list) => list.includes(place)))
      expect(yield* of({ types: ["Even"], kinds: ["Third"] })).toEqual(both(even, third))
      expect(yield* of({ types: ["Even"], slice: { index: 1, of: 2 } })).toEqual(both(even, slice))
      expect(yield* of({ kinds: ["Third"], slice: { index: 1, of: 2 } })).toEqual(both(third, slice))
      expect(yield* of({ types: ["Even"], kinds: ["Third"], slice: { index: 1, of: 2 } })).toEqual(
        both(even, third, slice)
      )
    })),

  test("filter: pages of any limit show the same events, and a page without events advances too", () =>
    Effect.gen(function* () {
      const { after, expected, feed, ids, of } = yield* scene
      const even = expected(({ type }) => type === "Even")
      for (const limit of [1, 2, even.length - 1, even.length, even.length + 1]) {
        for (const aggregates of [undefined, ["Other", "Third"]]) {
          const events = yield* readOn(feed, { after, limit, filter: { types: ["Even"], kinds: aggregates } })
          expect(eventsOf(events, ids).map(placeOf)).toEqual(even)
          expectRising(events)
        }
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
      for (const filter of [{ kinds: [newId()] }, { kinds: [] }]) {
        const page = yield* feed.read({ after, filter })
        expect(page).toMatchObject({ events: [], more: false })
        expect(order(page.position, head)).not.toBe(-1)
      }
    })),

  test("filter: an event behind ten thousand hidden ones is found", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const [common, rare, type] = [newId(), newId(), newId()]
      const [many, one] = [`${common}/${newId()}`, `${rare}/${newId()}`]
      const chain = newId()
      const hidden = yield* stream(many, 1, 10_100)
      yield* store.commitEvents(hidden.map((event) => ({ ...event, correlationId: newId() })))
      yield* store.commitEvents([yield* event(one, 1, { type, correlationId: chain })])
      yield* shown(feed, { after, filter: { types: [type] } }, [one], 1)
      const filters: ReadonlyArray<Filter> = [
        { types: [type] },
        { kinds: [rare] },
        { kinds: [newId(), rare] },
        { kinds: [common, rare], types: [type] },
        { correlationId: chain },
        { correlationId: chain, types: [type] }
      ]
      for (const filter of filters) {
        expect((yield* readOn(feed, { after, filter, limit: 1 })).map(placeOf)).toEqual([`${one} 1`])
        expect(yield* feed.count({ after, filter })).toBe(1)
      }
    }))
]

// --- internal ---

/** Two events each of 24 aggregates, of two types and of two kinds. */
const scene = Effect.gen(function* () {
  const { feed, store } = yield* ports
  const after = yield* feed.head
  const ids = Arr.makeBy(24, (index) => `${index % 3 === 0 ? "Third" : "Other"}/${newId()}`)
  const events = yield* Effect.forEach([1, 2], (sequence) =>
    Effect.forEach(ids, (id, index) => event(id, sequence, { type: (index + sequence) % 2 === 0 ? "Even" : "Odd" }))
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
