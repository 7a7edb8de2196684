/**
 * The tables and functions of the SQL store, as numbered migrations. One that was released is never edited: what has to
 * change is a further one.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type { Fragment, Statement } from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import { StoreError } from "../../StoreError.js"
import { whenInTransaction } from "../runtime/ambientTransaction.js"
import { boundedInterruption } from "../runtime/interruption.js"
import { fromSqlError } from "../runtime/sqlError.js"
import { createTableRecords } from "../store/declaredTables.js"
import { type LogTable, type Measuring, smallText } from "../store/pageBytes.js"
import { executeAlone } from "./pg/connection.js"
import { withTransaction } from "./pg/transaction.js"

/**
 * Brings the schema up to date, and returns what the store has to know of its database. Any number of nodes may do so concurrently, on an
 * empty database too: one of them works, the others wait for it and find the work done. A node that finds it done from the start needs no
 * right to change tables.
 */
export const migrate = (
  sql: SqlClient.SqlClient,
  name: string,
  schema: Fragment
): Effect.Effect<Measuring, StoreError> =>
  Effect.gen(function* () {
    const found = yield* inspect(sql, name, schema)
    if (found.migrations >= migrations.length && found.hasFunctions) return found
    const migrating = withTransaction(
      sql,
      operation,
      Effect.gen(function* () {
        // A lock of the transaction, not of the session: it works through a pooler, and can't be left behind.
        yield* sql`select pg_advisory_xact_lock(hashtextextended(${`effect-maestro/${name}`}, 0))`
        // Asked first: `if not exists` wants the right to create even where nothing is to be created.
        const namespaces = yield* sql`select 1 from pg_namespace where nspname = ${name}`
        if (namespaces.length === 0) yield* sql`create schema ${schema}`
        yield* sql`create table if not exists ${schema}.migrations (
          id int primary key,
          name text not null,
          applied_at timestamptz not null default now()
        )`
        const done = yield* inspect(sql, name, schema)
        for (const [index, migration] of migrations.entries()) {
          if (index < done.migrations) continue
          for (const statement of migration.statements(sql, schema)) yield* statement
          yield* sql`insert into ${schema}.migrations (id, name) values (${index + 1}, ${migration.name})`
        }
        if (done.migrations < migrations.length || !done.hasFunctions) {
          for (const statement of functions({ measuring: done, schema, sql })) yield* statement
        }
      })
    ).pipe(Effect.catchTag("SqlError", (error) => Effect.fail(fail(error))))
    yield* whenInTransaction((inside) => (inside ? migrating : boundedInterruption(migrating)))
    return found
  }).pipe(Effect.withSpan("SqlStore.migrate", { attributes: { schema: name } }))

/**
 * Returns what the store has to know of its database, where the store does not migrate. It fails where the functions are not those of
 * the schema, because they would read and write the tables of another one.
 */
export const checkSchema = (
  sql: SqlClient.SqlClient,
  name: string,
  schema: Fragment
): Effect.Effect<Measuring, StoreError> =>
  Effect.flatMap(inspect(sql, name, schema), (found) =>
    found.migrations === 0 || found.hasFunctions
      ? Effect.succeed(found)
      : new StoreError({
          reason: "Misconfigured",
          operation: "SqlStore",
          description: `functions of the schema ${JSON.stringify(name)} are missing, or work on the tables of another schema, because it was renamed or copied: run SqlStore.migrate`
        })
  )

// --- internal ---

const operation = "migrate"

const fail = (error: SqlError): StoreError => fromSqlError(operation, "writing", error)

interface Inspected extends Measuring {
  /** How many migrations the schema has; none where there is no schema. */
  readonly migrations: number
  /**
   * Whether all functions are there, and work on the tables of this schema. Their search path names a schema by a text, which stays as it
   * is when the schema is renamed, or its functions are copied.
   */
  readonly hasFunctions: boolean
}

