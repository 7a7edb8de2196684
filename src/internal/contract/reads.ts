/**
 * The contract of `getEvents`, of reading pages, and of bad arguments of both reads, one case for each sentence.
 */
import { expect } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { Event } from "../../Event.js"
import { type EventPage, StoreAdapter } from "../../StoreAdapter.js"
import { type StoreError, ValidationError } from "../../StoreError.js"
import { streamReaderOf } from "../store/streamReader.js"
import { refusedNames, refusedSequences } from "./awkward.js"
import { type Case, deface, idOf, newId, snapshot, stream, test } from "./case.js"

export const readCases: ReadonlyArray<Case> = [
  test("getEvents: both bounds are inclusive; 0 and 1 mean all", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const events = yield* stream(newId(), 1, 5)
      yield* store.commitEvents(events)
      const read = (min: number, max?: number) =>
        Effect.map(store.getEvents(idOf(events), min, max === undefined ? undefined : { maxSequence: max }), (found) =>
          found.map(({ sequence }) => sequence)
        )
      expect(yield* read(0)).toEqual([1, 2, 3, 4, 5])
      expect(yield* read(1)).toEqual([1, 2, 3, 4, 5])
      expect(yield* read(2)).toEqual([2, 3, 4, 5])
      expect(yield* read(5)).toEqual([5])
      expect(yield* read(6)).toEqual([])
      expect(yield* read(2, 4)).toEqual([2, 3, 4])
      expect(yield* read(3, 3)).toEqual([3])
      expect(yield* read(0, 1)).toEqual([1])
      expect(yield* read(0, 0)).toEqual([])
      expect(yield* read(4, 2)).toEqual([])
      expect(yield* read(0, 2_147_483_647)).toEqual([1, 2, 3, 4, 5])
      expect(yield* read(2_147_483_647)).toEqual([])
      expect(yield* store.getEvents(newId(), 0)).toEqual([])
    })),

  test("getEvents: a caller may change an event without changing the stored one, or another event that was read", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const events = yield* stream(newId(), 1, 3)
      const committed = structuredClone(events)
      yield* store.commitEvents(events)
      const [mine, others] = [yield* store.getEvents(idOf(committed), 1), yield* store.getEvents(idOf(committed), 1)]
      const [first, ...rest] = mine
      deface(first)
      expect(rest).toEqual(committed.slice(1))
      deface(mine)
      expect(others).toEqual(committed)
      expect(yield* store.getEvents(idOf(committed), 1)).toEqual(committed)
      expect(yield* store.getEvents(idOf(committed), 2)).toEqual(committed.slice(1))
    })),

  test("streamReader: its pages have the events of getEvents, and the snapshot of getSnapshot", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const reader = streamReaderOf(store)
      const events = yield* stream(newId(), 1, 7)
      const id = idOf(events)
      expect(yield* reader.exists(id)).toBe(false)
      yield* store.commitEvents(events)
      expect(yield* reader.exists(id)).toBe(true)
      const pages = (limit: number) =>
        Effect.gen(function* () {
          const found: Array<Event> = []
          let next: number | undefined = 1
          while (next !== undefined) {
            const page: EventPage = yield* reader.page(id, next, limit)
            const some = page.events()
            expect(some.length).toBeLessThanOrEqual(limit)
            if (page.moreAfter !== undefined) expect(page.moreAfter).toBe(some.at(-1)?.sequence)
            found.push(...some)
            next = page.moreAfter === undefined ? undefined : page.moreAfter + 1
          }
          return found
        })
      for (const limit of [1, 3, 7, 10, 2500]) expect(yield* pages(limit)).toEqual(events)
      const from = (maxSequence: number, limit: number) =>
        Effect.map(reader.fromSnapshot(id, maxSequence, limit), (page) => ({
          snapshot: page.snapshot,
          sequences: page.events().map(({ sequence }) => sequence)
        }))
      expect(yield* from(5, 10)).toEqual({ snapshot: Option.none(), sequences: [1, 2, 3, 4, 5] })
      const saved = yield* snapshot(id, 4)
      yield* store.commitSnapshot(saved)
      expect(yield* from(6, 10)).toEqual({ snapshot: Option.some(saved), sequences: [4, 5, 6] })
      expect(yield* from(6, 2)).toEqual({ snapshot: Option.some(saved), sequences: [4, 5] })
      expect(yield* from(3, 10)).toEqual({ snapshot: Option.none(), sequences: [1, 2, 3] })
      expect(yield* from(4, 10)).toEqual({ snapshot: Option.some(saved), sequences: [4] })
    })),

  test("getEvents, getSnapshot: bad arguments fail with a ValidationError that has their paths", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const reads: ReadonlyArray<
        (...args: Parameters<typeof store.getEvents>) => Effect.Effect<unknown, ValidationError | StoreError>
      > = [store.getEvents, store.getSnapshot]
      for (const read of reads) {
        const pathOf = (error: unknown) => (error instanceof ValidationError ? error.issues[0].path.join(".") : error)
        for (const [, id] of refusedNames) {
          expect(pathOf(yield* Effect.flip(read(id as string, 1)))).toBe("aggregateId")
        }
        for (const sequence of refusedSequences.filter((bad) => bad !== 0)) {
          expect(pathOf(yield* Effect.flip(read("a", sequence as number)))).toBe("minSequence")
          if (sequence === undefined || sequence === null) continue
          expect(pathOf(yield* Effect.flip(read("a", 1, { maxSequence: sequence as number })))).toBe("maxSequence")
        }
      }
    }))
]
