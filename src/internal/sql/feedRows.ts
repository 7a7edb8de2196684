/**
 * The rows of events that the feed selects, and the events in them. Subscriptions and rebuilds read events so, too.
 *
 * Each column costs as much as a small body, so position and id share one, version and type do, and so does what caused
 * the event. No column begins with a text of the application, because PGlite drops U+FEFF at the start of a text. JSON is selected as text, so that no type parser
 * of the driver changes it.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type * as Statement from "@effect/sql/Statement"
import { identityOf, type StoredEvent } from "../../Event.js"
import type { FeedEvent, Position } from "../../EventFeed.js"
import { causeColumn, causeOf, typeOf, type VersionedType, versionedType } from "./eventColumns.js"
import { withTime } from "./position.js"

export interface FeedRow extends Pick<StoredEvent, "timestamp" | "sequence" | "body" | "metadata">, VersionedType {
  /** The position without the time of the event, a dot, and the id of the aggregate. */
  readonly position_and_id: string
  readonly cause: string | null
}

/** The columns of a `FeedRow`. */
export const feedColumns = (
  sql: SqlClient.SqlClient,
  contents = sql.literal("body::text, metadata::text")
): Statement.Fragment =>
  sql`feed_key::text || '-' || position::text || '.' || aggregate_id as position_and_id, timestamp::text, sequence::text, ${versionedType(sql)}, ${contents}, ${causeColumn(sql)}`

/** The columns of a `FeedRow` that has a position and nothing else. */
export const positionColumns = (sql: SqlClient.SqlClient): Statement.Fragment =>
  sql.literal("feed_key::text || '-' || position::text || '.', timestamp::text, null, null, null, null, null")

export const positionOfFeedRow = (row: Pick<FeedRow, "position_and_id" | "timestamp">): Position =>
  withTime(row.position_and_id.slice(0, row.position_and_id.indexOf(".")), row.timestamp)

/** The events of rows. No two of them share an object, because a caller may change what it got. */
export const feedEventsOf = (rows: ReadonlyArray<FeedRow>): ReadonlyArray<FeedEvent> => {
  const parseMetadata = makeMetadataParser()
  return rows.map((row) => {
    const dot = row.position_and_id.indexOf(".")
    const aggregateId = row.position_and_id.slice(dot + 1)
    const { id, kind } = identityOf(aggregateId)
    const { type, version } = typeOf(row)
    // One literal, because a spread amid others takes longer than the rest of it.
    const event: FeedEvent = {
      position: withTime(row.position_and_id.slice(0, dot), row.timestamp),
      timestamp: row.timestamp,
      aggregateId,
      kind,
      id,
      sequence: Number(row.sequence),
      type,
      version,
      body: JSON.parse(row.body),
      metadata: parseMetadata(row.metadata)
    }
    return row.cause === null ? event : Object.assign(event, causeOf(row.cause))
  })
}

// --- internal ---

/**
 * Parses the metadata of one event after another. Most repeat the text before them, and copying a flat object is
 * cheaper than parsing.
 */
const makeMetadataParser = (): ((text: string) => FeedEvent["metadata"]) => {
  let last: string | undefined
  let flat: FeedEvent["metadata"] | undefined
  return (text) => {
    if (text === last && flat !== undefined) return { ...flat }
    const metadata: FeedEvent["metadata"] = JSON.parse(text)
    if (text !== last) {
      last = text
      flat = Object.values(metadata).some((value) => typeof value === "object" && value !== null) ? undefined : metadata
    }
    return metadata
  }
}
