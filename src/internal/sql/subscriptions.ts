/**
 * What subscriptions keep, in the tables of the SQL store.
 */
import { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { StoreError } from "../../StoreError.js"
import type { EventFailure, ParkedEvent, PartitionState, SubscriptionStoreService } from "../../SubscriptionStore.js"
import { whenInTransaction } from "../runtime/ambientTransaction.js"
import { withLiveClock } from "../runtime/clock.js"
import { fromSqlError } from "../runtime/sqlError.js"
import { checkPosition } from "../store/readOptions.js"
import { type FeedRow, feedColumns, feedEventsOf, type PlaceRow, partsOf, positionOf, sliceOf } from "./feed.js"
import { makeLease, subscriptionStatements } from "./lease.js"
import type { Notifications } from "./notifications.js"
import { limitIdle, withTransaction } from "./pg/transaction.js"
import type { StoreTables } from "./storeTables.js"

export const makeSqlSubscriptions = (tables: StoreTables, notifications: Notifications): SubscriptionStoreService => {
  const { schema, sql } = tables
  const { reading, writing } = subscriptionStatements(sql)
  return {
    lease: makeLease(tables, notifications),
    partitions: (name) =>
      Effect.map(
        reading(
          sql<StandingRow>`select s.partition, s.partitions, s.feed_key::text, s.position::text, s.stopped,
              case when s.leased_until > clock_timestamp() then s.holder end as holder, s.last_failure::text,
              (select count(*)::int from ${schema}.parked_events e
                where e.subscription = s.name and e.partition = s.partition) as parked
            from ${schema}.subscriptions s where s.name = ${name} order by s.partition`
        ),
        (rows) => rows.map((row) => standingOf(name, row))
      ),
    awaitPosition: (name, position, aggregateId) => {
      const all = aggregateId === undefined
      const arrivedAt = ([feedKey, place]: readonly [string, string]) =>
        Effect.map(
          reading(
            sql<{
              arrived: boolean | null
            }>`select bool_and((feed_key, position) >= (${feedKey}::xid8, ${place}::bigint))
              and count(*) = ${all ? sql`min(partitions)` : sql`1`} as arrived
            from ${schema}.subscriptions
            where name = ${name} ${all ? sql`` : sql`and partition = ${sliceOf(sql, sql`${aggregateId}::text`, sql`partitions`)}`}`
          ),
          ([row]) => row?.arrived === true
        )
      return Effect.flatMap(checkPosition("SubscriptionStore.reached", position, ["position"]), () =>
        waitUntil(arrivedAt(partsOf(position)), notifications)
      )
    },
    resume: (name) =>
      Effect.asVoid(
        writing(
          sql`update ${schema}.subscriptions set stopped = false, last_failure = null, attempted = null
            where name = ${name} and stopped`
        )
      ),
    parked: (name) =>
      Effect.map(
        reading(
          sql<SetAsideRow>`select '.' || aggregate_id as aggregate_id, sequence, partition, feed_key::text, position::text,
              '.' || type as type, '.' || error as error, attempts, (extract(epoch from parked_at) * 1000)::float8 as since
            from ${schema}.parked_events where subscription = ${name} order by parked_events.feed_key, parked_events.position`
        ),
        (rows) =>
          rows.map(
            (row): ParkedEvent => ({
              position: positionOf(row),
              aggregateId: row.aggregate_id.slice(1),
              sequence: Number(row.sequence),
              type: row.type.slice(1),
              error: row.error.slice(1),
              attempts: Number(row.attempts),
              partition: Number(row.partition),
              since: Math.floor(row.since)
            })
          )
      ),
    retryParked: (name, { aggregateId, sequence }, effect) => {
      const transaction = withTransaction(
        sql,
        operation,
        Effect.gen(function* () {
          const [row] = yield* writing(
            sql<{ partition: number }>`select partition from ${schema}.parked_events
              where subscription = ${name} and aggregate_id = ${aggregateId} and sequence = ${sequence}`
          )
          if (row === undefined) return false
          // Who holds the lease waits for this one: not for ever, if this process is stopped.
          yield* writing(
            sql`select ${limitIdle(tables, patience)} from ${schema}.subscriptions
              where name = ${name} and partition = ${row.partition} for update`
          )
          const deleted = yield* writing(
            sql`delete from ${schema}.parked_events
              where subscription = ${name} and aggregate_id = ${aggregateId} and sequence = ${sequence} returning 1 as one`
          )
          const [event] = feedEventsOf(
            yield* reading(
              sql<FeedRow>`select ${feedColumns(sql)} from ${schema}.event_log
                where aggregate_id = ${aggregateId} and sequence = ${sequence}`
            )
          )
          if (deleted.length === 0 || event === undefined) return false
          yield* effect(event)
          return true
        })
      )
      // Its locks are taken in another order than those of who holds the lease, if the handler has some.
      const again = Effect.retry(transaction, {
        times: 5,
        while: isContention
      })
      return whenInTransaction((inside) => (inside ? transaction : again)).pipe(Effect.tap(notifications.committed))
    },
    discardParked: (name, { aggregateId, sequence }) =>
      Effect.map(
        writing(
          sql`delete from ${schema}.parked_events
            where subscription = ${name} and aggregate_id = ${aggregateId} and sequence = ${sequence} returning 1 as one`
        ),
        (rows) => rows.length > 0
      )
  }
}

// --- internal ---

const operation = "Subscription"

/** Whether the database broke off a conflict, in a statement of this library or of the handler's own. */
const isContention = (error: unknown): boolean => {
  const told = error instanceof SqlError ? fromSqlError(operation, "writing", error) : error
  return told instanceof StoreError && told.reason === "Contention"
}

/** How long one that takes an event back may leave its transaction idle, in milliseconds. */
const patience = 60_000

interface StandingRow extends PlaceRow {
  readonly partition: number
  readonly partitions: number
  readonly stopped: boolean
  readonly holder: string | null
  readonly last_failure: string | null
  readonly parked: number
}

interface SetAsideRow extends PlaceRow {
  readonly aggregate_id: string
  readonly sequence: number
  readonly partition: number
  readonly type: string
  readonly error: string
  readonly attempts: number
  readonly since: number
}

const standingOf = (name: string, row: StandingRow): PartitionState => ({
  name,
  partition: Number(row.partition),
  partitions: Number(row.partitions),
  position: positionOf(row),
  holder: Option.fromNullable(row.holder),
  stopped: row.stopped,
  lastFailure: Option.map(Option.fromNullable(row.last_failure), (text): EventFailure => JSON.parse(text)),
  parked: Number(row.parked)
})

/** Looks again and again: whenever a subscription that runs here has come further, and from time to time. */
const waitUntil = (
  arrived: Effect.Effect<boolean, StoreError>,
  notifications: Notifications
): Effect.Effect<void, StoreError> => {
  const look = (pause: number): Effect.Effect<void, StoreError> =>
    Effect.flatMap(arrived, (there) =>
      there
        ? Effect.void
        : Effect.zipRight(
            Effect.raceFirst(nextProgress(notifications), Effect.sleep(pause)),
            look(Math.min(pause * 2, slowLook))
          )
    )
  return withLiveClock(look(fastLook))
}

const fastLook = 5
const slowLook = 100

const nextProgress = (notifications: Notifications): Effect.Effect<void> =>
  Effect.async((resume) => {
    const stop = notifications.onProgress(() => {
      stop()
      resume(Effect.void)
    })
    return Effect.sync(stop)
  })
