/**
 * How statements about subscriptions run, and the fragments that they share. `lease.ts`, `heldLease.ts` and
 * `subscriptions.ts` use them.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type * as Statement from "@effect/sql/Statement"
import type * as Effect from "effect/Effect"
import type { StoreError } from "../../StoreError.js"
import type { Key } from "../../SubscriptionStore.js"
import type { Phase } from "../runtime/sqlError.js"
import { execute } from "./pg/execute.js"

/** The operation that errors name. */
export const operation = "Subscription"

/** Runs a statement in the current transaction, or on a connection of its own. `query` only reads, `execute` writes. */
export const makeStatements = (sql: SqlClient.SqlClient) => {
  const run =
    (phase: Phase, savepoint: boolean) =>
    <A>(statement: Effect.Effect<A, SqlError>): Effect.Effect<A, StoreError> =>
      execute(sql, { operation, phase, savepoint }, statement)
  return {
    query: run("reading", false),
    execute: run("writing", false),
    /** A read with a time limit. One that is cut short leaves the transaction around it usable. */
    queryApart: run("reading", true)
  }
}

/** The row of a partition. */
export const isOfKey = (sql: SqlClient.SqlClient, { name, partition }: Key): Statement.Fragment =>
  sql`name = ${name} and partition = ${partition}`

/** The row of a partition whose lease has this holder and fencing token. */
export const isHeldBy = (sql: SqlClient.SqlClient, key: Key, holder: string, token: string): Statement.Fragment =>
  sql`${isOfKey(sql, key)} and token = ${token}::bigint and holder = ${holder}`

/** The end of a lease that is taken or renewed now. The time is that of the database. */
export const leaseEnd = (sql: SqlClient.SqlClient, millis: number): Statement.Fragment =>
  sql`clock_timestamp() + ${millis} * interval '1 millisecond'`
