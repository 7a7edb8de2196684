/**
 * Brings the tables that projections own to the declared version: it creates them, or has a rebuild make them anew. `ProjectionTables` calls it.
 *
 * **What is in place** stands in a record for each projection (`tableRecords.ts`). A record changes in the transaction that makes its tables: the
 * one that creates them, or the one of the rebuild's swap. So a process that ends at any moment leaves a state from which the next one goes on.
 *
 * **Of any number of processes one works.** Tables are created under an advisory lock, and a process that waited for it reads the records
 * again. A rebuild has a lease. Its name is made of the declaration, so that processes of two declarations never fill the same shadow tables; of
 * two such rebuilds the swap of the lower version fails, because it finds a record that is not lower.
 *
 * **New tables hold all events.** A table is created empty only where that is right: no event is stored that concerns its projection, or the
 * subscription that keeps it has not begun. Otherwise an empty placeholder takes its name, with a record of version 0, and a rebuild
 * replaces it.
 *
 * **A subscription** has one position for all of its projections, so its tables are rebuilt together where one of them is.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import { beginning, type EventFeed, type Filter } from "../../EventFeed.js"
import type { Projection } from "../../Projection.js"
import type { StoreError, ValidationError } from "../../StoreError.js"
import type { SubscriptionStore } from "../../SubscriptionStore.js"
import { reservedPrefix } from "../codec/names.js"
import { sha256 } from "../codec/sha256.js"
import { insideTransaction } from "../runtime/ambientTransaction.js"
import { boundedInterruption } from "../runtime/interruption.js"
import { selectFitting } from "../sql/feed.js"
import { limitIdle, withTransaction } from "../sql/pg/transaction.js"
import { type StoreTables, Tables } from "../sql/storeTables.js"
import { quotedTable } from "../store/ownedTables.js"
import { bothOf } from "../store/readOptions.js"
import { withoutReceipts } from "../store/receiptStreams.js"
import { filterOf } from "../store/runProjections.js"
import { leaseOf } from "./plan.js"
import { abandonRebuild, rebuild } from "./rebuild.js"
import { keeperOf, misconfigured, type Owner, ownersOf, quoted, type Standing, standingOf } from "./tableOwners.js"
import {
  currentSchema,
  deleteRecord,
  findTables,
  lockRecords,
  operation,
  readRecords,
  run,
  type TableRecord,
  writeRecord
} from "./tableRecords.js"
import { rehearseTables } from "./tableRehearsal.js"

/** What is asked for. */
export interface Plan<E, R> {
  readonly projections: ReadonlyArray<Projection.Bound<E, R>>
  readonly subscription:
    | { readonly name: string; readonly partitions: number; readonly filter: Filter | undefined }
    | undefined
  readonly onExisting: "refuse" | "adopt" | "rebuild"
  readonly onKeeperChange: "refuse" | "allow"
  readonly batchSize: number | undefined
  readonly onProgress: Parameters<typeof rebuild>[0]["onProgress"]
}

/** Brings all tables of the projections to their versions, and returns when they are in place. */
export const prepareTables = <E, R>(
  plan: Plan<E, R>
): Effect.Effect<
  void,
  E | ValidationError | StoreError,
  EventFeed | SubscriptionStore | Tables | SqlClient.SqlClient | R
> =>
  Effect.gen(function* () {
    const home = yield* homeOutside
    const owners = yield* ownersOf(plan.projections, plan.subscription?.name, yield* SqlClient.SqlClient)
    const groups = plan.subscription === undefined ? owners.map((owner) => [owner]) : [owners]
    for (const group of groups) yield* prepareGroup(home, plan, group)
  })

