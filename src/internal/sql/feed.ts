/**
 * The feed of the SQL store.
 *
 * Positions are handed out before their transaction commits, so the one that commits last may have the lowest. A reader that follows them
 * would skip what commits late. Hence the order is `(feed_key, position)`. The key of an event is the highest of
 *
 * - the id of the transaction that wrote it,
 * - the key of the event before it in its stream,
 * - the highest key that its transaction has used before,
 * - if projections handle it on a server, the id of the newest transaction that had ended when they had run.
 *
 * Only events with a key below the oldest transaction that is still open are shown.
 *
 * - **Nothing is skipped.** Whatever a snapshot can't see yet was written by a transaction that is open in it, or began later. So its key
 *   is not below the oldest open transaction of that snapshot, and the reader has not passed it.
 * - **Each aggregate keeps its order.** A transaction has its id from its first write, and may reach a stream long after transactions with
 *   higher ids; hence the second part of the key. Where two keys are equal the position decides. It rises along a stream, because an event
 *   is inserted only when the one before it can be seen, and takes its position then.
 * - **Each transaction keeps its order**, by the third part: a cause stands before its effect on another aggregate.
 * - **Strong projections keep their order**, by the fourth part. A projection may have waited for a transaction that got its id later, such as
 *   one that frees a unique value. So its events move behind the events of that transaction, by a new key and new positions, before
 *   COMMIT (`place_in_feed` in `functions.ts`). A rebuild then projects them in an order that succeeds.
 * - **It goes on.** Every key is the id of a transaction that has begun, so the oldest open transaction passes it some time.
 *
 * A writer never waits for this, and a transaction that is rolled back leaves no hole to wait at. An open transaction holds back what is
 * committed after its first write, until it ends.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type * as Statement from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import { identityOf, type StoredEvent } from "../../Event.js"
import {
  beginning,
  type EventFeedService,
  type FeedEvent,
  type Filter,
  type Page,
  type Position
} from "../../EventFeed.js"
import { StoreError } from "../../StoreError.js"
import { withSpanIfTraced } from "../runtime/tracing.js"
import { type Contents, fitting, isComplete, type LogTable, smallOrNull } from "../store/pageBytes.js"
import { validateFeedRead } from "../store/readOptions.js"
import { validateStreamPosition } from "../store/storedRecord.js"
import { type HeadChange, makeHeadWatcher } from "./headWatcher.js"
import { heldBackOf, selectHeldBack } from "./heldBack.js"
import type { Notifications } from "./notifications.js"
import { execute } from "./pg/execute.js"

export const makeSqlFeed = (
  log: LogTable,
  notifications: Notifications,
  pollInterval: number
): Effect.Effect<EventFeedService, never, Scope.Scope> => {
  const { schema, sql } = log
  const statement = <A>(effect: Effect.Effect<A, SqlError>): Effect.Effect<A, StoreError> =>
    execute(sql, { operation, phase: "reading" }, effect)

  const head = Effect.flatMap(statement(selectHead(sql, schema)), ([row]) =>
    row?.restored ? Effect.fail(restored()) : Effect.succeed(positionOf(row))
  )

  const look = (since: Position | undefined): Effect.Effect<HeadChange, StoreError> =>
    since === undefined
      ? Effect.map(head, (position): HeadChange => ({ head: position, contents: undefined }))
      : Effect.flatMap(
          statement(selectNews(sql, schema, since)),
          ([row]): Effect.Effect<HeadChange, StoreError> =>
            row === undefined
              ? Effect.succeed({ head: since, contents: undefined })
              : row.restored
                ? Effect.fail(restored())
                : Effect.succeed({
                    head: Number(row.seen) === 0 ? since : positionOf(row),
                    contents: { types: namesOf(row.types), kinds: namesOf(row.kinds) }
                  })
        )

  return Effect.map(
    makeHeadWatcher(look, notifications, pollInterval),
    (awaitAppend): EventFeedService => ({
      read: (options) =>
        Effect.flatMap(validateFeedRead(options), (asked) =>
          Effect.flatMap(statement(selectPage(log, asked)), (rows): Effect.Effect<Page, StoreError> => {
            const { bound, found } = partsOfPage(rows)
            const first = found.slice(0, asked.limit)
            if (first.every(isComplete)) return Effect.succeed(pageOf(asked, first, found.length > asked.limit, bound))
            return Effect.map(
              statement(selectFitting(log, { ...asked, upTo: positionOfRow(first.at(-1)) })),
              (fitting) => pageOf(asked, fitting, fitting.length < found.length, bound)
            )
          }).pipe(withSpanIfTraced("EventFeed.read", { attributes: { after: asked.after, limit: asked.limit } }))
        ),
      head: head.pipe(withSpanIfTraced("EventFeed.head", {})),
      count: (options) =>
        Effect.flatMap(validateFeedRead(options), ({ after, filter }) =>
          Effect.map(
            statement(
              sql<{ count: string }>`select count(*)::text as count from ${schema}.event_log
              where ${behind(sql, after)} and ${shown(sql)} ${filter === undefined ? sql`` : sql`and ${matches(sql, filter)}`}`
            ),
            ([row]) => Number(row?.count ?? 0)
          )
        ),
      heldBack: (filter) =>
        Effect.flatMap(validateFeedRead({ filter }), (asked) =>
          Effect.map(
            statement(selectHeldBack(log, asked.filter === undefined ? sql`` : sql`and ${matches(sql, asked.filter)}`)),
            ([row]) => heldBackOf(row)
          )
        ),
      positionOf: (place) =>
        Effect.flatMap(validateStreamPosition("EventFeed.positionOf", place), ({ aggregateId, minSequence }) =>
          Effect.map(
            statement(
              sql<PlaceRow>`select feed_key::text, position::text from ${schema}.event_log
              where aggregate_id = ${aggregateId} and sequence = ${minSequence}`
            ),
            ([row]) => Option.map(Option.fromNullable(row), positionOf)
          )
        ),
      awaitAppend: (after, filter) =>
        Effect.flatMap(validateFeedRead({ after, filter }), () => awaitAppend(after, filter))
    })
  )
}

/** The two parts of a position, as parameters. */
export const partsOf = (position: Position): readonly [feedKey: string, position: string] => {
  const [feedKey = "0", place = "0"] = position.split("-")
  return [feedKey, place]
}

