/**
 * Collects the projections that own tables, as one start of the application declares them, and compares each with the
 * record of its tables. `prepareTables.ts` and `checkOwnership.ts` call it.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import type { Projection } from "../../Projection.js"
import { StoreError } from "../../StoreError.js"
import { fromSqlError } from "../runtime/sqlError.js"
import { declaredTables, quotedTable, tableStatements, textOfStatement } from "../store/declaredTables.js"
import { operation, type TableRecord } from "./tableRecords.js"

/** One projection, or the projections of several aggregates with one name and one declaration. */
export interface Owner<E, R> {
  readonly name: string
  readonly version: number
  /** The texts of the statements. */
  readonly statements: ReadonlyArray<string>
  /** The declared names of the tables. */
  readonly tables: ReadonlyArray<string>
  /** The kinds of the aggregates whose events it projects; `*` for all. */
  readonly aggregates: ReadonlyArray<string>
  /** The subscription that keeps the tables, where commits do not. */
  readonly subscription: string | undefined
  readonly projections: ReadonlyArray<Projection.Bound<E, R>>
  /** Creates the tables in the first schema of the search path. */
  readonly create: Effect.Effect<void, StoreError>
}

/** The record of a declaration, compared with it. */
export type RecordState =
  /** There is no record. */
  | { readonly _tag: "Missing" }
  /** The tables in place are of this declaration. */
  | { readonly _tag: "Current"; readonly record: TableRecord }
  /** They are of a lower version, or were never filled. */
  | { readonly _tag: "Outdated"; readonly record: TableRecord }
  /** They are of a higher version. */
  | { readonly _tag: "Newer"; readonly record: TableRecord }

/**
 * The owners among the projections. All projections of a subscription must be owners, because a rebuild moves the
 * position that they share.
 */
export const ownersOf = <E, R>(
  projections: ReadonlyArray<Projection.Bound<E, R>>,
  subscription: string | undefined,
  sql: SqlClient.SqlClient
): Either.Either<ReadonlyArray<Owner<E, R>>, StoreError> =>
  Either.gen(function* () {
    const owners = new Map<string, Owner<E, R>>()
    for (const projection of projections) {
      const { name } = projection
      if (projection.tables === undefined) {
        if (subscription === undefined) continue
        return yield* misconfigured(
          `projection ${quoted(name)} of subscription ${quoted(subscription)} owns no tables: all projections of a subscription must, because it moves on for all of them when tables are made anew`
        )
      }
      const owner = yield* ownerOf(projection, subscription, sql)
      const other = owners.get(name)
      if (other === undefined) {
        owners.set(name, owner)
        continue
      }
      if (other.version !== owner.version || !sameTexts(other.statements, owner.statements)) {
        return yield* misconfigured(`two projections have the name ${quoted(name)}, and own different tables`)
      }
      const twice = owner.aggregates.find((one) => other.aggregates.includes(one))
      if (twice !== undefined) {
        return yield* misconfigured(
          `two projections have the name ${quoted(name)}, and both are of ${aggregatesText([twice])}: a rebuild would project each event twice. Give the projection to one aggregate of that kind`
        )
      }
      owners.set(name, {
        ...other,
        aggregates: [...new Set([...other.aggregates, ...owner.aggregates])].sort(),
        projections: [...other.projections, ...owner.projections]
      })
    }
    const claimed = new Map<string, string>()
    for (const { name, tables } of owners.values()) {
      for (const table of tables) {
        const other = claimed.get(quotedTable(table))
        if (other !== undefined) {
          return yield* misconfigured(
            `the projections ${quoted(other)} and ${quoted(name)} both own the table ${table}: a table has one owner`
          )
        }
        claimed.set(quotedTable(table), name)
      }
    }
    return [...owners.values()]
  })

