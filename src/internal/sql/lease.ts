/**
 * Leases of subscriptions, in a row of each.
 *
 * Who has a lease raised the row's token when the last one had run out, and stores checkpoints only while the token is still that one. So
 * a holder that slept through the end of its lease can't write, whatever it believes. No lock outlives a transaction, so it works
 * through a pooler, and all times are the database's.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type { Position } from "../../EventFeed.js"
import { StoreError } from "../../StoreError.js"
import {
  type Attempts,
  type Key,
  type Lease,
  LeaseLost,
  type LeaseOptions,
  type SubscriptionStoreService
} from "../../SubscriptionStore.js"
import { liveClock, withLiveClock } from "../runtime/clock.js"
import { awaitGrace } from "../runtime/interruption.js"
import { isTransient } from "../runtime/retry.js"
import type { Phase } from "../runtime/sqlError.js"
import { checkPosition } from "../store/readOptions.js"
import { type PlaceRow, partsOf, positionOf } from "./feed.js"
import type { Notifications } from "./notifications.js"
import { execute } from "./pg/execute.js"
import { limitIdle, withTransaction } from "./pg/transaction.js"
import type { StoreTables } from "./storeTables.js"

/** A statement about subscriptions: part of the transaction around it, or on a connection of its own. */
export const subscriptionStatements = (sql: SqlClient.SqlClient) => {
  const statement =
    (phase: Phase) =>
    <A>(effect: Effect.Effect<A, SqlError>): Effect.Effect<A, StoreError> =>
      execute(sql, { operation, phase, savepoint: false }, effect)
  return { reading: statement("reading"), writing: statement("writing") }
}

