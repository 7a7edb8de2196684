/**
 * Compares a group of owners with the records of their tables, and finds the tables. The parts of `ProjectionTables`
 * (`prepareTables.ts`, `registerTables.ts`, `rebuildVersion.ts`) share it.
 */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import type { Projection } from "../../Projection.js"
import type { Options } from "../../ProjectionTables.js"
import type { StoreError } from "../../StoreError.js"
import type { StoreTables } from "../sql/storeTables.js"
import type { RebuildOptions } from "./rebuildOptions.js"
import { misconfigured, type Owner, quoted, type RecordState, recordStateOf } from "./tableOwners.js"
import { findTables, readRecords, type TableRecord } from "./tableRecords.js"

/** The options of `ProjectionTables.prepare`, with their defaults, and its source. */
export interface PrepareOptions<E, R>
  extends Pick<Options, "batchSize" | "maxHold" | "onProgress">,
    Required<{ readonly [K in "onExisting" | "onFewerAggregates" | "onKeeperChange"]: NonNullable<Options[K]> }> {
  readonly projections: ReadonlyArray<Projection.Bound<E, R>>
  readonly subscription: RebuildOptions<E, R>["subscription"]
}

/**
 * The owners whose tables are made together: one owner, or all projections of a subscription, because they share its
 * position.
 */
export type Group<E, R> = ReadonlyArray<Owner<E, R>>

export interface OwnerState<E, R> {
  readonly owner: Owner<E, R>
  readonly state: RecordState
}

export const statesOf = <E, R>(
  store: StoreTables,
  group: Group<E, R>
): Effect.Effect<ReadonlyArray<OwnerState<E, R>>, StoreError> =>
  Effect.flatMap(readRecords(store), (records) =>
    Either.all(
      group.map((owner) => Either.map(recordStateOf(owner, records.get(owner.name)), (state) => ({ owner, state })))
    )
  )

/**
 * Whether all tables are of the declared version or a higher one. Fails where some are of a higher version and others
 * of a lower one, because this process can run neither version of the group.
 */
export const isSettled = <E, R>(states: ReadonlyArray<OwnerState<E, R>>): Either.Either<boolean, StoreError> => {
  const open = states.find(({ state }) => state._tag === "Missing" || state._tag === "Outdated")
  const newer = states.find(({ state }) => state._tag === "Newer")
  return open !== undefined && newer !== undefined
    ? misconfigured(
        `the tables of projection ${quoted(newer.owner.name)} are of a higher version than here, and those of ${quoted(open.owner.name)} of a lower one: projections of one subscription are raised together`
      )
    : Either.right(open === undefined)
}

/**
 * Warns where the tables are of a higher version. Fails where those of this version are not found at their recorded
 * location.
 */
export const confirm = <E, R>(
  store: StoreTables,
  states: ReadonlyArray<OwnerState<E, R>>
): Effect.Effect<void, StoreError> =>
  Effect.forEach(
    states,
    ({ owner, state }) =>
      state._tag === "Newer"
        ? Effect.logWarning(
            `projection ${quoted(owner.name)} is of version ${owner.version}, and its tables are of version ${state.record.version}: this process writes the newer tables by the statements of the older version`
          )
        : state._tag === "Current"
          ? locationsOf(store, owner, state.record)
          : Effect.void,
    { discard: true }
  )

/**
 * The locations of the tables of a record, by their declared names. A table whose schema was renamed is found by its
 * name.
 */
export const locationsOf = <E, R>(
  store: StoreTables,
  { name, tables }: Owner<E, R>,
  record: TableRecord
): Effect.Effect<ReadonlyMap<string, string>, StoreError> =>
  Effect.gen(function* () {
    const locations = new Map([...record.tables].filter(([table]) => tables.includes(table)))
    const byName = yield* findTables(store, [...locations.keys()])
    const byLocation = yield* findTables(store, [...locations.values()])
    for (const [table, location] of locations) {
      const found = byName.get(table)
      const isThere = byLocation.has(location)
      if (found === undefined || (isThere && found.live !== location)) {
        return yield* misconfigured(
          `the table ${table} of projection ${quoted(name)} is recorded as ${location}, and ${
            isThere
              ? `the search path of this client leads to ${found?.live ?? "none"}: set it as it was when the table was made`
              : `is not there: to have it made anew out of all events, call ProjectionTables.forget(${quoted(name)}), and start again`
          }`
        )
      }
      locations.set(table, found.live)
    }
    return locations
  })
