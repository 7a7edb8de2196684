/**
 * Connections of the pool that one caller holds until it has finished. `transaction.ts` and `execute.ts` use them.
 *
 * - A statement can be cancelled only through another connection, and the cancel hits the statement that the server process runs when it
 *   arrives. So a connection whose statement was interrupted is closed, and never goes back to the pool.
 * - So is a connection with a transaction of unknown outcome.
 * - An interrupted statement runs on while it is cancelled, and the caller waits for its end for the grace period at most. `@effect/sql-pg`
 *   does not wait, so a caller could look before the cancel takes effect.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import type { Connection } from "@effect/sql/SqlConnection"
import { SqlError } from "@effect/sql/SqlError"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberId from "effect/FiberId"
import * as Option from "effect/Option"
import * as Runtime from "effect/Runtime"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { StoreError } from "../../../StoreError.js"
import { awaitAtMost, awaitGrace } from "../../runtime/interruption.js"
import { fromSqlError } from "../../runtime/sqlError.js"
import {
  type BatchSession,
  batchSessionOf,
  type Command,
  canClose,
  close,
  isInTransaction,
  onEnd,
  processIdOf,
  type Rows,
  type Status
} from "./driver.js"

/** A transaction, as `SqlClient` knows it. A connection without one has depth 0, too. */
export type Open = readonly [connection: Connection, depth: number]

/** A connection that is held. */
export class HeldConnection {
  /** Whether the connection is closed when it is released, instead of going back to the pool. */
  isClosing = false
  /** Whether it is known to have ended. */
  isLost = false
  /** How it sends batches, if it can. */
  readonly session: BatchSession | undefined

  constructor(
    readonly sql: SqlClient.SqlClient,
    readonly connection: Connection
  ) {
    this.session = batchSessionOf(connection)
  }

  /** Has the connection closed on its release. The embedded database can't close its one, but cancels no statement either. */
  readonly close = (): void => {
    this.isClosing = canClose(this.connection)
  }
}

/**
 * Holds a connection while the effect runs, in the caller's fiber. Interruption of the wait for a connection takes effect immediately, and
 * the connection that the pool hands out later goes straight back. A connection that the application has left in a transaction is closed.
 */
export const withConnection = <A, E, R>(
  sql: SqlClient.SqlClient,
  operation: string,
  use: (held: HeldConnection) => Effect.Effect<A, E, R>
): Effect.Effect<A, E | StoreError, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(restore(awaitReserved(sql, operation)), (reserved): Effect.Effect<A, E | StoreError, R> => {
      const { held } = reserved
      if (isInTransaction(held.connection)) {
        held.close()
        giveBack(reserved)
        return restore(withConnection(sql, operation, use))
      }
      return Effect.flatMap(Effect.exit(restore(use(held))), (exit) => {
        giveBack(reserved)
        return exit
      })
    })
  )

/** A connection that the pool has handed out, and the scope that gives it back. */
export interface Reserved {
  readonly held: HeldConnection
  readonly scope: Scope.CloseableScope
}

/** Asks the pool for a connection, in a fiber of its own, because the pool can't take a request back. */
export const reserve = (
  sql: SqlClient.SqlClient,
  done: (reserved: Exit.Exit<Reserved, SqlError>) => void
): Fiber.RuntimeFiber<Reserved, SqlError> => {
  const fiber = runFork(
    Effect.flatMap(Scope.make(), (scope) =>
      Effect.map(Scope.extend(sql.reserve, scope), (connection) => ({
        held: new HeldConnection(sql, connection),
        scope
      }))
    )
  )
  fiber.addObserver(done)
  return fiber
}

/** Gives a connection back to the pool, or ends it. */
export const giveBack = ({ held, scope }: Reserved): void => {
  if (held.isClosing) close(held.connection)
  runFork(Scope.close(scope, Exit.void))
}

/** Runs an effect whose statements go to this connection. */
export const onConnection = <A, E, R>(open: Open, effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.provideService(effect, SqlClient.TransactionConnection, open) as Effect.Effect<A, E, R>

/**
 * Sends a statement on a held connection. Interruption cancels it, waits for its end for the grace period at most, and has the
 * connection closed on its release.
 */
export const interruptible = <A>(
  held: HeldConnection,
  statement: Effect.Effect<A, SqlError>
): Effect.Effect<A, SqlError> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(Effect.forkDaemon(statement), (fiber) =>
      Effect.onInterrupt(restore(Fiber.join(fiber)), () => cancelAndClose(held, fiber))
    )
  )

/**
 * Sends commands on a held connection, in one round trip if the driver can, and returns the rows of the last one. Interruption does what it
 * does to `interruptible`, without a fiber of its own for the commands.
 */
export const sendCommands = (
  held: HeldConnection,
  commands: ReadonlyArray<Command>,
  statuses: readonly [before: Status, after: Status]
): Effect.Effect<Rows, SqlError> => {
  const { session } = held
  return session !== undefined
    ? Effect.async((resume) => {
        let ended: (() => void) | undefined
        let isPending = true
        session.submit(commands, statuses, (result) => {
          isPending = false
          resume(result)
          ended?.()
        })
        return Effect.suspend(() => {
          held.close()
          const waiting = Effect.async<void>((stop) => {
            if (!isPending) return stop(Effect.void)
            ended = () => stop(Effect.void)
          })
          return Effect.zipRight(Effect.forkDaemon(cancel(held)), awaitGrace(waiting))
        })
      })
    : interruptible(
        held,
        Effect.reduce(commands, none, (_, command) => valuesOf(held.connection, command))
      )
}

