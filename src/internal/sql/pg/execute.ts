/**
 * One statement of the library: on a connection of its own, or part of the transaction around it. All rooms of the SQL store run their
 * statements by this file.
 *
 * A failure is a `StoreError`. Inside a transaction a failed statement must not break the transaction, so it has a savepoint. Outside,
 * interruption waits for the server for the grace period at most.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import { StoreError } from "../../../StoreError.js"
import { whenInTransaction } from "../../runtime/ambientTransaction.js"
import { boundedInterruption } from "../../runtime/interruption.js"
import { fromSqlError, isStrayCancel, type Phase } from "../../runtime/sqlError.js"
import { withoutInnerSpans } from "../../runtime/tracing.js"
import { interruptible, onConnection, withConnection } from "./connection.js"
import { isInTransaction } from "./driver.js"
import { withSavepoint } from "./transaction.js"

/** What a statement is for, and how it fails. */
export interface Execution {
  readonly operation: string
  readonly phase: Phase
  /** Whether a failure leaves the transaction around it usable; true by default. */
  readonly savepoint?: boolean
}

/** Runs a statement: on a connection of its own, or in the transaction around it. */
export const execute = <A>(
  sql: SqlClient.SqlClient,
  { operation, phase, savepoint = true }: Execution,
  statement: Effect.Effect<A, SqlError>
): Effect.Effect<A, StoreError> =>
  whenInTransaction((inside) => {
    if (!inside) return executeAlone(sql, operation, phase, statement)
    const mapped = Effect.mapError(statement, (error) =>
      fromSqlError(operation, phase === "committing" ? "writing" : phase, error)
    )
    return savepoint ? withSavepoint(operation, mapped) : withoutInnerSpans(mapped)
  })

/** Runs an effect in the transaction around it, or outside of one with bounded interruption. */
export const boundedOutside = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  whenInTransaction((inside) => (inside ? effect : boundedInterruption(effect)))

/**
 * Runs one statement on a connection of its own. If the application had left a transaction on that connection, nothing is stored, the
 * connection is closed, and the statement runs on another one.
 */
export const executeAlone = <A>(
  sql: SqlClient.SqlClient,
  operation: string,
  phase: Phase,
  statement: Effect.Effect<A, SqlError>,
  attempts = 3
): Effect.Effect<A, StoreError> => {
  const attempt = withConnection(sql, operation, (held) =>
    Effect.flatMap(
      Effect.either(
        Effect.mapError(interruptible(held, onConnection([held.connection, 0], statement)), (error) =>
          fromSqlError(operation, phase, error)
        )
      ),
      (result): Effect.Effect<A, StoreError | InTransaction> => {
        const isRefused = Either.isLeft(result) && result.left.code === "25P02"
        if (!isRefused && !isInTransaction(held.connection)) return result
        held.close()
        return new InTransaction({ cause: Either.isLeft(result) ? result.left.cause : undefined })
      }
    )
  )
  return Effect.catchAll(withoutInnerSpans(attempt), (error) =>
    !(error instanceof InTransaction)
      ? Effect.fail(error)
      : attempts > 1
        ? executeAlone(sql, operation, phase, statement, attempts - 1)
        : new StoreError({
            reason: "Unavailable",
            operation,
            description: "the pool gives connections that are inside of a transaction; nothing was stored",
            cause: error.cause
          })
  )
}

/**
 * Retries a statement that another owner of its connection cancelled, or that failed to serialize because the default isolation of the
 * database is stricter than READ COMMITTED. Nothing of it is stored, and the next attempt sees the transaction that won.
 */
export const retryDisturbed = <A>(statement: Effect.Effect<A, StoreError>): Effect.Effect<A, StoreError> =>
  Effect.catchIf(statement, isDisturbed, () => Effect.retry(statement, { times: 10, while: isDisturbed }))

// --- internal ---

/**
 * The statement ran in a transaction that is rolled back with its connection. The cause is the server's error, which a trigger can raise, too:
 * with it the append batcher sends each commit of a batch again by itself.
 */
class InTransaction extends Data.TaggedError("InTransaction")<{ readonly cause: unknown }> {}

const isDisturbed = (error: StoreError): boolean => isStrayCancel(error) || error.code === serializationFailure

const serializationFailure = "40001"
