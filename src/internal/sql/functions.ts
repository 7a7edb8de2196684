/**
 * The plpgsql functions of the SQL store: the functions of this file write commits, and give them their place in the feed. The functions of
 * `readFunctions.ts` read streams. A log whose order is a counter has another function for commits (`feedCounter.ts`).
 *
 * `migrations.ts` creates them anew with each migration. `commit/appendEvents.ts` and `readStream.ts` call them. A commit is one call,
 * because a statement for each check would take a round trip each.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { Fragment, Statement } from "@effect/sql/Statement"
import type { FeedOrder, LogTable } from "../store/pageBytes.js"
import {
  beginWhole,
  commitParameters,
  eventArguments,
  eventFields,
  eventParameters,
  followsStored,
  judgeCommits,
  raiseRefusal,
  skipStored
} from "./commitFragments.js"
import { commitByCounter } from "./feedCounter.js"
import { hasEvent, readPage, readStream } from "./readFunctions.js"

/** The functions that logs of both orders have. */
const ofEachOrder = ["has_event", "commit_events", "check_snapshot", "read_stream", "read_page"]

/** The functions that a log with a counter does not have. */
const ofTransactionIds = ["commit_in_transaction", "place_in_feed"]

/** The statements that create all functions, and drop those of the other order. */
export const functions = (log: LogTable): ReadonlyArray<Statement<unknown>> => [
  hasEvent(log),
  ...(log.feedOrder === "counter"
    ? [...dropOfTransactionIds(log), commitByCounter(log, writing(log.sql, log.schema))]
    : [commitInTransaction(log), commitEvents(log), placeInFeed(log)]),
  checkConstraints(log),
  checkSnapshot(log),
  readStream(log),
  readPage(log)
]

/** The functions that work on the tables of their schema, and so have to have it as their search path. */
export const functionNames: ReadonlyArray<string> = [...ofEachOrder, ...ofTransactionIds]

/**
 * Whether these are the functions of a log with that order. With a counter, a function of the other order means that `commit_events` may be the
 * one of that order, too, because both have the same name and parameters.
 */
export const areFunctionsOf = (feedOrder: FeedOrder, found: ReadonlyArray<string>): boolean =>
  ofEachOrder.every((name) => found.includes(name)) &&
  ofTransactionIds.every((name) => found.includes(name) === (feedOrder === "transactionIds"))

// --- internal ---

/** A schema has them if its tables were dropped or replaced, and had the other order. */
const dropOfTransactionIds = ({ schema, sql }: LogTable): ReadonlyArray<Statement<unknown>> => [
  sql`drop function if exists ${schema}.commit_in_transaction(${eventParameters(sql)})`,
  sql`drop function if exists ${schema}.place_in_feed(text[], int[])`
]

/**
 * The settings of the functions that write. A session plans their statements once: planning anew takes longer than all the rest. They look
 * rows up by an index only, because a plan that was made while the table was empty is kept when the table has grown.
 */
const writing = (sql: SqlClient.SqlClient, schema: Fragment): Fragment =>
  sql`language plpgsql volatile
  set search_path = ${schema}, pg_temp
  set plan_cache_mode = force_generic_plan
  set enable_seqscan = off
  set enable_hashjoin = off
  set enable_mergejoin = off`

/**
 * Stores any number of commits in one statement, each independently of the others. `p_commits` has the number of the commit that an event
 * belongs to, and `p_firsts` whether the event is the first of its aggregate in that commit. It returns null if it wrote all commits.
 * Otherwise it returns a JSON list with an entry for each commit that it did not write. An entry has the number of the commit, whether it
 * is a duplicate, and the aggregate and sequence that refuse it.
 *
 * A conflict is returned and not raised, so it breaks neither a transaction around it nor the other commits of the statement. Rows that a
 * refused commit had inserted are deleted again. Rows are inserted by aggregate and sequence, so that two statements with the same rows
 * wait for each other in one order. Their positions keep the order of the parameters.
 *
 * The feed key of the events is the id of their transaction. It is above the key of every event that the insert can see, because the
 * transaction gets its id during the insert. A transaction that has an id already goes through `commit_in_transaction`.
 *
 * `p_lock_timeout` limits the wait for a lock of another transaction. `p_whole` says that more statements follow in the same round trip,
 * which may run only if all is written. The function then raises a conflict (MA001), an isolation level other than that of the store's
 * transactions (MA002), or a duplicate (MA003).
 */
