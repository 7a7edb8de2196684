/**
 * The statements that read a page of the feed, and the page that their rows make. The feed and the rebuilds use it.
 *
 * One statement scans at most a window of events for matches of a filter. The row of the last scanned event, which has
 * nothing but its position, then ends the page, so that a reader goes on after the window.
 *
 * A page of the feed begins after an event that is in the log (`lostPosition.ts`).
 */
import type { SqlError } from "@effect/sql/SqlError"
import type * as Statement from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import type { Page, Position } from "../../EventFeed.js"
import type { StoreError } from "../../StoreError.js"
import { type Contents, fitting, isComplete, type LogTable, smallOrNull } from "../store/pageBytes.js"
import type { ReadFilter } from "../store/readOptions.js"
import { andMatches, isAfter, isShown, kindOf, matches } from "./feedConditions.js"
import { type FeedRow, feedColumns, feedEventsOf, positionColumns, positionOfFeedRow } from "./feedRows.js"
import { isMissing, lost, lostIfPassed, lostMark, positionLost } from "./lostPosition.js"
import type { CommandRunner } from "./pg/commandRunner.js"
import type { Command, Rows } from "./pg/driver.js"
import { executeCommand } from "./pg/execute.js"
import { columnsOf, rowValue } from "./position.js"

/** The options of a read, with their defaults. */
export interface PageOptions {
  readonly after: Position
  readonly limit: number
  readonly filter: ReadFilter | undefined
}

/**
 * Reads pages. The text for a filter and a limit is put together once, and is prepared. A second statement runs where the
 * first has left out large values.
 */
export const makePageReader = (
  log: LogTable,
  runner: CommandRunner,
  query: <A>(statement: Effect.Effect<A, SqlError>) => Effect.Effect<A, StoreError>
) => {
  const known = new Map<string, Command>()

  const commandFor = ({ filter: given, limit }: PageOptions): Command => {
    // Reads of any chain, and as of any time, have one text.
    const filter = given && {
      ...given,
      ...(given.correlationId !== undefined && { correlationId: correlationValue }),
      ...(given.madeBy !== undefined && { madeBy: madeByValue })
    }
    const key = JSON.stringify([limit, filter])
    const command = known.get(key)
    if (command !== undefined) return command
    const [text, values] = selectPage(log, { after: placeholder, filter, limit }).compile()
    if (known.size >= maxKnown) return { text, values }
    const prepared = { ...runner.prepare(text), values }
    known.set(key, prepared)
    return prepared
  }

  const readRows = (options: PageOptions) => {
    const { values, ...text } = commandFor(options)
    const [feedKey, position, time] = columnsOf(options.after)
    const actual = new Map<unknown, string | undefined>([
      [feedKeyValue, feedKey],
      [positionValue, position],
      [timeValue, time],
      [correlationValue, options.filter?.correlationId],
      [madeByValue, options.filter?.madeBy]
    ])
    const command = { ...text, values: values.map((value) => actual.get(value) ?? value) }
    return Effect.map(executeCommand(runner, { operation: "EventFeed", phase: "reading" }, command), (rows) =>
      rows.map(smallRowOf)
    )
  }

  return (options: PageOptions): Effect.Effect<Page, StoreError> =>
    Effect.flatMap(readRows(options), (rows): Effect.Effect<Page, StoreError> => {
      const mark = rows.at(-1)?.scanned
      if (mark === lost || (mark === lostIfPassed && rows.length > 1)) return Effect.fail(positionLost(options.after))
      if (mark === lostIfPassed) rows.pop()
      const windowEnd = rows.findLast(({ scanned }) => scanned !== null && scanned !== undefined)
      const found = windowEnd === undefined ? rows : rows.filter((row) => row !== windowEnd)
      const first = found.slice(0, options.limit)
      if (first.every(isComplete)) {
        return Effect.succeed(pageOf(options, first, found.length > options.limit, windowEnd))
      }
      const last = first.at(-1)
      const upTo = last === undefined ? undefined : positionOfFeedRow(last)
      return Effect.map(query(selectFittingPage(log, { ...options, upTo })), (fitting) =>
        pageOf(options, fitting, fitting.length < found.length, windowEnd)
      )
    })
}

