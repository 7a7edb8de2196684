/**
 * The tables of the SQL store, as numbered migrations, and the check that tables and functions are there. `SqlStore.ts` runs it when a layer is
 * built. A migration that was released is never edited: a change is a further migration.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type { Fragment, Statement } from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import { StoreError } from "../../StoreError.js"
import { fromSqlError } from "../runtime/sqlError.js"
import { createTableRecords } from "../store/declaredTables.js"
import type { FeedOrder, LogTable, Measuring } from "../store/pageBytes.js"
import { checkCounter, createCounter, type FoundCounter, findRow } from "./feedCounter.js"
import { checkFoundFeedOrder, checkKeyType, keyTypeOf, orderColumns, orderOfKey, usualFeedOrder } from "./feedOrder.js"
import { areFunctionsOf, functionNames, functions } from "./functions.js"
import {
  checkFoundPartitions,
  createPartitions,
  numberPositions,
  partitionedBy,
  usualPartitions
} from "./logPartitions.js"
import { boundedOutside, execute } from "./pg/execute.js"
import { withTransaction } from "./pg/transaction.js"

/** What a new log is to be like, and a log that is there has to be like. Without an option each log is right. */
export interface LogOptions {
  readonly partitions?: number | undefined
  readonly feedOrder?: FeedOrder | undefined
}

/** What the store has to know of its database. */
export type FoundDatabase = Pick<LogTable, "measuring" | "feedOrder">

/** A log that was looked at. */
export interface FoundLog extends FoundDatabase {
  /** How many partitions it has; undefined if there is no log. */
  readonly partitions: number | undefined
}

/**
 * Brings the schema up to date, and returns what the store has to know of its database. Any number of nodes may do so concurrently: one of
 * them works, and the others wait for its lock and find the work done. A node that finds the schema up to date needs no right to change it.
 *
 * A new log is made as the options ask for. It fails if a log that is there is another one, has no order, or lacks the counter of its order.
 */
export const migrate = (
  sql: SqlClient.SqlClient,
  name: string,
  schema: Fragment,
  wanted: LogOptions
): Effect.Effect<FoundDatabase, StoreError> =>
  Effect.gen(function* () {
    const found = yield* inspect(sql, name, schema, operation)
    yield* checkFound(sql, name, schema, found, wanted)
    if (isComplete(found)) return databaseOf(found, wanted)
    const migrating = withTransaction(
      sql,
      operation,
      Effect.gen(function* () {
        yield* lockSchema(sql, name)
        // `create schema if not exists` needs the right to create even if the schema exists.
        const namespaces = yield* sql`select 1 from pg_namespace where nspname = ${name}`
        if (namespaces.length === 0) yield* sql`create schema ${schema}`
        yield* sql`create table if not exists ${schema}.migrations (
          id int primary key,
          name text not null,
          applied_at timestamptz not null default now()
        )`
        const done = yield* inspect(sql, name, schema, operation)
        yield* checkFound(sql, name, schema, done, wanted)
        const database = databaseOf(done, wanted)
        const log = { ...database, schema, sql }
        for (const [index, migration] of migrations.entries()) {
          if (index < done.migrations) continue
          for (const statement of migration.statements(log, wanted.partitions ?? usualPartitions)) yield* statement
          yield* sql`insert into ${schema}.migrations (id, name) values (${index + 1}, ${migration.name})`
        }
        if (!isComplete(done)) {
          for (const statement of functions(log)) yield* statement
        }
        return database
      })
    ).pipe(Effect.catchTag("SqlError", (error) => Effect.fail(fail(error))))
    return yield* boundedOutside(migrating)
  }).pipe(Effect.withSpan("SqlStore.migrate", { attributes: { schema: name } }))

/**
 * Returns what the store has to know of its database, for a store that does not migrate. It fails if the tables are those of an older
 * release, or have no counter where the log needs one. It also fails if functions are missing or belong to another schema, whose tables they
 * would read and write, or to a log with the other order. Failures name the operation that looks at the schema.
 */
export const checkSchema = (
  sql: SqlClient.SqlClient,
  name: string,
  schema: Fragment,
  wanted: LogOptions,
  operation: string
): Effect.Effect<FoundLog, StoreError> =>
  Effect.gen(function* () {
    const found = yield* inspect(sql, name, schema, operation)
    const log = { ...databaseOf(found, wanted), partitions: found.partitions }
    if (found.migrations === 0) return log
    if (found.migrations < migrations.length)
      return yield* misconfigured(
        operation,
        `tables of the schema ${JSON.stringify(name)} are those of an older release`
      )
    yield* checkFound(sql, name, schema, found, wanted)
    if (!found.hasFunctions)
      return yield* misconfigured(
        operation,
        `functions of the schema ${JSON.stringify(name)} are missing, belong to a log with another order, or work on the tables of another schema, because it was renamed or copied`
      )
    return log
  })

