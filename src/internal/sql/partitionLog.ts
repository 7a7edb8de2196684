/**
 * Changes the number of partitions of an existing event log, in one transaction. `SqlStore.ts` offers it. The log is replaced by a copy
 * (`replaceLog.ts`).
 *
 * The log is locked from the beginning. A lock that lets readers in would have to be raised at the end. A transaction that had read the log
 * and waits to write would then be a deadlock, and the whole copy would be lost.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type { Fragment } from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import { StoreError } from "../../StoreError.js"
import { fromSqlError } from "../runtime/sqlError.js"
import { hasFutureKeys } from "./feedHead.js"
import { selectDetached } from "./logDefinition.js"
import { checkSchema, lockSchema } from "./migrations.js"
import { boundedOutside } from "./pg/execute.js"
import { withTransaction } from "./pg/transaction.js"
import { isReadCommitted, replaceLog } from "./replaceLog.js"

/** Gives the log so many partitions, and returns whether it had another number. */
export const partitionLog = (
  sql: SqlClient.SqlClient,
  name: string,
  schema: Fragment,
  partitions: number
): Effect.Effect<boolean, StoreError> =>
  boundedOutside(
    withTransaction(
      sql,
      operation,
      Effect.gen(function* () {
        // The copy would lack the events that were committed between the snapshot of the transaction and the lock.
        if (!(yield* run(isReadCommitted(sql)))) {
          return yield* misconfigured("a transaction that changes the event log has to be READ COMMITTED")
        }
        yield* run(lockSchema(sql, name))
        const { feedOrder, partitions: found } = yield* checkSchema(sql, name, schema, {}, operation)
        if (found === undefined)
          return yield* misconfigured(`the schema ${JSON.stringify(name)} has no event log: run SqlStore.migrate`)
        const [detached] = yield* run(selectDetached(sql, name))
        if (detached !== undefined)
          return yield* misconfigured("a partition of the event log is detached: attach it before the change")
        if (found === partitions) return false
        yield* run(sql`lock table ${schema}.event_log in access exclusive mode`)
        // A repair tells the events that were committed since the restore by the age of their rows, and a copy makes all rows anew.
        const [needed] = yield* run(sql<{ is: boolean }>`select ${hasFutureKeys({ feedOrder, schema, sql })} as is`)
        if (needed?.is === true)
          return yield* misconfigured("the event log was restored from a dump: run SqlStore.repairAfterRestore before")
        const events = sql`select * from ${schema}.event_log ${found === 1 ? sql`` : sql`order by feed_key, position`}`
        yield* replaceLog({ sql, name, schema, feedOrder, operation, partitions, events })
        return true
      })
    )
  ).pipe(Effect.withSpan("SqlStore.partitionLog", { attributes: { schema: name, partitions } }))

// --- internal ---

const operation = "partitionLog"

const run = Effect.mapError((error: SqlError) => fromSqlError(operation, "writing", error))

const misconfigured = (description: string): StoreError =>
  new StoreError({ reason: "Misconfigured", operation, description })
