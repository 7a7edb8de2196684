/**
 * The aggregates that this process knows: for each one whose turn it is, the state that is kept of it, and the commands that were
 * decided on it and will be committed together.
 */
import * as Context from "effect/Context"
import type * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import type { Event } from "../../Event.js"
import type { Loaded } from "./loadState.js"

/** How many states are kept, and for how long without use. */
export interface CacheLimits {
  readonly capacity: number
  readonly idleTimeToLive: Duration.Duration
}

/** Commands of one aggregate, decided one on the other, that are committed together. */
export interface Group<State> {
  /** The state after the last. */
  root: Loaded<State>
  readonly events: Array<Event>
  /** How many commands, those that came to no event too. */
  members: number
  /** How many callers still wait. */
  live: number
  /** Nobody may join any more: it is being committed, or was. */
  sealed: boolean
  fiber: Fiber.RuntimeFiber<unknown, unknown> | undefined
  /** What became of it. */
  readonly done: Deferred.Deferred<Exit.Exit<void, unknown>>
}

/** The place of one aggregate. */
export interface AggregateEntry<State> {
  readonly streamId: string
  /** The newest state that is known to have been stored; of an id that was made here, the one before its first event. */
  kept: Loaded<State> | undefined
  /** Whether the kept state is known to be behind the store, or may be. */
  stale: boolean
  usedAt: number
  taken: boolean
  /** Who waits for the turn, in order of arrival. */
  readonly waiting: Set<() => void>
  /** What was decided by those who had the turn before, and is not yet known to be stored. */
  group: Group<State> | undefined
}

export interface StateCache<State> {
  /** The aggregate's place, made where it has none. It must be taken, kept in or released: places without use are removed. */
  readonly at: (streamId: string, now: number) => AggregateEntry<State>
  /** The state that is kept of the aggregate, if one is. */
  readonly kept: (streamId: string, now: number) => Loaded<State> | undefined
  /** Keeps a state that was read outside of a turn. */
  readonly keep: (root: Loaded<State>, instead: Loaded<State> | undefined, now: number) => void
  /** The place is not used any more for now. */
  readonly leave: (seat: AggregateEntry<State>) => void
}

/** Says whether the turn was given, whatever became of the one who waited for it. */
export interface Ticket {
  holds: boolean
}

/**
 * Waits for the turn. The ticket tells whether it came; interrupted waiting may still have got it, when both happen at once, so
 * whoever waited looks at the ticket, and passes the turn on.
 */
export const waitForTurn = <State>(seat: AggregateEntry<State>, ticket: Ticket): Effect.Effect<void> =>
  Effect.async<void>((resume) => {
    const waiter = () => {
      ticket.holds = true
      resume(Effect.void)
    }
    seat.waiting.add(waiter)
    return Effect.sync(() => {
      seat.waiting.delete(waiter)
    })
  })

/** Gives the turn to the one who has waited longest; answers whether there was one. */
export const passTurn = <State>(seat: AggregateEntry<State>): boolean => {
  for (const next of seat.waiting) {
    seat.waiting.delete(next)
    next()
    return true
  }
  return false
}

/** `first` tells the state of an aggregate that nobody can have written to yet, where it is one. */
export const makeStateCache = <State>(
  keeping: CacheLimits,
  first: (streamId: string) => Loaded<State> | undefined,
  currentTimeMillis: Effect.Effect<number>
): Effect.Effect<StateCache<State>, never, Scope.Scope> => {
  // In order of use, the longest unused first.
  const seats = new Map<string, AggregateEntry<State>>()
  const idle = Duration.toMillis(keeping.idleTimeToLive)

  // One walk through them for all that have to go: a new one would begin with the gaps that those who went have left.
  let walk = seats.values()
  const removeOldest = (): void => {
    for (let tries = 2; seats.size > keeping.capacity; ) {
      const { done, value: oldest } = walk.next()
      if (done === true) {
        if (--tries === 0) return
        walk = seats.values()
      } else if (!inUse(oldest)) seats.delete(oldest.streamId)
    }
  }

  const inUse = (seat: AggregateEntry<State>): boolean => seat.taken || seat.group !== undefined

  const at = (streamId: string, now: number): AggregateEntry<State> => {
    const known = seats.get(streamId)
    if (known === undefined) {
      const seat = {
        streamId,
        // With nothing to be kept, nothing is trusted either.
        kept: keeping.capacity === 0 ? undefined : first(streamId),
        stale: false,
        usedAt: now,
        taken: false,
        waiting: new Set<() => void>(),
        group: undefined
      }
      seats.set(streamId, seat)
      return seat
    }
    if (now - known.usedAt > idle && !inUse(known)) known.kept = undefined
    known.usedAt = now
    return known
  }

  const leave = (seat: AggregateEntry<State>): void => {
    if (inUse(seat)) return
    seats.delete(seat.streamId)
    if (seat.kept === undefined || keeping.capacity === 0) return
    seats.set(seat.streamId, seat)
    removeOldest()
  }

  const sweep = Effect.map(currentTimeMillis, (now) => {
    for (const seat of seats.values()) {
      if (now - seat.usedAt > idle && !inUse(seat)) seats.delete(seat.streamId)
    }
  })

  const sweeping = Effect.forkScoped(Effect.interruptible(Effect.forever(Effect.zipRight(pause(idle / 2), sweep))))
  // Whoever still holds the service of a layer that is closed does not hold its states.
  const emptying = Effect.addFinalizer(() =>
    Effect.sync(() => {
      seats.clear()
      // One that has begun holds what it walked through.
      walk = seats.values()
    })
  )
  return Effect.as(Effect.zipRight(sweeping, emptying), {
    at,
    leave,
    kept: (streamId, now) => {
      const seat = seats.get(streamId)
      return seat === undefined || now - seat.usedAt > idle ? undefined : seat.kept
    },
    keep: (root, instead, now) => {
      const seat = at(root.streamId, now)
      if (seat.kept === instead || seat.kept === undefined || seat.kept.sequence < root.sequence) {
        seat.kept = root
        seat.stale = false
      }
      leave(seat)
    }
  })
}

/** The streams of the aggregates whose commands this fiber is deciding: a handler may evaluate a command of another aggregate, and so on. */
export class DecidingOn extends Context.Reference<DecidingOn>()("effect-maestro/internal/DecidingOn", {
  defaultValue: (): ReadonlyArray<string> => []
}) {}

// --- internal ---

/**
 * Of the machine's time, and such that no process stays alive for it: this is about memory only. What is too old by the program's
 * own clock is not used in any case.
 */
const pause = (millis: number): Effect.Effect<void> =>
  Effect.async((resume) => {
    const timer = setTimeout(() => resume(Effect.void), Math.min(Math.max(millis, 1000), 3_600_000))
    // Browsers have numbers for timers.
    timer.unref?.()
    return Effect.sync(() => clearTimeout(timer))
  })
