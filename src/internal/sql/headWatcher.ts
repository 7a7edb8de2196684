/**
 * Watches the head of the feed for all readers that wait for events. `feed.ts` makes one for each store.
 *
 * A signal has the types and kinds of its events. It wakes the waiters whose filter may let one of them through. These read their page
 * without a poll before it, which would only find what the signal has said. Other waiters sleep on, so they cost a commit no statement.
 *
 * A signal is a hint, so the watcher also polls the head at the poll interval. After a wake-up it polls with short delays that grow, because the
 * event of a signal may be held back, or be committed a little later. A signal of unknown events triggers a poll.
 *
 * Wake-ups are paced: a burst of signals wakes in batches, and a signal after a rest wakes immediately. The watcher uses the live clock,
 * because it waits for a database.
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
import { type Contents, mayMatch, type Signal, SignalLog } from "./signal.js"

/** The events that the feed shows after a position. */
export interface HeadChange {
  /** The position of the last one. */
  readonly head: Position
  readonly contents: Contents
  /** Whether there may be more of them. */
  readonly more: boolean
  /** Whether the log has lost the event at the position. The head may be before the position then. */
  readonly isLost?: boolean
}

/** How readers wait. */
export interface HeadWatcher {
  /** `EventFeedService.awaitAppend`. */
  readonly awaitAppend: (after: Position, filter?: Filter) => Effect.Effect<Position, StoreError>
  /** The number of signals until now. */
  readonly signals: () => number
  /** A read that began after so many signals has found the end of the feed at the position. */
  readonly endRead: (position: Position, signals: number) => void
}

/**
 * Starts the watcher in the scope. `poll` reads what the feed shows after a position; without one it reads the head.
 */
