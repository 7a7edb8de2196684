/**
 * The timer of the calls of one client: it wakes a call when its next message is due, or its timeout.
 *
 * One fiber sleeps for all calls, because nearly every call ends long before its time. The fiber sleeps until the first
 * call is due, and ends when it finds no call. So it goes on for `resendAfter` at most after the last call. It ends with
 * the scope of the client, which wakes all calls, because nothing would wake them later.
 *
 * Calls may have different clocks, as those of tests. There is one fiber for each clock.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as FiberId from "effect/FiberId"
import * as Runtime from "effect/Runtime"
import type * as Scope from "effect/Scope"

/** A call that waits. */
export interface WaitingCall {
  /** The time to wake it, in milliseconds of `nowOf`. */
  readonly due: number
  readonly wake: () => void
}

export interface CallTimer {
  /** Wakes the call of the fiber once, by the clock of the fiber, unless it is removed before. */
  readonly add: (fiber: AnyFiber, call: WaitingCall) => void
  readonly remove: (fiber: AnyFiber, call: WaitingCall) => void
  /** Whether the client is closed. Calls are woken immediately then. */
  readonly isClosed: () => boolean
}

type AnyFiber = Fiber.RuntimeFiber<unknown, unknown>

export const makeCallTimer: Effect.Effect<CallTimer, never, Scope.Scope> = Effect.acquireRelease(
  Effect.sync(() => new Timer()),
  ({ close }) => close
)

/** Waits until a time, in milliseconds of `nowOf`, or until the client is closed. */
export const awaitDue = (timer: CallTimer, due: number): Effect.Effect<void> =>
  Effect.withFiberRuntime((fiber) =>
    Effect.async((resume) => {
      const waiting = { due, wake: () => resume(Effect.void) }
      timer.add(fiber, waiting)
      return Effect.sync(() => timer.remove(fiber, waiting))
    })
  )

/** The clock of a fiber. */
export const clockOf = (fiber: AnyFiber): Clock.Clock => Context.get(fiber.currentDefaultServices, Clock.Clock)

/** The time of a clock that never goes back, in milliseconds. */
export const nowOf = (clock: Clock.Clock): number => Number(clock.unsafeCurrentTimeNanos()) / 1e6

// --- internal ---

/** The fiber that sleeps by one clock. */
interface Sleeper {
  readonly clock: Clock.Clock
  readonly calls: Set<WaitingCall>
  /** The time at which the fiber looks for calls that are due. */
  wakesAt: number
  fiber: Fiber.RuntimeFiber<void> | undefined
}

class Timer implements CallTimer {
  private readonly sleepers = new Map<Clock.Clock, Sleeper>()
  private closed = false

  readonly isClosed = (): boolean => this.closed

  readonly add = (fiber: AnyFiber, call: WaitingCall): void => {
    if (this.closed) return call.wake()
    const clock = clockOf(fiber)
    const sleeper = this.sleepers.get(clock) ?? {
      clock,
      calls: new Set(),
      wakesAt: Number.POSITIVE_INFINITY,
      fiber: undefined
    }
    this.sleepers.set(clock, sleeper)
    sleeper.calls.add(call)
    if (call.due >= sleeper.wakesAt) return
    sleeper.fiber?.unsafeInterruptAsFork(FiberId.none)
    sleeper.wakesAt = call.due
    sleeper.fiber = forkLike(fiber, this.sleep(sleeper))
  }

  readonly remove = (fiber: AnyFiber, call: WaitingCall): void => {
    this.sleepers.get(clockOf(fiber))?.calls.delete(call)
  }

  readonly close = Effect.suspend(() => {
    this.closed = true
    const sleepers = [...this.sleepers.values()]
    this.sleepers.clear()
    for (const { calls } of sleepers) wakeDue(calls, Number.POSITIVE_INFINITY)
    return Fiber.interruptAll(sleepers.flatMap(({ fiber }) => fiber ?? []))
  })

  private sleep(sleeper: Sleeper): Effect.Effect<void> {
    return Effect.flatMap(Effect.sleep(Math.max(0, sleeper.wakesAt - nowOf(sleeper.clock))), () => {
      sleeper.wakesAt = wakeDue(sleeper.calls, nowOf(sleeper.clock))
      if (sleeper.calls.size > 0) return this.sleep(sleeper)
      this.sleepers.delete(sleeper.clock)
      return Effect.void
    })
  }
}

/** Wakes the calls that are due. Returns the time at which the first of the others is due. */
const wakeDue = (calls: Set<WaitingCall>, now: number): number => {
  let next = Number.POSITIVE_INFINITY
  for (const call of calls) {
    if (call.due > now) {
      next = Math.min(next, call.due)
      continue
    }
    calls.delete(call)
    call.wake()
  }
  return next
}

/** Starts a fiber with the clock of another one. It outlives that fiber, so it has nothing of its context. */
const forkLike = (fiber: AnyFiber, effect: Effect.Effect<void>): Fiber.RuntimeFiber<void> =>
  Runtime.runFork(
    Runtime.make({
      context: Context.empty(),
      fiberRefs: fiber.getFiberRefs(),
      runtimeFlags: Runtime.defaultRuntimeFlags
    })
  )(effect)
