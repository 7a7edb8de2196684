/**
 * Transactions of the store, on any `SqlClient`: for commits with projections, migrations, leases and rebuilds. Statements of the application
 * inside take part, as in `SqlClient.withTransaction`. These transactions differ from it:
 *
 * - An error at COMMIT is a failure of the transaction, and an error at ROLLBACK does not hide the failure before it. There both are defects.
 * - Postgres replies to COMMIT with a silent rollback if a statement has failed and its failure was handled without a savepoint, or if a
 *   statement inside has ended the transaction. Here both are failures: success means stored.
 * - Two concurrent transactions inside of one wait for each other. There they use one savepoint, and undo each other.
 * - A fiber that outlives its transaction can't use the connection any more, which may belong to another caller by then.
 * - A connection with a cancel under way is closed (`connection.ts`). There it goes back to the pool.
 *
 * The effect runs in its caller's fiber. Its interruption waits for the server for the grace period at most.
 *
 * The WeakMap from a transaction to its semaphore stays, because the caller's transaction is a tuple that `@effect/sql` makes. There is no
 * other place to keep what belongs to it.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import type { Connection } from "@effect/sql/SqlConnection"
import { SqlError } from "@effect/sql/SqlError"
import type { Fragment } from "@effect/sql/Statement"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { StoreError } from "../../../StoreError.js"
import { joinBounded } from "../../runtime/interruption.js"
import { fromSqlError } from "../../runtime/sqlError.js"
import { statementSpan, withoutInnerSpans, withSpanIfTraced } from "../../runtime/tracing.js"
import {
  type HeldConnection,
  interruptible,
  interruptibleInside,
  interruptibleStream,
  type Open,
  onConnection,
  sendCommands,
  valuesOf,
  withConnection
} from "./connection.js"
import { type Command, type Rows, sendBatch } from "./driver.js"

/**
 * Runs an effect in a transaction: the caller's, with a savepoint, or one of its own. Failures of the effect stay as they are. A failure of
 * the transaction itself is a `StoreError`.
 */