const commitEvents = ({ schema, sql }: LogTable): Statement<unknown> =>
  sql`create or replace function ${schema}.commit_events(${commitParameters(sql)}) returns text
  ${writing(sql, schema)}
  as $function$
  declare
    written bigint;
    answer text;
  begin
    ${beginWhole(sql)}
    if p_lock_timeout is not null then
      perform set_config('lock_timeout', p_lock_timeout, true);
    end if;

    if pg_current_xact_id_if_assigned() is not null then
      answer := commit_in_transaction(${eventArguments(sql)});
    else
      insert into event_log (
        position, aggregate_id, sequence, type, body, metadata, "timestamp", version, correlation_id, causation_id, traceparent
      )
      select i.position, i.aggregate_id, i.sequence, i.type, i.body, i.metadata, i."timestamp", i.version, i.correlation_id,
        i.causation_id, i.traceparent
      from (
        select nextval('event_log_position_seq') as position, e.*
        from unnest(${eventArguments(sql)}) as e (${eventFields(sql)})
      ) i
      where not i.first or i.sequence = 1
        -- A stream has no gaps, and an event follows the one that it was decided on.
        or ${followsStored(sql)}
      ${skipStored(sql)}
      if written = cardinality(p_sequences) then
        return null;
      end if;

      ${judgeCommits(sql, sql`l.feed_key = pg_current_xact_id_if_assigned()`)}
    end if;

    if p_whole and answer is not null then
      ${raiseRefusal(sql)}
    end if;
    return answer;
  end
  $function$`

/**
 * Stores one commit in a transaction that has written before, and returns what `commit_events` returns for it.
 *
 * Such a transaction has its id from its first write, and transactions with higher ids may have extended a stream since. The key of these
 * events is therefore the highest of three. They are the id, the key of the event before each in its stream, and the highest key that this
 * transaction has used. The third part keeps its events in the order in which it wrote them. No reader has passed that key, because it is
 * not below the id of a transaction that is still open. Keys above all transactions, as a restored dump has them, do not count, because a
 * repair orders those.
 *
 * The subtransaction of the block undoes the inserts of a refused commit. Their key does not identify them, because other transactions may
 * have used the same key.
 *
 * Two settings of the transaction record the highest key and the highest position that it has used.
 */
const commitInTransaction = ({ schema, sql }: LogTable): Statement<unknown> =>
  sql`create or replace function ${schema}.commit_in_transaction(${eventParameters(sql)}) returns text
  ${writing(sql, schema)}
  as $function$
  declare
    written bigint;
    answer text;
    used xid8;
  begin
    begin
      insert into event_log (
        position, feed_key, aggregate_id, sequence, type, body, metadata, "timestamp", version, correlation_id, causation_id,
        traceparent
      )
      select i.position, i.feed_key, i.aggregate_id, i.sequence, i.type, i.body, i.metadata, i."timestamp", i.version,
        i.correlation_id, i.causation_id, i.traceparent
      from (
        select nextval('event_log_position_seq') as position,
          greatest(
            pg_current_xact_id(),
            nullif(current_setting('effect_maestro.feed_key', true), '')::xid8,
            (
              select p.feed_key
              from unnest(p_firsts, p_aggregate_ids, p_sequences) as f (first, aggregate_id, sequence)
              join event_log p on p.aggregate_id = f.aggregate_id and p.sequence = f.sequence - 1
              where f.first and p.feed_key < pg_snapshot_xmax(pg_current_snapshot())
              order by p.feed_key desc limit 1
            )
          ) as feed_key, e.*
        from unnest(${eventArguments(sql)}) as e (${eventFields(sql)})
      ) i
      where not i.first or i.sequence = 1
        or ${followsStored(sql)}
      ${skipStored(sql)}
      if written < cardinality(p_sequences) then
        raise exception 'some of it conflicts with what is stored' using errcode = 'MA001';
      end if;
      select l.feed_key into used from event_log l
      where l.aggregate_id = p_aggregate_ids[1] and l.sequence = p_sequences[1];
      if used > pg_current_xact_id() then
        perform set_config('effect_maestro.feed_key', used::text, true);
      end if;
      perform set_config('effect_maestro.position', currval('event_log_position_seq')::text, true);
      return null;
    exception when sqlstate 'MA001' then
      -- The inserts are undone.
    end;

    with judged as (
      select e.place, e.aggregate_id, e.sequence,
        coalesce(l."timestamp" = e."timestamp", false) as is_same,
        l.sequence is not null or (
          e.first and e.sequence > 1 and not exists (
            select 1 from event_log p
            where p.aggregate_id = e.aggregate_id and p.sequence = e.sequence - 1
              and (e.follows is null or p."timestamp" = e.follows)
          )
        ) as refuses
      from unnest(p_firsts, p_aggregate_ids, p_sequences, p_timestamps, p_follows)
        with ordinality as e (first, aggregate_id, sequence, "timestamp", follows, place)
      left join event_log l on l.aggregate_id = e.aggregate_id and l.sequence = e.sequence
    )
    select json_build_array(json_build_array(0, (select bool_and(is_same) from judged), r.aggregate_id, r.sequence)) into answer
    from (select j.aggregate_id, j.sequence from judged j order by not j.refuses, j.place limit 1) r;
    return answer;
  end
  $function$`

