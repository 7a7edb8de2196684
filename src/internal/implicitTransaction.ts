/**
 * Statements that are one transaction by themselves, in one round trip: what is sent before a Sync the server commits or takes back as
 * a whole, and after an error it passes over what is left
 * (https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-PIPELINING). So none of them can be done without those
 * before it, whatever becomes of the connection.
 *
 * `pg` sends such by a query of one's own making, as `pg-cursor` is one. Connections that do not show the driver can't.
 */
import type { Connection } from "@effect/sql/SqlConnection"
import { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"

/** A statement that is sent. */
export interface Command {
  readonly text: string
  readonly values: ReadonlyArray<unknown>
}

/** Whether this connection can. */
export const canSendWhole = (connection: Connection): boolean => driverOf(connection) !== undefined

/**
 * Sends the statements; they are committed where it succeeds. Who interrupts it waits for the end, after `cancel` was told the process
 * that works on it, and how to see whether it still does.
 */
export const sendWhole = (
  connection: Connection,
  commands: ReadonlyArray<Command>,
  cancel: (process: number | null, isOver: () => boolean) => Effect.Effect<unknown>
): Effect.Effect<void, SqlError> =>
  Effect.async<void, SqlError>((resume) => {
    const driver = driverOf(connection)
    if (driver === undefined) return resume(failed(new Error("the driver can't send a transaction as a whole")))
    if (driver.getTransactionStatus() !== idle) return resume(undone(connection))
    let over = false
    let ended = (): void => {}
    driver.query(
      new Whole(driver, commands, (error) => {
        over = true
        ended()
        resume(
          error !== undefined && error !== null
            ? failed(error)
            : driver.getTransactionStatus() === idle
              ? Effect.void
              : undone(connection)
        )
      })
    )
    const end = Effect.async<void>((resume) => {
      ended = () => resume(Effect.void)
      if (over) ended()
    })
    return Effect.zipRight(
      cancel(driver.processID, () => over),
      end
    )
  })

// --- internal ---

/** What the server calls a session that is in no transaction. */
const idle = "I"

const failed = (cause: unknown): Effect.Effect<never, SqlError> =>
  Effect.fail(new SqlError({ cause, message: "Failed to execute statement" }))

/** Somebody had left a transaction open on the connection, so that nothing was committed. */
const undone = (connection: Connection): Effect.Effect<never, SqlError> =>
  Effect.zipRight(
    Effect.ignore(connection.executeUnprepared("ROLLBACK", [], undefined)),
    failed(Object.assign(new Error("the connection was inside a transaction"), { code: "25001" }))
  )

/** The parts of a client of `pg` that this needs. */
interface Driver {
  readonly processID: number | null
  readonly query: (query: Whole) => unknown
  readonly getTransactionStatus: () => string | null
  readonly constructor: {
    readonly Query: new (config: object, values: undefined, callback: (error: unknown) => void) => Query
  }
}

interface Query {
  readonly submit: (connection: object) => unknown
}

interface Wire {
  readonly stream: { readonly cork: () => void; readonly uncork: () => void }
  readonly sync: () => void
  readonly bind: (config: object) => void
  readonly sendCopyFail: (message: string) => void
}

/** What `pg` takes for one query: it hands on to it what the server answers. */
class Whole {
  /** The driver may put another in its place, to see when it is over. */
  callback: (error: unknown) => void

  constructor(
    private readonly driver: Driver,
    private readonly commands: ReadonlyArray<Command>,
    callback: (error: unknown) => void
  ) {
    this.callback = callback
  }

  submit(wire: Wire): void {
    let incomplete = false
    const notice = (error: unknown) => {
      if (error !== undefined && error !== null) incomplete = true
    }
    // A query of the driver's ends with a Sync; these end with one for all of them.
    const unsynced = Object.create(wire, { sync: { value: () => {} } })
    wire.stream.cork()
    try {
      for (const { text, values } of this.commands) {
        const query = new this.driver.constructor.Query({ text, values, queryMode: "extended" }, undefined, notice)
        notice(query.submit(unsynced))
      }
      // A value could not be sent. There is no such statement: so what was sent comes to nothing.
      if (incomplete) wire.bind({ statement: "effect-maestro has prepared none" })
      wire.sync()
    } finally {
      wire.stream.uncork()
    }
  }

  handleReadyForQuery(): void {
    this.callback(undefined)
  }

  handleError(error: unknown): void {
    this.callback(error)
  }

  handleCopyInResponse(wire: Wire): void {
    wire.sendCopyFail("there is nothing to copy from")
  }

  // What they answer nobody asks for.
  handleRowDescription(): void {}
  handleDataRow(): void {}
  handleCommandComplete(): void {}
  handleEmptyQuery(): void {}
  handlePortalSuspended(): void {}
  handleCopyData(): void {}
}

/** The driver's connection, as that of `@effect/sql-pg` shows it. Where all of its statements are pipelined none has an end of its own. */
const driverOf = (connection: Connection): Driver | undefined => {
  const { pg } = connection as { readonly pg?: unknown }
  return isDriver(pg) ? pg : undefined
}

const isDriver = (u: unknown): u is Driver =>
  typeof u === "object" &&
  u !== null &&
  "query" in u &&
  typeof u.query === "function" &&
  "processID" in u &&
  (typeof u.processID === "number" || u.processID === null) &&
  "getTransactionStatus" in u &&
  typeof u.getTransactionStatus === "function" &&
  !("pipeline" in u && u.pipeline === true) &&
  "Query" in u.constructor &&
  typeof u.constructor.Query === "function"
