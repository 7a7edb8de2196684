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
import { selectDetached } from "./logDefinition.js"
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
      yield* run(
        sql`update ${schema}.subscriptions t set event_time = '', (feed_key, position) = (
            select case count(*) when 0 then '0'::xid8 else ${oldest}::xid8 end, count(*) from ${schema}.event_log e
            where (e.feed_key, e.position) <= (t.feed_key, t.position) and not (${isNew})
          )`
      )
      const place = sql`row_number() over (order by (${isNew}), e.feed_key, e.position) as place`
      if (!(yield* numberInCopy(log, place))) yield* run(numberInPlace(log, place))
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
 * Numbers the events in a copy of the log, which takes its place. Returns false where the log can't be copied, because the role may not do so,
 * or because something of it would be lost.
 */
const numberInCopy = (log: RestoredLog, place: Fragment): Effect.Effect<boolean, StoreError> =>
  Effect.gen(function* () {
    const { name, schema, sql } = log
    const [detached] = yield* run(selectDetached(sql, name))
    if (detached !== undefined || !(yield* run(isReadCommitted(sql)))) return false
    const columns = yield* run(selectColumns(sql, name))
    const values = columns.map(({ column }) =>
      column === "feed_key" ? sql`${oldest}::xid8` : sql`${sql(column === "position" ? "place" : column)}`
    )
    const events = sql`select ${sql.csv(values)} from (select e.*, ${place} from ${schema}.event_log e) o order by place`
    yield* run(sql`savepoint in_copy`)
    const copied = yield* Effect.either(
      replaceLog({ ...log, operation, partitions: columns[0]?.partitions ?? 1, events })
    )
    if (Either.isLeft(copied)) {
      if (copied.left.reason !== "Misconfigured") return yield* copied.left
      yield* run(sql`rollback to savepoint in_copy`)
    }
    yield* run(sql`release savepoint in_copy`)
    return Either.isRight(copied)
  })

/** The columns of the log in their order, each with the number of its partitions. */
const selectColumns = (sql: SqlClient.SqlClient, name: string) =>
  sql<{ column: string; partitions: number }>`select a.attname as column, greatest((
      select count(*)::int from pg_inherits i where i.inhparent = c.oid
    ), 1) as partitions
    from pg_class c join pg_namespace n on n.oid = c.relnamespace join pg_attribute a on a.attrelid = c.oid
    where n.nspname = ${name} and c.relname = 'event_log' and a.attnum > 0 and not a.attisdropped order by a.attnum`

/** Numbers the events in their rows, which writes each into all indexes at random: 35 s for a million events, where a copy took 8. */
const numberInPlace = ({ schema, sql }: RestoredLog, place: Fragment) =>
  sql`update ${schema}.event_log t set feed_key = ${oldest}::xid8, position = o.place
    from (select aggregate_id, sequence, ${place} from ${schema}.event_log e) o
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
