/**
 * Checks a rebuild by `Rebuild.run` against the records of the tables that projections own. `Rebuild.ts` passes it to
 * `rebuild.ts`.
 *
 * A record says which projection and version a table is of, and what keeps it. A rebuild that does not fit the record
 * is refused, because it would skip events or project them twice. The check runs before each attempt, and again in the
 * transaction of the swap, because another process may change the record meanwhile.
 *
 * A projection that declares tables, with a record or without one, is rebuilt with all of them. It would write to the
 * live table where the rebuild leaves one out.
 */
import * as Effect from "effect/Effect"
import { StoreError } from "../../StoreError.js"
import type { StoreTables } from "../sql/storeTables.js"
import { quotedTable } from "../store/declaredTables.js"
import { operation, type RebuildOptions } from "./rebuildOptions.js"
import { type Owner, ownersOf, quoted, recordStateOf } from "./tableOwners.js"
import { findTables, lockRecords, readRecords, run, type TableRecord } from "./tableRecords.js"

/** The options that are checked. */
export type Checked<E, R> = Pick<RebuildOptions<E, R>, "create" | "projections" | "subscription" | "tables">

/**
 * Fails where the rebuild does not fit the records. Where projections own its tables, it returns the statements that
 * they declare, so that rows which those statements insert are inserted again.
 */
export const checkOwnership =
  <E, R>(options: Checked<E, R>) =>
  (store: StoreTables) =>
    Effect.gen(function* () {
      const owners = yield* ownersConcerned(store, options)
      const isOwned = owners.length > 0
      const onSwap = Effect.gen(function* () {
        // All users of the tables wait for this transaction, so its own wait is short.
        yield* run(store, store.sql`select set_config('lock_timeout', '500ms', true)`)
        yield* lockRecords(store)
        const now = yield* ownersConcerned(store, options)
        if (now.length > 0 !== isOwned) {
          return yield* misconfigured(
            "the records of its tables have changed since the rebuild began: abandon it, and run it again"
          )
        }
      })
      const create = isOwned ? Effect.forEach(owners, ({ create }) => create, { discard: true }) : options.create
      return { create, onSwap }
    })

// --- internal ---

const misconfigured = (description: string): Effect.Effect<never, StoreError> =>
  Effect.fail(new StoreError({ reason: "Misconfigured", operation, description }))

/** A record, with the qualified names under which its tables are found now. */
interface LocatedRecord {
  readonly record: TableRecord
  readonly locations: ReadonlyArray<string>
}

/** The projections that own the tables, or other tables of the subscription. None where there is no record of them. */
const ownersConcerned = <E, R>(
  store: StoreTables,
  options: Checked<E, R>
): Effect.Effect<ReadonlyArray<Owner<E, R>>, StoreError> =>
  Effect.gen(function* () {
    const { projections, subscription, tables } = options
    const found = yield* findTables(store, tables)
    const lives = new Set([...found.values()].map(({ live }) => live))
    const located = yield* locateRecords(store, [...(yield* readRecords(store)).values()])
    const concerned = located.filter(
      ({ locations, record }) =>
        locations.some((location) => lives.has(location)) ||
        (subscription !== undefined && record.subscription === subscription.name)
    )
    if (concerned.length === 0) {
      yield* checkDeclared(options, located, lives)
      return []
    }

    yield* checkKeepers(options, concerned, lives)
    const owners = yield* ownersOf(projections, subscription?.name, store.sql)
    const chosen = yield* Effect.forEach(concerned, (one) => ownerOfRecord(options, one, owners, lives))
    yield* checkDeclared(options, located, lives)
    const owned = new Set(concerned.flatMap(({ locations }) => locations))
    const other = [...lives].find((live) => !owned.has(live))
    if (other !== undefined) {
      return yield* misconfigured(
        `no projection owns ${other}, and ${quoted(chosen[0]?.name ?? "")} owns others: rebuild it by itself`
      )
    }
    return chosen
  })

