/**
 * What is different where the database is part of this process.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type * as Statement from "@effect/sql/Statement"

/** Whether the client is that of `PgliteClient`: one connection, no network, and nobody else who commits. */
export const isEmbedded = (client: SqlClient.SqlClient): boolean => "pglite" in client

/**
 * A column of a `select` that ends the session when it idles in its transaction, so that a process that stops keeps no locks. Not on the
 * embedded database: it has one session, which would be gone for good, and its locks end with the process.
 */
export const limitIdle = (
  { isEmbedded, sql }: { readonly isEmbedded: boolean; readonly sql: SqlClient.SqlClient },
  millis: number
): Statement.Fragment =>
  isEmbedded ? sql`1` : sql`set_config('idle_in_transaction_session_timeout', ${String(Math.ceil(millis))}, true)`
