/**
 * Has the writers of the live tables wait for a moment, again and again, where they are faster than a rebuild, so that
 * the rebuild ends. `fillAndSwap.ts` asks it before and after each batch.
 *
 * At intervals the events that are left are counted. Where about as many came in as were projected, the next batch runs
 * while it holds a lock on the live tables. Reads go on, and each writer waits for the end of that batch. Between two
 * such batches the writers run, four times as long at first. This pause becomes shorter, and ends, as long as the events
 * that are left do not become fewer.
 *
 * Commits that write no live table, such as those of a process of an older version, do not wait for this lock. Where
 * holds without a pause are not enough for strong projections, the batch locks the log of the events, too.
 */
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { Position } from "../../EventFeed.js"
import type { StoreError, ValidationError } from "../../StoreError.js"
import { withLiveClock } from "../runtime/clock.js"
import { rowValue } from "../sql/position.js"
import type { StoreTables } from "../sql/storeTables.js"
import type { RebuildProgress } from "./progress.js"
import { maxHoldOf, type RebuildContext, run } from "./rebuildOptions.js"
import { setLockTimeout } from "./replaceTables.js"

/** The work under a lock was not done in time. */
export class HoldExpired extends Data.TaggedError("HoldExpired") {}

/** Fails with `HoldExpired` after the time, in milliseconds. The effect is interrupted then. */
export const withinHold = <A, E, R>(
  millis: number,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E | HoldExpired, R> =>
  Effect.raceFirst(effect, Effect.zipRight(withLiveClock(Effect.sleep(Math.max(millis, 0))), new HoldExpired()))

export interface WriterHolds {
  /** Whether writers are faster than the rebuild. */
  readonly isOutpaced: () => boolean
  /** Whether the swap must lock the log of the events, too. */
  readonly locksLog: () => boolean
  /** Whether the next batch may run while writers wait. */
  readonly mayHold: Effect.Effect<boolean>
  /** Locks the tables for a batch, in its transaction. */
  readonly lock: (lockWait: number) => Effect.Effect<void, StoreError>
  /** Takes note of a batch up to this position: it was not under the lock, or for so long, in milliseconds. */
  readonly projected: (
    position: Position,
    held: number | undefined
  ) => Effect.Effect<void, ValidationError | StoreError>
  /** Takes note of a hold that has expired after so long, in milliseconds. */
  readonly expired: (held: number) => Effect.Effect<void>
  /**
   * Whether the rebuild may end at this position though more events follow: few of them, or the subscription that keeps
   * the tables is not further. It projects them after the swap.
   */
  readonly mayEnd: (position: Position) => Effect.Effect<boolean, StoreError>
}

export const makeWriterHolds = <E, R>(
  context: RebuildContext<E, R>,
  progress: RebuildProgress,
  tables: ReadonlyArray<string>
): WriterHolds => {
  const { feed, filter, options, store } = context
  const { schema, sql } = store
  const maxHold = maxHoldOf(options)
  let last: Check | undefined
  let outpacedChecks = 0
  let nextCheck = 0
  let notBefore = 0
  let level = 0
  let mayFit = false
  let lastHold: Check | undefined

  const countLeft = (position: Position) =>
    Effect.gen(function* () {
      const asked = yield* Clock.currentTimeMillis
      const left = yield* feed.count({ after: position, filter })
      const now = yield* Clock.currentTimeMillis
      nextCheck = now + Math.max(checkEvery, (now - asked) * countFactor)
      return left
    })

  const check = (left: number): void => {
    const events = progress.events()
    mayFit = left <= progress.eventsInHold(maxHold) / 3
    if (last !== undefined) {
      const projected = events - last.events
      const added = left - last.left + projected
      if (added < projected * fewAdded) {
        outpacedChecks = 0
        lastHold = undefined
        level = 0
      } else if (added > projected * manyAdded) outpacedChecks++
    }
    last = { events, left }
  }

  /** Where the events that are left are hardly fewer than after the hold before, the next one gets stronger. */
  const adapt = (left: number): void => {
    const events = progress.events()
    if (lastHold !== undefined && left > lastHold.left - (events - lastHold.events) / 4) {
      level = Math.min(level + 1, strengths.length - 1)
    }
    lastHold = { events, left }
  }

  const isOutpaced = () => outpacedChecks >= neededChecks
  const locksLog = () => strengthOf(level).locksLog && options.subscription === undefined

  return {
    isOutpaced,
    locksLog,
    mayHold: Effect.map(Clock.currentTimeMillis, (now) => isOutpaced() && !store.isEmbedded && now >= notBefore),
    lock: (lockWait) =>
      Effect.gen(function* () {
        yield* setLockTimeout(sql, lockWait)
        // The log before the tables, in the order in which commits lock them.
        if (locksLog()) yield* lockLog(store)
        yield* run(store, sql`lock table ${sql.literal(tables.join(", "))} in exclusive mode`)
        yield* setLockTimeout(sql, 0)
      }),
    projected: (position, held) =>
      Effect.gen(function* () {
        const now = yield* Clock.currentTimeMillis
        const { pauseFactor } = strengthOf(level)
        if (held !== undefined) notBefore = now + held * pauseFactor
        // Between holds without a pause no time is lost by counting, because writers run meanwhile.
        if (now < nextCheck && (held === undefined || pauseFactor === 0)) return
        if (held !== undefined) {
          const left = yield* countLeft(position)
          adapt(left)
          mayFit = left <= progress.eventsInHold(maxHold) / 3
          // What a hold does to the counts says nothing of the writers.
          last = undefined
        } else check(yield* countLeft(position))
      }),
    expired: (held) =>
      Effect.map(Clock.currentTimeMillis, (now) => {
        notBefore = now + held * strengthOf(level).pauseFactor
      }),
    mayEnd: (position) =>
      mayFit
        ? Effect.succeed(true)
        : options.subscription === undefined || !isOutpaced()
          ? Effect.succeed(false)
          : Effect.map(
              run(
                store,
                sql`select 1 from ${schema}.subscriptions
                  where name = ${options.subscription.name} and (feed_key, position) > ${rowValue(store, position)}`
              ),
              (further) => further.length === 0
            )
  }
}

/** Has all commits wait until the end of the transaction. */
export const lockLog = (store: StoreTables): Effect.Effect<unknown, StoreError> =>
  run(store, store.sql`lock table ${store.schema}.event_log in share mode`)

// --- internal ---

/** How many events this run had projected, and how many were left then. */
interface Check {
  readonly events: number
  readonly left: number
}

/** In milliseconds. A count takes a twentieth of the time at most. */
const checkEvery = 1000
const countFactor = 20

// How many events come in for each that is projected: with as few, holds end, and with as many they begin.
const fewAdded = 0.25
const manyAdded = 0.75

/** How many checks in a row find the writers faster before the first hold. */
const neededChecks = 2

/** How strong holds are. */
interface Strength {
  /** Writers run for so many times as long as they waited. */
  readonly pauseFactor: number
  readonly locksLog: boolean
}

/**
 * From the weakest to the strongest. Without a pause, writers still run between two holds, because the database grants
 * locks in the order of the requests.
 */
const strengths: readonly [Strength, ...ReadonlyArray<Strength>] = [
  { pauseFactor: 4, locksLog: false },
  { pauseFactor: 1, locksLog: false },
  { pauseFactor: 0, locksLog: false },
  { pauseFactor: 0, locksLog: true }
]

const strengthOf = (level: number): Strength => strengths[level] ?? strengths[0]
