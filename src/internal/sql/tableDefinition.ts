/**
 * Reads the definition of a table from the catalogue, and compares the definitions of a live table and its shadow
 * table. A rebuild calls it before its swap, and `logDefinition.ts` before the log is replaced.
 *
 * A definition has the rows of the catalogue, without the few columns that identify an object or count its contents. So
 * a property that this file does not know is compared, too. Expressions are read as text. Their names are qualified,
 * because the search path is empty.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"

/** The properties of each part of a table, by the part: `column amount`. */
export type TableDefinition = ReadonlyMap<string, Readonly<Record<string, unknown>>>

/**
 * The definition of a table, with or without the sequences that its columns own and that are no identities. `replace`
 * renames a schema in it, so that a shadow table can be compared before it is moved.
 */
export const definitionOf = (
  sql: SqlClient.SqlClient,
  table: string,
  options: {
    readonly withOwnedSequences: boolean
    readonly replace?: { readonly schema: string; readonly by: string } | undefined
  }
): Effect.Effect<TableDefinition, SqlError> =>
  Effect.map(
    sql<{ what: string; value: string }>`with t as (select ${table}::regclass::oid as oid), ${sql.literal(owned)}
      select what, value::text from (${sql.literal(parts.join(" union all "))}) part
      where ${options.withOwnedSequences}::boolean or what not like 'owned sequence %'`,
    (rows) => {
      const { replace } = options
      const restored = (text: string): string =>
        replace === undefined ? text : text.replaceAll(`${replace.schema}.`, `${replace.by}.`)
      return new Map(
        rows.map(({ value, what }) => [
          restored(what),
          JSON.parse(
            replace === undefined
              ? value
              : value.replaceAll(`${replace.schema}.`, `${JSON.stringify(replace.by).slice(1, -1)}.`)
          )
        ])
      )
    }
  )

/** The differences of two definitions, a sentence for each. */
export const differencesBetween = (before: TableDefinition, after: TableDefinition): ReadonlyArray<string> => {
  const differences: Array<string> = []
  for (const what of new Set([...before.keys(), ...after.keys()])) {
    const [old, made] = [before.get(what), after.get(what)]
    if (old === undefined || made === undefined) {
      differences.push(`${what} would be ${made === undefined ? "lost" : "added"}`)
      continue
    }
    for (const key of new Set([...Object.keys(old), ...Object.keys(made)])) {
      const [was, is] = [JSON.stringify(old[key] ?? null), JSON.stringify(made[key] ?? null)]
      if (was !== is) differences.push(`${key} of ${what} is ${was} and would be ${is}`)
    }
  }
  return differences
}

/**
 * The differences in what a shadow table of another shape must keep: owner, rights, and optionally row level security.
 * Only columns that both tables have are compared.
 */
export const differencesInShape = (
  before: TableDefinition,
  after: TableDefinition,
  options: { readonly withRowSecurity: boolean }
): ReadonlyArray<string> => {
  const kept = (definition: TableDefinition, other: TableDefinition): TableDefinition =>
    new Map(
      [...definition].flatMap(([what, properties]): Array<[string, Readonly<Record<string, unknown>>]> => {
        if (what === "table") {
          const keys = [
            "relowner",
            "rights",
            ...(options.withRowSecurity ? ["relrowsecurity", "relforcerowsecurity"] : [])
          ]
          return [[what, Object.fromEntries(keys.map((key) => [key, properties[key]]))]]
        }
        if (what.startsWith("column ")) return other.has(what) ? [[what, { rights: properties.rights }]] : []
        // The text of an expression is different where a column has another type.
        const { check: _, using: __, ...policy } = properties
        return options.withRowSecurity && what.startsWith("policy ") ? [[what, policy]] : []
      })
    )
  return differencesBetween(kept(before, after), kept(after, before))
}

/**
 * The options of a column as SQL, sorted, and null if there are none. Without `pg_attver`: PGlite sets it on each column since 0.5.17, with another
 * value for each table, and a server refuses it in a statement.
 */
