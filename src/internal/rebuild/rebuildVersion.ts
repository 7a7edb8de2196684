/**
 * Runs the rebuild that makes a version of a group of tables, and drops rebuilds of earlier versions that killed
 * processes have left. `prepareTables.ts` calls it.
 *
 * The name of the rebuild is a hash of the declaration, so processes with different declarations never fill the same
 * shadow tables. Where two versions are rebuilt at the same time, the swap of the lower one fails, because it finds a
 * record that is not lower.
 */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import type { EventFeed } from "../../EventFeed.js"
import type { StoreError, ValidationError } from "../../StoreError.js"
import type { SubscriptionStore } from "../../SubscriptionStore.js"
import { reservedPrefix } from "../codec/names.js"
import { sha256 } from "../codec/sha256.js"
import { withTransaction } from "../sql/pg/transaction.js"
import type { StoreTables, Tables } from "../sql/storeTables.js"
import { withoutReceipts } from "../store/receiptStreams.js"
import { abandonRebuild, rebuild } from "./rebuild.js"
import { leaseOf } from "./rebuildOptions.js"
import { tryLockRecord } from "./rebuildRecord.js"
import { confirm, type Group, isSettled, type PrepareOptions, statesOf } from "./recordStates.js"
import { type Registered, recordOf } from "./registerTables.js"
import { misconfigured, quoted } from "./tableOwners.js"
import { lockRecords, operation, run, type TableRecord, writeRecord } from "./tableRecords.js"

/**
 * Rebuilds all tables of the group. It succeeds, too, where another process has brought the tables to this version
 * meanwhile.
 */
export const rebuildVersion = <E, R>(
  store: StoreTables,
  options: PrepareOptions<E, R>,
  group: Group<E, R>,
  registered: Registered
): Effect.Effect<void, E | ValidationError | StoreError, EventFeed | SubscriptionStore | Tables | R> =>
  Effect.gen(function* () {
    const [first, ...others] = group.flatMap(({ tables }) => tables)
    if (first === undefined) return
    const which = group.map(({ name, version }) => `${quoted(name)} of version ${version}`).join(", ")
    const prefix = rebuildPrefix(options.subscription?.name, group[0]?.name ?? "")
    yield* Effect.logInfo(`tables of projections are made anew beside those in use: ${which}`)

    const building = rebuild<E | StoreError, R>({
      name: `${prefix}${declarationHash(group)}`,
      isOfVersion: true,
      projections: group.flatMap(({ projections }) => projections.map((projection) => withoutReceipts(projection))),
      tables: [first, ...others],
      create: Effect.forEach(group, ({ create }) => create, { discard: true }),
      subscription: options.subscription,
      batchSize: options.batchSize,
      maxHold: options.maxHold,
      onProgress: options.onProgress,
      onSwap: recordSwap(store, group, registered)
    })
    yield* Effect.catchAll(building, (error) =>
      Effect.gen(function* () {
        const settled = yield* Effect.either(Effect.flatMap(statesOf(store, group), isSettled))
        if (Either.isRight(settled) && settled.right) return
        // Another process has made this version by other statements.
        if (Either.isLeft(settled) && settled.left.reason === "Misconfigured") return yield* settled.left
        return yield* Effect.fail(error)
      })
    )
    const states = yield* statesOf(store, group)
    if (!(yield* isSettled(states))) {
      return yield* misconfigured(
        `the rebuild of ${which} is done, and the record of the tables is still the old one: call ProjectionTables.forget, and start again`
      )
    }
    yield* confirm(store, states)
    for (const stale of yield* unfinishedRebuilds(store, prefix)) yield* abandonIdle(store, stale)
    yield* Effect.logInfo(`tables of projections are in place: ${which}`)
  })

/**
 * Abandons unfinished rebuilds that began before the tables in place were recorded. A rebuild that began later may
 * still be continued.
 */
