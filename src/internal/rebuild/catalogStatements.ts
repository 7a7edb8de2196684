/**
 * Runs statements that read or change the definitions of tables, inside the transaction around them, and sets the
 * search path for them. The files of this room that make, check and replace tables use it.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type * as Statement from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import { StoreError } from "../../StoreError.js"
import { fromSqlError } from "../runtime/sqlError.js"

export const operation = "Rebuild"

export const runInside = <A>(statement: Effect.Effect<A, SqlError>): Effect.Effect<A, StoreError> =>
  Effect.mapError(statement, (error) => fromSqlError(operation, "writing", error))

export const misconfigured = (description: string): Effect.Effect<never, StoreError> =>
  Effect.fail(new StoreError({ reason: "Misconfigured", operation, description }))

export const quotedName = (name: string): string => `"${name.replaceAll('"', '""')}"`

export const identifier = (sql: SqlClient.SqlClient, name: string): Statement.Fragment => sql.literal(quotedName(name))

/** Runs statements that the catalogue has put together. The failure quotes the statement. */
export const execute = (sql: SqlClient.SqlClient, statements: ReadonlyArray<string>): Effect.Effect<void, StoreError> =>
  Effect.forEach(
    statements,
    (statement) =>
      Effect.catchIf(
        runInside(sql.unsafe(statement)),
        ({ reason }) => reason === "Misconfigured" || reason === "Unknown",
        (error) => misconfigured(`the new table can't have what the old one has: ${statement}: ${error.description}`)
      ),
    { discard: true }
  )

/** Runs such statements in one round trip, so that the lock of the swap is short. */
export const executeTogether = (
  sql: SqlClient.SqlClient,
  statements: ReadonlyArray<string>
): Effect.Effect<void, StoreError> =>
  statements.some((statement) => statement.includes(blockQuote))
    ? execute(sql, statements)
    : execute(sql, [`do ${blockQuote} begin ${statements.join("; ")}; end ${blockQuote}`])

/** Runs the effect with the schema before all others in the search path. */
export const withSearchPathPrefix = <A, E, R>(
  sql: SqlClient.SqlClient,
  schema: string,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E | StoreError, R> =>
  withSearchPath(sql, sql`quote_ident(${schema}) || ', ' || current_setting('search_path')`, effect)

/**
 * Runs the effect with an empty search path, so that the catalogue qualifies all names. Its queries are long and touch
 * few rows.
 */
export const withEmptySearchPath = <A, E, R>(
  sql: SqlClient.SqlClient,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E | StoreError, R> =>
  Effect.zipRight(runInside(sql`select set_config('jit', 'off', true)`), withSearchPath(sql, sql`''`, effect))

// --- internal ---

const blockQuote = "$rebuild$"

/** A failure leaves the search path as it is, because the transaction or savepoint around is rolled back. */
const withSearchPath = <A, E, R>(
  sql: SqlClient.SqlClient,
  path: Statement.Fragment,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E | StoreError, R> =>
  Effect.gen(function* () {
    const [row] = yield* runInside(sql<{ path: string }>`select current_setting('search_path') as path`)
    yield* runInside(sql`select set_config('search_path', ${path}, true)`)
    const result = yield* effect
    yield* runInside(sql`select set_config('search_path', ${row?.path ?? ""}, true)`)
    return result
  })