/** The order of the feed of a log that is there, or of one to come. It fails if a log has none, or lacks its counter. */
export const feedOrderOf = (
  sql: SqlClient.SqlClient,
  name: string,
  schema: Fragment,
  operation: string
): Effect.Effect<FeedOrder, StoreError> =>
  Effect.flatMap(inspect(sql, name, schema, operation), (found) =>
    Effect.as(checkFound(sql, name, schema, found, {}), found.feedOrder ?? usualFeedOrder)
  )

/** Lets one node at a time change the schema. A lock of the transaction works through a pooler, and ends with it. */
export const lockSchema = (sql: SqlClient.SqlClient, name: string): Statement<unknown> =>
  sql`select pg_advisory_xact_lock(hashtextextended(${`effect-maestro/${name}`}, 0))`

/** Whether the database has all migrations and functions: a replica has them some time after its primary. */
export const isMigrated = (
  sql: SqlClient.SqlClient,
  name: string,
  schema: Fragment,
  operation: string
): Effect.Effect<boolean, StoreError> => Effect.map(inspect(sql, name, schema, operation), isComplete)

// --- internal ---

/** The operation of statements that change the schema. */
const operation = "migrate"

const misconfigured = (operation: string, why: string): Effect.Effect<never, StoreError> =>
  Effect.fail(new StoreError({ reason: "Misconfigured", operation, description: `${why}: run SqlStore.migrate` }))

const fail = (error: SqlError): StoreError => fromSqlError(operation, "writing", error)

/** What a schema has. */
interface Inspected extends Measuring {
  /** How many migrations the schema has; 0 if there is no schema. */
  readonly migrations: number
  /**
   * Whether all functions of the order of the log are there and work on the tables of this schema. Their search path is a text, which does not
   * change when the schema is renamed or copied.
   */
  readonly hasFunctions: boolean
  /** How many partitions the log has; 1 if it is an ordinary table, undefined if there is no log. */
  readonly partitions: number | undefined
  /** The type of its column `feed_key`; undefined if there is no such column. */
  readonly keyType: string | undefined
  /** The order that has this type; undefined if none has. */
  readonly feedOrder: FeedOrder | undefined
  readonly counter: FoundCounter
}

/** Fails if a log that is there has no order, or is not as the options ask for, or if tables of its order are missing. */
const checkFound = (
  sql: SqlClient.SqlClient,
  name: string,
  schema: Fragment,
  { counter, keyType, partitions }: Inspected,
  wanted: LogOptions
): Effect.Effect<void, StoreError> =>
  Effect.gen(function* () {
    if (partitions === undefined) return
    const feedOrder = yield* checkKeyType(name, keyType)
    yield* checkCounter({ schema, sql, feedOrder }, name, counter)
    yield* checkFoundPartitions(name, partitions, wanted.partitions)
    yield* checkFoundFeedOrder(name, feedOrder, wanted.feedOrder)
  })

const databaseOf = ({ feedOrder, tellsCompression }: Inspected, wanted: LogOptions): FoundDatabase => ({
  measuring: { tellsCompression },
  feedOrder: feedOrder ?? wanted.feedOrder ?? usualFeedOrder
})

const isComplete = ({ hasFunctions, migrations: count }: Inspected): boolean =>
  count >= migrations.length && hasFunctions

const inspect = (
  sql: SqlClient.SqlClient,
  name: string,
  schema: Fragment,
  operation: string
): Effect.Effect<Inspected, StoreError> =>
  Effect.gen(function* () {
    const ask = asking(sql, operation)
    const [row] = yield* ask(selectCatalogue(sql, name))
    const [last] = row?.has_migrations
      ? yield* ask(sql<{ id: number }>`select coalesce(max(id), 0)::int as id from ${schema}.migrations`)
      : []
    const keyType = row?.key_type ?? undefined
    const feedOrder = orderOfKey(keyType)
    return {
      tellsCompression: row?.tells_compression === true,
      migrations: Number(last?.id ?? 0),
      hasFunctions: areFunctionsOf(feedOrder ?? usualFeedOrder, row?.functions ?? []),
      partitions: row?.partitions == null ? undefined : Number(row.partitions),
      keyType,
      feedOrder,
      counter: yield* findCounter(ask, { schema, sql }, feedOrder, row?.may_read_counter)
    }
  })

