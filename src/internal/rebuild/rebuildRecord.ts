/**
 * The record of a rebuild: the row of `rebuilds` that has its progress. All files that work for a rebuild use it.
 *
 * **A transaction locks the record before anything else of the rebuild**: each batch, the swap, and the transaction
 * that abandons the rebuild. So one of two such transactions waits for the other while it holds nothing that the other
 * needs, and they can't deadlock. Without this order, one that drops the shadow tables would wait for a batch, and the
 * batch for the record.
 */
import * as Effect from "effect/Effect"
import type { StoreError } from "../../StoreError.js"
import { LeaseLost } from "../../SubscriptionStore.js"
import type { StoreTables } from "../sql/storeTables.js"
import { leaseOf, run } from "./rebuildOptions.js"

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

/** The failure of a process that does not hold the lease of the rebuild any more. */
export const leaseLostOf = (name: string): LeaseLost => new LeaseLost({ subscription: leaseOf(name), partition: 0 })
