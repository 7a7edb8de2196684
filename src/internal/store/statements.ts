/**
 * Projections that are statements and nothing else, told to a store that can send them itself. Not by a field of theirs: one that is
 * made of another, by `{ ...projection, project }`, is what its `project` does.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { Statement } from "@effect/sql/Statement"
import type * as Effect from "effect/Effect"
import type { Event } from "../../Event.js"

/** The statements for one client; none where they can't be told, and doing the effect will say why. */
export type Statements = (sql: SqlClient.SqlClient) => ReadonlyArray<Statement<unknown>> | undefined

/** The same for an event. */
export type StatementsFor = (event: Event, sql: SqlClient.SqlClient) => ReadonlyArray<Statement<unknown>> | undefined

/** Says what the effects of a projection are. */
export const provideStatementsFor = (project: Project, statements: StatementsFor): void => {
  ofProjections.set(project, statements)
}

export const statementsFor = (project: Project): StatementsFor | undefined => ofProjections.get(project)

/** Says what an effect does: these statements, one after the other. */
export const provideStatements = (effect: Effect.Effect<unknown, unknown, unknown>, statements: Statements): void => {
  ofEffects.set(effect, statements)
}

export const statementsOf = (effect: Effect.Effect<unknown, unknown, unknown>): Statements | undefined =>
  ofEffects.get(effect)

// --- internal ---

type Project = (event: Event) => Effect.Effect<unknown, unknown, unknown>

const ofProjections = new WeakMap<Project, StatementsFor>()
const ofEffects = new WeakMap<object, Statements>()
