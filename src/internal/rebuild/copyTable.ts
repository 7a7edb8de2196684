/**
 * Builds the statements that make a shadow table in the shape of its live table, and that move what `set schema` leaves
 * behind. `shadowTables.ts` and `replaceTables.ts` run them. The catalogue puts them together while the search path is
 * empty.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import { textsOf } from "./tableSettings.js"

/**
 * The statements that create the shadow table. Its indexes have other names than those of the live table (`renamesOf`).
 */
export const createLike = (
  sql: SqlClient.SqlClient,
  live: string,
  shadow: string
): Effect.Effect<ReadonlyArray<string>, SqlError> =>
  textsOf(
    sql`select format('create %s table %s (like %s including all excluding comments) using %I tablespace %I',
        case c.relpersistence when 'u' then 'unlogged' else '' end, ${shadow}::text, ${live}::text, m.amname,
        (select spcname from pg_tablespace where oid = coalesce(nullif(c.reltablespace, 0), b.dattablespace))) as text
      from pg_class c join pg_am m on m.oid = c.relam join pg_database b on b.datname = current_database()
      where c.oid = ${live}::regclass
      union all
      -- "like" makes them validated.
      select format('alter table %s drop constraint %I, add constraint %2$I %s', ${shadow}::text, conname, pg_get_constraintdef(oid))
      from pg_constraint where conrelid = ${live}::regclass and contype in ('c', 'n') and not convalidated`
  )

/**
 * The statements that give the parts of a shadow table the names that they have on the live table. Indexes and
 * statistics objects are matched by their definitions, and the sequences of identities by their columns.
 */
export const renamesOf = (
  sql: SqlClient.SqlClient,
  live: string,
  shadow: string,
  schema: string
): Effect.Effect<ReadonlyArray<string>, SqlError> =>
  Effect.map(Effect.all([partsOf(sql, live), partsOf(sql, shadow)]), ([models, made]) => {
    const left = [...made]
    const renames: Array<{ readonly kind: string; readonly from: string; readonly to: string }> = []
    for (const { definition, kind, name } of models) {
      const index = left.findIndex((part) => part.kind === kind && part.definition === definition)
      const [found] = index < 0 ? [] : left.splice(index, 1)
      if (found !== undefined && found.name !== name) renames.push({ kind, from: found.name, to: name })
    }
    // By interim names, because another part may still have the wanted name.
    return [
      ...renames.map(({ from, kind }, index) => `alter ${kind} ${schema}.${from} rename to rebuilt_${index}`),
      ...renames.map(({ kind, to }, index) => `alter ${kind} ${schema}.rebuilt_${index} rename to ${to}`)
    ]
  })

/** The statements that move statistics objects, which `alter table … set schema` leaves where they are. */
export const statisticsMoves = (
  sql: SqlClient.SqlClient,
  shadow: string,
  schema: string
): Effect.Effect<ReadonlyArray<string>, SqlError> =>
  textsOf(
    sql`select format('alter statistics %I.%I set schema %s', n.nspname, s.stxname, ${schema}::text) as text
      from pg_statistic_ext s join pg_namespace n on n.oid = s.stxnamespace where s.stxrelid = ${shadow}::regclass`
  )

// --- internal ---

interface Part {
  readonly kind: string
  readonly name: string
  readonly definition: string
}

/**
 * The parts of a table that have names of their own. Their definitions are without the names of the part and of the
 * table.
 */
const partsOf = (sql: SqlClient.SqlClient, table: string): Effect.Effect<ReadonlyArray<Part>, SqlError> =>
  sql<Part>`select 'index' as kind, quote_ident(c.relname) as name,
      i.indisprimary::text || i.indisunique || i.indisexclusion || substr(pg_get_indexdef(c.oid), length(concat(
        'CREATE ', case when i.indisunique then 'UNIQUE ' end, 'INDEX ', quote_ident(c.relname), ' ON ', ${table}::text)) + 1) as definition
    from pg_index i join pg_class c on c.oid = i.indexrelid where i.indrelid = ${table}::regclass
    union all
    select 'statistics', quote_ident(s.stxname), replace(
      substr(pg_get_statisticsobjdef(s.oid), length(concat('CREATE STATISTICS ', quote_ident(n.nspname), '.', quote_ident(s.stxname))) + 1),
      ' FROM ' || ${table}::text, '')
    from pg_statistic_ext s join pg_namespace n on n.oid = s.stxnamespace where s.stxrelid = ${table}::regclass
    union all
    select 'sequence', quote_ident(c.relname), quote_ident(a.attname)
    from pg_depend d join pg_class c on c.oid = d.objid and c.relkind = 'S'
    join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
    where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = ${table}::regclass and d.deptype = 'i'
    order by 1, 2`
