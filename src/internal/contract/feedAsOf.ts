/**
 * The contract of reads of the feed as of a time, one case for each sentence.
 */
import { expect } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import type { Event } from "../../Event.js"
import { EventFeed, type ReadOptions, stream as streamOf, streamStored } from "../../EventFeed.js"
import { fromParts, type Timestamp, toMillis } from "../../Timestamp.js"
import { event, newId, test } from "./case.js"
import { eventsOf, type FeedCase, placeOf, ports, readOn, refusedPaths, shown } from "./feedCase.js"

export const feedAsOfCases: ReadonlyArray<FeedCase> = [
  test("read: as of a time it leaves out the events that were made later, which may stand before others", () =>
    Effect.gen(function* () {
      const { all, feed, ids, options } = yield* committed
      for (const time of times) {
        const expected = all.filter(({ timestamp }) => toMillis(timestamp) <= time)
        for (const asOf of [
          new Date(time),
          DateTime.unsafeMake(time),
          DateTime.unsafeMakeZoned(time, { timeZone: 60 })
        ]) {
          for (const limit of [1, 3, 1000]) {
            const found = eventsOf(yield* readOn(feed, { ...options, asOf, limit }), ids)
            expect(found.map(placeOf), `${asOf}, limit ${limit}`).toEqual(expected.map(placeOf))
          }
        }
      }
    })),

  test("read: as of a time it has all events of that millisecond, and none of the next", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const id = newId()
      const timestamps = [
        fromParts({ millis: base, counter: 0, node: randomNode() }),
        fromParts({ millis: base, counter: 0xfff, node: 2n ** 62n - 1n - randomNode() }),
        fromParts({ millis: base + 1, counter: 0, node: randomNode() })
      ]
      yield* store.commitEvents(yield* made(id, timestamps))
      yield* shown(feed, { after }, [id], 3)
      const found = yield* readOn(feed, { after, asOf: new Date(base) })
      expect(eventsOf(found, [id]).map(({ sequence }) => sequence)).toEqual([1, 2])
    })),

  test("read: as of a time an event must match the filter, too", () =>
    Effect.gen(function* () {
      const { all, feed, ids, options } = yield* committed
      const time = base + 5
      for (const type of ["Happened", "Other"]) {
        const found = yield* readOn(feed, { ...options, asOf: new Date(time), filter: { types: [type] } })
        expect(eventsOf(found, ids).map(placeOf), type).toEqual(
          all.filter((one) => one.type === type && toMillis(one.timestamp) <= time).map(placeOf)
        )
      }
      const kinds = yield* readOn(feed, { ...options, asOf: new Date(time), filter: { kinds: ["AsOf"] } })
      expect(eventsOf(kinds, ids).map(placeOf)).toEqual(
        all
          .filter(({ aggregateId, timestamp }) => aggregateId.startsWith("AsOf/") && toMillis(timestamp) <= time)
          .map(placeOf)
      )
    })),

  test("read: a time before 1970 has no events, and one that is far away has all", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const id = newId()
      yield* store.commitEvents(yield* made(id, [fromParts({ millis: 0, counter: 0, node: randomNode() })]))
      yield* shown(feed, { after }, [id], 1)
      expect(yield* readOn(feed, { after, asOf: new Date(-1) })).toEqual([])
      for (const asOf of [new Date(0), new Date(8_640_000_000_000_000)]) {
        expect(eventsOf(yield* readOn(feed, { after, asOf }), [id])).toHaveLength(1)
      }
    })),

  test("count: as of a time it returns the number of events that read shows", () =>
    Effect.gen(function* () {
      const { feed, options } = yield* committed
      for (const time of times) {
        for (const filter of [undefined, { types: ["Other"] }, { kinds: ["AsOf"] }]) {
          const asked = { ...options, asOf: new Date(time), filter }
          expect(yield* feed.count(asked)).toBe((yield* readOn(feed, asked)).length)
        }
      }
    })),

  test("stream, streamStored: as of a time they have the events that read shows", () =>
    Effect.gen(function* () {
      const { all, feed, ids, options } = yield* committed
      const asked: ReadOptions = { ...options, asOf: new Date(base + 5), limit: 2 }
      const expected = all.filter(({ timestamp }) => toMillis(timestamp) <= base + 5).map(placeOf)
      const readBy = (events: ReturnType<typeof streamStored>) =>
        Effect.map(Effect.provideService(Stream.runCollect(events), EventFeed, feed), (found) =>
          eventsOf(Array.from(found), ids).map(placeOf)
        )
      expect(yield* readBy(streamStored(asked))).toEqual(expected)
      const own = streamOf(asked).pipe(Stream.filter(({ aggregateId }) => ids.includes(aggregateId)))
      expect(yield* readBy(Stream.take(own, expected.length))).toEqual(expected)
    })),

  test("read, count: a bad time fails with a ValidationError that has its path", () =>
    Effect.gen(function* () {
      const { feed } = yield* ports
      for (const bad of badTimes) {
        const options = { asOf: bad } as ReadOptions
        for (const reading of [feed.read(options), feed.count(options)]) {
          expect(
            refusedPaths(yield* Effect.flip<unknown, unknown, never>(reading)),
            String(badTimes.indexOf(bad))
          ).toEqual(["asOf"])
        }
      }
    }))
]

// --- internal ---

/** A time long ago, so that no other event of the store is near it. */
const base = Date.UTC(1999, 11, 31)

const times: ReadonlyArray<number> = [base - 1, base, base + 5, base + 11, base + 12]

const badTimes: ReadonlyArray<unknown> = [
  new Date(Number.NaN),
  "2024-01-01",
  0,
  1e12,
  null,
  {},
  [],
  true,
  // A method of a date throws on these.
  new Proxy(new Date(base), {}),
  Object.create(Date.prototype)
]

/** A node of its own for each event, so that no two have one timestamp. */
const randomNode = (): bigint => BigInt(crypto.getRandomValues(new Uint32Array(1))[0] ?? 0)

/** The first events of a stream, with these timestamps. */
const made = (
  aggregateId: string,
  timestamps: ReadonlyArray<Timestamp>,
  type = "Happened"
): Effect.Effect<ReadonlyArray<Event>> =>
  Effect.forEach(timestamps, (timestamp, index) =>
    Effect.map(event(aggregateId, index + 1, { type }), (one) => ({ ...one, timestamp }))
  )

/** Twelve events of twelve aggregates, whose times do not follow the order in which they are committed. */
const committed = Effect.gen(function* () {
  const { feed, store } = yield* ports
  const after = yield* feed.head
  const all = yield* Effect.forEach(Arr.range(0, 11), (index) =>
    Effect.gen(function* () {
      const id = index % 3 === 0 ? `AsOf/${newId()}` : newId()
      const timestamp = fromParts({ millis: base + ((index * 7) % 12), counter: 0, node: randomNode() })
      const events = yield* made(id, [timestamp], index % 2 === 0 ? "Happened" : "Other")
      yield* store.commitEvents(events)
      return events
    })
  ).pipe(Effect.map((events) => events.flat()))
  const ids = all.map(({ aggregateId }) => aggregateId)
  const found = yield* shown(feed, { after }, ids, all.length)
  return { all: found, feed, ids, options: { after } }
})
