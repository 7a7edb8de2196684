/**
 * Takes and releases the leases of subscriptions, each in a row of the table `subscriptions`. Subscriptions and
 * rebuilds use it.
 *
 * Taking a lease raises the fencing token of the row, once the last lease has run out. A checkpoint is stored only
 * under the current token, so a holder that was suspended beyond the end of its lease can't write (`heldLease.ts`).
 *
 * No lock outlives a transaction, so leases work through a connection pooler. All times are those of the database.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type { Position } from "../../EventFeed.js"
import type { StoreError } from "../../StoreError.js"
import {
  type Attempts,
  type LeaseOptions,
  PartitionsChanged,
  type SubscriptionStoreService
} from "../../SubscriptionStore.js"
import { withLiveClock } from "../runtime/clock.js"
import { awaitGrace } from "../runtime/interruption.js"
import { isTransient } from "../runtime/retry.js"
import { checkPosition } from "../store/readOptions.js"
import { keepAlive, type LeaseState, makeHeldLease, type TakenLease, uptime } from "./heldLease.js"
import type { Notifications } from "./notifications.js"
import type { CommandRunner } from "./pg/commandRunner.js"
import { limitIdle, withTransaction } from "./pg/transaction.js"
import { type PositionRow, positionOf, positionValues, storedPosition } from "./position.js"
import type { StoreTables } from "./storeTables.js"
import { isHeldBy, isOfKey, leaseEnd, makeStatements, operation } from "./subscriptionStatements.js"

export const makeLease =
  (tables: StoreTables, runner: CommandRunner, notifications: Notifications): SubscriptionStoreService["lease"] =>
  (options) =>
    Effect.gen(function* () {
      const { duration, from } = options
      yield* checkPosition("SubscriptionStore.lease", from, ["from"])
      yield* register(tables, options)
      const taken = yield* takeInScope(tables, options)
      const lost = yield* Deferred.make<void>()
      const state: LeaseState = { duration, renewedAt: yield* uptime, openTransactions: 0 }
      yield* Effect.forkScoped(
        keepAlive(tables, options, taken, state).pipe(withLiveClock, Effect.zipRight(Deferred.succeed(lost, undefined)))
      )
      return makeHeldLease(tables, runner, notifications, options, taken, state, Deferred.await(lost))
    })

// --- internal ---

/** The shortest and the longest pause between two attempts to take a lease, in milliseconds. */
const shortestPause = 20
const longestPause = 500

/** How long the first lease of a subscription may leave its transaction idle, in milliseconds. */
const maxIdle = 5000

interface TakenRow extends PositionRow {
  readonly token: string
  readonly attempted: string | null
  readonly is_taken_over: boolean
}

/**
 * Makes the rows of a subscription that runs for the first time, or whose rows were deleted during the wait for the
 * lease. Fails if the subscription has another number of partitions.
 */
const register = (tables: StoreTables, { from, key }: LeaseOptions) =>
  Effect.gen(function* () {
    const { schema, sql } = tables
    const { name, partition, partitions } = key
    const known = yield* makeStatements(sql).query(
      sql<{ partitions: number; has_own: boolean }>`select partitions, bool_or(partition = ${partition}) as has_own
        from ${schema}.subscriptions where name = ${name} group by partitions`
    )
    const other = known.find((one) => Number(one.partitions) !== partitions)
    if (other !== undefined) {
      return yield* new PartitionsChanged({
        subscription: name,
        stored: Number(other.partitions),
        requested: partitions
      })
    }
    if (!known.some(({ has_own }) => has_own)) yield* insertRows(tables, name, partitions, from)
  })

/**
 * The first row decides on the number. It is inserted by itself, and locked while the others are. So rows of two numbers
 * never stand side by side, also where nodes that want different numbers begin together, or while `repartition` runs.
 */
const insertRows = (tables: StoreTables, name: string, partitions: number, from: Position) =>
  withTransaction(
    tables.sql,
    operation,
    Effect.gen(function* () {
      const { schema, sql } = tables
      const { execute } = makeStatements(sql)
      yield* execute(
        sql`insert into ${schema}.subscriptions (name, partition, partitions, feed_key, position, event_time)
          values (${name}, 0, ${partitions}, ${positionValues(tables, from)})
          on conflict (name, partition) do nothing returning ${limitIdle(tables, maxIdle)}`
      )
      yield* execute(
        sql`insert into ${schema}.subscriptions (name, partition, partitions, feed_key, position, event_time)
          select ${name}, partition, ${partitions}::int, ${positionValues(tables, from)}
          from (
            select 1 from ${schema}.subscriptions where name = ${name} and partition = 0 and partitions = ${partitions}
            for share
          ) first, generate_series(1, ${partitions}::int - 1) partition
          on conflict (name, partition) do nothing`
      )
    })
  )

