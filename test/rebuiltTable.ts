/** Reads the definition of a table in another way than `src`: by the functions that describe objects for a dump. */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"

/** The definition by sections, without object ids, files and counts, because a new table has others. */
export const catalogueOf = (table: string) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    Effect.map(
      sql<{ section: string; line: string }>`with t as (
          select c.*, n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = ${table}::regclass
        ), sequences as (
          select d.objid, d.deptype, d.refobjsubid from pg_depend d join pg_class s on s.oid = d.objid and s.relkind = 'S'
          where d.refclassid = 'pg_class'::regclass and d.refobjid = (select oid from t)
        ), relations as (
          select c.*, 'table' as part from pg_class c where oid = (select oid from t)
          union all select c.*, 'index' from pg_class c join pg_index i on i.indexrelid = c.oid where i.indrelid = (select oid from t)
          union all select c.*, 'sequence' from pg_class c where oid in (select objid from sequences)
        ), objects (classid, objid) as (
          select 'pg_class'::regclass::oid, oid from relations
          union all select 'pg_type'::regclass, reltype from t
          union all select 'pg_constraint'::regclass, oid from pg_constraint where conrelid = (select oid from t)
          union all select 'pg_policy'::regclass, oid from pg_policy where polrelid = (select oid from t)
          union all select 'pg_statistic_ext'::regclass, oid from pg_statistic_ext where stxrelid = (select oid from t)
        )
        select 'relations' as section, concat_ws(' | ', part, relname, relnamespace::regnamespace, relkind, relpersistence, relreplident,
            'rls', relrowsecurity, relforcerowsecurity, 'options', reloptions,
            'toast', (select reloptions from pg_class o where o.oid = r.reltoastrelid),
            'method', (select amname from pg_am where oid = relam), 'space', (select spcname from pg_tablespace where oid = reltablespace),
            'owner', pg_get_userbyid(relowner), 'rights', (select array_agg(a::text order by a::text)
              from unnest(coalesce(relacl, acldefault(case relkind when 'S' then 's'::"char" else 'r' end, relowner))) a)) as line
          from relations r
        union all
        select 'columns', concat_ws(' | ', row_number() over (order by attnum), attname, format_type(atttypid, atttypmod), attnotnull,
            attstorage, attcompression, attidentity, attgenerated, attcollation::regcollation, 'statistics', attstattarget, attoptions, attacl,
            pg_get_expr(adbin, adrelid))
          from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum
          where attrelid = (select oid from t) and attnum > 0 and not attisdropped
        union all
        select 'constraints', concat_ws(' | ', conname, contype, condeferrable, condeferred, convalidated, pg_get_constraintdef(oid))
          from pg_constraint where conrelid = (select oid from t)
        union all
        select 'indexes', concat_ws(' | ', pg_get_indexdef(indexrelid), indisprimary, indisunique, indisexclusion, indimmediate, indisclustered,
            indisvalid, indisreplident, (select array_agg(attstattarget order by attnum) from pg_attribute where attrelid = indexrelid))
          from pg_index where indrelid = (select oid from t)
        union all
        select 'statistics', concat_ws(' | ', pg_get_statisticsobjdef(oid), stxstattarget, pg_get_userbyid(stxowner))
          from pg_statistic_ext where stxrelid = (select oid from t)
        union all
        select 'policies', concat_ws(' | ', policyname, permissive, roles, cmd, qual, with_check)
          from pg_policies p join t on t.relname = p.tablename and t.nspname = p.schemaname
        union all
        -- A sequence that is no identity is the old one, and goes on.
        select 'sequences', concat_ws(' | ', sequencename, data_type, start_value, min_value, max_value, increment_by, cycle, cache_size, s.deptype,
            a.attname, case s.deptype when 'i' then last_value end)
          from sequences s join pg_class c on c.oid = s.objid join pg_attribute a on a.attrelid = (select oid from t) and a.attnum = s.refobjsubid
          join pg_sequences q on q.sequencename = c.relname and q.schemaname = (select nspname from t)
        union all
        select 'comments', concat_ws(' | ', pg_describe_object(d.classoid, d.objoid, d.objsubid), description)
          from pg_description d join objects o on o.classid = d.classoid and o.objid = d.objoid
        union all
        select 'partners', concat_ws(' | ', pg_describe_object(d.classid, d.objid, d.objsubid), d.deptype, pg_describe_object(d.refclassid, d.refobjid, 0))
          from pg_shdepend d join objects o on o.classid = d.classid and o.objid = d.objid
        order by 1, 2`,
      (rows) => {
        const sections: Record<string, Array<string>> = {}
        for (const { line, section } of rows) sections[section] = [...(sections[section] ?? []), line]
        return sections
      }
    )
  )
