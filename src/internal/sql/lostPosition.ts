/**
 * Finds out that the log has lost the event at a reader's position. The reads of the feed use it (`feedPage.ts`, `feedHead.ts`).
 *
 * Every position is that of an event. Where the log has none there, or one of another time, its last events are gone. A failover to a replica
 * that lacked them does that, and a backup that was restored. New events then take the places up to the position, and the reader would never
 * see them. So the read fails.
 *
 * A replica may only lag, and so may the snapshot of a transaction that is not READ COMMITTED. There the position is lost only if an event
 * after it is shown, because they show events in the order of the feed.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type * as Statement from "@effect/sql/Statement"
import { beginning, type Position } from "../../EventFeed.js"
import { StoreError } from "../../StoreError.js"
import type { LogTable } from "../store/pageBytes.js"
import { rowValue, timeColumn, timeOf } from "./position.js"

/** What `lostMark` is where the position is lost, and where it is lost only if an event after it is shown. */
export const lost = "lost"
export const lostIfPassed = "lost if passed"

/** Whether the log has no event at the position, or another one. */
export const isMissing = (log: LogTable, position: Position): Statement.Fragment =>
  log.sql`${rowValue(log, position)} <> ${rowValue(log, beginning)} and not exists (
    select 1 from ${log.schema}.event_log where (feed_key, position) = ${rowValue(log, position)}
      and ${timeOf(position)}::text in ('', ${timeColumn(log.sql)})
  )`

/** One of the two texts, for a position that is missing. */
export const lostMark = (sql: SqlClient.SqlClient): Statement.Fragment =>
  sql.literal(`case when pg_is_in_recovery() or current_setting('transaction_isolation') <> 'read committed'
    then '${lostIfPassed}' else '${lost}' end`)

/** The failure of a read after a position that is lost. */
export const positionLost = (position: Position): StoreError =>
  new StoreError({
    reason: "Misconfigured",
    operation: "EventFeed",
    description: `the event at position ${position} is gone, so the log has lost its last events: the database is a replica that lacked them when it took over, or a backup that was restored and perhaps repaired. A subscription goes on from its checkpoint when it is started again. Another reader has to discard what it made of the lost events, and read on from a position before them`
  })
