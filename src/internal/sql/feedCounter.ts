/**
 * The order of the feed by a counter, for databases that have no ids of transactions that rise. `feedOrder.ts` says who chooses it.
 *
 * The table `feed_counter` has one row. A commit raises its number first, and gives its events the positions up to the new number. `feed_key`
 * is 0 in all events. The row stays locked until the transaction ends. So transactions that append are committed in the order of their
 * positions.
 *
 * - **No event is skipped.** The event with the lower position was visible, or was rolled back, before the other got its
 *   position. So a snapshot that shows an event shows all before it, and nothing is held back. A standby replays commits in that order.
 * - **Each aggregate and each transaction keeps its order**, because positions rise with each append.
 * - **Strong projections keep their order.** The counter is locked before they run. So a commit is projected after all commits before it, and
 *   its events need not be moved.
 * - **A savepoint that is rolled back** gives the number and the lock back. Events of other transactions may then take these positions. One that
 *   waits already goes on waiting for the end of the transaction. Where that appends again behind a third one, Postgres finds a deadlock.
 * - **The feed hides the events of the own transaction**, until it is committed. A setting of the transaction has its lowest position. All events
 *   from there on are its own, because others can't append.
 * - **A snapshot of REPEATABLE READ or SERIALIZABLE** that is older than the number can't raise it, and fails to serialize.
 *
 * It needs a row that all appends wait for, so it is no order for a server whose transaction ids can be read.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type { Fragment, Statement } from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import type { Position } from "../../EventFeed.js"
import { StoreError } from "../../StoreError.js"
import type { LogTable } from "../store/pageBytes.js"
import {
  beginWhole,
  commitParameters,
  eventArguments,
  eventFields,
  followsStored,
  judgeCommits,
  raiseRefusal,
  skipStored
} from "./commitFragments.js"
import { relation } from "./logPartitions.js"
import { placeOf } from "./position.js"

/** An event after the position. The key is compared for equality, so that the planner estimates rows by the position. */
export const isAfterNumber = (sql: SqlClient.SqlClient, position: Position): Fragment => {
  const [, number] = placeOf(position)
  return sql`feed_key = 0 and position > ${number}::bigint`
}

/** An event that is not of the current transaction. */
export const isBeforeOwn = ({ schema, sql }: Pick<LogTable, "schema" | "sql">): Fragment =>
  sql.literal(
    `position < coalesce(nullif(current_setting('${firstPositionOf(sql, schema)}', true), '')::bigint, 9223372036854775807)`
  )

/** Creates the counter. */
export const createCounter = (sql: SqlClient.SqlClient, schema: Fragment): ReadonlyArray<Statement<unknown>> => [
  // Versions of the row stay on one page, as long as no old snapshot needs them.
  sql`create table ${schema}.feed_counter (id int primary key check (id = 1), last bigint not null)`,
  sql`insert into ${schema}.feed_counter values (1, 0)`
]

/** Looks for the row of the counter. A table with row security may have it and not show it to this role. */
export const findRow = (
  { schema, sql }: Pick<LogTable, "schema" | "sql">,
  ask: <A>(statement: Effect.Effect<A, SqlError>) => Effect.Effect<A, StoreError>
): Effect.Effect<FoundCounter, StoreError> =>
  Effect.gen(function* () {
    const rows = yield* ask(sql`select 1 from ${schema}.feed_counter where id = 1`)
    if (rows.length === 1) return "complete"
    const [found] = yield* ask(
      sql<{ hides: boolean }>`select row_security_active(${relation(sql, schema, "feed_counter")}::oid) as hides`
    )
    return found?.hides === true ? "hidden row" : "no row"
  })

/** What a schema has of the counter, as this role sees it. */
export type FoundCounter = "complete" | "no table" | "no row" | "hidden row"

/**
 * Fails if a log with a counter lacks the counter, as where the log was copied or restored by itself. Fails also if another log has one, because
 * the tables are then of two logs.
 */
