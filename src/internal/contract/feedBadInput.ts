/**
 * The contract of bad input of a feed, one case for each sentence.
 */
import { expect } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type { Filter, Position, ReadOptions } from "../../EventFeed.js"
import { refusedNames, refusedSequences } from "./awkward.js"
import { newId, stream, test } from "./case.js"
import { at, commitShown, type FeedCase, leaseOf, placeOf, ports, readOn, refusedPaths, shown } from "./feedCase.js"

export const feedBadInputCases: ReadonlyArray<FeedCase> = [
  test("read: a bad position, limit or filter fails with a ValidationError that has its path", () =>
    Effect.gen(function* () {
      const { feed } = yield* ports
      const paths = (options: unknown) => Effect.map(Effect.flip(feed.read(options as ReadOptions)), refusedPaths)
      for (const after of badPositions) expect(yield* paths({ after }), String(after)).toEqual(["after"])
      for (const limit of badLimits) expect(yield* paths({ limit }), String(limit)).toEqual(["limit"])
      for (const [path, filter] of badFilters) expect(yield* paths({ filter })).toEqual([path])
    })),

  test("read: a ValidationError names all bad paths", () =>
    Effect.gen(function* () {
      const { feed } = yield* ports
      const filter = { types: [1], kinds: "a", slice: { index: 3, of: 3 } } as unknown as Filter
      const error = yield* Effect.flip(feed.read({ after: "7" as Position, limit: 0, filter }))
      expect(refusedPaths(error)).toEqual(["after", "limit", "filter.types", "filter.kinds", "filter.slice"])
    })),

  test("read: accepts limits from 1 to 10 000", () =>
    Effect.gen(function* () {
      const all = yield* ports
      const events = yield* commitShown(all, 2)
      const after = at(events, 0).position
      for (const limit of [1, 10_000]) {
        expect((yield* readOn(all.feed, { after, limit })).map(placeOf)).toContain(placeOf(at(events, 1)))
      }
    })),

  test("count: a bad position or filter fails with a ValidationError that has its path", () =>
    Effect.gen(function* () {
      const { feed } = yield* ports
      const paths = (options: unknown) =>
        Effect.map(Effect.flip(feed.count(options as Pick<ReadOptions, "after" | "filter">)), refusedPaths)
      for (const after of badPositions) expect(yield* paths({ after }), String(after)).toEqual(["after"])
      for (const [path, filter] of badFilters) expect(yield* paths({ filter })).toEqual([path])
    })),

  test("heldBack: a bad filter fails with a ValidationError that has its path", () =>
    Effect.gen(function* () {
      const { feed } = yield* ports
      for (const [path, filter] of badFilters) {
        expect(refusedPaths(yield* Effect.flip(feed.heldBack(filter as Filter | undefined)))).toEqual([path])
      }
    })),

  test("awaitAppend: a bad position or filter fails with a ValidationError that has its path", () =>
    Effect.gen(function* () {
      const { feed, store } = yield* ports
      const after = yield* feed.head
      const paths = (position: unknown, filter?: unknown) =>
        Effect.map(Effect.flip(feed.awaitAppend(position as Position, filter as Filter | undefined)), refusedPaths)
      for (const [path, filter] of badFilters) expect(yield* paths(after, filter)).toEqual([path])
      // New events, so that a call with a bad position can't wait for them.
      const id = newId()
      yield* store.commitEvents(yield* stream(id, 1, 1))
      yield* shown(feed, { after }, [id], 1)
      for (const bad of badPositions) {
        if (bad !== undefined) expect(yield* paths(bad), String(bad)).toEqual(["after"])
      }
    })),

  test("lease, awaitPosition: a bad position fails with a ValidationError that has its path", () =>
    Effect.gen(function* () {
      const { subscriptions } = yield* ports
      const name = newId()
      for (const bad of badPositions) {
        const from = bad as Position
        const refused = [
          [["from"], Effect.scoped(subscriptions.lease({ ...leaseOf(name), from }))],
          [["position"], subscriptions.awaitPosition(name, from)],
          [["position"], subscriptions.awaitPosition(name, from, "a")]
        ] as const
        for (const [path, asking] of refused) {
          expect(refusedPaths(yield* Effect.flip(asking)), String(bad)).toEqual(path)
        }
      }
      expect(yield* subscriptions.partitions(name)).toEqual([])
    })),

  test("positionOf: a bad id or sequence fails with a ValidationError that has its path", () =>
    Effect.gen(function* () {
      const { feed } = yield* ports
      for (const [, id] of refusedNames) {
        const error = yield* Effect.flip(feed.positionOf({ aggregateId: id as string, sequence: 1 }))
        expect(refusedPaths(error)).toEqual(["aggregateId"])
      }
      for (const sequence of refusedSequences) {
        // Events are counted from 1, and 0 is the lower bound of a read.
        if (sequence === 0) continue
        const error = yield* Effect.flip(feed.positionOf({ aggregateId: "a", sequence: sequence as number }))
        expect(refusedPaths(error), String(sequence)).toEqual(["sequence"])
      }
    }))
]

// --- internal ---

const badPositions: ReadonlyArray<unknown> = [
  "7",
  "",
  "x",
  "1-",
  "-1",
  "1--1",
  "1-x",
  " 1-1",
  "1-1\n",
  "18446744073709551616-1",
  "1-9223372036854775808",
  5,
  null,
  {},
  []
]

const badLimits: ReadonlyArray<unknown> = [0, -1, 1.5, 10_001, Number.NaN, Number.POSITIVE_INFINITY, "1", null, 1n]

const badFilters: ReadonlyArray<readonly [path: string, filter: unknown]> = [
  ["filter", 5],
  ["filter", null],
  ["filter", "types"],
  ["filter.types", { types: "Happened" }],
  ["filter.types", { types: [1] }],
  ["filter.types", { types: null }],
  ["filter.kinds", { kinds: "Account" }],
  ["filter.kinds", { kinds: [undefined] }],
  ["filter.correlationId", { correlationId: null }],
  ["filter.correlationId", { correlationId: 7 }],
  ["filter.correlationId", { correlationId: "" }],
  ["filter.correlationId", { correlationId: "\0" }],
  ["filter.correlationId", { correlationId: "\ud800" }],
  ["filter.correlationId", { correlationId: "x".repeat(256) }],
  ["filter.slice", { slice: null }],
  ["filter.slice", { slice: 1 }],
  ["filter.slice", { slice: {} }],
  ["filter.slice", { slice: { index: 3, of: 3 } }],
  ["filter.slice", { slice: { index: -1, of: 3 } }],
  ["filter.slice", { slice: { index: 0.5, of: 3 } }],
  ["filter.slice", { slice: { index: 0, of: 0 } }],
  ["filter.slice", { slice: { index: 0, of: Number.NaN } }],
  ["filter.slice", { slice: { index: "0", of: 3 } }]
]
