/**
 * Repairs the feed after a restore: a dump keeps the ids of transactions that the new server has not had yet. `SqlStore.ts` calls it when a
 * layer migrates, and as `SqlStore.repairAfterRestore`. In a log with a counter the positions stay, and a counter behind its log is raised.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type { Fragment } from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import type { StoreError } from "../../StoreError.js"
import { fromSqlError } from "../runtime/sqlError.js"
import type { LogTable } from "../store/pageBytes.js"
import { raiseCounter } from "./feedCounter.js"
import { boundedOutside, execute } from "./pg/execute.js"
import { withTransaction } from "./pg/transaction.js"
import { isReadCommitted, replaceLog } from "./replaceLog.js"

export interface RestoredLog extends Omit<LogTable, "measuring"> {
  /** Of its schema. */
  readonly name: string
}

/**
 * Numbers events and checkpoints anew in their order, if some have keys of transactions to come. Returns whether it did.
 *
 * Events that were committed here before the repair belong behind the restored events, although their keys are lower. Two marks identify
 * them: their positions are higher than those of restored events, and their rows are younger. Positions alone are not enough, because a
 * transaction that had its id early may have written the highest position under a lower key than the last.
 */
export const repair = (log: RestoredLog): Effect.Effect<boolean, StoreError> => {
  const { feedOrder, schema, sql } = log
  if (feedOrder === "counter") {
    const raised = execute(sql, { operation, phase: "writing" }, raiseCounter({ schema, sql }))
    return Effect.map(raised, ({ length }) => length > 0)
  }
  // The highest key of the log is read from the index. For `exists` the planner may scan the log.
  const selectNeeded = sql<NeededRow>`select now::text, coalesce((
      select feed_key >= now from ${schema}.event_log order by feed_key desc, position desc limit 1
    ), false) or exists (
      select 1 from ${schema}.subscriptions where feed_key >= now
    ) as needed from pg_snapshot_xmax(pg_current_snapshot()) now`
  const needed = Effect.map(run(selectNeeded), firstNeeded)

  const repairing = withTransaction(
    sql,
    operation,
    Effect.gen(function* () {
      yield* run(
        sql`lock table ${schema}.event_log, ${schema}.subscriptions, ${schema}.parked_events in access exclusive mode`
      )
      // Another node may have repaired it meanwhile.
      const now = yield* needed
      if (now === undefined) return false
      const [row] = yield* run(
        sql<{ last: string | null; age: number | null }>`select max(position)::text as last, min(age(xmin)) as age
          from ${schema}.event_log where feed_key >= ${now}::xid8`
      )
      const isNew = sql`e.feed_key < ${now}::xid8 and e.position > ${row?.last ?? maxPosition}::bigint
        and age(e.xmin) < ${row?.age ?? 0}::int`
      // The number of events up to a checkpoint is the number that its last event gets. One before all events is the beginning.
      // All leases end, so that no batch which was read before the repair moves its checkpoint afterwards.
      yield* run(
        sql`update ${schema}.subscriptions t set event_time = '', token = token + 1, holder = null, leased_until = null, (feed_key, position) = (
            select case count(*) when 0 then '0'::xid8 else ${oldest}::xid8 end, count(*) from ${schema}.event_log e
            where (e.feed_key, e.position) <= (t.feed_key, t.position) and not (${isNew})
          )`
      )
      const order = sql`(${isNew}), e.feed_key, e.position`
      if (!(yield* numberInCopy(log, order))) yield* run(numberInPlace(log, order))
      yield* run(
        sql`update ${schema}.parked_events t set feed_key = ${oldest}::xid8, position = e.position
          from ${schema}.event_log e where e.aggregate_id = t.aggregate_id and e.sequence = t.sequence`
      )
      return true
    })
  )

  const neededNow = Effect.map(
    execute(sql, { operation, phase: "reading", savepoint: false }, selectNeeded),
    firstNeeded
  )

  return Effect.flatMap(neededNow, (now) => (now !== undefined ? boundedOutside(repairing) : Effect.succeed(false)))
}

// --- internal ---

const operation = "repairAfterRestore"

const run = <A>(statement: Effect.Effect<A, SqlError>): Effect.Effect<A, StoreError> =>
  Effect.mapError(statement, (error) => fromSqlError(operation, "writing", error))

