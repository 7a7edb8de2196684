/**
 * Positions of the feed as two columns: `feed_key` and `position`. The feed, the leases and the rebuilds read and write
 * them so.
 */
import type * as Statement from "@effect/sql/Statement"
import { beginning, type Position } from "../../EventFeed.js"
import type { LogTable } from "../store/pageBytes.js"
import { keyTypeOf } from "./feedOrder.js"

/** The columns of a position, selected as text. Both are null where a left join found no row. */
export interface PositionRow {
  readonly feed_key: string | null
  readonly position: string | null
}

/** The position of a row; the beginning without one. */
export const positionOf = (row: PositionRow | undefined): Position =>
  row === undefined || row.feed_key === null ? beginning : (`${row.feed_key}-${row.position}` as Position)

/** The two columns of a position, as parameters. */
export const columnsOf = (position: Position): readonly [feedKey: string, position: string] => {
  const [feedKey = "0", number = "0"] = position.split("-")
  return [feedKey, number]
}

/** A position as a row value, which Postgres compares by both columns. */
export const rowValue = (log: Pick<LogTable, "feedOrder" | "sql">, position: Position): Statement.Fragment => {
  const [feedKey, number] = columnsOf(position)
  return log.sql`(${feedKey}::${keyTypeOf(log)}, ${number}::bigint)`
}
