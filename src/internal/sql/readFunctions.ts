/**
 * The plpgsql functions that read streams: for a load, and for the check of a lone commit. `functions.ts` creates them with the others.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { Fragment, Statement } from "@effect/sql/Statement"
import { type LogTable, smallText } from "../store/pageBytes.js"

/**
 * Whether an event is stored, with the timestamp if one is given. The insert of a lone commit asks it of the event before its first. As a function it always uses the index: a
 * session that had planned the insert while the log was small would scan a log that has grown.
 */
export const hasEvent = ({ schema, sql }: LogTable): Statement<unknown> =>
  sql`create or replace function ${schema}.has_event(p_aggregate_id text, p_sequence int, p_timestamp uuid) returns boolean
  ${reading(sql, schema)}
  as $function$
  begin
    return exists (
      select from event_log
      where aggregate_id = p_aggregate_id and sequence = p_sequence and (p_timestamp is null or "timestamp" = p_timestamp)
    );
  end
  $function$`

/**
 * Reads a stream from its newest snapshot up to `p_max`, if there is one. The snapshot is a row without version and type. Up to `p_limit` events
 * follow, from the sequence of the snapshot. A body or metadata of more than `p_small` bytes is null.
 */
export const readStream = ({ measuring, schema, sql }: LogTable): Statement<unknown> =>
  sql`create or replace function ${schema}.read_stream(p_aggregate_id text, p_max int, p_limit int, p_small int)
  returns table ("timestamp" text, sequence int, versioned_type text, body text, metadata text)
  ${reading(sql, schema)}
  as $function$
  #variable_conflict use_column
  declare
    first int := 1;
  begin
    ${seesLog(sql)}
    return query
      select s."timestamp"::text, s.sequence, null::text, s.body::text, s.metadata::text
      from snapshots s where s.aggregate_id = p_aggregate_id and s.sequence <= p_max;
    if found then
      select s.sequence into first from snapshots s where s.aggregate_id = p_aggregate_id;
    end if;
    return query
      select e."timestamp"::text, e.sequence, e.version::text || '.' || e.type, ${sql.literal(smallText(measuring, "e.body", "p_small"))},
        ${sql.literal(smallText(measuring, "e.metadata", "p_small"))}
      from event_log e
      where e.aggregate_id = p_aggregate_id and e.sequence >= first and e.sequence <= p_max
      order by e.sequence limit p_limit;
  end
  $function$`

/**
 * Reads the events between two sequences into one row of JSON lists, which is far cheaper to send and to parse than a row for each event.
 * The lists are null if they had more than `p_size` bytes, stored or as text. The list of versions is null if all are 1.
 */
export const readPage = ({ schema, sql }: LogTable): Statement<unknown> =>
  sql`create or replace function ${schema}.read_page(p_aggregate_id text, p_min int, p_max int, p_size bigint)
  returns table (
    events bigint, first int, last int, timestamps text, types text, bodies text, metadata text, versions text
  )
  ${reading(sql, schema)}
  as $function$
  #variable_conflict use_column
  declare
    stored bigint;
    newest int;
  begin
    ${seesLog(sql)}
    select count(*), min(sequence), max(sequence), sum(pg_column_size(body) + pg_column_size(metadata)), max(version)
    into events, first, last, stored, newest
    from event_log where aggregate_id = p_aggregate_id and sequence between p_min and p_max;
    if stored <= p_size then
      select '["' || string_agg("timestamp"::text, '","' order by sequence) || '"]',
        json_agg(type order by sequence)::text,
        '[' || string_agg(body::text, ',' order by sequence) || ']',
        '[' || string_agg(metadata::text, ',' order by sequence) || ']'
      into timestamps, types, bodies, metadata
      from event_log where aggregate_id = p_aggregate_id and sequence between p_min and p_max;
      if octet_length(bodies) + octet_length(metadata) > p_size then
        select null, null, null, null into timestamps, types, bodies, metadata;
      elsif newest > 1 then
        select '[' || string_agg(version::text, ',' order by sequence) || ']' into versions
        from event_log where aggregate_id = p_aggregate_id and sequence between p_min and p_max;
      end if;
    end if;
    return next;
  end
  $function$`

// --- internal ---

/**
 * Fails with a serialization failure where the log is newer than the snapshot of the transaction, because a copy has replaced it since (`replaceLog.ts`).
 * The snapshot would show no event. It does not show the log in the catalog either, whose name means the newest table. With READ COMMITTED a
 * statement locks the log before it takes its snapshot.
 */
const seesLog = (sql: SqlClient.SqlClient): Fragment =>
  sql.literal(`if current_setting('transaction_isolation') <> 'read committed'
      and not exists (select from pg_class where oid = 'event_log'::regclass) then
      raise exception 'the event log has been replaced since the snapshot of this transaction was taken: run the whole transaction again'
        using errcode = 'serialization_failure';
    end if;`)

/**
 * The settings of the functions that read. A session plans their statements once, and reads along the key. The planner takes all streams for
 * short ones, and without the settings it would sort the rest of a long stream for each of its pages.
 */
const reading = (sql: SqlClient.SqlClient, schema: Fragment): Fragment =>
  sql`language plpgsql stable
  set search_path = ${schema}, pg_temp
  set plan_cache_mode = force_generic_plan
  set enable_seqscan = off
  set enable_bitmapscan = off`
