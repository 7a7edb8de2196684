/**
 * The maximum bytes of a page of events, and the SQL that measures them. `sql/feed` and `sql/readStream` build their
 * queries of it, and the store in memory has the same limit.
 *
 * A page is read by one or two statements. The first reads all rows up to the limit of the page, but large values
 * (above their share of the page) as null. Usually no value is null, and the rows are the page; this costs a few
 * comparisons for each row. Otherwise a second statement measures the rows, and sends as many as the page can have. No
 * other value is sent or decompressed.
 *
 * `pg_column_size` returns the stored size, and reads only the pointer to a value that is stored out of line. A
 * compressed value is up to 90 times as large as its stored size, so its text must be measured.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type * as Statement from "@effect/sql/Statement"

/** In bytes of JSON. A page of one event may have more, because one event has up to 64 MB. */
export const maxPageBytes = 4_000_000

/** The features of a database that depend on its version. */
export interface Measuring {
  /** Whether it has `pg_column_compression`, as Postgres has from version 14 on. */
  readonly tellsCompression: boolean
}

/** What the order of the feed is made of (`sql/feedOrder.ts`). A log has one from its creation on. */
export type FeedOrder = "transactionIds" | "counter"

/** The event log of a store. */
export interface LogTable {
  readonly sql: SqlClient.SqlClient
  readonly schema: Statement.Fragment
  readonly measuring: Measuring
  readonly feedOrder: FeedOrder
}

/**
 * The columns `body` and `metadata` as text, or null where a value is larger than its share of a page with that limit.
 */
export const smallOrNull = (sql: SqlClient.SqlClient, measuring: Measuring, limit: number): Statement.Fragment =>
  sql.literal(
    contents.map((column) => `${smallText(measuring, column, String(shareOf(limit)))} as ${column}`).join(", ")
  )

/** A column as text, or null where it has more bytes. */
export const smallText = ({ tellsCompression }: Measuring, column: string, most: string): string => {
  const measured = `octet_length(${column}::text) <= ${most}`
  const isSmall = tellsCompression ? `(pg_column_compression(${column}) is null or ${measured})` : measured
  return `case when pg_column_size(${column}) <= ${most} and ${isSmall} then ${column}::text end`
}

/** The share of one value in a page with that limit, in bytes. */
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
 * The first of the selected rows of the event log, in their order: as many as a page can have, or a few less, and at
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
  // Measuring a compressed value decompresses it. So only rows that are expected in the page are measured, by the usual
  // ratio of compressed JSON. Without `offset 0` the planner would measure a row once for each mention of its bytes.
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

/** The expected ratio of the size of a compressed value to its stored size. */
const usualRatio = 4