export const checkCounter = (
  { feedOrder, schema, sql }: Pick<LogTable, "feedOrder" | "schema" | "sql">,
  name: string,
  counter: FoundCounter
): Effect.Effect<void, StoreError> => {
  const log = `the event log of the schema ${JSON.stringify(name)} has the order ${JSON.stringify(feedOrder)}`
  if (feedOrder !== "counter")
    return counter === "no table"
      ? Effect.void
      : misconfigured(
          `${log}, and beside it is the table feed_counter of a log with the order "counter", so the tables may be of two logs: copy or restore all tables of one of them, or drop feed_counter if nothing else is of the other one`
        )
  if (counter === "complete") return Effect.void
  if (counter === "hidden row")
    return misconfigured(
      `${log}, and row security hides the row of its table feed_counter from this role: give the role policies to read and to update it, or disable row security on the table`
    )
  const [table, row] = createCounter(sql, schema).map((statement) => statement.compile()[0])
  const [missing, remedy] =
    counter === "no row" ? ["the row of its table feed_counter", row] : ["its table feed_counter", `${table}; ${row}`]
  return misconfigured(
    `${log}, and ${missing} is missing, because the log was copied or restored without it: copy or restore it, too, or run \`${remedy}\` and then SqlStore.repairAfterRestore, which raises the counter to the last position of the log`
  )
}

/**
 * Stores any number of commits in one statement, each independently of the others, with the parameters and the result of the function of the
 * other order (`functions.ts`).
 *
 * The counter is raised in a statement of its own. With READ COMMITTED the insert has a later snapshot, so it sees all that was committed
 * during the wait. No other transaction inserts meanwhile, so what stands in the way of a commit can be seen.
 *
 * The events of this call are those with higher positions than the counter had before it, also in a transaction that has appended before.
 *
 * `p_lock_timeout` is ignored. All commits wait for the counter, so sending each of them again by itself would gain nothing.
 */
export const commitByCounter = ({ schema, sql }: LogTable, writing: Fragment): Statement<unknown> => {
  const firstPosition = sql.literal(`'${firstPositionOf(sql, schema)}'`)
  return sql`create or replace function ${schema}.commit_events(${commitParameters(sql)}) returns text
  ${writing}
  as $function$
  declare
    before bigint;
    written bigint;
    answer text;
  begin
    ${beginWhole(sql)}

    update feed_counter set last = last + cardinality(p_sequences)
    where id = 1 returning last - cardinality(p_sequences) into before;
    if before is null then
      if row_security_active('feed_counter'::regclass::oid) then
        raise exception 'row security hides the row of feed_counter from the role %: give it policies to read and to update the row', current_user
          using errcode = 'insufficient_privilege';
      end if;
      raise exception 'the row of feed_counter is missing, so the log was restored without it: restore it too, or insert (1, 0) and run SqlStore.repairAfterRestore'
        using errcode = 'undefined_object';
    end if;
    if coalesce(current_setting(${firstPosition}, true), '') = '' then
      perform set_config(${firstPosition}, (before + 1)::text, true);
    end if;

    insert into event_log (
      position, aggregate_id, sequence, type, body, metadata, "timestamp", version, correlation_id, causation_id, traceparent
    )
    select before + i.place, i.aggregate_id, i.sequence, i.type, i.body, i.metadata, i."timestamp", i.version, i.correlation_id,
      i.causation_id, i.traceparent
    from unnest(${eventArguments(sql)}) with ordinality as i (${eventFields(sql)}, place)
    where not i.first or i.sequence = 1
      -- A stream has no gaps, and an event follows the one that it was decided on.
      or ${followsStored(sql)}
    ${skipStored(sql)}
    if written = cardinality(p_sequences) then
      return null;
    end if;

    ${judgeCommits(sql, sql`l.position > before`)}

    if p_whole then
      ${raiseRefusal(sql)}
    end if;
    return answer;
  end
  $function$`
}

/**
 * Raises the counter to the last position of the log, if it is lower, and returns whether it was. A dump of the log alone, in a schema that was
 * migrated before, leaves it so.
 */
export const raiseCounter = ({ schema, sql }: Pick<LogTable, "schema" | "sql">): Statement<unknown> =>
  sql`update ${schema}.feed_counter c set last = l.position
    from (select position from ${schema}.event_log order by feed_key desc, position desc limit 1) l
    where c.last < l.position returning c.last`

// --- internal ---

/**
 * The setting of a transaction with the lowest position of its events. It has the name of the schema in it, because a transaction may append to
 * several logs. Names of settings have letters and digits only.
 */
const firstPositionOf = (sql: SqlClient.SqlClient, schema: Fragment): string => {
  const [name] = sql`${schema}`.compile()
  return `effect_maestro.first_position_${Buffer.from(name).toString("hex")}`
}

const misconfigured = (description: string): Effect.Effect<never, StoreError> =>
  Effect.fail(new StoreError({ reason: "Misconfigured", operation: "SqlStore", description }))
