/**
 * The end of a rebuild, in one transaction: the live tables are locked, the events that are left are projected, and the shadow tables take
 * the place of the live ones. Why no event is skipped or projected twice stands at the head of `rebuild.ts`.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type * as Option from "effect/Option"
import type { FeedEvent, Position } from "../../EventFeed.js"
import type { StoreError } from "../../StoreError.js"
import type { Lease, LeaseLost } from "../../SubscriptionStore.js"
import { selectFittingPage } from "../sql/feedPage.js"
import { feedEventsOf } from "../sql/feedRows.js"
import { columnsOf } from "../sql/position.js"
import { runProjections } from "../store/runProjections.js"
import { checkPartitions, leaseOf, run, type Work } from "./plan.js"
import { lockLive, type Shadowed, swap, writingShadows } from "./shadowTables.js"

/** Projects events into the shadow tables, in the transaction around it. */
export const projectAll = <E, R>(
  { home, plan, shadow }: Work<E, R>,
  events: ReadonlyArray<FeedEvent>
): Effect.Effect<void, E | StoreError, R> =>
  Effect.gen(function* () {
    const { schema, sql } = home
    const projecting = Effect.forEach(events, runProjections(plan.projections, { endsRun: true }), { discard: true })
    yield* writingShadows(sql, shadow, home.name, projecting)
    yield* run(
      home,
      sql`update ${schema}.rebuilds set events_done = events_done + ${events.length} where name = ${plan.name}`
    )
  })

/**
 * Projects the events that are left, swaps the tables, and returns how many events that were. It returns none, and changes nothing, where more than
 * `most` events are left.
 */
export const swapInOneTransaction = <E, R>(
  work: Work<E, R>,
  lease: Lease,
  tables: ReadonlyArray<Shadowed>,
  position: Position,
  most: number
): Effect.Effect<Option.Option<number>, E | LeaseLost | StoreError, R> => {
  const { filter, home, plan, shadow } = work
  const { schema, sql } = home

  /** Projects all events that can be seen. The feed does not show some of them yet, because an older transaction is open. */
  const projectRest = (after: Position, count: number): Effect.Effect<number, E | StoreError | TooManyLeft, R> =>
    Effect.flatMap(run(home, selectFittingPage(home, { after, filter, limit: restPage })), (rows) => {
      const events = feedEventsOf(rows)
      const last = events.at(-1)
      if (count + events.length > most) return new TooManyLeft()
      return last === undefined
        ? Effect.succeed(count)
        : Effect.zipRight(projectAll(work, events), projectRest(last.position, count + events.length))
    })

  /** Moves the subscription to the position of the rebuild, and ends the leases on it. */
  const moveSubscription = (name: string, partitions: number) =>
    Effect.gen(function* () {
      const [feedKey, place] = columnsOf(position)
      yield* run(
        home,
        sql`insert into ${schema}.subscriptions (name, partition, partitions, feed_key, position)
          select ${name}, partition, ${partitions}::int, ${feedKey}::xid8, ${place}::bigint
          from generate_series(0, ${partitions}::int - 1) partition
          on conflict (name, partition) do update set
            feed_key = excluded.feed_key, position = excluded.position,
            token = subscriptions.token + 1, holder = null, leased_until = null, stopped = false, last_failure = null,
            attempted = null`
      )
      yield* run(home, sql`delete from ${schema}.parked_events where subscription = ${name}`)
    })

  let rest = 0
  const swapping = Effect.gen(function* () {
    // The tables first, as consumers and commits lock them.
    yield* lockLive(sql, schema, tables, plan.create === undefined)
    yield* run(home, sql`select 1 from ${schema}.subscriptions where name = ${leaseOf(plan.name)} for update`)
    yield* lease.checkpoint
    if (plan.subscription === undefined) rest = yield* projectRest(position, 0)
    else {
      yield* checkPartitions(home, plan)
      yield* moveSubscription(plan.subscription.name, plan.subscription.partitions)
    }
    yield* swap(sql, shadow, tables, plan.create === undefined)
    if (plan.onSwap !== undefined) yield* plan.onSwap
    yield* run(
      home,
      sql`update ${schema}.rebuilds set finished_at = clock_timestamp(), events_total = events_done where name = ${plan.name}`
    )
  })
  // As a checkpoint: while its transaction is open the lease is not given up, though a pool of one connection can't renew it.
  return Effect.matchEffect(lease.advance(position, swapping), {
    onFailure: (error) => (error instanceof TooManyLeft ? Effect.succeedNone : Effect.fail(error)),
    onSuccess: () => Effect.succeedSome(rest)
  })
}

const restPage = 1000

/** More events are left at the swap than may be projected while the tables are locked. */
class TooManyLeft extends Data.TaggedError("TooManyLeft") {}