/** Looks for the row of the counter, if the log needs one. A role that may not read the table takes the row for granted. */
const findCounter = (
  ask: Ask,
  log: Pick<LogTable, "schema" | "sql">,
  feedOrder: FeedOrder | undefined,
  mayRead: boolean | null | undefined
): Effect.Effect<FoundCounter, StoreError> => {
  if (mayRead == null) return Effect.succeed("no table")
  if (!mayRead || feedOrder !== "counter") return Effect.succeed("complete")
  return findRow(log, ask)
}

const selectCatalogue = (sql: SqlClient.SqlClient, name: string) =>
  sql<CatalogueRow>`
    select current_setting('server_version_num')::int >= 140000 as tells_compression,
      exists (select 1 from pg_class c where c.relnamespace = n.oid and c.relname = 'migrations') as has_migrations,
      (
        select array_agg(p.proname::text) from pg_proc p
        where p.pronamespace = n.oid and p.proname = any(${functionNames as Array<string>}::text[])
          and p.proconfig && ${searchPaths(sql)}
      ) as functions,
      (
        select case c.relkind when 'p' then (select count(*)::int from pg_inherits i where i.inhparent = c.oid) else 1 end
        from pg_class c where c.relnamespace = n.oid and c.relname = 'event_log'
      ) as partitions,
      (
        select format_type(a.atttypid, null) from pg_class c join pg_attribute a on a.attrelid = c.oid
        where c.relnamespace = n.oid and c.relname = 'event_log' and a.attname = 'feed_key'
      ) as key_type,
      (
        select has_table_privilege(c.oid, 'select') from pg_class c
        where c.relnamespace = n.oid and c.relname = 'feed_counter'
      ) as may_read_counter
    from (select 1) one left join pg_namespace n on n.nspname = ${name}`

interface CatalogueRow {
  readonly tells_compression: boolean
  readonly has_migrations: boolean
  readonly functions: ReadonlyArray<string> | null
  readonly partitions: number | null
  readonly key_type: string | null
  /** Null if there is no such table. */
  readonly may_read_counter: boolean | null
}

/**
 * The search path of the functions, as the server may have stored it. It quotes names where they need it, and all names where
 * `quote_all_identifiers` was set, which may have changed since.
 */
const searchPaths = (sql: SqlClient.SqlClient): Fragment =>
  sql`array[
    'search_path=' || quote_ident(n.nspname) || ', pg_temp',
    'search_path=' || case when n.nspname ~ '^[a-z_][a-z0-9_]*$' then n.nspname::text end || ', pg_temp',
    'search_path="' || replace(n.nspname, '"', '""') || '", pg_temp',
    'search_path="' || replace(n.nspname, '"', '""') || '", "pg_temp"'
  ]`

/** Runs statements that read, and names the operation in their failures. */
type Ask = <A>(statement: Effect.Effect<A, SqlError>) => Effect.Effect<A, StoreError>

const asking =
  (sql: SqlClient.SqlClient, operation: string): Ask =>
  (statement) =>
    execute(sql, { operation, phase: "reading", savepoint: false }, statement)

interface Migration {
  readonly name: string
  readonly statements: (log: LogTable, partitions: number) => ReadonlyArray<Statement<unknown>>
}

