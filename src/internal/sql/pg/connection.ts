/**
 * Connections of the pool that one caller holds for a while.
 *
 * A statement can be cancelled only through another connection, and the cancel hits whatever the server process does when it arrives. So a
 * connection whose statement was interrupted is closed, never given back to the pool. So is one with a transaction whose end is unknown.
 *
 * `@effect/sql-pg` does not wait for the end of an interrupted statement, so the caller could look before it takes effect. Here the
 * statement runs on while it is cancelled, and the caller waits for its end for the grace period at most.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import type { Connection } from "@effect/sql/SqlConnection"
import { SqlError } from "@effect/sql/SqlError"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberId from "effect/FiberId"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { StoreError } from "../../../StoreError.js"
import { awaitAtMost, awaitGrace } from "../../runtime/interruption.js"
import { fromSqlError, type Phase } from "../../runtime/sqlError.js"
import { withoutInnerSpans } from "../../runtime/tracing.js"

/** A transaction, as `SqlClient` knows it. A connection without one has depth 0, too. */
export type Open = readonly [connection: Connection, depth: number]

/** A connection that is held. */
export class HeldConnection {
  /** Whether the connection is closed when it is released, instead of going back to the pool. */
  isClosing = false
  /** Whether it is known to have ended. */
  isLost = false

  constructor(
    readonly sql: SqlClient.SqlClient,
    readonly connection: Connection
  ) {}

  /** Clients that do not show the driver, such as the embedded one, cancel nothing and need no closing: they must roll back. */
  readonly close = (): void => {
    this.isClosing = isClosable(driverOf(this.connection))
  }
}

/**
 * Holds a connection while the effect runs, in the caller's fiber. Interruption of the wait for a connection takes effect immediately; the
 * connection that the pool hands out later goes straight back. One that the application has left in a transaction is closed.
 */
export const withConnection = <A, E, R>(
  sql: SqlClient.SqlClient,
  operation: string,
  use: (held: HeldConnection) => Effect.Effect<A, E, R>
): Effect.Effect<A, E | StoreError, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(Scope.make(), (scope) => {
      const reserving = Effect.mapError(Scope.extend(sql.reserve, scope), (error) =>
        fromSqlError(operation, "reading", error)
      )
      return Effect.flatMap(Effect.forkDaemon(reserving), (fiber) =>
        Effect.flatMap(
          Effect.onInterrupt(restore(Fiber.join(fiber)), () =>
            Effect.forkDaemon(Effect.zipRight(Fiber.await(fiber), Scope.close(scope, Exit.void)))
          ),
          (connection): Effect.Effect<A, E | StoreError, R> => {
            const held = new HeldConnection(sql, connection)
            if (isInTransaction(connection)) {
              held.close()
              return Effect.zipRight(release(held, scope), restore(withConnection(sql, operation, use)))
            }
            return Effect.flatMap(Effect.exit(restore(use(held))), (exit) =>
              Effect.zipRight(release(held, scope), exit)
            )
          }
        )
      )
    })
  )

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
      Effect.onInterrupt(restore(Fiber.join(fiber)), () => breakOff(held, fiber))
    )
  )

/**
 * The same for a statement of a caller inside of a transaction, which may be part of a clean-up, such as a ROLLBACK TO SAVEPOINT. An
 * interrupted clean-up has its statements sent, and waits for each of them for the grace period at most; then the connection is closed.
 * A connection that will be closed takes no more statements: one behind a statement that goes on would wait for its end.
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
                    return exit !== null ? exit : Effect.zipRight(breakOff(held, fiber), Effect.fail(closing()))
                  })
            )
          )
  )

/**
 * The same for a statement whose rows are read by a cursor. A connection that ends meanwhile ends the stream: the driver's cursor would
 * wait for an answer for ever.
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
            ? breakOff(held, fiber)
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

/**
 * Runs one statement on a connection of its own. Where the application had left a transaction on it, behind which the statement was queued,
 * nothing is stored, the connection is closed, and the statement runs on another one.
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
      (result): Effect.Effect<A, StoreError | Spoiled> => {
        const isRefused = Either.isLeft(result) && result.left.code === "25P02"
        if (!isRefused && !isInTransaction(held.connection)) return result
        held.close()
        return new Spoiled()
      }
    )
  )
  return Effect.catchAll(withoutInnerSpans(attempt), (error) =>
    !(error instanceof Spoiled)
      ? Effect.fail(error)
      : attempts > 1
        ? executeAlone(sql, operation, phase, statement, attempts - 1)
        : new StoreError({
            reason: "Unavailable",
            operation,
            description: "the pool gives connections that are inside of a transaction; nothing was stored"
          })
  )
}

// --- internal ---

/** The statement ran in a transaction that is rolled back with its connection. */
class Spoiled extends Data.TaggedError("Spoiled") {}