export const makeHeadWatcher = (
  poll: (since: Position | undefined) => Effect.Effect<HeadChange, StoreError>,
  notifications: Pick<Notifications, "listen" | "onCommit">,
  pollInterval: number
): Effect.Effect<HeadWatcher, never, Scope.Scope> => {
  const waiters = new Set<Waiter>()
  const signals = new SignalLog()
  /** For the ends of recent reads, how many signals had come when they began. */
  const reads = new Map<Position, number>()
  let head: Position | undefined
  let isPollDue = false
  /** Whether a waiter is to be resumed without a poll. */
  let isWakeDue = false
  let pollDelay = firstPollDelay
  let polledAt = 0
  /** When the next poll without a signal is due, by `performance.now`. */
  let pollAt = 0
  /** When the next wake-up by a signal is due at its pace. It may come earlier by `paceCredit`. */
  let nextWake = 0
  let wakeWatcher: (() => void) | undefined

  const wake = () => {
    const resume = wakeWatcher
    wakeWatcher = undefined
    resume?.()
  }

  /** Begins with short delays again, because the event of a signal may be held back, or be committed a little later. */
  const pollSoon = () => {
    pollDelay = firstPollDelay
    pollAt = Math.min(pollAt, Math.max(performance.now() + firstPollDelay, polledAt + shortestPollPause))
  }

  const resumeWaiter = (waiter: Waiter, exit: Exit.Exit<Position, StoreError>) => {
    if (waiters.delete(waiter)) waiter.resume(exit)
  }

  const resumeSignalled = () => {
    isWakeDue = false
    nextWake = Math.max(nextWake, performance.now()) + wakePause
    for (const waiter of [...waiters]) if (waiter.isSignalled) resumeWaiter(waiter, Exit.succeed(waiter.after))
    pollSoon()
  }

  const signal = ({ contents, isOpen }: Signal) => {
    // The first waiter polls for all that has come before.
    if (head === undefined && waiters.size === 0) return
    signals.add(contents)
    let concernsAny = false
    for (const waiter of waiters) {
      if (!mayMatch(contents, waiter.filter)) continue
      concernsAny = true
      if (contents === undefined) isPollDue = true
      else if (!isOpen) waiter.isSignalled = isWakeDue = true
    }
    if (!concernsAny) return
    pollSoon()
    // Not by the watcher, which may be waiting for a poll.
    if (isWakeDue && performance.now() >= nextWake - paceCredit) resumeSignalled()
    wake()
  }

  const awaitWaiter = Effect.async<void>((resume) => {
    if (waiters.size > 0) return resume(Effect.void)
    wakeWatcher = () => resume(Effect.void)
  })

  /** Waits until a poll or a wake-up is due, and returns whether a signal is the reason. */
  const awaitDue: Effect.Effect<boolean> = Effect.async<boolean>((resume) => {
    if (isPollDue || isWakeDue) return resume(Effect.succeed(true))
    const millis = pollAt - performance.now()
    if (millis <= 0) return resume(Effect.succeed(false))
    const timer = setTimeout(wake, millis)
    wakeWatcher = () => {
      clearTimeout(timer)
      resume(awaitDue)
    }
    return Effect.sync(() => clearTimeout(timer))
  })

  /** Resumes the waiters that the change may concern. */
  const notifyWaiters = (change: HeadChange, now: number): void => {
    const before = head
    head = change.head
    for (const waiter of [...waiters]) {
      // Its position may be lost, too. The read of its page finds that out.
      if (change.isLost === true) {
        resumeWaiter(waiter, Exit.succeed(waiter.after))
        continue
      }
      if (order(change.head, waiter.after) > 0) {
        if (before === undefined || order(waiter.after, before) < 0 || mayMatch(change.contents, waiter.filter)) {
          resumeWaiter(waiter, Exit.succeed(waiter.after))
          continue
        }
        waiter.after = change.head
        waiter.movedAt ??= now
      }
      // A reader with a checkpoint moves it on, though no event is for it.
      if (waiter.movedAt !== undefined && now - waiter.movedAt >= reportMoveAfter) {
        resumeWaiter(waiter, Exit.succeed(waiter.after))
      }
    }
  }

  /** Polls, resumes waiters, and returns whether there is more to poll for. A permanent failure fails all waiters. */
  const pollOnce = Effect.gen(function* () {
    const exit = yield* Effect.exit(poll(head))
    if (Exit.isSuccess(exit)) {
      notifyWaiters(exit.value, yield* Clock.currentTimeMillis)
      return exit.value.more
    }
    if (exit.cause._tag !== "Fail" || !isTransient(exit.cause.error)) {
      for (const waiter of [...waiters]) resumeWaiter(waiter, Exit.failCause(exit.cause))
    }
    return false
  })

  const watch = Effect.gen(function* () {
    for (;;) {
      if (waiters.size === 0) {
        yield* awaitWaiter
        pollSoon()
      }
      const isTriggered = yield* awaitDue
      const early = isTriggered ? nextWake - paceCredit - performance.now() : 0
      if (early > 0) yield* Effect.sleep(Math.min(early, pollInterval))
      const began = performance.now()
      if (isWakeDue) resumeSignalled()
      if (isPollDue || began >= pollAt) {
        // Cleared before the poll, because the poll may miss an event that is signalled while it runs.
        isPollDue = false
        const more = yield* pollOnce
        polledAt = performance.now()
        pollDelay = isTriggered || more ? firstPollDelay : Math.min(pollDelay * 3, pollInterval)
        pollAt = polledAt + pollDelay
        const pause = Math.min(Math.max((polledAt - began) * pollPauseFactor, wakePause), maxPause)
        if (isTriggered) nextWake = Math.max(nextWake, began) + pause
      }
    }
  })

  /**
   * Listens to notifications while a reader waits, and listens again with growing delays where the connection could not
   * be made.
   */
  const listen = Effect.gen(function* () {
    let delay = firstListenDelay
    for (;;) {
      while (waiters.size === 0) yield* Effect.sleep(firstListenDelay)
      const hasListened = yield* boundedInterruption(notifications.listen(signal))
      delay = hasListened ? firstListenDelay : Math.min(delay * 2, longestListenDelay)
      yield* Effect.sleep(delay)
    }
  })

  return Effect.gen(function* () {
    yield* Effect.acquireRelease(
      Effect.sync(() => notifications.onCommit(signal)),
      (stop) => Effect.sync(stop)
    )
    yield* Effect.forkScoped(Effect.withTracerEnabled(withLiveClock(boundedInterruption(watch)), false))
    yield* Effect.forkScoped(withLiveClock(listen))
    return {
      awaitAppend: (after, filter) =>
        Effect.async<Position, StoreError>((resume) => {
          if (head !== undefined && order(after, head) < 0) return resume(Effect.succeed(after))
          const waiter: Waiter = { after, filter, movedAt: undefined, isSignalled: false, resume }
          waiters.add(waiter)
          // A signal since the read began may be of an event that the read did not see.
          const read = reads.get(after)
          if (head === undefined || (read === undefined && signals.mayMatchSince(0, filter))) isPollDue = true
          else if (read !== undefined && signals.mayMatchSince(read, filter)) waiter.isSignalled = isWakeDue = true
          wake()
          return Effect.sync(() => waiters.delete(waiter))
        }),
      signals: () => signals.count,
      endRead: (position, before) => {
        // As the last one, so that the oldest is the first.
        reads.delete(position)
        reads.set(position, before)
        if (reads.size <= maxReads) return
        for (const oldest of reads.keys()) {
          reads.delete(oldest)
          break
        }
      }
    }
  })
}

// --- internal ---

interface Waiter {
  /** The position that is returned. It moves over events that the filter does not let through. */
  after: Position
  readonly filter: Filter | undefined
  /** When `after` first moved, in milliseconds since 1970. */
  movedAt: number | undefined
  /** Whether it is resumed without a poll. */
  isSignalled: boolean
  readonly resume: (exit: Exit.Exit<Position, StoreError>) => void
}

/** How many ends of reads are remembered: one for each partition that may run here. */
const maxReads = 1000

// In milliseconds.
const firstPollDelay = 10
/** Between two polls that follow wake-ups. */
const shortestPollPause = 30
/** The pace of wake-ups by signals, and how much of it a rest puts off. */
const wakePause = 15
const paceCredit = 75
/** After a poll that a signal triggered, the pause is in proportion to the duration of the poll. */
const pollPauseFactor = 10
const maxPause = 100
const reportMoveAfter = 2000
const firstListenDelay = 250
const longestListenDelay = 60_000
