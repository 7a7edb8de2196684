/**
 * Transactions of the store, on any `SqlClient`. The application's statements inside take part, as in `SqlClient.withTransaction`, but
 * without its traps:
 *
 * - It turns an error at COMMIT or ROLLBACK into a defect. Here the first becomes what it means for the commit, and the second does
 *   not hide why there was a rollback.
 * - Postgres answers COMMIT by a silent rollback where a statement has failed and its failure was handled without a
 *   savepoint, or where the transaction was ended by a statement inside. Here both are failures: success means stored.
 * - Two transactions inside of one concurrently use one savepoint, and undo each other. Here they take turns.
 * - A fiber that outlives its transaction goes on writing to the connection, which may belong to another caller by then. Here the
 *   connection is closed to it.
 * - A connection with a cancel under way goes back to the pool. Here it is closed (`connection.ts`).
 *
 * The effect runs in its caller's fiber. Its interruption waits for the server for the grace period at most.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import type { Connection } from "@effect/sql/SqlConnection"
import { SqlError } from "@effect/sql/SqlError"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { StoreError } from "../../../StoreError.js"
import { joinBounded } from "../../runtime/interruption.js"
import { fromSqlError } from "../../runtime/sqlError.js"
import { withoutInnerSpans, withSpanIfTraced } from "../../runtime/tracing.js"
import {
  type HeldConnection,
  interruptible,
  interruptibleInside,
  interruptibleStream,
  type Open,
  onConnection,
  withConnection
} from "./connection.js"
import { type Command, canSendBatch, sendBatch } from "./driver.js"

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
      ? nested(operation, outer.value, effect)
      : topLevel(
          sql,
          operation,
          (held) => begin(operation, held),
          () => effect
        )
  })

/**
 * Runs a statement that returns one value in a transaction, then the effect that follows from it, then the statement that the effect returns,
 * if any. If the driver can, BEGIN and the first statement are one round trip, and the last statement and COMMIT another.
 */
export const withTransactionFrom = <E, R>(
  sql: SqlClient.SqlClient,
  operation: string,
  first: {
    readonly command: Command
    /** The same statement by the client. */
    readonly statement: Effect.Effect<string | null, SqlError>
  },
  next: (value: string | null, isNested: boolean) => Effect.Effect<Command | undefined, E, R>
): Effect.Effect<void, E | StoreError, R> =>
  Effect.contextWithEffect((context: Context.Context<never>) => {
    const outer = Context.getOption(context, SqlClient.TransactionConnection)
    const writing = <A>(statement: Effect.Effect<A, SqlError>) =>
      Effect.mapError(statement, (error) => fromSqlError(operation, "writing", error))
    const statement = writing(first.statement)
    return Option.isSome(outer)
      ? nested(
          operation,
          outer.value,
          Effect.flatMap(
            Effect.flatMap(statement, (value) => next(value, true)),
            (last) =>
              last === undefined ? Effect.void : writing(withoutInnerSpans(sql.unsafe(last.text, [...last.values])))
          )
        )
      : topLevel(
          sql,
          operation,
          (held) =>
            canSendBatch(held.connection)
              ? beginWith(operation, held, first.command)
              : Effect.zipRight(begin(operation, held), onConnection([guarded(held, { over: false }), 0], statement)),
          (value) => next(value, false),
          (last) => last
        )
  })

/**
 * Runs one statement of the store in the transaction around it, from a savepoint on: when it fails, the transaction is as it was.
 */
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

/**
 * Fails, at the end of a transaction, where that is no longer the one that began: the setting is gone with it. The error says `endedInside`.
 */
export const checkStillOpen = checkSetting("effect_maestro.begun", "yes")

/** Whether `checkStillOpen` has failed, because a statement inside had ended the transaction. */
export const isEndedInside = ({ description }: StoreError): boolean =>
  description.includes("effect-maestro: the transaction was ended inside")

export const endedInside = (operation: string): StoreError =>
  new StoreError({
    reason: "Unknown",
    operation,
    description:
      "a projection ended the transaction by a COMMIT or ROLLBACK of its own, so the commit did not happen as a whole; what the projection itself committed stays"
  })

// --- internal ---

function checkSetting(name: string, value: string): string {
  return `select (case current_setting('${name}', true) when '${value}' then 'yes' else 'effect-maestro: the transaction was ended inside' end)::boolean`
}

/** What it means that a transaction can't be committed, or a savepoint not be released. */
const meaningOf = (operation: string, error: StoreError): StoreError =>
  error.code === "25P02"
    ? rolledBack(operation)
    : isEndedInside(error) || noSavepoint.test(error.code ?? "")
      ? endedInside(operation)
      : error

/** There is no such savepoint, or no transaction. */
const noSavepoint = /^(3B001|25P01)$/

// Whatever the database has for a default: a commit has to see what others have committed.
const beginning = ["BEGIN ISOLATION LEVEL READ COMMITTED", "SET LOCAL effect_maestro.begun = yes"]

