/**
 * Builds the statements that give a shadow table what belongs to its live table: owner, rights, policies, storage,
 * comments and others. `checkReplacement.ts` runs them on trial, and `replaceTables.ts` in the swap.
 *
 * The catalogue puts them together while the search path is empty, so each name in them is qualified. Each statement
 * sets a value and adds none, so it may run again. `tableDefinition.ts` shows afterwards whether the tables still
 * differ.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import { columnOptions } from "../sql/tableDefinition.js"

/** A live table, and the shadow table that gets its settings. All names are quoted. */
export interface Settings {
  /** The live table, with its schema. */
  readonly live: string
  /** The shadow table under its present name. */
  readonly shadow: string
  /** The shadow table under the name that the statements use, and the schema of its indexes and sequences. */
  readonly target: string
  readonly targetSchema: string
  /**
   * Whether both have one shape. Otherwise the statements of `create` decide on columns, indexes, storage and comments.
   */
  readonly sameShape: boolean
  /** Whether the shadow table gets row level security and policies of the live one. */
  readonly withRowSecurity: boolean
}

/** All statements, in their order. */
export const settingsOf = (
  sql: SqlClient.SqlClient,
  settings: Settings
): Effect.Effect<ReadonlyArray<string>, SqlError> => selectSettings(sql, settings, false)

/** The statements about the storage of rows. They run before the first row is inserted. */
export const storageOf = (
  sql: SqlClient.SqlClient,
  settings: Settings
): Effect.Effect<ReadonlyArray<string>, SqlError> => selectSettings(sql, settings, true)

/** Whether a table has row level security or policies. */
export const hasRowSecurity = (sql: SqlClient.SqlClient, table: string): Effect.Effect<boolean, SqlError> =>
  Effect.map(
    sql`select 1 from pg_class c where c.oid = ${table}::regclass
      and (c.relrowsecurity or exists (select 1 from pg_policy where polrelid = c.oid))`,
    (rows) => rows.length > 0
  )

/**
 * Statements that change nothing, but write the row of each table in the catalogue. A concurrent GRANT or REVOKE then
 * fails.
 */
export const touchesOf = (
  sql: SqlClient.SqlClient,
  tables: ReadonlyArray<string>
): Effect.Effect<ReadonlyArray<string>, SqlError> =>
  textsOf(
    sql`select format('alter table %s %s row level security', t, case when relforcerowsecurity then 'force' else 'no force' end) as text
      from unnest(${[...tables]}::text[]) t join pg_class on oid = t::regclass`
  )

/** The texts of statements that the catalogue has put together. */
export const textsOf = (
  statement: Effect.Effect<ReadonlyArray<object>, SqlError>
): Effect.Effect<ReadonlyArray<string>, SqlError> =>
  Effect.map(statement, (rows) => rows.map((row) => String(Reflect.get(row, "text"))))

// --- internal ---

const selectSettings = (
  sql: SqlClient.SqlClient,
  { sameShape, live, shadow, target, targetSchema, withRowSecurity }: Settings,
  storageOnly: boolean
): Effect.Effect<ReadonlyArray<string>, SqlError> =>
  textsOf(
    sql`with p as (
        select ${target}::text as t, ${targetSchema}::text as n, ${sameShape}::boolean as alike, ${withRowSecurity}::boolean as secures
      ), c as (
        select * from pg_class where oid = ${live}::regclass
      ), m as (
        select * from pg_class where oid = ${shadow}::regclass
      ), ${sql.literal(models)}
      select text from (${sql.literal(statements.map(([step, text]) => `select ${step} as step, ${text}`).join(" union all "))}) s
      where text is not null and (not ${storageOnly}::boolean or step between 70 and 79)
      order by step, text`
  )