/** Forgets the tables of a projection, and the rebuilds that made them; the tables stay. Returns whether there was a record. */
export const forgetTables = (name: string): Effect.Effect<boolean, StoreError, Tables> =>
  Effect.gen(function* () {
    const home = yield* homeOutside
    const { schema, sql } = home
    const forgetting = Effect.gen(function* () {
      yield* lockRecords(home)
      const record = (yield* readRecords(home)).get(name)
      if (record === undefined) return false
      const prefix = rebuildPrefix(record.subscription, name)
      for (const rebuild of yield* unfinished(home, prefix)) yield* abandonRebuild(rebuild)
      yield* run(home, sql`delete from ${schema}.rebuilds where left(name, length(${prefix}::text)) = ${prefix}`)
      yield* deleteRecord(home, name)
      return true
    })
    return yield* boundedInterruption(withTransaction(sql, operation, forgetting))
  })

// --- internal ---

/** How long a transaction that creates tables may idle, in milliseconds: a process that is stopped must not hold the lock for ever. */
const maxIdle = 5000

type Group<E, R> = ReadonlyArray<Owner<E, R>>

const homeOutside: Effect.Effect<StoreTables, StoreError, Tables> = Effect.gen(function* () {
  if (yield* insideTransaction) {
    return yield* misconfigured(
      "tables of projections are made in transactions of their own, and not inside of another one"
    )
  }
  return yield* Tables
})

/** How all owners of a group stand to their records. */
const standingsOf = <E, R>(home: StoreTables, group: Group<E, R>) =>
  Effect.flatMap(readRecords(home), (records) =>
    Either.all(
      group.map((owner) => Either.map(standingOf(owner, records.get(owner.name)), (standing) => ({ owner, standing })))
    )
  )

type Standings<E, R> = ReadonlyArray<{ readonly owner: Owner<E, R>; readonly standing: Standing }>

/** Whether there is nothing to do. Of a group where something is to do and something is newer, neither version is that of the application. */
const isSettled = <E, R>(standings: Standings<E, R>): Either.Either<boolean, StoreError> => {
  const open = standings.find(({ standing }) => standing._tag === "Missing" || standing._tag === "Outdated")
  const newer = standings.find(({ standing }) => standing._tag === "Newer")
  return open !== undefined && newer !== undefined
    ? misconfigured(
        `the tables of projection ${quoted(newer.owner.name)} are of a higher version than here, and those of ${quoted(open.owner.name)} of a lower one: projections of one subscription are raised together`
      )
    : Either.right(open === undefined)
}

const prepareGroup = <E, R>(
  home: StoreTables,
  plan: Plan<E, R>,
  group: Group<E, R>
): Effect.Effect<void, E | ValidationError | StoreError, EventFeed | SubscriptionStore | Tables | R> =>
  Effect.gen(function* () {
    const found = yield* standingsOf(home, group)
    if (yield* isSettled(found)) {
      yield* confirm(home, found)
      return yield* dropSuperseded(home, plan, group)
    }
    const registered = yield* boundedInterruption(withTransaction(home.sql, operation, register(home, plan, group)))
    if (registered === undefined) return yield* confirm(home, yield* standingsOf(home, group))
    yield* rebuildGroup(home, plan, group, registered)
  })

/** Warns where the tables are of a higher version, and fails where those of this version are not where they were made. */
const confirm = <E, R>(home: StoreTables, standings: Standings<E, R>): Effect.Effect<void, StoreError> =>
  Effect.forEach(
    standings,
    ({ owner, standing }) =>
      standing._tag === "Newer"
        ? Effect.logWarning(
            `projection ${quoted(owner.name)} is of version ${owner.version}, and its tables are of version ${standing.record.version}: this process writes the newer tables by the statements of the older version`
          )
        : standing._tag === "Current"
          ? placesOf(home, owner, standing.record)
          : Effect.void,
    { discard: true }
  )

