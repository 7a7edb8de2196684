/**
 * The attempts at one event: how many there were, across connections and processes, and when the next one begins.
 * `handleOne.ts` uses it.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Schedule from "effect/Schedule"
import * as ScheduleDecision from "effect/ScheduleDecision"
import * as ScheduleIntervals from "effect/ScheduleIntervals"
import type { Position } from "../../EventFeed.js"
import { StoreError } from "../../StoreError.js"
import type { Attempts, EventFailure } from "../../SubscriptionStore.js"

/** The attempts at an event that is not handled yet. */
export interface EventAttempts {
  readonly position: Position
  readonly attempts: number
  /** The last failure. Undefined where the process ended in the last attempt. */
  readonly failure: EventFailure | undefined
  /** Counts a failed attempt. */
  readonly recordFailure: (failure: EventFailure, cause: Cause.Cause<unknown>) => void
  /**
   * Whether the attempt does not count, because a conflict between transactions ended it. Only the first few conflicts
   * are spared.
   */
  readonly sparesConflict: (error: StoreError | undefined) => boolean
  /**
   * Waits until the next attempt may begin. Returns false if there is none, because the retries are used up or can't
   * succeed.
   */
  readonly awaitNext: Effect.Effect<boolean>
}

export const makeEventAttempts = (schedule: Schedule.Schedule<unknown>, known: Attempts): EventAttempts => {
  let { attempts } = known
  let failure: EventFailure | undefined
  let canSucceed = true
  let conflicts = 0
  let steps = 0
  let state: unknown = schedule.initial
  return {
    position: known.position,
    get attempts() {
      return attempts
    },
    get failure() {
      return failure
    },
    recordFailure: (last, cause) => {
      attempts = last.attempts
      failure = last
      canSucceed = !isUnreadable(cause)
    },
    sparesConflict: (error) => error?.reason === "Contention" && ++conflicts <= sparedConflicts,
    awaitNext: Effect.gen(function* () {
      let wait = 0
      // The schedule steps over the attempts of earlier processes without their waits.
      while (canSucceed && steps < attempts) {
        const now = yield* Clock.currentTimeMillis
        const [after, , decision] = yield* schedule.step(now, failure, state)
        if (ScheduleDecision.isDone(decision)) {
          canSucceed = false
        } else {
          state = after
          steps++
          wait = ScheduleIntervals.start(decision.intervals) - now
        }
      }
      if (canSucceed && wait > 0) yield* Effect.sleep(wait)
      return canSucceed
    })
  }
}

// --- internal ---

/** `SubscriptionStore.retryParked` of the SQL store survives as many. */
const sparedConflicts = 5

/** Whether the handler's schemas can't read the event. Another attempt would fail likewise. */
const isUnreadable = (cause: Cause.Cause<unknown>): boolean => {
  const error = Option.getOrElse(Cause.failureOption(cause), () => Cause.squash(cause))
  return error instanceof StoreError && error.reason === "UnreadableEvent"
}
