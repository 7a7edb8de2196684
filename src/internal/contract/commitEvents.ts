/**
 * The contract of `commitEvents`, one case for each sentence.
 */
import { expect } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as FastCheck from "effect/FastCheck"
import * as Fiber from "effect/Fiber"
import type { Event } from "../../Event.js"
import { StoreAdapter } from "../../StoreAdapter.js"
import { RetryCommand, ValidationError } from "../../StoreError.js"
import {
  awkwardIds,
  awkwardValues,
  billionLaughs,
  jsonObject,
  refusedBodies,
  refusedNames,
  refusedSequences
} from "./awkward.js"
import {
  type Case,
  event,
  everyCase,
  expectExactly,
  idOf,
  macrotask,
  mixed,
  newId,
  recording,
  type Settings,
  stream,
  test
} from "./case.js"

export const commitEventsCases = (settings: Settings): ReadonlyArray<Case> => [
  test("commitEvents: an empty list succeeds and writes nothing", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      yield* store.commitEvents([])
      yield* store.commitAll([], [recording([])])
    })),

  test("commitEvents: stored events are read as they were committed, in order of sequence", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const events = yield* stream(newId(), 1, 5)
      yield* store.commitEvents(events.slice(0, 2))
      yield* store.commitEvents(events.slice(2))
      expect(yield* store.getEvents(idOf(events), 1)).toEqual(events)
    })),

  test("commitEvents: any JSON is read as it was committed, with the order of keys and the sign of -0", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      yield* everyCase(settings, FastCheck.tuple(jsonObject, jsonObject), ([body, metadata]) =>
        Effect.gen(function* () {
          const events = [{ ...(yield* event(newId(), 1)), body, metadata }]
          yield* store.commitEvents(events)
          const [stored] = yield* store.getEvents(idOf(events), 1)
          expectExactly([stored?.body, stored?.metadata], [body, metadata])
        })
      )
    })),

  ...Object.entries(awkwardValues).map(([what, value]) =>
    test(`commitEvents: stores ${what}`, () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter
        const body = { value }
        const events = [{ ...(yield* event(newId(), 1)), body, metadata: body }]
        yield* store.commitEvents(events)
        const [stored] = yield* store.getEvents(idOf(events), 1)
        expectExactly([stored?.body, stored?.metadata], [body, body])
      }))
  ),

  test("commitEvents: ids and types are any text, and different texts stay different", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      // Unique in a store that has the records of other runs. The awkward characters stay at both ends.
      const unique = newId().slice(0, 13)
      const ids = awkwardIds.map((id) => {
        const characters = Array.from(id)
        return characters.length < 100
          ? `${id}${unique}${id}`
          : [...characters.slice(0, 100), unique, ...characters.slice(100 + unique.length)].join("")
      })
      for (const id of ids) yield* store.commitEvents([{ ...(yield* event(id, 1)), type: id, body: { id } }])
      for (const id of ids) {
        const stored = yield* store.getEvents(id, 1)
        expect(stored.map((found) => [found.aggregateId, found.type, found.body])).toEqual([[id, id, { id }]])
      }
    })),

  test("commitEvents: a commit of 10 000 events, and of 500 aggregates, is one commit", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const long = yield* stream(newId(), 1, 10_000)
      yield* store.commitEvents(long)
      expect(yield* store.getEvents(idOf(long), 1)).toEqual(long)
      const wide = yield* Effect.forEach(Arr.range(1, 500), () => event(newId(), 1))
      yield* store.commitEvents(wide)
      for (const one of wide) expect(yield* store.getEvents(one.aggregateId, 1)).toEqual([one])
    })),

  test("commitEvents: a bad event fails with a ValidationError that has its path, and nothing is written", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      for (const [what, path, change] of refused) {
        const [good, other] = [yield* event(newId(), 1), yield* event(newId(), 1)]
        const bad = { ...other, ...change }
        const ran: Array<string> = []
        for (const commit of [store.commitEvents([good, bad]), store.commitAll([good, bad], [recording(ran)])]) {
          const error = yield* Effect.flip(commit)
          expect(error, what).toBeInstanceOf(ValidationError)
          const issues = error instanceof ValidationError ? error.issues : []
          expect(issues.map((issue) => `${issue.index} ${issue.path.join(".")}`)[0], what).toBe(`1 ${path}`)
          expect(issues[0]?.message, what).not.toBe("")
        }
        expect(yield* store.getEvents(good.aggregateId, 1), what).toEqual([])
        expect(ran, what).toEqual([])
      }
    })),

  test("commitEvents: a body that is too large fails with a ValidationError", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const error = yield* Effect.flip(store.commitEvents([{ ...(yield* event(newId(), 1)), body: billionLaughs() }]))
      expect(error instanceof ValidationError ? error.message : error).toContain("larger than 64 MB")
    })),

  test("commitEvents: 2 147 483 647 is a valid sequence, and a conflict where it is not the next one", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const error = yield* Effect.flip(store.commitEvents([yield* event(newId(), 2_147_483_647)]))
      expect(error).toBeInstanceOf(RetryCommand)
    })),

  test("commitEvents: a ValidationError has all issues of all events", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const first = {
        ...(yield* event(newId(), 0)),
        type: "",
        body: { deep: [{ at: Number.NaN }], other: undefined }
      }
      const third = { ...(yield* event(newId(), 1)), metadata: { when: new Date(0) } }
      const error = yield* Effect.flip(store.commitEvents([first, yield* event(newId(), 1), third]))
      const issues = error instanceof ValidationError ? error.issues : []
      expect(issues.map(({ index, path }) => [index, ...path])).toEqual([
        [0, "type"],
        [0, "sequence"],
        [0, "body", "deep", 0, "at"],
        [0, "body", "other"],
        [2, "metadata", "when"]
      ])
    })),

  test("commitEvents: refuses sequences of one aggregate that do not rise by one within the commit", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      for (const sequences of [
        [1, 3],
        [1, 1],
        [2, 1],
        [1, 2, 2]
      ]) {
        const id = newId()
        const other = yield* event(newId(), 1)
        const events = yield* Effect.forEach(sequences, (sequence) => event(id, sequence))
        const error = yield* Effect.flip(store.commitEvents([...events, other]))
        expect(error, `${sequences}`).toBeInstanceOf(ValidationError)
        expect(yield* store.getEvents(id, 1)).toEqual([])
        expect(yield* store.getEvents(other.aggregateId, 1)).toEqual([])
      }
    })),

  test("commitEvents: one commit stores events of several aggregates in any order", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const [a, b] = [yield* stream(newId(), 1, 3), yield* stream(newId(), 1, 2)]
      yield* store.commitEvents(mixed(a, b))
      expect(yield* store.getEvents(idOf(a), 1)).toEqual(a)
      expect(yield* store.getEvents(idOf(b), 1)).toEqual(b)
    })),

  test("commitEvents: a conflict in one aggregate stores nothing in any other", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const taken = yield* stream(newId(), 1, 2)
      yield* store.commitEvents(taken)
      for (const sequence of [2, 4]) {
        const [before, after] = [yield* stream(newId(), 1, 2), yield* stream(newId(), 1, 2)]
        const conflict = yield* event(idOf(taken), sequence)
        const error = yield* Effect.flip(store.commitEvents([...before, conflict, ...after]))
        expect(error).toEqual(new RetryCommand({ aggregateId: idOf(taken), sequence }))
        expect(yield* store.getEvents(idOf(before), 1)).toEqual([])
        expect(yield* store.getEvents(idOf(after), 1)).toEqual([])
        expect(yield* store.getEvents(idOf(taken), 1)).toEqual(taken)
      }
    })),

  test("commitEvents: a sequence that is taken is a RetryCommand that names aggregate and sequence", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const events = yield* stream(newId(), 1, 3)
      yield* store.commitEvents(events)
      for (const sequence of [1, 2, 3]) {
        for (const length of [1, 3]) {
          const stale = yield* stream(idOf(events), sequence, length)
          expect(yield* Effect.flip(store.commitEvents(stale))).toEqual(
            new RetryCommand({ aggregateId: idOf(events), sequence })
          )
          expect(yield* store.getEvents(idOf(events), 1)).toEqual(events)
        }
      }
    })),

  test("commitEvents: a gap after the stored head is a RetryCommand, at the first event too", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const events = yield* stream(newId(), 1, 3)
      yield* store.commitEvents(events)
      for (const [aggregateId, sequence] of [
        [idOf(events), 5],
        [idOf(events), 6],
        [newId(), 2]
      ] as const) {
        const ahead = yield* stream(aggregateId, sequence, 2)
        expect(yield* Effect.flip(store.commitEvents(ahead))).toEqual(new RetryCommand({ aggregateId, sequence }))
        expect(yield* store.getEvents(aggregateId, 4)).toEqual([])
      }
    })),

  test("commitEvents: an event that follows another than the stored one is a RetryCommand, and nothing is written", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const stored = yield* stream(newId(), 1, 2)
      yield* store.commitEvents(stored)
      const [first, last] = stored
      const wrong = yield* event(newId(), 1)
      for (const length of [1, 3, 12]) {
        const [next, ...others] = yield* stream(idOf(stored), 3, 2 + length)
        const beside = yield* event(newId(), 1)
        for (const follows of [wrong.timestamp, first?.timestamp]) {
          const ran: Array<string> = []
          const events = next === undefined ? [] : [{ ...next, follows }, ...others]
          const several = [beside, ...events]
          for (const commit of [
            ...[store.commitEvents(events), store.commitAll(events, [recording(ran)])],
            ...[store.commitEvents(several), store.commitAll(several, [recording(ran)])]
          ]) {
            expect(yield* Effect.flip(commit)).toEqual(new RetryCommand({ aggregateId: idOf(stored), sequence: 3 }))
          }
          expect(ran).toEqual([])
          expect(yield* store.getEvents(idOf(stored), 1)).toEqual(stored)
          expect(yield* store.getEvents(beside.aggregateId, 1)).toEqual([])
        }
      }
      const next = { ...(yield* event(idOf(stored), 3)), follows: last?.timestamp }
      yield* store.commitEvents([next])
      yield* store.commitEvents([next])
      expect(yield* store.getEvents(idOf(stored), 3)).toEqual([{ ...next, follows: undefined }])
    })),

  test("commitEvents: of twenty concurrent commits at one sequence exactly one succeeds", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      for (const round of [1, 2, 3]) {
        const id = newId()
        if (round > 1) yield* store.commitEvents(yield* stream(id, 1, round - 1))
        const commits = yield* Effect.forEach(Arr.range(1, 20), (length) => stream(id, round, (length % 3) + 1))
        const results = yield* Effect.forEach(commits, (events) => Effect.either(store.commitEvents(events)), {
          concurrency: "unbounded"
        })
        const winners = commits.filter((_, index) => results[index] !== undefined && Either.isRight(results[index]))
        expect(winners).toHaveLength(1)
        for (const result of results) {
          if (Either.isLeft(result)) expect(result.left).toBeInstanceOf(RetryCommand)
        }
        expect(yield* store.getEvents(id, round)).toEqual(winners[0])
      }
    })),

  test("commitEvents: concurrent commits of the same aggregates in opposite order all end, and exactly one succeeds", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      for (const _ of Arr.range(1, 2)) {
        // So many that two statements overlap.
        const ids = Arr.makeBy(500, newId)
        const commits = yield* Effect.forEach(Arr.range(1, 6), (index) =>
          Effect.forEach(index % 2 === 0 ? ids : Arr.reverse(ids), (id) => event(id, 1))
        )
        const results = yield* Effect.forEach(commits, (events) => Effect.either(store.commitEvents(events)), {
          concurrency: "unbounded"
        })
        expect(results.filter(Either.isRight)).toHaveLength(1)
        expect(Arr.getLefts(results).filter((error) => !(error instanceof RetryCommand))).toEqual([])
        const stored = yield* Effect.forEach(ids, (id) => store.getEvents(id, 1))
        const winner = commits[results.findIndex(Either.isRight)] ?? []
        expect(stored.flat().sort(byId)).toEqual([...winner].sort(byId))
      }
    })),

  test("commitEvents: committing stored events again succeeds and writes nothing", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const [a, b] = [yield* stream(newId(), 1, 3), yield* stream(newId(), 1, 1)]
      yield* store.commitEvents(mixed(a, b))
      yield* store.commitEvents(mixed(a, b))
      // Also after further events of the stream.
      yield* store.commitEvents(yield* stream(idOf(a), 4, 2))
      yield* store.commitEvents(mixed(a, b))
      yield* store.commitEvents(a.slice(1))
      expect((yield* store.getEvents(idOf(a), 1)).slice(0, 3)).toEqual(a)
      expect(yield* store.getEvents(idOf(a), 1)).toHaveLength(5)
      expect(yield* store.getEvents(idOf(b), 1)).toEqual(b)
    })),

  test("commitEvents: concurrent calls with one commit all succeed, and it is stored once", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const events = yield* stream(newId(), 1, 3)
      yield* Effect.forEach(Arr.range(1, 10), () => store.commitEvents(events), { concurrency: "unbounded" })
      expect(yield* store.getEvents(idOf(events), 1)).toEqual(events)
    })),

  test("commitEvents: a stored commit with one other event, at any place, is a conflict", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const [a, b] = [yield* stream(newId(), 1, 3), yield* stream(newId(), 1, 2)]
      const stored = mixed(a, b)
      yield* store.commitEvents(stored)
      for (const [place, { aggregateId, sequence }] of stored.entries()) {
        const ran: Array<string> = []
        const changed = Arr.replace(stored, place, yield* event(aggregateId, sequence))
        for (const commit of [store.commitEvents(changed), store.commitAll(changed, [recording(ran)])]) {
          expect(yield* Effect.flip(commit), `event ${place}`).toBeInstanceOf(RetryCommand)
        }
        expect(ran).toEqual([])
      }
      expect(yield* store.getEvents(idOf(a), 1)).toEqual(a)
      expect(yield* store.getEvents(idOf(b), 1)).toEqual(b)
    })),

  test("commitEvents: a concurrent reader finds all of a commit or nothing, in each aggregate and in all", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      for (const _ of Arr.range(1, 5)) {
        const streams = yield* Effect.forEach(Arr.range(1, 4), () => stream(newId(), 1, 50))
        // A later read must find the events that an earlier read found, in every order of aggregates.
        const reading = (order: typeof streams): Effect.Effect<void, unknown> =>
          Effect.gen(function* () {
            let found = false
            for (const events of order) {
              const { length } = yield* store.getEvents(idOf(events), 1)
              expect(found ? [50] : [0, 50]).toContain(length)
              found = length > 0
            }
            yield* macrotask
          })
        const readers = yield* Effect.forEach([streams, Arr.reverse(streams)], (order) =>
          Effect.fork(Effect.forever(reading(order)))
        )
        yield* macrotask
        yield* store.commitEvents(streams.flat())
        yield* macrotask
        for (const reader of readers) {
          // A reader ends by itself only if it finds a part of a commit.
          const exit = yield* Fiber.interrupt(reader)
          expect(Exit.isInterrupted(exit), String(exit)).toBe(true)
        }
      }
    })),

  test("commitEvents: a commit that mixes stored and new events is a conflict", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const events = yield* stream(newId(), 1, 3)
      const other = yield* stream(newId(), 1, 2)
      yield* store.commitEvents(events.slice(0, 2))
      yield* store.commitEvents(other.slice(0, 1))
      for (const commit of [events, events.slice(1), other, [...other.slice(0, 1), ...events.slice(2)]]) {
        expect(yield* Effect.flip(store.commitEvents(commit))).toBeInstanceOf(RetryCommand)
      }
      // A commit with one stored and one new aggregate.
      const fresh = yield* event(newId(), 1)
      expect(yield* Effect.flip(store.commitEvents([fresh, ...events.slice(0, 2)]))).toBeInstanceOf(RetryCommand)
      expect(yield* store.getEvents(fresh.aggregateId, 1)).toEqual([])
      expect(yield* store.getEvents(idOf(events), 1)).toEqual(events.slice(0, 2))
      expect(yield* store.getEvents(idOf(other), 1)).toEqual(other.slice(0, 1))
    }))
]