export const withTransaction = <A, E, R>(
  sql: SqlClient.SqlClient,
  operation: string,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E | StoreError, R> =>
  Effect.contextWithEffect((context: Context.Context<never>) => {
    const outer = Context.getOption(context, SqlClient.TransactionConnection)
    return Option.isSome(outer)
      ? nested(operation, outer.value, effect)
      : topLevel(
          sql,
          operation,
          (held) => begin(operation, held),
          () => effect
        )
  })

/**
 * Runs a command in a transaction, then the effect that follows from its rows, then the command that the effect returns, if any. If the driver
 * can, BEGIN and the first command are one round trip, and the last command and COMMIT another.
 */
export const withTransactionFrom = <E, R>(
  sql: SqlClient.SqlClient,
  operation: string,
  first: {
    readonly own: Command
    /**
     * An insert in place of `own`, if the driver can send a batch. It records that the transaction has begun, and its rows do not count. Where
     * it fails, another transaction begins with `own`.
     */
    readonly insert?: Command | undefined
    /** The command in a transaction that has begun before. */
    readonly nested: Command
  },
  next: (rows: Rows, isNested: boolean) => Effect.Effect<Command | undefined, E, R>
): Effect.Effect<void, E | StoreError, R> =>
  Effect.contextWithEffect((context: Context.Context<never>) => {
    const outer = Context.getOption(context, SqlClient.TransactionConnection)
    const run = (command: Command) =>
      Effect.mapError(
        withoutInnerSpans(sql.unsafe(command.text, command.values).values as Effect.Effect<Rows, SqlError>),
        (error) => fromSqlError(operation, "writing", error)
      )
    return Option.isSome(outer)
      ? nested(
          operation,
          outer.value,
          Effect.flatMap(
            Effect.flatMap(run(first.nested), (rows) => next(rows, true)),
            (last) => (last === undefined ? Effect.void : Effect.asVoid(run(last)))
          )
        )
      : Effect.asVoid(
          topLevel(
            sql,
            operation,
            (held, isFirst) =>
              held.session !== undefined
                ? isFirst && first.insert !== undefined
                  ? beginWithInsert(operation, held, first.insert)
                  : beginWith(operation, held, beginStatements, first.own)
                : Effect.zipRight(
                    begin(operation, held),
                    onConnection([guarded(held, { over: false }), 0], run(first.nested))
                  ),
            (rows) => next(rows, false),
            (last) => last
          )
        )
  })

/** Runs one statement of the store in the transaction around it, with a savepoint: when it fails, the transaction stays usable. */
export const withSavepoint = <A, E, R>(
  operation: string,
  statement: Effect.Effect<A, E, R>
): Effect.Effect<A, E | StoreError, R> =>
  Effect.contextWithEffect((context: Context.Context<never>) =>
    Option.match(Context.getOption(context, SqlClient.TransactionConnection), {
      onNone: () => statement,
      onSome: (outer) => nested(operation, outer, statement)
    })
  )

/** Sends statements in one round trip, in the transaction around it. Interruption does what it does to a statement. */
export type SendInside = (commands: ReadonlyArray<Command>) => Effect.Effect<unknown, SqlError>

/** Undefined outside of the transactions of this file, and where their connection can't send a batch. */
export const sendInside: Effect.Effect<SendInside | undefined> = Effect.contextWith(
  (context: Context.Context<never>) => {
    const open = Context.getOption(context, SqlClient.TransactionConnection)
    return Option.isSome(open) ? (open.value[0] as Connection & Partial<GuardedConnection>).sendInside : undefined
  }
)

/**
 * A column of a `select` at the end of a transaction that fails if a statement inside has ended the transaction. The setting that it reads
 * ends with the transaction.
 */
export const checkStillOpen = checkSetting("effect_maestro.begun", "yes")

/** Whether `checkStillOpen` has failed. */
export const isEndedInside = ({ description }: StoreError): boolean =>
  description.includes("effect-maestro: the transaction was ended inside")

export const endedInside = (operation: string): StoreError =>
  new StoreError({
    reason: "Unknown",
    operation,
    description:
      "a projection ended the transaction by a COMMIT or ROLLBACK of its own, so the commit did not happen as a whole; what the projection itself committed stays"
  })

/**
 * A column of a `select` that ends the session when it idles in its transaction, so that a process that stops keeps no locks. The embedded
 * database has one session, and its locks end with the process, so it has no limit.
 */
export const limitIdle = (
  { isEmbedded, sql }: { readonly isEmbedded: boolean; readonly sql: SqlClient.SqlClient },
  millis: number
): Fragment =>
  isEmbedded ? sql`1` : sql`set_config('idle_in_transaction_session_timeout', ${String(Math.ceil(millis))}, true)`

// --- internal ---

function checkSetting(name: string, value: string): string {
  return `(case current_setting('${name}', true) when '${value}' then 'yes' else 'effect-maestro: the transaction was ended inside' end)::boolean`
}

/** The failure of a transaction whose COMMIT, or RELEASE of a savepoint, has failed. */
const meaningOf = (operation: string, error: StoreError): StoreError =>
  error.code === "25P02"
    ? rolledBack(operation)
    : isEndedInside(error) || noSavepoint.test(error.code ?? "")
      ? endedInside(operation)
      : error

/** There is no such savepoint, or no transaction. */
const noSavepoint = /^(3B001|25P01)$/

// A commit must see the commits before it, so the isolation does not depend on the default of the database.
const beginStatements = ["BEGIN ISOLATION LEVEL READ COMMITTED", "SET LOCAL effect_maestro.begun = yes"] as const

const begin = (operation: string, held: HeldConnection): Effect.Effect<void, StoreError> =>
  Effect.mapError(
    Effect.asVoid(interruptible(held, held.connection.executeUnprepared(beginStatements.join("; "), [], undefined))),
    (error) => fromSqlError(operation, "writing", error)
  )

const beginWith = (
  operation: string,
  held: HeldConnection,
  statements: ReadonlyArray<string>,
  command: Command
): Effect.Effect<Rows, StoreError> => {
  const commands = [...statements.map((text) => ({ text, values: [] })), command]
  return Effect.mapError(sendCommands(held, commands, ["I", "T"]), (error) =>
    fromSqlError(operation, "writing", error)
  ).pipe(withSpanIfTraced("sql.execute", statementSpan(command.text)))
}

const beginWithInsert = (
  operation: string,
  held: HeldConnection,
  insert: Command
): Effect.Effect<Rows, StoreError | NotBegun> =>
  Effect.mapBoth(beginWith(operation, held, beginStatements.slice(0, 1), insert), {
    onSuccess: () => noRows,
    onFailure: (reason) => (notInserted.has(reason.code ?? "") ? new NotBegun({ reason }) : reason)
  })

const noRows: Rows = []

/** The codes of an insert that has not written all of its events, and of one into a stream with a gap. */
const notInserted = new Set(["22P02", "23505"])

/**
 * If BEGIN finds a transaction that has failed, the application has given the connection back before the driver knew its status. The
 * transaction then begins on another connection. It begins anew, too, if its insert has failed: `first` gets whether it is called for the
 * first time.
 */
const topLevel = <A, B, E, R>(
  sql: SqlClient.SqlClient,
  operation: string,
  first: (held: HeldConnection, isFirst: boolean) => Effect.Effect<A, StoreError | NotBegun>,
  next: (a: A) => Effect.Effect<B, E, R>,
  last: (b: B) => Command | undefined = () => undefined,
  attempt = 1
): Effect.Effect<B, E | StoreError, R> =>
  Effect.catchIf(
    beginning(sql, operation, (held) => first(held, attempt === 1), next, last),
    (error) => error instanceof NotBegun,
    ({ reason }) => (attempt < 3 ? topLevel(sql, operation, first, next, last, attempt + 1) : Effect.fail(reason))
  ).pipe(withSpanIfTraced("sql.transaction", { kind: "client" }))

class NotBegun extends Data.TaggedError("NotBegun")<{ readonly reason: StoreError }> {}

const beginning = <A, B, E, R>(
  sql: SqlClient.SqlClient,
  operation: string,
  first: (held: HeldConnection) => Effect.Effect<A, StoreError | NotBegun>,
  next: (a: A) => Effect.Effect<B, E, R>,
  last: (b: B) => Command | undefined
): Effect.Effect<B, E | StoreError | NotBegun, R> =>
  withConnection(sql, operation, (held) => {
    const begun = Effect.mapError(first(held), (reason) => {
      if (reason._tag === "NotBegun" || reason.code !== "25P02") return reason
      held.close()
      return new NotBegun({ reason })
    })
    const validity: Validity = { over: false }
    const open: Open = [guarded(held, validity), 0]
    return Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(
        Effect.exit(restore(Effect.flatMap(begun, (a) => onConnection(open, next(a))))),
        (exit): Effect.Effect<B, E | StoreError | NotBegun> => {
          validity.over = true
          if (Exit.isFailure(exit)) return Effect.zipRight(Effect.exit(finish(held, restore, rollback(held))), exit)
          return held.isClosing
            ? Effect.fail(held.isLost ? lostInside(operation) : interruptedInside(operation))
            : Effect.zipRight(finish(held, restore, commit(operation, held, last(exit.value))), exit)
        }
      )
    )
  })

