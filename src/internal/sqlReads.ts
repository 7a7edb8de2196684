/**
 * What the SQL store reads of streams and snapshots, and what the rows mean.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type * as Statement from "@effect/sql/Statement"
import { type Event, maxSequence, type StoredEvent } from "../Event.js"
import type { StoredSnapshot } from "../Snapshot.js"
import type { Timestamp } from "../Timestamp.js"
import type { Range } from "./record.js"
import { type Stream, streamOf } from "./streamReader.js"

// JSON comes as text and is parsed here, so that no type parser of the driver can change what is in it. Texts that may begin
// with anything come behind a dot: PGlite takes U+FEFF at the start of a text for a byte order mark, and drops it.
const withoutDot = (text: string): string => text.slice(1)

interface EventRow extends Omit<StoredEvent, "aggregateId" | "type"> {
  /** None is that of a snapshot. */
  readonly type: string | null
}

export const eventOf = (aggregateId: string, { body, metadata, sequence, timestamp, type }: EventRow): StoredEvent => ({
  timestamp,
  aggregateId,
  // An application may have a driver that reads numbers to texts.
  sequence: Number(sequence),
  type: withoutDot(type ?? ""),
  body,
  metadata
})

/**
 * The events for one reader, of rows that were selected up to a limit, and one more. Where metadata is the same text, it is one
 * object. The row of a snapshot is passed over.
 */
export const pageOf = (aggregateId: string, rows: ReadonlyArray<EventRow>, limit: number): Stream => {
  const events: Array<Event> = []
  let text: string | undefined
  let metadata: Event["metadata"] = {}
  for (const row of rows) {
    if (row.type === null) continue
    if (events.length === limit) return streamOf(events, true)
    if (row.metadata !== text) {
      text = row.metadata
      metadata = JSON.parse(text)
    }
    events.push({
      timestamp: row.timestamp,
      aggregateId,
      sequence: Number(row.sequence),
      type: withoutDot(row.type),
      body: JSON.parse(row.body),
      metadata
    })
  }
  return streamOf(events, false)
}

/** With a limit, one more than that: where it comes, there are more. */
export const selectEvents = (
  sql: SqlClient.SqlClient,
  schema: Statement.Fragment,
  { aggregateId, maxSequence, minSequence }: Range,
  limit?: number
) =>
  sql<EventRow>`select timestamp::text, sequence, '.' || type as type, body::text, metadata::text
    from ${schema}.event_log
    where aggregate_id = ${aggregateId} and sequence between ${minSequence} and ${maxSequence}
    order by sequence ${limit === undefined ? sql`` : sql`limit ${limit + 1}`}`

/** A page of a stream in one row: lists in JSON, which take far less to send and to read than a row for each event. */
interface PageRow {
  readonly found: number
  readonly first: number
  readonly last: number
  /** There are none where they would be too much for one value. */
  readonly timestamps: string | null
  readonly types: string
  readonly bodies: string
  readonly metadata: string
}

/** The events up to a limit, and one more, in one row. */
export const selectPage = (
  sql: SqlClient.SqlClient,
  schema: Statement.Fragment,
  { aggregateId, minSequence }: Range,
  limit: number
) =>
  sql<PageRow>`select events::int as found, first, last, timestamps, types, bodies, metadata
    from ${schema}.read_page(${aggregateId}, ${minSequence}, ${Math.min(minSequence + limit, maxSequence)}, ${maxPageSize})`

/**
 * In bytes, as they are stored. Long ones are compressed, to a 255th at best: so one value stays below what a text of JavaScript holds,
 * and far below what Postgres does.
 */
const maxPageSize = 2_000_000

/**
 * The page that a row holds. Otherwise the rows are to be read: up to the end of the page, where it is all there and only too large for
 * that; from it on, where something is missing, which who folds the rows finds out about.
 */
export const pageOfRow = (
  aggregateId: string,
  row: PageRow | undefined,
  limit: number
): Stream | { readonly rowsUpTo: number } => {
  if (row === undefined) return { rowsUpTo: maxSequence }
  const [found, first, last] = [Number(row.found), Number(row.first), Number(row.last)]
  if (found === 0 || last - first + 1 !== found) return { rowsUpTo: maxSequence }
  if (row.timestamps === null) return { rowsUpTo: found > limit ? last : maxSequence }
  const { bodies, metadata, timestamps, types } = row
  const length = Math.min(found, limit)
  return {
    events: () => eventsOf(aggregateId, first, length, [timestamps, types, bodies, metadata]),
    moreAfter: found > limit ? first + length - 1 : undefined
  }
}

const eventsOf = (
  aggregateId: string,
  first: number,
  length: number,
  columns: readonly [string, string, string, string]
): ReadonlyArray<Event> => {
  const [timestamps, types, bodies, metadata]: Columns = columns.map((column) => JSON.parse(column)) as Columns
  const events: Array<Event> = []
  for (let index = 0; index < length; index++) {
    events.push({
      timestamp: timestamps[index],
      aggregateId,
      sequence: first + index,
      type: types[index],
      body: bodies[index],
      metadata: metadata[index]
    } as Event)
  }
  return events
}

type Columns = [
  ReadonlyArray<Timestamp>,
  ReadonlyArray<string>,
  ReadonlyArray<Event["body"]>,
  ReadonlyArray<Event["metadata"]>
]

/** The snapshot, if there is one, and the events from its own on up to a limit, and one more. */
export const selectStream = (
  sql: SqlClient.SqlClient,
  schema: Statement.Fragment,
  { aggregateId, maxSequence }: Range,
  limit: number
) => sql<EventRow>`select * from ${schema}.read_stream(${aggregateId}, ${maxSequence}, ${limit + 1})`

export const selectSnapshot = (sql: SqlClient.SqlClient, schema: Statement.Fragment, range: Range) =>
  sql<Omit<StoredSnapshot, "aggregateId">>`select timestamp::text, sequence, body::text, metadata::text
    from ${schema}.snapshots
    where aggregate_id = ${range.aggregateId} and sequence between ${range.minSequence} and ${range.maxSequence}`
