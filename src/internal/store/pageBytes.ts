/**
 * How many bytes a page of events may have, and how Postgres measures them.
 *
 * A page is read in two steps at most. The first statement reads all rows up to the limit of the page, but a body or metadata of more than
 * its share of the page as null. Where all values come, that is the page: the usual case, for a few comparisons a row. Otherwise a second
 * statement measures the rows, and sends as many from the first on as the page can have. Nothing that is left out is sent or decompressed.
 *
 * `pg_column_size` reads no more than the pointer to a value that is stored out of line. It tells the size as it is stored, which is the
 * size that is read unless the value is compressed, to a 90th at best. Only the text of a compressed value tells its size.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type * as Statement from "@effect/sql/Statement"

/** In bytes of JSON. A page of one event may have more, because an event has up to 64 MB. */
export const maxPageBytes = 4_000_000

/** A database, as far as its version matters here. */
export interface Measuring {
  /** Whether it has `pg_column_compression`, as Postgres has from version 14 on. */
  readonly tellsCompression: boolean
}

/** The event log of a store. */
export interface LogTable {
  readonly sql: SqlClient.SqlClient
  readonly schema: Statement.Fragment
  readonly measuring: Measuring
}

/** The columns `body` and `metadata` as text, or null where a value has more than its share of a page of so many events. */
export const smallOrNull = (sql: SqlClient.SqlClient, measuring: Measuring, limit: number): Statement.Fragment =>
  sql.literal(
    contents.map((column) => `${smallText(measuring, column, String(shareOf(limit)))} as ${column}`).join(", ")
  )

/** A column as text, or null where it has more bytes than that. */
export const smallText = ({ tellsCompression }: Measuring, column: string, most: string): string => {
  const measured = `octet_length(${column}::text) <= ${most}`
  const isSmall = tellsCompression ? `(pg_column_compression(${column}) is null or ${measured})` : measured
  return `case when pg_column_size(${column}) <= ${most} and ${isSmall} then ${column}::text end`
}

/** What one value may have of a page of so many events, in bytes. */
export const shareOf = (limit: number): number => Math.floor((maxPageBytes - 1) / limit)

/** Whether a row has both of its values. */
export const isComplete = <Row extends Contents>(row: Row): row is Row & Complete =>
  row.body !== null && row.metadata !== null

/** The values of a row of `smallOrNull`. */
export interface Contents {
  readonly body: string | null
  readonly metadata: string | null
}

interface Complete {
  readonly body: string
  readonly metadata: string
}

/**
 * Of rows of the event log, which are selected in an order and up to a limit, as many from the first on as a page can have, or a few less, and at
 * least one.
 */
export const fitting = (
  sql: SqlClient.SqlClient,
  { tellsCompression }: Measuring,
  rows: Statement.Fragment,
  order: string
): Statement.Fragment => {
  const size = (column: string) =>
    tellsCompression
      ? `case when pg_column_compression(${column}) is null then pg_column_size(${column}) else octet_length(${column}::text) end`
      : `octet_length(${column}::text)`
  const sumOf = (each: (column: string) => string) => sql.literal(contents.map(each).join(" + "))
  const most = sql.literal(String(maxPageBytes))
  const upToHere = sql.literal(`over (order by ${order} rows unbounded preceding)`)
  // Measuring a compressed value decompresses it. So only rows are measured that are expected in the page, by what JSON usually comes to when it
  // is decompressed. `offset 0` keeps the planner from measuring a row once for each mention of its bytes.
  const expected = (column: string) =>
    tellsCompression
      ? `pg_column_size(${column}) * case when pg_column_compression(${column}) is null then 1 else ${usualRatio} end`
      : `pg_column_size(${column})`
  return sql`(
    select * from (
      select *, sum(bytes) ${upToHere} as bytes_to_here from (
        select *, ${sumOf(size)} as bytes from (
          select *, sum(expected) ${upToHere} - expected as expected_before from (
            select *, ${sumOf(expected)} as expected from (${rows}) selected
          ) sized
        ) candidates
        where expected_before < ${most} offset 0
      ) measured
    ) summed
    where bytes_to_here <= ${most} or bytes_to_here = bytes
  )`
}

// --- internal ---

const contents = ["body", "metadata"] as const

/** How many times as large as it is stored a compressed value is expected to be. */
const usualRatio = 4
