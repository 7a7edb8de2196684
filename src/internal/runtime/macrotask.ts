/**
 * Macrotasks: turns of the event loop, between which timers and sockets are served.
 *
 * Effect runs fibers by microtasks, and PGlite its statements. Commands on the store in memory never wait for a socket
 * or a timer, so a series of them would block timers and sockets until its end. So the stores of this process wait for
 * a macrotask when the running one has taken more than a few milliseconds.
 */
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import { SyncScheduler } from "effect/Scheduler"

export const scheduleMacrotask = (go: () => void): unknown =>
  typeof setImmediate === "function" ? setImmediate(go) : setTimeout(go, 0)

/** Waits for the next turn of the event loop. Data that was written to sockets before is sent by then. */
export const macrotask: Effect.Effect<void> = Effect.async((resume) => {
  scheduleMacrotask(() => resume(Effect.void))
})

/** Runs the effect, after a macrotask if one is due. `Effect.runSync` can't wait, so there it runs immediately. */
export const yieldWhenDue = <A, E, R>(
  fiber: Fiber.RuntimeFiber<unknown, unknown>,
  make: () => Effect.Effect<A, E, R>
): Effect.Effect<A, E, R> =>
  isMacrotaskDue() && !(fiber.currentScheduler instanceof SyncScheduler) ? Effect.flatMap(macrotask, make) : make()

/** Whether the running macrotask has taken too long, counted from the first call in it. */
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

/** A macrotask costs some microseconds, which is below a hundredth of this limit. */
const maxMillis = 5

let isCounting = false
let began = 0
