/** Stores that are right, and work unlike those of this library: what the contract does not forbid its cases must let pass. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { MemoryStore, type StoreAdapter } from "effect-maestro"
import { makeOverlapping } from "./overlappingStore.js"

type Store = StoreAdapter.StoreAdapterService

/** Every commit takes so long, and can be interrupted meanwhile. */
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

/** As far away as the next data centre but one. By a timer of the machine, as a driver has it. */
export const isFarAway: Effect.Effect<Store> = after(
  Effect.async<void>((resume) => {
    const timer = setTimeout(() => resume(Effect.void), 10)
    return Effect.sync(() => clearTimeout(timer))
  })
)

/** Every commit fails at first, and is tried again a little later. */
export const triesAgain: Effect.Effect<Store> = after(
  Effect.suspend(() => {
    let tries = 0
    return Effect.retry(
      Effect.suspend(() => (tries++ < 2 ? Effect.fail("busy") : Effect.void)),
      Schedule.exponential("1 millis")
    ).pipe(Effect.orDie)
  })
)

/** Commits wait for a moment, so that others can join them. */
export const waitsForCompany: Effect.Effect<Store> = Effect.sync(() => {
  let leaving: Deferred.Deferred<void> | undefined
  return Effect.suspend(() => {
    if (leaving !== undefined) return Deferred.await(leaving)
    return Effect.flatMap(Deferred.make<void>(), (company) => {
      leaving = company
      const leave = Effect.suspend(() => {
        leaving = undefined
        return Deferred.succeed(company, undefined)
      })
      return Effect.zipRight(
        Effect.forkDaemon(Effect.zipRight(Effect.sleep("1 millis"), leave)),
        Deferred.await(company)
      )
    })
  })
}).pipe(Effect.flatMap(after))

/** Nobody waits for anybody: whether a commit fits is seen at its end, when somebody else may have been faster. */
export const findsConflictsAtTheEnd: Effect.Effect<Store> = Effect.sync(() => makeOverlapping())
