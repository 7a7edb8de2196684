/**
 * Runs commands outside of transactions, each list of them in one round trip: what the store sends most. `execute.ts`, `sendCommits.ts`,
 * `commit/commitWithStatements.ts` and `notifications.ts` use it.
 *
 * It calls back instead of running in fibers, because a fiber, a scope and a deferred for each statement took three quarters of the time of a
 * lone commit.
 *
 * - A connection that has answered stays here for the rest of the macrotask, so a command that follows does not ask the pool. It goes
 *   back to the pool after five milliseconds in any case, so that callers that wait for the pool get their turn. From a pool of few
 *   connections each command takes its own.
 * - After a failure a connection goes back immediately. It is closed where its session is not known to be idle.
 * - A connection that the application has left in a transaction is closed, and the commands run on another one.
 * - A cancelled command has its connection closed, as `connection.ts` says.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberId from "effect/FiberId"
import * as Runtime from "effect/Runtime"
import { awaitGrace } from "../../runtime/interruption.js"
import { scheduleMacrotask } from "../../runtime/macrotask.js"
import { codeOf, isOfSession } from "../../runtime/sqlError.js"
import { cancel, giveBack, type HeldConnection, type Reserved, reserve, valuesOf } from "./connection.js"
import { type Command, canSpareConnection, type Rows } from "./driver.js"
import { type PreparedText, prepared } from "./preparedStatements.js"

/** The result of commands: the rows of the last one. */
export type Result = Exit.Exit<Rows, SqlError>

/** Cancels commands, unless they have ended. The effect waits for their end for the grace period at most. */
export type Cancel = () => Effect.Effect<void>

export class CommandRunner {
  /** Whether connections of this client send several commands in one round trip, as far as it is known. */
  canBatch = true
  private readonly idle: Array<Borrowed> = []
  private readonly keeps: boolean
  private isGivingBack = false

  constructor(
    readonly sql: SqlClient.SqlClient,
    private readonly preparing: boolean
  ) {
    this.keeps = canSpareConnection(sql)
  }

  /** The text of a statement of the store. */
  prepare(text: string): PreparedText {
    return this.preparing ? prepared(text) : { text }
  }

  /** Runs the commands as one transaction, and calls back once. */
  start(commands: ReadonlyArray<Command>, done: (result: Result) => void): Cancel {
    const run = new Run(this, commands, done)
    const borrowed = this.idle.pop()
    if (borrowed === undefined) run.reserve()
    else run.send(borrowed)
    return run.cancel
  }

  /** Runs the commands as one transaction. */
  run(commands: ReadonlyArray<Command>): Effect.Effect<Rows, SqlError> {
    return Effect.async((resume) => {
      const cancel = this.start(commands, resume)
      return Effect.suspend(cancel)
    })
  }

  /** Takes a connection back from a command that has succeeded. */
  keep(borrowed: Borrowed): void {
    if (!this.keeps || performance.now() > borrowed.until) return giveBack(borrowed)
    this.idle.push(borrowed)
    if (this.isGivingBack) return
    this.isGivingBack = true
    scheduleMacrotask(() => {
      this.isGivingBack = false
      for (const one of this.idle.splice(0)) giveBack(one)
    })
  }
}

/** Whether commands failed because the client can't send several in one round trip. None of them was sent. */
export const isUnbatched = (error: SqlError): boolean => error === unbatched

/**
 * Whether commands failed because their connections were inside of transactions that the application had left there. Nothing is stored.
 * A trigger that raises 25P02 looks like it.
 */
export const isRefusedInside = (error: SqlError | undefined): boolean => /^(25001|25P02)$/.test(codeOf(error) ?? "")

// --- internal ---

interface Borrowed extends Reserved {
  /** When it goes back to the pool, by the clock of the process. */
  readonly until: number
}

/** Commands that run. */
class Run {
  private borrowed: Borrowed | undefined
  private isEnded = false
  private attempts = maxAttempts
  private onEnd: (() => void) | undefined

