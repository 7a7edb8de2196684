/**
 * Decides when a rebuild may try to lock the live tables, so that an open transaction which uses them does not hold up
 * commands. `fillAndSwap.ts` asks it before each swap.
 *
 * A lock request that waits for a transaction holds up all later users of the table. So a failed attempt has two
 * consequences:
 *
 * - The next attempt waits until the transactions that were in the way have ended. `pg_locks` shows them to every role.
 * - Commands run for at least nine times as long as the attempt held them up, also where one report follows another.
 *
 * The first attempts wait for a short time only, because most transactions that use the tables are commits and end in
 * milliseconds.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type { StoreError } from "../../StoreError.js"
import type { StoreTables } from "../sql/storeTables.js"
import { run } from "./rebuildOptions.js"

export interface SwapBackoff {
  /** How long the next attempt may wait for the tables, in milliseconds. */
  readonly lockWait: () => number
  /** Takes note of an attempt that has failed after it held up commands for so long, in milliseconds. */
  readonly failed: (heldUp: number) => Effect.Effect<void, StoreError>
  /**
   * Whether the next attempt may begin. Where it may not for long, a warning says which transactions use the tables.
   */
  readonly mayTry: Effect.Effect<boolean, StoreError>
}

/** `maxLockWait` is in milliseconds. */
export const makeSwapBackoff = (
  store: StoreTables,
  rebuild: string,
  tables: ReadonlyArray<string>,
  maxLockWait: number
): SwapBackoff => {
  let failures = 0
  let notBefore = 0
  let nextWarning = 0
  let inTheWay: ReadonlySet<string> = new Set()

  return {
    lockWait: () => Math.min(firstLockWait * 2 ** failures, lastLockWait, Math.ceil(maxLockWait)),
    failed: (heldUp) =>
      Effect.gen(function* () {
        failures++
        inTheWay = new Set((yield* usersOf(store, tables)).map(({ transaction }) => transaction))
        notBefore = (yield* Clock.currentTimeMillis) + heldUp * pauseFactor
      }),
    mayTry: Effect.gen(function* () {
      const now = yield* Clock.currentTimeMillis
      if (now < notBefore) return false
      if (inTheWay.size === 0) return true
      const left = (yield* usersOf(store, tables)).filter(({ transaction }) => inTheWay.has(transaction))
      if (left.length > 0 && now >= nextWarning) {
        nextWarning = now + warnEvery
        yield* Effect.logWarning(
          `rebuild ${rebuild} waits before it swaps the tables: ${tables.join(", ")} in use by ${left.map((user) => describe(user, now)).join(", and by ")}`
        )
      }
      return left.length === 0
    })
  }
}

// --- internal ---

// In milliseconds.
const firstLockWait = 100
const lastLockWait = 500
const warnEvery = 30_000

/** Commands run for at least this many times as long as a failed attempt held them up: 90 % of the time. */
const pauseFactor = 9

/** A transaction that has a lock on one of the tables. What a role may not see of it is null. */
interface TableUser {
  /** Identifies the transaction for as long as the server runs. */
  readonly transaction: string
  readonly pid: number | null
  readonly prepared: string | null
  readonly application: string | null
  readonly user_name: string | null
  readonly state: string | null
  /** In milliseconds since 1970. */
  readonly started_at: number | null
}

/** The transactions of other sessions that have a lock on one of the tables or on a sequence of theirs. */
const usersOf = (
  store: StoreTables,
  tables: ReadonlyArray<string>
): Effect.Effect<ReadonlyArray<TableUser>, StoreError> =>
  run(
    store,
    store.sql<TableUser>`with tables as (
        select to_regclass(t)::oid as oid from unnest(${[...tables]}::text[]) t
      ), relations as (
        select oid from tables
        union select d.objid from pg_depend d join pg_class s on s.oid = d.objid and s.relkind = 'S'
          where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid in (select oid from tables)
      ), users as (
        select distinct virtualtransaction, pid from pg_locks
        where locktype = 'relation' and granted and pid is distinct from pg_backend_pid()
          and database = (select oid from pg_database where datname = current_database())
          and relation in (select oid from relations)
      )
      select u.virtualtransaction as transaction, u.pid, p.gid as prepared,
        coalesce(nullif(a.application_name, ''), nullif(a.backend_type, 'client backend')) as application,
        coalesce(a.usename, p.owner)::text as user_name, a.state,
        (extract(epoch from coalesce(a.xact_start, p.prepared)) * 1000)::float8 as started_at
      from users u
      left join pg_stat_activity a on a.pid = u.pid
      left join pg_prepared_xacts p on u.pid is null and p.transaction::text = split_part(u.virtualtransaction, '/', 2)
      order by a.xact_start nulls last, u.virtualtransaction`
  )

const describe = ({ application, pid, prepared, started_at, state, user_name }: TableUser, now: number): string => {
  const known = [
    application === null ? [] : [`application ${JSON.stringify(application)}`],
    user_name === null ? [] : [`user ${JSON.stringify(user_name)}`],
    state === null ? [] : [state],
    started_at === null ? [] : [`open for ${Math.max(Math.round((now - started_at) / 1000), 0)} seconds`]
  ].flat()
  const whose = prepared === null ? `process ${pid}` : `the prepared transaction ${JSON.stringify(prepared)}`
  return `${whose}${known.length === 0 ? "" : ` (${known.join(", ")})`}`
}