export const makeLease = (tables: StoreTables, notifications: Notifications): SubscriptionStoreService["lease"] => {
  const { schema, sql } = tables
  const { reading, writing } = subscriptionStatements(sql)
  const ofKey = ({ name, partition }: Key) => sql`name = ${name} and partition = ${partition}`
  const until = (duration: number) => sql`clock_timestamp() + ${duration} * interval '1 millisecond'`

  /** Makes the row of a subscription that runs for the first time, or whose row was deleted while the lease was waited for. */
  const register = ({ from, key }: LeaseOptions) =>
    Effect.gen(function* () {
      const others = yield* reading(
        sql<{ partitions: number }>`select distinct partitions from ${schema}.subscriptions where name = ${key.name}`
      )
      const other = others.find(({ partitions }) => Number(partitions) !== key.partitions)
      if (other !== undefined) {
        return yield* new StoreError({
          reason: "Misconfigured",
          operation,
          description: `subscription ${JSON.stringify(key.name)} has ${other.partitions} partitions in the store, and ${key.partitions} here: what is in which would change`
        })
      }
      const [feedKey, position] = partsOf(from)
      yield* writing(
        sql`insert into ${schema}.subscriptions (name, partition, partitions, feed_key, position)
          values (${key.name}, ${key.partition}, ${key.partitions}, ${feedKey}::xid8, ${position}::bigint)
          on conflict (name, partition) do nothing`
      )
    })

  /** Takes the lease if it is to be had, and tells otherwise in how many milliseconds it runs out. */
  const take = (options: LeaseOptions) =>
    Effect.gen(function* () {
      const { duration, holder, key } = options
      const taken = yield* writing(
        sql<TakenRow>`update ${schema}.subscriptions s
          set token = s.token + 1, holder = ${holder}, leased_until = ${until(duration)}
          from (
            select name, partition, leased_until from ${schema}.subscriptions
            where ${ofKey(key)} and not stopped and coalesce(leased_until < clock_timestamp(), true)
            -- Who holds the row is at work in a transaction.
            for update skip locked
          ) free
          where s.name = free.name and s.partition = free.partition
          returning s.token::text, s.feed_key::text, s.position::text, s.attempted::text,
            free.leased_until is not null as is_taken_over`
      )
      if (taken[0] !== undefined) return takenOf(taken[0])
      const [row] = yield* reading(
        sql<{ left: number | null }>`select
          case when stopped then null else extract(epoch from leased_until - clock_timestamp()) * 1000 end::float8 as left
          from ${schema}.subscriptions where ${ofKey(key)}`
      )
      if (row === undefined) {
        // An abandoned rebuild deletes its row, and so does a restored backup: a wait for a row that is gone would have no end.
        yield* register(options)
        return { wait: 0 }
      }
      return { wait: Math.min(Math.max(row.left ?? slowPoll, fastPoll), slowPoll) }
    })

  const lease = (options: LeaseOptions) =>
    Effect.gen(function* () {
      const { duration, from, key } = options
      yield* checkPosition("SubscriptionStore.lease", from, ["from"])
      yield* register(options)
      // With the token, so that a renewal that is still under way comes too late.
      const giveBack = (taken: Taken) =>
        writing(
          sql`update ${schema}.subscriptions set token = token + 1, holder = null, leased_until = null
            where ${ofKey(key)} and token = ${taken.token}::bigint`
        )
      const {
        attempts: attempted,
        isTakenOver,
        position,
        token
      } = yield* Effect.uninterruptibleMask((restore) =>
        Effect.tap(withLiveClock(waitFor(take(options), giveBack, restore)), (taken) =>
          // The connections of a pool may all have been cut at once.
          Effect.addFinalizer(() =>
            awaitGrace(Effect.ignore(Effect.retry(giveBack(taken), { times: 10, while: isTransient })))
          )
        )
      )
      const lostLease = new LeaseLost({ subscription: key.name, partition: key.partition })
      const mine = sql`${ofKey(key)} and token = ${token}::bigint`
      const onlyMine = <A>(statement: Effect.Effect<ReadonlyArray<A>, SqlError>) =>
        Effect.flatMap(writing(statement), (rows) => (rows[0] === undefined ? lostLease : Effect.succeed(rows[0])))

      const moveTo = (to: Position) => {
        const [feedKey, place] = partsOf(to)
        return sql`update ${schema}.subscriptions
          set feed_key = ${feedKey}::xid8, position = ${place}::bigint, attempted = null, leased_until = ${until(duration)}
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
        ).pipe(withLiveClock, Effect.zipRight(Deferred.succeed(lost, undefined)))
      )

      const held: Lease = {
        position,
        attempts: attempted,
        isTakenOver,
        lost: Deferred.await(lost),
        checkpoint: Effect.map(
          onlyMine(sql<PlaceRow>`select feed_key::text, position::text from ${schema}.subscriptions where ${mine}`),
          positionOf
        ),
        advanceTo: (to) => Effect.zipRight(onlyMine(moveTo(to)), notifications.progressed),
        advance: (to, effect) => {
          const transaction = withTransaction(
            sql,
            operation,
            Effect.gen(function* () {
              // A process that is stopped in the middle must not hold the locks of its transaction for ever.
              yield* onlyMine(
                sql`select ${limitIdle(tables, duration)}
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
              const before = notifications.commits()
              return Effect.flatMap(transaction, (asked) => {
                watch.renewedAt = Math.max(watch.renewedAt, asked)
                // What was committed inside is committed only now.
                return notifications.commits() === before
                  ? notifications.progressed
                  : Effect.zipRight(notifications.progressed, notifications.committed)
              })
            },
            () =>
              Effect.sync(() => {
                watch.atWork--
              })
          )
        },
        park: (failure) => {
          const [feedKey, place] = partsOf(failure.position)
          return Effect.asVoid(
            writing(
              sql`insert into ${schema}.parked_events
                (subscription, aggregate_id, sequence, partition, feed_key, position, type, error, attempts)
                values (${key.name}, ${failure.aggregateId}, ${failure.sequence}, ${key.partition}, ${feedKey}::xid8,
                  ${place}::bigint, ${failure.type}, ${failure.error}, ${failure.attempts})
                on conflict (subscription, aggregate_id, sequence) do nothing`
            )
          )
        },
        parkedAggregates: (aggregateIds) =>
          Effect.gen(function* () {
            const found = writing(
              sql<{
                aggregate_id: string
              }>`select distinct '.' || aggregate_id as aggregate_id from ${schema}.parked_events
                where subscription = ${key.name} and aggregate_id = any(${[...aggregateIds]}::text[])`
            )
            if ((yield* found).length === 0) return new Set<string>()
            // Whoever takes back waits for this transaction, or this one has waited for him.
            yield* writing(sql`select 1 from ${schema}.subscriptions where ${ofKey(key)} for update`)
            return new Set((yield* found).map(({ aggregate_id }) => aggregate_id.slice(1)))
          }),
        attempt: (attempts) =>
          Effect.asVoid(
            onlyMine(
              sql`update ${schema}.subscriptions set attempted = ${attemptsText(attempts)}::jsonb where ${mine} returning token`
            )
          ),
        recordFailure: (failure) =>
          Effect.asVoid(
            onlyMine(
              sql`update ${schema}.subscriptions
                set last_failure = ${failure === undefined ? null : JSON.stringify(failure)}::jsonb,
                  attempted = ${failure === undefined ? null : attemptsText(failure)}::jsonb
                where ${mine} returning token`
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

  return lease
}

// --- internal ---

const operation = "Subscription"

/** How often who waits for a lease looks whether it was given back or has run out, in milliseconds: at least and at most. */
const fastPoll = 20
const slowPoll = 500

interface Taken extends Pick<Lease, "position" | "attempts" | "isTakenOver"> {
  readonly token: string
}

interface TakenRow extends PlaceRow {
  readonly token: string
  readonly attempted: string | null
  readonly is_taken_over: boolean
}

const takenOf = (row: TakenRow): Taken => ({
  token: row.token,
  position: positionOf(row),
  attempts: Option.map(Option.fromNullable(row.attempted), (text): Attempts => JSON.parse(text)),
  isTakenOver: row.is_taken_over
})

const attemptsText = ({ attempts, position }: Attempts): string => JSON.stringify({ position, attempts })

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
      Effect.flatMap(Effect.forkDaemon(Effect.ignore(undo)), (undoing) => awaitGrace(Fiber.await(undoing)))
    )
  }).pipe(
    Effect.flatMap((result) =>
      "token" in result
        ? Effect.succeed(result)
        : Effect.zipRight(restore(Effect.sleep(result.wait)), waitFor(take, giveBack, restore))
    )
  )

/** What is known of a lease here. */
interface Watch {
  /** In milliseconds. */
  readonly duration: number
  /** When it was asked for the last time, with success, by `uptime`. */
  renewedAt: number
  /** How many transactions are open that end with a checkpoint. */
  atWork: number
}

/** Milliseconds by a clock that nobody sets. */
const uptime: Effect.Effect<number> = Effect.map(liveClock.currentTimeNanos, (nanos) => Number(nanos / 1_000_000n))

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
