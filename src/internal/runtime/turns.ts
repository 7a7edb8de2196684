/**
 * Runs so many effects at a time, in the order of arrival. `sql/commit/appendEvents.ts` uses it.
 *
 * Effect's semaphore is not fair: a fiber that gives its permit back and takes one again overtakes the fibers that wait.
 */
import * as Effect from "effect/Effect"

export const makeTurns = (permits: number): (<A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>) => {
  let free = permits
  const waiters = new Set<() => void>()

  const give = (): void => {
    for (const waiter of waiters) {
      waiters.delete(waiter)
      return waiter()
    }
    free++
  }

  const take = Effect.async<void>((resume) => {
    if (free > 0) {
      free--
      return resume(Effect.void)
    }
    const waiter = () => resume(Effect.void)
    waiters.add(waiter)
    // A permit that came with the interruption goes on to the next.
    return Effect.sync(() => {
      if (!waiters.delete(waiter)) give()
    })
  })

  return (effect) =>
    Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(restore(take), () => Effect.ensuring(restore(effect), Effect.sync(give)))
    )
}
