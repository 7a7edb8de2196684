/** Correct stores that work unlike the stores of this library. The contract must pass them. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { MemoryStore, type StoreAdapter } from "effect-maestro"
import { makeOverlapping } from "./overlappingStore.js"

type Store = StoreAdapter.StoreAdapterService

/** Every commit waits first, and can be interrupted meanwhile. */
const after = (pause: Effect.Effect<void>) =>
  Effect.map(
    MemoryStore.make,
    (store): Store => ({
      ...store,
      commitAll: (events, projections) => Effect.zipRight(pause, store.commitAll(events, projections)),
      commitEvents: (events) => Effect.zipRight(pause, store.commitEvents(events)),
      commitSnapshot: (snapshot) => Effect.zipRight(pause, store.commitSnapshot(snapshot))
    })
  )

/** Every commit takes 10 ms more, as over a slow network, by a timer of the machine. */
export const isFarAway: Effect.Effect<Store> = after(
  Effect.async<void>((resume) => {
    const timer = setTimeout(() => resume(Effect.void), 10)
    return Effect.sync(() => clearTimeout(timer))
  })
)

/** Every commit fails at first and is retried later. */
export const retriesCommits: Effect.Effect<Store> = after(
  Effect.suspend(() => {
    let tries = 0
    return Effect.retry(
      Effect.suspend(() => (tries++ < 2 ? Effect.fail("busy") : Effect.void)),
      Schedule.exponential("1 millis")
    ).pipe(Effect.orDie)
  })
)

/** Commits wait for a moment, so that others can join them. */
export const batchesCommits: Effect.Effect<Store> = Effect.sync(() => {
  let open: Deferred.Deferred<void> | undefined
  return Effect.suspend(() => {
    if (open !== undefined) return Deferred.await(open)
    return Effect.flatMap(Deferred.make<void>(), (batch) => {
      open = batch
      const commit = Effect.suspend(() => {
        open = undefined
        return Deferred.succeed(batch, undefined)
      })
      return Effect.zipRight(
        Effect.forkDaemon(Effect.zipRight(Effect.sleep("1 millis"), commit)),
        Deferred.await(batch)
      )
    })
  })
}).pipe(Effect.flatMap(after))

/**
 * Commits do not wait for each other. A conflict is found at the end of the commit, after another one has succeeded.
 */
export const findsConflictsAtTheEnd: Effect.Effect<Store> = Effect.sync(() => makeOverlapping())
