/**
 * Finds the live tables by their names in the search path, and names the shadow table of each. `shadowTables.ts` and
 * `rehearseStatements.ts` call it.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"
import type { StoreError } from "../../StoreError.js"
import { misconfigured, runInside } from "./catalogStatements.js"

/** A live table and its shadow table. All names are quoted. */
export interface ShadowTable {
  /** With its schema: `"public"."balances"`. */
  readonly live: string
  readonly liveSchema: string
  readonly shadow: string
  readonly shadowSchema: string
  readonly name: string
}

/** Fails where a name is of no ordinary table, or where the role may not create a table in its schema. */
export const resolveTables = (
  sql: SqlClient.SqlClient,
  shadowSchema: string,
  names: ReadonlyArray<string>
): Effect.Effect<ReadonlyArray<ShadowTable>, StoreError> =>
  Effect.gen(function* () {
    const found = new Map<string, ShadowTable>()
    for (const name of names) {
      const table = yield* resolveTable(sql, shadowSchema, name)
      const other = [...found.values()].find((one) => one.name === table.name)
      if (other !== undefined && other.live !== table.live) {
        return yield* misconfigured(`${other.live} and ${table.live} have one name, so a rebuild can't make both`)
      }
      found.set(table.live, table)
    }
    return [...found.values()]
  })

// --- internal ---

const resolveTable = (
  sql: SqlClient.SqlClient,
  shadowSchema: string,
  table: string
): Effect.Effect<ShadowTable, StoreError> =>
  Effect.flatMap(
    runInside(
      sql<{
        schema: string
        name: string
        kind: string
        shadow: string
        can_create: boolean
      }>`select quote_ident(n.nspname) as schema, quote_ident(c.relname) as name, c.relkind::text as kind,
          quote_ident(${shadowSchema}) as shadow, has_schema_privilege(n.oid, 'create') as can_create
        from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = to_regclass(${table})`
    ),
    ([row]) => {
      if (row === undefined || row.kind !== "r") {
        const isOther = row === undefined ? "" : " that is an ordinary one"
        return misconfigured(`there is no table ${JSON.stringify(table)}${isOther}`)
      }
      if (!row.can_create) return misconfigured(`this role may not create the new table in the schema ${row.schema}`)
      return Effect.succeed({
        live: `${row.schema}.${row.name}`,
        liveSchema: row.schema,
        shadow: `${row.shadow}.${row.name}`,
        shadowSchema: row.shadow,
        name: row.name
      })
    }
  )
