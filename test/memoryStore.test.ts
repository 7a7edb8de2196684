/** The store in memory finds the transaction of a fiber. */
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Fiber from "effect/Fiber"
import { type Event, MemoryStore, type Projection, StoreError, Timestamp } from "effect-maestro"

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

const passing: Projection.Projection = { name: "passing", project: () => Effect.yieldNow() }

const event = (aggregateId: string): Effect.Effect<Event.Event> =>
  Effect.gen(function* () {
    const { now } = yield* Timestamp.HybridClock
    return { timestamp: yield* now, aggregateId, sequence: 1, type: "Happened", body: {}, metadata: {} }
  })
