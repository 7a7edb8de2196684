/**
 * Tries whether the statements that have made the tables of a projection can make them again beside those in use, as the rebuild of a higher
 * version does. `tableVersions.ts` calls it when it creates tables.
 *
 * The statements run a second time, in a schema in front of the live tables, and are rolled back to a savepoint. Their text can't tell: they may
 * name a table with its schema in many ways.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { StoreError } from "../../StoreError.js"
import { withTransaction } from "../sql/pg/transaction.js"
import type { StoreTables } from "../sql/storeTables.js"
import { inFront } from "./shadowTables.js"
import { leftoversIn } from "./tableDependents.js"
import { operation, run } from "./tableRecords.js"

/** Fails where a rebuild could not make the tables. It runs inside the transaction that has made them. */
export const rehearseTables = (
  home: StoreTables,
  {
    create,
    name,
    tables
  }: { readonly name: string; readonly tables: ReadonlyArray<string>; readonly create: Effect.Effect<void, StoreError> }
): Effect.Effect<void, StoreError> =>
  Effect.gen(function* () {
    const { sql } = home
    const [role] = yield* run(
      home,
      sql<{ able: boolean }>`select has_database_privilege(current_database(), 'create') as able`
    )
    // A role that may not create schemas makes no higher version either.
    if (role?.able !== true) return
    const trying = Effect.gen(function* () {
      yield* run(home, sql`create schema ${sql(schema)}`)
      yield* inFront(sql, schema, create)
      const made = yield* run(
        home,
        sql<{
          name: string
          made: string
        }>`select '.' || t.name as name, quote_ident(n.nspname) || '.' || quote_ident(c.relname) as made
          from unnest(${[...tables]}::text[]) t (name)
          join pg_class c on c.relname = (parse_ident(t.name))[1] and c.relkind = 'r'
          join pg_namespace n on n.oid = c.relnamespace and n.nspname = ${schema}`
      )
      const missing = tables.filter((table) => !made.some(({ name }) => name === `.${table}`))
      if (missing.length > 0) {
        return yield* misconfigured(`${ofProjection(name)} make ${missing.join(", ")} in a schema that they name`)
      }
      const places = made.map(({ made }) => made)
      const left = yield* run(home, leftoversIn(sql, schema, places))
      if (left.length > 0) {
        return yield* misconfigured(
          `${ofProjection(name)} make more than the tables and what belongs to them: ${left.join(", ")}. Have a migration make it`
        )
      }
      return yield* new Rehearsed()
    })
    yield* withTransaction(sql, operation, trying).pipe(
      Effect.catchTag("Rehearsed", () => Effect.void),
      Effect.mapError((error) =>
        alreadyThere.test(error.code ?? "")
          ? misconfigured(`${ofProjection(name)} can't run beside the tables that they have made: ${error.description}`)
          : error
      )
    )
  })

// --- internal ---

/** The schema of the second tables. No other transaction sees it. */
const schema = "effect_maestro_rehearsal"

/** Ends the rehearsal, which is rolled back. */
class Rehearsed extends Data.TaggedError("Rehearsed") {}

/** A relation, a function, a schema or another object of the name is there already. */
const alreadyThere = /^(42P07|42723|42P06|42710)$/

const ofProjection = (name: string): string =>
  `the statements that make the tables of projection ${JSON.stringify(name)}`

const misconfigured = (problem: string): StoreError =>
  new StoreError({
    reason: "Misconfigured",
    operation,
    description: `${problem}. A higher version makes new tables beside those in use, so a statement must name a table without a schema`
  })
