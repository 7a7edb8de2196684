/**
 * The feed after a restore: a dump keeps the ids of transactions that the server it is restored into has never had.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type * as Statement from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import type { StoreError } from "../StoreError.js"
import { promptly } from "./promptly.js"
import { fromSqlError } from "./sqlError.js"
import { withTransaction } from "./sqlTransaction.js"
import { insideSqlTransaction } from "./storeTransaction.js"

/** Numbers the events anew in their order, where some are of transactions to come, and the checkpoints with them. */
export const repair = (sql: SqlClient.SqlClient, schema: Statement.Fragment): Effect.Effect<boolean, StoreError> => {
  const run = <A>(statement: Effect.Effect<A, SqlError>) =>
    Effect.mapError(statement, (error) => fromSqlError("repairAfterRestore", "writing", error))

  const needed = Effect.map(
    run(
      sql<{ needed: boolean }>`select exists (
          select 1 from ${schema}.event_log where transaction_id >= pg_snapshot_xmax(pg_current_snapshot())
        ) or exists (
          select 1 from ${schema}.subscriptions where transaction_id >= pg_snapshot_xmax(pg_current_snapshot())
        ) as needed`
    ),
    ([row]) => row?.needed === true
  )

  /** As many events as there are up to a place: the number that its last event gets. */
  const renumber = (table: Statement.Fragment) =>
    sql`update ${table} t set transaction_id = ${oldest}::xid8, position = (
        select count(*) from ${schema}.event_log e
        where (e.transaction_id, e.position) <= (t.transaction_id, t.position)
      )`

  const repairing = withTransaction(
    sql,
    "repairAfterRestore",
    Effect.gen(function* () {
      yield* run(
        sql`lock table ${schema}.event_log, ${schema}.subscriptions, ${schema}.events_set_aside in access exclusive mode`
      )
      // Another node may have done it meanwhile.
      if (!(yield* needed)) return false
      yield* run(renumber(sql`${schema}.subscriptions`))
      yield* run(renumber(sql`${schema}.events_set_aside`))
      yield* run(
        sql`update ${schema}.event_log e set transaction_id = ${oldest}::xid8, position = o.place
          from (
            select aggregate_id, sequence, row_number() over (order by transaction_id, position) as place
            from ${schema}.event_log
          ) o
          where e.aggregate_id = o.aggregate_id and e.sequence = o.sequence`
      )
      return true
    })
  )

  return Effect.flatMap(needed, (now) =>
    now
      ? Effect.flatMap(insideSqlTransaction, (inside) => (inside ? repairing : promptly(repairing)))
      : Effect.succeed(false)
  )
}

// --- internal ---

/** The first id that a transaction can have: on every server it lies in the past. */
const oldest = "3"
