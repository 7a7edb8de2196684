/**
 * What is different where the database is part of this process.
 */
import type * as SqlClient from "@effect/sql/SqlClient"

/** Whether the client is that of `PgliteClient`: one connection, no network, and nobody else who commits. */
export const isEmbedded = (client: SqlClient.SqlClient): boolean => "pglite" in client
