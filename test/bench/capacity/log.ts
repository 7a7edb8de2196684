/** A log in a database of its own: it is made, filled, opened by the library, and its bytes are counted. */

import type * as SqlClient from "@effect/sql/SqlClient"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { type Aggregate, type EventFeed, SqlStore, type StoreAdapter, type SubscriptionStore } from "effect-maestro"
import pg from "pg"
import { makeDatabase, type Ours, openOurs, poolSize } from "../stage.js"
import { Account, fillBySql, Order, type Shape } from "./events.js"

export type OnLog =
  | Aggregate.Instance<"Account">
  | Aggregate.Instance<"Order">
  | EventFeed.EventFeed
  | SqlClient.SqlClient
  | SqlStore.Tables
  | StoreAdapter.StoreAdapter
  | SubscriptionStore.SubscriptionStore

/** A log in its database. */
export interface MadeLog {
  readonly name: string
  readonly url: string
  readonly shape: Shape
  /** How many events the accounts have by their numbers, where events were appended to them. */
  readonly lengths: Map<number, number>
}

/** A log that the library has open. */
export interface Log extends MadeLog {
  readonly ours: Ours<OnLog>
  /** One connection for statements without the library. */
  readonly pool: pg.Pool
  readonly close: () => Promise<void>
}

/** The server on which logs are made. */
export interface Server {
  readonly url: string
  readonly pool: pg.Pool
}

/** The bytes of a log on disk. */
export interface Bytes {
  readonly table: number
  /** By the name of the index, as the log without partitions has it. */
  readonly indexes: Readonly<Record<string, number>>
  readonly total: number
}

/** Makes the database and the tables, and fills the log. No session uses it afterwards. */
export const makeLog = async (server: Server, name: string, shape: Shape): Promise<MadeLog> => {
  await dropDatabase(server, name)
  const { pool, url } = await makeDatabase(server, name)
  const ours = await openOurs(layerOn(url))
  await ours.close()
  await fillBySql(pool, "maestro", shape)
  await pool.end()
  return { name, url, shape, lengths: new Map() }
}

/** Makes a copy of the files of a log, while no session uses it. */
export const copyLog = async (server: Server, log: MadeLog, name: string): Promise<MadeLog> => {
  await dropDatabase(server, name)
  await server.pool.query(`create database ${name} template ${log.name} strategy file_copy`)
  const url = new URL(log.url)
  url.pathname = `/${name}`
  return { ...log, name, url: url.href, lengths: new Map() }
}

/** Drops a database. The server waits some seconds for sessions that are ending. */
export const dropDatabase = async ({ pool }: Server, name: string): Promise<void> => {
  await pool.query(`drop database if exists ${name}`)
}

/** Opens the log for some work. */
export const withLog = async <A>(made: MadeLog, work: (log: Log) => Promise<A>): Promise<A> => {
  const log = await openLog(made)
  try {
    return await work(log)
  } finally {
    await log.close()
  }
}

export const openLog = async (made: MadeLog): Promise<Log> => {
  const ours = await openOurs(layerOn(made.url))
  const pool = new pg.Pool({ connectionString: made.url, max: 1 })
  return { ...made, ours, pool, close: async () => void (await Promise.all([ours.close(), pool.end()])) }
}

export const layerOn = (url: string, options: SqlStore.Options = {}): Layer.Layer<OnLog, unknown> =>
  Layer.merge(Account.layer, Order.layer).pipe(
    Layer.provideMerge(SqlStore.layerWith(options)),
    Layer.provideMerge(PgClient.layer({ url: Redacted.make(url), maxConnections: poolSize }))
  )

/** The bytes of the log with all its partitions, without the maps of free space. */
export const bytesOf = async (pool: pg.Pool, schema = "maestro"): Promise<Bytes> => {
  const { rows } = await pool.query<{ name: string; is_index: boolean; bytes: string }>(
    `with tables as (
      select $1::regclass as id union all select inhrelid::regclass from pg_inherits where inhparent = $1::regclass
    )
    select 'event_log' as name, false as is_index, sum(pg_table_size(id))::text as bytes from tables
    union all
    select coalesce(p.inhparent, i.indexrelid)::regclass::text, true, sum(pg_relation_size(i.indexrelid))::text
    from tables join pg_index i on i.indrelid = id left join pg_inherits p on p.inhrelid = i.indexrelid
    group by 1`,
    [`${schema}.event_log`]
  )
  const indexes = Object.fromEntries(
    rows.filter(({ is_index }) => is_index).map(({ bytes, name }) => [name.slice(name.indexOf(".") + 1), Number(bytes)])
  )
  const table = Number(rows.find(({ is_index }) => !is_index)?.bytes)
  return { table, indexes, total: Object.values(indexes).reduce((sum, bytes) => sum + bytes, table) }
}

/** Divides all bytes by the number of events. */
export const perEvent = ({ indexes, table, total }: Bytes, events: number): Bytes => ({
  table: table / events,
  indexes: Object.fromEntries(Object.entries(indexes).map(([name, bytes]) => [name, bytes / events])),
  total: total / events
})

/** How many bytes the server has written to its WAL so far. */
export const walOf = async (pool: pg.Pool): Promise<number> => {
  const { rows } = await pool.query<{ bytes: number }>(
    "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8 as bytes"
  )
  return rows[0]?.bytes ?? Number.NaN
}

/** Runs the work, and returns its time and its bytes of WAL. */
export const measured = async (
  pool: pg.Pool,
  work: () => Promise<unknown>
): Promise<{ seconds: number; wal: number }> => {
  const before = await walOf(pool)
  const began = performance.now()
  await work()
  return { seconds: (performance.now() - began) / 1000, wal: (await walOf(pool)) - before }
}