/** Where the tables of a record are now. One that was renamed together with its schema is found by its name. */
const placesOf = <E, R>(
  home: StoreTables,
  { name, tables }: Owner<E, R>,
  record: TableRecord
): Effect.Effect<ReadonlyMap<string, string>, StoreError> =>
  Effect.gen(function* () {
    const places = new Map([...record.tables].filter(([table]) => tables.includes(table)))
    const byName = yield* findTables(home, [...places.keys()])
    const byPlace = yield* findTables(home, [...places.values()])
    for (const [table, place] of places) {
      const found = byName.get(table)
      const isThere = byPlace.has(place)
      if (found === undefined || (isThere && found.live !== place)) {
        return yield* misconfigured(
          `the table ${table} of projection ${quoted(name)} is recorded as ${place}, and ${
            isThere
              ? `the search path of this client leads to ${found?.live ?? "none"}: set it as it was when the table was made`
              : `is not there: to have it made anew out of all events, call ProjectionTables.forget(${quoted(name)}), and start again`
          }`
        )
      }
      places.set(table, found.live)
    }
    return places
  })

/** The places of the tables that a rebuild is to replace, by projection. */
type Registered = ReadonlyMap<string, ReadonlyMap<string, string>>

/**
 * In one transaction, under the lock: creates the tables that may be empty, with their records. Returns the tables that a rebuild has to make,
 * if any.
 */
const register = <E, R>(
  home: StoreTables,
  plan: Plan<E, R>,
  group: Group<E, R>
): Effect.Effect<Registered | undefined, StoreError> =>
  Effect.gen(function* () {
    yield* run(home, home.sql`select ${limitIdle(home, maxIdle)}`)
    yield* lockRecords(home)
    const standings = yield* standingsOf(home, group)
    if (yield* isSettled(standings)) return undefined
    if (plan.onKeeperChange === "refuse") yield* checkKeepers(standings)
    const mayBeEmpty = yield* isFresh(home, plan, group)
    const registered = new Map<string, ReadonlyMap<string, string>>()
    let isIncomplete = false
    for (const { owner, standing } of standings) {
      const { name, tables, version } = owner
      const record = standing._tag === "Missing" ? undefined : standing.record
      const known = record === undefined ? noPlaces : yield* placesOf(home, owner, record)
      const added = tables.filter((table) => !known.has(table))
      const existing = yield* existingTables(home, plan, owner, added)
      const isAdopted = record === undefined && plan.onExisting === "adopt" && existing.size > 0
      const isCreated = record === undefined && existing.size === 0 && mayBeEmpty
      if (isCreated) yield* owner.create
      else
        yield* makePlaceholders(
          home,
          added.filter((table) => !existing.has(table))
        )
      const places = new Map([...known, ...(yield* placesMade(home, owner, added, existing))])
      if (isCreated) yield* rehearseTables(home, owner)
      registered.set(name, places)
      if (standing._tag === "Current") continue
      if (isAdopted || isCreated) yield* writeRecord(home, recordOf(owner, version, places))
      else {
        isIncomplete = true
        yield* writeRecord(
          home,
          record === undefined
            ? recordOf(owner, 0, places)
            : { ...record, tables: new Map([...record.tables, ...places]) }
        )
      }
    }
    return isIncomplete ? registered : undefined
  })

const noPlaces: ReadonlyMap<string, string> = new Map()

/** Refuses tables that processes of the older version keep in another way: these would go on, and both would write each event. */
const checkKeepers = <E, R>(standings: Standings<E, R>): Either.Either<void, StoreError> => {
  const changed = standings.find(
    ({ owner, standing }) =>
      standing._tag === "Outdated" && standing.record.version > 0 && standing.record.subscription !== owner.subscription
  )
  if (changed === undefined || changed.standing._tag !== "Outdated") return Either.right(undefined)
  const { owner, standing } = changed
  return misconfigured(
    `the tables of projection ${quoted(owner.name)}, version ${standing.record.version}, are kept by ${keeperOf(standing.record.subscription)}, and those of version ${owner.version} by ${keeperOf(owner.subscription)}: a process of the older version would write each event a second time. End all such processes, and set onKeeperChange to "allow"`
  )
}

const recordOf = <E, R>(
  { aggregates, name, statements, subscription }: Owner<E, R>,
  version: number,
  tables: ReadonlyMap<string, string>
): TableRecord => ({ name, version, statements, tables, aggregates, subscription })

