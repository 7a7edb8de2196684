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

/** The compiled statements of the projections, or undefined if a handler fails. Running the projections gives the reason. */
export const compileAll = <E, R>(
  statements: Effect.Effect<ReadonlyArray<Statement.Statement<unknown>>, E, R>
): Effect.Effect<ReadonlyArray<Command> | undefined, never, R> =>
  Effect.matchCause(
    Effect.map(statements, (all) =>
      all.map((statement): Command => {
        const [text, values] = statement.compile()
        return { text, values }
      })
    ),
    { onFailure: () => undefined, onSuccess: (commands) => commands }
  )
