/**
 * Changes the number of partitions of an existing event log, in one transaction. `SqlStore.ts` offers it.
 *
 * - It copies the log into a new table, and drops the old one. So it is done as a whole or not at all, also where the process or the
 *   server ends meanwhile.
 * - The log is locked from the beginning. A lock that lets readers in would have to be raised at the end. A transaction that had read the
 *   log and waits to write would then be a deadlock, and the whole copy would be lost.
 * - Statements that wait for the lock find the new table by its name. Their snapshots are taken when they have the lock, so they see the
 *   copied events. `readStream.ts` cares for the statements that read by a function.
 * - Names, indexes, triggers, privileges and the owner of the log stay. It refuses a log with a part that it can't carry over.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type { Fragment, Statement } from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import { StoreError } from "../../StoreError.js"
import { fromSqlError } from "../runtime/sqlError.js"
import type { FeedOrder } from "../store/pageBytes.js"
import { createPartitions, numberPositions, numbersOf, partitionedBy, relation } from "./logPartitions.js"
import { checkSchema, lockSchema } from "./migrations.js"
import { boundedOutside } from "./pg/execute.js"
import { withTransaction } from "./pg/transaction.js"

/** Gives the log so many partitions, and returns whether it had another number. */
export const partitionLog = (
  sql: SqlClient.SqlClient,
  name: string,
  schema: Fragment,
  partitions: number
): Effect.Effect<boolean, StoreError> =>
  boundedOutside(
    withTransaction(
      sql,
      operation,
      Effect.gen(function* () {
        yield* checkIsolation(sql)
        yield* run(lockSchema(sql, name))
        const { feedOrder, partitions: found } = yield* checkSchema(sql, name, schema, {})
        if (found === undefined)
          return yield* misconfigured(`the schema ${JSON.stringify(name)} has no event log: run SqlStore.migrate`)
        if (found === partitions) return false
        yield* run(sql`lock table ${schema}.event_log in access exclusive mode`)
        yield* checkParts(sql, name)
        yield* replaceLog({ sql, name, schema, feedOrder, found, partitions })
        return true
      })
    )
  ).pipe(Effect.withSpan("SqlStore.partitionLog", { attributes: { schema: name, partitions } }))

// --- internal ---

const operation = "partitionLog"

const run = <A>(statement: Effect.Effect<A, SqlError>) =>
  Effect.mapError(statement, (error) => fromSqlError(operation, "writing", error))

const misconfigured = (description: string): StoreError =>
  new StoreError({ reason: "Misconfigured", operation, description })

/**
 * Fails in a transaction of the caller above READ COMMITTED. Its snapshot may be older than the lock, and the copy would lack the events that
 * were committed between the two.
 */
const checkIsolation = (sql: SqlClient.SqlClient): Effect.Effect<void, StoreError> =>
  Effect.flatMap(
    run(sql<{ isolation: string }>`select current_setting('transaction_isolation') as isolation`),
    ([row]) =>
      row?.isolation === "read committed"
        ? Effect.void
        : misconfigured("a transaction that changes the event log has to be READ COMMITTED")
  )

interface Change {
  readonly sql: SqlClient.SqlClient
  readonly name: string
  readonly schema: Fragment
  readonly feedOrder: FeedOrder
  /** The number of partitions that the log has. */
  readonly found: number
  readonly partitions: number
}

/** Copies the log into a new table, which takes its place. The indexes are made after the copy, because this takes less time. */
const replaceLog = (change: Change): Effect.Effect<void, StoreError> =>
  Effect.gen(function* () {
    const { name, partitions, schema, sql } = change
    const definitions = yield* run(selectDefinitions(sql, name, partitions))
    const [before] = yield* run(selectBefore(change))
    const statements = [
      ...copyStatements(change),
      // It may be a transaction of the caller, which goes on with its own setting.
      sql`select set_config('synchronize_seqscans', ${before?.scans ?? "on"}, true)`,
      ...replaceStatements(change),
      ...(before?.last === undefined ? [] : numberAgain(change, before.last, before.is_called === true)),
      sql`alter table ${schema}.event_log add primary key (aggregate_id, sequence)`,
      ...definitions.map(({ statement }) => sql.unsafe(statement)),
      // Else the planner would know nothing of the new tables until autovacuum has looked at them.
      sql`analyze ${schema}.event_log`
    ]
    for (const statement of statements) yield* run(statement)
  })

/** What is set again after the change: a setting of the transaction, and where the sequence of the positions is. A counter needs none. */
const selectBefore = ({ feedOrder, schema, sql }: Change) =>
  feedOrder === "counter"
    ? sql<Before>`select current_setting('synchronize_seqscans') as scans`
    : sql<Before>`select last_value::text as last, is_called,
        current_setting('synchronize_seqscans') as scans from ${schema}.event_log_position_seq`

