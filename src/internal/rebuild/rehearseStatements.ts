/**
 * Tries whether the statements of a projection can create its tables again beside those in use, as the rebuild of a
 * higher version does. `registerTables.ts` calls it when it has created tables.
 *
 * The statements run a second time, in a schema in front of the live tables, and are rolled back to a savepoint.
 * Reading their text would not be enough, because a statement can name the schema of a table in many ways.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { StoreError } from "../../StoreError.js"
import { withTransaction } from "../sql/pg/transaction.js"
import type { StoreTables } from "../sql/storeTables.js"
import { withEmptySearchPath, withSearchPathPrefix } from "./catalogStatements.js"
import { takenNames } from "./checkReplacement.js"
import { resolveTables, type ShadowTable } from "./resolveTables.js"
import { leftoversIn } from "./tableDependents.js"
import type { Owner } from "./tableOwners.js"
import { operation, run } from "./tableRecords.js"

/** Fails where a rebuild could not create the tables. It runs inside the transaction that has created them. */
export const rehearseStatements = <E, R>(store: StoreTables, owner: Owner<E, R>): Effect.Effect<void, StoreError> =>
  Effect.gen(function* () {
    const { sql } = store
    const [role] = yield* run(
      store,
      sql<{ able: boolean }>`select has_database_privilege(current_database(), 'create') as able`
    )
    // A role that may not create schemas makes no higher version either.
    if (role?.able !== true) return
    const tables = yield* resolveTables(sql, schema, owner.tables)
    const trying = Effect.gen(function* () {
      yield* run(store, sql`create schema ${sql(schema)}`)
      yield* withSearchPathPrefix(sql, schema, owner.create)
      yield* checkCreated(store, owner, tables)
      return yield* new RollBack()
    })
    yield* withTransaction(sql, operation, trying).pipe(
      Effect.catchTag("RollBack", () => Effect.void),
      Effect.mapError((error) =>
        alreadyExists.test(error.code ?? "")
          ? withoutSchema(
              `${statementsOf(owner)} can't run beside the tables that they have made: ${error.description}`
            )
          : error
      )
    )
  })

// --- internal ---

/** The schema of the second tables. No other transaction sees it. */
const schema = "effect_maestro_rehearsal"

/** Ends the rehearsal, which is to be rolled back. */
class RollBack extends Data.TaggedError("RollBack") {}

/** The `SQLSTATE`s of a relation, a function, a schema or another object whose name is taken. */
const alreadyExists = /^(42P07|42723|42P06|42710)$/

/**
 * Fails where a table is missing in the schema, where there are other objects, or where names are taken in the schemas
 * in use.
 */
const checkCreated = <E, R>(
  store: StoreTables,
  owner: Owner<E, R>,
  tables: ReadonlyArray<ShadowTable>
): Effect.Effect<void, StoreError> =>
  Effect.gen(function* () {
    const { sql } = store
    const created = yield* run(
      store,
      sql<{
        name: string
        location: string
      }>`select '.' || t.name as name, quote_ident(n.nspname) || '.' || quote_ident(c.relname) as location
        from unnest(${[...owner.tables]}::text[]) t (name)
        join pg_class c on c.relname = (parse_ident(t.name))[1] and c.relkind = 'r'
        join pg_namespace n on n.oid = c.relnamespace and n.nspname = ${schema}`
    )
    const missing = owner.tables.filter((table) => !created.some(({ name }) => name === `.${table}`))
    if (missing.length > 0) {
      return yield* withoutSchema(`${statementsOf(owner)} make ${missing.join(", ")} in a schema that they name`)
    }
    const locations = created.map(({ location }) => location)
    const left = yield* run(store, leftoversIn(sql, schema, locations))
    if (left.length > 0) {
      return yield* withoutSchema(
        `${statementsOf(owner)} make more than the tables and what belongs to them: ${left.join(", ")}. Have a migration make it`
      )
    }
    const taken = yield* withEmptySearchPath(sql, takenNames(sql, tables, false))
    if (taken.length > 0) {
      return yield* misconfigured(
        `${statementsOf(owner)} could not make them again for a higher version, because names that the database chooses are taken: ${taken.join(", ")}. Rename ${taken.length === 1 ? "it" : "them"}, or name the indexes, constraints and sequences of the tables yourself`
      )
    }
  })

const statementsOf = ({ name }: { readonly name: string }): string =>
  `the statements that make the tables of projection ${JSON.stringify(name)}`

const misconfigured = (description: string): StoreError =>
  new StoreError({ reason: "Misconfigured", operation, description })

const withoutSchema = (problem: string): StoreError =>
  misconfigured(
    `${problem}. A higher version makes new tables beside those in use, so a statement must name a table without a schema`
  )