/** The position of a row that has its two parts as text. */
export const positionOf = (row: PlaceRow | undefined): Position =>
  row === undefined || row.feed_key === null ? beginning : (`${row.feed_key}-${row.position}` as Position)

export interface PlaceRow {
  readonly feed_key: string | null
  readonly position: string | null
}

/** The columns of a `FeedRow`. */
export const feedColumns = (sql: SqlClient.SqlClient, contents = sql.literal("body::text, metadata::text")) =>
  // Few columns, since each costs as much as what is in it. What may begin with anything stands behind something else: see `eventOf`.
  sql`feed_key::text || '-' || position::text || '.' || aggregate_id as place, timestamp::text, sequence, '.' || type as type, ${contents}`

export interface FeedRow extends Omit<StoredEvent, "aggregateId"> {
  /** The position, a dot, and the aggregate's id. */
  readonly place: string
}

/** The events of rows. No two of them have an object in common, because a caller may change what it got. */
export const feedEventsOf = (rows: ReadonlyArray<FeedRow>): ReadonlyArray<FeedEvent> => {
  const metadataOf = metadataReader()
  return rows.map((row) => {
    const dot = row.place.indexOf(".")
    const aggregateId = row.place.slice(dot + 1)
    const { id, kind } = identityOf(aggregateId)
    return {
      position: row.place.slice(0, dot) as Position,
      timestamp: row.timestamp,
      aggregateId,
      kind,
      id,
      sequence: Number(row.sequence),
      type: row.type.slice(1),
      body: JSON.parse(row.body),
      metadata: metadataOf(row.metadata)
    }
  })
}

/** The condition that an event is one of those that the filter lets through. */
const matches = (sql: SqlClient.SqlClient, filter: Filter): Statement.Fragment =>
  sql.and([
    ...(filter.types === undefined ? [] : [sql`type = any(${filter.types as Array<string>}::text[])`]),
    ...(filter.kinds === undefined ? [] : [sql`${kindOf(sql)} = any(${filter.kinds as Array<string>}::text[])`]),
    ...(filter.slice === undefined
      ? []
      : // A hash that is the same on every server and in every version: an aggregate must stay in its slice.
        [sql`${sliceOf(sql, sql`aggregate_id`, sql`${filter.slice.of}::int`)} = ${filter.slice.index}`])
  ])

/** The kind of an event's aggregate, as `Event.identityOf` tells it. The index `event_log_kind` has this expression. */
export const kindOf = (sql: SqlClient.SqlClient): Statement.Fragment =>
  sql.literal("left(aggregate_id, greatest(strpos(aggregate_id, '/') - 1, 0))")

/** The slice that an aggregate is in, of so many. */
export const sliceOf = (sql: SqlClient.SqlClient, aggregateId: Statement.Fragment, of: Statement.Fragment) =>
  sql`('x' || encode(substring(sha256(convert_to(${aggregateId}, 'UTF8')) from 1 for 3), 'hex'))::bit(24)::int % ${of}`