export const dropSuperseded = <E, R>(
  store: StoreTables,
  options: PrepareOptions<E, R>,
  group: Group<E, R>
): Effect.Effect<void, StoreError, Tables> =>
  Effect.gen(function* () {
    const names = yield* unfinishedRebuilds(store, rebuildPrefix(options.subscription?.name, group[0]?.name ?? ""))
    if (names.length === 0) return
    const superseded = yield* run(
      store,
      store.sql<{ name: string }>`select name from ${store.schema}.rebuilds
        where name = any(${[...names]}::text[])
          and started_at < (select max(changed_at) from ${store.schema}.projection_tables where name = any(${group.map(({ name }) => name)}::text[]))`
    )
    for (const { name } of superseded) yield* abandonIdle(store, name)
  })

/** Abandons and deletes all rebuilds of the tables of a record. It runs inside a transaction. */
export const forgetRebuilds = (
  store: StoreTables,
  { name, subscription }: TableRecord
): Effect.Effect<void, StoreError, Tables> =>
  Effect.gen(function* () {
    const prefix = rebuildPrefix(subscription, name)
    for (const rebuild of yield* unfinishedRebuilds(store, prefix)) yield* abandonRebuild(rebuild)
    yield* run(
      store,
      store.sql`delete from ${store.schema}.rebuilds where left(name, length(${prefix}::text)) = ${prefix}`
    )
  })

// --- internal ---

const declarationHash = <E, R>(group: Group<E, R>) =>
  sha256(JSON.stringify(group.map((one) => [one.name, one.version, one.statements, one.aggregates])))

/**
 * Writes the records of the new tables, in the transaction of the swap. Fails where another process has changed a
 * record since.
 */
const recordSwap = <E, R>(
  store: StoreTables,
  group: Group<E, R>,
  registered: Registered
): Effect.Effect<void, StoreError> =>
  Effect.gen(function* () {
    // All users of the tables wait for this transaction, so its own wait is short.
    yield* run(store, store.sql`select set_config('lock_timeout', '500ms', true)`)
    yield* lockRecords(store)
    const states = yield* statesOf(store, group)
    const changed = states.find(({ state }) => state._tag === "Newer" || state._tag === "Missing")
    if (changed !== undefined || (yield* isSettled(states))) {
      return yield* misconfigured("another process has changed the record of the tables meanwhile")
    }
    yield* Effect.forEach(group, (owner) => {
      const locations = [...(registered.get(owner.name) ?? [])].filter(([table]) => owner.tables.includes(table))
      return writeRecord(store, recordOf(owner, owner.version, new Map(locations)))
    })
  })

/** The prefix that the names of all rebuilds of a group have. */
const rebuildPrefix = (subscription: string | undefined, projection: string): string =>
  `${reservedPrefix}/tables/${subscription === undefined ? "projection" : "subscription"}/${encodeURIComponent(subscription ?? projection)}/`

/** The names of unfinished rebuilds with the prefix. Each of them has a row for its lease. */
const unfinishedRebuilds = (store: StoreTables, prefix: string): Effect.Effect<ReadonlyArray<string>, StoreError> => {
  const { schema, sql } = store
  const lease = leaseOf(prefix)
  return Effect.map(
    run(
      store,
      sql<{
        name: string
      }>`select name from ${schema}.subscriptions where left(name, length(${lease}::text)) = ${lease}`
    ),
    (rows) => rows.map(({ name }) => name.slice(leaseOf("").length))
  )
}

/** Abandons a rebuild where no process works for it, nor holds its lease. */
const abandonIdle = (store: StoreTables, name: string): Effect.Effect<void, StoreError, Tables> => {
  const { schema, sql } = store
  return withTransaction(
    sql,
    operation,
    Effect.gen(function* () {
      if (!(yield* tryLockRecord(store, name))) return
      const free = yield* run(
        store,
        sql`select 1 from ${schema}.subscriptions
          where name = ${leaseOf(name)} and coalesce(leased_until < clock_timestamp(), true) for update skip locked`
      )
      if (free.length > 0) yield* abandonRebuild(name)
    })
  )
}