/**
 * Runs COMMIT or ROLLBACK. If it is interrupted and has not succeeded within the grace period, the end of the transaction is unknown, and
 * the connection is closed.
 */
const finish = <E>(
  held: HeldConnection,
  restore: <A2, E2, R2>(effect: Effect.Effect<A2, E2, R2>) => Effect.Effect<A2, E2, R2>,
  end: Effect.Effect<void, E>
): Effect.Effect<void, E> =>
  Effect.flatMap(Effect.forkDaemon(end), (fiber) =>
    Effect.onInterrupt(joinBounded(restore, fiber), () =>
      Effect.sync(() => {
        const ended = fiber.unsafePoll()
        if (ended === null || Exit.isFailure(ended)) held.close()
      })
    )
  )

/**
 * Commits. A success means stored. A failure may have come before COMMIT ran, as a cancel can, so the transaction is rolled back.
 */
const commit = (operation: string, held: HeldConnection, last: Command | undefined): Effect.Effect<void, StoreError> =>
  Effect.matchEffect(sendCommit(held, last), {
    onFailure: (cause) => {
      const error = fromSqlError(operation, "committing", cause)
      return Effect.zipRight(rollback(held), Effect.fail(meaningOf(operation, error)))
    },
    onSuccess: () => Effect.void
  })

/** Sends COMMIT behind the last statement, which checks that the transaction is still open, or behind that check alone. */
const sendCommit = (
  { connection, session }: HeldConnection,
  last: Command | undefined
): Effect.Effect<unknown, SqlError> => {
  if (last === undefined) return connection.executeRaw(checkAndCommit, [])
  return session !== undefined
    ? sendBatch(session, [last, { text: "COMMIT", values: [] }], ["T", "I"])
    : Effect.zipRight(valuesOf(connection, last), connection.executeRaw(checkAndCommit, []))
}

const checkAndCommit = `select ${checkStillOpen}; COMMIT`