/**
 * Gives a commit its place in the feed, after its projections have run. The parameters identify its events. It returns whether it moved
 * them.
 *
 * A projection may have waited for a transaction that got its id later, such as one that frees a unique value. Without the move the feed
 * would show the events of that transaction behind those of this one, and a rebuild would project them in an order that fails. So the
 * events move behind everything that has been committed: their key becomes the id of the newest transaction that has ended, and they take
 * new positions. If every transaction that has ended is older than this one, the events are in place already.
 *
 * A snapshot knows the newest ended transaction only as of the time when it was taken. With REPEATABLE READ that was the start of the
 * transaction, so the key is the id of a new subtransaction instead, which is above all ids before it.
 *
 * Events that the projections committed in this transaction move too, because they must stay behind the events that caused them. The rows
 * of a transaction are the visible rows whose writer is in progress. They are looked up only if the transaction has taken positions after
 * the last one of this commit.
 */
const placeInFeed = ({ schema, sql }: LogTable): Statement<unknown> =>
  sql`create or replace function ${schema}.place_in_feed(p_aggregate_ids text[], p_sequences int[]) returns boolean
  ${writing(sql, schema)}
  as $function$
  declare
    own constant bigint := pg_current_xact_id()::text::bigint;
    key bigint;
    first record;
    last bigint;
  begin
    if current_setting('transaction_isolation') = 'read committed' then
      key := pg_snapshot_xmax(pg_current_snapshot())::text::bigint - 1;
      if key < own then
        return false;
      end if;
    else
      begin
        update event_log set position = position
        where aggregate_id = p_aggregate_ids[1] and sequence = p_sequences[1]
        -- xmin has the lower half of the id.
        returning own + ((xmin::text::bigint - own) & 4294967295) into key;
      exception when sqlstate 'MA001' then
        -- Nothing raises this: a block with a handler is a subtransaction.
      end;
    end if;

    select l.feed_key, l.position, max(l.position) over () as last into first
    from unnest(p_aggregate_ids, p_sequences) as e (aggregate_id, sequence)
    join event_log l on l.aggregate_id = e.aggregate_id and l.sequence = e.sequence
    order by l.position limit 1;
    key := greatest(
      key, first.feed_key::text::bigint, nullif(current_setting('effect_maestro.feed_key', true), '')::bigint
    );

    if first.last >= coalesce(nullif(current_setting('effect_maestro.position', true), '')::bigint, 0) then
      with placed as materialized (
        select o.aggregate_id, o.sequence, nextval('event_log_position_seq') as position
        from (
          select l.aggregate_id, l.sequence
          from unnest(p_aggregate_ids, p_sequences) as e (aggregate_id, sequence)
          join event_log l on l.aggregate_id = e.aggregate_id and l.sequence = e.sequence
          order by l.position
        ) o
      )
      update event_log l set feed_key = key::text::xid8, position = p.position
      from placed p where l.aggregate_id = p.aggregate_id and l.sequence = p.sequence;
    else
      with placed as materialized (
        select o.aggregate_id, o.sequence, nextval('event_log_position_seq') as position
        from (
          select l.aggregate_id, l.sequence
          from (
            select e.*, (e.xmin::text::bigint - own) & 4294967295 as age
            from event_log e where (e.feed_key, e.position) >= (first.feed_key, first.position)
          ) l
          where case when l.age < 2147483648 then pg_xact_status((own + l.age)::text::xid8) = 'in progress' end
          order by l.feed_key, l.position
        ) o
      )
      update event_log l set feed_key = key::text::xid8, position = p.position
      from placed p where l.aggregate_id = p.aggregate_id and l.sequence = p.sequence;
    end if;

    if key > own then
      perform set_config('effect_maestro.feed_key', key::text, true);
    end if;
    perform set_config('effect_maestro.position', currval('event_log_position_seq')::text, true);
    return true;
  end
  $function$`

/**
 * Checks the constraints that are deferred to COMMIT, and returns true. It runs before `place_in_feed` in a transaction of the store's own,
 * because a deferred unique constraint may wait for another transaction, too. It keeps the search path of the session, because deferred
 * triggers run inside it.
 */
const checkConstraints = ({ schema, sql }: LogTable): Statement<unknown> =>
  sql`create or replace function ${schema}.check_constraints() returns boolean
  language plpgsql volatile
  as $function$
  begin
    set constraints all immediate;
    return true;
  end
  $function$`

/**
 * Fails with a serialization failure where a rebuild has swapped tables since the snapshot of the transaction was taken. Such a transaction
 * finds the new table by its name, but cannot see the rows that the rebuild wrote, so the updates of a projection there would be lost.
 * With READ COMMITTED each statement has a snapshot of its own, and nothing is locked.
 *
 * The lock is held to the end of the transaction, so that no swap comes between the check and the projection.
 */
const checkSnapshot = ({ schema, sql }: LogTable): Statement<unknown> =>
  sql`create or replace function ${schema}.check_snapshot() returns boolean
  language plpgsql volatile
  set search_path = ${schema}, pg_temp
  as $function$
  begin
    if current_setting('transaction_isolation') <> 'read committed' then
      begin
        perform 1 from rebuild_swaps for share;
      exception when serialization_failure then
        raise exception 'a rebuild has replaced tables since the snapshot of this transaction was taken: run the whole transaction again'
          using errcode = 'serialization_failure';
      end;
    end if;
    return true;
  end
  $function$`
