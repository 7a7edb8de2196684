/**
 * The contract of `commitAll`, a case to a sentence.
 */
import { expect } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type { Event } from "../../Event.js"
import type { Projection } from "../../Projection.js"
import { StoreAdapter } from "../../StoreAdapter.js"
import { RetryCommand, ValidationError } from "../../StoreError.js"
import { type Case, idOf, macrotask, mixed, newId, recording, type Settings, snapshot, stream, test } from "./case.js"

export const commitAllCases = ({ lacks }: Settings): ReadonlyArray<Case> => [
  test("commitAll: without projections it is commitEvents", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const events = yield* stream(newId(), 1, 2)
      yield* store.commitAll(events, [])
      yield* store.commitAll(events, [])
      expect(yield* store.getEvents(idOf(events), 1)).toEqual(events)
      expect(yield* Effect.flip(store.commitAll(yield* stream(idOf(events), 2, 1), []))).toBeInstanceOf(RetryCommand)
      expect(yield* Effect.flip(store.commitAll(yield* stream(idOf(events), 0, 1), []))).toBeInstanceOf(ValidationError)
    })),

  test("commitAll: projection by projection, event by event, never two at once", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const [a, b] = [yield* stream(newId(), 1, 2), yield* stream(newId(), 1, 1)]
      const log: Array<string> = []
      const slow = (name: string): Projection => ({
        name,
        project: (one) =>
          Effect.gen(function* () {
            log.push(`${name} begins ${one.aggregateId} ${one.sequence}`)
            yield* macrotask
            log.push(`${name} ends ${one.aggregateId} ${one.sequence}`)
          })
      })
      yield* store.commitAll(mixed(a, b), [slow("first"), slow("second")])
      expect(log).toEqual(
        ["first", "second"].flatMap((projection) =>
          mixed(a, b).flatMap((one) =>
            ["begins", "ends"].map((verb) => `${projection} ${verb} ${one.aggregateId} ${one.sequence}`)
          )
        )
      )
    })),

  test("commitAll: a projection receives the event as it is stored", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const received: Array<Event> = []
      const events = yield* stream(newId(), 1, 3)
      yield* store.commitAll(events, [{ name: "collect", project: (one) => Effect.sync(() => received.push(one)) }])
      expect(received).toEqual(events)
    })),

  test("commitAll: a projection's failure rolls back everything and comes back unchanged", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const events = yield* stream(newId(), 1, 3)
      const failure = { reason: "not today" }
      const ran: Array<string> = []
      const failing: Projection<typeof failure> = {
        name: "failing",
        project: (one) => (one.sequence === 2 ? Effect.fail(failure) : Effect.void)
      }
      const result = yield* Effect.flip(store.commitAll(events, [recording(ran), failing, recording(ran)]))
      // Equal, not the same: inside a span Effect hands failures on as proxies that know the span.
      expect(result).toStrictEqual(failure)
      expect(ran).toHaveLength(3)
      expect(yield* store.getEvents(idOf(events), 1)).toEqual([])
      yield* store.commitAll(events, [recording(ran)])
      expect(yield* store.getEvents(idOf(events), 1)).toEqual(events)
    })),

  test("commitAll: a projection's defect or interruption rolls back everything and stays what it is", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const events = yield* stream(newId(), 1, 2)
      const dying = yield* Effect.exit(store.commitAll(events, [{ name: "dies", project: () => Effect.die("defect") }]))
      expect(dying).toEqual(Exit.die("defect"))
      expect(yield* store.getEvents(idOf(events), 1)).toEqual([])
      const started = yield* Deferred.make<void>()
      const hangs: Projection = {
        name: "hangs",
        project: () => Effect.zipRight(Deferred.succeed(started, undefined), Effect.never)
      }
      const fiber = yield* Effect.fork(store.commitAll(events, [hangs]))
      yield* Deferred.await(started)
      expect(Exit.isInterrupted(yield* Fiber.interrupt(fiber))).toBe(true)
      expect(yield* store.getEvents(idOf(events), 1)).toEqual([])
      yield* store.commitEvents(events)
    })),

  test("commitAll: projections run neither for a commit that is stored already nor for one that is refused", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const events = yield* stream(newId(), 1, 2)
      const ran: Array<string> = []
      yield* store.commitAll(events, [recording(ran)])
      expect(ran).toHaveLength(2)
      yield* store.commitAll(events, [recording(ran)])
      expect(yield* Effect.flip(store.commitAll(yield* stream(idOf(events), 2, 2), [recording(ran)]))).toEqual(
        new RetryCommand({ aggregateId: idOf(events), sequence: 2 })
      )
      expect(yield* Effect.flip(store.commitAll(yield* stream(idOf(events), 4, 2), [recording(ran)]))).toEqual(
        new RetryCommand({ aggregateId: idOf(events), sequence: 4 })
      )
      expect(ran).toHaveLength(2)
    })),

  test("commitAll: until all projections succeeded nobody but they sees the events", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const events = yield* stream(newId(), 1, 2)
      const [seen, started, go] = [
        yield* Deferred.make<ReadonlyArray<Event>, unknown>(),
        yield* Deferred.make<void>(),
        yield* Deferred.make<void>()
      ]
      const looking: Projection = {
        name: "looking",
        project: (one) =>
          Effect.intoDeferred(store.getEvents(one.aggregateId, 1), seen).pipe(
            Effect.zipRight(Deferred.succeed(started, undefined)),
            Effect.zipRight(Deferred.await(go))
          )
      }
      // A store with one connection keeps a reader from outside waiting until the end of the transaction.
      const waits = lacks.includes("concurrentReads")
      const outside = Effect.fork(store.getEvents(idOf(events), 1))
      const fiber = yield* Effect.fork(store.commitAll(events, [looking]))
      yield* Deferred.await(started)
      expect(yield* Deferred.await(seen)).toEqual(events)
      const reader = yield* outside
      if (!waits) expect(yield* Fiber.join(reader)).toEqual([])
      yield* Deferred.succeed(go, undefined)
      yield* Fiber.join(fiber)
      if (waits) expect(yield* Fiber.join(reader)).toEqual(events)
      expect(yield* store.getEvents(idOf(events), 1)).toEqual(events)
    })),

  test("commitAll: what a projection commits to the store is part of the same transaction", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const [inner, snapshotId] = [newId(), newId()]
      const cascading: Projection<unknown> = {
        name: "cascading",
        project: () =>
          Effect.gen(function* () {
            yield* store.commitEvents(yield* stream(inner, 1, 2))
            yield* store.commitSnapshot(yield* snapshot(snapshotId, 1))
            expect(yield* store.getEvents(inner, 1)).toHaveLength(2)
            // A refused commit inside of it breaks nothing.
            expect(yield* Effect.flip(store.commitEvents(yield* stream(inner, 2, 2)))).toBeInstanceOf(RetryCommand)
          })
      }
      const failing: Projection<string> = { name: "failing", project: () => Effect.fail("no") }
      const rolledBack = yield* stream(newId(), 1, 1)
      expect(yield* Effect.flip(store.commitAll(rolledBack, [cascading, failing]))).toBe("no")
      expect(yield* store.getEvents(inner, 1)).toEqual([])
      expect(yield* store.getSnapshot(snapshotId, 0)).toEqual(Option.none())
      yield* store.commitAll(rolledBack, [cascading])
      expect(yield* store.getEvents(inner, 1)).toHaveLength(2)
      expect(Option.isSome(yield* store.getSnapshot(snapshotId, 0))).toBe(true)
      expect(yield* store.getEvents(idOf(rolledBack), 1)).toEqual(rolledBack)
    })),

  test("commitAll: of many at the same sequence one wins, and only its projections count", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const id = newId()
      const commits = yield* Effect.forEach(Arr.range(1, 10), () => stream(id, 1, 2))
      const results = yield* Effect.forEach(
        commits,
        (events) => {
          const ran: Array<string> = []
          return Effect.map(Effect.either(store.commitAll(events, [recording(ran)])), (result) => ({ ran, result }))
        },
        { concurrency: "unbounded" }
      )
      expect(results.filter(({ result }) => Either.isRight(result))).toHaveLength(1)
      for (const { ran, result } of results) {
        expect(ran).toHaveLength(Either.isRight(result) ? 2 : 0)
        if (Either.isLeft(result)) expect(result.left).toBeInstanceOf(RetryCommand)
      }
      expect(yield* store.getEvents(id, 1)).toEqual(commits[results.findIndex(({ result }) => Either.isRight(result))])
    }))
]
