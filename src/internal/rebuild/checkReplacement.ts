/**
 * Checks that nothing is lost when shadow tables replace live ones. `shadowTables.ts` calls it before the first event
 * is projected, and `replaceTables.ts` again under the lock, because the live tables may have changed since.
 *
 * - An object outside that depends on a live table refuses the rebuild (`tableDependents.ts`).
 * - The settings of a live table are set on its shadow table (`tableSettings.ts`). Then the catalogue must describe
 *   both alike (`tableDefinition.ts`). So a property that this library does not know refuses the rebuild, too.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { StoreError } from "../../StoreError.js"
import { withTransaction } from "../sql/pg/transaction.js"
import { definitionOf, differencesBetween, differencesInShape, type TableDefinition } from "../sql/tableDefinition.js"
import { execute, identifier, misconfigured, operation, runInside } from "./catalogStatements.js"
import type { ShadowTable } from "./resolveTables.js"
import { collisionsOf, dependentsOf, leftoversIn, type Replaced } from "./tableDependents.js"
import { keptSequences } from "./tableSequences.js"
import { hasRowSecurity, type Settings, settingsOf } from "./tableSettings.js"

/** Which settings of the live table the shadow table gets. */
export type Shape = Pick<Settings, "sameShape" | "withRowSecurity">

/** All of them. */
export const fullShape: Shape = { sameShape: true, withRowSecurity: true }

/** Row level security that `create` has made on the shadow table replaces that of the live table. */
export const shapeOf = (
  sql: SqlClient.SqlClient,
  { shadow }: ShadowTable,
  sameShape: boolean
): Effect.Effect<Shape, StoreError> =>
  sameShape
    ? Effect.succeed(fullShape)
    : Effect.map(runInside(hasRowSecurity(sql, shadow)), (has) => ({ sameShape, withRowSecurity: !has }))

/** The settings for a shadow table that is still in the shadow schema. */
export const inShadowSchema = ({ live, shadow, shadowSchema }: ShadowTable, shape: Shape): Settings => ({
  ...shape,
  live,
  shadow,
  target: shadow,
  targetSchema: shadowSchema
})

/** Fails where objects outside depend on the live tables. */
export const checkDependents = (
  sql: SqlClient.SqlClient,
  tables: ReadonlyArray<ShadowTable>,
  sameShape: boolean
): Effect.Effect<void, StoreError> =>
  Effect.gen(function* () {
    const found = yield* runInside(dependentsOf(sql, yield* replacedBy(sql, tables, sameShape)))
    if (found.length === 0) return
    const lives = `the table${tables.length === 1 ? "" : "s"} ${tables.map(({ live }) => live).join(", ")}`
    return yield* misconfigured(
      `${lives} can't be replaced by a new table, because these depend on it and would be lost or in the way: ${found.join(", ")}`
    )
  })

/**
 * Fails where `create` has made more than the tables, or where names of the new objects are taken in the schemas of the
 * live tables.
 */
export const checkNewObjects = (
  sql: SqlClient.SqlClient,
  schema: string,
  tables: ReadonlyArray<ShadowTable>,
  sameShape: boolean
): Effect.Effect<void, StoreError> =>
  Effect.gen(function* () {
    const shadows = tables.map(({ shadow }) => shadow)
    const left = yield* runInside(leftoversIn(sql, schema, shadows))
    if (left.length > 0) {
      return yield* misconfigured(
        `\`create\` has made more than the tables, which would be dropped at the end: ${left.join(", ")}; name their schema`
      )
    }
    const taken = yield* takenNames(sql, tables, sameShape)
    if (taken.length > 0) {
      return yield* misconfigured(
        `the new tables have names that are taken: ${taken.join(", ")}. Rename ${taken.length === 1 ? "it" : "them"}, or give the indexes, constraints and sequences of the new tables other names`
      )
    }
  })

/**
 * The relations in the schemas of the live tables that stay and have the name of an index or sequence of a shadow
 * table.
 */
export const takenNames = (
  sql: SqlClient.SqlClient,
  tables: ReadonlyArray<ShadowTable>,
  sameShape: boolean
): Effect.Effect<ReadonlyArray<string>, StoreError> =>
  Effect.flatMap(replacedBy(sql, tables, sameShape), (replaced) =>
    Effect.map(
      Effect.forEach(tables, ({ live, shadow }) => runInside(collisionsOf(sql, shadow, replaced, live))),
      (taken) => taken.flat()
    )
  )

/** Sets on the shadow tables what the live ones have, compares them, and rolls that back. */
export const checkSettings = (
  sql: SqlClient.SqlClient,
  schema: string,
  tables: ReadonlyArray<ShadowTable>,
  sameShape: boolean
): Effect.Effect<void, StoreError> =>
  withTransaction(
    sql,
    operation,
    Effect.gen(function* () {
      // The owner of the live table must be allowed to have tables in this schema.
      yield* runInside(sql`grant usage, create on schema ${identifier(sql, schema)} to public`)
      for (const table of tables) {
        const { live, liveSchema, shadow, shadowSchema } = table
        const shape = yield* shapeOf(sql, table, sameShape)
        yield* execute(sql, yield* runInside(settingsOf(sql, inShadowSchema(table, shape))))
        const before = yield* runInside(definitionOf(sql, live, { withOwnedSequences: false }))
        const replace = { schema: shadowSchema, by: liveSchema }
        const after = yield* runInside(definitionOf(sql, shadow, { withOwnedSequences: false, replace }))
        yield* checkDifferences(table, before, after, shape)
      }
      return yield* new RollBack()
    })
  ).pipe(Effect.catchTag("RollBack", () => Effect.void))

/** Fails where the new table would differ from the live one. */
export const checkDifferences = (
  { live }: ShadowTable,
  before: TableDefinition,
  after: TableDefinition,
  { sameShape, withRowSecurity }: Shape
): Effect.Effect<void, StoreError> => {
  const differences = sameShape
    ? differencesBetween(before, after)
    : differencesInShape(before, after, { withRowSecurity })
  return differences.length === 0
    ? Effect.void
    : misconfigured(
        `the new table would not be what ${live} is: ${differences.join("; ")}. If it was changed since the rebuild began, abandon the rebuild and run it again`
      )
}

// --- internal ---

/** Ends a transaction that is to be rolled back. */
class RollBack extends Data.TaggedError("RollBack") {}

/** Which tables are dropped, and which of their sequences stay. */
const replacedBy = (
  sql: SqlClient.SqlClient,
  tables: ReadonlyArray<ShadowTable>,
  sameShape: boolean
): Effect.Effect<Replaced, StoreError> =>
  Effect.map(
    Effect.forEach(tables, ({ live, shadow }) => runInside(keptSequences(sql, live, shadow, sameShape))),
    (kept) => ({
      tables: tables.map(({ live }) => live),
      kept: kept.flat().map(({ sequence }) => sequence),
      replacesForeignKeys: !sameShape
    })
  )
