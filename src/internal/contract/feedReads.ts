/**
 * The contract of the feed without overlapping transactions: `read`, `head`, `count` and `positionOf`, one case for
 * each sentence.
 */
import { expect } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { type Event, identityOf } from "../../Event.js"
import { beginning, type FeedEvent, isPosition, order, stream as streamOf, streamStored } from "../../EventFeed.js"
import { awkwardIds, awkwardValues } from "./awkward.js"
import { deface, event, expectExactly, mixed, newId, projecting, stream, test } from "./case.js"
import { variedEvents } from "./eventFields.js"
import {
  at,
  commitShown,
  committedOf,
  eventsOf,
  expectInSequence,
  expectRising,
  type FeedCase,
  follow,
  placeOf,
  ports,
  readOn,
  shown
} from "./feedCase.js"

export const feedReadCases: ReadonlyArray<FeedCase> = [
  test("head: is `beginning` while the feed shows no event, and no event is at or before `beginning`", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      if ((yield* feed.count()) === 0) {
        expect(yield* feed.head).toBe(beginning)
        expect(yield* feed.read()).toEqual({ events: [], position: beginning, more: false })
      }
      const events = yield* stream(newId(), 1, 2)
      yield* store.commitEvents(events)
      yield* shown(feed, {}, [at(events, 0).aggregateId], 2)
      const fromBeginning = yield* feed.read({ after: beginning, limit: 2 })
      expect(fromBeginning.events).toHaveLength(2)
      expect(yield* feed.read({ limit: 2 })).toEqual(fromBeginning)
      expect(order(at(fromBeginning.events, 0).position, beginning)).toBe(1)
    })),

  test("head: is the position of the last event that the feed shows", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      let before = yield* feed.head
      for (const length of [1, 3, 1]) {
        const id = newId()
        yield* store.commitEvents(yield* stream(id, 1, length))
        const all = yield* follow(feed, { after: before }, (events) => eventsOf(events, [id]).length === length)
        expect(yield* feed.head).toBe(at(all, -1).position)
        expect(yield* feed.read({ after: yield* feed.head })).toEqual({
          events: [],
          position: yield* feed.head,
          more: false
        })
        before = yield* feed.head
      }
    })),

  test("read: every committed event appears exactly once, and pages of any limit concatenate to the same order", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const [a, b] = [newId(), newId()]
      const first = mixed(yield* stream(b, 1, 5), yield* stream(a, 1, 5))
      const second = yield* stream(a, 6, 3)
      yield* store.commitEvents(first)
      yield* store.commitAll(second, [])
      const all = yield* shown(feed, { after }, [a, b], 13)
      const given = all.map(committedOf)
      const byPlace = (events: ReadonlyArray<(typeof given)[number]>) =>
        events.toSorted((one, other) => placeOf(one).localeCompare(placeOf(other)))
      expect(byPlace(given)).toEqual(byPlace([...first, ...second]))
      for (const limit of [1, 2, 3, 12, 13, 14, 10_000]) {
        expect(eventsOf(yield* readOn(feed, { after, limit }), [a, b])).toEqual(all)
      }
    })),

  test("read: positions rise strictly along the feed, and along each stream with its sequences", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const ids = Arr.makeBy(3, newId)
      for (const first of [1, 4, 7]) {
        for (const id of ids) yield* store.commitEvents(yield* stream(id, first, 3))
      }
      const all = yield* shown(feed, { after }, ids, 27)
      expect(all.map(({ position }) => position).every(isPosition)).toBe(true)
      expectRising(all)
      expectInSequence(all)
    })),

  test("read: events that one commit writes appear in the order that it was given", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const ids = [newId(), newId(), newId()].toSorted().toReversed()
      const [a, b, c] = yield* Effect.forEach(ids, (id) => stream(id, 1, 3))
      const given = [...mixed(a ?? [], b ?? []), ...(c ?? [])]
      yield* store.commitEvents(given)
      expect((yield* shown(feed, { after }, ids, 9)).map(placeOf)).toEqual(given.map(placeOf))
    })),

  test("read: events that one transaction writes appear in the order written: the commit, then its projections' commits", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const [a, b, side, deep] = [newId(), newId(), newId(), newId()]
      const given = mixed(yield* stream(b, 1, 2), yield* stream(a, 1, 2))
      const inner = yield* stream(side, 1, 4)
      const innermost = yield* event(deep, 1)
      const writing = {
        name: "writing",
        project: ({ aggregateId, sequence }: { readonly aggregateId: string; readonly sequence: number }) => {
          const index = given.findIndex((one) => one.aggregateId === aggregateId && one.sequence === sequence)
          const one = [at(inner, index)]
          return index === 1
            ? store.commitAll(one, [projecting(store.commitEvents([innermost]))])
            : store.commitEvents(one)
        }
      }
      yield* store.commitAll(given, [writing])
      const written = [...given, ...inner.slice(0, 2), innermost, ...inner.slice(2)]
      expect((yield* shown(feed, { after }, [a, b, side, deep], 9)).map(placeOf)).toEqual(written.map(placeOf))
    })),

  test("read: a page of large events ends before 8 MB and has at least one event, and `more` is true if events follow", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const [id, type] = [newId(), newId()]
      // One event that is larger than a page, between events of which a few fill a page.
      const sizes = [10, 3_000_000, 10, 8_500_000, 10, 2_500_000, 2_500_000, 10]
      for (const [index, size] of sizes.entries()) {
        const large = { text: "x".repeat(size) }
        const [body, metadata] = index === 5 ? [{}, large] : [large, {}]
        yield* store.commitEvents([yield* event(id, index + 1, { type, body, metadata })])
      }
      yield* shown(feed, { after }, [id], sizes.length)
      for (const filter of [undefined, { types: [type] }]) {
        const all: Array<FeedEvent> = []
        for (let page = yield* feed.read({ after, filter }); ; ) {
          expect(page.events.length > 1 ? sizeOf(page.events) : 0).toBeLessThan(8_000_000)
          all.push(...page.events)
          if (!page.more) break
          expect(page.events).not.toEqual([])
          page = yield* feed.read({ after: page.position, filter })
        }
        const own = eventsOf(all, [id])
        expect(own.map(({ sequence }) => sequence)).toEqual(sizes.map((_, index) => index + 1))
        expect(own.map((one) => sizeOf([one]))).toEqual(sizes.map((size) => size + `{"text":""}{}`.length))
      }
    })),

  test("read: reading can continue after the position of a page, and of each event", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const id = newId()
      yield* store.commitEvents(yield* stream(id, 1, 8))
      const all = yield* shown(feed, { after }, [id], 8)
      for (const [index, { position }] of all.entries()) {
        expect(eventsOf(yield* readOn(feed, { after: position, limit: 3 }), [id])).toEqual(all.slice(index + 1))
      }
      const page = yield* feed.read({ after, limit: 3 })
      expect(page.more).toBe(true)
      const rest = yield* readOn(feed, { after: page.position })
      expect(eventsOf([...page.events, ...rest], [id])).toEqual(all)
    })),

  test("read: an event is read exactly as it was committed, with any id, type and metadata", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const ids = awkwardIds.map(unique)
      const events = yield* Effect.forEach(ids, (id, index) =>
        event(id, 1, {
          type: at(awkwardIds, (index + 1) % ids.length),
          body: { [at(awkwardIds, index)]: id },
          metadata: { [at(awkwardIds, (index + 2) % ids.length)]: id, "": id }
        })
      )
      yield* store.commitEvents(events)
      const all = yield* shown(feed, { after }, ids, ids.length)
      expect(all.map(committedOf)).toEqual(events)
      // Texts that differ only in case or Unicode form are different names.
      for (const [index, { aggregateId, type }] of events.entries()) {
        const filter = { types: [type], aggregates: [identityOf(aggregateId).kind] }
        expect(eventsOf(yield* readOn(feed, { after, filter }), ids)).toEqual([at(all, index)])
        expect(yield* feed.positionOf(at(events, index))).toEqual(Option.some(at(all, index).position))
      }
    })),

  test("read: an event has the version, correlationId, causationId and traceparent that were committed", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const id = newId()
      const events = yield* variedEvents(id, 1)
      yield* store.commitEvents(events)
      expect((yield* shown(feed, { after }, [id], events.length)).map(committedOf)).toEqual(events)
    })),

  test("read: a body is read exactly as it was committed", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const id = newId()
      const events = yield* Effect.forEach(Object.values(awkwardValues), (value, index) =>
        event(id, index + 1, { body: { value }, metadata: { value } })
      )
      yield* store.commitEvents(events)
      const contents = ({ body, metadata }: Event) => [body, metadata]
      expectExactly((yield* shown(feed, { after }, [id], events.length)).map(contents), events.map(contents))
    })),

  test("count: returns the number of events that read shows after the position, with the same filter", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const [id, type] = [newId(), newId()]
      for (const first of [1, 3, 5]) yield* store.commitEvents(yield* stream(id, first, 2))
      yield* store.commitEvents([yield* event(id, 7, { type })])
      const all = yield* shown(feed, { after }, [id], 7)
      expect(yield* feed.count({ after })).toBe((yield* readOn(feed, { after })).length)
      expect(yield* feed.count({ after, filter: { types: [type] } })).toBe(1)
      expect(yield* feed.count({ after: at(all, 2).position, filter: { types: [type, "Happened"] } })).toBe(4)
      expect(yield* feed.count({ after: yield* feed.head })).toBe(0)
      expect(yield* feed.count()).toBeGreaterThanOrEqual(7)
    })),

  test("count: counts beyond a thousand events", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const [all, some] = [newId(), newId()]
      const events = yield* stream(all, 1, 1100)
      yield* store.commitEvents(events.map((one) => (one.sequence % 20 === 0 ? one : { ...one, type: some })))
      const shownEvents = yield* shown(feed, { after }, [all], 1100)
      expect(yield* feed.count({ after })).toBe(1100)
      expect(yield* feed.count({ after, filter: { types: [some] } })).toBe(1045)
      expect(yield* feed.count({ after: at(shownEvents, 9).position })).toBe(1090)
    })),

  test("positionOf: is the position that the feed shows the event at; none where there is no such event", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const [a, b] = [newId(), newId()]
      yield* store.commitEvents(mixed(yield* stream(a, 1, 3), yield* stream(b, 1, 3)))
      for (const one of yield* shown(feed, { after }, [a, b], 6)) {
        expect(yield* feed.positionOf(one)).toEqual(Option.some(one.position))
      }
      for (const [aggregateId, sequence] of [
        [a, 4],
        [a, 2_147_483_647],
        [newId(), 1]
      ] as const) {
        expect(yield* feed.positionOf({ aggregateId, sequence })).toEqual(Option.none())
      }
    })),

  test("positionOf: finds an event at any sequence of a long stream", () =>
    Effect.gen(function* () {
      const all = yield* ports
      const events = yield* commitShown(all, 1100)
      for (const sequence of [1, 50, 51, 100, 101, 1000, 1001, 1100]) {
        const one = at(events, sequence - 1)
        expect(one.sequence).toBe(sequence)
        expect(yield* all.feed.positionOf(one)).toEqual(Option.some(one.position))
      }
    })),

  test("read: a caller may change an event without changing the stored one, or another event that was read", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const events = yield* alike
      const id = at(events, 0).aggregateId
      yield* store.commitEvents(events)
      const committed = structuredClone(yield* shown(feed, { after }, [id], 4))
      for (const filter of [undefined, { kinds: ["Test"] }]) {
        const [mine, others] = [yield* feed.read({ after, filter }), yield* feed.read({ after, filter })]
        deface(mine.events.at(0))
        expect(mine.events.slice(1)).toEqual(committed.slice(1))
        deface(mine.events)
        expect(others.events).toEqual(committed)
        expect((yield* feed.read({ after, filter })).events).toEqual(committed)
        expect(yield* store.getEvents(id, 1)).toEqual(committed.map(committedOf))
      }
    })),

  test("stream, streamStored: a caller may change an event without changing the stored one, or the events after it", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const events = yield* alike
      const id = at(events, 0).aggregateId
      yield* store.commitEvents(events)
      const committed = structuredClone(yield* shown(feed, { after }, [id], 4))
      for (const streamed of [streamOf({ after }), streamStored({ after })]) {
        const received: Array<unknown> = []
        const changing = Stream.runForEach(Stream.take(streamed, 4), (one) =>
          Effect.sync(() => {
            received.push(structuredClone(one))
            deface(one)
          })
        )
        yield* changing
        yield* changing
        expect(received).toEqual([...committed, ...committed])
      }
      expect(yield* store.getEvents(id, 1)).toEqual(committed.map(committedOf))
    }))
]

// --- internal ---

/** The length of the JSON of events. */
const sizeOf = (events: ReadonlyArray<Pick<Event, "body" | "metadata">>): number =>
  events.reduce((sum, { body, metadata }) => sum + JSON.stringify(body).length + JSON.stringify(metadata).length, 0)

/** Four events of one stream: two with the same flat metadata, then two with the same nested metadata. */
const alike = Effect.suspend(() =>
  Effect.map(stream(`Test/${newId()}`, 1, 4), (events) =>
    events.map((one) => (one.sequence > 2 ? { ...one, metadata: { test: "Test", caused: { by: ["a caller"] } } } : one))
  )
)

/** A unique id with awkward characters at both ends. */
const unique = (id: string): string => {
  const characters = Array.from(id)
  return characters.length < 100
    ? `${id}${newId()}${id}`
    : [...characters.slice(0, 100), newId(), ...characters.slice(136)].join("")
}
