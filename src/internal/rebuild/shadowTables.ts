/**
 * Shadow tables: the tables that a rebuild fills while the live ones are in use, and their swap with those.
 *
 * Shadow tables have the names of the live ones, in a schema of their own that stands first in the search path while projections run. At
 * the swap the live tables are dropped, and the shadow tables are moved into their schema.
 *
 * **Nothing that hangs on a live table is lost.**
 *
 * - An object outside that depends on the table refuses the rebuild (`tableDependents.ts`).
 * - The properties of the table are set on the shadow table (`tableSettings.ts`), and the catalogue's pictures of both must then be
 *   equal (`tablePicture.ts`). So a property that this library does not know refuses the rebuild, too.
 * - Both are tried before the first event is projected, and rolled back. They are repeated under the lock of the swap, because the live
 *   table may have changed since.
 *
 * It would be simpler to keep the live table and to replace its rows, but that would lock it for as long as all rows are written.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type * as Statement from "@effect/sql/Statement"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { StoreError } from "../../StoreError.js"
import { fromSqlError } from "../runtime/sqlError.js"
import { withTransaction } from "../sql/pg/transaction.js"
import { collisionsOf, dependentsOf, leftoversIn, type Replaced } from "./tableDependents.js"
import { differencesBetween, differencesInShape, type Picture, pictureOf } from "./tablePicture.js"
import {
  createAlike,
  hasRowSecurity,
  identityStates,
  keptSequences,
  renamesOf,
  type Settings,
  settingsOf,
  statisticsMoves,
  storageOf,
  touchesOf
} from "./tableSettings.js"

/** A live table and its shadow table. Names are quoted. */
export interface Shadowed {
  /** With its schema: `"public"."balances"`. */
  readonly live: string
  readonly liveSchema: string
  readonly shadow: string
  readonly shadowSchema: string
  readonly name: string
}

/** Makes the shadow tables, unless they are there already, and fails where something would be lost when they replace the live ones. */
export const makeShadows = <E, R>(
  sql: SqlClient.SqlClient,
  schema: string,
  names: ReadonlyArray<string>,
  create: Effect.Effect<unknown, E, R> | undefined
): Effect.Effect<ReadonlyArray<Shadowed>, E | StoreError, R> =>
  Effect.gen(function* () {
    const tables = yield* findAll(sql, schema, names)
    const isBegun = (yield* run(sql`select 1 from pg_namespace where nspname = ${schema}`)).length > 0
    if (!isBegun) {
      yield* run(sql`create schema ${identifier(sql, schema)}`)
      if (create === undefined) yield* onEmptyPath(sql, makeAlike(sql, tables))
      else yield* inFront(sql, schema, create)
    }
    const rows = yield* run(
      sql<{ name: string }>`select quote_ident(tablename) as name from pg_tables where schemaname = ${schema}`
    )
    const made = new Set(rows.map(({ name }) => name))
    const missing = tables.find(({ name }) => !made.has(name))
    if (missing !== undefined) {
      return yield* misconfigured(
        isBegun
          ? `it was begun for other tables, without ${missing.name}: abandon it first, or give it another name`
          : `\`create\` did not make the table ${missing.name}; it must name it without a schema`
      )
    }
    const isAlike = create === undefined
    yield* onEmptyPath(
      sql,
      Effect.gen(function* () {
        yield* refuseDependents(sql, tables, isAlike)
        yield* refuseLeftovers(sql, schema, tables, isAlike)
        yield* rehearse(sql, schema, tables, isAlike)
      })
    )
    return tables
  })

/**
 * Runs the effect with the shadow tables in front, and fails where it has written to a table that is neither one of them nor one of the
 * store's.
 */