// --- internal ---

const refused: ReadonlyArray<readonly [what: string, path: string, change: object]> = [
  ...refusedNames.flatMap(([what, text]) => [
    [`an id that is ${what}`, "aggregateId", { aggregateId: text }] as const,
    [`a type that is ${what}`, "type", { type: text }] as const
  ]),
  ...refusedSequences.map((sequence) => [`the sequence ${sequence}`, "sequence", { sequence }] as const),
  ...refusedBodies.flatMap(([what, path, body]) => [
    [`a body with ${what}`, `body${path}`, { body }] as const,
    [`metadata with ${what}`, `metadata${path}`, { metadata: body }] as const
  ]),
  ...refusedNames
    .filter(([, text]) => text !== undefined)
    .map(([what, text]) => [`a correlationId that is ${what}`, "correlationId", { correlationId: text }] as const),
  ...[0, -1, 1.5, 32_768, "1", null].map((version) => [`the version ${version}`, "version", { version }] as const),
  ["a causationId that is none", "causationId", { causationId: "yesterday" }],
  ["an event that it follows that is none", "follows", { follows: "yesterday" }],
  ...["", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", `00-${"0".repeat(32)}-b7ad6b7169203331-01`, 1].map(
    (traceparent) => [`the traceparent ${JSON.stringify(traceparent)}`, "traceparent", { traceparent }] as const
  ),
  ["a timestamp that is none", "timestamp", { timestamp: "yesterday" }],
  ["a timestamp that is missing", "timestamp", { timestamp: undefined }]
]

const byId = (a: Event, b: Event): number => (a.aggregateId < b.aggregateId ? -1 : 1)
