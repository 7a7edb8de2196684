/**
 * Fills the shadow tables with all events, a batch in each transaction, and swaps them when few events are left.
 * `rebuild.ts` calls it while it holds the lease of the rebuild.
 *
 * The next page of events is read while a batch is projected. Batches grow with the rate, unless the options have a
 * size.
 *
 * Users of the tables wait during the swap, for `maxHold` at most. So a swap begins only when that time is enough to
 * project the events that are left. It does not begin while a transaction is known to use the tables
 * (`swapBackoff.ts`). Where writers are faster than the rebuild, they wait during some of the batches
 * (`holdWriters.ts`).
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type { FeedEvent, Page } from "../../EventFeed.js"
import type { StoreError, ValidationError } from "../../StoreError.js"
import type { Lease, LeaseLost } from "../../SubscriptionStore.js"
import { toMillis } from "../../Timestamp.js"
import { withLiveClock } from "../runtime/clock.js"
import { withTransaction } from "../sql/pg/transaction.js"
import { describeHeldBack } from "../subscription/status.js"
import { HoldExpired, makeWriterHolds, withinHold } from "./holdWriters.js"
import { makeProgress } from "./progress.js"
import { projectBatch } from "./projectBatch.js"
import { maxHoldOf, operation, type RebuildContext } from "./rebuildOptions.js"
import { lockLease, lockRecord } from "./rebuildRecord.js"
import { isLockConflict } from "./replaceTables.js"
import { makeShadowTables } from "./shadowTables.js"
import { makeSwapBackoff } from "./swapBackoff.js"
import { swapTables, TooManyLeft } from "./swapTables.js"

/**
 * Fills the shadow tables from the checkpoint of the lease on, and swaps them. `count` gets the number of events of each
 * batch.
 */
export const fillAndSwap = <E, R>(
  context: RebuildContext<E, R>,
  lease: Lease,
  count: (events: number) => void
): Effect.Effect<void, E | LeaseLost | ValidationError | StoreError, R> =>
  Effect.gen(function* () {
    const { feed, filter, options, shadowSchema, store } = context
    const making = makeShadowTables(store.sql, shadowSchema, options.tables, options.create)
    const tables = yield* withTransaction(
      store.sql,
      operation,
      Effect.zipRight(lease.checkpoint, Effect.zipLeft(making, confirmLease(context, lease)))
    )
    const lives = tables.map(({ live }) => live)
    const maxHold = maxHoldOf(options)
    const backoff = makeSwapBackoff(store, options.name, lives, maxHold / 4)
    let position = lease.position
    const progress = yield* makeProgress(context, yield* feed.count({ after: position, filter }))
    const holds = makeWriterHolds(context, progress, lives)
    const holdsBackMuch = makeHeldBackCheck(context)

    /** Batches that writers wait for fill the time that they may wait, because events come in between two of them. */
    const inHold = () => (holds.isOutpaced() ? progress.eventsInHold(maxHold) : 0)

    const readAfter = (after: Page["position"]) =>
      Effect.suspend(() =>
        feed.read({
          after,
          filter,
          limit: options.batchSize ?? Math.min(Math.max(progress.eventsIn(batchMillis), minBatch, inHold()), maxBatch)
        })
      )

    /** Until when a swap needs no check, in milliseconds since 1970. */
    let checkedUntil = 0
    let next: Page | undefined
    /** Projects a page while the next one is read. A failure to read that shows when it is read again. */
    const projectPage = <E2>(
      page: Page,
      projecting: Effect.Effect<void, E | E2 | StoreError, R>,
      measured: typeof progress.projected
    ) =>
      Effect.gen(function* () {
        const begun = yield* Clock.currentTimeMillis
        const batch = Effect.zipRight(lockRecord(store, options.name), projecting)
        const advancing = Effect.flatMap(lease.advance(page.position, batch), () => Clock.currentTimeMillis)
        const [ended, read] = page.more
          ? yield* Effect.all([advancing, Effect.exit(readAfter(page.position))], { concurrency: 2 })
          : [yield* advancing, undefined]
        next = read !== undefined && Exit.isSuccess(read) ? read.value : undefined
        position = page.position
        measured(page.events.length, ended - begun)
        count(page.events.length)
      })

    /** Projects as much of a page as fits, while writers wait. Returns what it has projected. */
    const projectHeld = (page: Page) =>
      Effect.gen(function* () {
        const lockWait = backoff.lockWait()
        const part = beginningOf(page, progress.eventsInHold((maxHold - lockWait) * safety))
        const projecting = Effect.zipRight(
          holds.lock(lockWait),
          withinHold(maxHold - lockWait, projectBatch(context, part.events))
        )
        const begun = yield* Clock.currentTimeMillis
        let held: number | undefined
        const exit = yield* Effect.exit(
          projectPage(part, projecting, (events, millis) => {
            held = millis
            progress.projectedHeld(events, millis)
          })
        )
        // The next page may take longer to read than the batch to fail.
        held ??= (yield* Clock.currentTimeMillis) - begun
        progress.held(held)
        if (yield* isDone(exit)) {
          yield* holds.projected(position, held)
          return part
        }
        yield* failureOf(exit) instanceof HoldExpired ? holds.expired(held) : backoff.failed(held)
        return undefined
      })

    /** Tries to end the rebuild, and returns whether it has ended. */
    const swap = Effect.gen(function* () {
      const lockWait = backoff.lockWait()
      const begun = yield* Clock.currentTimeMillis
      const exit = yield* Effect.exit(
        swapTables(context, lease, tables, position, {
          lockWait,
          locksLog: holds.locksLog(),
          maxTail: progress.eventsInHold((maxHold - lockWait) * safety),
          maxMillis: maxHold - lockWait
        })
      )
      const held = (yield* Clock.currentTimeMillis) - begun
      progress.held(held)
      if (yield* isDone(exit)) {
        const tail = Exit.isSuccess(exit) ? exit.value : 0
        progress.projectedHeld(tail, held)
        count(tail)
        return true
      }
      yield* holds.isOutpaced() && !isLockConflict(failureOf(exit)) ? holds.expired(held) : backoff.failed(held)
      return false
    })

    /** Fails as the exit did, unless another attempt may succeed. Returns whether the exit is a success. */
    const isDone = <A, E2>(exit: Exit.Exit<A, E2>): Effect.Effect<boolean, Exclude<E2, HoldExpired | TooManyLeft>> => {
      if (Exit.isSuccess(exit)) return Effect.succeed(true)
      const error = failureOf(exit)
      if (error instanceof HoldExpired) progress.wasSlower()
      return error instanceof HoldExpired || error instanceof TooManyLeft || isLockConflict(error)
        ? Effect.succeed(false)
        : Effect.failCause(exit.cause as Cause.Cause<Exclude<E2, HoldExpired | TooManyLeft>>)
    }

    for (;;) {
      const read: Page = next ?? (yield* readAfter(position))
      let page: Page | undefined = read
      let isHeld = false
      next = undefined
      if (read.events.length > 0 || read.position !== position) {
        if (read.events.length > 0 && (yield* holds.mayHold) && (yield* backoff.mayTry)) {
          page = yield* projectHeld(read)
          if (page === undefined) {
            next = read
            continue
          }
          isHeld = true
        } else {
          yield* projectPage(read, projectBatch(context, read.events), progress.projected)
          yield* holds.projected(position, undefined)
        }
        yield* progress.report
      }
      const isNearEnd = !page.more || (!holds.isOutpaced() && (yield* isCaughtUp(page.events)))
      if (!isNearEnd && !(yield* holds.mayEnd(position))) continue
      // After a batch under the lock the swap follows immediately, because writers go on while it is checked.
      if (!isHeld || (yield* Clock.currentTimeMillis) >= checkedUntil) {
        if ((yield* holdsBackMuch(progress.eventsInHold(maxHold / 4))) || !(yield* backoff.mayTry)) {
          if (!page.more) yield* withLiveClock(Effect.sleep("250 millis"))
          continue
        }
        checkedUntil = (yield* Clock.currentTimeMillis) + checkedFor
      }
      if (yield* swap) break
    }
    yield* progress.report
    yield* Effect.logDebug(
      `rebuild ${options.name} has swapped ${lives.join(", ")}; users of the tables waited for ${progress.longestHold()} ms at most`
    )
  })

