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
import type { SqlError } from "@effect/sql/SqlError"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import type { StoreError } from "../StoreError.js"
import { withinGrace } from "./promptly.js"
import { fromSqlError, type Phase } from "./sqlError.js"
import { quietly } from "./tracing.js"

/** A transaction, as `SqlClient` knows it. A connection without one has depth 0, too. */
export type Open = readonly [connection: Connection, depth: number]

/** A connection that is held. */
export class HeldConnection {
  /** Whether the connection is closed when it is released, instead of going back to the pool. */
  isClosing = false

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
 * connection that the pool hands out later goes straight back.
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
          (connection) => {
            const held = new HeldConnection(sql, connection)
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
      Effect.onInterrupt(restore(Fiber.join(fiber)), () => {
        held.close()
        return Effect.zipRight(Effect.forkDaemon(cancel(held)), withinGrace(Fiber.await(fiber)))
      })
    )
  )

/** Runs one statement on a connection of its own. */
export const executeAlone = <A>(
  sql: SqlClient.SqlClient,
  operation: string,
  phase: Phase,
  statement: Effect.Effect<A, SqlError>
): Effect.Effect<A, StoreError> =>
  withConnection(sql, operation, (held) =>
    Effect.mapError(interruptible(held, onConnection([held.connection, 0], statement)), (error) =>
      fromSqlError(operation, phase, error)
    )
  ).pipe(quietly)

// --- internal ---

const release = (held: HeldConnection, scope: Scope.CloseableScope): Effect.Effect<void> =>
  Effect.suspend(() => {
    if (held.isClosing) closeDriver(held.connection)
    return Scope.close(scope, Exit.void)
  })

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
