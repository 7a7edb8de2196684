/** Runs one statement of a rebuild, in the transaction around it or on a connection of its own. */
import type { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import type { StoreError } from "../../StoreError.js"
import { whenInTransaction } from "../runtime/ambientTransaction.js"
import { fromSqlError } from "../runtime/sqlError.js"
import { executeAlone } from "../sql/pg/connection.js"
import type { StoreTables } from "../sql/storeTables.js"

/** Its failure names the operation. On a connection of its own the statement has a bounded interruption. */
export const makeRun =
  (operation: string) =>
  <A>({ sql }: StoreTables, statement: Effect.Effect<A, SqlError>): Effect.Effect<A, StoreError> =>
    whenInTransaction((inside) =>
      inside
        ? Effect.mapError(statement, (error) => fromSqlError(operation, "writing", error))
        : executeAlone(sql, operation, "writing", statement)
    )