export const columnOptions = (options: string): string =>
  `(select array_agg(o order by o) from unnest(${options}) o where split_part(o, '=', 1) <> 'pg_attver')`

// --- internal ---

const without = (...columns: ReadonlyArray<string>): string => `array[${columns.map((column) => `'${column}'`).join()}]`

const sorted = (texts: string): string => `(select jsonb_agg(x order by x) from unnest(${texts}) x)`

/** A row of `pg_class`, without counts and files, and without flags that may stay true when their objects are gone. */
const relation = (row: string): string =>
  `(to_jsonb(${row}) - ${without(
    "oid",
    "relnamespace",
    "reltype",
    "relfilenode",
    "relpages",
    "reltuples",
    "relallvisible",
    "relallfrozen",
    "reltoastrelid",
    "relhasindex",
    "relnatts",
    "relhasrules",
    "relhastriggers",
    "relhassubclass",
    "relrewrite",
    "relfrozenxid",
    "relminmxid",
    "relacl"
  )} || jsonb_build_object('reloptions', ${sorted(`${row}.reloptions`)}))`

const rights = (acl: string): string =>
  `jsonb_build_object('rights', (
    select jsonb_agg(concat_ws(' ', case a.grantee when 0 then 'public' else pg_get_userbyid(a.grantee) end, a.privilege_type,
      case when a.is_grantable then 'with grant option' end, 'by', pg_get_userbyid(a.grantor))
      order by a.grantee, a.privilege_type, a.grantor)
    from aclexplode(${acl}) a))`

/** The comment on an object, and its security labels. */
const notes = (catalogue: string, oid: string, column = "0"): string =>
  `jsonb_build_object('comment', (
    select description from pg_description where classoid = '${catalogue}'::regclass and objoid = ${oid} and objsubid = ${column}
  ), 'labels', (
    select jsonb_agg(provider || ' ' || label order by provider) from pg_seclabel
    where classoid = '${catalogue}'::regclass and objoid = ${oid} and objsubid = ${column}))`

/** The objects that belong to the table. The shadow table has its own. */
const owned = `sequences as (
    select d.objid as oid, d.refobjsubid as attnum, d.deptype::text as deptype
    from pg_depend d join pg_class s on s.oid = d.objid and s.relkind = 'S'
    where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = (select oid from t)
      and d.deptype in ('a', 'i')
  ), own (classid, objid) as (
    select 'pg_class'::regclass::oid, oid from t
    union all select 'pg_class'::regclass, indexrelid from pg_index where indrelid = (select oid from t)
    union all select 'pg_class'::regclass, oid from sequences where deptype = 'i'
    union all select 'pg_type'::regclass, reltype from pg_class where oid = (select oid from t)
    union all select 'pg_attrdef'::regclass, oid from pg_attrdef where adrelid = (select oid from t)
    union all select 'pg_constraint'::regclass, oid from pg_constraint where conrelid = (select oid from t)
    union all select 'pg_policy'::regclass, oid from pg_policy where polrelid = (select oid from t)
    union all select 'pg_statistic_ext'::regclass, oid from pg_statistic_ext where stxrelid = (select oid from t)
  )`