export const writingShadows = <A, E, R>(
  sql: SqlClient.SqlClient,
  schema: string,
  storeSchema: string,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E | StoreError, R> =>
  Effect.gen(function* () {
    // What the server counts may begin before this transaction.
    const written = run(
      sql<{ table: string; rows: string }>`select quote_ident(schemaname) || '.' || quote_ident(relname) as table,
          (n_tup_ins + n_tup_upd + n_tup_del)::text as rows
        from pg_stat_xact_user_tables
        where n_tup_ins + n_tup_upd + n_tup_del > 0 and schemaname <> ${schema} and schemaname <> ${storeSchema}`
    )
    const before = new Map((yield* written).map(({ rows, table }) => [table, rows]))
    const result = yield* inFront(sql, schema, effect)
    const other = (yield* written).find(({ rows, table }) => before.get(table) !== rows)
    if (other !== undefined) {
      return yield* misconfigured(
        `a projection wrote to ${other.table}, which is not rebuilt: name it in \`tables\`, and have the projection write it without a schema's name`
      )
    }
    return result
  })

/**
 * Locks the live tables until the end of the transaction, and fails where something hangs on them by now. It does not wait for long,
 * because a wait for such a lock holds up all later users of the table. The row of `rebuild_swaps` is locked first, so that a commit in a
 * transaction with an older snapshot fails instead of losing what it projects (`check_snapshot` in `migrations.ts`).
 */
export const lockLive = (
  sql: SqlClient.SqlClient,
  storeSchema: Statement.Fragment,
  tables: ReadonlyArray<Shadowed>,
  isAlike: boolean,
  /** In milliseconds. */
  lockWait: number
): Effect.Effect<void, StoreError> =>
  Effect.gen(function* () {
    yield* run(sql`select set_config('lock_timeout', ${`${lockWait}ms`}, true)`)
    yield* run(sql`update ${storeSchema}.rebuild_swaps set swaps = swaps + 1`)
    const names = tables.map(({ live }) => live)
    yield* run(sql`lock table ${sql.literal(names.join(", "))} in access exclusive mode`)
    // A GRANT or REVOKE takes no lock on the table. Because this writes the same row of the catalogue, one that comes now fails.
    for (const statement of yield* run(touchesOf(sql, names))) yield* run(sql.unsafe(statement))
    yield* run(sql`select set_config('lock_timeout', '0', true)`)
    yield* onEmptyPath(sql, refuseDependents(sql, tables, isAlike))
  })

/** Whether the tables were in use for longer than a rebuild waits, so that it tries again. */
export const isInUse = (error: unknown): boolean =>
  error instanceof StoreError &&
  (error.code === "55P03" ||
    error.code === "40P01" ||
    // Another swap replaced the table between two reads of the catalogue.
    (error.code === "XX000" && isCatalogueRace.test(error.description)))

/** Drops the live tables and puts the shadow tables in their place. */
export const swap = (
  sql: SqlClient.SqlClient,
  schema: string,
  tables: ReadonlyArray<Shadowed>,
  isAlike: boolean
): Effect.Effect<void, StoreError> =>
  onEmptyPath(
    sql,
    Effect.gen(function* () {
      // Others may use a sequence of the table without the table.
      yield* run(sql`select set_config('lock_timeout', ${maxLockWait}, true)`)
      const moves = yield* Effect.forEach(tables, (table, index) =>
        planMove(sql, table, quoted(`${schema}_${index}`), isAlike)
      )
      yield* execute(
        sql,
        moves.flatMap(({ before }) => before)
      )
      yield* run(sql`drop table ${sql.literal(tables.map(({ live }) => live).join(", "))}`)
      // All of them first, because a policy of one may read another.
      yield* executeTogether(
        sql,
        moves.flatMap(({ move }) => move)
      )
      yield* executeTogether(
        sql,
        moves.flatMap(({ after }) => after)
      )
      for (const { picture, shape, table } of moves) {
        const made = yield* run(pictureOf(sql, table.live, { withOwnedSequences: true }))
        yield* refuseDifferences(table, picture, made, shape)
      }
      yield* run(sql`drop schema ${identifier(sql, schema)}`)
    })
  )

/** The indexes and sequences of the schemas where the shadow tables go that have the name of one of theirs, and stay. */
export const takenNames = (
  sql: SqlClient.SqlClient,
  tables: ReadonlyArray<Shadowed>,
  isAlike: boolean
): Effect.Effect<ReadonlyArray<string>, StoreError> =>
  Effect.flatMap(replacedOf(sql, tables, isAlike), (replaced) =>
    Effect.map(
      Effect.forEach(tables, ({ live, shadow }) => run(collisionsOf(sql, shadow, replaced, live))),
      (taken) => taken.flat()
    )
  )

/** The live tables of these names, each with its shadow table in that schema. */
export const shadowsIn = (
  sql: SqlClient.SqlClient,
  schema: string,
  names: ReadonlyArray<string>
): Effect.Effect<ReadonlyArray<Shadowed>, StoreError> => findAll(sql, schema, names)

/** Drops the schema of the shadow tables with all that is in it. */
export const dropShadows = (sql: SqlClient.SqlClient, schema: string): Effect.Effect<void, StoreError> =>
  Effect.asVoid(run(sql`drop schema if exists ${identifier(sql, schema)} cascade`))

/** Runs the effect with the shadow tables in front of the live ones. */
export const inFront = <A, E, R>(sql: SqlClient.SqlClient, schema: string, effect: Effect.Effect<A, E, R>) =>
  withSearchPath(sql, sql`quote_ident(${schema}) || ', ' || current_setting('search_path')`, effect)

// --- internal ---

const operation = "Rebuild"

const isCatalogueRace = /tuple concurrently (updated|deleted)|could not open relation with OID|cache lookup failed/

/** How long a swap waits for the transactions that use the tables, before it gives up the lock request and tries again later. */
const maxLockWait = "500ms"

const run = <A>(statement: Effect.Effect<A, SqlError>): Effect.Effect<A, StoreError> =>
  Effect.mapError(statement, (error) => fromSqlError(operation, "writing", error))

const misconfigured = (description: string) =>
  Effect.fail(new StoreError({ reason: "Misconfigured", operation, description }))

const quoted = (name: string): string => `"${name.replaceAll('"', '""')}"`

const identifier = (sql: SqlClient.SqlClient, name: string) => sql.literal(quoted(name))

/** Statements that the catalogue has put together, with its own quoting. One that the database refuses is named. */
const execute = (sql: SqlClient.SqlClient, statements: ReadonlyArray<string>): Effect.Effect<void, StoreError> =>
  Effect.forEach(
    statements,
    (statement) =>
      Effect.catchIf(
        run(sql.unsafe(statement)),
        ({ reason }) => reason === "Misconfigured" || reason === "Unknown",
        (error) => misconfigured(`the new table can't have what the old one has: ${statement}: ${error.description}`)
      ),
    { discard: true }
  )

/** Runs such statements in one round trip, so that the lock of the swap is short. */
const executeTogether = (
  sql: SqlClient.SqlClient,
  statements: ReadonlyArray<string>
): Effect.Effect<void, StoreError> =>
  statements.some((statement) => statement.includes(blockQuote))
    ? execute(sql, statements)
    : execute(sql, [`do ${blockQuote} begin ${statements.join("; ")}; end ${blockQuote}`])

const blockQuote = "$rebuild$"

/** Runs the effect with an empty search path, so that the catalogue qualifies all names. Its queries are long and touch few rows. */
export const onEmptyPath = <A, E, R>(sql: SqlClient.SqlClient, effect: Effect.Effect<A, E, R>) =>
  Effect.zipRight(run(sql`select set_config('jit', 'off', true)`), withSearchPath(sql, sql`''`, effect))

/** Sets the search path for the effect. A failure leaves it, because the transaction or savepoint around is rolled back. */
const withSearchPath = <A, E, R>(
  sql: SqlClient.SqlClient,
  path: Statement.Fragment,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E | StoreError, R> =>
  Effect.gen(function* () {
    const [row] = yield* run(sql<{ path: string }>`select current_setting('search_path') as path`)
    yield* run(sql`select set_config('search_path', ${path}, true)`)
    const result = yield* effect
    yield* run(sql`select set_config('search_path', ${row?.path ?? ""}, true)`)
    return result
  })

const findAll = (
  sql: SqlClient.SqlClient,
  schema: string,
  names: ReadonlyArray<string>
): Effect.Effect<ReadonlyArray<Shadowed>, StoreError> =>
  Effect.gen(function* () {
    const found = new Map<string, Shadowed>()
    for (const table of names) {
      const { live, ...rest } = yield* find(sql, schema, table)
      const other = [...found.values()].find(({ name }) => name === rest.name)
      if (other !== undefined && other.live !== live) {
        return yield* misconfigured(`${other.live} and ${live} have one name, so a rebuild can't make both`)
      }
      found.set(live, { live, ...rest })
    }
    return [...found.values()]
  })

const find = (sql: SqlClient.SqlClient, schema: string, table: string): Effect.Effect<Shadowed, StoreError> =>
  Effect.flatMap(
    run(
      sql<{
        schema: string
        name: string
        kind: string
        shadow: string
        can_create: boolean
      }>`select quote_ident(n.nspname) as schema, quote_ident(c.relname) as name, c.relkind::text as kind, quote_ident(${schema}) as shadow,
          has_schema_privilege(n.oid, 'create') as can_create
        from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = to_regclass(${table})`
    ),
    ([row]) =>
      row === undefined || row.kind !== "r"
        ? misconfigured(
            `there is no table ${JSON.stringify(table)}${row === undefined ? "" : " that is an ordinary one"}`
          )
        : row.can_create
          ? Effect.succeed({
              live: `${row.schema}.${row.name}`,
              liveSchema: row.schema,
              shadow: `${row.shadow}.${row.name}`,
              shadowSchema: row.shadow,
              name: row.name
            })
          : misconfigured(`this role may not create the new table in the schema ${row.schema}`)
  )

/** Makes the shadow tables like the live ones, each part by the name that it has there. */
const makeAlike = (sql: SqlClient.SqlClient, tables: ReadonlyArray<Shadowed>): Effect.Effect<void, StoreError> =>
  Effect.gen(function* () {
    yield* run(sql`select set_config('default_tablespace', '', true)`)
    for (const table of tables) {
      const { live, shadow, shadowSchema } = table
      yield* execute(sql, yield* run(createAlike(sql, live, shadow)))
      yield* execute(sql, yield* run(renamesOf(sql, live, shadow, shadowSchema)))
      yield* execute(sql, yield* run(storageOf(sql, inPlace(table, like))))
    }
  })

/** Which settings of the live table the new one gets. */
type Shape = Pick<Settings, "isAlike" | "withRowSecurity">

const like: Shape = { isAlike: true, withRowSecurity: true }

const shapeOf = (sql: SqlClient.SqlClient, { shadow }: Shadowed, isAlike: boolean): Effect.Effect<Shape, StoreError> =>
  isAlike
    ? Effect.succeed(like)
    : Effect.map(run(hasRowSecurity(sql, shadow)), (has) => ({ isAlike, withRowSecurity: !has }))

/** The settings of a shadow table that is not moved yet. */
const inPlace = ({ live, shadow, shadowSchema }: Shadowed, shape: Shape): Settings => ({
  ...shape,
  live,
  shadow,
  target: shadow,
  targetSchema: shadowSchema
})

/** Which tables go, and which of their sequences stay. */
const replacedOf = (
  sql: SqlClient.SqlClient,
  tables: ReadonlyArray<Shadowed>,
  isAlike: boolean
): Effect.Effect<Replaced, StoreError> =>
  Effect.map(
    Effect.forEach(tables, ({ live, shadow }) => run(keptSequences(sql, live, shadow, isAlike))),
    (kept) => ({
      tables: tables.map(({ live }) => live),
      kept: kept.flat().map(({ sequence }) => sequence),
      replacesForeignKeys: !isAlike
    })
  )

const refuseDependents = (
  sql: SqlClient.SqlClient,
  tables: ReadonlyArray<Shadowed>,
  isAlike: boolean
): Effect.Effect<void, StoreError> =>
  Effect.gen(function* () {
    const found = yield* run(dependentsOf(sql, yield* replacedOf(sql, tables, isAlike)))
    if (found.length === 0) return
    return yield* misconfigured(
      `${namesOf(tables)} can't be replaced by a new table, because these hang on it and would be lost or in the way: ${found.join(", ")}`
    )
  })

/** Refuses what `create` has made beside the tables, and names that are taken where the tables go. */
const refuseLeftovers = (
  sql: SqlClient.SqlClient,
  schema: string,
  tables: ReadonlyArray<Shadowed>,
  isAlike: boolean
): Effect.Effect<void, StoreError> =>
  Effect.gen(function* () {
    const shadows = tables.map(({ shadow }) => shadow)
    const left = yield* run(leftoversIn(sql, schema, shadows))
    if (left.length > 0) {
      return yield* misconfigured(
        `\`create\` has made more than the tables, which would be dropped at the end: ${left.join(", ")}; name their schema`
      )
    }
    const taken = yield* takenNames(sql, tables, isAlike)
    if (taken.length > 0) {
      return yield* misconfigured(
        `the new tables have names that are taken: ${taken.join(", ")}. Rename ${taken.length === 1 ? "it" : "them"}, or give the indexes, constraints and sequences of the new tables other names`
      )
    }
  })

/** Ends a rehearsal, which is rolled back. */
class Rehearsed extends Data.TaggedError("Rehearsed") {}

/** Sets on the shadow tables what the live ones have, compares them, and takes it back. */
const rehearse = (
  sql: SqlClient.SqlClient,
  schema: string,
  tables: ReadonlyArray<Shadowed>,
  isAlike: boolean
): Effect.Effect<void, StoreError> =>
  withTransaction(
    sql,
    operation,
    Effect.gen(function* () {
      // A new owner must be allowed to have tables in this schema.
      yield* run(sql`grant usage, create on schema ${identifier(sql, schema)} to public`)
      for (const table of tables) {
        const { live, liveSchema, shadow, shadowSchema } = table
        const shape = yield* shapeOf(sql, table, isAlike)
        yield* execute(sql, yield* run(settingsOf(sql, inPlace(table, shape))))
        const before = yield* run(pictureOf(sql, live, { withOwnedSequences: false }))
        const replace = { schema: shadowSchema, by: liveSchema }
        const after = yield* run(pictureOf(sql, shadow, { withOwnedSequences: false, replace }))
        yield* refuseDifferences(table, before, after, shape)
      }
      return yield* new Rehearsed()
    })
  ).pipe(Effect.catchTag("Rehearsed", () => Effect.void))

const refuseDifferences = (
  { live }: Shadowed,
  before: Picture,
  after: Picture,
  { isAlike, withRowSecurity }: Shape
): Effect.Effect<void, StoreError> => {
  const differences = isAlike
    ? differencesBetween(before, after)
    : differencesInShape(before, after, { withRowSecurity })
  return differences.length === 0
    ? Effect.void
    : misconfigured(
        `the new table would not be what ${live} is: ${differences.join("; ")}. If it was changed since the rebuild began, abandon the rebuild and run it again`
      )
}

interface Move {
  readonly table: Shadowed
  readonly shape: Shape
  /** The statements before the live table is dropped, those that move the shadow table, and those after it. */
  readonly before: ReadonlyArray<string>
  readonly move: ReadonlyArray<string>
  readonly after: ReadonlyArray<string>
  readonly picture: Picture
}

/** All that has to be read of a live table before it is dropped. */
const planMove = (
  sql: SqlClient.SqlClient,
  table: Shadowed,
  interim: string,
  isAlike: boolean
): Effect.Effect<Move, StoreError> =>
  Effect.gen(function* () {
    const { live, liveSchema, name, shadow, shadowSchema } = table
    const kept = yield* run(keptSequences(sql, live, shadow, isAlike))
    const states = isAlike ? yield* run(identityStates(sql, live, shadow)) : []
    const shape = yield* shapeOf(sql, table, isAlike)
    const settings = yield* run(settingsOf(sql, { ...shape, live, shadow, target: live, targetSchema: liveSchema }))
    return {
      table,
      shape,
      // Sequences that the columns own would be dropped with the table.
      before: [...states, ...kept.map(({ sequence }) => `alter sequence ${sequence} owned by none`)],
      // Renaming the table in its new schema lets the database choose a free name for its array type: a type or table may have the usual
      // one, which is that of the table behind an underscore.
      move: [
        `alter table ${shadow} rename to ${interim}`,
        `alter table ${shadowSchema}.${interim} set schema ${liveSchema}`,
        `alter table ${liveSchema}.${interim} rename to ${name}`,
        ...(yield* run(statisticsMoves(sql, shadow, liveSchema)))
      ],
      after: [
        ...settings,
        ...kept.map(({ column, sequence }) => `alter sequence ${sequence} owned by ${live}.${column}`)
      ],
      picture: yield* run(pictureOf(sql, live, { withOwnedSequences: true }))
    }
  })

const namesOf = (tables: ReadonlyArray<Shadowed>): string =>
  `the table${tables.length === 1 ? "" : "s"} ${tables.map(({ live }) => live).join(", ")}`
