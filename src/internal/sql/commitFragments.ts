/**
 * What the functions for commits have in common: `commit_events` of both orders, and `commit_in_transaction`. `functions.ts` and
 * `feedCounter.ts` put these parts into their texts. How an event is known as new differs between the orders, so it is a parameter.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { Fragment } from "@effect/sql/Statement"

type Sql = SqlClient.SqlClient

/** The parameters with the events: a list for each column, and whether an event is the first of its aggregate in its commit. */
export const eventParameters = (sql: Sql): Fragment =>
  sql`p_firsts boolean[], p_aggregate_ids text[], p_sequences int[], p_types text[],
    p_bodies json[], p_metadata json[], p_timestamps uuid[],
    p_versions int[], p_correlation_ids text[], p_causation_ids uuid[], p_traceparents text[],
    p_follows uuid[]`

/** The parameters of `commit_events`. `functions.ts` says what they mean. */
export const commitParameters = (sql: Sql): Fragment =>
  sql`p_lock_timeout text, p_whole boolean, p_commits int[], ${eventParameters(sql)}`

/** The values of the parameters with the events, as arguments. */
export const eventArguments = (sql: Sql): Fragment =>
  sql`p_firsts, p_aggregate_ids, p_sequences, p_types, p_bodies, p_metadata, p_timestamps, p_versions,
    p_correlation_ids, p_causation_ids, p_traceparents, p_follows`

/** The columns of `eventArguments`, in a row for each event. */
export const eventFields = (sql: Sql): Fragment =>
  sql`first, aggregate_id, sequence, type, body, metadata, "timestamp", version, correlation_id, causation_id,
    traceparent, follows`

/** For `p_whole`: refuses another isolation level than that of the store's transactions, and records that the transaction has begun. */
export const beginWhole = (sql: Sql): Fragment =>
  sql`if p_whole then
      if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'the transaction is not READ COMMITTED' using errcode = 'MA002';
      end if;
      perform set_config('effect_maestro.begun', 'yes', true);
    end if;`

/** Whether the event before the event `i` is stored, and is the one that it was decided on. */
export const followsStored = (sql: Sql): Fragment =>
  sql`(
      select i.follows is null or p."timestamp" = i.follows from event_log p
      where p.aggregate_id = i.aggregate_id and p.sequence = i.sequence - 1
    )`

/** The end of the insert of the events `i`, in the order of their rows. It skips what is stored, and `written` gets the number of rows. */
export const skipStored = (sql: Sql): Fragment =>
  sql`order by i.aggregate_id collate "C", i.sequence
    on conflict (aggregate_id, sequence) do nothing;

    get diagnostics written = row_count;`

/**
 * Sets `answer` to an entry for each commit that is not stored as a whole by this call, and deletes the rows of those commits again. An entry
 * has the number of the commit, whether it is a duplicate, and the event that refuses it.
 *
 * `isNew` says whether this call has inserted the stored event `l`. It is null where no event is stored.
 */
export const judgeCommits = (sql: Sql, isNew: Fragment): Fragment =>
  sql`with judged as (
      select e.commit, e.place, e.aggregate_id, e.sequence,
        coalesce(${isNew}, false) as is_new,
        coalesce(l."timestamp" = e."timestamp", false) as is_same
      from unnest(p_commits, p_aggregate_ids, p_sequences, p_timestamps)
        with ordinality as e (commit, aggregate_id, sequence, "timestamp", place)
      left join event_log l on l.aggregate_id = e.aggregate_id and l.sequence = e.sequence
    ), verdicts as (
      select j.commit, bool_and(j.is_same and not j.is_new) as all_stored
      from judged j group by j.commit having not bool_and(j.is_same and j.is_new)
    ), undone as (
      delete from event_log l using judged j, verdicts v
      where v.commit = j.commit and j.is_same and j.is_new
        and l.aggregate_id = j.aggregate_id and l.sequence = j.sequence
    )
    select json_agg(json_build_array(v.commit, v.all_stored, r.aggregate_id, r.sequence)) into answer
    from verdicts v, lateral (
      select j.aggregate_id, j.sequence from judged j
      where j.commit = v.commit and not (j.is_same and j.is_new) order by j.place limit 1
    ) r;`

/** Raises the refusal of the only commit of the call, whose entry is in `answer`. */
export const raiseRefusal = (sql: Sql): Fragment =>
  sql`if (answer::json -> 0 ->> 1)::boolean then
        raise exception 'all of it is stored' using errcode = 'MA003';
      end if;
      raise exception 'some of it conflicts with what is stored' using errcode = 'MA001';`
