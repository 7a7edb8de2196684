/**
 * Checks and reads the tables that a projection declares: a version, and the statements that create each table.
 * `Projection.ts` calls it, and so does the room `rebuild`.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { Fragment, Statement } from "@effect/sql/Statement"
import { maxNameLength } from "../../Event.js"
import { nameProblem } from "../codec/names.js"

/** The statements that create one table, with its indexes. */
export type TableStatements = (sql: SqlClient.SqlClient) => Statement<unknown> | ReadonlyArray<Statement<unknown>>

/** The tables that a projection declares. */
export interface TableOptions {
  /**
   * The version of the tables, 1 by default. For a higher version `ProjectionTables` builds new tables from all events.
   */
  readonly version?: number | undefined
  /**
   * The tables that the projection owns. The key is the name, as in SQL and without a schema; the value returns the
   * statements that create the table. `ProjectionTables` runs them. By default a projection owns no tables, and the
   * application creates them itself.
   */
  readonly tables?: Readonly<Record<string, TableStatements>> | undefined
}

/** Returns the declaration. An invalid one throws, because it is a mistake in the program. */
export const declaredTables = (name: string, { tables, version }: TableOptions): TableOptions => {
  const refuse = (problem: string) => new TypeError(`projection ${JSON.stringify(name)} ${problem}`)
  if (tables === undefined) {
    if (version !== undefined) throw refuse("has a `version`, and no `tables` that it could be of")
    return {}
  }
  const problem = nameProblem(name, maxNameLength)
  if (problem !== undefined) throw refuse(`owns tables, so its name ${problem}`)
  if (version !== undefined && !(Number.isInteger(version) && version >= 1 && version <= maxVersion)) {
    throw refuse(`must have a \`version\` that is a whole number from 1 to ${maxVersion}, and it is ${version}`)
  }
  const names = Object.keys(tables)
  if (names.length === 0) throw refuse("has `tables`, and names none")
  const bad = names.find((table) => !isTableName(table))
  if (bad !== undefined) {
    throw refuse(
      `has a table ${JSON.stringify(bad)}: its name must be an identifier as in SQL, of at most 63 bytes, without a schema`
    )
  }
  return { version: version ?? 1, tables }
}

/** The name of a declared table as a quoted identifier: the database folds one without quotes to lower case. */
export const quotedTable = (table: string): string =>
  table.startsWith('"') ? table : `"${table.replace(/[A-Z]/g, (letter) => letter.toLowerCase())}"`

/** The statements that create all tables, in the order of the declaration. */
export const tableStatements = (
  tables: Readonly<Record<string, TableStatements>>,
  sql: SqlClient.SqlClient
): ReadonlyArray<{ readonly table: string; readonly statement: Statement<unknown> }> =>
  Object.entries(tables).flatMap(([table, create]) => {
    const made = create(sql)
    const statements: ReadonlyArray<Statement<unknown>> = Array.isArray(made) ? made : [made as Statement<unknown>]
    return statements.map((statement) => ({ table, statement }))
  })

/** The text of a statement, without differences in white space. Two declarations are equal where their texts are. */
export const textOfStatement = (statement: Statement<unknown>): string => {
  const [text, parameters] = statement.compile()
  const plain = text.replace(/\s+/g, " ").trim()
  return parameters.length === 0 ? plain : `${plain} ${JSON.stringify(parameters)}`
}

/** Creates the table of records (`tableRecords.ts`). The version is 0 until the tables of the projection are filled. */
export const createTableRecords = (sql: SqlClient.SqlClient, schema: Fragment): Statement<unknown> =>
  sql`create table ${schema}.projection_tables (
    name text collate "C" primary key,
    version int not null,
    statements json not null,
    tables json not null,
    aggregates json not null,
    subscription text collate "C",
    changed_at timestamptz not null default clock_timestamp()
  )`

// --- internal ---

/** The greatest value of the column. */
const maxVersion = 2_147_483_647

const identifier = /^([\p{L}_][\p{L}\p{N}_$]*|"([^"\0]|"")+")$/u

const isTableName = (table: string): boolean =>
  identifier.test(table) && new TextEncoder().encode(table.replace(/^"|"$/g, "").replaceAll('""', '"')).length <= 63
