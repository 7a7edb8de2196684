/**
 * How the SQL store commits. `SqlStore.ts` makes its `append` and `appendWith` of this. A commit goes one of four ways:
 *
 * - In a transaction of the caller: with a savepoint, on the caller's connection.
 * - Events alone: in a batch with those of other callers (`appendBatcher.ts`), in one statement.
 * - With projections that are all SQL statements: one transaction in one round trip (`commitWithStatements.ts`).
 * - With any other projection: BEGIN, the events, the projections in the caller's fiber, COMMIT.
 *
 * A commit with projections never shares a transaction, because its projections would see and lock rows of the others.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"
import type { ProjectionWork } from "../../../StoreAdapter.js"
import type { RetryCommand, StoreError } from "../../../StoreError.js"
import { whenInTransaction } from "../../runtime/ambientTransaction.js"
import { makeTurns } from "../../runtime/turns.js"
import type { CommandRunner } from "../pg/commandRunner.js"
import { canCompile, compileAll } from "../pg/compileStatements.js"
import { executeCommand, retryStrayCancel } from "../pg/execute.js"
import { withTransactionFrom } from "../pg/transaction.js"
import { type AppendResult, makeAppendBatcher, type Send } from "./appendBatcher.js"
import type { Commit } from "./commitQueue.js"
import { type CommitStatements, makeStatementCommits } from "./commitWithStatements.js"

/** Signals of stored events, for readers that wait. */
export interface CommitSignals {
  /** Events were committed. */
  readonly committed: (events: Commit) => Effect.Effect<void>
  /** Events were inserted in a transaction that is still open. */
  readonly inserted: (events: Commit) => Effect.Effect<void>
  /** Runs a transaction that commits the events, and signals these and all that were inserted in it once it has succeeded. */
  readonly afterCommit: <A, E, R>(events: Commit, transaction: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
}

/** When the scope closes, the commits in flight end first. Stored commits and inserts into open transactions are signalled. */
export const makeAppendEvents = ({
  client,
  runner,
  send,
  signals,
  statements
}: {
  /** The client of the application, which projections use. */
  readonly client: SqlClient.SqlClient
  /** Of the client without transforms, which the store uses. */
  readonly runner: CommandRunner
  /** Sends commits of events alone. */
  readonly send: Send
  readonly statements: CommitStatements
  readonly signals: CommitSignals
}) => {
  const statementCommits = makeStatementCommits(runner, statements)
  const inTurn = statements.isSerial
    ? makeTurns(maxSerialTransactions)
    : <A, E, R>(transaction: Effect.Effect<A, E, R>) => transaction

  const accept = (
    result: AppendResult = "appended",
    signal: Effect.Effect<void> = Effect.void
  ): Effect.Effect<Exclude<AppendResult, RetryCommand>, RetryCommand> =>
    typeof result === "string" ? Effect.as(result === "appended" ? signal : Effect.void, result) : Effect.fail(result)

  /** A transaction of its own, or part of the transaction around it. */
  const appendInTransaction = <E, R>(events: Commit, project: Effect.Effect<void, E, R>) =>
    withTransactionFrom(
      runner.sql,
      "commitAll",
      {
        insert: statements.insert(events, { orRaise: true }),
        own: statements.append([events], {}),
        nested: statements.append([events], { checksSnapshot: true })
      },
      (rows, isNested) =>
        Effect.flatMap(
          accept(statements.resultsOf(rows)[0], isNested ? signals.inserted(events) : Effect.void),
          (result) =>
            Effect.map(result === "duplicate" ? Effect.void : project, () =>
              result === "duplicate" ? undefined : statements.end(events, { isNested })
            )
        )
    )

  /** One round trip if the projections are statements. What it does not store, a transaction stores, or fails with the reason. */
  const appendOutside = <E, R>(events: Commit, { project, statements }: ProjectionWork<E, R>) =>
    Effect.withFiberRuntime<void, RetryCommand | StoreError | E, R>((fiber) =>
      statements === undefined || !statementCommits.isSupported() || !canCompile(fiber, client)
        ? appendInTransaction(events, project)
        : compileAll([statements]).pipe(
            Effect.flatMap((commands) =>
              commands === undefined ? Effect.succeed(false) : statementCommits.commit(events, commands)
            ),
            Effect.flatMap((isStored) => (isStored ? Effect.void : appendInTransaction(events, project)))
          )
    )

  return Effect.map(makeAppendBatcher(send, statements.isSerial), (appendBatched) => ({
    /** Stores events. Fails with `RetryCommand` on a conflict. */
    append: (events: Commit) =>
      whenInTransaction((inside) =>
        Effect.flatMap(
          inside
            ? Effect.map(
                executeCommand(runner, { operation, phase: "writing" }, statements.append([events], {})),
                (rows) => statements.resultsOf(rows)[0]
              )
            : appendBatched(events),
          (result) => accept(result, inside ? signals.inserted(events) : signals.committed(events))
        )
      ),
    /** Stores events and runs the projections, unless the commit is a duplicate. */
    appendWith: <E, R>(events: Commit, work: ProjectionWork<E, R>) =>
      whenInTransaction((inside) =>
        inside
          ? appendInTransaction(events, work.project)
          : inTurn(signals.afterCommit(events, retryStrayCancel(appendOutside(events, work))))
      )
  }))
}

// --- internal ---

const operation = "commitEvents"

/**
 * How many commits with projections have a connection, where one waits for the other in the database: the one that is committed, and the next.
 * More of them would take the connections of readers.
 */
const maxSerialTransactions = 2
