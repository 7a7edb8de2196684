/**
 * What belongs to the event log beside its events, for `replaceLog.ts`: the statements that make it anew, and the checks that nothing of it
 * would be lost.
 *
 * The definition of the log is compared by the rows of the catalogue (`tableDefinition.ts`), so a property that this file does not know is
 * compared, too. Partitions follow the log, so a partition may have nothing of its own.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import { columnOptions, definitionOf, type TableDefinition } from "./tableDefinition.js"

/** The properties of the log and its parts that do not depend on the number of partitions. */
export const definitionOfLog = (sql: SqlClient.SqlClient, name: string): Effect.Effect<TableDefinition, SqlError> =>
  Effect.gen(function* () {
    const [log] = yield* sql<{ name: string }>`select format('%I.event_log', ${name}::text) as name`
    const definition = yield* definitionOf(sql, log?.name ?? "", { withOwnedSequences: true })
    const others = yield* sql<{ what: string; value: string }>`with log as (${selectLog(sql, name)})
      select 'trigger ' || quote_ident(t.tgname) as what, jsonb_build_object('tgenabled', t.tgenabled::text)::text as value
      from log join pg_trigger t on t.tgrelid = log.oid where not t.tgisinternal
      union all select 'rule ' || quote_ident(r.rulename), '{}' from log join pg_rewrite r on r.ev_class = log.oid
      union all select 'parent ' || i.inhparent::regclass, '{}' from log join pg_inherits i on i.inhrelid = log.oid`
    return new Map([
      ...[...definition].flatMap(([what, properties]) => {
        const common = commonTo(what, properties)
        return common === undefined ? [] : [common]
      }),
      ...others.map(({ value, what }) => [what, JSON.parse(value)] as const)
    ])
  })

/** A row if a partition is missing: the log has fewer than its hash divides into. */
export const selectDetached = (sql: SqlClient.SqlClient, name: string) =>
  sql<{ found: string }>`with log as (${selectLog(sql, name)})
    select count(*)::text as found from log join pg_inherits i on i.inhparent = log.oid join pg_class c on c.oid = i.inhrelid
    where log.relkind = 'p'
    having max(substring(pg_get_expr(c.relpartbound, c.oid) from 'modulus (\\d+)')::int) <> count(*)`

/** What is in the way of a change to so many partitions, and what to do about it. There is a row for each. */
export const selectObstacles = (sql: SqlClient.SqlClient, name: string, partitions: number) =>
  sql<{ obstacle: string }>`with log as (${selectLog(sql, name)}), leaf as (
      select c.*, i.inhparent from log join pg_inherits i on i.inhparent = log.oid join pg_class c on c.oid = i.inhrelid
      where log.relkind = 'p'
    )
    select format('the publication %I has the event log, and its subscribers would not follow the change: drop it before the change, and create it again afterwards',
      p.pubname) as obstacle
    from pg_publication_tables p where p.schemaname = ${name}
      and (p.tablename = 'event_log' or p.tablename in (select relname from leaf))
    union
    select format('the event log is in the subscription %I, which would not follow the change: drop it before the change, and create it again afterwards',
      s.subname)
    from log, pg_subscription_rel r join pg_subscription s on s.oid = r.srsubid
    where r.srrelid = log.oid or r.srrelid in (select oid from leaf)
    union
    select format('the partition %I has %s, which ' || ${
      partitions === 1
        ? "would be lost: remove that before the change"
        : "the new partitions would lack: remove that before the change, and add it to them afterwards"
    }::text, relname, part)
    from (${ownParts(sql)}) own
    union
    select format('the role %s has %s on the %s, and not on the event log, so the change would take that away: grant it on the event log, or before the change revoke %s on %s from %s',
      role, what, leaves, names, relations, role)
    from (${ownPrivileges(sql)}) own`

/**
 * The statements that make the constraints, indexes, statistics, triggers and comments of the log anew, and give it to its owner, as texts of
 * the server.
 */