/** Takes the lease if it is free. Returns otherwise in how many milliseconds to try again. */
const take = (
  tables: StoreTables,
  options: LeaseOptions
): Effect.Effect<TakenLease | { readonly wait: number }, PartitionsChanged | StoreError> =>
  Effect.gen(function* () {
    const { schema, sql } = tables
    const { duration, holder, key } = options
    const isOfLease = sql`${isOfKey(sql, key)} and partitions = ${key.partitions}`
    const { execute, query } = makeStatements(sql)
    const [taken] = yield* execute(
      sql<TakenRow>`update ${schema}.subscriptions s
        set token = s.token + 1, holder = ${holder}, held_since = clock_timestamp(),
          leased_until = ${leaseEnd(sql, duration)}
        from (
          select name, partition, leased_until from ${schema}.subscriptions
          where ${isOfLease} and not stopped and coalesce(leased_until < clock_timestamp(), true)
          -- A locked row is that of a holder in its transaction.
          for update skip locked
        ) free
        where s.name = free.name and s.partition = free.partition
        returning s.token::text, ${storedPosition(sql)}, s.attempted::text,
          free.leased_until is not null as is_taken_over`
    )
    if (taken !== undefined) return takenLeaseOf(taken)
    const [row] = yield* query(
      sql<{ left: number | null }>`select
        case when stopped then null else extract(epoch from leased_until - clock_timestamp()) * 1000 end::float8 as left
        from ${schema}.subscriptions where ${isOfLease}`
    )
    if (row === undefined) {
      // An abandoned rebuild deletes its row, and so does a restored backup. Without a new row the wait would never
      // end. If there are rows of another number, this fails.
      yield* register(tables, options)
      return { wait: 0 }
    }
    return { wait: Math.min(Math.max(row.left ?? longestPause, shortestPause), longestPause) }
  })

const takenLeaseOf = (row: TakenRow): TakenLease => ({
  token: row.token,
  position: positionOf(row),
  attempts: Option.map(Option.fromNullable(row.attempted), (text): Attempts => JSON.parse(text)),
  isTakenOver: row.is_taken_over
})

/** Releases the lease. It raises the token, so that a renewal that is still under way changes nothing. */
const release = ({ schema, sql }: StoreTables, { holder, key }: LeaseOptions, { token }: TakenLease) =>
  makeStatements(sql).execute(
    sql`update ${schema}.subscriptions set token = token + 1, holder = null, leased_until = null
      where ${isHeldBy(sql, key, holder, token)}`
  )

/**
 * Waits for the lease, and releases it when the scope closes. The release is retried, because all connections of a pool
 * may be cut.
 */
const takeInScope = (tables: StoreTables, options: LeaseOptions) =>
  Effect.uninterruptibleMask((restore) =>
    Effect.tap(
      withLiveClock(awaitLease(take(tables, options), (taken) => release(tables, options, taken), restore)),
      (taken) =>
        Effect.addFinalizer(() =>
          awaitGrace(Effect.ignore(Effect.retry(release(tables, options, taken), { times: 10, while: isTransient })))
        )
    )
  )

/**
 * Tries to take the lease until it succeeds. Only the waits are interruptible, by `restore`. A lease that is taken
 * while the fiber is interrupted is released again, so that other processes need not wait until it runs out.
 */
const awaitLease = (
  take: Effect.Effect<TakenLease | { readonly wait: number }, PartitionsChanged | StoreError>,
  release: (taken: TakenLease) => Effect.Effect<unknown, StoreError>,
  restore: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
): Effect.Effect<TakenLease, PartitionsChanged | StoreError> =>
  Effect.flatMap(Effect.forkDaemon(take), (taking) => {
    const undo = Effect.flatMap(Fiber.join(taking), (result) => ("token" in result ? release(result) : Effect.void))
    return Effect.onInterrupt(restore(Fiber.join(taking)), () =>
      Effect.flatMap(Effect.forkDaemon(Effect.ignore(undo)), (undoing) => awaitGrace(Fiber.await(undoing)))
    )
  }).pipe(
    Effect.flatMap((result) =>
      "token" in result
        ? Effect.succeed(result)
        : Effect.zipRight(restore(Effect.sleep(result.wait)), awaitLease(take, release, restore))
    )
  )
