/**
 * Projections that are statements and nothing else, told by the effect that does them to a store that can send them itself.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { Statement } from "@effect/sql/Statement"
import type * as Effect from "effect/Effect"

/** The statements for one client; none where they can't be told, and doing the effect will say why. */
export type Statements = (sql: SqlClient.SqlClient) => ReadonlyArray<Statement<unknown>> | undefined

/** Says what an effect does: these statements, one after the other. */
export const provideStatements = (effect: Effect.Effect<unknown, unknown, unknown>, statements: Statements): void => {
  known.set(effect, statements)
}

export const statementsOf = (effect: Effect.Effect<unknown, unknown, unknown>): Statements | undefined =>
  known.get(effect)

// --- internal ---

const known = new WeakMap<object, Statements>()