const inspect = (sql: SqlClient.SqlClient, name: string, schema: Fragment): Effect.Effect<Inspected, StoreError> =>
  Effect.gen(function* () {
    const [row] = yield* ask(
      sql,
      sql<{ tells_compression: boolean; has_migrations: boolean; functions: number }>`
        select current_setting('server_version_num')::int >= 140000 as tells_compression,
          exists (select 1 from pg_class c where c.relnamespace = n.oid and c.relname = 'migrations') as has_migrations,
          (
            select count(*)::int from pg_proc p
            where p.pronamespace = n.oid and p.proname = any(${functionNames}::text[])
              and p.proconfig @> array['search_path=' || quote_ident(n.nspname) || ', pg_temp']
          ) as functions
        from (select 1) one left join pg_namespace n on n.nspname = ${name}`
    )
    const [last] = row?.has_migrations
      ? yield* ask(sql, sql<{ id: number }>`select coalesce(max(id), 0)::int as id from ${schema}.migrations`)
      : []
    return {
      tellsCompression: row?.tells_compression === true,
      migrations: Number(last?.id ?? 0),
      hasFunctions: Number(row?.functions) === functionNames.length
    }
  })

/** A statement on a connection of its own, which lets go of a database that does not answer; or part of the transaction around it. */
const ask = <A>(sql: SqlClient.SqlClient, statement: Effect.Effect<A, SqlError>): Effect.Effect<A, StoreError> =>
  whenInTransaction((inside) =>
    inside ? Effect.mapError(statement, fail) : executeAlone(sql, operation, "reading", statement)
  )

interface Migration {
  readonly name: string
  readonly statements: (sql: SqlClient.SqlClient, schema: Fragment) => ReadonlyArray<Statement<unknown>>
}

/** Migration n stands at index n - 1. */
const migrations: ReadonlyArray<Migration> = [
  {
    name: "event_log and snapshots",
    statements: (sql, schema) => [
      // Ids compare byte by byte: no locale may take two of them for one, or slow the index down.
      // `json` keeps the text as it was written. `jsonb` would sort keys, drop the sign of -0, and write 1e308 out in 309 digits, so that
      // what was accepted could be too long to be read.
      // `feed_key` and `position` are the place in the global order. The key is the id of the transaction that wrote the event, but
      // never lower than that of the event before it in its stream; "The feed" in `feed.ts` says why.
      sql`create table ${schema}.event_log (
        aggregate_id text collate "C" not null,
        sequence int not null check (sequence > 0),
        position bigint generated by default as identity,
        feed_key xid8 not null default pg_current_xact_id(),
        type text not null,
        body json not null,
        metadata json not null,
        timestamp uuid not null,
        primary key (aggregate_id, sequence)
      )`,
      sql`create index event_log_feed on ${schema}.event_log (feed_key, position)`,
      // The feed of one kind of aggregates: the expression is that of `kindOf` in `feed.ts`.
      sql`create index event_log_kind on ${schema}.event_log
        ((left(aggregate_id, greatest(strpos(aggregate_id, '/') - 1, 0))), feed_key, position)`,
      sql`create table ${schema}.snapshots (
        aggregate_id text collate "C" primary key,
        sequence int not null check (sequence > 0),
        timestamp uuid not null,
        body json not null,
        metadata json not null
      )`
    ]
  },
  {
    name: "subscriptions",
    statements: (sql, schema) => [
      // A lease is had by who raised `token` last. `feed_key` and `position` are the checkpoint: the place in the global order up
      // to which all is done.
      sql`create table ${schema}.subscriptions (
        name text collate "C" not null,
        partition int not null,
        partitions int not null,
        feed_key xid8 not null,
        position bigint not null,
        token bigint not null default 0,
        holder text,
        leased_until timestamptz,
        stopped boolean not null default false,
        last_failure jsonb,
        -- How often the event at which position was tried by itself.
        attempted jsonb,
        primary key (name, partition)
      )`,
      sql`create table ${schema}.parked_events (
        subscription text collate "C" not null,
        aggregate_id text collate "C" not null,
        sequence int not null,
        partition int not null,
        feed_key xid8 not null,
        position bigint not null,
        type text not null,
        error text not null,
        attempts int not null,
        parked_at timestamptz not null default clock_timestamp(),
        primary key (subscription, aggregate_id, sequence)
      )`,
      sql`create table ${schema}.rebuilds (
        name text collate "C" primary key,
        events_total bigint not null, events_done bigint not null default 0,
        started_at timestamptz not null default clock_timestamp(),
        finished_at timestamptz
      )`,
      createTableRecords(sql, schema),
      // Each swap of a rebuild updates the one row, and `check_snapshot` locks it.
      sql`create table ${schema}.rebuild_swaps (swaps bigint not null)`,
      sql`insert into ${schema}.rebuild_swaps values (0)`
    ]
  }
]

