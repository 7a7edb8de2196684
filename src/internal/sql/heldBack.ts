/**
 * The open transaction that the feed waits for, and the committed events that it holds back. `feed.ts` reads them for
 * `EventFeed.heldBack`. On a log with a counter nothing is held back.
 *
 * The feed shows keys below the oldest open transaction that has an id, in any database of the server. `pg_locks` shows
 * that transaction to every role, because each transaction holds a lock on its own id. `pg_stat_activity` shows the
 * rest of a session only to its own role, to superusers and to members of `pg_read_all_stats`.
 */
import type { Fragment } from "@effect/sql/Statement"
import * as Option from "effect/Option"
import type { HeldBack, OpenTransaction } from "../../EventFeed.js"
import { type Timestamp, toMillis } from "../../Timestamp.js"
import type { LogTable } from "../store/pageBytes.js"

/** The held back events of a condition, and the transaction that they wait for. */
export const selectHeldBack = ({ schema, sql }: LogTable, condition: Fragment) =>
  sql<HeldBackRow>`with oldest as materialized (
      select pg_snapshot_xmin(pg_current_snapshot()) as id, pg_snapshot_xmax(pg_current_snapshot()) as next
    ), waiting as materialized (
      select count(*)::text as events, min(timestamp::text) as first
      from ${schema}.event_log
      where feed_key >= (select id from oldest) and feed_key < (select next from oldest) ${condition}
    )
    select w.events, w.first, a.pid, p.gid as prepared, coalesce(a.datname, p.database)::text as database,
      coalesce(a.usename, p.owner)::text as user_name, a.application_name, a.state,
      (extract(epoch from coalesce(a.xact_start, p.prepared)) * 1000)::float8 as started_at
    from waiting w
    left join lateral (
      select pid, transactionid from pg_locks
      where w.events <> '0' and locktype = 'transactionid' and mode = 'ExclusiveLock' and granted
        and transactionid = (select id::xid from oldest)
      limit 1
    ) l on true
    left join pg_stat_activity a on a.pid = l.pid
    left join pg_prepared_xacts p on p.transaction = l.transactionid and l.pid is null`

/** The result of the statement; none where no event is held back. */
export const heldBackOf = (row: HeldBackRow | undefined): Option.Option<HeldBack> => {
  if (row === undefined || row.first === null) return Option.none()
  const transaction: OpenTransaction = {
    pid: Option.map(Option.fromNullable(row.pid), Number),
    prepared: Option.fromNullable(row.prepared),
    database: Option.fromNullable(row.database),
    user: Option.fromNullable(row.user_name),
    applicationName: Option.filter(Option.fromNullable(row.application_name), (name) => name !== ""),
    state: Option.fromNullable(row.state),
    startedAt: Option.map(Option.fromNullable(row.started_at), Math.floor)
  }
  return Option.some({
    events: Number(row.events),
    since: toMillis(row.first),
    transaction: row.pid === null && row.prepared === null ? Option.none() : Option.some(transaction)
  })
}

// --- internal ---

interface HeldBackRow {
  readonly events: string
  readonly first: Timestamp | null
  readonly pid: number | null
  readonly prepared: string | null
  readonly database: string | null
  readonly user_name: string | null
  readonly application_name: string | null
  readonly state: string | null
  readonly started_at: number | null
}
