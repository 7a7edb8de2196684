/**
 * Finds the sequences of identities, and the sequences that columns own. The shadow table continues them.
 * `replaceTables.ts` and `checkReplacement.ts` call it.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type * as Effect from "effect/Effect"
import { textsOf } from "./tableSettings.js"

/**
 * The statements that move an identity of the shadow table to the value of the live table's identity, where that is
 * further. A rollback does not undo them, because sequences are outside of transactions.
 */
export const identityStates = (
  sql: SqlClient.SqlClient,
  live: string,
  shadow: string
): Effect.Effect<ReadonlyArray<string>, SqlError> =>
  textsOf(
    sql`with identities as (
        select d.refobjid as of, a.attname, d.objid::regclass::text as sequence, d.objid
        from pg_depend d join pg_class s on s.oid = d.objid and s.relkind = 'S'
        join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
        where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.deptype = 'i'
      )
      select format('select setval(%L, o.last_value, o.is_called) from %s o, %s n
          where sign(%s) * (o.last_value::numeric + case when o.is_called then %4$s else 0 end)
            > sign(%4$s) * (n.last_value::numeric + case when n.is_called then %4$s else 0 end)',
        made.sequence, old.sequence, made.sequence, '(' || q.seqincrement || ')::numeric') as text
      from identities old join identities made on made.attname = old.attname and made.of = ${shadow}::regclass
      join pg_sequence q on q.seqrelid = made.objid
      where old.of = ${live}::regclass`
  )

/** The sequences that columns of the live table own, each with the column of the shadow table that uses it. */
export const keptSequences = (
  sql: SqlClient.SqlClient,
  live: string,
  shadow: string,
  sameShape: boolean
): Effect.Effect<ReadonlyArray<{ readonly sequence: string; readonly column: string }>, SqlError> =>
  sql<{ sequence: string; column: string }>`select d.objid::regclass::text as sequence, quote_ident(b.attname) as column
    from pg_depend d
    join pg_class s on s.oid = d.objid and s.relkind = 'S'
    join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
    join pg_attribute b on b.attrelid = ${shadow}::regclass and not b.attisdropped and case
      when ${sameShape}::boolean then b.attname = a.attname
      else b.attnum = (
        select min(f.adnum) from pg_attrdef f join pg_depend u on u.classid = 'pg_attrdef'::regclass and u.objid = f.oid
        where f.adrelid = b.attrelid and u.refclassid = 'pg_class'::regclass and u.refobjid = s.oid
      ) end
    where d.refclassid = 'pg_class'::regclass and d.refobjid = ${live}::regclass
      and d.deptype = 'a' and d.classid = 'pg_class'::regclass`