/** Columns and identities of the live table, and the roles that have or may have rights on the shadow table. */
const models = `columns as (
    select a.*, x.attnum is not null as is_kept from c
    join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    left join m on true
    left join pg_attribute x on x.attrelid = m.oid and x.attname = a.attname and x.attnum > 0 and not x.attisdropped
  ), identities as (
    select s.* from c join pg_depend d on d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass
      and d.refobjid = c.oid and d.deptype = 'i'
    join pg_class s on s.oid = d.objid and s.relkind = 'S'
  ), roles as (
    select string_agg(distinct case r when 0 then 'public' else quote_ident(pg_get_userbyid(r)) end, ', ') as names from (
      select 0::oid as r union select relowner from c union select relowner from m
      union select grantee from m, aclexplode(m.relacl)
      union select x.grantee from m join pg_attribute a on a.attrelid = m.oid, aclexplode(a.attacl) x
      union select x.grantee from pg_default_acl, aclexplode(defaclacl) x
    ) r
  )`

const to = (acl: string): string =>
  `case ${acl}.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(${acl}.grantee)) end
    || case when ${acl}.is_grantable then ' with grant option' else '' end`

/** Storage options, as a statement has them in parentheses. */
const optionsOf = (options: string, prefix = ""): string =>
  `(select string_agg(format('${prefix}%I = %L', split_part(o, '=', 1), substr(o, strpos(o, '=') + 1)), ', ') from unnest(${options}) o)`

const commented = (what: string, catalogue: string, oid: string, from: string, column = "0"): string =>
  `format('comment on %s is %L', ${what}, d.description)
    from p, ${from} join pg_description d
      on d.classoid = '${catalogue}'::regclass and d.objoid = ${oid} and d.objsubid = ${column}`

