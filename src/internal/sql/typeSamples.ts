/**
 * One or two events of each kind, type and version in the log: the oldest and the newest by their places in the table.
 * `feed.ts` calls it for `samples`.
 *
 * The statement goes from one type to the next by the index `event_log_types`, so it reads as many rows as there are
 * types, however long the log is. Equal entries of the index are in the order of their places in one table only, so the
 * partitions of a log are searched one by one. The samples are then read in groups. A group has the small values, and each large one
 * is read alone, because one event has up to 64 MB.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type * as Statement from "@effect/sql/Statement"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { type FeedEvent, order, type Position, type StreamPosition } from "../../EventFeed.js"
import type { StoreError } from "../../StoreError.js"
import { type Contents, isComplete, type LogTable, smallOrNull } from "../store/pageBytes.js"
import { type FeedRow, feedColumns, feedEventsOf } from "./feedRows.js"
import { relation } from "./logPartitions.js"

/** The samples of all kinds, or of these. */
export const samplesOf = (
  log: LogTable,
  query: <A>(statement: Effect.Effect<A, SqlError>) => Effect.Effect<A, StoreError>,
  kinds: ReadonlyArray<string> | undefined
): Stream.Stream<FeedEvent, StoreError> =>
  Stream.unwrap(
    Effect.map(findPlaces(log, query, kinds), (rows) =>
      Stream.fromIterable(rows.flatMap(placesOf)).pipe(
        Stream.grouped(groupSize),
        Stream.mapEffect((places) => query(selectGroup(log, Chunk.toReadonlyArray(places)))),
        Stream.flatMap(Stream.fromIterable),
        Stream.mapEffect((row) =>
          isComplete(row)
            ? Effect.succeed([row])
            : query(selectOne(log, { aggregateId: row.id.slice(1), sequence: Number(row.sequence) }))
        ),
        // An event that was deleted since it was found has no row.
        Stream.filterMap((rows) => Option.fromNullable(feedEventsOf(rows)[0]))
      )
    )
  )

// --- internal ---

/** How many samples one statement reads. */
const groupSize = 100

interface PlacesRow {
  readonly kind: string
  readonly type: string
  readonly version: number
  readonly first_id: string
  readonly first_sequence: number
  readonly first_position: Position
  readonly last_id: string
  readonly last_sequence: number
  readonly last_position: Position
}

type GroupRow = Omit<FeedRow, keyof Contents> & Contents & { readonly id: string }

// A text that may begin with any character has a dot in front, because PGlite drops U+FEFF at the start of a text.
const placesOf = (row: PlacesRow): ReadonlyArray<StreamPosition> => {
  const first = { aggregateId: row.first_id.slice(1), sequence: Number(row.first_sequence) }
  const last = { aggregateId: row.last_id.slice(1), sequence: Number(row.last_sequence) }
  return first.aggregateId === last.aggregateId && first.sequence === last.sequence ? [first] : [first, last]
}

/** The places of the samples: those of the log, or the oldest and the newest of its partitions. */
const findPlaces = (
  log: LogTable,
  query: <A>(statement: Effect.Effect<A, SqlError>) => Effect.Effect<A, StoreError>,
  kinds: ReadonlyArray<string> | undefined
): Effect.Effect<ReadonlyArray<PlacesRow>, StoreError> =>
  Effect.gen(function* () {
    const { schema, sql } = log
    const partitions = yield* query(
      sql<{ name: string }>`select inhrelid::regclass::text as name from pg_inherits
        where inhparent = ${relation(sql, schema, "event_log")}`
    )
    if (partitions.length === 0) return yield* query(selectPlaces(log, sql`${schema}.event_log`, kinds))
    const found = new Map<string, PlacesRow>()
    for (const { name } of partitions) {
      for (const row of yield* query(selectPlaces(log, sql.literal(name), kinds))) {
        const of = JSON.stringify([row.kind, row.type, row.version])
        found.set(of, outermost(row, found.get(of) ?? row))
      }
    }
    return [...found.values()]
  })

/** The first place and the last one of two rows of one type. */
const outermost = (a: PlacesRow, b: PlacesRow): PlacesRow => {
  const first = order(a.first_position, b.first_position) <= 0 ? a : b
  const last = order(a.last_position, b.last_position) > 0 ? a : b
  return {
    ...first,
    last_id: last.last_id,
    last_sequence: last.last_sequence,
    last_position: last.last_position
  }
}

/**
 * The kind, written otherwise than in `feedConditions.ts`. The planner takes the two for different values, so it does not read
 * a page of a kind by the index of types, and sort all events of that kind.
 */
const indexedKind = (sql: SqlClient.SqlClient): Statement.Fragment =>
  sql.literal("left(aggregate_id, greatest(strpos(aggregate_id, '/'), 1) - 1)")

/**
 * The places of the oldest and the newest event of each type. Each step compares whole rows of the index and takes the
 * next one. For a condition of equality that it expects to meet soon, the planner would scan the log.
 */
const selectPlaces = ({ sql }: LogTable, log: Statement.Fragment, kinds: ReadonlyArray<string> | undefined) => {
  const kind = indexedKind(sql)
  const position = sql.literal("feed_key::text || '-' || position::text")
  const foundKinds: Statement.Fragment =
    kinds === undefined
      ? sql`(select ${kind} as kind from ${log} order by ${kind} limit 1)
        union all
        select following.kind from kinds cross join lateral (
          select ${kind} as kind from ${log} where ${kind} > kinds.kind order by ${kind} limit 1
        ) following`
      : sql`select distinct unnest(${kinds as Array<string>}::text[]) collate "C" as kind`
  const next = (condition: Statement.Fragment) =>
    sql`select type collate "C" as type, version, aggregate_id, sequence, ${position} as place from ${log}
      where ${condition} order by ${kind}, type collate "C", version limit 1`
  return sql<PlacesRow>`with recursive kinds as (${foundKinds}), types as (
      select kinds.kind, first.* from kinds cross join lateral (${next(sql`${kind} = kinds.kind`)}) first
      union all
      select types.kind, following.* from types cross join lateral (
        ${next(sql`${kind} = types.kind and (type collate "C", version) > (types.type, types.version)`)}
      ) following
    )
    select '.' || types.kind as kind, '.' || types.type as type, types.version, '.' || types.aggregate_id as first_id,
      types.sequence as first_sequence, types.place as first_position,
      '.' || last.aggregate_id as last_id, last.sequence as last_sequence, last.place as last_position
    from types cross join lateral (
      select aggregate_id, sequence, ${position} as place from ${log}
      where (${kind}, type collate "C", version) <= (types.kind, types.type, types.version)
      order by ${kind} desc, type collate "C" desc, version desc limit 1
    ) last
    order by types.kind, types.type, types.version`
}

const selectGroup = ({ measuring, schema, sql }: LogTable, places: ReadonlyArray<StreamPosition>) => {
  const ids = places.map(({ aggregateId }) => aggregateId)
  const sequences = places.map(({ sequence }) => sequence)
  return sql<GroupRow>`select ${feedColumns(sql, smallOrNull(sql, measuring, groupSize))}, '.' || aggregate_id as id
    from unnest(${ids}::text[], ${sequences}::int[]) with ordinality as place (aggregate_id, sequence, number)
    join ${schema}.event_log using (aggregate_id, sequence) order by number`
}

const selectOne = ({ schema, sql }: LogTable, { aggregateId, sequence }: StreamPosition) =>
  sql<FeedRow>`select ${feedColumns(sql)} from ${schema}.event_log
    where aggregate_id = ${aggregateId} and sequence = ${sequence}`
