/**
 * The conditions of statements about the feed: which events are shown, and which a filter lets through.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type * as Statement from "@effect/sql/Statement"
import type { Position } from "../../EventFeed.js"
import type { LogTable } from "../store/pageBytes.js"
import type { ReadFilter } from "../store/readOptions.js"
import { isAfterNumber, isBeforeOwn } from "./feedCounter.js"
import { rowValue } from "./position.js"

/** An event after the position. */
export const isAfter = (log: LogTable, position: Position): Statement.Fragment =>
  log.feedOrder === "counter"
    ? isAfterNumber(log.sql, position)
    : log.sql`(feed_key, position) > ${rowValue(log, position)}`

/** An event that the feed shows: its key is below the oldest open transaction. With a counter it is every event but the transaction's own. */
export const isShown = ({ feedOrder, schema, sql }: LogTable): Statement.Fragment =>
  feedOrder === "counter"
    ? isBeforeOwn({ schema, sql })
    : sql.literal("feed_key < pg_snapshot_xmin(pg_current_snapshot())")

/** An event that the filter lets through. */
export const matches = (sql: SqlClient.SqlClient, filter: ReadFilter): Statement.Fragment =>
  sql.and([
    ...(filter.types === undefined ? [] : [sql`type = any(${filter.types as Array<string>}::text[])`]),
    ...(filter.kinds === undefined ? [] : [sql`${kindOf(sql)} = any(${filter.kinds as Array<string>}::text[])`]),
    ...(filter.correlationId === undefined ? [] : [sql`correlation_id = ${filter.correlationId}`]),
    ...(filter.madeBy === undefined ? [] : [sql`timestamp <= ${filter.madeBy}::uuid`]),
    ...(filter.slice === undefined
      ? []
      : [sql`${sliceOf(sql, sql`aggregate_id`, sql`${filter.slice.of}::int`)} = ${filter.slice.index}`])
  ])

/** The condition of a filter, to follow other conditions. It is empty without a filter. */
export const andMatches = (sql: SqlClient.SqlClient, filter: ReadFilter | undefined): Statement.Fragment =>
  filter === undefined ? sql`` : sql`and ${matches(sql, filter)}`

/**
 * The kind of an event's aggregate, equal to that of `Event.identityOf`. The index `event_log_kind` has this
 * expression.
 */
export const kindOf = (sql: SqlClient.SqlClient): Statement.Fragment =>
  sql.literal("left(aggregate_id, greatest(strpos(aggregate_id, '/') - 1, 0))")

/**
 * The slice of an aggregate, of so many. It is a hash that is equal on every server and in every version, because an
 * aggregate must stay in its slice.
 */
export const sliceOf = (
  sql: SqlClient.SqlClient,
  aggregateId: Statement.Fragment,
  of: Statement.Fragment
): Statement.Fragment =>
  sql`('x' || encode(substring(sha256(convert_to(${aggregateId}, 'UTF8')) from 1 for 3), 'hex'))::bit(24)::int % ${of}`
