/**
 * The `SubscriptionStore` of the SQL store, in the tables `subscriptions` and `parked_events`. `SqlStore.layer` makes
 * it.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { Position, StreamPosition } from "../../EventFeed.js"
import type { StoreError } from "../../StoreError.js"
import type { EventFailure, ParkedEvent, PartitionState, SubscriptionStoreService } from "../../SubscriptionStore.js"
import { whenInTransaction } from "../runtime/ambientTransaction.js"
import { withLiveClock } from "../runtime/clock.js"
import { asStoreError } from "../runtime/storeFailure.js"
import { checkPosition } from "../store/readOptions.js"
import { sliceOf } from "./feedConditions.js"
import { type FeedRow, feedColumns, feedEventsOf } from "./feedRows.js"
import { makeLease } from "./lease.js"
import { joinNodes, nodesOf } from "./nodes.js"
import type { Notifications } from "./notifications.js"
import type { CommandRunner } from "./pg/commandRunner.js"
import { limitIdle, withTransaction } from "./pg/transaction.js"
import { type PositionRow, positionOf, rowValue, storedPosition } from "./position.js"
import type { StoreTables } from "./storeTables.js"
import { makeStatements, operation } from "./subscriptionStatements.js"

export const makeSqlSubscriptions = (
  tables: StoreTables,
  runner: CommandRunner,
  notifications: Notifications
): SubscriptionStoreService => {
  const { schema, sql } = tables
  const { execute, query, queryApart } = makeStatements(sql)
  return {
    lease: makeLease(tables, runner, notifications),
    join: (options) => joinNodes(tables, options),
    nodes: (name) => nodesOf(tables, name),
    partitions: (name) =>
      Effect.map(
        queryApart(
          sql<PartitionRow>`select s.partition, s.partitions, ${storedPosition(sql)}, s.stopped,
              s.attempted is not null as retrying,
              case when s.leased_until > clock_timestamp() then s.holder end as holder, s.last_failure::text,
              (case when s.leased_until > clock_timestamp() then extract(epoch from s.held_since) * 1000 end)::float8
                as held_since,
              (select count(*)::int from ${schema}.parked_events e
                where e.subscription = s.name and e.partition = s.partition) as parked
            from ${schema}.subscriptions s where s.name = ${name} order by s.partition`
        ),
        (rows) => rows.map((row) => partitionOf(name, row))
      ),
    awaitPosition: (name, position, aggregateId) =>
      Effect.zipRight(
        checkPosition("SubscriptionStore.awaitPosition", position, ["position"]),
        awaitTrue(
          Effect.suspend(() => hasReached(tables, name, position, aggregateId)),
          notifications
        )
      ),
    resume: (name) =>
      Effect.asVoid(
        execute(
          sql`update ${schema}.subscriptions set stopped = false, last_failure = null, attempted = null
            where name = ${name} and stopped`
        )
      ),
    parked: (name) =>
      Effect.map(
        query(
          sql<ParkedRow>`select '.' || aggregate_id as aggregate_id, sequence, partition, ${storedPosition(sql)},
              '.' || type as type, '.' || error as error, attempts, (extract(epoch from parked_at) * 1000)::float8 as since
            from ${schema}.parked_events where subscription = ${name} order by parked_events.feed_key, parked_events.position`
        ),
        (rows) => rows.map(parkedEventOf)
      ),
    retryParked: (name, event, effect) => {
      const transaction = withTransaction(
        sql,
        operation,
        Effect.gen(function* () {
          const parked = yield* unpark(tables, name, event)
          if (parked === undefined) return false
          yield* effect(parked)
          return true
        })
      )
      // Where the handler takes locks, a consumer takes them in another order, so the two may deadlock.
      const retried = Effect.retry(transaction, { times: 5, while: isContention })
      return notifications.afterCommit(
        [],
        whenInTransaction((inside) => (inside ? transaction : retried))
      )
    },
    discardParked: (name, event) => Effect.map(execute(deleteParked(tables, name, event)), (rows) => rows.length > 0)
  }
}

// --- internal ---

/** How long `retryParked` may leave its transaction idle, in milliseconds. */
const maxIdle = 60_000

/** The pauses between two polls of `awaitPosition`, in milliseconds. */
const firstPollDelay = 5
const longestPollDelay = 100

interface PartitionRow extends PositionRow {
  readonly partition: number
  readonly partitions: number
  readonly stopped: boolean
  readonly retrying: boolean
  readonly holder: string | null
  readonly held_since: number | null
  readonly last_failure: string | null
  readonly parked: number
}

const partitionOf = (name: string, row: PartitionRow): PartitionState => ({
  name,
  partition: Number(row.partition),
  partitions: Number(row.partitions),
  position: positionOf(row),
  holder: Option.fromNullable(row.holder),
  heldSince: Option.map(Option.fromNullable(row.held_since), Math.floor),
  stopped: row.stopped,
  retrying: row.retrying,
  lastFailure: Option.map(Option.fromNullable(row.last_failure), (text): EventFailure => JSON.parse(text)),
  parked: Number(row.parked)
})

