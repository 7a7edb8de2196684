/**
 * How statements about subscriptions run, and the fragments that they share. `lease.ts`, `heldLease.ts` and
 * `subscriptions.ts` use them.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type * as Statement from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import type { StoreError } from "../../StoreError.js"
import type { Key } from "../../SubscriptionStore.js"
import { whenInTransaction } from "../runtime/ambientTransaction.js"
import { fromSqlError, type Phase } from "../runtime/sqlError.js"
import { withoutInnerSpans } from "../runtime/tracing.js"
import { executeAlone } from "./pg/connection.js"

/** The operation that errors name. */
export const operation = "Subscription"

/** Runs a statement in the current transaction, or on a connection of its own. `query` only reads, `execute` writes. */
export const makeStatements = (sql: SqlClient.SqlClient) => {
  const run =
    (phase: Phase) =>
    <A>(effect: Effect.Effect<A, SqlError>): Effect.Effect<A, StoreError> =>
      whenInTransaction((inside) =>
        inside
          ? withoutInnerSpans(Effect.mapError(effect, (error) => fromSqlError(operation, phase, error)))
          : executeAlone(sql, operation, phase, effect)
      )
  return { query: run("reading"), execute: run("writing") }
}

export type Statements = ReturnType<typeof makeStatements>

/** The row of a partition. */
export const isOfKey = (sql: SqlClient.SqlClient, { name, partition }: Key): Statement.Fragment =>
  sql`name = ${name} and partition = ${partition}`

/** The end of a lease that is taken or renewed now. The time is that of the database. */
export const leaseEnd = (sql: SqlClient.SqlClient, millis: number): Statement.Fragment =>
  sql`clock_timestamp() + ${millis} * interval '1 millisecond'`
