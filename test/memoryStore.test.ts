/** The store in memory: the transaction of a fiber, wrapped stores, and both kinds of projections. */
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Fiber from "effect/Fiber"
import { type Event, MemoryStore, Projection, type StoreAdapter, StoreError, Timestamp } from "effect-maestro"
import { streamReaderOf } from "../src/internal/store/streamReader.js"

it.effect("of the concurrent commits of a projection at one sequence exactly one succeeds", () =>
  Effect.gen(function* () {
    const store = yield* MemoryStore.make
    const racing: Projection.Projection = {
      name: "racing",
      project: () =>
        Effect.gen(function* () {
          const results = yield* Effect.forEach(
            Arr.range(1, 4),
            () => Effect.flatMap(event("inner"), (one) => Effect.either(store.commitAll([one], [passing]))),
            { concurrency: "unbounded" }
          )
          expect(results.filter(Either.isRight)).toHaveLength(1)
          expect(Arr.getLefts(results)).toEqual(
            Arr.makeBy(3, () => new StoreError.RetryCommand({ aggregateId: "inner", sequence: 1 }))
          )
        })
    }
    yield* store.commitAll([yield* event("outer")], [racing])
    expect(yield* store.getEvents("inner", 1)).toHaveLength(1)
  })
)

it.effect("two stores may commit to each other in their projections", () =>
  Effect.gen(function* () {
    const [a, b] = [yield* MemoryStore.make, yield* MemoryStore.make]
    const [first, second, third] = [yield* event("first"), yield* event("second"), yield* event("third")]
    const back: Projection.Projection<unknown> = { name: "back", project: () => a.commitEvents([third]) }
    const there: Projection.Projection<unknown> = { name: "there", project: () => b.commitAll([second], [back]) }
    yield* a.commitAll([first], [there])
    expect(yield* b.getEvents("second", 1)).toEqual([second])
    expect(yield* a.getEvents("third", 1)).toEqual([third])
  })
)

it.effect("a fiber that outlives its commit reads committed records, and a commit of that transaction is refused", () =>
  Effect.gen(function* () {
    const store = yield* MemoryStore.make
    const [outer, late] = [yield* event("outer"), yield* event("late")]
    const go = yield* Deferred.make<void>()
    let left: Fiber.RuntimeFiber<ReadonlyArray<Event.Event>, unknown> | undefined
    const leaving: Projection.Projection = {
      name: "leaving",
      project: () =>
        Effect.gen(function* () {
          left = yield* Effect.forkDaemon(
            Effect.gen(function* () {
              yield* Deferred.await(go)
              expect(yield* Effect.flip(store.commitEvents([late]))).toMatchObject({ _tag: "StoreError" })
              return yield* store.getEvents("outer", 1)
            })
          )
        })
    }
    yield* store.commitAll([outer], [leaving])
    yield* Deferred.succeed(go, undefined)
    expect(left === undefined ? undefined : yield* Fiber.join(left)).toEqual([outer])
    expect(yield* store.getEvents("late", 1)).toEqual([])
  })
)

it.effect("a wrapped store is read by its own getEvents, and otherwise by its reader of pages", () =>
  Effect.gen(function* () {
    const store = yield* MemoryStore.make
    expect(streamReaderOf(store)).toBe(store.streamReader)
    const silent: StoreAdapter.StoreAdapterService = { ...store, commitEvents: () => Effect.void }
    expect(streamReaderOf(silent)).toBe(store.streamReader)
    let reads = 0
    const counting: StoreAdapter.StoreAdapterService = {
      ...store,
      getEvents: (...args) => {
        reads++
        return store.getEvents(...args)
      }
    }
    yield* streamReaderOf(counting).page("a", 1, 10)
    yield* streamReaderOf(counting).fromSnapshot("a", 10, 10)
    yield* streamReaderOf(counting).exists("a")
    expect(reads).toBe(3)
  })
)

it.effect("a projection has either an effect or statements", () =>
  Effect.gen(function* () {
    const store = yield* MemoryStore.make
    const statements: Projection.SqlProjection = { name: "statements", statements: () => Effect.succeed([]) }
    yield* store.commitAll([yield* event("a")], [statements])
    // @ts-expect-error the statements would be those of another projection
    const both: Projection.Projection = { ...statements, project: () => Effect.void }
    for (const untyped of [both, { name: "neither" } as Projection.Projection.Any]) {
      expect(yield* Effect.flip(store.commitAll([yield* event("b")], [untyped]))).toMatchObject({
        _tag: "ValidationError",
        issues: [{ path: ["projections"] }]
      })
    }
    const effectful = Projection.toEffect(statements)
    const ran: Array<string> = []
    const wrapped: Projection.Projection<unknown> = {
      ...effectful,
      project: (one) =>
        Effect.zipRight(
          Effect.sync(() => ran.push(one.aggregateId)),
          effectful.project(one)
        )
    }
    yield* store.commitAll([yield* event("b")], [wrapped])
    expect(ran).toEqual(["b"])
  })
)

const passing: Projection.Projection = { name: "passing", project: () => Effect.yieldNow() }

const event = (aggregateId: string): Effect.Effect<Event.Event> =>
  Effect.gen(function* () {
    const { now } = yield* Timestamp.HybridClock
    return { timestamp: yield* now, aggregateId, sequence: 1, type: "Happened", version: 1, body: {}, metadata: {} }
  })