// --- internal ---

/**
 * Fails where the lease was lost while the shadow tables were made, so that they are rolled back. Another process may
 * wait to make the schema, and would find it made. No process takes the lease from here to COMMIT.
 *
 * It locks the record at the end of the transaction, because `create` may run for long, and abandoning the rebuild would
 * wait for it.
 */
const confirmLease = <E, R>({ options, store }: RebuildContext<E, R>, lease: Lease) =>
  Effect.zipRight(lockRecord(store, options.name), lockLease(store, options.name, lease))

/** How long a batch may take by the rate of the run, in milliseconds. */
const batchMillis = 500

// Batches of fewer events would spend their time on transactions, and more events would need much memory.
const minBatch = 250
const maxBatch = 10_000

/** The part of the longest hold that events are planned for, because a rate is a mean. */
const safety = 0.7

/** For how long it counts that the feed held back few events, in milliseconds. */
const checkedFor = 10_000

const failureOf = (exit: Exit.Exit<unknown, unknown>): unknown =>
  Exit.isFailure(exit) ? Option.getOrUndefined(Cause.failureOption(exit.cause)) : undefined

/** The first events of a page, as a page. */
const beginningOf = (page: Page, events: number): Page => {
  const last = page.events[events - 1]
  return page.events.length <= events || last === undefined
    ? page
    : { events: page.events.slice(0, events), position: last.position, more: true }
}

const warnEvery = 30_000

/**
 * The swap begins when events are younger than this, in milliseconds. Under steady load the feed never has a last
 * event.
 */
const caughtUpWithin = 1000

const isCaughtUp = (events: ReadonlyArray<FeedEvent>): Effect.Effect<boolean> => {
  const last = events.at(-1)
  return last === undefined
    ? Effect.succeed(false)
    : Effect.map(Clock.currentTimeMillis, (now) => now - toMillis(last.timestamp) < caughtUpWithin)
}

/**
 * Checks whether the feed holds back more events than the limit, and warns every 30 seconds while it does. The swap of
 * strong projections projects those events while the tables are locked. The swap of a subscription does not.
 */
const makeHeldBackCheck = <E, R>({ feed, filter, options }: RebuildContext<E, R>) => {
  let nextWarning = 0
  return (limit: number): Effect.Effect<boolean, ValidationError | StoreError> =>
    Effect.gen(function* () {
      if (options.subscription !== undefined) return false
      const held = yield* feed.heldBack(filter)
      if (Option.isNone(held) || held.value.events <= limit) return false
      const now = yield* Clock.currentTimeMillis
      if (now >= nextWarning) {
        nextWarning = now + warnEvery
        yield* Effect.logWarning(
          `rebuild ${options.name} waits before it swaps the tables: ${describeHeldBack(held.value, now)}`
        )
      }
      return true
    })
}
