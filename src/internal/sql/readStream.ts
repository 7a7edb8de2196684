/**
 * How the SQL store reads streams and snapshots. `SqlStore.ts` makes its reads of this.
 *
 * - JSON is read as text and parsed here, so that no type parser of the driver can change it.
 * - A page has a limit in bytes as well as in events. The statement for small values comes first, because it needs no measuring. If values
 *   are missing from its rows, the page is read again by a statement that measures.
 * - A long page is one row of JSON lists, which is far cheaper to send and to parse than a row for each event.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type { Statement } from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { type Event, maxSequence, type StoredEvent } from "../../Event.js"
import type { StoredSnapshot } from "../../Snapshot.js"
import type { EncodedStore, EventPage, SequenceRange, StreamReads } from "../../StoreAdapter.js"
import type { StoreError } from "../../StoreError.js"
import type { Timestamp } from "../../Timestamp.js"
import { type Contents, fitting, isComplete, type LogTable, shareOf, smallOrNull } from "../store/pageBytes.js"
import { decodeSnapshot } from "../store/storedRecord.js"
import { eventPage } from "../store/streamReader.js"
import { causeColumn, causeOf, typeOf, type VersionedType, versionedType } from "./eventColumns.js"
import type { CommandRunner } from "./pg/commandRunner.js"
import type { Rows } from "./pg/driver.js"
import { execute, executeCommand, retryDisturbed } from "./pg/execute.js"
import type { PreparedText } from "./pg/preparedStatements.js"

/** The reads of the port. */
export interface PortReads extends Pick<EncodedStore, "readEvents" | "readSnapshot"> {
  readonly readStream: StreamReads<StoreError>
}

export const makeReads = (log: LogTable, runner: CommandRunner): PortReads => ({
  readEvents: (range) =>
    Effect.map(query(log, "getEvents", selectEvents(log, range)), (rows) =>
      rows.map((row) => eventOf(range.aggregateId, row))
    ),
  readSnapshot: (range) =>
    Effect.map(query(log, "getSnapshot", selectSnapshot(log, range)), ([row]) =>
      Option.map(Option.fromNullable(row), (found) => ({
        ...found,
        sequence: Number(found.sequence),
        aggregateId: range.aggregateId
      }))
    ),
  readStream: makeStreamReads(log, runner)
})

/** The reads of an aggregate that loads. */
const makeStreamReads = (log: LogTable, runner: CommandRunner): StreamReads<StoreError> => {
  const statements = preparedReads(log, runner)
  const read = (statement: PreparedText, ...values: ReadonlyArray<string | number>) =>
    retryDisturbed(
      executeCommand(
        runner,
        { operation: "getEvents", phase: "reading" },
        { ...statement, values: values.map((value) => String(value)) }
      )
    )

  /** As many events as a page can have, where some of them are large. */
  const measured = (range: SequenceRange, limit: number) =>
    Effect.map(query(log, "getEvents", selectFittingEvents(log, range, limit)), (rows) =>
      pageOfMeasured(range.aggregateId, rows)
    )

  return {
    exists: (aggregateId) => Effect.map(read(statements.exists, aggregateId), ({ length }) => length > 0),
    page: (aggregateId, minSequence, limit, options) => {
      const range = { aggregateId, minSequence, maxSequence }
      if (limit < longPage || options?.withCause === true) {
        const small = Effect.map(query(log, "getEvents", selectSmallEvents(log, range, limit)), (rows) =>
          pageOf(aggregateId, rows, limit)
        )
        return Effect.flatMap(small, (page) =>
          "measureFrom" in page ? measured({ ...range, minSequence: page.measureFrom }, limit) : Effect.succeed(page)
        )
      }
      const last = Math.min(minSequence + limit, maxSequence)
      const inOneRow = Effect.map(read(statements.page, aggregateId, minSequence, last, maxPageSize), ([row]) =>
        pageOfRow(aggregateId, row && pageRow(row), limit)
      )
      return Effect.flatMap(inOneRow, (page) =>
        "rowsUpTo" in page ? measured({ ...range, maxSequence: page.rowsUpTo }, limit) : Effect.succeed(page)
      )
    },
    fromSnapshot: (aggregateId, upTo, limit) => {
      const range = { aggregateId, minSequence: 1, maxSequence: upTo }
      return Effect.flatMap(read(statements.stream, aggregateId, upTo, limit + 1, shareOf(limit)), (found) => {
        const rows = found.map(smallRow)
        const snapshot = Option.map(Option.fromNullable(rows.find(isSnapshot)), (row) =>
          decodeSnapshot({ ...row, sequence: Number(row.sequence), aggregateId })
        )
        const page = pageOf(aggregateId, rows, limit)
        return Effect.map(
          "measureFrom" in page ? measured({ ...range, minSequence: page.measureFrom }, limit) : Effect.succeed(page),
          (found) => ({ ...found, snapshot })
        )
      })
    }
  }
}

