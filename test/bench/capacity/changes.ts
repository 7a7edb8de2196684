/** The time of what changes or cleans up a whole log: migrations, the repair after a restore, vacuum, and partitions. */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { SqlStore } from "effect-maestro"
import pg from "pg"
import { type Bytes, bytesOf, measured } from "./log.js"

/** What a change took, and the bytes of the log before and after it. */
export interface Change {
  readonly seconds: number
  readonly wal: number
  readonly before: Bytes
  readonly after: Bytes
}

export interface Migrations {
  /** Seconds of a column with a constant default and a check of it, as the migration of `version`: the check reads the log. */
  readonly column: number
  /** Seconds of a column with a constant default and nothing else. */
  readonly columnUnchecked: number
  /** Seconds of the index `event_log_types`, by the statement of its migration. */
  readonly index: number
}

/** Runs statements as those of the migrations, and rolls each back. The log is not open by the library meanwhile. */
export const measureMigrations = (url: string): Promise<Migrations> =>
  withPool(url, async (pool) => {
    const add = "alter table maestro.event_log add column added int not null default 1"
    const { rows } = await pool.query<{ definition: string }>(
      "select pg_get_indexdef('maestro.event_log_types'::regclass) as definition"
    )
    return {
      column: await rolledBack(pool, [], `${add} check (added > 0)`),
      columnUnchecked: await rolledBack(pool, [], add),
      index: await rolledBack(pool, ["drop index maestro.event_log_types"], rows[0]?.definition ?? "")
    }
  })

/**
 * Gives the last event a key that no transaction has had, as a dump brings such keys to a new server, and repairs the log. The
 * copy has no map of visible pages until the vacuum after it.
 */
export const measureRepair = (url: string): Promise<{ readonly repair: Change; readonly vacuum: Change }> =>
  withPool(url, async (pool) => {
    await pool.query(`update maestro.event_log set feed_key = (pg_current_xact_id()::text::bigint + 1000000)::text::xid8
      where (feed_key, position) = (select feed_key, position from maestro.event_log order by 1 desc, 2 desc limit 1)`)
    const repair = await changed(pool, () => expectTrue(run(url, SqlStore.repairAfterRestore())))
    return { repair, vacuum: await changed(pool, () => pool.query("vacuum (analyze) maestro.event_log")) }
  })

/** Gives the log so many partitions. */
export const measurePartitionLog = (url: string, partitions: number): Promise<Change> =>
  withPool(url, (pool) => changed(pool, () => expectTrue(run(url, SqlStore.partitionLog({ partitions })))))

/** Vacuums and analyzes the log after it was filled: it writes the map of visible pages, and freezes what is full. */
export const measureVacuum = (url: string): Promise<Change> =>
  withPool(url, (pool) => changed(pool, () => pool.query("vacuum (analyze) maestro.event_log")))

// --- internal ---

const withPool = async <A>(url: string, work: (pool: pg.Pool) => Promise<A>): Promise<A> => {
  const pool = new pg.Pool({ connectionString: url, max: 1 })
  try {
    return await work(pool)
  } finally {
    await pool.end()
  }
}

const rolledBack = async (pool: pg.Pool, before: ReadonlyArray<string>, statement: string): Promise<number> => {
  await pool.query("begin")
  for (const text of before) await pool.query(text)
  const { seconds } = await measured(pool, () => pool.query(statement))
  await pool.query("rollback")
  return seconds
}

const changed = async (pool: pg.Pool, work: () => Promise<unknown>): Promise<Change> => {
  const before = await bytesOf(pool)
  return { before, ...(await measured(pool, work)), after: await bytesOf(pool) }
}

const run = (url: string, effect: ReturnType<typeof SqlStore.repairAfterRestore>): Promise<boolean> =>
  Effect.runPromise(Effect.provide(effect, PgClient.layer({ url: Redacted.make(url), maxConnections: 1 })))

const expectTrue = async (work: Promise<boolean>): Promise<void> => {
  if (!(await work)) throw new Error("the log needed no change")
}