/**
 * Numbers the events in a copy of the log, which takes its place. Returns false where the log can't be copied: the role may not do so,
 * something of it would be lost, or the server refuses a part of it.
 */
const numberInCopy = (log: RestoredLog, order: Fragment): Effect.Effect<boolean, StoreError> =>
  Effect.gen(function* () {
    const { name, schema, sql } = log
    const columns = yield* run(selectColumns(sql, name))
    const partitions = columns[0]?.partitions
    if (partitions === undefined || partitions === null || !(yield* run(isReadCommitted(sql)))) return false
    const values = columns.map(({ column, quoted }) => {
      if (column === "feed_key") return sql`${oldest}::xid8`
      return column === "position" ? sql`row_number() over (order by ${order})` : sql.literal(`e.${quoted}`)
    })
    // One sort is enough for the numbers and for the order of the rows.
    const events = sql`select ${sql.csv(values)} from ${schema}.event_log e order by ${order}`
    yield* run(sql`savepoint in_copy`)
    const copied = yield* Effect.either(replaceLog({ ...log, operation, partitions, events }))
    if (Either.isLeft(copied)) {
      if (!mayChangeRows(copied.left)) return yield* copied.left
      yield* run(sql`rollback to savepoint in_copy`)
    }
    yield* run(sql`release savepoint in_copy`)
    return Either.isRight(copied)
  })

/**
 * The columns of the log in their order, each with the number of its partitions. The number is null where the log is not as this library makes
 * it, where it has foreign keys, and where it receives events by logical replication. A copy would lock the tables of its foreign keys after
 * the log, as no commit does.
 */
const selectColumns = (sql: SqlClient.SqlClient, name: string) =>
  sql<{ column: string; quoted: string; partitions: number | null }>`with log as (
      select c.* from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where n.nspname = ${name} and c.relname = 'event_log'
    ), leaf as (
      select l.*, (count(*) over ())::int as leaves from log join pg_inherits i on i.inhparent = log.oid join pg_class l on l.oid = i.inhrelid
    )
    select a.attname as column, quote_ident(a.attname) as quoted, case
      when exists (select from pg_constraint where conrelid = log.oid and contype = 'f')
        or exists (select from pg_subscription_rel where srrelid = log.oid or srrelid in (select oid from leaf)) then null
      when log.relkind = 'r' then case when not exists (select from leaf) then 1 end
      when pg_get_partkeydef(log.oid) = 'HASH (aggregate_id)' and not exists (
        select from leaf where leaf.relnamespace <> log.relnamespace or pg_get_expr(leaf.relpartbound, leaf.oid) is distinct from
          format('FOR VALUES WITH (modulus %s, remainder %s)', leaves, substring(leaf.relname from '^event_log_([0-9]+)$'))
      ) then (select max(leaves) from leaf where leaves > 1)
    end as partitions
    from log join pg_attribute a on a.attrelid = log.oid where a.attnum > 0 and not a.attisdropped order by a.attnum`

/** Whether the rows may be changed after a copy has failed: the session and the transaction go on, and no limit of time has ended the copy. */
const mayChangeRows = ({ code, reason }: StoreError): boolean =>
  code === undefined ? reason === "Misconfigured" : /^(?:\d|P0|XX)/.test(code) && !/^(?:08|40|57|58|55P03)/.test(code)

/** Numbers the events in their rows, which writes each into all indexes at random: 35 s for a million events, where a copy took 8. */
const numberInPlace = ({ schema, sql }: RestoredLog, order: Fragment) =>
  sql`update ${schema}.event_log t set feed_key = ${oldest}::xid8, position = o.place
    from (select aggregate_id, sequence, row_number() over (order by ${order}) as place from ${schema}.event_log e) o
    where t.aggregate_id = o.aggregate_id and t.sequence = o.sequence`

interface NeededRow {
  readonly now: string
  readonly needed: boolean
}

/** The first id that no transaction has had, if a row has that key or a higher one. */
const firstNeeded = ([row]: ReadonlyArray<NeededRow>): string | undefined => (row?.needed ? row.now : undefined)

/** The first id that a transaction can have: on every server that transaction has ended. */
const oldest = "3"

/** No position is higher. */
const maxPosition = "9223372036854775807"