/** The functions, which are created anew with each migration. */
const functions = (log: LogTable): ReadonlyArray<Statement<unknown>> => [
  commitInTransaction(log),
  commitEvents(log),
  checkSnapshot(log),
  readStream(log),
  readPage(log)
]

const functionNames = ["commit_in_transaction", "commit_events", "check_snapshot", "read_stream", "read_page"]

/**
 * What functions that write have in common. Their plans are made once for each session, and the settings keep them good: a generic plan,
 * because planning anew takes longer than the rest; and look-ups through the key only, because a plan made while the table was empty
 * must not outlive that.
 */
const writing = (sql: SqlClient.SqlClient, schema: Fragment): Fragment =>
  sql`language plpgsql volatile
  set search_path = ${schema}, pg_temp
  set plan_cache_mode = force_generic_plan
  set enable_seqscan = off
  set enable_hashjoin = off
  set enable_mergejoin = off`

/**
 * Stores any number of commits in one statement, each on its own: `p_commits` says to which commit an event belongs, and
 * `p_firsts` whether it is its aggregate's first in that commit. It returns null where it wrote them all, or else a JSON
 * list that has an entry for each commit that it did not write: its number, whether it was stored before, and the aggregate and sequence
 * that refuse it if not.
 *
 * A conflict is returned, never raised, so it can't break a transaction around it, nor other commits of the statement:
 * what a refused commit had inserted already is deleted again. Rows go in by aggregate and sequence, so that two
 * statements that insert the same rows wait for each other in one order, while their positions keep the order given.
 *
 * The feed key of what it writes is the id of its transaction. That is above the key of every event that the insert can see, because the
 * transaction gets its id during the insert. A transaction that has its id already goes through `commit_in_transaction`.
 *
 * With `p_lock_timeout` it waits only so long for a lock of another transaction. With `p_whole` more statements were sent along, which
 * may happen only if it writes everything: then it raises that there is a conflict (MA001), that all of it was
 * stored before (MA003), or a level of isolation that the store would not have begun the transaction with (MA002).
 */