/** Fails where a projection declares a table that is not rebuilt. */
const checkDeclared = <E, R>(
  { projections, tables }: Checked<E, R>,
  located: ReadonlyArray<LocatedRecord>,
  lives: ReadonlySet<string>
): Effect.Effect<void, StoreError> => {
  // A projection names its tables without a schema. The names of live tables are quoted where SQL needs it.
  const isRebuilt = (table: string) => {
    const name = quotedTable(table)
    return [...lives].some((live) => live.endsWith(`.${name}`) || live.endsWith(`.${name.slice(1, -1)}`))
  }
  for (const { name, tables: declared } of projections) {
    if (declared === undefined) continue
    const recorded = located.find(({ record }) => record.name === name)
    const missing =
      recorded === undefined
        ? Object.keys(declared).filter((table) => !isRebuilt(table))
        : recorded.locations.filter((location) => !lives.has(location))
    if (missing.length > 0) {
      return misconfigured(
        `projection ${quoted(name)} owns ${missing.join(", ")}, which the rebuild of ${tables.join(", ")} leaves out: name all tables of the projection in \`tables\``
      )
    }
  }
  return Effect.void
}

/** Fails where commits keep the tables and the rebuild is of a subscription, or the other way round. */
const checkKeepers = <E, R>(
  { subscription }: Checked<E, R>,
  concerned: ReadonlyArray<LocatedRecord>,
  lives: ReadonlySet<string>
): Effect.Effect<void, StoreError> => {
  const wrong = concerned.find(({ record }) => record.subscription !== subscription?.name)
  if (wrong === undefined) return Effect.void
  const { locations, record } = wrong
  const which = `${locations.filter((location) => lives.has(location)).join(", ")} of projection ${quoted(record.name)}`
  return misconfigured(
    record.subscription === undefined
      ? `commits themselves keep ${which}: leave out \`subscription\``
      : `subscription ${quoted(record.subscription)} keeps ${which}: pass it as \`subscription\`, so that it goes on behind the rebuild`
  )
}

/**
 * The projection that owns the tables of a record. Fails where the rebuild leaves out a part of the record, or is of
 * another version.
 */
const ownerOfRecord = <E, R>(
  { create, subscription, tables }: Checked<E, R>,
  { locations, record }: LocatedRecord,
  owners: ReadonlyArray<Owner<E, R>>,
  lives: ReadonlySet<string>
): Effect.Effect<Owner<E, R>, StoreError> =>
  Effect.gen(function* () {
    const which = `${locations.join(", ")} of projection ${quoted(record.name)}`
    const owner = owners.find(({ name }) => name === record.name)
    if (owner === undefined) {
      return yield* misconfigured(
        `the rebuild is of ${describeTables(tables, record, subscription?.name)}, and not by that projection: name it in \`projections\`, with all that ${subscription === undefined ? "write" : "the subscription keeps and write"} the tables`
      )
    }
    const missing = locations.filter((location) => !lives.has(location))
    if (missing.length > 0) {
      return yield* misconfigured(
        `the tables of projection ${quoted(record.name)} are rebuilt together: name ${missing.join(", ")} in \`tables\` too`
      )
    }
    if (create !== undefined) {
      return yield* misconfigured(`${which} are made by its own statements: leave out \`create\``)
    }
    const state = yield* recordStateOf(owner, record)
    if (state._tag !== "Current") {
      return yield* misconfigured(
        `${which} are of version ${record.version}, and the projection is of version ${owner.version}: ProjectionTables makes the tables of a higher version`
      )
    }
    return owner
  })

const describeTables = (
  tables: ReadonlyArray<string>,
  { name }: TableRecord,
  subscription: string | undefined
): string =>
  subscription === undefined
    ? `${tables.join(", ")}, which projection ${quoted(name)} owns`
    : `tables of subscription ${quoted(subscription)}, which keeps those of projection ${quoted(name)} too`

/** Finds the tables of the records. A table whose schema was renamed is found by its name. */
const locateRecords = (
  store: StoreTables,
  records: ReadonlyArray<TableRecord>
): Effect.Effect<ReadonlyArray<LocatedRecord>, StoreError> =>
  Effect.gen(function* () {
    const all = records.flatMap((record) => [...record.tables])
    if (all.length === 0) return []
    const byLocation = yield* findTables(
      store,
      all.map(([, location]) => location)
    )
    const byName = yield* findTables(
      store,
      all.map(([name]) => name)
    )
    return records.map((record) => ({
      record,
      locations: [...record.tables].map(([name, location]) =>
        byLocation.has(location) ? location : (byName.get(name)?.live ?? location)
      )
    }))
  })
