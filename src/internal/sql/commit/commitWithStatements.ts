/**
 * Commits whose projections are all SQL statements: events and statements are one transaction in one round trip. `appendEvents.ts` uses it
 * outside of a transaction, and commits in the general way if it returns false.
 */
import type { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import type { StoreError } from "../../../StoreError.js"
import { codeOf, fromSqlError, isOfSession } from "../../runtime/sqlError.js"
import { statementSpan, withEachSpanIfTraced } from "../../runtime/tracing.js"
import { type CommandRunner, isUnbatched } from "../pg/commandRunner.js"
import type { Command, Rows } from "../pg/driver.js"
import { endedInside, isEndedInside } from "../pg/transaction.js"
import type { AppendResult } from "./appendBatcher.js"
import type { Commit } from "./commitQueue.js"

/**
 * How commits are stored. With `lockTimeout` the statement waits only 100 ms for a lock of another transaction. With `allOrNothing` it
 * raises if it does not write everything, because more statements follow. With `checksSnapshot` it fails if a rebuild has swapped tables
 * since the transaction took its snapshot, because projections follow.
 */
export interface AppendMode {
  readonly lockTimeout?: boolean
  readonly allOrNothing?: boolean
  readonly checksSnapshot?: boolean
}

/** What `insert` and `append` say where they must store all and the isolation of the transaction is stricter than READ COMMITTED. */
export const otherIsolation = "the transaction is not READ COMMITTED"
/** What they say about a duplicate. */
export const allStored = "all of it is stored"

/** The statements of a commit; `sql/commitStatements.ts` makes them. */
export interface CommitStatements {
  /** Whether a commit waits for all transactions that have appended before it (`sql/feedCounter.ts`). */
  readonly isSerial: boolean
  /** Stores commits, each independently of the others. */
  readonly append: (commits: ReadonlyArray<Commit>, mode: AppendMode) => Command
  /**
   * Stores the events of one aggregate, if there are few, by a plain insert, all or none. Outside of a transaction only. It returns a row
   * if it did, and fails with `orRaise` if it did not. Otherwise `append` finds out why not. Undefined for other events.
   */
  readonly insert: (events: Commit, options: { readonly orRaise: boolean }) => Command | undefined
  /** The results of the commits, from what `append` returned. A commit that was written may be left out. */
  readonly resultsOf: (rows: Rows) => ReadonlyArray<AppendResult>
  /** Gives the events their place in the feed after their projections. Undefined if there is nothing to do. */
  readonly end: (events: Commit, options: { readonly isNested: boolean }) => Command | undefined
}

export const makeStatementCommits = (runner: CommandRunner, commitStatements: CommitStatements) => {
  let supported = true
  return {
    /** Whether a connection of this client may be able to send a batch. */
    isSupported: () => supported && runner.canBatch,
    /**
     * Commits the events with the statements, and returns whether they are stored. It returns false for a conflict, a statement that fails,
     * or a connection that can't send a batch.
     */
    commit: (events: Commit, statements: ReadonlyArray<Command>): Effect.Effect<boolean, StoreError> => {
      const end = commitStatements.end(events, { isNested: false })
      const commands = [
        commitStatements.insert(events, { orRaise: true }) ?? commitStatements.append([events], { allOrNothing: true }),
        ...statements.concat(end ?? [])
      ]
      return Effect.matchEffect(runner.run(commands), {
        onSuccess: () => Effect.succeed(true),
        onFailure: (cause) => {
          if (isUnbatched(cause)) return Effect.succeed(false)
          if (isDuplicate(cause)) return Effect.succeed(true)
          const error = fromSqlError(operation, "committing", cause)
          // The default of the database is stricter, so it would raise each time.
          if (error.description.includes(otherIsolation)) supported = false
          if (isEndedInside(error)) return Effect.fail(endedInside(operation))
          // An error that the server reports for a statement, with any code, means that it has rolled all of them back.
          return isOfSession(cause) && error.reason === "CommitUnknown" ? Effect.fail(error) : Effect.succeed(false)
        }
      }).pipe(
        withEachSpanIfTraced(
          "sql.execute",
          statements.map(({ text }) => statementSpan(text))
        )
      )
    }
  }
}

// --- internal ---

const operation = "commitAll"

/** The codes of what `append` and `insert` raise. The message is compared, too, because a projection's trigger may raise the same codes. */
const isDuplicate = (error: SqlError): boolean =>
  /^(MA003|22P02)$/.test(codeOf(error) ?? "") && error.cause instanceof Error && error.cause.message.includes(allStored)
