/**
 * Watches the head of the feed for all readers that wait for events. `feed.ts` makes one for each store.
 *
 * One poll serves all waiting readers. A commit in this process and a notification of the database trigger a poll;
 * otherwise it polls at the poll interval. After a triggered poll there is a cooldown in proportion to its duration, so
 * that polls take a small part of the database's time. It uses the live clock, because it waits for a database.
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

/** The events that the feed shows after a position. */
export interface HeadChange {
  /** The position of the last one. */
  readonly head: Position
  /** Their types and kinds. Undefined where they are not known. */
  readonly contents: { readonly types: ReadonlySet<string>; readonly kinds: ReadonlySet<string> } | undefined
}

/**
 * Starts the watcher in the scope, and returns `EventFeedService.awaitAppend`. `poll` reads what the feed shows after a
 * position; without one it reads the head.
 */
export const makeHeadWatcher = (
  poll: (since: Position | undefined) => Effect.Effect<HeadChange, StoreError>,
  notifications: Notifications,
  pollInterval: number
): Effect.Effect<(after: Position, filter?: Filter) => Effect.Effect<Position, StoreError>, never, Scope.Scope> => {
  const waiters = new Set<Waiter>()
  let head: Position | undefined
  let isSignalled = false
  let wakeWatcher: (() => void) | undefined

  const wake = () => {
    const resume = wakeWatcher
    wakeWatcher = undefined
    resume?.()
  }

  const signal = () => {
    isSignalled = true
    if (waiters.size > 0) wake()
  }

  const resumeWaiter = (waiter: Waiter, exit: Exit.Exit<Position, StoreError>) => {
    if (waiters.delete(waiter)) waiter.resume(exit)
  }

  const awaitWaiter = Effect.async<void>((resume) => {
    if (waiters.size > 0) return resume(Effect.void)
    wakeWatcher = () => resume(Effect.void)
  })

  /** Waits for a signal, for so many milliseconds at most. */
  const awaitSignal = (millis: number): Effect.Effect<void> =>
    Effect.async<void>((resume) => {
      if (isSignalled) return resume(Effect.void)
      const done = () => {
        clearTimeout(timer)
        wakeWatcher = undefined
        resume(Effect.void)
      }
      const timer = setTimeout(done, millis)
      wakeWatcher = done
      return Effect.sync(() => clearTimeout(timer))
    })

  /** Resumes the waiters that the change may concern, and returns whether there was one. */
  const notifyWaiters = (change: HeadChange, now: number): boolean => {
    const before = head
    let hasNotified = false
    head = change.head
    for (const waiter of [...waiters]) {
      if (order(change.head, waiter.after) > 0) {
        if (before === undefined || order(waiter.after, before) < 0 || mayMatch(change, waiter.filter)) {
          resumeWaiter(waiter, Exit.succeed(waiter.after))
          hasNotified = true
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
    return hasNotified
  }

  /**
   * Polls, resumes waiters, and returns whether the poll found an event for one of them. A permanent failure fails all
   * waiters.
   */
  const pollOnce = Effect.gen(function* () {
    const exit = yield* Effect.exit(poll(head))
    if (Exit.isSuccess(exit)) return notifyWaiters(exit.value, yield* Clock.currentTimeMillis)
    if (exit.cause._tag !== "Fail" || !isTransient(exit.cause.error)) {
      for (const waiter of [...waiters]) resumeWaiter(waiter, Exit.failCause(exit.cause))
    }
    return false
  })

  const watch = Effect.gen(function* () {
    let pollDelay = firstPollDelay
    let cooldownUntil = 0
    for (;;) {
      if (waiters.size === 0) {
        yield* awaitWaiter
        pollDelay = firstPollDelay
      }
      // Short delays at first, because a signalled event may be committed a little later, or held back by an older
      // transaction.
      yield* awaitSignal(pollDelay)
      const cooldown = cooldownUntil - (yield* Clock.currentTimeMillis) - cooldownCredit
      if (cooldown > 0) yield* Effect.sleep(Math.min(cooldown, maxCooldown, pollInterval))
      const isTriggered = isSignalled
      // Cleared before the poll, because the poll may miss an event that is signalled while it runs.
      isSignalled = false
      const began = yield* Clock.currentTimeMillis
      const hasNotified = yield* pollOnce
      const ended = yield* Clock.currentTimeMillis
      if (isTriggered) {
        const factor = hasNotified ? cooldownFactor : idleCooldownFactor
        cooldownUntil = Math.max(cooldownUntil, ended) + (ended - began) * factor
      }
      pollDelay = isTriggered ? firstPollDelay : Math.min(pollDelay * 3, pollInterval)
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
    return (after, filter) =>
      Effect.async<Position, StoreError>((resume) => {
        if (head !== undefined && order(after, head) < 0) return resume(Effect.succeed(after))
        const waiter: Waiter = { after, filter, movedAt: undefined, resume }
        waiters.add(waiter)
        // An earlier signal has been polled for, or still will be. Before the first poll there was none.
        if (head === undefined) isSignalled = true
        wake()
        return Effect.sync(() => waiters.delete(waiter))
      })
  })
}

// --- internal ---

interface Waiter {
  /** The position that is returned. It moves over events that the filter does not let through. */
  after: Position
  readonly filter: Filter | undefined
  /** When `after` first moved, in milliseconds since 1970. */
  movedAt: number | undefined
  readonly resume: (exit: Exit.Exit<Position, StoreError>) => void
}

/**
 * The cooldown after a triggered poll, as a multiple of its duration: where it found an event for a waiter, and where
 * it did not.
 */
const cooldownFactor = 20
const idleCooldownFactor = 80

// In milliseconds.
const firstPollDelay = 10
/** As much of a cooldown is put off, so that the poll after a rest does not wait. */
const cooldownCredit = 80
const maxCooldown = 100
const reportMoveAfter = 2000
const firstListenDelay = 250
const longestListenDelay = 60_000

/** Whether the filter may let through one of the events. */
const mayMatch = ({ contents }: HeadChange, filter: Filter | undefined): boolean =>
  contents === undefined ||
  ((filter?.types === undefined || filter.types.some((type) => contents.types.has(type))) &&
    (filter?.kinds === undefined || filter.kinds.some((kind) => contents.kinds.has(kind))))