export const selectDefinitions = (sql: SqlClient.SqlClient, name: string, tables: ReadonlyArray<string>) =>
  sql<{ statement: string }>`with log as (${selectLog(sql, name)}), own (classid, objid) as (
      select 'pg_class'::regclass::oid, oid from log
      union all select 'pg_class'::regclass, i.indexrelid from log join pg_index i on i.indrelid = log.oid
      union all select 'pg_class'::regclass, c.oid
        from log join pg_class c on c.relnamespace = log.relnamespace and c.relname = 'event_log_position_seq'
      union all select 'pg_constraint'::regclass, k.oid from log join pg_constraint k on k.conrelid = log.oid
      union all select 'pg_trigger'::regclass, t.oid from log join pg_trigger t on t.tgrelid = log.oid and not t.tgisinternal
      union all select 'pg_statistic_ext'::regclass, s.oid from log join pg_statistic_ext s on s.stxrelid = log.oid
    )
    select statement from (
      select 1 as step, k.oid, format('alter table %I.event_log add constraint %I %s', ${name}::text, k.conname, pg_get_constraintdef(k.oid))
        as statement
      from log join pg_constraint k on k.conrelid = log.oid where k.contype in ('p', 'u', 'x', 'f')
      union all
      -- The index of a partitioned table is defined ON ONLY that table.
      select 2, i.indexrelid, case when starts_with(d.definition, d.prefix || 'ONLY ')
        then d.prefix || substr(d.definition, length(d.prefix || 'ONLY ') + 1) else d.definition end
      from log join pg_index i on i.indrelid = log.oid join pg_class c on c.oid = i.indexrelid, lateral (
        select pg_get_indexdef(i.indexrelid) as definition,
          format('CREATE %sINDEX %s ON ', case when i.indisunique then 'UNIQUE ' end, quote_ident(c.relname)) as prefix
      ) d
      where not exists (select 1 from pg_constraint k where k.conindid = i.indexrelid and k.conrelid = log.oid)
      union all
      select 3, s.oid, pg_get_statisticsobjdef(s.oid) from log join pg_statistic_ext s on s.stxrelid = log.oid
      union all
      select 4, t.oid, pg_get_triggerdef(t.oid) from log join pg_trigger t on t.tgrelid = log.oid where not t.tgisinternal
      union all
      select 5, d.objoid, format('comment on %s %s is %L', case o.type when 'table constraint' then 'constraint'
        when 'table column' then 'column' when 'statistics object' then 'statistics' else o.type end, o.identity, d.description)
      from own join pg_description d on d.classoid = own.classid and d.objoid = own.objid,
        lateral pg_identify_object(d.classoid, d.objoid, d.objsubid) o
      union all
      select 6, log.oid, format('alter table %I.%I owner to %I', ${name}::text, name, pg_get_userbyid(log.relowner))
      from log, unnest(${tables}::text[]) name where pg_get_userbyid(log.relowner) <> current_user
    ) definitions order by step, oid`

/** A privilege of a role on the log, its sequence or a partition, in the words of a statement. */
export interface Privilege {
  readonly name: string
  readonly relation: string
  readonly grantee: string
  readonly option: string
}

/** The privileges on the log and its sequence, and those of other roles than the owner on partitions. */
export const selectPrivileges = (sql: SqlClient.SqlClient, name: string, partitions: ReadonlyArray<string>) =>
  sql<Privilege>`select a.privilege_type as name,
      format('%s %I.%I', case c.relkind when 'S' then 'sequence' else 'table' end, n.nspname, c.relname) as relation,
      case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end as grantee,
      case when a.is_grantable then 'with grant option' else '' end as option
    from pg_class c join pg_namespace n on n.oid = c.relnamespace,
      aclexplode(coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner))) a
    where n.nspname = ${name} and (c.relname in ('event_log', 'event_log_position_seq')
      or c.relname = any(${partitions}::text[]) and a.grantee <> c.relowner)`

/**
 * The statements that change the privileges of the new log to those of the old one. Default privileges may have given others to it, and the
 * owner of the old log may have revoked its own.
 */
export const privilegeChanges = (
  before: ReadonlyArray<Privilege>,
  after: ReadonlyArray<Privilege>
): ReadonlyArray<string> => {
  const textOf = ({ grantee, name, option, relation }: Privilege) => `${name} on ${relation} to ${grantee} ${option}`
  const [old, made] = [new Set(before.map(textOf)), new Set(after.map(textOf))]
  return [
    ...after
      .filter((privilege) => !old.has(textOf(privilege)))
      .map(({ grantee, name, relation }) => `revoke ${name} on ${relation} from ${grantee}`),
    ...[...old].filter((text) => !made.has(text)).map((text) => `grant ${text}`)
  ]
}

// --- internal ---

const selectLog = (sql: SqlClient.SqlClient, name: string) =>
  sql`select c.* from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = ${name} and c.relname = 'event_log'`