/** Migration n stands at index n - 1. */
const migrations: ReadonlyArray<Migration> = [
  {
    name: "event_log and snapshots",
    statements: ({ feedOrder, schema, sql }, partitions) => [
      // Ids compare byte by byte, so that no locale takes two of them for one, or slows the index down.
      // `json` keeps the text as it was written. `jsonb` would sort keys, drop the sign of -0, and write 1e308 out in 309 digits, so an
      // accepted event could be too long to be read.
      // `feed_key` and `position` are the place in the global order; the head of `feed.ts` explains them.
      sql`create table ${schema}.event_log (
        aggregate_id text collate "C" not null,
        sequence int not null check (sequence > 0),
        ${orderColumns(sql, feedOrder, partitions)}
        type text not null,
        body json not null,
        metadata json not null,
        timestamp uuid not null,
        primary key (aggregate_id, sequence)
      ) ${partitionedBy(sql, partitions)}`,
      ...createPartitions(sql, schema, partitions),
      ...(feedOrder === "counter" ? createCounter(sql, schema) : partitions === 1 ? [] : numberPositions(sql, schema)),
      sql`create index event_log_feed on ${schema}.event_log (feed_key, position)`,
      // For the feed of one kind of aggregates. `kindOf` in `feed.ts` has the expression.
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
    statements: (log) => {
      const { schema, sql } = log
      const keyType = keyTypeOf(log)
      return [
        // The holder of the lease is the runner that raised `token` last. `feed_key` and `position` are the checkpoint: the place in the
        // global order up to which all events are handled.
        sql`create table ${schema}.subscriptions (
        name text collate "C" not null,
        partition int not null,
        partitions int not null,
        feed_key ${keyType} not null,
        position bigint not null,
        token bigint not null default 0,
        holder text,
        leased_until timestamptz,
        stopped boolean not null default false,
        last_failure jsonb,
        -- A position, and how often its event was tried alone.
        attempted jsonb,
        primary key (name, partition)
      )`,
        sql`create table ${schema}.parked_events (
        subscription text collate "C" not null,
        aggregate_id text collate "C" not null,
        sequence int not null,
        partition int not null,
        feed_key ${keyType} not null,
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
  },
  {
    name: "versions and causes of events",
    statements: ({ schema, sql }) => [
      // The functions that take or return events; they are created anew.
      sql`drop function if exists ${schema}.commit_events(
        text, boolean, int[], boolean[], text[], int[], text[], json[], json[], uuid[]
      )`,
      sql`drop function if exists ${schema}.commit_in_transaction(
        boolean[], text[], int[], text[], json[], json[], uuid[]
      )`,
      sql`drop function if exists ${schema}.read_page(text, int, int, bigint)`,
      sql`drop function if exists ${schema}.read_stream(text, int, int, int)`,
      // A default that is constant needs no rewrite of the table.
      sql`alter table ${schema}.event_log
        add column version int not null default 1 check (version > 0),
        add column correlation_id text collate "C",
        add column causation_id uuid,
        add column traceparent text collate "C"`
    ]
  },
  {
    name: "chains of events",
    statements: ({ schema, sql }) => [
      // For the feed of one chain.
      sql`create index event_log_correlation on ${schema}.event_log (correlation_id, feed_key, position)
        where correlation_id is not null`
    ]
  },
  {
    name: "types of events",
    statements: ({ schema, sql }) => [
      // `typeSamples.ts` goes from type to type by it. Equal entries are stored once, so it has about 8 bytes for an event.
      sql`create index event_log_types on ${schema}.event_log
        ((left(aggregate_id, greatest(strpos(aggregate_id, '/'), 1) - 1)), (type collate "C"), version)`
    ]
  },
  {
    name: "nodes of subscriptions",
    statements: ({ schema, sql }) => [
      sql`alter table ${schema}.subscriptions add column held_since timestamptz`,
      sql`create table ${schema}.subscription_nodes (
        name text collate "C" not null,
        node text collate "C" not null,
        holder text not null,
        partitions int not null,
        declines int[] not null default '{}',
        joined_at timestamptz not null default clock_timestamp(),
        -- A node that has not moved it further by then has left, unless it holds a lease.
        alive_until timestamptz not null,
        primary key (name, node)
      )`,
      // It is no column of `subscriptions`, because a checkpoint locks the row of its partition.
      sql`create table ${schema}.subscription_shares (
        name text collate "C" not null,
        partition int not null,
        node text collate "C" not null,
        primary key (name, partition)
      )`
    ]
  },
  {
    name: "events that commits follow",
    statements: ({ schema, sql }) => [
      // The functions that take events; they are created anew.
      sql`drop function if exists ${schema}.has_event(text, int)`,
      sql`drop function if exists ${schema}.commit_events(
        text, boolean, int[], boolean[], text[], int[], text[], json[], json[], uuid[], int[], text[], uuid[], text[]
      )`,
      sql`drop function if exists ${schema}.commit_in_transaction(
        boolean[], text[], int[], text[], json[], json[], uuid[], int[], text[], uuid[], text[]
      )`
    ]
  },
  {
    name: "times of positions",
    statements: ({ schema, sql }) => [
      // The time of the event at the position, as `position.ts` says.
      sql`alter table ${schema}.subscriptions add column event_time text not null default ''`,
      sql`alter table ${schema}.parked_events add column event_time text not null default ''`
    ]
  },
  {
    name: "positions for each role of the schema",
    statements: ({ feedOrder, schema, sql }) => [
      // The functions that take positions run with the rights of their caller, and rights on tables do not include their sequences. By
      // this right a role can skip positions, and nothing else. A counter is a table.
      ...(feedOrder === "counter" ? [] : [sql`grant usage on sequence ${schema}.event_log_position_seq to public`])
    ]
  }
]
