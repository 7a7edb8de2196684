/**
 * What subscriptions keep, in the tables of the SQL store.
 *
 * A lease is a row's token: who has it raised the token when the last lease had run out, and stores checkpoints only while the token is
 * still that one. So a holder that slept through the end of its lease can't write, whatever it believes. No lock outlives a
 * transaction, so it works through a pooler, and all times are the database's.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import { SqlError } from "@effect/sql/SqlError"
import type * as Statement from "@effect/sql/Statement"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type { Position } from "../EventFeed.js"
import { StoreError } from "../StoreError.js"
import {
  type Failure,
  type Key,
  type Lease,
  LeaseLost,
  type LeaseOptions,
  type SetAside,
  type Standing,
  type SubscriptionStoreService
} from "../SubscriptionStore.js"
import { promptly, withinGrace } from "./promptly.js"
import { isPassing } from "./settling.js"
import { fromSqlError, type Phase } from "./sqlError.js"
import { type FeedRow, feedColumns, feedEventsOf, type PlaceRow, partsOf, positionOf, sliceOf } from "./sqlFeed.js"
import { withTransaction } from "./sqlTransaction.js"
import { insideSqlTransaction } from "./storeTransaction.js"
import { quietly } from "./tracing.js"
import type { WakeUps } from "./wakeUps.js"

/** Where the tables are. */
export interface Home {
  readonly sql: SqlClient.SqlClient
  /** The name of the schema. */
  readonly name: string
  /** The same as an identifier. */
  readonly schema: Statement.Fragment
}

/** Where a store keeps subscriptions, if it is in such tables. */
export const homeOf = (store: SubscriptionStoreService): Home | undefined => homes.get(store)