// --- internal ---

/** From so many events on a page is one row. */
const longPage = 1000

const query = <A>({ sql }: LogTable, operation: string, statement: Effect.Effect<A, SqlError>) =>
  retryDisturbed(execute(sql, { operation, phase: "reading" }, statement))

interface EventRow extends Pick<StoredEvent, "timestamp" | "sequence" | "body" | "metadata">, VersionedType {
  /** Undefined if it was not selected. */
  readonly cause?: string | null | undefined
}

/** A row of a page. A value that has more than its share of the page is null. */
interface SmallRow extends Omit<EventRow, "versioned_type" | keyof Contents>, Contents {
  /** Null in the row of the snapshot. */
  readonly versioned_type: string | null
}

const eventOf = (aggregateId: string, row: EventRow): StoredEvent => ({
  timestamp: row.timestamp,
  aggregateId,
  // The driver of an application may read numbers as texts.
  sequence: Number(row.sequence),
  ...typeOf(row),
  body: row.body,
  metadata: row.metadata,
  ...(row.cause && causeOf(row.cause))
})

/**
 * The page of rows that were selected up to a limit and one more. If values are missing, it is the sequence from which the rows have to be
 * measured. The row of a snapshot is left out.
 */
const pageOf = (
  aggregateId: string,
  rows: ReadonlyArray<SmallRow>,
  limit: number
): EventPage | { readonly measureFrom: number } => {
  const found = rows.filter(({ versioned_type }) => versioned_type !== null)
  const first = found.slice(0, limit)
  return first.every(isEvent)
    ? eventPage(eventsOfRows(aggregateId, first), found.length > limit)
    : { measureFrom: Number(found[0]?.sequence) }
}

/** The page of measured rows. It may have been cut anywhere, so there may be more events after it. */
const pageOfMeasured = (aggregateId: string, rows: ReadonlyArray<EventRow>): EventPage =>
  eventPage(eventsOfRows(aggregateId, rows), rows.length > 0)

/** Whether a row of `selectStream` is the snapshot. */
const isSnapshot = (row: SmallRow): row is SmallRow & { readonly body: string; readonly metadata: string } =>
  row.versioned_type === null && isComplete(row)

const isEvent = (row: SmallRow): row is SmallRow & EventRow => row.versioned_type !== null && isComplete(row)

/** The events of rows. Rows with equal metadata share one object. */
const eventsOfRows = (aggregateId: string, rows: ReadonlyArray<EventRow>): ReadonlyArray<Event> => {
  let text: string | undefined
  let metadata: Event["metadata"] = {}
  return rows.map((row) => {
    if (row.metadata !== text) {
      text = row.metadata
      metadata = JSON.parse(text)
    }
    const { type, version } = typeOf(row)
    const event: Event = {
      timestamp: row.timestamp,
      aggregateId,
      sequence: Number(row.sequence),
      type,
      version,
      body: JSON.parse(row.body),
      metadata
    }
    return row.cause ? Object.assign(event, causeOf(row.cause)) : event
  })
}

/** All events of a range, however large they are. */
const selectEvents = ({ schema, sql }: LogTable, range: SequenceRange) =>
  sql<EventRow>`select ${eventColumns(sql)} from ${schema}.event_log where ${inRange(sql, range)} order by sequence`

/** The events up to a limit and one more, which shows that there are more. */
const selectSmallEvents = ({ measuring, schema, sql }: LogTable, range: SequenceRange, limit: number) =>
  sql<SmallRow>`select ${eventColumns(sql, smallOrNull(sql, measuring, limit))}
    from ${schema}.event_log where ${inRange(sql, range)} order by sequence limit ${limit + 1}`

/** As many events as a page can have, up to a limit. */
const selectFittingEvents = ({ measuring, schema, sql }: LogTable, range: SequenceRange, limit: number) =>
  sql<EventRow>`select ${eventColumns(sql)} from ${fitting(
    sql,
    measuring,
    sql`select * from ${schema}.event_log where ${inRange(sql, range)} order by sequence limit ${limit}`,
    "sequence"
  )} event_log order by sequence`

const eventColumns = (sql: SqlClient.SqlClient, contents = sql.literal("body::text, metadata::text")) =>
  sql`timestamp::text, sequence, ${versionedType(sql)}, ${contents}, ${causeColumn(sql)}`

