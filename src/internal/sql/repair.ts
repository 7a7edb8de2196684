/**
 * The feed after a restore: a dump keeps the ids of transactions that the server it is restored into has never had.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type * as Statement from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import type { StoreError } from "../../StoreError.js"
import { whenInTransaction } from "../runtime/ambientTransaction.js"
import { boundedInterruption } from "../runtime/interruption.js"
import { fromSqlError } from "../runtime/sqlError.js"
import { executeAlone } from "./pg/connection.js"
import { withTransaction } from "./pg/transaction.js"

/**
 * Numbers the events anew in their order, where some are of transactions to come, and the checkpoints with them.
 *
 * What was committed here before the repair has keys lower than those restored, and comes after them all the same. Two marks tell it from
 * restored events: its positions, which went on where they were, and its rows, which are younger than the restored ones. Positions are not
 * enough: a transaction that had its id early may have written the highest position under a lower key than the last.
 */
export const repair = (sql: SqlClient.SqlClient, schema: Statement.Fragment): Effect.Effect<boolean, StoreError> => {
  const run = <A>(statement: Effect.Effect<A, SqlError>) =>
    Effect.mapError(statement, (error) => fromSqlError(operation, "writing", error))

  const selectNeeded = sql<NeededRow>`select now::text, exists (
      select 1 from ${schema}.event_log where feed_key >= now
    ) or exists (
      select 1 from ${schema}.subscriptions where feed_key >= now
    ) as needed from pg_snapshot_xmax(pg_current_snapshot()) now`
  const needed = Effect.map(run(selectNeeded), firstNeeded)

  const repairing = withTransaction(
    sql,
    operation,
    Effect.gen(function* () {
      yield* run(
        sql`lock table ${schema}.event_log, ${schema}.subscriptions, ${schema}.parked_events in access exclusive mode`
      )
      // Another node may have done it meanwhile.
      const now = yield* needed
      if (now === undefined) return false
      const [row] = yield* run(
        sql<{ last: string | null; age: number | null }>`select max(position)::text as last, min(age(xmin)) as age
          from ${schema}.event_log where feed_key >= ${now}::xid8`
      )
      const isNew = sql`e.feed_key < ${now}::xid8 and e.position > ${row?.last ?? maxPosition}::bigint
        and age(e.xmin) < ${row?.age ?? 0}::int`
      // As many events as there are up to a place: the number that its last event gets.
      yield* run(
        sql`update ${schema}.subscriptions t set feed_key = ${oldest}::xid8, position = (
            select count(*) from ${schema}.event_log e
            where (e.feed_key, e.position) <= (t.feed_key, t.position) and not (${isNew})
          )`
      )
      yield* run(
        sql`update ${schema}.event_log t set feed_key = ${oldest}::xid8, position = o.place
          from (
            select aggregate_id, sequence,
              row_number() over (order by (${isNew}), e.feed_key, e.position) as place
            from ${schema}.event_log e
          ) o
          where t.aggregate_id = o.aggregate_id and t.sequence = o.sequence`
      )
      yield* run(
        sql`update ${schema}.parked_events t set feed_key = ${oldest}::xid8, position = e.position
          from ${schema}.event_log e where e.aggregate_id = t.aggregate_id and e.sequence = t.sequence`
      )
      return true
    })
  )

  // On a connection of its own, which lets go of a database that does not answer.
  const neededNow = whenInTransaction((inside) =>
    inside ? needed : Effect.map(executeAlone(sql, operation, "reading", selectNeeded), firstNeeded)
  )

  return Effect.flatMap(neededNow, (now) =>
    now !== undefined
      ? whenInTransaction((inside) => (inside ? repairing : boundedInterruption(repairing)))
      : Effect.succeed(false)
  )
}

// --- internal ---

const operation = "repairAfterRestore"

interface NeededRow {
  readonly now: string
  readonly needed: boolean
}

/** The first id that no transaction has had, where something is of it or of a later one. */
const firstNeeded = ([row]: ReadonlyArray<NeededRow>): string | undefined => (row?.needed ? row.now : undefined)

/** The first id that a transaction can have: on every server it lies in the past. */
const oldest = "3"

/** No position lies behind it. */
const maxPosition = "9223372036854775807"
