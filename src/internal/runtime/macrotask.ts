/**
 * Turns of the event loop: macrotasks, between which timers and sockets are served.
 *
 * Effect runs fibers by microtasks, and so does PGlite its statements. What never waits for a socket or a timer, such as one command after
 * the other on the store in memory, would keep all others waiting for as long as it goes on. So the stores that are part of this process
 * wait for a macrotask whenever the running one has taken more than a few milliseconds.
 */
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import { SyncScheduler } from "effect/Scheduler"

export const scheduleMacrotask = (go: () => void): unknown =>
  typeof setImmediate === "function" ? setImmediate(go) : setTimeout(go, 0)

/** The next turn of the event loop: what others have made ready to leave has left by then. */
export const macrotask: Effect.Effect<void> = Effect.async((resume) => {
  scheduleMacrotask(() => resume(Effect.void))
})

/** Runs the effect, after the next turn of the event loop where that is due. Not in `Effect.runSync`, which can't wait. */
export const yieldWhenDue = <A, E, R>(
  fiber: Fiber.RuntimeFiber<unknown, unknown>,
  make: () => Effect.Effect<A, E, R>
): Effect.Effect<A, E, R> =>
  isMacrotaskDue() && !(fiber.currentScheduler instanceof SyncScheduler) ? Effect.flatMap(macrotask, make) : make()

/** Whether the running macrotask takes longer than others should wait. It counts from the first call in it. */
export const isMacrotaskDue = (): boolean => {
  const now = performance.now()
  if (isCounting) return now - began > maxMillis
  isCounting = true
  began = now
  scheduleMacrotask(() => {
    isCounting = false
  })
  return false
}

// --- internal ---

/** A turn costs some microseconds, which is far below a hundredth of that. */
const maxMillis = 5

let isCounting = false
let began = 0