/** Compares an owner with the record of its tables. Fails where the declaration differs under the same version. */
export const recordStateOf = <E, R>(
  owner: Owner<E, R>,
  record: TableRecord | undefined
): Either.Either<RecordState, StoreError> => {
  if (record === undefined) return Either.right({ _tag: "Missing" })
  if (record.version < owner.version) return Either.right({ _tag: "Outdated", record })
  if (record.version > owner.version) return Either.right({ _tag: "Newer", record })
  const raise = "Raise `version`: then new tables are made beside them, out of all events, and replace them"
  const which = `the tables of projection ${quoted(owner.name)}, version ${owner.version},`
  const differing = Array.from(
    { length: Math.max(owner.statements.length, record.statements.length) },
    (_, index) => index
  ).find((index) => owner.statements[index] !== record.statements[index])
  if (differing !== undefined) {
    const shown = (statements: ReadonlyArray<string>) => shortened(statements[differing] ?? "nothing more")
    return misconfigured(
      `${which} were made by other statements: ${shown(record.statements)}, and now it is ${shown(owner.statements)}. ${raise}`
    )
  }
  if (!sameTexts(record.aggregates, owner.aggregates)) {
    return misconfigured(
      `${which} hold events of ${aggregatesText(record.aggregates)}, and here the projection is of ${aggregatesText(owner.aggregates)}. Give the projections of all its aggregates together, or, where they have changed: ${raise}`
    )
  }
  if (record.subscription !== owner.subscription) {
    return misconfigured(
      `${which} are kept by ${keeperOf(record.subscription)}, and here by ${keeperOf(owner.subscription)}. End all processes of the older version, raise \`version\`, and set onKeeperChange to "allow": then new tables are made out of all events`
    )
  }
  return Either.right({ _tag: "Current", record })
}

export const misconfigured = (description: string): Either.Either<never, StoreError> =>
  Either.left(new StoreError({ reason: "Misconfigured", operation, description }))

export const quoted = (name: string): string => JSON.stringify(name)

/** What keeps tables, as error messages say it. */
export const keeperOf = (subscription: string | undefined): string =>
  subscription === undefined ? "the commits themselves" : `subscription ${quoted(subscription)}`

/** The kinds of aggregates, as error messages say them. */
export const aggregatesText = (aggregates: ReadonlyArray<string>): string =>
  aggregates.map((name) => (name === "*" ? "all aggregates" : name)).join(", ")

// --- internal ---

const ownerOf = <E, R>(
  projection: Projection.Bound<E, R>,
  subscription: string | undefined,
  sql: SqlClient.SqlClient
): Either.Either<Owner<E, R>, StoreError> => {
  const { name, of } = projection
  if (of === undefined) return misconfigured(`projection ${quoted(name)} must be of an aggregate, or of all`)
  const declared = Either.try({
    // A projection that was not made by `Projection.make` was not checked.
    try: () => {
      const { tables = {}, version = 1 } = declaredTables(name, projection)
      return { statements: tableStatements(tables, sql), tables: Object.keys(tables), version }
    },
    catch: (cause) =>
      new StoreError({
        reason: "Misconfigured",
        operation,
        projection: name,
        description: cause instanceof Error ? cause.message : String(cause),
        cause
      })
  })
  return Either.flatMap(declared, ({ statements, tables, version }): Either.Either<Owner<E, R>, StoreError> => {
    const empty = tables.find((table) => !statements.some((one) => one.table === table))
    if (empty !== undefined) return misconfigured(`projection ${quoted(name)} has no statement for its table ${empty}`)
    return Either.right({
      name,
      version,
      statements: statements.map(({ statement }) => textOfStatement(statement)),
      tables,
      aggregates: [of === "all" ? "*" : of.streams === "plain" ? `${of.kind} (plain)` : of.kind],
      subscription,
      projections: [projection],
      create: Effect.forEach(
        statements,
        ({ statement, table }) =>
          Effect.mapError(statement, (error) => {
            const failure = fromSqlError(operation, "writing", error)
            const why = `${failure.description}: ${shortened(textOfStatement(statement))}`
            const isTaken = failure.code === "42P07"
            return new StoreError({
              ...failure,
              reason: isTaken ? "Misconfigured" : failure.reason,
              projection: name,
              description: `a statement that makes the table ${table} of version ${version} failed: ${why}${isTaken ? ". A statement must name what it makes without a schema, by a name that is free" : ""}`
            })
          }),
        { discard: true }
      )
    })
  })
}

const sameTexts = (some: ReadonlyArray<string>, others: ReadonlyArray<string>): boolean =>
  some.length === others.length && some.every((text, index) => text === others[index])

const shortened = (text: string): string => (text.length > 300 ? `${text.slice(0, 300)}…` : text)