/** What partitions have that they do not have from the log, or from default privileges. */
const ownParts = (sql: SqlClient.SqlClient) =>
  sql`select leaf.relname, 'row security or a policy' as part from leaf
      where relrowsecurity or relforcerowsecurity or exists (select 1 from pg_policy where polrelid = leaf.oid)
    union all select leaf.relname, 'a rule' from leaf where exists (select 1 from pg_rewrite where ev_class = leaf.oid)
    union all select leaf.relname, 'storage parameters' from leaf left join pg_class toast on toast.oid = leaf.reltoastrelid
      where leaf.reloptions is not null or toast.reloptions is not null
    union all select leaf.relname, 'another owner, tablespace, persistence, replica identity or access method than the others'
      from leaf, log where (leaf.relowner, leaf.reltablespace, leaf.relpersistence) <> (log.relowner, log.reltablespace, log.relpersistence)
        or leaf.relreplident <> 'd' or leaf.relam <> (select oid from pg_am where amname = 'heap')
    union all select leaf.relname, format('the index %I', c.relname) from leaf join pg_index i on i.indrelid = leaf.oid
      join pg_class c on c.oid = i.indexrelid where not exists (select 1 from pg_inherits where inhrelid = i.indexrelid)
        or i.indisclustered or c.reltablespace <> 0
    union all select leaf.relname, format('the trigger %I', t.tgname) from leaf join pg_trigger t on t.tgrelid = leaf.oid
      where not t.tgisinternal and (t.tgparentid = 0 or t.tgenabled <> 'O')
    union all select leaf.relname, format('the constraint %I', k.conname) from leaf join pg_constraint k on k.conrelid = leaf.oid
      where k.contype <> 't' and k.conparentid = 0 and k.coninhcount = 0
    union all select leaf.relname, format('statistics %I', s.stxname) from leaf join pg_statistic_ext s on s.stxrelid = leaf.oid
    union all select leaf.relname, format('settings or privileges of the column %I', a.attname)
      from leaf join pg_attribute a on a.attrelid = leaf.oid and a.attnum > 0 and not a.attisdropped
      join pg_attribute p on p.attrelid = leaf.inhparent and p.attname = a.attname
      left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
      left join pg_attrdef e on e.adrelid = p.attrelid and e.adnum = p.attnum
      where ${sql.literal(columnOptions("a.attoptions"))} is not null or a.attacl is not null
        or coalesce(a.attstattarget, -1) <> coalesce(p.attstattarget, -1)
        or a.attstorage <> p.attstorage or pg_get_expr(d.adbin, d.adrelid) is distinct from pg_get_expr(e.adbin, e.adrelid)
    union all select leaf.relname, 'a comment or a label' from leaf
      where exists (select 1 from pg_description where classoid = 'pg_class'::regclass and objoid = leaf.oid)
        or exists (select 1 from pg_seclabel where classoid = 'pg_class'::regclass and objoid = leaf.oid)`

/**
 * The privileges on partitions that their roles have neither on the log nor from default privileges. Without a privilege on a partition that its
 * role has on the log nothing is lost, because statements go through the log. `grant … on all tables` gives it on both.
 */
const ownPrivileges = (sql: SqlClient.SqlClient) =>
  sql`select role, names, names || case when is_grantable then ' with grant option' else '' end as what,
      case count(*) when 1 then 'partition ' else 'partitions ' end || string_agg(quote_ident(relname), ', ' order by relname) as leaves,
      string_agg(format('%I.%I', nspname, relname), ', ' order by relname) as relations
    from (
      select leaf.relname, n.nspname, a.is_grantable, string_agg(distinct a.privilege_type, ', ') as names,
        case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end as role
      from log join leaf on leaf.inhparent = log.oid join pg_namespace n on n.oid = leaf.relnamespace, aclexplode(leaf.relacl) a
      where a.grantee <> leaf.relowner
        and not has_table_privilege(a.grantee, log.oid, a.privilege_type || case when a.is_grantable then ' with grant option' else '' end)
        and not exists (
          select 1 from pg_default_acl d, aclexplode(d.defaclacl) b
          where d.defaclobjtype = 'r' and d.defaclnamespace in (0, leaf.relnamespace)
            and (b.grantee, b.privilege_type, b.is_grantable) = (a.grantee, a.privilege_type, a.is_grantable)
        )
      group by leaf.relname, n.nspname, a.grantee, a.is_grantable
    ) own
    group by role, is_grantable, names`

/** A property of the log that is the same on a table and on partitions. Undefined for what is part of the numbering. */
const commonTo = (
  what: string,
  properties: Readonly<Record<string, unknown>>
): readonly [string, Readonly<Record<string, unknown>>] | undefined => {
  if (what.startsWith("dependency ")) return what.includes("event_log_position_seq") ? undefined : [what, properties]
  const { relam: _, relkind: __, ...common } = properties
  if (what === "table") return [what, common]
  // The server quotes this name.
  if (what === 'column "position"') {
    const { attidentity: _, atthasdef: __, default: ___, ...others } = properties
    return [what, others]
  }
  if (what.startsWith("index ")) {
    const definition = String(properties.definition).replace(/ ON ONLY .*? USING /s, " ON USING ")
    return [what, { ...common, definition: definition.replace(/ ON (?!USING ).*? USING /s, " ON USING ") }]
  }
  if (what.startsWith("constraint ") && properties.contype === "f") {
    const { connoinherit: _, ...others } = common
    return [what, others]
  }
  return [what.replace(/^(identity|owned) sequence /, "sequence "), common]
}
