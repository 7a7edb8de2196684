/**
 * Registers the tables of projections, in one transaction under a lock: it creates the tables that may start empty, and
 * writes their records. For other tables it creates placeholders, which a rebuild replaces. `prepareTables.ts` calls
 * it.
 *
 * A table may start empty only where no event is stored that concerns its projection, or where the subscription that
 * keeps it has not begun.
 */
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import { beginning } from "../../EventFeed.js"
import type { StoreError } from "../../StoreError.js"
import { selectFittingPage } from "../sql/feedPage.js"
import { limitIdle } from "../sql/pg/embedded.js"
import type { StoreTables } from "../sql/storeTables.js"
import { quotedTable } from "../store/declaredTables.js"
import { bothOf } from "../store/readOptions.js"
import { filterOf } from "../store/runProjections.js"
import { type Group, isSettled, locationsOf, type OwnerState, type PrepareOptions, statesOf } from "./recordStates.js"
import { rehearseStatements } from "./rehearseStatements.js"
import { aggregatesText, keeperOf, misconfigured, type Owner, quoted } from "./tableOwners.js"
import {
  currentSchema,
  findTables,
  lockRecords,
  readRecords,
  run,
  type TableRecord,
  writeRecord
} from "./tableRecords.js"

/** For each projection, the declared names and the locations of tables that a rebuild is to replace. */
export type Registered = ReadonlyMap<string, ReadonlyMap<string, string>>

/**
 * Returns the tables that a rebuild has to fill, or undefined where all tables are in place. It runs inside a
 * transaction.
 */
export const registerTables = <E, R>(
  store: StoreTables,
  options: PrepareOptions<E, R>,
  group: Group<E, R>
): Effect.Effect<Registered | undefined, StoreError> =>
  Effect.gen(function* () {
    yield* run(store, store.sql`select ${limitIdle(store, maxIdle)}`)
    yield* lockRecords(store)
    const states = yield* statesOf(store, group)
    if (yield* isSettled(states)) return undefined
    if (options.onKeeperChange === "refuse") yield* checkKeepers(states)
    if (options.onFewerAggregates === "refuse") yield* checkAggregates(states)
    const mayBeEmpty = yield* mayStartEmpty(store, options, group)
    const registered = new Map<string, ReadonlyMap<string, string>>()
    let needsRebuild = false
    for (const state of states) {
      const { isFilled, locations } = yield* registerOwner(store, options, state, mayBeEmpty)
      registered.set(state.owner.name, locations)
      if (!isFilled) needsRebuild = true
    }
    return needsRebuild ? registered : undefined
  })

/** The record of a declaration. */
export const recordOf = <E, R>(
  { aggregates, name, statements, subscription }: Owner<E, R>,
  version: number,
  tables: ReadonlyMap<string, string>
): TableRecord => ({ name, version, statements, tables, aggregates, subscription })

// --- internal ---

/** How long the transaction may idle, in milliseconds, because a stopped process must not hold the lock for ever. */
const maxIdle = 5000

const noLocations: ReadonlyMap<string, string> = new Map()

/**
 * Creates the tables of one owner, or placeholders, and writes the record. `isFilled` is false where a rebuild has to
 * fill them.
 */
const registerOwner = <E, R>(
  store: StoreTables,
  options: PrepareOptions<E, R>,
  { owner, state }: OwnerState<E, R>,
  mayBeEmpty: boolean
): Effect.Effect<{ readonly locations: ReadonlyMap<string, string>; readonly isFilled: boolean }, StoreError> =>
  Effect.gen(function* () {
    const record = state._tag === "Missing" ? undefined : state.record
    const known = record === undefined ? noLocations : yield* locationsOf(store, owner, record)
    const added = owner.tables.filter((table) => !known.has(table))
    const existing = yield* existingTables(store, options, owner, added)
    const isAdopted = record === undefined && options.onExisting === "adopt" && existing.size > 0
    const isCreated = record === undefined && existing.size === 0 && mayBeEmpty
    if (isCreated) yield* owner.create
    else {
      yield* createPlaceholders(
        store,
        added.filter((table) => !existing.has(table))
      )
    }
    const locations = new Map([...known, ...(yield* locateCreated(store, owner, added, existing))])
    if (isCreated) yield* rehearseStatements(store, owner)
    if (state._tag === "Current") return { locations, isFilled: true }
    const isFilled = isAdopted || isCreated
    yield* writeRecord(
      store,
      record === undefined
        ? recordOf(owner, isFilled ? owner.version : 0, locations)
        : { ...record, tables: new Map([...record.tables, ...locations]) }
    )
    return { locations, isFilled }
  })

/**
 * Fails where another keeper wrote the tables of the lower version, because its processes would write each event a
 * second time.
 */
const checkKeepers = <E, R>(states: ReadonlyArray<OwnerState<E, R>>): Either.Either<void, StoreError> => {
  for (const { owner, record } of filledBefore(states)) {
    if (record.subscription !== owner.subscription) {
      return misconfigured(
        `the tables of projection ${quoted(owner.name)}, version ${record.version}, are kept by ${keeperOf(record.subscription)}, and those of version ${owner.version} by ${keeperOf(owner.subscription)}: a process of the older version would write each event a second time. End all such processes, and set onKeeperChange to "allow"`
      )
    }
  }
  return Either.right(undefined)
}

