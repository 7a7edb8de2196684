/**
 * The contract of `getEvents`, and what both reads refuse, a case to a sentence.
 */
import { expect } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { StoreAdapter } from "../../StoreAdapter.js"
import { type StoreError, ValidationError } from "../../StoreError.js"
import { refusedNames, refusedSequences } from "./awkward.js"
import { type Case, deface, idOf, newId, stream, test } from "./case.js"

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

  test("getEvents: a caller may change an event without changing what is stored, or another event that was read", () =>
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

  test("getEvents, getSnapshot: refuse bad arguments by a ValidationError that names them", () =>
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