/** Texts have a dot in front, as in a `FeedRow`. */
interface ParkedRow extends PositionRow {
  readonly aggregate_id: string
  readonly sequence: number
  readonly partition: number
  readonly type: string
  readonly error: string
  readonly attempts: number
  readonly since: number
}

const parkedEventOf = (row: ParkedRow): ParkedEvent => ({
  position: positionOf(row),
  aggregateId: row.aggregate_id.slice(1),
  sequence: Number(row.sequence),
  type: row.type.slice(1),
  error: row.error.slice(1),
  attempts: Number(row.attempts),
  partition: Number(row.partition),
  since: Math.floor(row.since)
})

/** Whether the database ended a conflict, in a statement of this library or of the handler. */
const isContention = (error: unknown): boolean => asStoreError(operation, error)?.reason === "Contention"

/** Whether all partitions of a subscription have reached the position, or the partition of one aggregate. */
const hasReached = (
  tables: StoreTables,
  name: string,
  position: Position,
  aggregateId: string | undefined
): Effect.Effect<boolean, StoreError> => {
  const { schema, sql } = tables
  const isOfAll = aggregateId === undefined
  const isOfAggregate = isOfAll
    ? sql``
    : sql`and partition = ${sliceOf(sql, sql`${aggregateId}::text`, sql`partitions`)}`
  return Effect.map(
    makeStatements(sql).queryApart(
      sql<{ reached: boolean | null }>`select bool_and((feed_key, position) >= ${rowValue(tables, position)})
          and count(*) = ${isOfAll ? sql`min(partitions)` : sql`1`} as reached
        from ${schema}.subscriptions where name = ${name} ${isOfAggregate}`
    ),
    ([row]) => row?.reached === true
  )
}

/** Polls until it is true: after each progress of a subscription in this process, and at the poll delay. */
const awaitTrue = (
  condition: Effect.Effect<boolean, StoreError>,
  notifications: Notifications
): Effect.Effect<void, StoreError> => {
  const poll = (delay: number): Effect.Effect<void, StoreError> =>
    Effect.flatMap(condition, (isTrue) =>
      isTrue
        ? Effect.void
        : Effect.zipRight(
            Effect.raceFirst(awaitProgress(notifications), Effect.sleep(delay)),
            poll(Math.min(delay * 2, longestPollDelay))
          )
    )
  return withLiveClock(poll(firstPollDelay))
}

const awaitProgress = (notifications: Notifications): Effect.Effect<void> =>
  Effect.async((resume) => {
    const stop = notifications.onProgress(() => {
      stop()
      resume(Effect.void)
    })
    return Effect.sync(stop)
  })

const deleteParked = ({ schema, sql }: StoreTables, name: string, { aggregateId, sequence }: StreamPosition) =>
  sql`delete from ${schema}.parked_events
    where subscription = ${name} and aggregate_id = ${aggregateId} and sequence = ${sequence} returning 1 as one`

/**
 * Locks the row of an aggregate's partition. If the number of partitions is changed during the wait for the lock, it is
 * another row.
 */
const lockPartition = (tables: StoreTables, name: string, aggregateId: string): Effect.Effect<void, StoreError> =>
  Effect.gen(function* () {
    const { schema, sql } = tables
    const { execute, query } = makeStatements(sql)
    const own = sliceOf(sql, sql`${aggregateId}::text`, sql`partitions`)
    for (;;) {
      // The holder of the lease waits for this lock, so the session of a process that is stopped ends after `maxIdle`.
      const locked = yield* execute(
        sql`select ${limitIdle(tables, maxIdle)} from ${schema}.subscriptions
          where name = ${name} and partition = ${own} for update`
      )
      if (locked.length > 0) return
      const found = yield* query(
        sql`select 1 from ${schema}.subscriptions where name = ${name} and partition = ${own} limit 1`
      )
      if (found.length === 0) return
    }
  })

/**
 * Takes an event off the parked ones, and returns it; undefined if it is not parked. The row of its partition stays
 * locked.
 */
const unpark = (tables: StoreTables, name: string, event: StreamPosition) =>
  Effect.gen(function* () {
    const { schema, sql } = tables
    const { aggregateId, sequence } = event
    const { execute, query } = makeStatements(sql)
    const [row] = yield* execute(
      sql`select 1 from ${schema}.parked_events
        where subscription = ${name} and aggregate_id = ${aggregateId} and sequence = ${sequence}`
    )
    if (row === undefined) return undefined
    yield* lockPartition(tables, name, aggregateId)
    const deleted = yield* execute(deleteParked(tables, name, event))
    const found = feedEventsOf(
      yield* query(
        sql<FeedRow>`select ${feedColumns(sql)} from ${schema}.event_log
          where aggregate_id = ${aggregateId} and sequence = ${sequence}`
      )
    )
    return deleted.length === 0 ? undefined : found[0]
  })
