/**
 * The attempts at one event, counted across connections and processes, and when the next attempt begins.
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

/** An event that could not be handled so far. */
export interface Trouble {
  readonly position: Position
  readonly attempts: number
  /** Unknown where the process ended in the last attempt. */
  readonly failure: EventFailure | undefined
  /** Counts an attempt that failed. */
  readonly failed: (failure: EventFailure, cause: Cause.Cause<unknown>) => void
  /** Whether this conflict between transactions is not counted. */
  readonly passesOver: (conflict: StoreError) => boolean
  /** Waits until the next attempt may begin. Returns false if there is none, because the retries are used up or can't succeed. */
  readonly next: Effect.Effect<boolean>
}

export const makeTrouble = (schedule: Schedule.Schedule<unknown>, known: Attempts): Trouble => {
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
    failed: (last, cause) => {
      attempts = last.attempts
      failure = last
      canSucceed = maySucceed(cause)
    },
    passesOver: ({ reason }) => reason === "Contention" && ++conflicts <= uncountedConflicts,
    next: Effect.gen(function* () {
      let wait = 0
      // The attempts of earlier processes are taken from the schedule without their waits.
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

/** As many as a retry of an event that is parked survives. */
const uncountedConflicts = 5

/** An event that the handler's schemas can't read stays so. */
const maySucceed = (cause: Cause.Cause<unknown>): boolean => {
  const error = Option.getOrElse(Cause.failureOption(cause), () => Cause.squash(cause))
  return !(error instanceof StoreError && error.reason === "UnreadableEvent")
}