/** The statements by the step in which they run. The owner comes first, because grants are the owner's. */
const statements: ReadonlyArray<readonly [step: number, text: string]> = [
  [
    10,
    `format('alter table %s owner to %I', p.t, pg_get_userbyid(c.relowner)) as text from p, c, m where c.relowner <> m.relowner`
  ],
  // Default privileges may have granted what the owner of the live table has revoked.
  [20, `format('revoke all on table %s from %s', p.t, roles.names) from p, roles`],
  [
    30,
    `format('grant %s on table %s to %s', string_agg(a.privilege_type, ', '), p.t, ${to("a")})
      from p, c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a group by p.t, a.grantee, a.is_grantable`
  ],
  [
    31,
    `format('grant %s (%I) on table %s to %s', a.privilege_type, k.attname, p.t, ${to("a")})
      from p, columns k, aclexplode(k.attacl) a where k.is_kept`
  ],
  [
    40,
    `format('revoke all on sequence %s.%I from %s', p.n, i.relname, roles.names) from p, identities i, roles where p.alike`
  ],
  [
    41,
    `format('grant %s on sequence %s.%I to %s', string_agg(a.privilege_type, ', '), p.n, i.relname, ${to("a")})
      from p, identities i, aclexplode(coalesce(i.relacl, acldefault('s', i.relowner))) a where p.alike
      group by p.n, i.relname, a.grantee, a.is_grantable`
  ],
  [
    50,
    `format('alter table %s %s row level security, %s row level security', p.t,
      case when c.relrowsecurity then 'enable' else 'disable' end, case when c.relforcerowsecurity then 'force' else 'no force' end)
      from p, c where p.secures`
  ],
  [
    51,
    `format('create policy %I on %s as %s for %s to %s%s%s', y.polname, p.t,
      case when y.polpermissive then 'permissive' else 'restrictive' end,
      case y.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all' end,
      (select string_agg(case r when 0 then 'public' else quote_ident(pg_get_userbyid(r)) end, ', ') from unnest(y.polroles) r),
      ' using (' || pg_get_expr(y.polqual, y.polrelid) || ')', ' with check (' || pg_get_expr(y.polwithcheck, y.polrelid) || ')')
      from p, c join pg_policy y on y.polrelid = c.oid where p.secures`
  ],
  [
    60,
    `format('alter table %s replica identity %s', p.t, case c.relreplident when 'd' then 'default' when 'n' then 'nothing' when 'f' then 'full'
      else 'using index ' || (select quote_ident(x.relname) from pg_index i join pg_class x on x.oid = i.indexrelid
        where i.indrelid = c.oid and i.indisreplident) end)
      from p, c, m where p.alike or m.relreplident = 'd'`
  ],
  [
    61,
    `format('alter table %s cluster on %I', p.t, x.relname)
      from p, c join pg_index i on i.indrelid = c.oid and i.indisclustered join pg_class x on x.oid = i.indexrelid where p.alike`
  ],
  [
    70,
    `format('alter table %s set (%s)', p.t, ${optionsOf("c.reloptions")}) from p, c where p.alike and c.reloptions <> '{}'`
  ],
  [
    71,
    `format('alter table %s set (%s)', p.t, ${optionsOf("o.reloptions", "toast.")})
      from p, c join pg_class o on o.oid = c.reltoastrelid where p.alike and o.reloptions <> '{}'`
  ],
  [
    72,
    `format('alter table %s alter column %I set statistics %s', p.t, k.attname, k.attstattarget) from p, columns k
      where p.alike and k.attstattarget >= 0`
  ],
  [
    73,
    `format('alter table %s alter column %I set (%s)', p.t, k.attname, ${optionsOf(columnOptions("k.attoptions"))}) from p, columns k
      where p.alike and ${columnOptions("k.attoptions")} is not null`
  ],
  [
    74,
    `format('alter index %s.%I alter column %s set statistics %s', p.n, x.relname, a.attnum, a.attstattarget)
      from p, c join pg_index i on i.indrelid = c.oid join pg_class x on x.oid = i.indexrelid
      join pg_attribute a on a.attrelid = x.oid and a.attstattarget >= 0 where p.alike`
  ],
  [
    75,
    `format('alter statistics %s.%I set statistics %s', p.n, s.stxname, s.stxstattarget)
      from p, c join pg_statistic_ext s on s.stxrelid = c.oid where p.alike and s.stxstattarget >= 0`
  ],
  // `like` makes all of them bigint.
  [
    76,
    `format('alter sequence %s.%I as %s increment %s minvalue %s maxvalue %s start %s cache %s %s', p.n, i.relname, q.seqtypid::regtype,
      q.seqincrement, q.seqmin, q.seqmax, q.seqstart, q.seqcache, case when q.seqcycle then 'cycle' else 'no cycle' end)
      from p, identities i join pg_sequence q on q.seqrelid = i.oid where p.alike`
  ],
  [
    80,
    `format('alter statistics %s.%I owner to %I', p.n, s.stxname, pg_get_userbyid(s.stxowner))
      from p, c join pg_statistic_ext s on s.stxrelid = c.oid where p.alike`
  ],
  [
    90,
    `${commented("'table ' || p.t", "pg_class", "c.oid", "c")}
      where p.alike or not exists (select 1 from m join pg_description o on o.objoid = m.oid and o.classoid = 'pg_class'::regclass and o.objsubid = 0)`
  ],
  [91, `${commented("'type ' || p.t", "pg_type", "c.reltype", "c")} where p.alike`],
  [
    92,
    `${commented("format('column %s.%I', p.t, k.attname)", "pg_class", "k.attrelid", "columns k", "k.attnum")} where p.alike`
  ],
  [
    93,
    `${commented("format('constraint %I on %s', k.conname, p.t)", "pg_constraint", "k.oid", "c join pg_constraint k on k.conrelid = c.oid")}
      where p.alike`
  ],
  [
    94,
    `${commented("format('index %s.%I', p.n, x.relname)", "pg_class", "x.oid", "c join pg_index i on i.indrelid = c.oid join pg_class x on x.oid = i.indexrelid")}
      where p.alike`
  ],
  [
    95,
    `${commented("format('statistics %s.%I', p.n, s.stxname)", "pg_statistic_ext", "s.oid", "c join pg_statistic_ext s on s.stxrelid = c.oid")}
      where p.alike`
  ],
  [96, `${commented("format('sequence %s.%I', p.n, i.relname)", "pg_class", "i.oid", "identities i")} where p.alike`],
  [
    97,
    `${commented("format('policy %I on %s', y.polname, p.t)", "pg_policy", "y.oid", "c join pg_policy y on y.polrelid = c.oid")}
      where p.secures`
  ]
]