/** Whether the session is inside a transaction, as far as the driver tells. */
const isInTransaction = (connection: Connection): boolean => {
  const driver = driverOf(connection)
  return tellsStatus(driver) && /^[TE]$/.test(driver.getTransactionStatus() ?? "")
}

const tellsStatus = (u: unknown): u is { readonly getTransactionStatus: () => string | null } =>
  typeof u === "object" && u !== null && "getTransactionStatus" in u && typeof u.getTransactionStatus === "function"

const release = (held: HeldConnection, scope: Scope.CloseableScope): Effect.Effect<void> =>
  Effect.suspend(() => {
    if (held.isClosing) closeDriver(held.connection)
    return Scope.close(scope, Exit.void)
  })

/** Cancels a statement, waits for its end for the grace period at most, and has the connection closed on its release. */
const breakOff = (held: HeldConnection, fiber: Fiber.RuntimeFiber<unknown, unknown>): Effect.Effect<unknown> => {
  held.close()
  return Effect.zipRight(Effect.forkDaemon(cancel(held)), awaitGrace(Fiber.await(fiber)))
}

const closing = (): SqlError =>
  new SqlError({
    cause: new Error("a statement before it was interrupted, so the connection is closed"),
    message: "Failed to execute statement"
  })

/** How long the end of a cursor is waited for: it is one round trip. */
const maxCursorClose = "5 seconds"

/** Fails when the connection ends, as far as the driver tells. */
const connectionEnd = (connection: Connection): Effect.Effect<Effect.Effect<never, SqlError>, never, Scope.Scope> => {
  const driver = driverOf(connection)
  if (!isEmitter(driver)) return Effect.succeed(Effect.never)
  const ended = Deferred.unsafeMake<never, SqlError>(FiberId.none)
  const end = () =>
    Deferred.unsafeDone(
      ended,
      Effect.fail(new SqlError({ cause: new Error("Connection terminated"), message: "Connection error" }))
    )
  return Effect.acquireRelease(
    Effect.sync(() => {
      driver.on("end", end)
      driver.on("error", end)
      return Deferred.await(ended)
    }),
    () =>
      Effect.sync(() => {
        driver.removeListener("end", end)
        driver.removeListener("error", end)
      })
  )
}

interface Emitter {
  readonly on: (event: string, listener: () => void) => unknown
  readonly removeListener: (event: string, listener: () => void) => unknown
}

const isEmitter = (u: unknown): u is Emitter =>
  typeof u === "object" &&
  u !== null &&
  ["on", "removeListener"].every((name) => name in u && typeof Reflect.get(u, name) === "function")

/** Cancels what the server process does, through another connection of the pool. */
const cancel = ({ connection, sql }: HeldConnection): Effect.Effect<void> => {
  const driver = driverOf(connection)
  return hasProcess(driver)
    ? Effect.ignore(sql.unsafe("select pg_cancel_backend($1)", [driver.processID])).pipe(
        Effect.withTracerEnabled(false),
        Effect.mapInputContext((context: Context.Context<never>) =>
          Context.omit(SqlClient.TransactionConnection)(context as Context.Context<SqlClient.TransactionConnection>)
        )
      )
    : Effect.void
}

const hasProcess = (u: unknown): u is { readonly processID: number } =>
  typeof u === "object" && u !== null && "processID" in u && typeof u.processID === "number"

/** Ends the driver's client, so that the pool removes it. */
const closeDriver = (connection: Connection): void => {
  const driver = driverOf(connection)
  if (isClosable(driver)) driver.end(() => {})
}

/** The client of `pg`, as `@effect/sql-pg` shows it. */
const driverOf = (connection: Connection): unknown => (connection as { readonly pg?: unknown }).pg

interface Closable {
  readonly end: (ended: () => void) => unknown
}

const isClosable = (u: unknown): u is Closable =>
  typeof u === "object" && u !== null && "end" in u && typeof u.end === "function"
