/**
 * The contract of `commitSnapshot` and `getSnapshot`, one case for each sentence.
 */
import { expect } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as FastCheck from "effect/FastCheck"
import * as Option from "effect/Option"
import { StoreAdapter } from "../../StoreAdapter.js"
import { ValidationError } from "../../StoreError.js"
import { awkwardValues, jsonObject, refusedBodies, refusedNames, refusedSequences } from "./awkward.js"
import { type Case, deface, everyCase, expectExactly, newId, type Settings, snapshot, test } from "./case.js"

export const snapshotCases = (settings: Settings): ReadonlyArray<Case> => [
  test("commitSnapshot: a snapshot replaces the stored one unless that has a higher sequence", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const id = newId()
      const [five, otherFive] = [yield* snapshot(id, 5), yield* snapshot(id, 5)]
      const [four, nine] = [yield* snapshot(id, 4), yield* snapshot(id, 9)]
      yield* store.commitSnapshot(five)
      yield* store.commitSnapshot(otherFive)
      expect(yield* store.getSnapshot(id, 0)).toEqual(Option.some(otherFive))
      yield* store.commitSnapshot(four)
      expect(yield* store.getSnapshot(id, 0)).toEqual(Option.some(otherFive))
      yield* store.commitSnapshot(nine)
      expect(yield* store.getSnapshot(id, 0)).toEqual(Option.some(nine))
      yield* store.commitSnapshot(five)
      expect(yield* store.getSnapshot(id, 0)).toEqual(Option.some(nine))
      expect(yield* store.getSnapshot(newId(), 0)).toEqual(Option.none())
    })),

  test("commitSnapshot: of concurrent snapshots the one with the highest sequence stays", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const id = newId()
      const snapshots = yield* Effect.forEach(Arr.range(1, 20), (index) => snapshot(id, ((index * 7) % 20) + 1))
      yield* Effect.forEach(snapshots, store.commitSnapshot, { concurrency: "unbounded", discard: true })
      expect(yield* store.getSnapshot(id, 0)).toEqual(Option.some(snapshots.find(({ sequence }) => sequence === 20)))
    })),

  test("getSnapshot: both bounds are inclusive", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const five = yield* snapshot(newId(), 5)
      yield* store.commitSnapshot(five)
      const found = (min: number, max?: number) =>
        Effect.map(
          store.getSnapshot(five.aggregateId, min, max === undefined ? undefined : { maxSequence: max }),
          Option.isSome
        )
      expect(yield* Effect.all([found(0), found(4), found(5), found(6)])).toEqual([true, true, true, false])
      expect(yield* Effect.all([found(0, 4), found(0, 5), found(5, 5), found(6, 9), found(0, 6)])).toEqual([
        false,
        true,
        true,
        false,
        true
      ])
    })),

  test("getSnapshot: a caller may change a snapshot without changing the stored one, or the result of another read", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const one = yield* snapshot(newId(), 5)
      const committed = structuredClone(one)
      yield* store.commitSnapshot(one)
      const [mine, others] = [
        yield* store.getSnapshot(committed.aggregateId, 0),
        yield* store.getSnapshot(committed.aggregateId, 0)
      ]
      deface(Option.getOrThrow(mine))
      expect(others).toEqual(Option.some(committed))
      expect(yield* store.getSnapshot(committed.aggregateId, 0)).toEqual(Option.some(committed))
    })),

  test("commitSnapshot: a bad snapshot fails with a ValidationError, and the stored one stays", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const good = yield* snapshot(newId(), 5)
      yield* store.commitSnapshot(good)
      const changes: ReadonlyArray<readonly [string, object]> = [
        ...refusedNames.map(([, aggregateId]) => ["aggregateId", { aggregateId }] as const),
        ...refusedSequences.map((sequence) => ["sequence", { sequence }] as const),
        ...refusedBodies.flatMap(([, path, body]) => [
          [`body${path}`, { sequence: 6, body }] as const,
          [`metadata${path}`, { sequence: 6, metadata: body }] as const
        ]),
        ["timestamp", { sequence: 6, timestamp: "x" }]
      ]
      for (const [path, change] of changes) {
        const error = yield* Effect.flip(store.commitSnapshot({ ...good, ...change }))
        expect(error instanceof ValidationError ? error.issues[0].path.join(".") : error).toBe(path)
      }
      expect(yield* store.getSnapshot(good.aggregateId, 0)).toEqual(Option.some(good))
    })),

  test("commitSnapshot: a snapshot is any JSON object, and does not appear among the events", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      for (const value of Object.values(awkwardValues)) {
        const one = { ...(yield* snapshot(newId(), 2_147_483_647)), body: { value }, metadata: { value } }
        yield* store.commitSnapshot(one)
        const stored = Option.getOrUndefined(yield* store.getSnapshot(one.aggregateId, 2_147_483_647))
        expectExactly([stored?.body, stored?.metadata], [one.body, one.metadata])
        expect(yield* store.getEvents(one.aggregateId, 0)).toEqual([])
      }
    })),

  test("commitSnapshot: any JSON is read as it was committed, with the order of keys and the sign of -0", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      yield* everyCase(settings, FastCheck.tuple(jsonObject, jsonObject), ([body, metadata]) =>
        Effect.gen(function* () {
          const one = { ...(yield* snapshot(newId(), 1)), body, metadata }
          yield* store.commitSnapshot(one)
          const stored = Option.getOrUndefined(yield* store.getSnapshot(one.aggregateId, 1))
          expectExactly([stored?.body, stored?.metadata], [body, metadata])
        })
      )
    }))
]
