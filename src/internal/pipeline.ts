/**
 * Statements that are sent before those in front of them are answered, where the driver can do that: `pg` can from 8.23 on, by its
 * `pipeline` option (https://node-postgres.com/features/pipelining). Connections that can't, or do not show that they can, send one
 * after the other.
 */
import type { Connection } from "@effect/sql/SqlConnection"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { joinPromptly, promptly } from "./promptly.js"

/** Whether statements of this connection can be sent before those in front of them are answered. */
export const canPipeline = (connection: Connection): boolean => driverOf(connection) !== undefined

/** Whether they are. */
export const isPipeline = (connection: Connection): boolean => driverOf(connection)?.pipeline === true

/** From here on they are. What the driver can't do then is reading by a cursor. */
export const beginPipeline = (connection: Connection): void => {
  const driver = driverOf(connection)
  // Whoever has it on for all of a pool keeps it on.
  if (driver === undefined || driver.pipeline) return
  driver.pipeline = true
  begun.add(driver)
}

/**
 * From here on they are not, if everything that was sent is answered: else the driver would take an answer for that of another
 * statement, and whoever ends the next pipeline ends this one.
 */
export const endPipeline = (connection: Connection): void => {
  const driver = driverOf(connection)
  if (driver === undefined || driver._sentQueryQueue.length > 0 || !begun.delete(driver)) return
  driver.pipeline = false
}

/** What is sent from here to the end of this turn of the event loop leaves in one piece. */
export const inOnePiece = (connection: Connection): void => {
  const stream = driverOf(connection)?.connection.stream
  if (stream === undefined) return
  stream.cork()
  process.nextTick(() => stream.uncork())
}

/**
 * Two statements, the second sent along with the first where that can be. It answers as the second does, or with the failure of the
 * first. Where it is interrupted, the pipeline is to be ended after the statement that comes next.
 */
export const together = <A, E, B, E2>(
  connection: Connection,
  first: Effect.Effect<A, E>,
  second: Effect.Effect<B, E2>
): Effect.Effect<B, E | E2> => {
  if (!canPipeline(connection)) return Effect.zipRight(first, promptly(second))
  return Effect.uninterruptibleMask((restore) => {
    beginPipeline(connection)
    inOnePiece(connection)
    // It begins when this fiber waits for the first, or else has to wait for its turn.
    return Effect.flatMap(Effect.forkDaemon(restore(Effect.zipRight(Effect.yieldNow(), second))), (sending) =>
      // Not broken off for a failure of the other: to break one off is to ask the server to cancel whatever it is at.
      Effect.flatMap(Effect.exit(first), (one) =>
        Effect.flatMap(Effect.exit(joinPromptly(restore, sending)), (other): Effect.Effect<B, E | E2> => {
          if (!Exit.isInterrupted(other)) endPipeline(connection)
          return Exit.isFailure(one) ? Effect.failCause(one.cause) : other
        })
      )
    )
  })
}

// --- internal ---

const begun = new WeakSet<Driver>()

/** What this needs of a connection of `pg`. */
interface Driver {
  pipeline: boolean
  /** What was sent and is not answered, but for the first of it. */
  readonly _sentQueryQueue: ReadonlyArray<unknown>
  readonly connection: { readonly stream: Corkable }
}

interface Corkable {
  readonly cork: () => void
  readonly uncork: () => void
}

/** The driver's connection, as that of `@effect/sql-pg` shows it. */
const driverOf = (connection: Connection): Driver | undefined => {
  const { pg } = connection as { readonly pg?: unknown }
  return isDriver(pg) ? pg : undefined
}

const isDriver = (u: unknown): u is Driver =>
  isObject(u) &&
  typeof u.pipeline === "boolean" &&
  Array.isArray(u._sentQueryQueue) &&
  isObject(u.connection) &&
  isObject(u.connection.stream) &&
  typeof u.connection.stream.cork === "function" &&
  typeof u.connection.stream.uncork === "function"

const isObject = (u: unknown): u is Record<string, unknown> => typeof u === "object" && u !== null