/** Fails where a version leaves out the events of an aggregate whose rows are in the tables. */
const checkAggregates = <E, R>(states: ReadonlyArray<OwnerState<E, R>>): Either.Either<void, StoreError> => {
  for (const { owner, record } of filledBefore(states)) {
    const missing = owner.aggregates.includes("*")
      ? []
      : record.aggregates.filter((name) => !owner.aggregates.includes(name))
    if (missing.length > 0) {
      return misconfigured(
        `the tables of projection ${quoted(owner.name)}, version ${record.version}, hold events of ${aggregatesText(record.aggregates)}, and version ${owner.version} is of ${aggregatesText(owner.aggregates)} alone: its tables would lose the rows of ${aggregatesText(missing)}. Give the projections of all its aggregates together, or set onFewerAggregates to "allow"`
      )
    }
  }
  return Either.right(undefined)
}

/** The owners whose tables of a lower version contain rows. */
const filledBefore = <E, R>(
  states: ReadonlyArray<OwnerState<E, R>>
): ReadonlyArray<{ readonly owner: Owner<E, R>; readonly record: TableRecord }> =>
  states.flatMap(({ owner, state }) =>
    state._tag === "Outdated" && state.record.version > 0 ? [{ owner, record: state.record }] : []
  )

/** Whether empty tables contain all rows that they must. */
const mayStartEmpty = <E, R>(
  store: StoreTables,
  options: PrepareOptions<E, R>,
  group: Group<E, R>
): Effect.Effect<boolean, StoreError> => {
  const { schema, sql } = store
  const filter = bothOf(filterOf(group.flatMap(({ projections }) => projections)), undefined)
  return Effect.map(
    options.subscription === undefined
      ? // Also an event that the feed does not show yet.
        Effect.map(run(store, selectFittingPage(store, { after: beginning, filter, limit: 1 })), (rows) => rows.length)
      : Effect.map(
          run(store, sql`select 1 from ${schema}.subscriptions where name = ${options.subscription.name} limit 1`),
          (rows) => rows.length
        ),
    (found) => found === 0
  )
}

/**
 * The tables that exist without a record. Fails where `onExisting` refuses them, or where they belong to another
 * projection.
 */
const existingTables = <E, R>(
  store: StoreTables,
  { onExisting }: PrepareOptions<E, R>,
  owner: Owner<E, R>,
  names: ReadonlyArray<string>
): Effect.Effect<ReadonlySet<string>, StoreError> =>
  Effect.gen(function* () {
    const found = yield* findTables(store, names)
    if (found.size === 0) return new Set<string>()
    const which = `projection ${quoted(owner.name)}, version ${owner.version},`
    for (const record of (yield* readRecords(store)).values()) {
      const taken = [...found.values()].find(({ live }) => [...record.tables.values()].includes(live))
      if (taken !== undefined) {
        return yield* misconfigured(
          `${which} owns the table ${taken.live}, which is that of projection ${quoted(record.name)}`
        )
      }
    }
    const lives = [...found.values()].map(({ live }) => live).join(", ")
    const other = [...found.values()].find(({ isOrdinary }) => !isOrdinary)
    if (other !== undefined) {
      return yield* misconfigured(`${which} owns ${other.live}, and that is no ordinary table: rename or drop it first`)
    }
    const canAdopt = names.length === owner.tables.length
    if (onExisting === "refuse" || (onExisting === "adopt" && !canAdopt)) {
      return yield* misconfigured(
        `${which} is to have its tables made, and these are there without a record: ${lives}. Rename or drop them; or set onExisting to "rebuild", which replaces them by new ones out of all events${canAdopt ? ', or to "adopt", which takes them for those of this version, as they are' : ""}`
      )
    }
    const missing = names.filter((name) => !found.has(name))
    if (onExisting === "adopt" && missing.length > 0) {
      return yield* misconfigured(
        `${which} can't adopt its tables, because some are there (${lives}) and others are not (${missing.join(", ")}): set onExisting to "rebuild"`
      )
    }
    return new Set(found.keys())
  })

/** Creates tables without columns. No statement of a projection uses them until a rebuild has replaced them. */
const createPlaceholders = (store: StoreTables, names: ReadonlyArray<string>): Effect.Effect<void, StoreError> =>
  Effect.forEach(names, (table) => run(store, store.sql`create table ${store.sql.literal(quotedTable(table))} ()`), {
    discard: true
  })

/**
 * The locations of the tables that were just created or existed. Fails where the statements have created a table in
 * another schema.
 */
const locateCreated = <E, R>(
  store: StoreTables,
  { name }: Owner<E, R>,
  names: ReadonlyArray<string>,
  existing: ReadonlySet<string>
): Effect.Effect<ReadonlyMap<string, string>, StoreError> =>
  Effect.gen(function* () {
    const schema = yield* currentSchema(store)
    const found = yield* findTables(store, names)
    const locations = new Map<string, string>()
    for (const table of names) {
      const created = found.get(table)
      const isInSchema = Option.exists(schema, (current) => created?.live.startsWith(`${current}.`) === true)
      if (created === undefined || !created.isOrdinary || !(existing.has(table) || isInSchema)) {
        return yield* misconfigured(
          `the statements of projection ${quoted(name)} did not make ${table} as an ordinary table in ${Option.getOrElse(schema, () => "a schema of the search path")}: they must name it without a schema`
        )
      }
      locations.set(table, created.live)
    }
    return locations
  })
