/**
 * What subscriptions keep, in the tables of the SQL store.
 */
import { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { StoreError } from "../StoreError.js"
import type { Failure, SetAside, Standing, SubscriptionStoreService } from "../SubscriptionStore.js"
import { limitIdle } from "./embedded.js"
import { checkPosition } from "./feedInput.js"
import { onMachineTime } from "./machineTime.js"
import { fromSqlError } from "./sqlError.js"
import { type FeedRow, feedColumns, feedEventsOf, type PlaceRow, partsOf, positionOf, sliceOf } from "./sqlFeed.js"
import { type Home, makeLease, subscriptionStatements } from "./sqlLease.js"
import { withTransaction } from "./sqlTransaction.js"
import { whetherInside } from "./storeTransaction.js"
import type { WakeUps } from "./wakeUps.js"

/** Where a store keeps subscriptions, if it is in such tables. */
export const homeOf = (store: SubscriptionStoreService): Home | undefined => homes.get(store)

export const makeSqlSubscriptions = (home: Home, wakeUps: WakeUps): SubscriptionStoreService => {
  const { schema, sql } = home
  const { reading, writing } = subscriptionStatements(sql)
  const service: SubscriptionStoreService = {
    lease: makeLease(home, wakeUps),
    standing: (name) =>
      Effect.map(
        reading(
          sql<StandingRow>`select s.partition, s.partitions, s.feed_key::text, s.position::text, s.stopped,
              case when s.leased_until > clock_timestamp() then s.holder end as holder, s.last_failure::text,
              (select count(*)::int from ${schema}.events_set_aside e
                where e.subscription = s.name and e.partition = s.partition) as set_aside
            from ${schema}.subscriptions s where s.name = ${name} order by s.partition`
        ),
        (rows) => rows.map((row) => standingOf(name, row))
      ),
    reached: (name, position, aggregateId) => {
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
        waitUntil(arrivedAt(partsOf(position)), wakeUps)
      )
    },
    resume: (name) =>
      Effect.asVoid(
        writing(
          sql`update ${schema}.subscriptions set stopped = false, last_failure = null, attempted = null
            where name = ${name} and stopped`
        )
      ),
    setAside: (name) =>
      Effect.map(
        reading(
          sql<SetAsideRow>`select '.' || aggregate_id as aggregate_id, sequence, partition, feed_key::text, position::text,
              '.' || type as type, '.' || error as error, attempts, (extract(epoch from set_aside_at) * 1000)::float8 as since
            from ${schema}.events_set_aside where subscription = ${name} order by events_set_aside.feed_key, events_set_aside.position`
        ),
        (rows) =>
          rows.map(
            (row): SetAside => ({
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
    takeBack: (name, { aggregateId, sequence }, effect) => {
      const transaction = withTransaction(
        sql,
        operation,
        Effect.gen(function* () {
          const [row] = yield* writing(
            sql<{ partition: number }>`select partition from ${schema}.events_set_aside
              where subscription = ${name} and aggregate_id = ${aggregateId} and sequence = ${sequence}`
          )
          if (row === undefined) return false
          // Who holds the lease waits for this one: not for ever, if this process is stopped.
          yield* writing(
            sql`select ${limitIdle(home, patience)} from ${schema}.subscriptions
              where name = ${name} and partition = ${row.partition} for update`
          )
          const deleted = yield* writing(
            sql`delete from ${schema}.events_set_aside
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
      return whetherInside((inside) => (inside ? transaction : again)).pipe(Effect.tap(wakeUps.committed))
    },
    discard: (name, { aggregateId, sequence }) =>
      Effect.map(
        writing(
          sql`delete from ${schema}.events_set_aside
            where subscription = ${name} and aggregate_id = ${aggregateId} and sequence = ${sequence} returning 1 as one`
        ),
        (rows) => rows.length > 0
      )
  }
  homes.set(service, home)
  return service
}

// --- internal ---

const homes = new WeakMap<SubscriptionStoreService, Home>()

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
  readonly set_aside: number
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

const standingOf = (name: string, row: StandingRow): Standing => ({
  name,
  partition: Number(row.partition),
  partitions: Number(row.partitions),
  position: positionOf(row),
  holder: Option.fromNullable(row.holder),
  stopped: row.stopped,
  lastFailure: Option.map(Option.fromNullable(row.last_failure), (text): Failure => JSON.parse(text)),
  setAside: Number(row.set_aside)
})

/** Looks again and again: whenever a subscription that runs here has come further, and from time to time. */
const waitUntil = (arrived: Effect.Effect<boolean, StoreError>, wakeUps: WakeUps): Effect.Effect<void, StoreError> => {
  const look = (pause: number): Effect.Effect<void, StoreError> =>
    Effect.flatMap(arrived, (there) =>
      there
        ? Effect.void
        : Effect.zipRight(
            Effect.raceFirst(nextProgress(wakeUps), Effect.sleep(pause)),
            look(Math.min(pause * 2, slowLook))
          )
    )
  return onMachineTime(look(fastLook))
}

const fastLook = 5
const slowLook = 100

const nextProgress = (wakeUps: WakeUps): Effect.Effect<void> =>
  Effect.async((resume) => {
    const stop = wakeUps.onProgress(() => {
      stop()
      resume(Effect.void)
    })
    return Effect.sync(stop)
  })
