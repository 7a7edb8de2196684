/**
 * The contract of the samples of a feed, one case for each sentence.
 */
import { expect } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { type Event, identityOf, type NewEvent } from "../../Event.js"
import type { EventFeedService, FeedEvent, Filter } from "../../EventFeed.js"
import { awkwardIds } from "./awkward.js"
import { deface, event, failureOf, newId, projecting, test } from "./case.js"
import {
  at,
  briefly,
  committedOf,
  endedWithin,
  eventsOf,
  type FeedCase,
  opened,
  ports,
  refusedPaths,
  shown
} from "./feedCase.js"

export const feedSampleCases: ReadonlyArray<FeedCase> = [
  test("samples: have an event of each kind, type and version, exactly as read shows it, and few of each", () =>
    Effect.gen(function* () {
      const { feed } = yield* ports
      const after = yield* feed.head
      const [one, other] = [newId(), newId()]
      const ids = [`${one}/a`, `${one}/b`, `${other}/a`]
      for (const id of ids) {
        for (const type of ["Opened", "Closed"]) {
          for (const version of id === ids[1] ? [3] : [1, 2]) yield* commitNextOf(id, { type, version })
        }
        yield* commitNextOf(id, { type: "Opened", version: 1 })
      }
      const all = yield* shown(feed, { after }, ids, 13)
      for (const filter of [undefined, { kinds: [one, other] }]) {
        const samples = eventsOf(yield* collected(feed, filter), ids)
        expect(new Set(samples.map(keyOf))).toEqual(new Set(all.map(keyOf)))
        for (const sample of samples) expect(all).toContainEqual(sample)
        for (const same of Object.values(Arr.groupBy(samples, keyOf))) expect(same.length).toBeLessThanOrEqual(10)
        expect(new Set(samples.map(({ position }) => position)).size).toBe(samples.length)
      }
    })),

  test("samples: with kinds, only events of aggregates of these kinds; an empty list selects none", () =>
    Effect.gen(function* () {
      const { feed } = yield* ports
      const [kind, type] = [newId(), newId()]
      const ids = [`${kind}/a`, `${kind}/a/b`, kind, `/${kind}`, `${kind}s/a`, `a${kind}/a`, `${kind.toUpperCase()}/a`]
      for (const id of ids) yield* commitNextOf(id, { type, version: 1 })
      const idsOf = (...kinds: ReadonlyArray<string>) =>
        Effect.map(collected(feed, { kinds }), (samples) =>
          samples.filter((sample) => sample.type === type).map(({ aggregateId }) => aggregateId)
        )
      for (const id of [`${kind}s/a`, `a${kind}/a`, `${kind.toUpperCase()}/a`]) {
        expect(yield* idsOf(identityOf(id).kind)).toEqual([id])
      }
      for (const id of yield* idsOf(kind, newId(), kind)) expect([`${kind}/a`, `${kind}/a/b`]).toContain(id)
      expect((yield* idsOf(kind)).length).toBeGreaterThan(0)
      for (const id of yield* idsOf("")) expect([kind, `/${kind}`]).toContain(id)
      expect((yield* idsOf("")).length).toBeGreaterThan(0)
      expect(yield* collected(feed, { kinds: [] })).toEqual([])
      expect(yield* collected(feed, { kinds: [newId()] })).toEqual([])
    })),

  test("samples: kinds and types that differ only in case or Unicode form are different", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const kinds = awkwardIds.filter((text) => text.length < 100 && !text.includes("/"))
      const id = newId()
      const events = yield* Effect.forEach(kinds, (kind, index) =>
        event(`${kind}/${id}`, 1, { type: at(awkwardIds, index), body: { kind } })
      )
      const typed = yield* Effect.forEach(awkwardIds, (type, index) => event(`${id}/a`, index + 1, { type }))
      yield* store.commitEvents([...events, ...typed])
      const types = (yield* collected(feed, { kinds: [id] })).map(({ type }) => type)
      expect(new Set(types)).toEqual(new Set(awkwardIds))
      const found = yield* collected(feed, { kinds: kinds.map((kind) => identityOf(`${kind}/${id}`).kind) })
      expect(new Set(found.map(({ kind }) => kind))).toEqual(
        new Set(events.map(({ aggregateId }) => identityOf(aggregateId).kind))
      )
    })),

  test("samples: a type of one event is found among twelve thousand events and several hundred types", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const [kind, rare] = [newId(), newId()]
      const many = yield* Effect.forEach(Arr.range(1, 12_000), (sequence) =>
        event(`${kind}/a`, sequence, { type: sequence === 11_000 ? rare : `Type${sequence % 350}` })
      )
      yield* store.commitEvents(many)
      const types = new Set((yield* collected(feed, { kinds: [kind] })).map(({ type }) => type))
      expect(types.size).toBe(351)
      expect(types).toContain(rare)
    })),

  test("samples: a large event is as complete as a small one", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const id = `${newId()}/a`
      const sizes = [10, 9_000_000, 100_000, 10, 3_000_000]
      for (const [index, size] of sizes.entries()) {
        const large = { text: "x".repeat(size) }
        const [body, metadata] = index === 2 ? [{}, large] : [large, {}]
        yield* store.commitEvents([yield* event(id, index + 1, { type: `Type${index}`, body, metadata })])
      }
      const sample = Stream.map(feed.samples({ kinds: [identityOf(id).kind] }), ({ body, metadata, type }) => [
        type,
        JSON.stringify(body).length + JSON.stringify(metadata).length
      ])
      expect((yield* Stream.runCollect(sample)).pipe((all) => [...all])).toEqual(
        sizes.map((size, index) => [`Type${index}`, size + `{"text":""}{}`.length])
      )
    })),

  test("samples: have committed events only", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const id = `${newId()}/a`
      const samples = collected(feed, { kinds: [identityOf(id).kind] })
      yield* Effect.exit(store.commitAll([yield* event(id, 1, { type: "Lost" })], [projecting(Effect.fail("no"))]))
      expect(yield* samples).toEqual([])
      yield* store.commitEvents([yield* event(id, 1, { type: "Kept" })])
      expect((yield* samples).map(({ type }) => type)).toEqual(["Kept"])
    })),

  test(
    "samples: have no event of an open commit, and every committed event, also where an open one holds it back",
    () =>
      Effect.scoped(
        Effect.gen(function* () {
          const { feed, store } = yield* ports
          const kind = newId()
          const types = Effect.map(collected(feed, { kinds: [kind] }), (samples) => samples.map(({ type }) => type))
          const open = yield* opened(store, [yield* event(`${kind}/open`, 1, { type: "Open" })])
          // A store may let it wait for the open one.
          const other = yield* Effect.fork(store.commitEvents([yield* event(`${kind}/b`, 1, { type: "Committed" })]))
          const ended = yield* endedWithin(other, briefly)
          const seen = yield* types
          expect(seen).not.toContain("Open")
          // Else it may have ended since.
          if (Option.isSome(ended)) expect(seen).toEqual(["Committed"])
          yield* open.commit
          yield* Fiber.join(other)
          expect(new Set(yield* types)).toEqual(new Set(["Committed", "Open"]))
        })
      ),
    "concurrentReads"
  ),

  test("samples: a bad list of kinds fails with a ValidationError that has its path", () =>
    Effect.gen(function* () {
      const { feed } = yield* ports
      for (const [path, filter] of [
        ["filter", 5],
        ["filter", null],
        ["filter.kinds", { kinds: "Account" }],
        ["filter.kinds", { kinds: [undefined] }]
      ] as const) {
        const exit = yield* Effect.exit(collected(feed, filter as unknown as Filter))
        expect(refusedPaths(failureOf(exit))).toEqual([path])
      }
    })),

  test("samples: a caller may change a sample without changing the stored event", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const id = `${newId()}/a`
      const stored = yield* event(id, 1)
      yield* store.commitEvents([stored])
      const samples = collected(feed, { kinds: [identityOf(id).kind] })
      const before = structuredClone(yield* samples)
      deface(yield* samples)
      expect(yield* samples).toEqual(before)
      expect(yield* store.getEvents(id, 1)).toEqual(before.map(committedOf))
    }))
]

// --- internal ---

const collected = (feed: EventFeedService, filter?: Pick<Filter, "kinds">) =>
  Effect.map(Stream.runCollect(feed.samples(filter)), (samples): ReadonlyArray<FeedEvent> => [...samples])

const keyOf = ({ kind, type, version }: FeedEvent): string => JSON.stringify([kind, type, version])

/** Commits the next event of an aggregate. */
const commitNextOf = (aggregateId: string, fields: Pick<NewEvent, "type" | "version">) =>
  Effect.gen(function* () {
    const { store } = yield* ports
    const stored: ReadonlyArray<Event> = yield* store.getEvents(aggregateId, 1)
    yield* store.commitEvents([{ ...(yield* event(aggregateId, stored.length + 1)), ...fields }])
  })