/**
 * The rows after a position, as many as a page can have in bytes. `upTo` is the last event that the first statement
 * found; without it, the rows are all that the current transaction can see.
 */
export const selectFittingPage = (
  log: LogTable,
  { after, filter, limit, upTo }: PageOptions & { readonly upTo?: Position | undefined }
) => {
  const { measuring, schema, sql } = log
  const isUpTo = upTo === undefined ? sql`` : sql`and (feed_key, position) <= ${rowValue(log, upTo)}`
  const rows = sql`select * from ${schema}.event_log
    where ${isAfter(log, after)} ${isUpTo} ${andMatches(sql, filter)}
    order by feed_key, position limit ${limit}`
  return sql<FeedRow>`select ${feedColumns(sql)} from ${fitting(sql, measuring, rows, "feed_key, position")} event_log
    order by event_log.feed_key, event_log.position`
}

/** A page of the events of some kinds, which the index `event_log_kind` finds. */
export const selectPageOfKinds = (
  log: LogTable,
  options: PageOptions & { readonly filter: ReadFilter & { readonly kinds: ReadonlyArray<string> } }
) => {
  const { schema, sql } = log
  // A union of one query for each kind, because the planner merges these in the order of the index and stops early. A
  // list of kinds would be sorted.
  const [first, ...others] = new Set(options.filter.kinds)
  const ofKind = (kind: string | undefined) =>
    sql`(select * from ${schema}.event_log
      where ${kind === undefined ? sql`false` : sql`${kindOf(sql)} = ${kind}`} and ${isAfter(log, options.after)} and ${isShown(log)}
      order by feed_key, position limit ${window})`
  const ofKinds = others.reduce((all, kind) => sql`${all} union all ${ofKind(kind)}`, sql`${ofKind(first)}`)
  const candidates = sql`(select * from (${ofKinds}) kinds order by feed_key, position limit ${window}) event_log`
  return selectPageOfCandidates(log, { ...options, filter: { ...options.filter, kinds: undefined } }, candidates)
}

// --- internal ---

/** For how many filters and limits the text is kept. */
const maxKnown = 100

// Values that stand for the position that the page begins after, for the chain, and for the time that the read is of. No filter has them,
// because names have no NUL.
const feedKeyValue = "\0feed_key"
const positionValue = "\0position"
const timeValue = "\0time"
const correlationValue = "\0correlation_id"
const madeByValue = "\0made_by"
const placeholder = `${feedKeyValue}-${positionValue}-${timeValue}` as Position

/** How many events one statement scans for matches of a filter. */
const window = 10_000

/** A row without the values that exceed their share of a page. */
type SmallRow = Omit<FeedRow, keyof Contents> & Contents

/** A column that only the rows at the end have: that of the window, and that of a position that is missing. */
interface WindowRow {
  readonly scanned?: string | null | undefined
}

const smallRowOf = ([
  position_and_id,
  timestamp,
  sequence,
  versioned_type,
  body,
  metadata,
  cause,
  scanned
]: Rows[number]) =>
  ({ position_and_id, timestamp, sequence, versioned_type, body, metadata, cause, scanned }) as unknown as SmallRow &
    WindowRow

/** A page of the events of a chain, which the index `event_log_correlation` finds. */
const selectPageOfChain = (log: LogTable, options: PageOptions & { readonly filter: ReadFilter }) => {
  const { schema, sql } = log
  const { correlationId, ...others } = options.filter
  const candidates = sql`(select * from ${schema}.event_log
    where correlation_id = ${correlationId} and ${isAfter(log, options.after)} and ${isShown(log)}
    order by feed_key, position limit ${window}) event_log`
  return selectPageOfCandidates(log, { ...options, filter: others }, candidates)
}

