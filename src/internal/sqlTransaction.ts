/**
 * `SqlClient.withTransaction` without its traps: failures stay failures, and waiting for a connection can be given up.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import type { Connection } from "@effect/sql/SqlConnection"
import { SqlError } from "@effect/sql/SqlError"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import type { StoreError } from "../StoreError.js"
import { fromSqlError } from "./sqlError.js"

/**
 * Runs an effect in a transaction: the caller's, from a savepoint on, or one of its own. The effect's failures come back
 * as they are. What goes wrong in the transaction itself comes as `StoreError`:
 *
 * - `withTransaction` turns an error at COMMIT or ROLLBACK into a defect. At COMMIT it is told as what it means for the
 *   commit; at ROLLBACK it does not hide why there was a rollback: a transaction that can't be rolled back any more has
 *   ended with its connection.
 * - Its wait for a pooled connection can't be interrupted. So the connection is waited for in a fiber that is left behind
 *   when the caller gives up, and hands the connection back when it comes.
 */
export const withTransaction = <A, E, R>(
  sql: SqlClient.SqlClient,
  operation: string,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E | StoreError, R> =>
  Effect.contextWithEffect((context: Context.Context<never>) => {
    const outer = Context.getOption(context, SqlClient.TransactionConnection)
    return Option.isSome(outer)
      ? settle(sql, operation, "writing", effect)
      : (Effect.scoped(
          Effect.flatMap(reserve(sql, operation), (connection) =>
            settle(sql, operation, "committing", effect).pipe(
              // Depth -1: a reserved connection on which no transaction is open yet, so that `withTransaction` opens one.
              Effect.provideService(SqlClient.TransactionConnection, [connection, -1])
            )
          )
        ) as Effect.Effect<A, E | StoreError, R>)
  })

// --- internal ---

const settle = <A, E, R>(
  sql: SqlClient.SqlClient,
  operation: string,
  phase: "writing" | "committing",
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E | StoreError, R> =>
  Effect.suspend(() => {
    let result: Exit.Exit<A, E> | undefined
    const observed = Effect.onExit(effect, (exit) =>
      Effect.sync(() => {
        result = exit
      })
    )
    return sql.withTransaction(observed).pipe(
      Effect.catchAllCause((cause): Effect.Effect<A, E | StoreError> => {
        // The effect failed, or was interrupted: that is the answer, even if the rollback failed too.
        if (result !== undefined && Exit.isFailure(result)) return Effect.failCause(result.cause)
        const error = sqlErrorIn(cause)
        if (Option.isNone(error)) return Effect.failCause(cause as Cause.Cause<never>)
        // With no result the transaction did not even begin.
        return Effect.fail(fromSqlError(operation, result === undefined ? "writing" : phase, error.value))
      })
    )
  })

const sqlErrorIn = (cause: Cause.Cause<unknown>): Option.Option<SqlError> =>
  Option.filter(
    Option.orElse(Cause.failureOption(cause), () => Cause.dieOption(cause)),
    isSqlError
  )

const isSqlError = (u: unknown): u is SqlError => u instanceof SqlError

/** A connection for the scope; waiting for it can be interrupted. */
const reserve = (sql: SqlClient.SqlClient, operation: string): Effect.Effect<Connection, StoreError, Scope.Scope> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const acquired = yield* Deferred.make<Connection, SqlError>()
      yield* Effect.forkDaemon(Effect.intoDeferred(Scope.extend(sql.reserve, scope), acquired))
      // Closed when the scope around ends, or where the connection has not come by then, as soon as it comes.
      yield* Effect.addFinalizer((exit) => {
        const close = Effect.zipRight(Effect.exit(Deferred.await(acquired)), Scope.close(scope, exit))
        return Effect.flatMap(Deferred.isDone(acquired), (done) => (done ? close : Effect.forkDaemon(close)))
      })
      return yield* Effect.mapError(restore(Deferred.await(acquired)), (error) =>
        fromSqlError(operation, "reading", error)
      )
    })
  )
