/**
 * The record of a rebuild: the row of `rebuilds` that has its progress. All files that work for a rebuild use it.
 *
 * **A missing record means an abandoned rebuild.** Each run makes or finds the record before it waits for the lease,
 * and fails where it is gone later. The record stays where a run fails before it has counted its events, because
 * processes that wait would take it for abandoned. `rebuildStatus` leaves out such a record.
 *
 * **A transaction locks the record before anything else of the rebuild**: each batch, the swap, and the transaction
 * that abandons the rebuild. So one of two such transactions waits for the other while it holds nothing that the other
 * needs, and they can't deadlock. Without this order, one that drops the shadow tables would wait for a batch, and the
 * batch for the record.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { Status } from "../../Rebuild.js"
import { StoreError } from "../../StoreError.js"
import { type Lease, LeaseLost } from "../../SubscriptionStore.js"
import { type StoreTables, Tables } from "../sql/storeTables.js"
import { leaseOf, operation, type RebuildOptions, run } from "./rebuildOptions.js"

/** The status of a rebuild that has counted its events. */
export const rebuildStatus = (name: string): Effect.Effect<Option.Option<Status>, StoreError, Tables> =>
  Effect.map(
    Effect.flatMap(Tables, (store) => readRecord(store, name)),
    Option.flatMap(({ done, finished, total }) =>
      finished || total > 0 ? Option.some({ done, total, finished }) : Option.none()
    )
  )

/** What one run knows of the record of its rebuild. */
export interface KnownRecord {
  /** Makes the record, unless this run or another has made it before. */
  readonly begin: Effect.Effect<void, StoreError>
  /** Whether a run has finished the rebuild. Fails where the rebuild was abandoned after this run had seen its record. */
  readonly isFinished: Effect.Effect<boolean, StoreError>
}

export const makeKnownRecord = (
  store: StoreTables,
  { isOfVersion, name }: Pick<RebuildOptions<unknown, unknown>, "isOfVersion" | "name">
): KnownRecord => {
  const mayBeAbandoned = isOfVersion !== true
  let seen: string | undefined
  let isFirst = true

  const isFinished = Effect.flatMap(readRecord(store, name), (record) => {
    const startedAt = Option.getOrUndefined(Option.map(record, ({ startedAt }) => startedAt))
    // A process discards the rebuild of a version when its projection fails.
    if (mayBeAbandoned && seen !== undefined && seen !== startedAt) return Effect.fail(abandoned(name))
    seen = startedAt
    const isFinished = Option.exists(record, ({ finished }) => finished)
    const wasFinishedBefore = isFinished && isFirst && mayBeAbandoned
    isFirst = false
    return Effect.as(wasFinishedBefore ? Effect.logInfo(finishedBefore(name)) : Effect.void, isFinished)
  })

  const insert = run(
    store,
    store.sql`insert into ${store.schema}.rebuilds (name, events_total) values (${name}, 0) on conflict (name) do nothing`
  )

  return {
    begin: Effect.suspend(() =>
      mayBeAbandoned && seen !== undefined ? Effect.void : Effect.asVoid(Effect.zipRight(insert, isFinished))
    ),
    isFinished
  }
}

/** Locks the record until the end of the transaction. Fails with `LeaseLost` where the rebuild was abandoned. */
export const lockRecord = (store: StoreTables, name: string): Effect.Effect<void, LeaseLost | StoreError> =>
  Effect.flatMap(
    run(store, store.sql`select 1 from ${store.schema}.rebuilds where name = ${name} for update`),
    (rows) => (rows.length > 0 ? Effect.void : leaseLostOf(name))
  )

/** Locks the record, unless another transaction has locked it. Returns whether no other transaction has. */
export const tryLockRecord = (store: StoreTables, name: string): Effect.Effect<boolean, StoreError> => {
  const { schema, sql } = store
  return Effect.map(
    run(
      store,
      sql`with locked as (select name from ${schema}.rebuilds where name = ${name} for update skip locked)
        select 1 from ${schema}.rebuilds where name = ${name} and not exists (select 1 from locked)`
    ),
    (lockedByOthers) => lockedByOthers.length === 0
  )
}

/** Locks the lease until the end of the transaction, after the record. Fails with `LeaseLost` where it is not held. */
export const lockLease = (
  store: StoreTables,
  name: string,
  lease: Lease
): Effect.Effect<void, LeaseLost | StoreError> =>
  Effect.zipRight(
    run(store, store.sql`select 1 from ${store.schema}.subscriptions where name = ${leaseOf(name)} for update`),
    Effect.asVoid(lease.checkpoint)
  )

/** The failure of a process that does not hold the lease of the rebuild any more. */
export const leaseLostOf = (name: string): LeaseLost => new LeaseLost({ subscription: leaseOf(name), partition: 0 })

// --- internal ---

interface RebuildRecord extends Status {
  /** Tells a record from one that was made after the rebuild was abandoned. */
  readonly startedAt: string
}

const readRecord = (store: StoreTables, name: string): Effect.Effect<Option.Option<RebuildRecord>, StoreError> =>
  Effect.map(
    run(
      store,
      store.sql<{
        done: string
        total: string
        finished: boolean
        started_at: string
      }>`select events_done::text as done, events_total::text as total, finished_at is not null as finished,
          extract(epoch from started_at)::text as started_at
        from ${store.schema}.rebuilds where name = ${name}`
    ),
    ([row]) =>
      Option.map(Option.fromNullable(row), ({ done, finished, started_at, total }) => ({
        done: Number(done),
        total: Number(total),
        finished,
        startedAt: started_at
      }))
  )

const abandoned = (name: string) =>
  new StoreError({
    reason: "Misconfigured",
    operation,
    description: `rebuild ${JSON.stringify(name)} was abandoned while it was under way`
  })

const finishedBefore = (name: string) =>
  `rebuild ${JSON.stringify(name)} was done before under this name, so it projects nothing now: to rebuild again use another name, or \`Rebuild.abandon\` first`