// --- internal ---

const operation = "EventFeed"

/** Reads the metadata of one event after another. Most have the text of the one before, and a flat object is cheaper to copy than to parse. */
const metadataReader = (): ((text: string) => FeedEvent["metadata"]) => {
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

/** How far one statement looks for events that a filter lets through. */
const window = 10_000

/** How far one look for news goes; where more has come, the next look goes on. */
const newsWindow = 5000

const xmin = "pg_snapshot_xmin(pg_current_snapshot())"

const behind = (sql: SqlClient.SqlClient, after: Position): Statement.Fragment => {
  const [feedKey, position] = partsOf(after)
  return sql`(feed_key, position) > (${feedKey}::xid8, ${position}::bigint)`
}

const shown = (sql: SqlClient.SqlClient) => sql.literal(`feed_key < ${xmin}`)

/** What a page is asked for. */
interface Asked {
  readonly after: Position
  readonly limit: number
  readonly filter: Filter | undefined
}

/** A row of which values are missing that have more than their share of a page. */
type SmallRow = Omit<FeedRow, keyof Contents> & Contents

interface WindowRow {
  /** Of the row that ends the window. */
  readonly scanned: number | null
}

const selectPage = ({ measuring, schema, sql }: LogTable, { after, filter, limit }: Asked) => {
  if (filter?.kinds !== undefined) {
    return selectPageOfKinds({ measuring, schema, sql }, { after, filter: { ...filter, kinds: filter.kinds }, limit })
  }
  const columns = feedColumns(sql, smallOrNull(sql, measuring, limit))
  if (filter === undefined) {
    return sql<SmallRow & Partial<WindowRow>>`select ${columns} from ${schema}.event_log
      where ${behind(sql, after)} and ${shown(sql)}
      order by event_log.feed_key, event_log.position limit ${limit + 1}`
  }
  return sql<SmallRow & Partial<WindowRow>>`with bound as materialized (
      select feed_key, position, scanned from (
        select feed_key, position, row_number() over (order by feed_key, position) as scanned
        from (
          select feed_key, position from ${schema}.event_log
          where ${behind(sql, after)} and ${shown(sql)}
          order by feed_key, position limit ${window}
        ) places
      ) counted order by scanned desc limit 1
    )
    (
      select ${columns}, null::int as scanned from ${schema}.event_log
      where ${behind(sql, after)} and (feed_key, position) <= (select feed_key, position from bound)
        and ${matches(sql, filter)}
      order by event_log.feed_key, event_log.position limit ${limit + 1}
    )
    union all
    select feed_key::text || '-' || position::text || '.', null, null, null, null, null, scanned::int from bound`
}

/**
 * The rows after a position, as many as a page can have. With `upTo` they are those that a page has found; without it, all that the
 * transaction around can see.
 */
export const selectFitting = (
  { measuring, schema, sql }: LogTable,
  { after, filter, limit, upTo }: Asked & { readonly upTo?: Position | undefined }
) => {
  const [feedKey, position] = partsOf(upTo ?? after)
  const isUpTo = upTo === undefined ? sql`` : sql`and (feed_key, position) <= (${feedKey}::xid8, ${position}::bigint)`
  const rows = sql`select * from ${schema}.event_log
    where ${behind(sql, after)} ${isUpTo} ${filter === undefined ? sql`` : sql`and ${matches(sql, filter)}`}
    order by feed_key, position limit ${limit}`
  return sql<FeedRow>`select ${feedColumns(sql)} from ${fitting(sql, measuring, rows, "feed_key, position")} event_log
    order by event_log.feed_key, event_log.position`
}

/**
 * A page of the events of some kinds: the index leads to them, however many of other kinds there are between. It looks through as many of
 * their events as a window has, and to the end of the feed where there are fewer.
 */
export const selectPageOfKinds = (
  { measuring, schema, sql }: LogTable,
  { after, filter, limit }: Asked & { readonly filter: Filter & { readonly kinds: ReadonlyArray<string> } }
) => {
  // One after the other in a union, and not as a list: only so the planner merges them in the order of the index, and stops early.
  const [first, ...others] = new Set(filter.kinds)
  const ofKind = (kind: string | undefined) =>
    sql`(select * from ${schema}.event_log
      where ${kind === undefined ? sql`false` : sql`${kindOf(sql)} = ${kind}`} and ${behind(sql, after)} and ${shown(sql)}
      order by feed_key, position limit ${window})`
  const ofKinds = others.reduce((all, kind) => sql`${all} union all ${ofKind(kind)}`, sql`${ofKind(first)}`)
  const candidates = sql`(select * from (${ofKinds}) kinds order by feed_key, position limit ${window}) event_log`
  return sql<SmallRow & Partial<WindowRow>>`with page as materialized (
      select * from ${candidates} where ${matches(sql, { ...filter, kinds: undefined })}
      order by feed_key, position limit ${limit + 1}
    ), looked as materialized (
      select feed_key, position, scanned from (
        select feed_key, position, row_number() over (order by feed_key, position) as scanned from ${candidates}
        where (select count(*) from page) <= ${limit}
      ) counted order by scanned desc limit 1
    ), bound as (
      select feed_key, position, scanned from looked where scanned = ${window}
      union all
      (
        select feed_key, position, 0 from ${schema}.event_log
        where ${behind(sql, after)} and ${shown(sql)}
          and (select count(*) from page) <= ${limit} and not exists (select 1 from looked where scanned = ${window})
        order by feed_key desc, position desc limit 1
      )
    )
    select ${feedColumns(sql, smallOrNull(sql, measuring, limit))}, null::int as scanned from page event_log
    union all
    select feed_key::text || '-' || position::text || '.', null, null, null, null, null, scanned::int from bound`
}

/** The rows of events, and the one that ends the window of a filter. */
const partsOfPage = (rows: ReadonlyArray<SmallRow & Partial<WindowRow>>) => {
  const bound = rows.findLast(({ scanned }) => scanned !== null && scanned !== undefined)
  return { bound, found: bound === undefined ? rows : rows.filter((row) => row !== bound) }
}

const positionOfRow = (row: Pick<FeedRow, "place"> | undefined): Position | undefined =>
  row && (row.place.slice(0, row.place.indexOf(".")) as Position)

const pageOf = (
  { after }: Asked,
  rows: ReadonlyArray<FeedRow>,
  isCut: boolean,
  bound: (Pick<FeedRow, "place"> & Partial<WindowRow>) | undefined
): Page => {
  const position = positionOfRow(isCut ? rows.at(-1) : (bound ?? rows.at(-1))) ?? after
  return { events: feedEventsOf(rows), position, more: isCut || Number(bound?.scanned) === window }
}

const selectHead = (sql: SqlClient.SqlClient, schema: Statement.Fragment) =>
  sql<
    PlaceRow & { readonly restored: boolean }
  >`select h.feed_key::text, h.position::text, ${fromTheFuture(sql, schema)} as restored
    from (select 1) one left join lateral (
      select feed_key, position from ${schema}.event_log where ${shown(sql)}
      order by feed_key desc, position desc limit 1
    ) h on true`

interface NewsRow extends PlaceRow {
  readonly seen: number
  readonly types: string | null
  readonly kinds: string | null
  readonly restored: boolean
}

const selectNews = (sql: SqlClient.SqlClient, schema: Statement.Fragment, since: Position) =>
  sql<NewsRow>`with news as materialized (
      select feed_key, position, type, ${kindOf(sql)} as aggregate from ${schema}.event_log
      where ${behind(sql, since)} and ${shown(sql)}
      order by feed_key, position limit ${newsWindow}
    )
    select h.feed_key::text, h.position::text, k.seen, k.types, k.kinds,
      ${fromTheFuture(sql, schema)} as restored
    from (
      select count(*)::int as seen, json_agg(distinct type)::text as types, json_agg(distinct aggregate)::text as kinds
      from news
    ) k left join lateral (
      select feed_key, position from news order by feed_key desc, position desc limit 1
    ) h on true`

/**
 * Whether an event has the key of a transaction that has not begun: such events come from a database that had another history. The
 * transaction around sees its own events, whose key may be above its snapshot.
 */
const fromTheFuture = (sql: SqlClient.SqlClient, schema: Statement.Fragment) =>
  sql`exists (
    select 1 from ${schema}.event_log where feed_key >= pg_snapshot_xmax(pg_current_snapshot())
      and feed_key > coalesce(
        greatest(pg_current_xact_id_if_assigned(), nullif(current_setting('effect_maestro.feed_key', true), '')::xid8),
        '0'::xid8
      )
  )`

const namesOf = (json: string | null): ReadonlySet<string> => new Set(json === null ? [] : JSON.parse(json))

const restored = (): StoreError =>
  new StoreError({
    reason: "Misconfigured",
    operation,
    description:
      "the event log was restored from a dump into a database whose transaction ids start anew, so the feed can't go on: run SqlStore.repairAfterRestore"
  })
