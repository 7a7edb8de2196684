/**
 * What `Rebuild.run` may do with tables that projections own: a record of the store says which projection and version they are of, and what keeps
 * them. A rebuild that does not fit the record would skip events, or project them twice, and is refused.
 *
 * The check runs before a rebuild begins, and again in the transaction of its swap, because another process may change the record meanwhile.
 */
import * as Effect from "effect/Effect"
import type { Projection } from "../../Projection.js"
import { StoreError } from "../../StoreError.js"
import type { StoreTables } from "../sql/storeTables.js"
import { type Owner, ownersOf, quoted, standingOf } from "./tableOwners.js"
import { findTables, lockRecords, readRecords, run, type TableRecord } from "./tableRecords.js"

/** What is to be rebuilt. */
export interface Wanted<E, R> {
  readonly projections: ReadonlyArray<Projection.Bound<E, R>>
  readonly tables: ReadonlyArray<string>
  readonly create?: Effect.Effect<unknown, E, R> | undefined
  readonly subscription?: { readonly name: string } | undefined
}

/**
 * Checks the rebuild against the records. Where projections own its tables, it returns the statements that they declare, so that rows which those
 * insert are made anew too.
 */
export const checkOwned =
  <E, R>(wanted: Wanted<E, R>) =>
  (home: StoreTables) =>
    Effect.gen(function* () {
      const owners = yield* ownersConcerned(home, wanted)
      const isOwned = owners.length > 0
      const onSwap = Effect.gen(function* () {
        // All users of the tables wait for this transaction, so it does not wait for long, and is tried again.
        yield* run(home, home.sql`select set_config('lock_timeout', '500ms', true)`)
        yield* lockRecords(home)
        const now = yield* ownersConcerned(home, wanted)
        if (now.length > 0 !== isOwned) {
          return yield* misconfigured(
            "the records of its tables have changed since the rebuild began: abandon it, and run it again"
          )
        }
      })
      const create = isOwned ? Effect.forEach(owners, ({ create }) => create, { discard: true }) : wanted.create
      return { create, onSwap }
    })

// --- internal ---

const operation = "Rebuild"

const misconfigured = (description: string): Effect.Effect<never, StoreError> =>
  Effect.fail(new StoreError({ reason: "Misconfigured", operation, description }))

/** The projections that own the tables, or other tables of the subscription; none where there is no record of them. */
const ownersConcerned = <E, R>(
  home: StoreTables,
  { create, projections, subscription, tables }: Wanted<E, R>
): Effect.Effect<ReadonlyArray<Owner<E, R>>, StoreError> =>
  Effect.gen(function* () {
    const found = yield* findTables(home, tables)
    const lives = new Set([...found.values()].map(({ live }) => live))
    const recorded = yield* withPlaces(home, [...(yield* readRecords(home)).values()])
    const concerned = recorded.filter(
      ({ places, record }) =>
        places.some((place) => lives.has(place)) ||
        (subscription !== undefined && record.subscription === subscription.name)
    )
    if (concerned.length === 0) return []

    for (const { places, record } of concerned) {
      if (record.subscription === subscription?.name) continue
      const which = `${places.filter((place) => lives.has(place)).join(", ")} of projection ${quoted(record.name)}`
      return yield* misconfigured(
        record.subscription === undefined
          ? `commits themselves keep ${which}: leave out \`subscription\``
          : `subscription ${quoted(record.subscription)} keeps ${which}: pass it as \`subscription\`, so that it goes on behind the rebuild`
      )
    }
    const owners = yield* ownersOf(projections, subscription?.name, home.sql)
    const chosen: Array<Owner<E, R>> = []
    for (const { places, record } of concerned) {
      const which = `${places.join(", ")} of projection ${quoted(record.name)}`
      const owner = owners.find(({ name }) => name === record.name)
      if (owner === undefined) {
        return yield* misconfigured(
          `the rebuild is of ${named(tables, record, subscription?.name)}, and not by that projection: name it in \`projections\`, with all that ${subscription === undefined ? "write" : "the subscription keeps and write"} the tables`
        )
      }
      const missing = places.filter((place) => !lives.has(place))
      if (missing.length > 0) {
        return yield* misconfigured(
          `the tables of projection ${quoted(record.name)} are rebuilt together: name ${missing.join(", ")} in \`tables\` too`
        )
      }
      if (create !== undefined) {
        return yield* misconfigured(`${which} are made by its own statements: leave out \`create\``)
      }
      const standing = yield* standingOf(owner, record)
      if (standing._tag !== "Current") {
        return yield* misconfigured(
          `${which} are of version ${record.version}, and the projection is of version ${owner.version}: ProjectionTables makes the tables of a higher version`
        )
      }
      chosen.push(owner)
    }
    const owned = new Set(concerned.flatMap(({ places }) => places))
    const other = [...lives].find((live) => !owned.has(live))
    if (other !== undefined) {
      return yield* misconfigured(
        `no projection owns ${other}, and ${quoted(chosen[0]?.name ?? "")} owns others: rebuild it by itself`
      )
    }
    return chosen
  })

const named = (tables: ReadonlyArray<string>, { name }: TableRecord, subscription: string | undefined): string =>
  subscription === undefined
    ? `${tables.join(", ")}, which projection ${quoted(name)} owns`
    : `tables of subscription ${quoted(subscription)}, which keeps those of projection ${quoted(name)} too`

/** Where the tables of the records are. One whose schema was renamed is found by its name. */
const withPlaces = (
  home: StoreTables,
  records: ReadonlyArray<TableRecord>
): Effect.Effect<ReadonlyArray<{ readonly record: TableRecord; readonly places: ReadonlyArray<string> }>, StoreError> =>
  Effect.gen(function* () {
    const all = records.flatMap((record) => [...record.tables])
    if (all.length === 0) return []
    const byPlace = yield* findTables(
      home,
      all.map(([, place]) => place)
    )
    const byName = yield* findTables(
      home,
      all.map(([name]) => name)
    )
    return records.map((record) => ({
      record,
      places: [...record.tables].map(([name, place]) =>
        byPlace.has(place) ? place : (byName.get(name)?.live ?? place)
      )
    }))
  })
