/**
 * Brings the tables that projections own to the declared version: it creates them, or has a rebuild make them.
 * `ProjectionTables` calls it.
 *
 * **A record says what is in place**, for each projection (`tableRecords.ts`). It changes in the transaction that makes
 * the tables: the one that creates them, or the swap of the rebuild. So a process that ends at any moment leaves a
 * state from which the next start continues.
 *
 * **Of several processes one works.** Tables are created under an advisory lock (`registerTables.ts`). A process that
 * has waited for it reads the records again. A rebuild works under a lease (`rebuildVersion.ts`).
 *
 * **New tables contain all events.** A table that may not start empty is first a placeholder without columns, with a
 * record of version 0. A rebuild replaces it.
 *
 * **The tables of a subscription are rebuilt together**, because the subscription has one position for all of its
 * projections.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"
import type { EventFeed } from "../../EventFeed.js"
import type { StoreError, ValidationError } from "../../StoreError.js"
import type { SubscriptionStore } from "../../SubscriptionStore.js"
import { insideTransaction } from "../runtime/ambientTransaction.js"
import { boundedInterruption } from "../runtime/interruption.js"
import { withTransaction } from "../sql/pg/transaction.js"
import { type StoreTables, Tables } from "../sql/storeTables.js"
import { failWith, issueAt, paceIssues } from "./rebuildOptions.js"
import { dropSuperseded, forgetRebuilds, rebuildVersion } from "./rebuildVersion.js"
import { confirm, type Group, isSettled, type PrepareOptions, statesOf } from "./recordStates.js"
import { registerTables } from "./registerTables.js"
import { misconfigured, ownersOf } from "./tableOwners.js"
import { deleteRecord, lockRecords, operation, readRecords } from "./tableRecords.js"

/** Returns when all tables of the projections are in place, in their versions. */
export const prepareTables = <E, R>(
  options: PrepareOptions<E, R>
): Effect.Effect<
  void,
  E | ValidationError | StoreError,
  EventFeed | SubscriptionStore | Tables | SqlClient.SqlClient | R
> =>
  Effect.gen(function* () {
    yield* checkPrepareOptions(options)
    const store = yield* outsideTransaction
    const owners = yield* ownersOf(options.projections, options.subscription?.name, yield* SqlClient.SqlClient)
    const groups = options.subscription === undefined ? owners.map((owner) => [owner]) : [owners]
    for (const group of groups) yield* prepareGroup(store, options, group)
  })

/**
 * Deletes the record of a projection's tables and the rebuilds that made them. The tables stay. Returns whether there
 * was a record.
 */
export const forgetTables = (name: string): Effect.Effect<boolean, StoreError, Tables> =>
  Effect.gen(function* () {
    const store = yield* outsideTransaction
    const forgetting = Effect.gen(function* () {
      yield* lockRecords(store)
      const record = (yield* readRecords(store)).get(name)
      if (record === undefined) return false
      yield* forgetRebuilds(store, record)
      yield* deleteRecord(store, name)
      return true
    })
    return yield* boundedInterruption(withTransaction(store.sql, operation, forgetting))
  })

// --- internal ---

/** Fails where an option is invalid, also while the tables are in place and no rebuild begins. */
const checkPrepareOptions = (options: PrepareOptions<unknown, unknown>): Effect.Effect<void, ValidationError> => {
  const choices = Object.entries({
    onExisting: ["refuse", "rebuild", "adopt"],
    onKeeperChange: ["refuse", "allow"],
    onFewerAggregates: ["refuse", "allow"]
  } satisfies {
    readonly [K in keyof PrepareOptions<unknown, unknown>]?: ReadonlyArray<PrepareOptions<unknown, unknown>[K]>
  })
  const given: Readonly<Record<string, unknown>> = { ...options }
  const unknown = choices.flatMap(([option, allowed]) =>
    allowed.some((one) => one === given[option]) ? [] : [issueAt([option], `must be one of ${allowed.join(", ")}`)]
  )
  return failWith("ProjectionTables.prepare", [...unknown, ...paceIssues(options)])
}

const outsideTransaction: Effect.Effect<StoreTables, StoreError, Tables> = Effect.gen(function* () {
  if (yield* insideTransaction) {
    return yield* misconfigured(
      "tables of projections are made in transactions of their own, and not inside of another one"
    )
  }
  return yield* Tables
})

const prepareGroup = <E, R>(
  store: StoreTables,
  options: PrepareOptions<E, R>,
  group: Group<E, R>
): Effect.Effect<void, E | ValidationError | StoreError, EventFeed | SubscriptionStore | Tables | R> =>
  Effect.gen(function* () {
    const found = yield* statesOf(store, group)
    if (yield* isSettled(found)) {
      yield* confirm(store, found)
      return yield* dropSuperseded(store, options, group)
    }
    const registered = yield* boundedInterruption(
      withTransaction(store.sql, operation, registerTables(store, options, group))
    )
    if (registered === undefined) return yield* confirm(store, yield* statesOf(store, group))
    yield* rebuildVersion(store, options, group, registered)
  })
