/**
 * Backpressure: callers wait while a queue holds more than its limit. The append batcher uses it.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as FiberId from "effect/FiberId"

export interface Backpressure {
  readonly add: (size: number) => void
  /** At half of the limit the waiting callers go on. */
  readonly remove: (size: number) => void
  readonly isFull: () => boolean
  /** Waits until the queue is not full. */
  readonly awaitRoom: Effect.Effect<void>
}

export const makeBackpressure = (limit: number): Backpressure => {
  let held = 0
  let room: Deferred.Deferred<void> | undefined
  const awaitRoom: Effect.Effect<void> = Effect.suspend(() => {
    if (held <= limit) return Effect.void
    if (room === undefined) room = Deferred.unsafeMake(FiberId.none)
    return Effect.zipRight(Deferred.await(room), awaitRoom)
  })
  return {
    add: (size) => {
      held += size
    },
    remove: (size) => {
      held -= size
      if (room === undefined || held > limit / 2) return
      Deferred.unsafeDone(room, Effect.void)
      room = undefined
    },
    isFull: () => held > limit,
    awaitRoom
  }
}
