/**
 * One look at the end of the log for all who wait for events: woken by commits and notifications, and by the clock anyway.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import { type Filter, order, type Position } from "../EventFeed.js"
import type { StoreError } from "../StoreError.js"
import { promptly } from "./promptly.js"
import { isPassing } from "./settling.js"
import type { WakeUps } from "./wakeUps.js"

/** What is new after a position. */
export interface News {
  /** The last event that the feed shows. */
  readonly head: Position
  /** What kinds of events came; none given means any. */
  readonly kinds: { readonly types: ReadonlySet<string>; readonly aggregates: ReadonlySet<string> } | undefined
}

/**
 * Waits in the scope for what `look` finds, and answers everybody who waits for it. Time is that of the machine, whatever clock the
 * program has: it is the database that is waited for.
 */
export const makeWatch = (
  look: (since: Position | undefined) => Effect.Effect<News, StoreError>,
  wakeUps: WakeUps,
  pollInterval: number
): Effect.Effect<(after: Position, filter?: Filter) => Effect.Effect<Position, StoreError>, never, Scope.Scope> => {
  const waiters = new Set<Waiter>()
  let head: Position | undefined
  let signalled = false
  let wakeWatcher: (() => void) | undefined

  const signal = () => {
    signalled = true
    const wake = wakeWatcher
    wakeWatcher = undefined
    wake?.()
  }

  const answer = (waiter: Waiter, exit: Exit.Exit<Position, StoreError>) => {
    if (waiters.delete(waiter)) waiter.resume(exit)
  }

  /** Until there is a signal, at most for so long. */
  const signalWithin = (millis: number): Effect.Effect<void> =>
    Effect.async<void>((resume) => {
      if (signalled) return resume(Effect.void)
      const timer = Number.isFinite(millis) ? setTimeout(() => done(), millis) : undefined
      const done = () => {
        clearTimeout(timer)
        wakeWatcher = undefined
        resume(Effect.void)
      }
      wakeWatcher = done
      return Effect.sync(() => clearTimeout(timer))
    })

  const tell = (news: News, now: number) => {
    const before = head
    head = news.head
    for (const waiter of [...waiters]) {
      if (order(news.head, waiter.after) > 0) {
        if (before === undefined || order(waiter.after, before) < 0 || mayConcern(news, waiter.filter)) {
          answer(waiter, Exit.succeed(waiter.after))
          continue
        }
        waiter.after = news.head
        waiter.movedAt ??= now
      }
      // So that who keeps a checkpoint moves it on, though nothing was for him.
      if (waiter.movedAt !== undefined && now - waiter.movedAt >= tellMoved) answer(waiter, Exit.succeed(waiter.after))
    }
  }

  const watch = Effect.gen(function* () {
    let patience = firstPatience
    for (;;) {
      if (waiters.size === 0) {
        yield* signalWithin(Number.POSITIVE_INFINITY)
        if (waiters.size === 0) {
          signalled = false
          continue
        }
      }
      // What comes from here on may not be found by the look that begins now.
      signalled = false
      const began = yield* Clock.currentTimeMillis
      const found = yield* Effect.exit(look(head))
      const ended = yield* Clock.currentTimeMillis
      if (Exit.isSuccess(found)) {
        tell(found.value, ended)
      } else if (found.cause._tag !== "Fail" || !isPassing(found.cause.error)) {
        for (const waiter of [...waiters]) answer(waiter, Exit.failCause(found.cause))
      }
      // Whatever happens, the looks take only a small part of the database's time.
      yield* Effect.sleep(Math.min(Math.max((ended - began) * restPerLook, leastGap), mostGap, pollInterval))
      // Soon at first: what was signalled may be committed a little later, or be held back by an older transaction.
      patience = signalled ? firstPatience : Math.min(patience * 2, pollInterval)
      yield* signalWithin(patience)
    }
  })

  const hear = Effect.gen(function* () {
    let wait = firstReconnect
    for (;;) {
      while (waiters.size === 0) yield* Effect.sleep(firstReconnect)
      const heard = yield* promptly(wakeUps.listen(signal))
      wait = heard ? firstReconnect : Math.min(wait * 2, lastReconnect)
      yield* Effect.sleep(wait)
    }
  })

  return Effect.gen(function* () {
    yield* Effect.acquireRelease(
      Effect.sync(() => wakeUps.onCommit(signal)),
      (stop) => Effect.sync(stop)
    )
    yield* Effect.forkScoped(Effect.withTracerEnabled(Effect.withClock(promptly(watch), Clock.make()), false))
    yield* Effect.forkScoped(Effect.withClock(hear, Clock.make()))
    return (after, filter) =>
      Effect.async<Position, StoreError>((resume) => {
        if (head !== undefined && order(after, head) < 0) return resume(Effect.succeed(after))
        const waiter: Waiter = { after, filter, movedAt: undefined, resume }
        waiters.add(waiter)
        signal()
        return Effect.sync(() => waiters.delete(waiter))
      })
  })
}

// --- internal ---

interface Waiter {
  after: Position
  readonly filter: Filter | undefined
  /** Since when there is something behind `after` that was not for this one. */
  movedAt: number | undefined
  readonly resume: (exit: Exit.Exit<Position, StoreError>) => void
}

/** How many times as long as a look takes it rests. */
const restPerLook = 20

// In milliseconds.
const firstPatience = 2
const leastGap = 5
const mostGap = 50
const tellMoved = 2000
const firstReconnect = 250
const lastReconnect = 60_000

const mayConcern = ({ kinds }: News, filter: Filter | undefined): boolean =>
  kinds === undefined ||
  ((filter?.types === undefined || filter.types.some((type) => kinds.types.has(type))) &&
    (filter?.aggregates === undefined || filter.aggregates.some((name) => kinds.aggregates.has(name))))
