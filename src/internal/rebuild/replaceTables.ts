/**
 * Replaces live tables by their shadow tables: it locks and drops the live tables, and moves the shadow tables into
 * their schemas. All that belonged to the live tables is set on the new ones, and checked (`checkReplacement.ts`).
 * `swapTables.ts` calls it, in the transaction of the swap.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type * as Statement from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import { StoreError } from "../../StoreError.js"
import { definitionOf, type TableDefinition } from "../sql/tableDefinition.js"
import {
  execute,
  executeTogether,
  identifier,
  quotedName,
  runInside,
  withEmptySearchPath
} from "./catalogStatements.js"
import { checkDependents, checkDifferences, type Shape, shapeOf } from "./checkReplacement.js"
import { statisticsMoves } from "./copyTable.js"
import type { ShadowTable } from "./resolveTables.js"
import { identityStates, keptSequences } from "./tableSequences.js"
import { settingsOf, touchesOf } from "./tableSettings.js"

/**
 * Locks the live tables until the end of the transaction, and fails where objects depend on them. The wait is short,
 * because all later users of a table wait behind a lock request.
 *
 * The row of `rebuild_swaps` is locked first. So a commit in a transaction with an older snapshot fails, and does not
 * lose what it projects (`check_snapshot` in `functions.ts`).
 */
export const lockLiveTables = (
  sql: SqlClient.SqlClient,
  storeSchema: Statement.Fragment,
  tables: ReadonlyArray<ShadowTable>,
  options: {
    readonly sameShape: boolean
    /** In milliseconds. */
    readonly lockWait: number
  }
): Effect.Effect<void, StoreError> =>
  Effect.gen(function* () {
    yield* setLockTimeout(sql, options.lockWait)
    yield* runInside(sql`update ${storeSchema}.rebuild_swaps set swaps = swaps + 1`)
    const names = tables.map(({ live }) => live)
    yield* runInside(sql`lock table ${sql.literal(names.join(", "))} in access exclusive mode`)
    // GRANT and REVOKE take no lock on the table. They write its row of the catalogue, so they fail after this
    // statement.
    for (const statement of yield* runInside(touchesOf(sql, names))) yield* runInside(sql.unsafe(statement))
    yield* setLockTimeout(sql, 0)
    yield* withEmptySearchPath(sql, checkDependents(sql, tables, options.sameShape))
  })

/** Limits the wait for each lock of the transaction; 0 is no limit. */
export const setLockTimeout = (sql: SqlClient.SqlClient, millis: number): Effect.Effect<unknown, StoreError> =>
  runInside(sql`select set_config('lock_timeout', ${`${millis}ms`}, true)`)

/** Whether other transactions had locks that the swap needs, so that a later attempt may succeed. */
export const isLockConflict = (error: unknown): boolean =>
  error instanceof StoreError &&
  (error.code === "55P03" ||
    error.code === "40P01" ||
    // Another swap replaced the table between two reads of the catalogue.
    (error.code === "XX000" && isCatalogueRace.test(error.description)))

/** Drops the live tables, and moves the shadow tables into their schemas. The live tables are locked. */
export const replaceTables = (
  sql: SqlClient.SqlClient,
  shadowSchema: string,
  tables: ReadonlyArray<ShadowTable>,
  sameShape: boolean
): Effect.Effect<void, StoreError> =>
  withEmptySearchPath(
    sql,
    Effect.gen(function* () {
      // A sequence of a table may be in use without the table.
      yield* setLockTimeout(sql, sequenceLockWait)
      const moves = yield* Effect.forEach(tables, (table, index) =>
        planMove(sql, table, quotedName(`${shadowSchema}_${index}`), sameShape)
      )
      yield* execute(
        sql,
        moves.flatMap(({ before }) => before)
      )
      yield* runInside(sql`drop table ${sql.literal(tables.map(({ live }) => live).join(", "))}`)
      // All tables are moved before the settings, because a policy of one table may read another.
      yield* executeTogether(
        sql,
        moves.flatMap(({ move }) => move)
      )
      yield* executeTogether(
        sql,
        moves.flatMap(({ after }) => after)
      )
      for (const { definition, shape, table } of moves) {
        const made = yield* runInside(definitionOf(sql, table.live, { withOwnedSequences: true }))
        yield* checkDifferences(table, definition, made, shape)
      }
      yield* runInside(sql`drop schema ${identifier(sql, shadowSchema)}`)
    })
  )

// --- internal ---

const isCatalogueRace = /tuple concurrently (updated|deleted)|could not open relation with OID|cache lookup failed/

/** In milliseconds. */
const sequenceLockWait = 500

/** What is read of a live table before it is dropped, and the statements that follow from it. */
interface Move {
  readonly table: ShadowTable
  readonly shape: Shape
  /** They run before the live table is dropped. */
  readonly before: ReadonlyArray<string>
  /** They move the shadow table. */
  readonly move: ReadonlyArray<string>
  /** They run when all shadow tables are moved. */
  readonly after: ReadonlyArray<string>
  readonly definition: TableDefinition
}

const planMove = (
  sql: SqlClient.SqlClient,
  table: ShadowTable,
  interimName: string,
  sameShape: boolean
): Effect.Effect<Move, StoreError> =>
  Effect.gen(function* () {
    const { live, liveSchema, name, shadow, shadowSchema } = table
    const kept = yield* runInside(keptSequences(sql, live, shadow, sameShape))
    const states = sameShape ? yield* runInside(identityStates(sql, live, shadow)) : []
    const shape = yield* shapeOf(sql, table, sameShape)
    const settings = { ...shape, live, shadow, target: live, targetSchema: liveSchema }
    return {
      table,
      shape,
      // Sequences that the columns own would be dropped with the table.
      before: [...states, ...kept.map(({ sequence }) => `alter sequence ${sequence} owned by none`)],
      // The array type of a table moves with it, by its name: that of the table after an underscore, which may be
      // taken. Renaming the table in its new schema lets the database choose a free name.
      move: [
        `alter table ${shadow} rename to ${interimName}`,
        `alter table ${shadowSchema}.${interimName} set schema ${liveSchema}`,
        `alter table ${liveSchema}.${interimName} rename to ${name}`,
        ...(yield* runInside(statisticsMoves(sql, shadow, liveSchema)))
      ],
      after: [
        ...(yield* runInside(settingsOf(sql, settings))),
        ...kept.map(({ column, sequence }) => `alter sequence ${sequence} owned by ${live}.${column}`)
      ],
      definition: yield* runInside(definitionOf(sql, live, { withOwnedSequences: true }))
    }
  })
