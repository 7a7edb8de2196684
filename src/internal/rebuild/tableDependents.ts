/**
 * Finds objects of the database that would be lost, or would be in the way, when shadow tables replace live ones.
 * `checkReplacement.ts` and `rehearseStatements.ts` call it.
 *
 * The query knows what belongs to a table, and returns each other object that depends on it. So
 * it finds objects of kinds that this file does not know. It asks by name only for what has no dependency in the
 * catalogue: publications of all tables, subscriptions of the server, parents, extensions and event triggers.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"

/** The tables that are replaced together. Names are quoted, with the schema. */
export interface Replaced {
  readonly tables: ReadonlyArray<string>
  /** The sequences of their columns that stay. Other tables may use them. */
  readonly kept: ReadonlyArray<string>
  /**
   * Whether the shadow tables have foreign keys of their own. Then foreign keys among the live tables may be dropped.
   */
  readonly replacesForeignKeys: boolean
}

/** The objects that depend on the tables, as the database describes them. */
export const dependentsOf = (
  sql: SqlClient.SqlClient,
  { kept, replacesForeignKeys, tables }: Replaced
): Effect.Effect<ReadonlyArray<string>, SqlError> =>
  Effect.map(
    sql<{ text: string }>`with live as (
        select t::regclass::oid as oid from unnest(${[...tables]}::text[]) t
      ), sequences as (
        select d.objid as oid from pg_depend d join pg_class s on s.oid = d.objid and s.relkind = 'S'
        where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass
          and d.refobjid in (select oid from live) and d.deptype in ('a', 'i')
      ), relations as (
        select oid from live
        union select reltoastrelid from pg_class where oid in (select oid from live) and reltoastrelid <> 0
        union select oid from sequences
      ), constraints as (
        select oid from pg_constraint where conrelid in (select oid from live)
          and (contype in ('p', 'u', 'x', 'c', 'n')
            or (${replacesForeignKeys}::boolean and contype = 'f' and confrelid in (select oid from live)))
      ), types as (
        select reltype as oid from pg_class where oid in (select oid from relations) and reltype <> 0
      ), own (classid, objid) as (
        select 'pg_class'::regclass::oid, oid from relations
        union all select 'pg_class'::regclass, indexrelid from pg_index where indrelid in (select oid from relations)
        union all select 'pg_type'::regclass, oid from types
        union all select 'pg_type'::regclass, typarray from pg_type where oid in (select oid from types) and typarray <> 0
        union all select 'pg_attrdef'::regclass, oid from pg_attrdef where adrelid in (select oid from live)
        union all select 'pg_constraint'::regclass, oid from constraints
        union all select 'pg_trigger'::regclass, oid from pg_trigger
          where tgisinternal and tgconstraint in (select oid from constraints)
        union all select 'pg_policy'::regclass, oid from pg_policy where polrelid in (select oid from live)
        union all select 'pg_statistic_ext'::regclass, oid from pg_statistic_ext where stxrelid in (select oid from live)
      ), hanging as (
        select d.classid, d.objid, d.objsubid
        from pg_depend d join own o on o.classid = d.refclassid and o.objid = d.refobjid
        where not exists (select 1 from own p where p.classid = d.classid and p.objid = d.objid)
          and not (o.classid = 'pg_class'::regclass
            and o.objid in (select k::regclass::oid from unnest(${[...kept]}::text[]) k))
          -- The publications below contain them.
          and d.classid <> 'pg_publication_rel'::regclass
        union all
        select d.refclassid, d.refobjid, 0 from pg_depend d
        where d.classid = 'pg_class'::regclass and d.objid in (select oid from live) and d.deptype = 'e'
        union all select 'pg_class'::regclass, inhparent, 0 from pg_inherits where inhrelid in (select oid from live)
        union all select 'pg_subscription'::regclass, srsubid, 0 from pg_subscription_rel where srrelid in (select oid from live)
        union all select 'pg_publication'::regclass, p.oid, 0
          from pg_publication_tables t join pg_publication p on p.pubname = t.pubname
          join pg_namespace n on n.nspname = t.schemaname
          join pg_class c on c.relnamespace = n.oid and c.relname = t.tablename
          where c.oid in (select oid from live)
        union all select 'pg_event_trigger'::regclass, oid, 0 from pg_event_trigger
          where evtenabled <> 'D' and evtevent <> 'login' and (evttags is null or evttags && ${statementsOfRebuild}::text[])
      )
      select distinct coalesce(
        case when r.ev_class is null then pg_describe_object(h.classid, h.objid, h.objsubid)
          else pg_describe_object('pg_class'::regclass, r.ev_class, 0) end,
        format('object %s of %s', h.objid, h.classid::regclass)
      ) as text
      from hanging h left join pg_rewrite r
        on h.classid = 'pg_rewrite'::regclass and r.oid = h.objid and r.ev_class not in (select oid from live)
      order by 1`,
    (rows) => rows.map(({ text }) => text)
  )

