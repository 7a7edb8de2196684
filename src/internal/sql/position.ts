/**
 * Positions of the feed as columns: `feed_key`, `position` and `event_time`. The feed, the leases and the rebuilds read and write
 * them so.
 *
 * The first two are the place. The third is the time of the event there, so that a reader notices when another event has taken the
 * place (`lostPosition.ts`). It is empty in the position before all events, and where a repair has moved a checkpoint.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type * as Statement from "@effect/sql/Statement"
import { beginning, type Position } from "../../EventFeed.js"
import type { LogTable } from "../store/pageBytes.js"
import { keyTypeOf } from "./feedOrder.js"

/** The columns of a position, selected as text. All are null where a left join found no row. */
export interface PositionRow {
  readonly feed_key: string | null
  readonly position: string | null
  readonly event_time: string | null
}

/** The position of a row; the beginning without one. */
export const positionOf = (row: PositionRow | undefined): Position => {
  if (row === undefined || row.feed_key === null) return beginning
  const place = `${row.feed_key}-${row.position}`
  return (row.event_time ? `${place}-${row.event_time}` : place) as Position
}

/** The position of an event, from its place and its timestamp. */
export const withTime = (place: string, timestamp: string): Position =>
  `${place}-${timestamp.slice(0, 8)}${timestamp.slice(9, 13)}` as Position

/** The place of a position, as parameters. */
export const placeOf = (position: Position): readonly [feedKey: string, number: string] => {
  const [feedKey = "0", number = "0"] = position.split("-")
  return [feedKey, number]
}

/** The time in a position, or an empty text. */
export const timeOf = (position: Position): string => position.split("-")[2] ?? ""

/** All columns of a position, as parameters. */
export const columnsOf = (position: Position): readonly [feedKey: string, number: string, time: string] => [
  ...placeOf(position),
  timeOf(position)
]

/** The place of a position as a row value, which Postgres compares by both columns. */
export const rowValue = (log: Pick<LogTable, "feedOrder" | "sql">, position: Position): Statement.Fragment => {
  const [feedKey, number] = placeOf(position)
  return log.sql`(${feedKey}::${keyTypeOf(log)}, ${number}::bigint)`
}

/** The values of `feed_key, position, event_time`. */
export const positionValues = (log: Pick<LogTable, "feedOrder" | "sql">, position: Position): Statement.Fragment => {
  const [feedKey, number, time] = columnsOf(position)
  return log.sql`${feedKey}::${keyTypeOf(log)}, ${number}::bigint, ${time}::text`
}

/** The columns of a `PositionRow`, of a table that has them. */
export const storedPosition = (sql: SqlClient.SqlClient): Statement.Fragment =>
  sql.literal("feed_key::text, position::text, event_time")

/** The columns of a `PositionRow`, of events. */
export const eventPosition = (sql: SqlClient.SqlClient): Statement.Fragment =>
  sql`feed_key::text, position::text, ${timeColumn(sql)} as event_time`

/** The time of an event: the milliseconds of its timestamp, as 12 hexadecimal digits. */
export const timeColumn = (sql: SqlClient.SqlClient): Statement.Fragment =>
  sql.literal("replace(left(timestamp::text, 13), '-', '')")