interface Before {
  readonly scans: string
  readonly last?: string
  readonly is_called?: boolean
}

/** The statements that give the new table a sequence, which goes on where that of the old one was. */
const numberAgain = ({ partitions, schema, sql }: Change, last: string, isCalled: boolean) => [
  ...(partitions === 1
    ? [sql`alter table ${schema}.event_log alter column position add generated by default as identity`]
    : numberPositions(sql, schema)),
  sql`select setval(${relation(sql, schema, "event_log_position_seq")}, ${last}::bigint, ${isCalled}::boolean)`
]

/** Makes the new table under another name, with all events. */
const copyStatements = ({ found, partitions, schema, sql }: Change): ReadonlyArray<Statement<unknown>> => {
  const copy = sql`${schema}.event_log_copy`
  return [
    sql`create table ${copy} (like ${schema}.event_log including all excluding identity excluding indexes)
      ${partitionedBy(sql, partitions)}`,
    ...createPartitions(sql, schema, partitions, "event_log_copy"),
    // Else the default would need the sequence of the old table.
    sql`alter table ${copy} alter column position drop default`,
    // The events stay in the order in which they were written, as `typeSamples.ts` expects. One table is in that order, and is read
    // from its beginning.
    sql`set local synchronize_seqscans = off`,
    sql`insert into ${copy} select * from ${schema}.event_log ${found === 1 ? sql`` : sql`order by feed_key, position`}`
  ]
}

/** Drops the old table with its partitions, its indexes and its sequence, and gives the new one their names. */
const replaceStatements = ({ partitions, schema, sql }: Change): ReadonlyArray<Statement<unknown>> => [
  sql`drop table ${schema}.event_log`,
  sql`alter table ${schema}.event_log_copy rename to event_log`,
  ...numbersOf(partitions).map(
    (number) =>
      sql`alter table ${schema}.${sql.literal(`event_log_copy_${number}`)} rename to ${sql.literal(`event_log_${number}`)}`
  )
]

/** Fails if the log has a part that the new table would lack. */
const checkParts = (sql: SqlClient.SqlClient, name: string): Effect.Effect<void, StoreError> =>
  Effect.flatMap(
    run(
      sql<{ part: string }>`with log as (${selectLog(sql, name)})
        select 'a policy of row security' as part from log where relrowsecurity
          or exists (select 1 from pg_policy where polrelid = log.oid)
        union all select 'a rule' from log where exists (select 1 from pg_rewrite where ev_class = log.oid)
        union all select 'a place in a publication' from log
          where exists (select 1 from pg_publication_rel where prrelid = log.oid)
        union all select 'privileges on columns' from log
          where exists (select 1 from pg_attribute where attrelid = log.oid and attacl is not null)
        union all select 'a trigger that is not enabled in the usual way' from log
          where exists (select 1 from pg_trigger where tgrelid = log.oid and not tgisinternal and tgenabled <> 'O')`
    ),
    ([found]) =>
      found === undefined
        ? Effect.void
        : misconfigured(
            `the event log has ${found.part}, which would be lost: remove it before the change, and create it again afterwards`
          )
  )

const selectLog = (sql: SqlClient.SqlClient, name: string) =>
  sql`select c.* from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = ${name} and c.relname = 'event_log'`

/** The statements that make the indexes, triggers and privileges of the log anew, and give it to its owner, as texts of the server. */
const selectDefinitions = (sql: SqlClient.SqlClient, name: string, partitions: number) => {
  const tables = ["event_log", ...numbersOf(partitions).map((number) => `event_log_${number}`)]
  return sql<{ statement: string }>`with log as (${selectLog(sql, name)})
    select statement from (
      select 1 as step, i.indexrelid as oid, regexp_replace(pg_get_indexdef(i.indexrelid), ' ON ONLY ', ' ON ') as statement
      from log join pg_index i on i.indrelid = log.oid where not i.indisprimary
      union all
      select 2, t.oid, pg_get_triggerdef(t.oid) from log join pg_trigger t on t.tgrelid = log.oid where not t.tgisinternal
      union all
      select 3, c.oid, format('grant %s on %s %I.%I to %s%s', a.privilege_type,
        case c.relkind when 'S' then 'sequence' else 'table' end, ${name}::text, c.relname,
        case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end,
        case when a.is_grantable then ' with grant option' else '' end)
      from log join pg_class c on c.relnamespace = log.relnamespace and c.relname in ('event_log', 'event_log_position_seq'),
        aclexplode(c.relacl) a
      union all
      select 4, log.oid, format('alter table %I.%I owner to %I', ${name}::text, name, pg_get_userbyid(log.relowner))
      from log, unnest(${tables}::text[]) name where pg_get_userbyid(log.relowner) <> current_user
    ) definitions order by step, oid`
}
