/**
 * The partitions of the event log: how many an option may ask for, and the statements that make them. `migrations.ts` creates a
 * log by it, and `partitionLog.ts` changes one.
 *
 * A partition has the aggregates of one hash of `aggregate_id`, so each stream is in one partition. The only unique index begins with
 * `aggregate_id`, so no constraint spans partitions.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { Fragment, Statement } from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import { StoreError } from "../../StoreError.js"

/** How many partitions a new log gets without the option: it is one ordinary table. */
export const usualPartitions: number = 1

/** A statement may lock each partition with its indexes, and a server has room for a few thousand locks. */
export const maxPartitions = 256

/** Fails if a number of partitions is none that a log can have. */
export const checkPartitions = (option: string, partitions: unknown): Effect.Effect<void, StoreError> =>
  typeof partitions === "number" && Number.isInteger(partitions) && partitions >= 1 && partitions <= maxPartitions
    ? Effect.void
    : new StoreError({
        reason: "Misconfigured",
        operation: "SqlStore",
        description: `${option} must be a whole number from 1 to ${maxPartitions}, and ${shown(partitions)} is not`
      })

/** A wrong value as it is shown to the caller. */
const shown = (value: unknown): string =>
  typeof value === "string"
    ? `the text ${JSON.stringify(value)}`
    : Object.is(value, -0)
      ? "-0"
      : typeof value === "object" && value !== null
        ? "an object"
        : String(value)

/** Fails if a log that is there has another number of partitions than the option asks for. */
export const checkFoundPartitions = (
  name: string,
  found: number,
  wanted: number | undefined
): Effect.Effect<void, StoreError> =>
  wanted === undefined || wanted === found
    ? Effect.void
    : new StoreError({
        reason: "Misconfigured",
        operation: "SqlStore",
        description: `logPartitions is ${wanted}, and the event log of the schema ${JSON.stringify(name)} ${found === 1 ? "is not partitioned" : `has ${found} partitions`}: change it by SqlStore.partitionLog({ partitions: ${wanted} }), or leave the option out`
      })

/** What follows the columns of a log in `create table`. */
export const partitionedBy = (sql: SqlClient.SqlClient, partitions: number): Fragment =>
  partitions === 1 ? sql`` : sql`partition by hash (aggregate_id)`

/** Creates the partitions of a log under the names `event_log_0`, `event_log_1` and so on, or with another prefix. */
export const createPartitions = (
  sql: SqlClient.SqlClient,
  schema: Fragment,
  partitions: number,
  log = "event_log"
): ReadonlyArray<Statement<unknown>> =>
  numbersOf(partitions).map(
    (number) =>
      sql`create table ${schema}.${sql.literal(`${log}_${number}`)} partition of ${schema}.${sql.literal(log)}
        for values with (modulus ${sql.literal(String(partitions))}, remainder ${sql.literal(String(number))})`
  )

/** The numbers of the partitions. A log that is an ordinary table has none. */
export const numbersOf = (partitions: number): ReadonlyArray<number> =>
  partitions === 1 ? [] : Array.from({ length: partitions }, (_, number) => number)

/**
 * Lets the column take its values from a sequence of its own. It is no identity column, because Postgres has those on
 * partitioned tables from version 17 on.
 */
export const numberPositions = (sql: SqlClient.SqlClient, schema: Fragment): ReadonlyArray<Statement<unknown>> => [
  sql`create sequence ${schema}.event_log_position_seq owned by ${schema}.event_log.position`,
  sql`alter table ${schema}.event_log alter column position set default nextval(${relation(sql, schema, "event_log_position_seq")})`
]

/** A table or a sequence of the schema, as a value of the type `regclass`. An `E` text means the same with each setting of the server. */
export const relation = (sql: SqlClient.SqlClient, schema: Fragment, name: string): Fragment => {
  const [quoted] = sql`${schema}`.compile()
  return sql.literal(`E'${quoted.replaceAll("\\", "\\\\").replaceAll("'", "''")}.${name}'::regclass`)
}
