/**
 * Transactions of the store, on any `SqlClient`. They are told to the application's statements as `SqlClient.withTransaction`
 * does, so those inside take part, but without its traps:
 *
 * - It turns an error at COMMIT or ROLLBACK into a defect. Here the first is told as what it means for the commit, and the second does
 *   not hide why there was a rollback.
 * - Postgres answers COMMIT by a silent rollback where a statement has failed and its failure was handled without a
 *   savepoint. Here that is a failure: success means stored.
 * - Two transactions at once inside of one use one savepoint, and undo each other. Here they take turns.
 * - A fiber that outlives its transaction goes on writing to the connection, which may be a stranger's by then. Here the
 *   connection is closed to it.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import type { Connection } from "@effect/sql/SqlConnection"
import { SqlError } from "@effect/sql/SqlError"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { StoreError } from "../StoreError.js"
import { endPipeline, together } from "./pipeline.js"
import { promptly } from "./promptly.js"
import { fromSqlError } from "./sqlError.js"
import { spanned } from "./tracing.js"

/**
 * Runs an effect in a transaction: the caller's, from a savepoint on, or one of its own. The effect's failures come back
 * as they are; what goes wrong in the transaction itself is a `StoreError`.
 */
export const withTransaction = <A, E, R>(
  sql: SqlClient.SqlClient,
  operation: string,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E | StoreError, R> =>
  Effect.contextWithEffect((context: Context.Context<never>) => {
    const outer = Context.getOption(context, SqlClient.TransactionConnection)
    return Option.isSome(outer)
      ? inner(operation, outer.value, effect, true)
      : outermost(
          sql,
          operation,
          (connection) => begin(operation, connection),
          () => effect
        )
  })

/**
 * Runs one statement of the store in the transaction around it, from a savepoint on: when it fails, the transaction is as it was. A
 * statement that succeeds has nothing to hide, so nothing is asked after it.
 */
export const withSavepoint = <A, E, R>(
  operation: string,
  statement: Effect.Effect<A, E, R>
): Effect.Effect<A, E | StoreError, R> =>
  Effect.contextWithEffect((context: Context.Context<never>) =>
    Option.match(Context.getOption(context, SqlClient.TransactionConnection), {
      onNone: () => statement,
      onSome: (outer) => inner(operation, outer, statement, false)
    })
  )

/** A transaction, as `SqlClient` knows it. */
export type Open = readonly [connection: Connection, depth: number]

/**
 * Runs in a transaction a statement that finds out for itself whether that was begun (`commit_events` does, with `p_begun`), and what
 * comes after it. Where the connection can, BEGIN and the statement make one round trip.
 */
export const withTransactionFrom = <A, E, B, E2, R>(
  sql: SqlClient.SqlClient,
  operation: string,
  first: (begun: boolean) => Effect.Effect<A, E>,
  next: (a: A) => Effect.Effect<B, E2, R>
): Effect.Effect<B, E | E2 | StoreError, R> =>
  Effect.contextWithEffect((context: Context.Context<never>) => {
    const outer = Context.getOption(context, SqlClient.TransactionConnection)
    return Option.isSome(outer)
      ? inner(operation, outer.value, Effect.flatMap(first(false), next), true)
      : outermost(
          sql,
          operation,
          (connection) => together(connection, begin(operation, connection), on([connection, 0], first(true))),
          next
        )
  })

/** Begins a transaction on a connection that was reserved, with settings that end with it. */
export const begin = (
  operation: string,
  connection: Connection,
  settings: ReadonlyArray<string> = []
): Effect.Effect<void, StoreError> =>
  // To break it off is to ask the server to cancel whatever it is at.
  Effect.mapError(
    Effect.asVoid(
      Effect.uninterruptible(connection.executeUnprepared([...beginning, ...settings].join("; "), [], undefined))
    ),
    (error) => fromSqlError(operation, "writing", error)
  )

/**
 * Commits it. A success means stored. After a failure nothing of it is open any more: one that broke off COMMIT before it had begun, as
 * a cancel can, has left the transaction to be taken back.
 */
export const commit = (operation: string, connection: Connection): Effect.Effect<void, StoreError> =>
  Effect.matchEffect(connection.executeRaw("COMMIT", []), {
    onFailure: (error) =>
      Effect.zipRight(rollback(connection), Effect.fail(fromSqlError(operation, "committing", error))),
    onSuccess: (result) => (commandOf(result) === "ROLLBACK" ? Effect.fail(rolledBack(operation)) : Effect.void)
  })

/** Takes it back. One that can't be taken back any more has ended with its connection. */
export const rollback = (connection: Connection): Effect.Effect<void> =>
  Effect.zipRight(
    Effect.ignore(Effect.retry(connection.executeUnprepared("ROLLBACK", [], undefined), { times: 2 })),
    Effect.sync(() => endPipeline(connection))
  )

/** Runs an effect whose statements go to the connection of a transaction. */
export const on = <A, E, R>(open: Open, effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.provideService(effect, SqlClient.TransactionConnection, open) as Effect.Effect<A, E, R>

/** Until when a connection may be used. */
export interface Lease {
  over: boolean
}

/** Who looks at all that is done on a connection. */
export interface Watch {
  /** Why a statement must not be sent, if it must not. */
  readonly refuses: (statement: string, streamed: boolean) => SqlError | undefined
  readonly failed: (error: SqlError) => void
  /** Whether a statement that was sent is waited for, whoever is interrupted. */
  readonly unbroken: boolean
}

/**
 * The connection, as long as the lease lasts. Who interrupts a statement waits only so long for it to be cancelled: `@effect/sql-pg` has
 * another connection of the pool do that, and where transactions have all of them, there is none before one of these is over.
 */
export const leased = (connection: Connection, lease: Readonly<Lease>, watch?: Watch): Connection => {
  const refusal = (statement: string, streamed = false): SqlError | undefined =>
    lease.over ? transactionOver() : watch?.refuses(statement, streamed)
  const guarded = <A>(statement: string, effect: Effect.Effect<A, SqlError>): Effect.Effect<A, SqlError> =>
    Effect.suspend(() => {
      const refused = refusal(statement)
      if (refused !== undefined) return Effect.fail(refused)
      const sent = watch?.unbroken === true ? Effect.uninterruptible(effect) : promptly(effect)
      return watch === undefined ? sent : Effect.tapError(sent, (error) => Effect.sync(() => watch.failed(error)))
    })
  return {
    execute: (statement, ...args) => guarded(statement, connection.execute(statement, ...args)),
    executeRaw: (statement, ...args) => guarded(statement, connection.executeRaw(statement, ...args)),
    executeStream: (statement, ...args) =>
      Stream.suspend(() => {
        const refused = refusal(statement, true)
        if (refused !== undefined) return Stream.fail(refused)
        const rows = connection.executeStream(statement, ...args)
        return watch === undefined ? rows : Stream.tapError(rows, (error) => Effect.sync(() => watch.failed(error)))
      }),
    executeValues: (statement, ...args) => guarded(statement, connection.executeValues(statement, ...args)),
    executeUnprepared: (statement, ...args) => guarded(statement, connection.executeUnprepared(statement, ...args))
  }
}

/**
 * A connection for the scope. Its wait can't be interrupted: the one who gives a connection does not notice that nobody wants it any
 * more. So whoever may be interrupted runs the whole transaction by `promptly`.
 */
export const reserve = (
  sql: SqlClient.SqlClient,
  operation: string
): Effect.Effect<Connection, StoreError, Scope.Scope> =>
  Effect.mapError(Effect.uninterruptible(sql.reserve), (error) => fromSqlError(operation, "reading", error))

// --- internal ---

// Whatever the database has for a default: a commit has to see what others have committed.
const beginning = ["BEGIN ISOLATION LEVEL READ COMMITTED", "SET LOCAL effect_maestro.begun = yes"]

const outermost = <A, E, B, E2, R>(
  sql: SqlClient.SqlClient,
  operation: string,
  first: (connection: Connection) => Effect.Effect<A, E>,
  next: (a: A) => Effect.Effect<B, E2, R>
): Effect.Effect<B, E | E2 | StoreError, R> =>
  Effect.scoped(
    Effect.flatMap(reserve(sql, operation), (connection) => {
      const lease = { over: false }
      const open: Open = [leased(connection, lease), 0]
      return Effect.uninterruptibleMask((restore) =>
        Effect.flatMap(
          Effect.exit(restore(Effect.flatMap(first(connection), (a) => on(open, next(a))))),
          (exit): Effect.Effect<B, E | E2 | StoreError> => {
            lease.over = true
            return Effect.zipRight(Exit.isSuccess(exit) ? commit(operation, connection) : rollback(connection), exit)
          }
        )
      )
    })
  ).pipe(spanned("sql.transaction", { kind: "client" })) as Effect.Effect<B, E | E2 | StoreError, R>

/** What the server says it did, where the client passes that on. */
const commandOf = (result: unknown): unknown =>
  typeof result === "object" && result !== null && "command" in result ? result.command : undefined

const inner = <A, E, R>(
  operation: string,
  outer: Open,
  effect: Effect.Effect<A, E, R>,
  mayHide: boolean
): Effect.Effect<A, E | StoreError, R> => {
  const [connection, depth] = outer
  const savepoint = `effect_sql_${depth + 1}`
  const run = (statement: string) =>
    Effect.mapError(connection.executeUnprepared(statement, [], undefined), (error) =>
      fromSqlError(operation, "writing", error)
    )
  const undo = run(`ROLLBACK TO SAVEPOINT ${savepoint}`)
  const transaction = Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(run(`SAVEPOINT ${savepoint}`), () =>
      Effect.flatMap(
        Effect.exit(restore(on([connection, depth + 1], effect))),
        (exit): Effect.Effect<A, E | StoreError> =>
          Exit.isFailure(exit)
            ? Effect.zipRight(Effect.ignore(undo), exit)
            : !mayHide
              ? exit
              : Effect.matchEffect(run(`RELEASE SAVEPOINT ${savepoint}`), {
                  // Only where a statement has failed and its failure was handled can the savepoint not be released.
                  onFailure: (error) =>
                    Effect.zipRight(
                      Effect.ignore(undo),
                      Effect.fail(error.code === "25P02" ? rolledBack(operation) : error)
                    ),
                  onSuccess: () => exit
                })
      )
    )
  )
  return turnIn(outer).withPermits(1)(transaction)
}

const turnIn = (outer: Open): Effect.Semaphore => {
  const known = turns.get(outer)
  if (known !== undefined) return known
  const turn = Effect.unsafeMakeSemaphore(1)
  turns.set(outer, turn)
  return turn
}

/** One at a time directly inside of each transaction. */
const turns = new WeakMap<Open, Effect.Semaphore>()

const rolledBack = (operation: string): StoreError =>
  new StoreError({
    reason: "Unknown",
    operation,
    description:
      "a statement failed inside the transaction, and its failure was handled without undoing it (by a withTransaction around it): the database takes the whole transaction back, and nothing was stored"
  })

const transactionOver = (): SqlError =>
  new SqlError({
    cause: new Error("the transaction that this belongs to is over"),
    message: "Failed to execute statement"
  })