/**
 * Sends a statement of a caller inside of a transaction. The statement may be part of a clean-up, such as a ROLLBACK TO SAVEPOINT.
 * Interruption then still sends it, and waits for the grace period at most. If it has not ended by then, the connection is closed. A connection
 * that will be closed takes no more statements, because they would queue behind the interrupted statement.
 */
export const interruptibleInside = <A>(
  held: HeldConnection,
  statement: Effect.Effect<A, SqlError>
): Effect.Effect<A, SqlError> =>
  Effect.checkInterruptible((isInterruptible) =>
    held.isClosing
      ? Effect.fail(closing())
      : isInterruptible
        ? interruptible(held, statement)
        : Effect.flatMap(Effect.forkDaemon(statement), (fiber) =>
            Effect.flatMap(Effect.exit(Effect.interruptible(Fiber.await(fiber))), (waited) =>
              Exit.isSuccess(waited)
                ? waited.value
                : Effect.flatMap(awaitGrace(Fiber.await(fiber)), () => {
                    const exit = fiber.unsafePoll()
                    return exit !== null ? exit : Effect.zipRight(cancelAndClose(held, fiber), Effect.fail(closing()))
                  })
            )
          )
  )

/**
 * Reads the rows of a statement by a cursor inside of a transaction. Interruption does what it does to a statement. The stream fails when
 * the connection ends, because the driver's cursor would wait for ever.
 */
export const interruptibleStream = <A>(
  held: HeldConnection,
  rows: Stream.Stream<A, SqlError>
): Stream.Stream<A, SqlError> =>
  Stream.unwrapScoped(
    Effect.gen(function* () {
      if (held.isClosing) return Stream.fail(closing())
      const ended = yield* connectionEnd(held.connection)
      const scope = yield* Scope.make()
      yield* Effect.addFinalizer((exit) =>
        Effect.flatMap(Effect.forkDaemon(Effect.interruptible(Scope.close(scope, exit))), (fiber) => {
          const closed = Fiber.await(fiber)
          return Exit.isInterrupted(exit)
            ? cancelAndClose(held, fiber)
            : Effect.flatMap(awaitAtMost(maxCursorClose, Effect.raceFirst(closed, Effect.ignore(ended))), () =>
                Effect.sync(() => {
                  if (fiber.unsafePoll() !== null) return
                  held.isLost = true
                  held.close()
                })
              )
        })
      )
      const pull = yield* Scope.extend(Stream.toPull(rows), scope)
      return Stream.repeatEffectChunkOption(Effect.raceFirst(pull, Effect.mapError(ended, Option.some)))
    })
  )

/** Fails when the connection ends. Never completes if the driver does not show that. */
export const connectionEnd = (
  connection: Connection
): Effect.Effect<Effect.Effect<never, SqlError>, never, Scope.Scope> =>
  Effect.suspend(() => {
    const ended = Deferred.unsafeMake<never, SqlError>(FiberId.none)
    const stop = onEnd(connection, () =>
      Deferred.unsafeDone(
        ended,
        Effect.fail(new SqlError({ cause: new Error("Connection terminated"), message: "Connection error" }))
      )
    )
    return stop === undefined
      ? Effect.succeed(Effect.never)
      : Effect.as(
          Effect.addFinalizer(() => Effect.sync(stop)),
          Deferred.await(ended)
        )
  })

/** Sends one command without preparing it. */
export const valuesOf = (connection: Connection, { text, values }: Command): Effect.Effect<Rows, SqlError> =>
  connection.executeValues(text, values) as Effect.Effect<Rows, SqlError>

/** Cancels the statement of the server process, through another connection of the pool. */
export const cancel = ({ connection, sql }: HeldConnection): Effect.Effect<void> => {
  const id = processIdOf(connection)
  return id === undefined
    ? Effect.void
    : Effect.ignore(sql.unsafe("select pg_cancel_backend($1)", [id])).pipe(
        Effect.withTracerEnabled(false),
        Effect.mapInputContext((context: Context.Context<never>) =>
          Context.omit(SqlClient.TransactionConnection)(context as Context.Context<SqlClient.TransactionConnection>)
        )
      )
}

// --- internal ---

const none: Rows = []

/** Waits for a connection. One that the pool hands out after an interruption goes straight back. */
const awaitReserved = (sql: SqlClient.SqlClient, operation: string): Effect.Effect<Reserved, StoreError> =>
  Effect.async((resume) => {
    let isAbandoned = false
    const fiber = reserve(sql, (exit) => {
      if (!isAbandoned) resume(Exit.mapError(exit, (error) => fromSqlError(operation, "reading", error)))
      else if (Exit.isSuccess(exit)) giveBack(exit.value)
    })
    return Effect.sync(() => {
      isAbandoned = true
      // An interruption may come between the connection and its user.
      const exit = fiber.unsafePoll()
      if (exit !== null && Exit.isSuccess(exit)) giveBack(exit.value)
    })
  })

/** The pool's fibers belong to no caller. */
const runFork = Runtime.runFork(Runtime.defaultRuntime)

/** Cancels a statement, waits for its end for the grace period at most, and has the connection closed on its release. */
const cancelAndClose = (held: HeldConnection, fiber: Fiber.RuntimeFiber<unknown, unknown>): Effect.Effect<unknown> => {
  held.close()
  return Effect.zipRight(Effect.forkDaemon(cancel(held)), awaitGrace(Fiber.await(fiber)))
}

const closing = (): SqlError =>
  new SqlError({
    cause: new Error("a statement before it was interrupted, so the connection is closed"),
    message: "Failed to execute statement"
  })

/** Limits the wait for the end of a cursor, which is one round trip. */
const maxCursorClose = "5 seconds"