const parts: ReadonlyArray<string> = [
  `select 'table' as what, ${relation("c")} || ${rights("coalesce(c.relacl, acldefault('r', c.relowner))")}
      || jsonb_build_object('toast', ${sorted("toast.reloptions")}) || ${notes("pg_class", "c.oid")} as value
    from pg_class c left join pg_class toast on toast.oid = c.reltoastrelid where c.oid = (select oid from t)`,
  `select 'row type', (to_jsonb(y) - ${without("oid", "typnamespace", "typrelid", "typarray", "typacl")})
      || ${rights("coalesce(y.typacl, acldefault('T', y.typowner))")} || ${notes("pg_type", "y.oid")}
    from pg_type y where y.typrelid = (select oid from t)`,
  // By their order, because dropped columns leave gaps in the numbers. Without the number of dimensions of a list, which means nothing, and
  // which `create table … (like …)` of Postgres 18.4 does not copy.
  `select 'column ' || quote_ident(a.attname),
      (to_jsonb(a) - ${without("attrelid", "attnum", "attcacheoff", "attndims", "attacl", "atthasmissing", "attmissingval")})
      || jsonb_build_object('place', row_number() over (order by a.attnum), 'default', pg_get_expr(d.adbin, d.adrelid),
        'attoptions', ${columnOptions("a.attoptions")})
      || ${rights("a.attacl")} || ${notes("pg_class", "a.attrelid", "a.attnum")}
    from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    where a.attrelid = (select oid from t) and a.attnum > 0 and not a.attisdropped`,
  `select 'constraint ' || quote_ident(k.conname),
      (to_jsonb(k) - ${without("oid", "connamespace", "conrelid", "conindid", "conparentid", "conkey", "confkey", "conbin")})
      || jsonb_build_object('definition', pg_get_constraintdef(k.oid), 'index', k.conindid::regclass::text)
      || ${notes("pg_constraint", "k.oid")}
    from pg_constraint k where k.conrelid = (select oid from t)`,
  `select 'index ' || quote_ident(c.relname),
      ${relation("c")} || (to_jsonb(i) - ${without("indexrelid", "indrelid", "indkey", "indexprs", "indpred", "indcheckxmin")})
      || jsonb_build_object('definition', pg_get_indexdef(c.oid), 'columns', (
        select jsonb_agg(jsonb_build_array(a.attstattarget, ${columnOptions("a.attoptions")}) order by a.attnum)
        from pg_attribute a where a.attrelid = c.oid
      )) || ${notes("pg_class", "c.oid")}
    from pg_index i join pg_class c on c.oid = i.indexrelid where i.indrelid = (select oid from t)`,
  `select 'statistics ' || quote_ident(s.stxname),
      (to_jsonb(s) - ${without("oid", "stxrelid", "stxnamespace", "stxkeys", "stxexprs")})
      || jsonb_build_object('definition', pg_get_statisticsobjdef(s.oid)) || ${notes("pg_statistic_ext", "s.oid")}
    from pg_statistic_ext s where s.stxrelid = (select oid from t)`,
  `select 'policy ' || quote_ident(p.polname),
      (to_jsonb(p) - ${without("oid", "polrelid", "polqual", "polwithcheck")})
      || jsonb_build_object('using', pg_get_expr(p.polqual, p.polrelid), 'check', pg_get_expr(p.polwithcheck, p.polrelid))
      || ${notes("pg_policy", "p.oid")}
    from pg_policy p where p.polrelid = (select oid from t)`,
  `select case o.deptype when 'i' then 'identity sequence ' else 'owned sequence ' end || quote_ident(c.relname),
      ${relation("c")} || (to_jsonb(q) - ${without("seqrelid")}) || jsonb_build_object('column', a.attname)
      || ${rights("coalesce(c.relacl, acldefault('s', c.relowner))")} || ${notes("pg_class", "c.oid")}
    from sequences o join pg_class c on c.oid = o.oid join pg_sequence q on q.seqrelid = o.oid
    join pg_attribute a on a.attrelid = (select oid from t) and a.attnum = o.attnum`,
  // The objects that the table and its parts depend on. The names of triggers inside of constraints are numbers.
  `select format('dependency %s of %s on %s', d.deptype, pg_describe_object(d.classid, d.objid, d.objsubid),
      pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid)), '{}'::jsonb
    from pg_depend d join own o on o.classid = d.classid and o.objid = d.objid
    where d.refclassid <> 'pg_namespace'::regclass
      and not exists (select 1 from own p where p.classid = d.refclassid and p.objid = d.refobjid)`,
  `select format('dependency %s of %s on %s', d.deptype, pg_describe_object(d.classid, d.objid, d.objsubid),
      pg_describe_object(d.refclassid, d.refobjid, 0)), '{}'::jsonb
    from pg_shdepend d join own o on o.classid = d.classid and o.objid = d.objid
    where d.dbid = (select oid from pg_database where datname = current_database())`
]