const begin = (operation: string, held: HeldConnection): Effect.Effect<void, StoreError> =>
  Effect.mapError(
    Effect.asVoid(interruptible(held, held.connection.executeUnprepared(beginning.join("; "), [], undefined))),
    (error) => fromSqlError(operation, "writing", error)
  )

const beginWith = (
  operation: string,
  held: HeldConnection,
  command: Command
): Effect.Effect<string | null, StoreError> => {
  const commands = [...beginning.map((text) => ({ text, values: [] })), command]
  return Effect.mapBoth(interruptible(held, sendBatch(held.connection, commands, ["I", "T"])), {
    onFailure: (error) => fromSqlError(operation, "writing", error),
    onSuccess: ([value]) => value ?? null
  }).pipe(
    withSpanIfTraced("sql.execute", {
      kind: "client",
      attributes: { "db.system.name": "postgresql", "db.query.text": command.text }
    })
  )
}

const topLevel = <A, E, B, E2, R>(
  sql: SqlClient.SqlClient,
  operation: string,
  first: (held: HeldConnection) => Effect.Effect<A, E>,
  next: (a: A) => Effect.Effect<B, E2, R>,
  last: (b: B) => Command | undefined = () => undefined
): Effect.Effect<B, E | E2 | StoreError, R> =>
  withConnection(sql, operation, (held) => {
    const validity: Validity = { over: false }
    const open: Open = [guarded(held, validity), 0]
    return Effect.uninterruptibleMask((restore) =>
      Effect.flatMap(
        Effect.exit(restore(Effect.flatMap(first(held), (a) => onConnection(open, next(a))))),
        (exit): Effect.Effect<B, E | E2 | StoreError> => {
          validity.over = true
          if (Exit.isFailure(exit)) return Effect.zipRight(Effect.exit(finish(held, restore, rollback(held))), exit)
          return held.isClosing
            ? Effect.fail(held.isLost ? lostInside(operation) : interruptedInside(operation))
            : Effect.zipRight(finish(held, restore, commit(operation, held, last(exit.value))), exit)
        }
      )
    )
  }).pipe(withSpanIfTraced("sql.transaction", { kind: "client" })) as Effect.Effect<B, E | E2 | StoreError, R>

/**
 * Runs what ends the transaction. Where it is interrupted and has not succeeded within the grace period, the end of the transaction is
 * unknown, and the connection is closed.
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
 * Commits. A success means stored. After a failure nothing of it is open any more: one that broke off COMMIT before it had begun, as
 * a cancel can, has left the transaction to be rolled back.
 */
const commit = (operation: string, held: HeldConnection, last: Command | undefined): Effect.Effect<void, StoreError> =>
  Effect.matchEffect(sendCommit(held, last), {
    onFailure: (cause) => {
      const error = fromSqlError(operation, "committing", cause)
      return Effect.zipRight(rollback(held), Effect.fail(meaningOf(operation, error)))
    },
    onSuccess: () => Effect.void
  })

/** Sends COMMIT, behind the statement that ends the work of the transaction. */
const sendCommit = ({ connection }: HeldConnection, last: Command | undefined): Effect.Effect<unknown, SqlError> => {
  if (last === undefined) return connection.executeRaw(`${checkStillOpen}; COMMIT`, [])
  return canSendBatch(connection)
    ? sendBatch(connection, [last, { text: "COMMIT", values: [] }], ["T", "I"])
    : Effect.zipRight(
        connection.execute(last.text, [...last.values], undefined),
        connection.executeRaw(`${checkStillOpen}; COMMIT`, [])
      )
}

/** Rolls back, unless the connection is closed anyway, which does the same. One that can't roll back is closed. */
const rollback = (held: HeldConnection): Effect.Effect<void> =>
  held.isClosing
    ? Effect.void
    : Effect.catchAll(Effect.retry(held.connection.executeUnprepared("ROLLBACK", [], undefined), { times: 2 }), () =>
        Effect.sync(held.close)
      )

/** Until when the connection belongs to the transaction. */
interface Validity {
  over: boolean
}

/** The connection for the statements inside: it refuses them once the transaction is over. */
const guarded = (held: HeldConnection, validity: Readonly<Validity>): Connection => {
  const { connection } = held
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
    executeUnprepared: (...args) => run(connection.executeUnprepared(...args))
  }
}

const nested = <A, E, R>(
  operation: string,
  outer: Open,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E | StoreError, R> => {
  const [connection, depth] = outer
  const savepoint = `effect_sql_${depth + 1}`
  // Gone with the savepoint, if a statement inside rolls back to it or ends the transaction.
  const mark = `effect_maestro.savepoint_${depth + 1}`
  const value = String(++savepoints)
  const run = (statement: string) =>
    Effect.mapError(connection.executeUnprepared(statement, [], undefined), (error) =>
      fromSqlError(operation, "writing", error)
    )
  // Savepoints that stay would nest ever deeper: thousands of them slow all that follows in the transaction.
  const release = run(`${checkSetting(mark, value)}; RELEASE SAVEPOINT ${savepoint}`)
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
  return turnIn(outer).withPermits(1)(transaction)
}

let savepoints = 0

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