/** The objects in the schema of the shadow tables that belong to none of them. The swap would drop them. */
export const leftoversIn = (
  sql: SqlClient.SqlClient,
  schema: string,
  tables: ReadonlyArray<string>
): Effect.Effect<ReadonlyArray<string>, SqlError> =>
  Effect.map(
    sql<{ text: string }>`with shadows as (
        select t::regclass::oid as oid from unnest(${[...tables]}::text[]) t
      )
      select pg_describe_object(d.classid, d.objid, d.objsubid) as text
      from pg_depend d join pg_namespace n on n.oid = d.refobjid and n.nspname = ${schema}
      where d.refclassid = 'pg_namespace'::regclass
        and not (d.classid = 'pg_class'::regclass and (d.objid in (select oid from shadows) or d.objid in (
          select objid from pg_depend o where o.classid = 'pg_class'::regclass and o.refclassid = 'pg_class'::regclass
            and o.refobjid in (select oid from shadows) and o.deptype in ('a', 'i')
        )))
        and not (d.classid = 'pg_statistic_ext'::regclass and d.objid in (
          select oid from pg_statistic_ext where stxrelid in (select oid from shadows)
        ))
      order by 1`,
    (rows) => rows.map(({ text }) => text)
  )

/**
 * The relations in the schema of the live table that stay and have the name of an index or sequence of the shadow
 * table.
 */
export const collisionsOf = (
  sql: SqlClient.SqlClient,
  shadow: string,
  { kept, tables }: Replaced,
  live: string
): Effect.Effect<ReadonlyArray<string>, SqlError> =>
  Effect.map(
    sql<{ text: string }>`with going as (
        select t::regclass::oid as oid from unnest(${[...tables]}::text[]) t
      ), parts as (
        select indexrelid as oid, indrelid as of from pg_index
        union all select d.objid, d.refobjid from pg_depend d join pg_class s on s.oid = d.objid and s.relkind = 'S'
          where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i')
            and d.objid not in (select k::regclass::oid from unnest(${[...kept]}::text[]) k)
      )
      select pg_describe_object('pg_class'::regclass, taken.oid, 0) as text
      from parts join pg_class made on made.oid = parts.oid
      join pg_class table_ on table_.oid = ${live}::regclass
      join pg_class taken on taken.relname = made.relname and taken.relnamespace = table_.relnamespace
      where parts.of = ${shadow}::regclass and taken.oid not in (
        select oid from going union select oid from parts where of in (select oid from going)
      )
      order by 1`,
    (rows) => rows.map(({ text }) => text)
  )

// --- internal ---

/** The command tags of the statements of a rebuild. */
const statementsOfRebuild = [
  "ALTER INDEX",
  "ALTER SEQUENCE",
  "ALTER STATISTICS",
  "ALTER TABLE",
  "COMMENT",
  "CREATE INDEX",
  "CREATE POLICY",
  "CREATE SCHEMA",
  "CREATE SEQUENCE",
  "CREATE STATISTICS",
  "CREATE TABLE",
  "DROP SCHEMA",
  "DROP TABLE",
  "GRANT",
  "REVOKE"
]