/** Whether tables that are empty hold what they must. */
const isFresh = <E, R>(home: StoreTables, plan: Plan<E, R>, group: Group<E, R>): Effect.Effect<boolean, StoreError> => {
  const { schema, sql } = home
  const filter = bothOf(filterOf(group.flatMap(({ projections }) => projections)), undefined)
  return Effect.map(
    plan.subscription === undefined
      ? // Also an event that the feed does not show yet.
        Effect.map(run(home, selectFitting(home, { after: beginning, filter, limit: 1 })), (rows) => rows.length)
      : Effect.map(
          run(home, sql`select 1 from ${schema}.subscriptions where name = ${plan.subscription.name} limit 1`),
          (rows) => rows.length
        ),
    (found) => found === 0
  )
}

/** The tables that are there already and in no record, where that is allowed. */
const existingTables = <E, R>(
  home: StoreTables,
  { onExisting }: Plan<E, R>,
  owner: Owner<E, R>,
  names: ReadonlyArray<string>
): Effect.Effect<ReadonlySet<string>, StoreError> =>
  Effect.gen(function* () {
    const found = yield* findTables(home, names)
    if (found.size === 0) return new Set<string>()
    const which = `projection ${quoted(owner.name)}, version ${owner.version},`
    for (const record of (yield* readRecords(home)).values()) {
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

/** Tables without columns, which a rebuild replaces. Until then no statement of a projection uses them. */
const makePlaceholders = (home: StoreTables, names: ReadonlyArray<string>): Effect.Effect<void, StoreError> =>
  Effect.forEach(names, (table) => run(home, home.sql`create table ${home.sql.literal(quotedTable(table))} ()`), {
    discard: true
  })

/** Where the tables are that were just made, or were there. */
const placesMade = <E, R>(
  home: StoreTables,
  { name }: Owner<E, R>,
  names: ReadonlyArray<string>,
  existing: ReadonlySet<string>
): Effect.Effect<ReadonlyMap<string, string>, StoreError> =>
  Effect.gen(function* () {
    const schema = yield* currentSchema(home)
    const found = yield* findTables(home, names)
    const places = new Map<string, string>()
    for (const table of names) {
      const made = found.get(table)
      const isInSchema = Option.exists(schema, (current) => made?.live.startsWith(`${current}.`) === true)
      if (made === undefined || !made.isOrdinary || !(existing.has(table) || isInSchema)) {
        return yield* misconfigured(
          `the statements of projection ${quoted(name)} did not make ${table} as an ordinary table in ${Option.getOrElse(schema, () => "a schema of the search path")}: they must name it without a schema`
        )
      }
      places.set(table, made.live)
    }
    return places
  })

/** Has a rebuild make all tables of the group, and takes what another process has done for its own work. */
const rebuildGroup = <E, R>(
  home: StoreTables,
  plan: Plan<E, R>,
  group: Group<E, R>,
  places: Registered
): Effect.Effect<void, E | ValidationError | StoreError, EventFeed | SubscriptionStore | Tables | R> =>
  Effect.gen(function* () {
    const [first, ...others] = group.flatMap(({ tables }) => tables)
    if (first === undefined) return
    const which = group.map(({ name, version }) => `${quoted(name)} of version ${version}`).join(", ")
    const prefix = rebuildPrefix(plan.subscription?.name, group[0]?.name ?? "")
    const name = `${prefix}${yield* sha256(JSON.stringify(group.map((one) => [one.name, one.version, one.statements, one.aggregates])))}`
    yield* Effect.logInfo(`tables of projections are made anew beside those in use: ${which}`)

    const building = rebuild<E | StoreError, R>({
      name,
      isOwn: true,
      projections: group.flatMap(({ projections }) => projections.map((projection) => withoutReceipts(projection))),
      tables: [first, ...others],
      create: Effect.forEach(group, ({ create }) => create, { discard: true }),
      subscription: plan.subscription,
      batchSize: plan.batchSize,
      onProgress: plan.onProgress,
      onSwap: recordSwap(home, group, places)
    })
    yield* Effect.catchAll(building, (error) =>
      Effect.gen(function* () {
        const settled = yield* Effect.either(Effect.flatMap(standingsOf(home, group), isSettled))
        if (Either.isRight(settled) && settled.right) return
        // Another process has made this version by other statements.
        if (Either.isLeft(settled) && settled.left.reason === "Misconfigured") return yield* settled.left
        return yield* Effect.fail(error)
      })
    )
    const standings = yield* standingsOf(home, group)
    if (!(yield* isSettled(standings))) {
      return yield* misconfigured(
        `the rebuild of ${which} is done, and the record of the tables is still the old one: call ProjectionTables.forget, and start again`
      )
    }
    yield* confirm(home, standings)
    for (const stale of yield* unfinished(home, prefix)) yield* abandonIdle(home, stale)
    yield* Effect.logInfo(`tables of projections are in place: ${which}`)
  })

/** In the transaction of the swap: the records are of the new tables. Fails where another process was first. */
const recordSwap = <E, R>(home: StoreTables, group: Group<E, R>, places: Registered): Effect.Effect<void, StoreError> =>
  Effect.gen(function* () {
    // All users of the tables wait for this transaction, so it does not wait for long, and is tried again.
    yield* run(home, home.sql`select set_config('lock_timeout', '500ms', true)`)
    yield* lockRecords(home)
    const standings = yield* standingsOf(home, group)
    const first = standings.find(({ standing }) => standing._tag === "Newer" || standing._tag === "Missing")
    if (first !== undefined || (yield* isSettled(standings))) {
      return yield* misconfigured("another process has changed the record of the tables meanwhile")
    }
    yield* Effect.forEach(group, (owner) =>
      writeRecord(
        home,
        recordOf(
          owner,
          owner.version,
          new Map([...(places.get(owner.name) ?? noPlaces)].filter(([table]) => owner.tables.includes(table)))
        )
      )
    )
  })

/** What the names of a group's rebuilds begin with. */
const rebuildPrefix = (subscription: string | undefined, projection: string): string =>
  `${reservedPrefix}/tables/${subscription === undefined ? "projection" : "subscription"}/${encodeURIComponent(subscription ?? projection)}/`

/** The rebuilds that have begun, and are not done; each has a row for its lease. */
const unfinished = (home: StoreTables, prefix: string): Effect.Effect<ReadonlyArray<string>, StoreError> => {
  const { schema, sql } = home
  const lease = leaseOf(prefix)
  return Effect.map(
    run(
      home,
      sql<{
        name: string
      }>`select name from ${schema}.subscriptions where left(name, length(${lease}::text)) = ${lease}`
    ),
    (rows) => rows.map(({ name }) => name.slice(leaseOf("").length))
  )
}

/** Gives up the rebuilds that a killed process has left, and that began before the tables in place were recorded. A later one may go on. */
const dropSuperseded = <E, R>(
  home: StoreTables,
  plan: Plan<E, R>,
  group: Group<E, R>
): Effect.Effect<void, StoreError, Tables> =>
  Effect.gen(function* () {
    const names = yield* unfinished(home, rebuildPrefix(plan.subscription?.name, group[0]?.name ?? ""))
    if (names.length === 0) return
    const superseded = yield* run(
      home,
      home.sql<{ name: string }>`select name from ${home.schema}.rebuilds
        where name = any(${[...names]}::text[])
          and started_at < (select max(changed_at) from ${home.schema}.projection_tables where name = any(${group.map(({ name }) => name)}::text[]))`
    )
    for (const { name } of superseded) yield* abandonIdle(home, name)
  })

/** Gives up a rebuild that no process works for. */
const abandonIdle = (home: StoreTables, name: string): Effect.Effect<void, StoreError, Tables> => {
  const { schema, sql } = home
  return withTransaction(
    sql,
    operation,
    Effect.gen(function* () {
      const free = yield* run(
        home,
        sql`select 1 from ${schema}.subscriptions
          where name = ${leaseOf(name)} and coalesce(leased_until < clock_timestamp(), true) for update skip locked`
      )
      if (free.length > 0) yield* abandonRebuild(name)
    })
  )
}