/**
 * A page of events that an index finds, however many other events there are. The statement scans a window of them for
 * matches of the rest of the filter, and to the end of the feed where there are fewer.
 */
const selectPageOfCandidates = (
  log: LogTable,
  { after, filter, limit }: PageOptions & { readonly filter: ReadFilter },
  candidates: Statement.Fragment
) => {
  const { measuring, schema, sql } = log
  return sql<SmallRow & WindowRow>`with page as materialized (
      select * from ${candidates} where ${matches(sql, filter)}
      order by feed_key, position limit ${limit + 1}
    ), last_candidate as materialized (
      select feed_key, position, timestamp, scanned from (
        select feed_key, position, timestamp, row_number() over (order by feed_key, position) as scanned from ${candidates}
        where (select count(*) from page) <= ${limit}
      ) counted order by scanned desc limit 1
    ), window_end as (
      select feed_key, position, timestamp, scanned from last_candidate where scanned = ${window}
      union all
      (
        select feed_key, position, timestamp, 0 from ${schema}.event_log
        where ${isAfter(log, after)} and ${isShown(log)}
          and (select count(*) from page) <= ${limit} and not exists (select 1 from last_candidate where scanned = ${window})
        order by feed_key desc, position desc limit 1
      )
    )
    select ${feedColumns(sql, smallOrNull(sql, measuring, limit))}, null::text as scanned from page event_log
    union all
    select ${positionColumns(sql)}, scanned::text from window_end`
}

/** The last row says that the event is missing that the page begins after. It is there only then. */
const selectPage = (log: LogTable, options: PageOptions) => {
  const { sql } = log
  return sql<SmallRow & WindowRow>`${selectEvents(log, options)}
    union all
    select null, null, null, null, null, null, null, ${lostMark(sql)} where ${isMissing(log, options.after)}`
}

const selectEvents = (log: LogTable, options: PageOptions) => {
  const { measuring, schema, sql } = log
  const { after, filter, limit } = options
  if (filter?.correlationId !== undefined) return selectPageOfChain(log, { ...options, filter })
  if (filter?.kinds !== undefined) {
    return selectPageOfKinds(log, { ...options, filter: { ...filter, kinds: filter.kinds } })
  }
  const columns = feedColumns(sql, smallOrNull(sql, measuring, limit))
  if (filter === undefined) {
    return sql<SmallRow & WindowRow>`(
        select ${columns}, null::text as scanned from ${schema}.event_log
        where ${isAfter(log, after)} and ${isShown(log)}
        order by event_log.feed_key, event_log.position limit ${limit + 1}
      )`
  }
  return sql<SmallRow & WindowRow>`with window_end as materialized (
      select feed_key, position, timestamp, scanned from (
        select feed_key, position, timestamp, row_number() over (order by feed_key, position) as scanned
        from (
          select feed_key, position, timestamp from ${schema}.event_log
          where ${isAfter(log, after)} and ${isShown(log)}
          order by feed_key, position limit ${window}
        ) events
      ) counted order by scanned desc limit 1
    )
    (
      select ${columns}, null::text as scanned from ${schema}.event_log
      where ${isAfter(log, after)} and (feed_key, position) <= (select feed_key, position from window_end)
        and ${matches(sql, filter)}
      order by event_log.feed_key, event_log.position limit ${limit + 1}
    )
    union all
    select ${positionColumns(sql)}, scanned::text from window_end`
}

const pageOf = (
  { after }: PageOptions,
  rows: ReadonlyArray<FeedRow>,
  isCut: boolean,
  windowEnd: (Pick<FeedRow, "position_and_id" | "timestamp"> & WindowRow) | undefined
): Page => {
  const last = isCut ? rows.at(-1) : (windowEnd ?? rows.at(-1))
  return {
    events: feedEventsOf(rows),
    position: last === undefined ? after : positionOfFeedRow(last),
    more: isCut || Number(windowEnd?.scanned) === window
  }
}
