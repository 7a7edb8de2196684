/**
 * Runs so many effects at a time, in the order of arrival. `sql/commit/appendEvents.ts` uses it.
 *
 * Effect's semaphore is not fair: a fiber that gives its permit back and takes one again overtakes the fibers that wait.
 */
import * as Effect from "effect/Effect"

export const makeTurns = (permits: number): (<A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>) => {
  let free = permits
  const waiters = new Set<Waiter>()

  const give = (): void => {
    for (const waiter of waiters) {
      waiters.delete(waiter)
      waiter.hasTurn = true
      return waiter.resume()
    }
    free++
  }

  const turnOf = (waiter: Waiter) =>
    Effect.async<void>((resume) => {
      waiter.resume = () => resume(Effect.void)
      if (waiter.hasTurn) waiter.resume()
    })
  /** Leaves the line. A turn that comes together with an interruption goes on to the next. */
  const leave = (waiter: Waiter) =>
    Effect.sync(() => {
      if (!waiters.delete(waiter)) give()
    })

  return (effect) =>
    Effect.uninterruptibleMask((restore) =>
      Effect.suspend(() => {
        const turn = Effect.ensuring(restore(effect), Effect.sync(give))
        if (free > 0) {
          free--
          return turn
        }
        const waiter: Waiter = { hasTurn: false, resume: () => {} }
        waiters.add(waiter)
        // An interruption may come at any step of the wait, so the waiter is in line before it.
        const waiting = Effect.onInterrupt(restore(turnOf(waiter)), () => leave(waiter))
        return Effect.zipRight(waiting, turn)
      })
    )
}

// --- internal ---

interface Waiter {
  hasTurn: boolean
  resume: () => void
}
