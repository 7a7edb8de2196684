/**
 * The records of the tables that projections own, in a table of the store: which version is in place, what made it, and where it is.
 */
import type { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { StoreError } from "../../StoreError.js"
import { execute } from "../sql/pg/execute.js"
import type { StoreTables } from "../sql/storeTables.js"

/** The tables of one projection, as they are in place. */
export interface TableRecord {
  /** The projection. */
  readonly name: string
  /** 0 while the tables were never filled. */
  readonly version: number
  /** The texts of the statements that made the tables, which tell one declaration from another. */
  readonly statements: ReadonlyArray<string>
  /** The declared name of each table, with its schema and its name there. */
  readonly tables: ReadonlyMap<string, string>
  /** Of which aggregates the events are. */
  readonly aggregates: ReadonlyArray<string>
  /** The subscription that keeps the tables, where commits do not. */
  readonly subscription: string | undefined
}

/** A table, as a name leads to it. */
export interface FoundTable {
  readonly name: string
  /** With its schema. */
  readonly live: string
  readonly isOrdinary: boolean
}

export const operation = "ProjectionTables"

/** Runs a statement in the transaction around it, or on a connection of its own, whose interruption is bounded. */
export const run = <A>({ sql }: StoreTables, statement: Effect.Effect<A, SqlError>): Effect.Effect<A, StoreError> =>
  execute(sql, { operation, phase: "writing", savepoint: false }, statement)

/** All records, by the names of the projections. */
export const readRecords = (home: StoreTables): Effect.Effect<ReadonlyMap<string, TableRecord>, StoreError> =>
  Effect.map(
    run(
      home,
      home.sql<RecordRow>`select '.' || name as name, version, statements::text, tables::text, aggregates::text,
          '.' || subscription as subscription
        from ${home.schema}.projection_tables`
    ),
    (rows) => new Map(rows.map((row) => [row.name.slice(1), recordOf(row)]))
  )

/** Keeps other processes from creating or replacing records until the end of the transaction. */
export const lockRecords = (home: StoreTables): Effect.Effect<void, StoreError> =>
  Effect.asVoid(
    run(
      home,
      home.sql`select pg_advisory_xact_lock(hashtextextended(${`effect-maestro/projection_tables/${home.name}`}, 0))`
    )
  )

/** Writes a record, whether there is one or not. */
export const writeRecord = (home: StoreTables, record: TableRecord): Effect.Effect<void, StoreError> =>
  Effect.asVoid(
    run(
      home,
      home.sql`insert into ${home.schema}.projection_tables (name, version, statements, tables, aggregates, subscription)
        values (${record.name}, ${record.version}, ${JSON.stringify(record.statements)}::json,
          ${JSON.stringify(Object.fromEntries(record.tables))}::json, ${JSON.stringify(record.aggregates)}::json, ${record.subscription ?? null})
        on conflict (name) do update set version = excluded.version, statements = excluded.statements,
          tables = excluded.tables, aggregates = excluded.aggregates,
          subscription = excluded.subscription, changed_at = clock_timestamp()`
    )
  )

export const deleteRecord = (home: StoreTables, name: string): Effect.Effect<void, StoreError> =>
  Effect.asVoid(run(home, home.sql`delete from ${home.schema}.projection_tables where name = ${name}`))

/** The tables that these names lead to, by the search path of the connection. */
export const findTables = (
  home: StoreTables,
  names: ReadonlyArray<string>
): Effect.Effect<ReadonlyMap<string, FoundTable>, StoreError> =>
  Effect.map(
    run(
      home,
      home.sql<{ name: string; live: string; kind: string }>`select '.' || t.name as name, c.relkind::text as kind,
          quote_ident(n.nspname) || '.' || quote_ident(c.relname) as live
        from unnest(${[...names]}::text[]) t (name)
        join pg_class c on c.oid = to_regclass(t.name) join pg_namespace n on n.oid = c.relnamespace`
    ),
    (rows) =>
      new Map(
        rows.map(({ kind, live, name }) => [name.slice(1), { name: name.slice(1), live, isOrdinary: kind === "r" }])
      )
  )

/** The schema in which a table is created that is named without one. */
export const currentSchema = (home: StoreTables): Effect.Effect<Option.Option<string>, StoreError> =>
  Effect.map(
    run(home, home.sql<{ current: string | null }>`select quote_ident(current_schema()) as current`),
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