const commitEvents = ({ schema, sql }: LogTable): Statement<unknown> =>
  sql`create or replace function ${schema}.commit_events(
    p_lock_timeout text, p_whole boolean,
    p_commits int[], p_firsts boolean[], p_aggregate_ids text[], p_sequences int[], p_types text[],
    p_bodies json[], p_metadata json[], p_timestamps uuid[]
  ) returns text
  ${writing(sql, schema)}
  as $function$
  declare
    written bigint;
    answer text;
  begin
    if p_whole then
      if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'the transaction is not READ COMMITTED' using errcode = 'MA002';
      end if;
      perform set_config('effect_maestro.begun', 'yes', true);
    end if;
    if p_lock_timeout is not null then
      perform set_config('lock_timeout', p_lock_timeout, true);
    end if;

    if pg_current_xact_id_if_assigned() is not null then
      answer := commit_in_transaction(p_firsts, p_aggregate_ids, p_sequences, p_types, p_bodies, p_metadata, p_timestamps);
    else
      insert into event_log (position, aggregate_id, sequence, type, body, metadata, "timestamp")
      select i.position, i.aggregate_id, i.sequence, i.type, i.body, i.metadata, i."timestamp"
      from (
        select nextval('event_log_position_seq') as position, e.*
        from unnest(p_firsts, p_aggregate_ids, p_sequences, p_types, p_bodies, p_metadata, p_timestamps)
          as e (first, aggregate_id, sequence, type, body, metadata, "timestamp")
      ) i
      where not i.first or i.sequence = 1
        -- The event before must be there: no gaps.
        or (select true from event_log p where p.aggregate_id = i.aggregate_id and p.sequence = i.sequence - 1)
      order by i.aggregate_id collate "C", i.sequence
      on conflict (aggregate_id, sequence) do nothing;

      get diagnostics written = row_count;
      if written = cardinality(p_sequences) then
        return null;
      end if;

      with judged as (
        select e.commit, e.place, e.aggregate_id, e.sequence,
          coalesce(l.feed_key = pg_current_xact_id_if_assigned(), false) as is_new,
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
      ) r;
    end if;

    if p_whole and answer is not null then
      if (answer::json -> 0 ->> 1)::boolean then
        raise exception 'all of it is stored' using errcode = 'MA003';
      end if;
      raise exception 'some of it conflicts with what is stored' using errcode = 'MA001';
    end if;
    return answer;
  end
  $function$`

/**
 * Stores one commit in a transaction that has written before, and returns what `commit_events` returns for it.
 *
 * Such a transaction has its id from its first write, and others with higher ids may have extended a stream since. So the key of these
 * events is the highest of three: the id, the key of the event before in each of their streams, and the highest key that this
 * transaction has used, so that its events keep the order in which it wrote them. No reader has passed that key, because it is not below
 * the id of a transaction that is still open. Keys of transactions to come, as a restored dump has them, do not count: a repair
 * orders those.
 *
 * What a refused commit had inserted is undone by the subtransaction of the block. The rows can't be told by their key, because others
 * may have used the same one.
 */
const commitInTransaction = ({ schema, sql }: LogTable): Statement<unknown> =>
  sql`create or replace function ${schema}.commit_in_transaction(
    p_firsts boolean[], p_aggregate_ids text[], p_sequences int[], p_types text[],
    p_bodies json[], p_metadata json[], p_timestamps uuid[]
  ) returns text
  ${writing(sql, schema)}
  as $function$
  declare
    written bigint;
    answer text;
    used xid8;
  begin
    begin
      insert into event_log (position, feed_key, aggregate_id, sequence, type, body, metadata, "timestamp")
      select i.position, i.feed_key, i.aggregate_id, i.sequence, i.type, i.body, i.metadata, i."timestamp"
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
        from unnest(p_firsts, p_aggregate_ids, p_sequences, p_types, p_bodies, p_metadata, p_timestamps)
          as e (first, aggregate_id, sequence, type, body, metadata, "timestamp")
      ) i
      where not i.first or i.sequence = 1
        or (select true from event_log p where p.aggregate_id = i.aggregate_id and p.sequence = i.sequence - 1)
      order by i.aggregate_id collate "C", i.sequence
      on conflict (aggregate_id, sequence) do nothing;

      get diagnostics written = row_count;
      if written < cardinality(p_sequences) then
        raise exception 'some of it conflicts with what is stored' using errcode = 'MA001';
      end if;
      select l.feed_key into used from event_log l
      where l.aggregate_id = p_aggregate_ids[1] and l.sequence = p_sequences[1];
      if used > pg_current_xact_id() then
        perform set_config('effect_maestro.feed_key', used::text, true);
      end if;
      return null;
    exception when sqlstate 'MA001' then
      -- What was inserted is gone again.
    end;

    with judged as (
      select e.place, e.aggregate_id, e.sequence,
        coalesce(l."timestamp" = e."timestamp", false) as is_same,
        l.sequence is not null or (
          e.first and e.sequence > 1 and not exists (
            select 1 from event_log p where p.aggregate_id = e.aggregate_id and p.sequence = e.sequence - 1
          )
        ) as refuses
      from unnest(p_firsts, p_aggregate_ids, p_sequences, p_timestamps)
        with ordinality as e (first, aggregate_id, sequence, "timestamp", place)
      left join event_log l on l.aggregate_id = e.aggregate_id and l.sequence = e.sequence
    )
    select json_build_array(json_build_array(0, (select bool_and(is_same) from judged), r.aggregate_id, r.sequence)) into answer
    from (select j.aggregate_id, j.sequence from judged j order by not j.refuses, j.place limit 1) r;
    return answer;
  end
  $function$`