const inRange = (sql: SqlClient.SqlClient, { aggregateId, maxSequence, minSequence }: SequenceRange) =>
  sql`aggregate_id = ${aggregateId} and sequence between ${minSequence} and ${maxSequence}`

/** A page of a stream in one row of JSON lists. */
interface PageRow {
  readonly found: number
  readonly first: number
  readonly last: number
  /** Null, as the other lists, if they had more bytes than `maxPageSize`. */
  readonly timestamps: string | null
  readonly types: string
  readonly bodies: string
  readonly metadata: string
  /** Null if all are 1. */
  readonly versions: string | null
}

/** In bytes, stored and as text. Less than a page of rows may have, because the server takes time to make the row. */
const maxPageSize = 2_000_000

/**
 * The page of a row. If the row has no lists, rows have to be read. The bound is the last event of the page if the page is complete and too
 * large. There is no bound if a sequence is missing, which the fold then reports.
 */
const pageOfRow = (
  aggregateId: string,
  row: PageRow | undefined,
  limit: number
): EventPage | { readonly rowsUpTo: number } => {
  if (row === undefined) return { rowsUpTo: maxSequence }
  const [found, first, last] = [Number(row.found), Number(row.first), Number(row.last)]
  if (found === 0 || last - first + 1 !== found) return { rowsUpTo: maxSequence }
  if (row.timestamps === null) return { rowsUpTo: found > limit ? last : maxSequence }
  const { bodies, metadata, timestamps, types, versions } = row
  const length = Math.min(found, limit)
  return {
    events: () => eventsOf(aggregateId, first, length, [timestamps, types, bodies, metadata, versions]),
    moreAfter: found > limit ? first + length - 1 : undefined
  }
}

const eventsOf = (
  aggregateId: string,
  first: number,
  length: number,
  columns: readonly [string, string, string, string, string | null]
): ReadonlyArray<Event> => {
  const [timestamps, types, bodies, metadata, versions]: Columns = columns.map(
    (column) => column && JSON.parse(column)
  ) as Columns
  const events: Array<Event> = []
  for (let index = 0; index < length; index++) {
    events.push({
      timestamp: timestamps[index],
      aggregateId,
      sequence: first + index,
      type: types[index],
      version: versions === null ? 1 : versions[index],
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
  ReadonlyArray<Event["metadata"]>,
  ReadonlyArray<number> | null
]

/** The texts of the reads that a load needs most, which are put together once. */
const preparedReads = ({ schema, sql }: LogTable, runner: CommandRunner) => {
  const p = ""
  const preparedText = (statement: Statement<unknown>): PreparedText => runner.prepare(statement.compile()[0])
  // It is true. The functions read with the snapshot of the statement. Because the statement names the log itself, it locks the log before
  // it takes the snapshot. So a statement that had to wait for `replaceLog.ts` sees the events of the new table.
  const isLocked = sql`not exists (select from ${schema}.event_log where false)`
  return {
    /** A row if there is a first event. The index of the primary key has all that it needs. */
    exists: preparedText(sql`select '1' from ${schema}.event_log where aggregate_id = ${p} and sequence = 1`),
    /** The snapshot, if there is one, and the events from its sequence up to a limit and one more. */
    stream: preparedText(
      sql`select timestamp, sequence, versioned_type, body, metadata from ${schema}.read_stream(${p}, ${p}, ${p}, ${p})
        where ${isLocked}`
    ),
    /** The events up to a limit and one more, in one row. */
    page: preparedText(
      sql`select events, first, last, timestamps, types, bodies, metadata, versions from ${schema}.read_page(${p}, ${p}, ${p}, ${p})
        where ${isLocked}`
    )
  }
}

const smallRow = ([timestamp, sequence, versioned_type, body, metadata]: Rows[number]): SmallRow =>
  ({ timestamp, sequence, versioned_type, body, metadata }) as unknown as SmallRow

const pageRow = ([found, first, last, timestamps, types, bodies, metadata, versions]: Rows[number]): PageRow =>
  ({ found, first, last, timestamps, types, bodies, metadata, versions }) as unknown as PageRow

const selectSnapshot = ({ schema, sql }: LogTable, range: SequenceRange) =>
  sql<Omit<StoredSnapshot, "aggregateId">>`select timestamp::text, sequence, body::text, metadata::text
    from ${schema}.snapshots
    where aggregate_id = ${range.aggregateId} and sequence between ${range.minSequence} and ${range.maxSequence}`