/** Rolls back, unless the connection will be closed, which rolls back, too. A connection that can't roll back is closed. */
const rollback = (held: HeldConnection): Effect.Effect<void> =>
  held.isClosing
    ? Effect.void
    : Effect.catchAll(Effect.retry(held.connection.executeUnprepared("ROLLBACK", [], undefined), { times: 2 }), () =>
        Effect.sync(held.close)
      )

/** Whether the connection still belongs to the transaction. */
interface Validity {
  over: boolean
}

/** The connection for the statements inside: it refuses them once the transaction is over. */
const guarded = (held: HeldConnection, validity: Readonly<Validity>): Connection & GuardedConnection => {
  const { connection, session } = held
  const run = <A>(statement: Effect.Effect<A, SqlError>): Effect.Effect<A, SqlError> =>
    Effect.suspend(() => (validity.over ? Effect.fail(transactionOver()) : interruptibleInside(held, statement)))
  return {
    execute: (...args) => run(connection.execute(...args)),
    executeRaw: (...args) => run(connection.executeRaw(...args)),
    executeStream: (...args) =>
      Stream.suspend(() =>
        validity.over ? Stream.fail(transactionOver()) : interruptibleStream(held, connection.executeStream(...args))
      ),
    executeValues: (...args) => run(connection.executeValues(...args)),
    executeUnprepared: (...args) => run(connection.executeUnprepared(...args)),
    sendInside: session === undefined ? undefined : (commands) => run(sendBatch(session, commands, ["T", "T"]))
  }
}

interface GuardedConnection {
  readonly sendInside: SendInside | undefined
}

const nested = <A, E, R>(
  operation: string,
  outer: Open,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E | StoreError, R> => {
  const [connection, depth] = outer
  const savepoint = `effect_sql_${depth + 1}`
  // The setting ends with the savepoint, if a statement inside rolls back to it or ends the transaction.
  const mark = `effect_maestro.savepoint_${depth + 1}`
  const value = String(++savepoints)
  const run = (statement: string) =>
    Effect.mapError(connection.executeUnprepared(statement, [], undefined), (error) =>
      fromSqlError(operation, "writing", error)
    )
  // Thousands of savepoints that stay nested would slow each later statement of the transaction.
  const release = run(`select ${checkSetting(mark, value)}; RELEASE SAVEPOINT ${savepoint}`)
  const undo = run(`ROLLBACK TO SAVEPOINT ${savepoint}; RELEASE SAVEPOINT ${savepoint}`)
  const transaction = Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(run(`SAVEPOINT ${savepoint}; SET LOCAL ${mark} = ${value}`), () =>
      Effect.flatMap(
        Effect.exit(restore(onConnection([connection, depth + 1], effect))),
        (exit): Effect.Effect<A, E | StoreError> =>
          Exit.isFailure(exit)
            ? Effect.zipRight(Effect.ignore(undo), exit)
            : Effect.matchEffect(release, {
                onFailure: (error) => Effect.zipRight(Effect.ignore(undo), Effect.fail(meaningOf(operation, error))),
                onSuccess: () => exit
              })
      )
    )
  )
  return semaphoreOf(outer).withPermits(1)(transaction)
}

let savepoints = 0

const semaphoreOf = (outer: Open): Effect.Semaphore => {
  const known = semaphores.get(outer)
  if (known !== undefined) return known
  const semaphore = Effect.unsafeMakeSemaphore(1)
  semaphores.set(outer, semaphore)
  return semaphore
}

/** Directly inside of each transaction, nested ones run one after the other. */
const semaphores = new WeakMap<Open, Effect.Semaphore>()

const rolledBack = (operation: string): StoreError =>
  new StoreError({
    reason: "Unknown",
    operation,
    description:
      "a statement failed inside the transaction, and its failure was handled without undoing it (by a withTransaction around it): the database takes the whole transaction back, and nothing was stored"
  })

const lostInside = (operation: string): StoreError =>
  new StoreError({
    reason: "ConnectionLost",
    operation,
    description: "the connection broke while a projection read rows by a cursor; nothing was stored"
  })

const interruptedInside = (operation: string): StoreError =>
  new StoreError({
    reason: "Cancelled",
    operation,
    description: "a statement inside the transaction was interrupted, so its connection is closed; nothing was stored"
  })

const transactionOver = (): SqlError =>
  new SqlError({
    cause: new Error("the transaction that this belongs to is over"),
    message: "Failed to execute statement"
  })
