/**
 * Ends a rebuild in one transaction: it locks the live tables, projects the events that are left, and puts the shadow
 * tables in their place. `fillAndSwap.ts` calls it.
 *
 * **Strong projections skip no event, and project none twice.** A commit with a strong projection writes the table in
 * the transaction that stores its events. Once the live tables are locked, each transaction that has written them has
 * ended, so its events are visible. A transaction that writes them later waits for the lock. Its events are not visible
 * yet, and its statement finds the new table. So the new tables must contain exactly the visible events, whichever
 * other transactions are open.
 *
 * A waiting statement sees the rows of the new table only with a new snapshot. A transaction with an older snapshot
 * (REPEATABLE READ) fails in `check_snapshot` (`functions.ts`) before it projects.
 *
 * **A subscription** moves to the position of the rebuild in the same transaction. A consumer that holds its lease
 * finds the lease lost, and continues from the new checkpoint.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { FeedEvent, Position } from "../../EventFeed.js"
import type { StoreError } from "../../StoreError.js"
import type { Lease, LeaseLost } from "../../SubscriptionStore.js"
import { andMatches, isAfter } from "../sql/feedConditions.js"
import { selectFittingPage } from "../sql/feedPage.js"
import { feedEventsOf } from "../sql/feedRows.js"
import { positionValues } from "../sql/position.js"
import type { StoreTables } from "../sql/storeTables.js"
import { type HoldExpired, lockLog, withinHold } from "./holdWriters.js"
import { checkDeferred, projectPart } from "./projectBatch.js"
import { type RebuildContext, run } from "./rebuildOptions.js"
import { lockLease, lockRecord } from "./rebuildRecord.js"
import { lockLiveTables, replaceTables, setLockTimeout } from "./replaceTables.js"
import type { ShadowTable } from "./resolveTables.js"

export interface SwapLimits {
  /** How many events a swap may project while the tables are locked. */
  readonly maxTail: number
  /** Whether commits that write none of the tables wait, too. */
  readonly locksLog: boolean
  /** How long it may take for these events, in milliseconds. */
  readonly maxMillis: number
  /** How long it waits for the tables, in milliseconds. */
  readonly lockWait: number
}

/** More events are left than the swap may project. */
export class TooManyLeft extends Data.TaggedError("TooManyLeft") {}

/**
 * Returns how many events were left. Fails with `TooManyLeft` where these are more than `maxTail`, and with
 * `HoldExpired` where they take longer than `maxMillis`. The transaction is rolled back then.
 */
export const swapTables = <E, R>(
  context: RebuildContext<E, R>,
  lease: Lease,
  tables: ReadonlyArray<ShadowTable>,
  position: Position,
  { lockWait, locksLog, maxMillis, maxTail }: SwapLimits
): Effect.Effect<number, E | HoldExpired | LeaseLost | StoreError | TooManyLeft, R> => {
  const { options, shadowSchema, store } = context
  const { schema, sql } = store
  const sameShape = options.create === undefined
  let tail = 0
  const swapping = Effect.gen(function* () {
    yield* lockRecord(store, options.name)
    if (locksLog) yield* Effect.zipRight(setLockTimeout(sql, lockWait), lockLog(store))
    // The tables before the lease, in the order in which consumers and commits lock them.
    yield* lockLiveTables(sql, schema, tables, { sameShape, lockWait })
    yield* lockLease(store, options.name, lease)
    if (options.subscription === undefined) {
      tail = yield* withinHold(maxMillis, projectTail(context, position, maxTail))
    } else {
      yield* moveSubscription(store, options.subscription, position)
    }
    yield* replaceTables(sql, shadowSchema, tables, sameShape)
    if (options.onSwap !== undefined) yield* options.onSwap
    yield* run(
      store,
      sql`update ${schema}.rebuilds set finished_at = clock_timestamp(), events_total = events_done where name = ${options.name}`
    )
  })
  // As a checkpoint, because the lease stays valid while its transaction is open. A pool of one connection can't renew
  // it then.
  return Effect.map(lease.advance(position, swapping), () => tail)
}

// --- internal ---

const tailPage = 1000

/**
 * Projects all visible events after the position. The feed does not show some of them yet, because an older transaction
 * is open.
 */
const projectTail = <E, R>(
  context: RebuildContext<E, R>,
  position: Position,
  maxTail: number
): Effect.Effect<number, E | StoreError | TooManyLeft, R> =>
  Effect.gen(function* () {
    const { filter, store } = context
    // Counted first, so that a swap which can't succeed is short.
    if ((yield* countTail(context, position, maxTail + 1)) > maxTail) return yield* new TooManyLeft()
    let count = 0
    let previous: FeedEvent | undefined
    for (;;) {
      const after = previous?.position ?? position
      const events = feedEventsOf(yield* run(store, selectFittingPage(store, { after, filter, limit: tailPage })))
      const last = events.at(-1)
      if (last === undefined) {
        yield* checkDeferred(context, previous)
        return count
      }
      count += events.length
      if (count > maxTail) return yield* new TooManyLeft()
      yield* projectPart(context, events)
      previous = last
    }
  })

/** How many visible events follow the position. It counts up to the limit. */
const countTail = <E, R>(
  { filter, store }: RebuildContext<E, R>,
  after: Position,
  limit: number
): Effect.Effect<number, StoreError> =>
  Effect.map(
    run(
      store,
      store.sql<{ count: number }>`select count(*)::int as count from (
          select 1 from ${store.schema}.event_log where ${isAfter(store, after)} ${andMatches(store.sql, filter)}
          limit ${limit}
        ) events`
    ),
    ([row]) => row?.count ?? 0
  )

/**
 * Moves the subscription to the position of the rebuild, ends its leases, and forgets its parked events, which the
 * rebuild has projected. It keeps its number of partitions; `partitions` is that of a subscription that has never run.
 *
 * The first row decides on the number, as in `lease.ts`. All rows stay locked, so the number does not change meanwhile.
 */
const moveSubscription = (
  store: StoreTables,
  { name, partitions }: { readonly name: string; readonly partitions: number },
  position: Position
): Effect.Effect<void, StoreError> =>
  Effect.gen(function* () {
    const { schema, sql } = store
    yield* run(
      store,
      sql`insert into ${schema}.subscriptions (name, partition, partitions, feed_key, position, event_time)
        values (${name}, 0, ${partitions}, ${positionValues(store, position)})
        on conflict (name, partition) do nothing`
    )
    const [first] = yield* run(
      store,
      sql<{ partitions: number }>`select partitions from ${schema}.subscriptions where name = ${name}
        order by partition for update`
    )
    const stored = Number(first?.partitions ?? partitions)
    yield* run(
      store,
      sql`insert into ${schema}.subscriptions (name, partition, partitions, feed_key, position, event_time)
        select ${name}, partition, ${stored}::int, ${positionValues(store, position)}
        from generate_series(0, ${stored}::int - 1) partition
        on conflict (name, partition) do update set
          feed_key = excluded.feed_key, position = excluded.position, event_time = excluded.event_time,
          token = subscriptions.token + 1, holder = null, leased_until = null, stopped = false, last_failure = null,
          attempted = null`
    )
    yield* run(store, sql`delete from ${schema}.parked_events where subscription = ${name}`)
  })
