/**
 * Columns of the event log that share one column of a row, because each column of a row costs as much as a small body.
 * The reads of streams and of the feed select them.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type * as Statement from "@effect/sql/Statement"
import type { Event } from "../../Event.js"
import type { Timestamp } from "../../Timestamp.js"

/** The version, a dot, and the type of an event. The feed leaves version 1 out, because the text of a number takes time. */
export interface VersionedType {
  readonly versioned_type: string
}

export const versionedType = (sql: SqlClient.SqlClient): Statement.Fragment =>
  sql.literal("case version when 1 then '.' || type else version::text || '.' || type end as versioned_type")

export const typeOf = ({ versioned_type }: VersionedType): Pick<Event, "type" | "version"> => {
  const dot = versioned_type.indexOf(".")
  return {
    type: versioned_type.slice(dot + 1),
    version: dot === 0 ? 1 : Number(versioned_type.slice(0, dot))
  }
}

/** What caused an event, or null if that is not known. Only the last of its three parts may have spaces, also by hand. */
export const causeColumn = (sql: SqlClient.SqlClient): Statement.Fragment =>
  sql.literal(
    `case when causation_id is null and traceparent is null then '  ' || correlation_id else coalesce(causation_id::text, '') || ' ' || coalesce(replace(traceparent, ' ', ''), '') || ' ' || coalesce(correlation_id, '') end as cause`
  )

export const causeOf = (cause: string): Pick<Event, "correlationId" | "causationId" | "traceparent"> => {
  // Most events have a chain and nothing else.
  if (cause.startsWith("  ") && cause.length > 2) return { correlationId: cause.slice(2) }
  const first = cause.indexOf(" ")
  const second = cause.indexOf(" ", first + 1)
  const correlationId = cause.slice(second + 1)
  const traceparent = cause.slice(first + 1, second)
  return {
    ...(correlationId !== "" && { correlationId }),
    // The column has the type of the timestamp, and commits check it.
    ...(first > 0 && { causationId: cause.slice(0, first) as Timestamp }),
    ...(traceparent !== "" && { traceparent })
  }
}
