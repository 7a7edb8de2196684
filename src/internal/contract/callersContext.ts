/**
 * The contract of the surroundings of a projection: it has the context and the fiber refs of its own caller.
 */
import { expect } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FiberRef from "effect/FiberRef"
import { StoreAdapter } from "../../StoreAdapter.js"
import { type Case, idOf, macrotask, newId, stream, test } from "./case.js"

/** Stands for a service that an application provides for each request. */
class Tenant extends Context.Reference<Tenant>()("effect-maestro/internal/contract/Tenant", {
  defaultValue: () => "no tenant"
}) {}

const callers = Arr.makeBy(24, (index) => `caller ${index}`)

export const callersContextCases: ReadonlyArray<Case> = [
  test("commitAll: a projection runs in its caller's context, also when many callers commit concurrently", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const request = FiberRef.unsafeMake("no request")
      const seen = new Map<string, ReadonlyArray<string>>()
      const looking = {
        name: "looking",
        project: ({ aggregateId }: { readonly aggregateId: string }) =>
          Effect.gen(function* () {
            yield* macrotask
            seen.set(aggregateId, [yield* Tenant, yield* FiberRef.get(request)])
          })
      }
      const commits = yield* Effect.forEach(
        callers,
        (caller) =>
          Effect.gen(function* () {
            const events = yield* stream(newId(), 1, 1)
            yield* Effect.yieldNow()
            yield* store.commitAll(events, [looking])
            return [idOf(events), caller] as const
          }).pipe(Effect.provideService(Tenant, caller), Effect.locally(request, caller)),
        { concurrency: "unbounded" }
      )
      for (const [id, caller] of commits) expect(seen.get(id)).toEqual([caller, caller])
    })),

  test("commitAll: a fiber ref that a projection sets has the new value for its caller, and for no other", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter
      const request = FiberRef.unsafeMake("no request")
      const marking = {
        name: "marking",
        project: () =>
          Effect.zipRight(
            macrotask,
            FiberRef.update(request, (name) => `${name}, projected`)
          )
      }
      const after = yield* Effect.forEach(
        callers,
        (caller) =>
          Effect.flatMap(stream(newId(), 1, 1), (events) =>
            Effect.zipRight(store.commitAll(events, [marking]), FiberRef.get(request)).pipe(
              Effect.locally(request, caller)
            )
          ),
        { concurrency: "unbounded" }
      )
      expect(after).toEqual(callers.map((caller) => `${caller}, projected`))
    }))
]
