/** The size of an event log on disk: its events, the bytes of its table and of each index, and what a year of events adds. */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"

/** The bytes of a table, or of an index, with those of all partitions. */
export interface Part {
  readonly name: string
  readonly bytes: number
}

export interface LogSize {
  readonly events: number
  /** 1 where the log is one table. */
  readonly partitions: number
  /** The table first, then its indexes by name. */
  readonly parts: ReadonlyArray<Part>
  readonly bytes: number
}

/** The schema has no event log. */
export class NoLog extends Data.TaggedError("NoLog")<{ readonly schema: string }> {
  override get message() {
    return `The schema ${this.schema} of this database has no event log.`
  }
}

/** Measures the log in a schema. It only reads, and counts all events, which takes some seconds on a large log. */
export const measure = (schema: string) =>
  Effect.gen(function* () {
    const sql = (yield* SqlClient.SqlClient).withoutTransforms()
    const [log] = yield* sql<{ id: number; partitions: number }>`
      select c.oid::int8::int as id, (select count(*)::int from pg_inherits where inhparent = c.oid) as partitions
      from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = ${schema} and c.relname = 'event_log'`
    if (log === undefined) return yield* new NoLog({ schema })
    const [counted] = yield* sql<{
      events: string
    }>`select count(*)::text as events from ${sql.literal(quoted(schema))}.event_log`
    // An index of a partition counts for the index of the log that it is a part of.
    const parts = yield* sql<{ name: string; bytes: string }>`
      with tables as (
        select ${log.id}::int as id union all select inhrelid::int8::int from pg_inherits where inhparent = ${log.id}::int
      )
      select name, bytes::text from (
        select 1 as step, 'event_log' as name, sum(pg_table_size(id::oid)) as bytes from tables
        union all
        select 2, c.relname, sum(pg_relation_size(i.indexrelid)) from tables
          join pg_index i on i.indrelid = id::oid
          left join pg_inherits p on p.inhrelid = i.indexrelid
          join pg_class c on c.oid = coalesce(p.inhparent, i.indexrelid)
        group by c.relname
      ) parts order by step, name`
    const sizes = parts.map(({ bytes, name }): Part => ({ name, bytes: Number(bytes) }))
    return {
      events: Number(counted?.events),
      partitions: Math.max(1, log.partitions),
      parts: sizes,
      bytes: sizes.reduce((sum, { bytes }) => sum + bytes, 0)
    } satisfies LogSize
  })

/** The bytes that a year of such events adds to the disk. */
export const bytesOfYear = ({ bytes, events }: LogSize, eventsADay: number): number =>
  (bytes / events) * eventsADay * 365

// --- internal ---

/** As one identifier, also where the name has a dot. */
const quoted = (name: string): string => `"${name.replaceAll('"', '""')}"`
