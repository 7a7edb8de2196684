/**
 * What the SQL store reads of streams and snapshots, and what the rows mean.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import { type Event, maxSequence, type StoredEvent } from "../../Event.js"
import type { StoredSnapshot } from "../../Snapshot.js"
import type { EventPage, SequenceRange } from "../../StoreAdapter.js"
import type { Timestamp } from "../../Timestamp.js"
import { type Contents, fitting, isComplete, type LogTable, shareOf, smallOrNull } from "../store/pageBytes.js"
import { eventPage } from "../store/streamReader.js"

// JSON comes as text and is parsed here, so that no type parser of the driver can change what is in it. Texts that may begin
// with anything come behind a dot: PGlite takes U+FEFF at the start of a text for a byte order mark, and drops it.
const withoutDot = (text: string): string => text.slice(1)

interface EventRow extends Omit<StoredEvent, "aggregateId"> {}

/** A row of a page, of which values are missing that have more than their share of it. */
interface SmallRow extends Omit<EventRow, "type" | keyof Contents>, Contents {
  /** The snapshot has none. */
  readonly type: string | null
}

export const eventOf = (aggregateId: string, { body, metadata, sequence, timestamp, type }: EventRow): StoredEvent => ({
  timestamp,
  aggregateId,
  // An application may have a driver that reads numbers to texts.
  sequence: Number(sequence),
  type: withoutDot(type),
  body,
  metadata
})

/**
 * The page that rows make, which were selected up to a limit, and one more. Where values are missing, the rows are to be measured from a
 * sequence on. Where metadata is the same text, it is one object. The row of a snapshot is passed over.
 */
export const pageOf = (
  aggregateId: string,
  rows: ReadonlyArray<SmallRow>,
  limit: number
): EventPage | { readonly measureFrom: number } => {
  const found = rows.filter(({ type }) => type !== null)
  const first = found.slice(0, limit)
  return first.every(isEvent)
    ? eventPage(eventsOfRows(aggregateId, first), found.length > limit)
    : { measureFrom: Number(found[0]?.sequence) }
}

/** The page that measured rows make. It may have been cut anywhere, so there may be more behind it. */
export const pageOfMeasured = (aggregateId: string, rows: ReadonlyArray<EventRow>): EventPage =>
  eventPage(eventsOfRows(aggregateId, rows), rows.length > 0)

/** Whether a row of `selectStream` is that of the snapshot. */
export const isSnapshot = (row: SmallRow): row is SmallRow & { readonly body: string; readonly metadata: string } =>
  row.type === null && isComplete(row)

const isEvent = (row: SmallRow): row is SmallRow & EventRow => row.type !== null && isComplete(row)

const eventsOfRows = (aggregateId: string, rows: ReadonlyArray<EventRow>): ReadonlyArray<Event> => {
  let text: string | undefined
  let metadata: Event["metadata"] = {}
  return rows.map((row) => {
    if (row.metadata !== text) {
      text = row.metadata
      metadata = JSON.parse(text)
    }
    return {
      timestamp: row.timestamp,
      aggregateId,
      sequence: Number(row.sequence),
      type: withoutDot(row.type),
      body: JSON.parse(row.body),
      metadata
    }
  })
}

/** All events of a range, whatever they come to. */
export const selectEvents = ({ schema, sql }: LogTable, range: SequenceRange) =>
  sql<EventRow>`select ${eventColumns(sql)} from ${schema}.event_log where ${inRange(sql, range)} order by sequence`

/** Up to a limit, and one more: where that one comes, there are more. */
export const selectSmallEvents = ({ measuring, schema, sql }: LogTable, range: SequenceRange, limit: number) =>
  sql<SmallRow>`select ${eventColumns(sql, smallOrNull(sql, measuring, limit))}
    from ${schema}.event_log where ${inRange(sql, range)} order by sequence limit ${limit + 1}`

/** As many as a page can have, up to a limit. */
export const selectFittingEvents = ({ measuring, schema, sql }: LogTable, range: SequenceRange, limit: number) =>
  sql<EventRow>`select ${eventColumns(sql)} from ${fitting(
    sql,
    measuring,
    sql`select * from ${schema}.event_log where ${inRange(sql, range)} order by sequence limit ${limit}`,
    "sequence"
  )} event_log order by sequence`

const eventColumns = (sql: SqlClient.SqlClient, contents = sql.literal("body::text, metadata::text")) =>
  sql`timestamp::text, sequence, '.' || type as type, ${contents}`

const inRange = (sql: SqlClient.SqlClient, { aggregateId, maxSequence, minSequence }: SequenceRange) =>
  sql`aggregate_id = ${aggregateId} and sequence between ${minSequence} and ${maxSequence}`

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
export const selectPage = ({ schema, sql }: LogTable, { aggregateId, minSequence }: SequenceRange, limit: number) =>
  sql<PageRow>`select events::int as found, first, last, timestamps, types, bodies, metadata
    from ${schema}.read_page(${aggregateId}, ${minSequence}, ${Math.min(minSequence + limit, maxSequence)}, ${maxPageSize})`

/** Of one value in bytes, as it is stored and as it is read: less than a page of rows has, because the row takes its time to make. */
const maxPageSize = 2_000_000

/**
 * The page that a row holds. Otherwise the rows are to be read: up to the end of the page, where it is all there and only too large for
 * one row; from it on, where an event is missing, which the fold finds out.
 */
export const pageOfRow = (
  aggregateId: string,
  row: PageRow | undefined,
  limit: number
): EventPage | { readonly rowsUpTo: number } => {
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
export const selectStream = ({ schema, sql }: LogTable, { aggregateId, maxSequence }: SequenceRange, limit: number) =>
  sql<SmallRow>`select * from ${schema}.read_stream(${aggregateId}, ${maxSequence}, ${limit + 1}, ${shareOf(limit)})`

export const selectSnapshot = ({ schema, sql }: LogTable, range: SequenceRange) =>
  sql<Omit<StoredSnapshot, "aggregateId">>`select timestamp::text, sequence, body::text, metadata::text
    from ${schema}.snapshots
    where aggregate_id = ${range.aggregateId} and sequence between ${range.minSequence} and ${range.maxSequence}`
