/** Runs one statement of a rebuild, in the transaction around it or on a connection of its own. */
import type { SqlError } from "@effect/sql/SqlError"
import type * as Effect from "effect/Effect"
import type { StoreError } from "../../StoreError.js"
import { execute } from "../sql/pg/execute.js"
import type { StoreTables } from "../sql/storeTables.js"

/** Its failure names the operation. On a connection of its own the statement has a bounded interruption. */
export const makeRun =
  (operation: string) =>
  <A>({ sql }: StoreTables, statement: Effect.Effect<A, SqlError>): Effect.Effect<A, StoreError> =>
    execute(sql, { operation, phase: "writing", savepoint: false }, statement)
