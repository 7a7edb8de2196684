/**
 * Fills the shadow tables with all events, a batch in each transaction, and swaps them when few events are left.
 * `rebuild.ts` calls it while it holds the lease of the rebuild.
 *
 * Commands that use the tables wait during the swap. So a swap begins only when two seconds are enough to project the
 * events that are left. It does not begin while a transaction is known to use the tables (`swapBackoff.ts`).
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type { FeedEvent } from "../../EventFeed.js"
import type { StoreError, ValidationError } from "../../StoreError.js"
import type { Lease, LeaseLost } from "../../SubscriptionStore.js"
import { toMillis } from "../../Timestamp.js"
import { withLiveClock } from "../runtime/clock.js"
import { withTransaction } from "../sql/pg/transaction.js"
import { describeHeldBack } from "../subscription/status.js"
import { projectBatch } from "./projectBatch.js"
import { operation, type RebuildContext, run } from "./rebuildOptions.js"
import { isLockConflict } from "./replaceTables.js"
import { makeShadowTables } from "./shadowTables.js"
import { makeSwapBackoff } from "./swapBackoff.js"
import { swapTables } from "./swapTables.js"

/**
 * Fills the shadow tables from the checkpoint of the lease on, and swaps them. `count` gets the number of events of
 * each batch.
 */
export const fillAndSwap = <E, R>(
  context: RebuildContext<E, R>,
  lease: Lease,
  count: (events: number) => void
): Effect.Effect<void, E | LeaseLost | ValidationError | StoreError, R> =>
  Effect.gen(function* () {
    const { feed, filter, options, shadowSchema, store } = context
    const limit = options.batchSize ?? 1000
    const tables = yield* withTransaction(
      store.sql,
      operation,
      Effect.zipRight(lease.checkpoint, makeShadowTables(store.sql, shadowSchema, options.tables, options.create))
    )
    const backoff = makeSwapBackoff(
      store,
      options.name,
      tables.map(({ live }) => live)
    )
    let position = lease.position
    const progress = yield* makeProgress(context, yield* feed.count({ after: position, filter }))
    const holdsBackMuch = makeHeldBackCheck(context)
    const projected = (events: number) => {
      progress.add(events)
      count(events)
      return progress.report
    }

    for (;;) {
      const page = yield* feed.read({ after: position, limit, filter })
      if (page.events.length > 0 || page.position !== position) {
        yield* progress.timed(lease.advance(page.position, projectBatch(context, page.events)))
        position = page.position
        yield* projected(page.events.length)
      }
      if (page.more && !(yield* isCaughtUp(page.events))) continue
      if ((yield* holdsBackMuch(progress.eventsIn(maxMillisHeldBack))) || !(yield* backoff.mayTry)) {
        yield* withLiveClock(Effect.sleep("250 millis"))
        continue
      }
      const begun = yield* Clock.currentTimeMillis
      const swapped = yield* Effect.exit(
        swapTables(context, lease, tables, position, {
          maxTail: progress.eventsIn(maxMillisLocked),
          lockWait: backoff.lockWait()
        })
      )
      if (Exit.isSuccess(swapped) && Option.isSome(swapped.value)) return yield* projected(swapped.value.value)
      if (Exit.isFailure(swapped)) {
        const error = Cause.failureOption(swapped.cause)
        if (Option.isNone(error) || !isLockConflict(error.value)) return yield* Effect.failCause(swapped.cause)
      }
      yield* backoff.failed((yield* Clock.currentTimeMillis) - begun)
    }
  })

// --- internal ---

/** A swap projects this many events in any case. */
const minTail = 500

// In milliseconds: how much work the feed may hold back before the swap, and how much a swap may find while the tables
// are locked.
const maxMillisHeldBack = 500
const maxMillisLocked = 2000
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

/** Stores how many events there are to project. Counts and times the events that this run projects. */
const makeProgress = <E, R>({ options, store }: RebuildContext<E, R>, left: number) =>
  Effect.gen(function* () {
    const begun = yield* Clock.currentTimeMillis
    const [row] = yield* run(
      store,
      store.sql<{
        done: string
      }>`insert into ${store.schema}.rebuilds as r (name, events_total) values (${options.name}, ${left})
        on conflict (name) do update set events_total = r.events_done + ${left} returning events_done::text as done`
    )
    const doneBefore = Number(row?.done ?? 0)
    let total = doneBefore + left
    let events = 0
    let millisProjecting = 0

    return {
      add: (more: number): void => {
        events += more
      },
      timed: <A, E2, R2>(projecting: Effect.Effect<A, E2, R2>): Effect.Effect<A, E2, R2> =>
        Effect.gen(function* () {
          const asked = yield* Clock.currentTimeMillis
          const result = yield* projecting
          millisProjecting += (yield* Clock.currentTimeMillis) - asked
          return result
        }),
      /** How many events can be projected in the time, by the rate of this run. */
      eventsIn: (millis: number): number =>
        Math.max(minTail, millisProjecting === 0 ? 0 : (events / millisProjecting) * millis),
      report: Effect.gen(function* () {
        const seconds = ((yield* Clock.currentTimeMillis) - begun) / 1000
        const eventsPerSecond = seconds > 0 ? events / seconds : 0
        const done = doneBefore + events
        total = Math.max(total, done)
        if (options.onProgress !== undefined) {
          yield* options.onProgress({
            done,
            total,
            eventsPerSecond: Math.round(eventsPerSecond),
            secondsLeft: eventsPerSecond > 0 ? Math.ceil((total - done) / eventsPerSecond) : 0
          })
        }
      })
    }
  })

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
