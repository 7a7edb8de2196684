/**
 * The end of a rebuild, in one transaction: the live tables are locked, the events that are left are projected, and the shadow tables take
 * the place of the live ones. Why no event is skipped or projected twice stands at the head of `rebuild.ts`.
 */
import * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type * as Option from "effect/Option"
import type { FeedEvent, Position } from "../../EventFeed.js"
import type { Projection } from "../../Projection.js"
import { StoreError } from "../../StoreError.js"
import type { Lease, LeaseLost } from "../../SubscriptionStore.js"
import { isTransient } from "../runtime/retry.js"
import { feedEventsOf, partsOf, selectFitting } from "../sql/feed.js"
import { runProjections } from "../store/runProjections.js"
import { checkPartitions, leaseOf, operation, run, type Work } from "./plan.js"
import { inFront, lockLive, type Shadowed, swap, writingShadows } from "./shadowTables.js"

/** Projects events into the shadow tables, in the transaction around it. */
export const projectAll = <E, R>(
  { home, plan, shadow }: Work<E, R>,
  events: ReadonlyArray<FeedEvent>
): Effect.Effect<void, E | StoreError, R> =>
  Effect.gen(function* () {
    const { schema, sql } = home
    // Without the tables that they own, because a failure of a statement would say to provide `ProjectionTables.layer`.
    const projections = plan.projections.map((projection) => ({ ...projection, tables: undefined }))
    const projecting = Effect.forEach(events, runProjections(projections, { endsRun: true }), { discard: true })
    yield* writingShadows(sql, shadow, home.name, projecting)
    yield* run(
      home,
      sql`update ${schema}.rebuilds set events_done = events_done + ${events.length} where name = ${plan.name}`
    )
  })

/**
 * Checks the constraints that are deferred to the end of a transaction, in which these events were projected. COMMIT would check them too, but its
 * failure is a `StoreError` of the lease, and a table with a deferred check left can't be moved.
 */
export const checkDeferred = <E, R>(
  { home, plan, shadow }: Work<E, R>,
  events: ReadonlyArray<FeedEvent>
): Effect.Effect<void, StoreError> => {
  const { sql } = home
  const last = events.at(-1)
  if (last === undefined) return Effect.void
  return Effect.catchAll(inFront(sql, shadow, run(home, sql`set constraints all immediate`)), (error) => {
    if (isTransient(error)) return Effect.fail(error)
    const [projection, ...others] = new Set(plan.projections.map(({ name }) => name))
    const which = [...new Set(plan.projections.map(nameAndVersion))].join(", ")
    const problem = `rebuild ${JSON.stringify(plan.name)} of projection${others.length === 0 ? "" : "s"} ${which} violates a deferred constraint at the end of a batch, whose last event is event ${last.sequence} of aggregate ${JSON.stringify(last.aggregateId)}`
    const failure = new StoreError({
      ...error,
      operation,
      description: `${problem}: ${error.description}`,
      ...(projection === undefined || others.length > 0 ? {} : { projection })
    })
    return Effect.zipRight(
      Effect.logError(`a rebuild ends, because ${problem}`, Cause.fail(failure)),
      Effect.fail(failure)
    )
  })
}

/**
 * Projects the events that are left, swaps the tables, and returns how many events that were. It returns none, and changes nothing, where more than
 * `most` events are left.
 */
export const swapInOneTransaction = <E, R>(
  work: Work<E, R>,
  lease: Lease,
  tables: ReadonlyArray<Shadowed>,
  position: Position,
  { lockWait, most }: { readonly lockWait: number; readonly most: number }
): Effect.Effect<Option.Option<number>, E | LeaseLost | StoreError, R> => {
  const { filter, home, plan, shadow } = work
  const { schema, sql } = home

  /** Projects all events that can be seen. The feed does not show some of them yet, because an older transaction is open. */
  const projectTail = Effect.gen(function* () {
    let after = position
    let count = 0
    for (;;) {
      const events = feedEventsOf(yield* run(home, selectFitting(home, { after, filter, limit: tailPage })))
      const last = events.at(-1)
      if (last === undefined) return count
      count += events.length
      if (count > most) return yield* new TooManyLeft()
      yield* projectAll(work, events)
      after = last.position
      lastEvents = events
    }
  })

  /** Moves the subscription to the position of the rebuild, and ends the leases on it. */
  const moveSubscription = (name: string, partitions: number) =>
    Effect.gen(function* () {
      const [feedKey, place] = partsOf(position)
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

  let tail = 0
  let lastEvents: ReadonlyArray<FeedEvent> = []
  const swapping = Effect.gen(function* () {
    // The tables first, as consumers and commits lock them.
    yield* lockLive(sql, schema, tables, plan.create === undefined, lockWait)
    yield* run(home, sql`select 1 from ${schema}.subscriptions where name = ${leaseOf(plan.name)} for update`)
    yield* lease.checkpoint
    if (plan.subscription === undefined) {
      tail = yield* projectTail
      yield* checkDeferred(work, lastEvents)
    } else {
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
    onSuccess: () => Effect.succeedSome(tail)
  })
}

const tailPage = 1000

const nameAndVersion = ({ name, version }: Pick<Projection.Any, "name" | "version">): string =>
  `${JSON.stringify(name)}${version === undefined ? "" : ` of version ${version}`}`

/** More events are left at the swap than may be projected while the tables are locked. */
class TooManyLeft extends Data.TaggedError("TooManyLeft") {}