export const makeSqlSubscriptions = (home: Home, wakeUps: WakeUps): SubscriptionStoreService => {
  const { schema, sql } = home
  const told =
    (phase: Phase) =>
    <A>(effect: Effect.Effect<A, SqlError>): Effect.Effect<A, StoreError> => {
      const statement = quietly(Effect.mapError(effect, (error) => fromSqlError(operation, phase, error)))
      return Effect.flatMap(insideSqlTransaction, (inside) => (inside ? statement : promptly(statement)))
    }
  const reading = told("reading")
  const writing = told("writing")

  const ofKey = ({ name, partition }: Key) => sql`name = ${name} and partition = ${partition}`
  const until = (duration: number) => sql`clock_timestamp() + ${duration} * interval '1 millisecond'`

  /** Makes the row of a subscription that runs for the first time. */
  const register = ({ from, key }: LeaseOptions) =>
    Effect.gen(function* () {
      const others = yield* reading(
        sql<{ partitions: number }>`select distinct partitions from ${schema}.subscriptions where name = ${key.name}`
      )
      const other = others.find(({ partitions }) => partitions !== key.partitions)
      if (other !== undefined) {
        return yield* new StoreError({
          reason: "Misconfigured",
          operation,
          description: `subscription ${JSON.stringify(key.name)} has ${other.partitions} partitions in the store, and ${key.partitions} here: what is in which would change`
        })
      }
      const [transactionId, position] = partsOf(from)
      yield* writing(
        sql`insert into ${schema}.subscriptions (name, partition, partitions, transaction_id, position)
          values (${key.name}, ${key.partition}, ${key.partitions}, ${transactionId}::xid8, ${position}::bigint)
          on conflict (name, partition) do nothing`
      )
    })

  /** Takes the lease if it is to be had, and tells otherwise in how many milliseconds it runs out. */
  const take = ({ duration, holder, key }: LeaseOptions) =>
    Effect.gen(function* () {
      const taken = yield* writing(
        sql<PlaceRow & { readonly token: string }>`update ${schema}.subscriptions s
          set token = s.token + 1, holder = ${holder}, leased_until = ${until(duration)}
          from (
            select name, partition from ${schema}.subscriptions
            where ${ofKey(key)} and not stopped and coalesce(leased_until < clock_timestamp(), true)
            -- Who holds the row is at work in a transaction.
            for update skip locked
          ) free
          where s.name = free.name and s.partition = free.partition
          returning s.token::text, s.transaction_id::text, s.position::text`
      )
      if (taken[0] !== undefined) return { token: taken[0].token, position: positionOf(taken[0]) }
      const [row] = yield* reading(
        sql<{ left: number | null }>`select
          case when stopped then null else extract(epoch from leased_until - clock_timestamp()) * 1000 end::float8 as left
          from ${schema}.subscriptions where ${ofKey(key)}`
      )
      return { wait: Math.min(Math.max(row?.left ?? slowPoll, fastPoll), slowPoll) }
    })

  const lease = (options: LeaseOptions) =>
    Effect.gen(function* () {
      const { duration, key } = options
      yield* register(options)
      // With the token, so that a renewal that is still under way comes too late.
      const giveBack = (taken: Taken) =>
        writing(
          sql`update ${schema}.subscriptions set token = token + 1, holder = null, leased_until = null
            where ${ofKey(key)} and token = ${taken.token}::bigint`
        )
      const { position, token } = yield* Effect.uninterruptibleMask((restore) =>
        Effect.tap(Effect.withClock(waitFor(take(options), giveBack, restore), machine), (taken) =>
          // The connections of a pool may all have been cut at once.
          Effect.addFinalizer(() =>
            withinGrace(Effect.ignore(Effect.retry(giveBack(taken), { times: 10, while: isPassing })))
          )
        )
      )
      const lostLease = new LeaseLost({ subscription: key.name, partition: key.partition })
      const mine = sql`${ofKey(key)} and token = ${token}::bigint`
      const onlyMine = <A>(statement: Effect.Effect<ReadonlyArray<A>, SqlError>) =>
        Effect.flatMap(writing(statement), (rows) => (rows[0] === undefined ? lostLease : Effect.succeed(rows[0])))

      const moveTo = (to: Position) => {
        const [transactionId, place] = partsOf(to)
        return sql`update ${schema}.subscriptions
          set transaction_id = ${transactionId}::xid8, position = ${place}::bigint, leased_until = ${until(duration)}
          where ${mine} returning token`
      }

      const lost = yield* Deferred.make<void>()
      const watch: Watch = { duration, renewedAt: yield* uptime, atWork: 0 }
      yield* Effect.forkScoped(
        keepAlive(
          Effect.map(
            writing(
              sql<{ token: string }>`with renewed as (
                  update ${schema}.subscriptions s set leased_until = ${until(duration)}
                  from (
                    select name, partition from ${schema}.subscriptions where ${mine}
                    -- This process itself may be at work, and renews the lease when it is done.
                    for update skip locked
                  ) held
                  where s.name = held.name and s.partition = held.partition
                )
                select token::text from ${schema}.subscriptions where ${ofKey(key)}`
            ),
            ([row]) => row?.token === token
          ),
          watch
        ).pipe(Effect.withClock(machine), Effect.zipRight(Deferred.succeed(lost, undefined)))
      )

      const held: Lease = {
        position,
        lost: Deferred.await(lost),
        checkpoint: Effect.map(
          onlyMine(
            sql<PlaceRow>`select transaction_id::text, position::text from ${schema}.subscriptions where ${mine}`
          ),
          positionOf
        ),
        pass: (to) => Effect.zipRight(onlyMine(moveTo(to)), wakeUps.progressed),
        advance: (to, effect) => {
          const transaction = withTransaction(
            sql,
            operation,
            Effect.gen(function* () {
              // A process that is stopped in the middle must not hold the locks of its transaction for ever.
              yield* onlyMine(
                sql`select set_config('idle_in_transaction_session_timeout', ${String(Math.ceil(duration))}, true)
                  from ${schema}.subscriptions where ${mine}`
              )
              yield* effect
              const asked = yield* uptime
              yield* onlyMine(moveTo(to))
              return asked
            })
          )
          return Effect.acquireUseRelease(
            Effect.sync(() => {
              watch.atWork++
            }),
            () => {
              const before = wakeUps.commits()
              return Effect.flatMap(transaction, (asked) => {
                watch.renewedAt = Math.max(watch.renewedAt, asked)
                // What was committed inside is committed only now.
                return wakeUps.commits() === before
                  ? wakeUps.progressed
                  : Effect.zipRight(wakeUps.progressed, wakeUps.committed)
              })
            },
            () =>
              Effect.sync(() => {
                watch.atWork--
              })
          )
        },
        setAside: (failure) => {
          const [transactionId, place] = partsOf(failure.position)
          return Effect.asVoid(
            writing(
              sql`insert into ${schema}.events_set_aside
                (subscription, aggregate_id, sequence, partition, transaction_id, position, type, error, attempts)
                values (${key.name}, ${failure.aggregateId}, ${failure.sequence}, ${key.partition}, ${transactionId}::xid8,
                  ${place}::bigint, ${failure.type}, ${failure.error}, ${failure.attempts})
                on conflict (subscription, aggregate_id, sequence) do nothing`
            )
          )
        },
        blocked: (aggregateIds) =>
          Effect.gen(function* () {
            const found = writing(
              sql<{
                aggregate_id: string
              }>`select distinct '.' || aggregate_id as aggregate_id from ${schema}.events_set_aside
                where subscription = ${key.name} and aggregate_id = any(${[...aggregateIds]}::text[])`
            )
            if ((yield* found).length === 0) return new Set<string>()
            // Whoever takes back waits for this transaction, or this one has waited for him.
            yield* writing(sql`select 1 from ${schema}.subscriptions where ${ofKey(key)} for update`)
            return new Set((yield* found).map(({ aggregate_id }) => aggregate_id.slice(1)))
          }),
        failing: (failure) =>
          Effect.asVoid(
            onlyMine(
              sql`update ${schema}.subscriptions
                set last_failure = ${failure === undefined ? null : JSON.stringify(failure)}::jsonb where ${mine} returning token`
            )
          ),
        stop: (failure) =>
          Effect.asVoid(
            onlyMine(
              sql`update ${schema}.subscriptions set stopped = true, last_failure = ${JSON.stringify(failure)}::jsonb
                where ${mine} returning token`
            )
          )
      }
      return held
    })

  const service: SubscriptionStoreService = {
    lease,
    standing: (name) =>
      Effect.map(
        reading(
          sql<StandingRow>`select s.partition, s.partitions, s.transaction_id::text, s.position::text, s.stopped,
              case when s.leased_until > clock_timestamp() then s.holder end as holder, s.last_failure::text,
              (select count(*)::int from ${schema}.events_set_aside e
                where e.subscription = s.name and e.partition = s.partition) as set_aside
            from ${schema}.subscriptions s where s.name = ${name} order by s.partition`
        ),
        (rows) => rows.map((row) => standingOf(name, row))
      ),
    reached: (name, position, aggregateId) => {
      const [transactionId, place] = partsOf(position)
      const all = aggregateId === undefined
      const arrived = Effect.map(
        reading(
          sql<{
            arrived: boolean | null
          }>`select bool_and((transaction_id, position) >= (${transactionId}::xid8, ${place}::bigint)) as arrived
            from ${schema}.subscriptions
            where name = ${name} ${all ? sql`` : sql`and partition = ${sliceOf(sql, sql`${aggregateId}::text`, sql`partitions`)}`}`
        ),
        ([row]) => row?.arrived === true
      )
      return waitUntil(arrived, wakeUps)
    },
    resume: (name) =>
      Effect.asVoid(
        writing(
          sql`update ${schema}.subscriptions set stopped = false, last_failure = null where name = ${name} and stopped`
        )
      ),
    setAside: (name) =>
      Effect.map(
        reading(
          sql<SetAsideRow>`select '.' || aggregate_id as aggregate_id, sequence, partition, transaction_id::text, position::text,
              '.' || type as type, '.' || error as error, attempts, (extract(epoch from set_aside_at) * 1000)::float8 as since
            from ${schema}.events_set_aside where subscription = ${name} order by events_set_aside.transaction_id, events_set_aside.position`
        ),
        (rows) =>
          rows.map(
            (row): SetAside => ({
              position: positionOf(row),
              aggregateId: row.aggregate_id.slice(1),
              sequence: row.sequence,
              type: row.type.slice(1),
              error: row.error.slice(1),
              attempts: row.attempts,
              partition: row.partition,
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
            sql`select set_config('idle_in_transaction_session_timeout', ${patience}, true) from ${schema}.subscriptions
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
      return Effect.flatMap(insideSqlTransaction, (inside) => (inside ? transaction : again)).pipe(
        Effect.tap(wakeUps.committed)
      )
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

/** How often who waits for a lease looks whether it was given back or has run out, in milliseconds: at least and at most. */
const fastPoll = 20
const slowPoll = 500

/** How long one that takes an event back may leave its transaction idle, in milliseconds. */
const patience = "60000"

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
  partition: row.partition,
  partitions: row.partitions,
  position: positionOf(row) as Position,
  holder: Option.fromNullable(row.holder),
  stopped: row.stopped,
  lastFailure: Option.map(Option.fromNullable(row.last_failure), (text): Failure => JSON.parse(text)),
  setAside: row.set_aside
})

interface Taken {
  readonly token: string
  readonly position: Position
}

/**
 * Waits for the lease, interruptibly by `restore`. One that is had in the moment of an interruption is given back, so that others need
 * not wait until it runs out.
 */
const waitFor = (
  take: Effect.Effect<Taken | { readonly wait: number }, StoreError>,
  giveBack: (taken: Taken) => Effect.Effect<unknown, StoreError>,
  restore: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
): Effect.Effect<Taken, StoreError> =>
  Effect.flatMap(Effect.forkDaemon(take), (taking) => {
    const undo = Effect.flatMap(Fiber.join(taking), (result) => ("token" in result ? giveBack(result) : Effect.void))
    return Effect.onInterrupt(restore(Fiber.join(taking)), () =>
      Effect.flatMap(Effect.forkDaemon(Effect.ignore(undo)), (undoing) => withinGrace(Fiber.await(undoing)))
    )
  }).pipe(
    Effect.flatMap((result) =>
      "token" in result
        ? Effect.succeed(result)
        : Effect.zipRight(restore(Effect.sleep(result.wait)), waitFor(take, giveBack, restore))
    )
  )

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
  return Effect.withClock(look(fastLook), machine)
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

/** What is known of a lease here. */
interface Watch {
  /** In milliseconds. */
  readonly duration: number
  /** When it was asked for the last time, with success, by `uptime`. */
  renewedAt: number
  /** How many transactions are open that end with a checkpoint. */
  atWork: number
}

/** The time of the machine, whatever clock the program has: it is the database that is waited for. */
const machine = Clock.make()

/** Milliseconds by a clock that nobody sets. */
const uptime: Effect.Effect<number> = Effect.map(machine.currentTimeNanos, (nanos) => Number(nanos / 1_000_000n))

/**
 * Renews the lease again and again; ends when it is lost, or could not be renewed until it must have run out. While a transaction is
 * open that ends with a checkpoint it is for the database to say: its pool may have no other connection to renew it by.
 */
const keepAlive = (renew: Effect.Effect<boolean, StoreError>, watch: Watch): Effect.Effect<void> =>
  Effect.gen(function* () {
    const { duration } = watch
    for (;;) {
      yield* Effect.sleep(duration / 3)
      const asked = yield* uptime
      const renewed = yield* Effect.exit(
        Effect.timeoutFail(Effect.disconnect(renew), {
          // A process that was stopped for a while asks before it gives up.
          duration: Math.max(watch.renewedAt + duration - asked, duration / 3),
          onTimeout: () => "late"
        })
      )
      if (Exit.isSuccess(renewed)) {
        if (!renewed.value) return
        watch.renewedAt = Math.max(watch.renewedAt, asked)
      } else if (watch.atWork === 0 && (yield* uptime) >= watch.renewedAt + duration) return
    }
  })