  constructor(
    private readonly runner: CommandRunner,
    private readonly commands: ReadonlyArray<Command>,
    private readonly done: (result: Result) => void
  ) {}

  reserve(): void {
    reserve(this.runner.sql, (exit) => {
      if (Exit.isFailure(exit)) return this.end(Exit.failCause(exit.cause))
      if (this.isEnded) return giveBack(exit.value)
      this.send({ ...exit.value, until: performance.now() + maxKept })
    })
  }

  send(borrowed: Borrowed): void {
    const { connection, session } = borrowed.held
    this.borrowed = borrowed
    if (this.attempts > 1 && isInTransaction(borrowed.held)) return this.tryAnother(borrowed)
    if (session !== undefined) {
      return session.submit(this.commands, idle, (result) => this.answered(borrowed, result))
    }
    this.runner.canBatch = false
    const [first, ...others] = this.commands
    if (first === undefined || others.length > 0) return this.answered(borrowed, Exit.fail(unbatched))
    runFork(valuesOf(connection, first)).addObserver((result) => this.answered(borrowed, result))
  }

  readonly cancel: Cancel = () =>
    Effect.suspend(() => {
      if (this.isEnded) return Effect.void
      if (this.borrowed === undefined) {
        // The pool can't take a request back. The connection that it hands out later goes back to it.
        this.end(Exit.interrupt(FiberId.none))
        return Effect.void
      }
      const borrowed = this.borrowed
      borrowed.held.close()
      const ended = Effect.async<void>((resume) => {
        this.onEnd = () => resume(Effect.void)
      })
      return Effect.forkDaemon(cancel(borrowed.held)).pipe(
        Effect.zipRight(awaitGrace(ended)),
        Effect.zipRight(Effect.sync(() => this.abandon(borrowed)))
      )
    })

  /** To close the connection ends the statement. One that can't be closed goes back when the statement has ended. */
  private abandon(borrowed: Borrowed): void {
    if (this.isEnded) return
    if (borrowed.held.isClosing) giveBack(borrowed)
    this.end(Exit.interrupt(FiberId.none))
  }

  private answered(borrowed: Borrowed, result: Result): void {
    const { held } = borrowed
    if (this.isEnded) {
      if (!held.isClosing) giveBack(borrowed)
      return
    }
    if (Exit.isSuccess(result) && !held.isClosing && !isInTransaction(held)) {
      this.runner.keep(borrowed)
      return this.end(result)
    }
    const error = Exit.isFailure(result) && result.cause._tag === "Fail" ? result.cause.error : undefined
    if (isInTransaction(held) || isRefusedInside(error)) {
      if (this.attempts > 1 && !held.isClosing) return this.tryAnother(borrowed)
      held.close()
    } else if (Exit.isFailure(result) && (error === undefined || isOfSession(error))) {
      held.close()
    }
    giveBack(borrowed)
    this.end(result)
  }

  /** The transaction on the connection, and all that ran inside, is rolled back with the connection. */
  private tryAnother(borrowed: Borrowed): void {
    this.attempts--
    this.borrowed = undefined
    borrowed.held.close()
    giveBack(borrowed)
    this.reserve()
  }

  private end(result: Result): void {
    if (this.isEnded) return
    this.isEnded = true
    this.done(result)
    this.onEnd?.()
  }
}

const idle = ["I", "I"] as const

/** How long a connection is used for one command after the other, in milliseconds. */
const maxKept = 5

/** How many connections are tried, where the application has left transactions open. */
const maxAttempts = 3

const unbatched = new SqlError({
  cause: new Error("the client can't send several statements in one round trip"),
  message: "Failed to execute statement"
})

const isInTransaction = ({ session }: HeldConnection): boolean => session?.isInTransaction() === true

const runFork = Runtime.runFork(Runtime.defaultRuntime)
