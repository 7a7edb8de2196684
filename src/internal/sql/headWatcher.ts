/**
 * One look at the end of the log for all who wait for events: woken by commits and notifications, and by the clock anyway.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import { type Filter, order, type Position } from "../../EventFeed.js"
import type { StoreError } from "../../StoreError.js"
import { withLiveClock } from "../runtime/clock.js"
import { boundedInterruption } from "../runtime/interruption.js"
import { isTransient } from "../runtime/retry.js"
import type { Notifications } from "./notifications.js"

/** What is new after a position. */
export interface HeadChange {
  /** The last event that the feed shows. */
  readonly head: Position
  /** What kinds of events came; none given means any. */
  readonly contents: { readonly types: ReadonlySet<string>; readonly kinds: ReadonlySet<string> } | undefined
}

/**
 * Waits in the scope for what `look` finds, and answers everybody who waits for it. Time is that of the machine, whatever clock the
 * program has: it is the database that is waited for.
 */
export const makeHeadWatcher = (
  look: (since: Position | undefined) => Effect.Effect<HeadChange, StoreError>,
  notifications: Notifications,
  pollInterval: number
): Effect.Effect<(after: Position, filter?: Filter) => Effect.Effect<Position, StoreError>, never, Scope.Scope> => {
  const waiters = new Set<Waiter>()
  let head: Position | undefined
  let signalled = false
  let wakeWatcher: (() => void) | undefined

  const wake = () => {
    const wakeUp = wakeWatcher
    wakeWatcher = undefined
    wakeUp?.()
  }

  const signal = () => {
    signalled = true
    if (waiters.size > 0) wake()
  }

  const answer = (waiter: Waiter, exit: Exit.Exit<Position, StoreError>) => {
    if (waiters.delete(waiter)) waiter.resume(exit)
  }

  /** Until somebody waits. */
  const somebody = Effect.async<void>((resume) => {
    if (waiters.size > 0) return resume(Effect.void)
    wakeWatcher = () => resume(Effect.void)
  })

  /** Until there is a signal, at most for so long. */
  const signalWithin = (millis: number): Effect.Effect<void> =>
    Effect.async<void>((resume) => {
      if (signalled) return resume(Effect.void)
      const done = () => {
        clearTimeout(timer)
        wakeWatcher = undefined
        resume(Effect.void)
      }
      const timer = setTimeout(done, millis)
      wakeWatcher = done
      return Effect.sync(() => clearTimeout(timer))
    })

  /** Answers those whom it concerns, and whether there was anybody. */
  const tell = (news: HeadChange, now: number): boolean => {
    const before = head
    let answered = false
    head = news.head
    for (const waiter of [...waiters]) {
      if (order(news.head, waiter.after) > 0) {
        if (before === undefined || order(waiter.after, before) < 0 || mayConcern(news, waiter.filter)) {
          answer(waiter, Exit.succeed(waiter.after))
          answered = true
          continue
        }
        waiter.after = news.head
        waiter.movedAt ??= now
      }
      // So that who keeps a checkpoint moves it on, though nothing was for him.
      if (waiter.movedAt !== undefined && now - waiter.movedAt >= tellMoved) answer(waiter, Exit.succeed(waiter.after))
    }
    return answered
  }

  const watch = Effect.gen(function* () {
    let patience = firstPatience
    let restUntil = 0
    for (;;) {
      if (waiters.size === 0) {
        yield* somebody
        patience = firstPatience
      }
      // Soon at first: what was signalled may be committed a little later, or be held back by an older transaction.
      yield* signalWithin(patience)
      // Whatever happens, the looks take only a small part of the database's time, and less where what comes is for nobody here; but
      // after a rest one that is called for need not wait.
      const rest = restUntil - (yield* Clock.currentTimeMillis) - restAhead
      if (rest > 0) yield* Effect.sleep(Math.min(rest, mostRest, pollInterval))
      const calledFor = signalled
      // What comes from here on may not be found by the look that begins now.
      signalled = false
      const began = yield* Clock.currentTimeMillis
      const found = yield* Effect.exit(look(head))
      const ended = yield* Clock.currentTimeMillis
      let answered = false
      if (Exit.isSuccess(found)) {
        answered = tell(found.value, ended)
      } else if (found.cause._tag !== "Fail" || !isTransient(found.cause.error)) {
        for (const waiter of [...waiters]) answer(waiter, Exit.failCause(found.cause))
      }
      if (calledFor) {
        restUntil = Math.max(restUntil, ended) + (ended - began) * (answered ? restPerLook : restPerIdleLook)
      }
      patience = calledFor ? firstPatience : Math.min(patience * 3, pollInterval)
    }
  })

  const hear = Effect.gen(function* () {
    let wait = firstReconnect
    for (;;) {
      while (waiters.size === 0) yield* Effect.sleep(firstReconnect)
      const heard = yield* boundedInterruption(notifications.listen(signal))
      wait = heard ? firstReconnect : Math.min(wait * 2, lastReconnect)
      yield* Effect.sleep(wait)
    }
  })

  return Effect.gen(function* () {
    yield* Effect.acquireRelease(
      Effect.sync(() => notifications.onCommit(signal)),
      (stop) => Effect.sync(stop)
    )
    yield* Effect.forkScoped(Effect.withTracerEnabled(withLiveClock(boundedInterruption(watch)), false))
    yield* Effect.forkScoped(withLiveClock(hear))
    return (after, filter) =>
      Effect.async<Position, StoreError>((resume) => {
        if (head !== undefined && order(after, head) < 0) return resume(Effect.succeed(after))
        const waiter: Waiter = { after, filter, movedAt: undefined, resume }
        waiters.add(waiter)
        // What was signalled before has been looked for, or still will be.
        if (head === undefined) signalled = true
        wake()
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

/** How many times as long as a look takes it rests, after one that found something for somebody, and after one that did not. */
const restPerLook = 20
const restPerIdleLook = 80

// In milliseconds.
const firstPatience = 10
/** So much of the rest may be made up for later. */
const restAhead = 80
const mostRest = 100
const tellMoved = 2000
const firstReconnect = 250
const lastReconnect = 60_000

const mayConcern = ({ contents }: HeadChange, filter: Filter | undefined): boolean =>
  contents === undefined ||
  ((filter?.types === undefined || filter.types.some((type) => contents.types.has(type))) &&
    (filter?.kinds === undefined || filter.kinds.some((name) => contents.kinds.has(name))))
