/**
 * The contract of interruption and time limits, one case for each sentence.
 */
import { expect } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type { Event } from "../../Event.js"
import type { Projection } from "../../Projection.js"
import { StoreAdapter, type StoreAdapterService } from "../../StoreAdapter.js"
import { RetryCommand } from "../../StoreError.js"
import { type Case, event, failureOf, idOf, macrotask, newId, passing, snapshot, stream, test } from "./case.js"

export const interruptionCases: ReadonlyArray<Case> = [
  test("commitEvents, commitAll: a commit that is interrupted at any step stores all or nothing", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      for (const steps of Arr.range(0, 80)) {
        const [a, b] = [yield* stream(newId(), 1, 2), yield* stream(newId(), 1, 2)]
        const commit =
          steps % 2 === 0 ? store.commitEvents([...a, ...b]) : store.commitAll([...a, ...b], [passing, passing])
        const fiber = yield* Effect.fork(commit)
        // First by steps of the scheduler, then by macrotasks.
        for (let step = 0; step < steps >> 1; step++) yield* step < 10 ? Effect.yieldNow() : macrotask
        yield* settled(store, fiber, a, b)
      }
      // An interrupted commit does not block the next one.
      yield* Effect.forEach(
        Arr.range(1, 30),
        () => Effect.flatMap(event(newId(), 1), (one) => store.commitEvents([one])),
        { concurrency: "unbounded" }
      )
    })),

  test("commitEvents, commitAll: a commit that is interrupted at any time stores all or nothing", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const [took] = yield* Effect.timed(store.commitAll(yield* stream(newId(), 1, 2), [passing, passing]))
      // Fewer interruptions where a commit takes long.
      const times = Math.min(Math.max(Math.floor(2000 / Math.max(Duration.toMillis(took), 1)), 6), 40)
      for (const time of Arr.range(1, times)) {
        const [a, b] = [yield* stream(newId(), 1, 2), yield* stream(newId(), 1, 2)]
        const commit =
          time % 2 === 0 ? store.commitEvents([...a, ...b]) : store.commitAll([...a, ...b], [passing, passing])
        const fiber = yield* Effect.fork(commit)
        yield* Effect.sleep(Duration.times(took, (1.2 * time) / times))
        yield* settled(store, fiber, a, b)
        // A second commit of the same events settles the first one.
        yield* store.commitEvents([...a, ...b])
        expect(yield* store.getEvents(idOf(a), 1)).toEqual(a)
        expect(yield* store.getEvents(idOf(b), 1)).toEqual(b)
      }
    })),

  test("every operation: after an interruption at any step the next operation works", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      for (const steps of Arr.range(0, 20)) {
        const [id, saved] = [newId(), yield* snapshot(newId(), 3)]
        const commit = yield* stream(id, 1, 2)
        const fibers = [
          yield* Effect.fork(store.commitEvents(commit)),
          yield* Effect.fork(store.commitSnapshot(saved)),
          yield* Effect.fork(store.getEvents(id, 1)),
          yield* Effect.fork(store.getSnapshot(saved.aggregateId, 1))
        ]
        for (let step = 0; step < steps; step++) yield* step < 10 ? Effect.yieldNow() : macrotask
        yield* Fiber.interruptAll(fibers)
        // A second call succeeds, whether or not the interrupted one did, and its records are stored once.
        yield* store.commitEvents(commit)
        yield* store.commitSnapshot(saved)
        expect(yield* store.getEvents(id, 1)).toEqual(commit)
        expect(yield* store.getSnapshot(saved.aggregateId, 1)).toEqual(Option.some(saved))
      }
    })),

  test("every operation: one that waits can be interrupted by a time limit, and then leaves nothing behind", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const id = newId()
      const [started, go] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      const holding: Projection = {
        name: "holding",
        project: () => Effect.zipRight(Deferred.succeed(started, undefined), Deferred.await(go))
      }
      const held = yield* stream(id, 1, 1)
      const holder = yield* Effect.fork(store.commitAll(held, [holding]))
      yield* Deferred.await(started)
      // All operations are on the aggregate of the open commit. One that need not wait for it may end first.
      const late = yield* stream(id, 1, 2)
      const operations: ReadonlyArray<Effect.Effect<unknown, unknown>> = [
        store.commitEvents(late),
        store.commitAll(late, [passing]),
        store.commitSnapshot(yield* snapshot(id, 1)),
        store.getEvents(id, 1),
        store.getSnapshot(id, 1)
      ]
      const answers: Array<Option.Option<Exit.Exit<unknown, unknown>>> = []
      for (const operation of operations) {
        const [took, result] = yield* Effect.timed(Effect.timeoutOption(Effect.exit(operation), "50 millis"))
        // Far longer than an interruption takes.
        expect(Duration.toMillis(took)).toBeLessThan(2000)
        answers.push(result)
      }
      yield* Deferred.succeed(go, undefined)
      const exit = yield* Fiber.await(holder)
      // Where commits wait for locks, the open commit succeeds. Where conflicts are found at the end, the first to end
      // succeeds.
      const [plain, projected] = answers
      const overtaken = [plain, projected].some((answer) => wasStored(answer))
      const stored = yield* store.getEvents(id, 1)
      if (overtaken || Exit.isFailure(exit)) {
        expect(failureOf(exit)).toBeInstanceOf(RetryCommand)
        expect(stored).toEqual(late)
      } else expect(stored).toEqual(held)
      const next = yield* stream(id, stored.length + 1, 1)
      yield* store.commitAll(next, [passing])
      expect(yield* store.getEvents(id, 1)).toEqual([...stored, ...next])
    }))
]

// --- internal ---

/** Interrupts the commit of the two streams. All or nothing is stored, and all if the commit had succeeded before. */
const settled = (
  store: StoreAdapterService,
  commit: Fiber.Fiber<unknown, unknown>,
  a: ReadonlyArray<Event>,
  b: ReadonlyArray<Event>
): Effect.Effect<void, unknown> =>
  Effect.gen(function* () {
    const exit = yield* Fiber.interrupt(commit)
    const found = [yield* store.getEvents(idOf(a), 1), yield* store.getEvents(idOf(b), 1)]
    if (Exit.isSuccess(exit)) expect(found).toEqual([a, b])
    else
      expect([
        [[], []],
        [a, b]
      ]).toContainEqual(found)
  })

const wasStored = (answer: Option.Option<Exit.Exit<unknown, unknown>> | undefined): boolean =>
  answer !== undefined && Option.isSome(answer) && Exit.isSuccess(answer.value)
