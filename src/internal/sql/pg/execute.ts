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
import { asStoreError } from "../../runtime/storeFailure.js"
import { statementSpan, withoutInnerSpans, withSpanIfTraced } from "../../runtime/tracing.js"
import { type CommandRunner, isRefusedInside } from "./commandRunner.js"
import { type HeldConnection, interruptible, onConnection, withConnection } from "./connection.js"
import { type Command, isInTransaction, type Rows } from "./driver.js"
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
    if (!inside) {
      return withoutInnerSpans(
        outsideTransactions(sql, operation, phase, (held) =>
          interruptible(held, onConnection([held.connection, 0], statement))
        )
      )
    }
    const mapped = Effect.mapError(statement, (error) =>
      fromSqlError(operation, phase === "committing" ? "writing" : phase, error)
    )
    return savepoint ? withSavepoint(operation, mapped) : withoutInnerSpans(mapped)
  })

/**
 * Runs a command, prepared if it has a name: on a connection of its own, or in the transaction around it, where it is not prepared. Returns
 * the rows as lists of texts.
 */
export const executeCommand = (
  runner: CommandRunner,
  { operation, phase, savepoint = true }: Execution,
  command: Command
): Effect.Effect<Rows, StoreError> =>
  whenInTransaction((inside) =>
    inside
      ? execute(
          runner.sql,
          { operation, phase, savepoint },
          runner.sql.unsafe(command.text, command.values).values as Effect.Effect<Rows, SqlError>
        )
      : executeAlone(runner, operation, phase, command)
  )

/** Runs one command on a connection of its own. */
export const executeAlone = (
  runner: CommandRunner,
  operation: string,
  phase: Phase,
  command: Command
): Effect.Effect<Rows, StoreError> =>
  withSpanIfTraced(
    "sql.execute",
    statementSpan(command.text)
  )(Effect.mapError(runner.run([command]), (error) => failureOf(operation, phase, error)))

/** The failure of a command that has run on connections of its own. */
export const failureOf = (operation: string, phase: Phase, error: SqlError): StoreError =>
  isRefusedInside(error) ? insideTransaction(operation, error) : fromSqlError(operation, phase, error)

/** Runs an effect in the transaction around it, or outside of one with bounded interruption. */
export const boundedOutside = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  whenInTransaction((inside) => (inside ? effect : boundedInterruption(effect)))

/**
 * Retries a statement that another owner of its connection cancelled, or that failed to serialize because the default isolation of the
 * database is stricter than READ COMMITTED. Nothing of it is stored, and the next attempt sees the transaction that won.
 */
export const retryDisturbed = <A>(statement: Effect.Effect<A, StoreError>): Effect.Effect<A, StoreError> =>
  Effect.catchIf(statement, isDisturbed, () => Effect.retry(statement, { times: 10, while: isDisturbed }))

/**
 * Retries a transaction in which another owner of its connection cancelled a statement, so that nothing of it is stored. Few times, because its
 * statements are the application's, and a cancel may be meant.
 */
export const retryStrayCancel = <A, E, R>(transaction: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.catchIf(transaction, isCancelledByRequest, () =>
    Effect.retry(transaction, { times: 1, while: isCancelledByRequest })
  )

/** Whether `retryDisturbed` retries after the failure. */
export const isDisturbed = (error: StoreError | undefined): boolean =>
  isStrayCancel(error) || error?.code === serializationFailure

// --- internal ---

/** A projection may fail with the `SqlError` of its own statement. */
const isCancelledByRequest = (error: unknown): boolean => isStrayCancel(asStoreError("commitAll", error))

/**
 * Runs a statement on a connection of its own. If the application had left a transaction on that connection, nothing is stored, the
 * connection is closed, and the statement runs on another one.
 */
const outsideTransactions = <A>(
  sql: SqlClient.SqlClient,
  operation: string,
  phase: Phase,
  run: (held: HeldConnection) => Effect.Effect<A, SqlError>,
  attempts = 3
): Effect.Effect<A, StoreError> =>
  Effect.catchAll(
    withConnection(sql, operation, (held) =>
      Effect.flatMap(Effect.either(run(held)), (result): Effect.Effect<A, StoreError | InTransaction> => {
        const mapped = Either.mapLeft(result, (error) => fromSqlError(operation, phase, error))
        const isRefused = Either.isLeft(mapped) && mapped.left.code === "25P02"
        if (!isRefused && !isInTransaction(held.connection)) return mapped
        held.close()
        return new InTransaction({ cause: Either.isLeft(mapped) ? mapped.left.cause : undefined })
      })
    ),
    (error) =>
      !(error instanceof InTransaction)
        ? Effect.fail(error)
        : attempts > 1
          ? outsideTransactions(sql, operation, phase, run, attempts - 1)
          : Effect.fail(insideTransaction(operation, error.cause))
  )

const insideTransaction = (operation: string, cause: unknown): StoreError =>
  new StoreError({
    reason: "Unavailable",
    operation,
    description: "the pool gives connections that are inside of a transaction; nothing was stored",
    cause
  })

/**
 * The statement ran in a transaction that is rolled back with its connection. The cause is the server's error, which a trigger can raise, too:
 * with it the append batcher sends each commit of a batch again by itself.
 */
class InTransaction extends Data.TaggedError("InTransaction")<{ readonly cause: unknown }> {}

const serializationFailure = "40001"
