/**
 * Shadow tables: the tables that a rebuild fills while the live tables are in use. They have the names of the live
 * tables, in a schema of their own, which stands first in the search path while projections run.
 *
 * `fillAndSwap.ts` makes them, `projectBatch.ts` writes them, and `replaceTables.ts` moves them into the schemas of the
 * live tables.
 *
 * It would be simpler to keep the live table and to replace its rows. But then readers and commands would wait until
 * all rows are written.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"
import type { StoreError } from "../../StoreError.js"
import {
  execute,
  identifier,
  misconfigured,
  runInside,
  withEmptySearchPath,
  withSearchPathPrefix
} from "./catalogStatements.js"
import { checkDependents, checkNewObjects, checkSettings, fullShape, inShadowSchema } from "./checkReplacement.js"
import { createLike, renamesOf } from "./copyTable.js"
import { resolveTables, type ShadowTable } from "./resolveTables.js"
import { storageOf } from "./tableSettings.js"

/**
 * Makes the shadow tables, unless an earlier attempt has made them: by `create`, or in the shape of the live tables.
 * Fails where replacing the live tables would lose something (`checkReplacement.ts`).
 */
export const makeShadowTables = <E, R>(
  sql: SqlClient.SqlClient,
  schema: string,
  names: ReadonlyArray<string>,
  create: Effect.Effect<unknown, E, R> | undefined
): Effect.Effect<ReadonlyArray<ShadowTable>, E | StoreError, R> =>
  Effect.gen(function* () {
    const tables = yield* resolveTables(sql, schema, names)
    const isBegun = (yield* runInside(sql`select 1 from pg_namespace where nspname = ${schema}`)).length > 0
    if (!isBegun) {
      yield* runInside(sql`create schema ${identifier(sql, schema)}`)
      if (create === undefined) yield* withEmptySearchPath(sql, createInShapeOfLive(sql, tables))
      else yield* withSearchPathPrefix(sql, schema, create)
    }
    const rows = yield* runInside(
      sql<{ name: string }>`select quote_ident(tablename) as name from pg_tables where schemaname = ${schema}`
    )
    const made = new Set(rows.map(({ name }) => name))
    const missing = tables.find(({ name }) => !made.has(name))
    if (missing !== undefined) {
      return yield* misconfigured(
        isBegun
          ? `it was begun for other tables, without ${missing.name}: abandon it first, or give it another name`
          : `\`create\` did not make the table ${missing.name}; it must name it without a schema`
      )
    }
    const sameShape = create === undefined
    yield* withEmptySearchPath(
      sql,
      Effect.gen(function* () {
        yield* checkDependents(sql, tables, sameShape)
        yield* checkNewObjects(sql, schema, tables, sameShape)
        yield* checkSettings(sql, schema, tables, sameShape)
      })
    )
    return tables
  })

/** Fails where the effect has written to a table outside these schemas. It runs inside a transaction. */
export const checkedForOtherWrites = <A, E, R>(
  sql: SqlClient.SqlClient,
  schemas: ReadonlyArray<string>,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E | StoreError, R> =>
  Effect.gen(function* () {
    const written = runInside(
      sql<{ table: string; rows: string }>`select quote_ident(schemaname) || '.' || quote_ident(relname) as table,
          (n_tup_ins + n_tup_upd + n_tup_del)::text as rows
        from pg_stat_xact_user_tables
        where n_tup_ins + n_tup_upd + n_tup_del > 0 and schemaname <> all(${[...schemas]}::text[])`
    )
    // The counts of the server may contain rows of earlier transactions of the connection.
    const before = new Map((yield* written).map(({ rows, table }) => [table, rows]))
    const result = yield* effect
    const other = (yield* written).find(({ rows, table }) => before.get(table) !== rows)
    if (other !== undefined) {
      return yield* misconfigured(
        `a projection wrote to ${other.table}, which is not rebuilt: name it in \`tables\`, and have the projection write it without a schema's name`
      )
    }
    return result
  })

/** Drops the schema of the shadow tables with all that is in it. */
export const dropShadowTables = (sql: SqlClient.SqlClient, schema: string): Effect.Effect<void, StoreError> =>
  Effect.asVoid(runInside(sql`drop schema if exists ${identifier(sql, schema)} cascade`))

// --- internal ---

/**
 * Creates the shadow tables in the shape of the live ones. Indexes, sequences and statistics get the names that they
 * have there.
 */
const createInShapeOfLive = (
  sql: SqlClient.SqlClient,
  tables: ReadonlyArray<ShadowTable>
): Effect.Effect<void, StoreError> =>
  Effect.gen(function* () {
    yield* runInside(sql`select set_config('default_tablespace', '', true)`)
    for (const table of tables) {
      const { live, shadow, shadowSchema } = table
      yield* execute(sql, yield* runInside(createLike(sql, live, shadow)))
      yield* execute(sql, yield* runInside(renamesOf(sql, live, shadow, shadowSchema)))
      yield* execute(sql, yield* runInside(storageOf(sql, inShadowSchema(table, fullShape))))
    }
  })
