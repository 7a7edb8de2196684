/**
 * Compiles the statements of projections, so that they can be sent in one batch. `commit/appendEvents.ts` uses it.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Statement from "@effect/sql/Statement"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import type { Command } from "./driver.js"

/** Whether statements of the running fiber can be sent as they compile: they are for this client, and the caller transforms none. */
export const canCompile = (fiber: Fiber.RuntimeFiber<unknown, unknown>, client: SqlClient.SqlClient): boolean => {
  if (fiber.getFiberRef(Statement.currentTransformer)._tag === "Some") return false
  const own = Context.getOption(fiber.currentContext as Context.Context<never>, SqlClient.SqlClient)
  return own._tag === "Some" && own.value === client
}

/**
 * The compiled statements of several handlers, or undefined if one fails. Running the projections gives the reason. Those of each handler are
 * compiled before the next one runs.
 */
export const compileAll = <E, R>(
  handlers: ReadonlyArray<Effect.Effect<ReadonlyArray<Statement.Statement<unknown>>, E, R>>
): Effect.Effect<ReadonlyArray<Command> | undefined, never, R> =>
  Effect.matchCause(
    Effect.forEach(handlers, (statements) => Effect.map(statements, (all) => all.map(compile))),
    { onFailure: () => undefined, onSuccess: (lists) => lists.flat() }
  )

/** A copy of bytes and of a date, because a handler may use the object again before the statement is sent. */
export const copyOf = (value: unknown): unknown =>
  value instanceof Date ? new Date(value) : value instanceof Uint8Array ? Uint8Array.from(value) : value

// --- internal ---

const compile = (statement: Statement.Statement<unknown>): Command => {
  const [text, values] = statement.compile()
  return { text, values: values.map(copyOf) }
}
