/**
 * Changes the number of partitions of a subscription, in one transaction. `nodes.ts` offers it to nodes.
 *
 * - It locks all rows of the subscription, and skips locked ones, so it waits for no checkpoint and no other node.
 * - The new rows have a higher fencing token than all earlier ones. So a holder that was suspended can't write, also
 *   where its partition exists again.
 * - The row of a new partition is an old row that was updated, where there is one. So a statement that waits for its lock
 *   sees the new number.
 */
import type * as Statement from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import type { StoreError } from "../../StoreError.js"
import type { JoinOptions } from "../../SubscriptionStore.js"
import { sliceOf } from "./feedConditions.js"
import { limitIdle, withTransaction } from "./pg/transaction.js"
import type { StoreTables } from "./storeTables.js"
import { makeStatements, operation } from "./subscriptionStatements.js"

/** Replaces the partitions, of which there are `from`, and returns whether it did. `isAlive` is about nodes `n`. */
export const repartition = (
  tables: StoreTables,
  { name, partitions }: JoinOptions,
  from: number,
  isAlive: Statement.Fragment
): Effect.Effect<boolean, StoreError> =>
  withTransaction(
    tables.sql,
    operation,
    Effect.gen(function* () {
      const { schema, sql } = tables
      const token = yield* lockAll(tables, name, from)
      if (token === undefined) return false
      const others = yield* makeStatements(sql).query(
        sql`select 1 from ${schema}.subscription_nodes n
          where n.name = ${name} and n.partitions <> ${partitions} and ${isAlive} limit 1`
      )
      if (others.length > 0) return false
      yield* replaceAll(tables, name, partitions, token)
      return true
    })
  )

// --- internal ---

/** How long a change may leave its transaction idle, and wait for the lock of a parked event, in milliseconds. */
const maxIdle = 5000
const maxWait = 1000

interface LockedRow {
  readonly feed_key: string
  readonly position: string
  readonly token: string
  readonly is_busy: boolean
}

/** Locks the rows, and returns the next fencing token. Undefined where the partitions can't be replaced now. */
const lockAll = (tables: StoreTables, name: string, from: number): Effect.Effect<bigint | undefined, StoreError> => {
  const { schema, sql } = tables
  return Effect.map(
    makeStatements(sql).execute(
      sql<LockedRow>`select feed_key::text, position::text, token::text, ${limitIdle(tables, maxIdle)},
          set_config('lock_timeout', ${String(maxWait)}, true),
          stopped or attempted is not null or coalesce(leased_until > clock_timestamp(), false) as is_busy
        from ${schema}.subscriptions where name = ${name} and partitions = ${from}
        order by partition for update skip locked`
    ),
    (rows) => {
      const [first] = rows
      const isReady = rows.every(
        (row) => !row.is_busy && row.feed_key === first?.feed_key && row.position === first.position
      )
      if (rows.length !== from || !isReady) return undefined
      return rows.reduce((highest, { token }) => (BigInt(token) > highest ? BigInt(token) : highest), 0n) + 1n
    }
  )
}

/**
 * Replaces the locked rows. A lease that has run out without a release leaves its end, so that the next holder knows of
 * it.
 */
const replaceAll = (
  { schema, sql }: StoreTables,
  name: string,
  partitions: number,
  token: bigint
): Effect.Effect<unknown, StoreError> =>
  makeStatements(sql).execute(
    sql`with replaced as (
        insert into ${schema}.subscriptions (name, partition, partitions, feed_key, position, event_time, token, leased_until)
        select ${name}, partition, ${partitions}::int, feed_key, position, event_time, ${String(token)}::bigint, leased_until
        from (
          select feed_key, position, event_time, max(leased_until) over () as leased_until
          from ${schema}.subscriptions where name = ${name} limit 1
        ) old, generate_series(0, ${partitions}::int - 1) partition
        on conflict (name, partition) do update set partitions = excluded.partitions, token = excluded.token,
          leased_until = excluded.leased_until, holder = null, held_since = null, last_failure = null
      ),
      removed as (
        delete from ${schema}.subscriptions where name = ${name} and partition >= ${partitions}
      ),
      unassigned as (
        delete from ${schema}.subscription_shares where name = ${name}
      )
      update ${schema}.parked_events set partition = ${sliceOf(sql, sql`aggregate_id`, sql`${partitions}::int`)}
      where subscription = ${name}`
  )