/**
 * Fails with a serialization failure where a rebuild has swapped tables since the snapshot of the transaction was taken. Such a transaction
 * finds the new table by its name, but none of the rows that the rebuild has written, so what a projection updates there would be
 * lost. With READ COMMITTED each statement has a snapshot of its own, and nothing is locked.
 *
 * The lock is held to the end of the transaction, so that no swap comes between it and the projection.
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

/**
 * What functions that read have in common. Their plans are made once for each session, and always go along the key: left to itself the
 * planner, which takes streams for short ones, would collect and sort all that is left of a long one for each of its pages.
 */
const reading = (sql: SqlClient.SqlClient, schema: Fragment): Fragment =>
  sql`language plpgsql stable
  set search_path = ${schema}, pg_temp
  set plan_cache_mode = force_generic_plan
  set enable_seqscan = off
  set enable_bitmapscan = off`

/**
 * Reads a stream from its snapshot on, if it has one up to `p_max`: the snapshot as a row without a type, and so many events from the one
 * that it was made at. Of an event a body or metadata of more than `p_small` bytes is null.
 */
const readStream = ({ measuring, schema, sql }: LogTable): Statement<unknown> =>
  sql`create or replace function ${schema}.read_stream(p_aggregate_id text, p_max int, p_limit int, p_small int)
  returns table ("timestamp" text, sequence int, type text, body text, metadata text)
  ${reading(sql, schema)}
  as $function$
  #variable_conflict use_column
  declare
    first int := 1;
  begin
    return query
      select s."timestamp"::text, s.sequence, null::text, s.body::text, s.metadata::text
      from snapshots s where s.aggregate_id = p_aggregate_id and s.sequence <= p_max;
    if found then
      select s.sequence into first from snapshots s where s.aggregate_id = p_aggregate_id;
    end if;
    return query
      select e."timestamp"::text, e.sequence, '.' || e.type, ${sql.literal(smallText(measuring, "e.body", "p_small"))},
        ${sql.literal(smallText(measuring, "e.metadata", "p_small"))}
      from event_log e
      where e.aggregate_id = p_aggregate_id and e.sequence >= first and e.sequence <= p_max
      order by e.sequence limit p_limit;
  end
  $function$`

/**
 * Reads a page of a stream, from one sequence to another, into one row, of lists in JSON: that takes far less to send and to read than a
 * row for each event. Where the lists would have more than `p_size` bytes, as they are stored or as they are read, they are left out.
 */
const readPage = ({ schema, sql }: LogTable): Statement<unknown> =>
  sql`create or replace function ${schema}.read_page(p_aggregate_id text, p_min int, p_max int, p_size bigint)
  returns table (events bigint, first int, last int, timestamps text, types text, bodies text, metadata text)
  ${reading(sql, schema)}
  as $function$
  #variable_conflict use_column
  declare
    stored bigint;
  begin
    select count(*), min(sequence), max(sequence), sum(pg_column_size(body) + pg_column_size(metadata))
    into events, first, last, stored
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
      end if;
    end if;
    return next;
  end
  $function$`
