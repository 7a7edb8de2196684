/**
 * Reads and writes the records of the tables that projections own, in the table `projection_tables` of the store. A
 * record says which version is in place, which statements made it, and where the tables are. `prepareTables.ts` and
 * `checkOwnership.ts` work with them.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { StoreError } from "../../StoreError.js"
import type { StoreTables } from "../sql/storeTables.js"
import { makeRun } from "./runStatement.js"

/** The tables of one projection that are in place. */
export interface TableRecord {
  /** The name of the projection. */
  readonly name: string
  /** 0 until a rebuild has filled the tables for the first time. */
  readonly version: number
  /** The texts of the statements that made the tables. A declaration with other texts is another one. */
  readonly statements: ReadonlyArray<string>
  /** The declared name of each table, and its name with the schema. */
  readonly tables: ReadonlyMap<string, string>
  /** The names of the aggregates whose events the tables contain. */
  readonly aggregates: ReadonlyArray<string>
  /** The subscription that keeps the tables, where commits do not. */
  readonly subscription: string | undefined
}

/** A table that was found by a name. */
export interface FoundTable {
  readonly name: string
  /** Its quoted name, with the schema. */
  readonly live: string
  readonly isOrdinary: boolean
}

export const operation = "ProjectionTables"

export const run = makeRun(operation)

/** All records, by the names of the projections. */
export const readRecords = (store: StoreTables): Effect.Effect<ReadonlyMap<string, TableRecord>, StoreError> =>
  Effect.map(
    run(
      store,
      store.sql<RecordRow>`select '.' || name as name, version, statements::text, tables::text, aggregates::text,
          '.' || subscription as subscription
        from ${store.schema}.projection_tables`
    ),
    (rows) => new Map(rows.map((row) => [row.name.slice(1), recordOf(row)]))
  )

/** Makes other processes that create or replace records wait until the end of the transaction. */
export const lockRecords = (store: StoreTables): Effect.Effect<void, StoreError> =>
  Effect.asVoid(
    run(
      store,
      store.sql`select pg_advisory_xact_lock(hashtextextended(${`effect-maestro/projection_tables/${store.name}`}, 0))`
    )
  )

/** Inserts a record, or replaces the one of the projection. */
export const writeRecord = (store: StoreTables, record: TableRecord): Effect.Effect<void, StoreError> =>
  Effect.asVoid(
    run(
      store,
      store.sql`insert into ${store.schema}.projection_tables (name, version, statements, tables, aggregates, subscription)
        values (${record.name}, ${record.version}, ${JSON.stringify(record.statements)}::json,
          ${JSON.stringify(Object.fromEntries(record.tables))}::json, ${JSON.stringify(record.aggregates)}::json, ${record.subscription ?? null})
        on conflict (name) do update set version = excluded.version, statements = excluded.statements,
          tables = excluded.tables, aggregates = excluded.aggregates,
          subscription = excluded.subscription, changed_at = clock_timestamp()`
    )
  )

export const deleteRecord = (store: StoreTables, name: string): Effect.Effect<void, StoreError> =>
  Effect.asVoid(run(store, store.sql`delete from ${store.schema}.projection_tables where name = ${name}`))

/** Finds tables by their names, in the search path of the connection. */
export const findTables = (
  store: StoreTables,
  names: ReadonlyArray<string>
): Effect.Effect<ReadonlyMap<string, FoundTable>, StoreError> =>
  Effect.map(
    run(
      store,
      store.sql<{ name: string; live: string; kind: string }>`select '.' || t.name as name, c.relkind::text as kind,
          quote_ident(n.nspname) || '.' || quote_ident(c.relname) as live
        from unnest(${[...names]}::text[]) t (name)
        join pg_class c on c.oid = to_regclass(t.name) join pg_namespace n on n.oid = c.relnamespace`
    ),
    (rows) =>
      new Map(
        rows.map(({ kind, live, name }) => [name.slice(1), { name: name.slice(1), live, isOrdinary: kind === "r" }])
      )
  )

/** The schema in which a statement creates a table that it names without a schema. */
export const currentSchema = (store: StoreTables): Effect.Effect<Option.Option<string>, StoreError> =>
  Effect.map(
    run(store, store.sql<{ current: string | null }>`select quote_ident(current_schema()) as current`),
    ([row]) => Option.fromNullable(row?.current)
  )

// --- internal ---

interface RecordRow {
  readonly name: string
  readonly version: number
  readonly statements: string
  readonly tables: string
  readonly aggregates: string
  readonly subscription: string | null
}

const recordOf = (row: RecordRow): TableRecord => ({
  name: row.name.slice(1),
  version: Number(row.version),
  statements: JSON.parse(row.statements),
  tables: new Map(Object.entries(JSON.parse(row.tables))),
  aggregates: JSON.parse(row.aggregates),
  subscription: row.subscription === null ? undefined : row.subscription.slice(1)
})
