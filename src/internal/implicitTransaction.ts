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
import * as Fiber from "effect/Fiber"

/** A statement that is sent. */
export interface Command {
  readonly text: string
  readonly values: ReadonlyArray<unknown>
}

/** Whether this connection can. */
export const canSendWhole = (connection: Connection): boolean => driverOf(connection) !== undefined

/** How statements are broken off that were sent. */
export interface BreakingOff {
  /** After so many milliseconds it is done. */
  readonly after: number | undefined
  /** Cancels what a process of the server is at, if `begin`, called when that can be sent, says that it is still at it. */
  readonly cancel: (process: number | null, begin: () => boolean) => Effect.Effect<unknown>
}

/**
 * Sends the statements; they are committed where it succeeds. Who interrupts it breaks them off, and waits for their end: the connection
 * is not to be another's while a cancel is under way to it.
 */
export const sendWhole = (
  connection: Connection,
  commands: ReadonlyArray<Command>,
  { after, cancel }: BreakingOff
): Effect.Effect<void, SqlError> =>
  Effect.async<void, SqlError>((resume) => {
    const driver = driverOf(connection)
    if (driver === undefined) return resume(failed(new Error("the driver can't send a transaction as a whole")))
    let over = false
    let isCancelled = false
    let cancelling: Fiber.RuntimeFiber<unknown> | undefined
    let ended = (): void => {}

    const breakOff = (): void => {
      const begin = () => {
        isCancelled = !over
        return isCancelled
      }
      cancelling ??= Effect.runFork(cancel(driver.processID, begin))
    }
    const cancelAnswered = Effect.suspend(() =>
      isCancelled && cancelling !== undefined ? Fiber.await(cancelling) : Effect.void
    )
    const timer = after === undefined ? undefined : setTimeout(breakOff, after)

    const end = (outcome: Effect.Effect<void, SqlError>): void => {
      clearTimeout(timer)
      over = true
      ended()
      resume(Effect.zipRight(cancelAnswered, outcome))
    }
    // Somebody had left a transaction open on the connection: nothing was committed.
    const takeBack = (): unknown => driver.query("ROLLBACK", () => end(failed(leftOpen())))

    if (driver.getTransactionStatus() === idle) {
      driver.query(
        new Whole(driver, commands, (error) => {
          if (error !== undefined && error !== null) end(failed(error))
          else if (driver.getTransactionStatus() === idle) end(Effect.void)
          else takeBack()
        })
      )
    } else takeBack()

    const awaitEnd = Effect.async<void>((resume) => {
      ended = () => resume(Effect.void)
      if (over) ended()
    })
    return Effect.suspend(() => {
      breakOff()
      return Effect.zipRight(awaitEnd, cancelAnswered)
    })
  })

// --- internal ---

/** What the server calls a session that is in no transaction. */
const idle = "I"

const failed = (cause: unknown): Effect.Effect<never, SqlError> =>
  Effect.fail(new SqlError({ cause, message: "Failed to execute statement" }))

const leftOpen = () => Object.assign(new Error("the connection was inside a transaction"), { code: "25001" })

/** The parts of a client of `pg` that this needs. */
interface Driver {
  readonly processID: number | null
  readonly query: (query: Whole | string, answered?: () => void) => unknown
  readonly getTransactionStatus: () => string | null
  readonly constructor: {
    readonly Query: new (config: object, values: undefined, callback: (error: unknown) => void) => Query
  }
}

interface Query {
  readonly submit: (connection: object) => unknown
}

interface Wire {
  /** Not every stream can be corked. */
  readonly stream: { readonly cork?: () => void; readonly uncork?: () => void }
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
    wire.stream.cork?.()
    try {
      for (const { text, values } of this.commands) {
        const query = new this.driver.constructor.Query({ text, values, queryMode: "extended" }, undefined, notice)
        notice(query.submit(unsynced))
      }
      // A value could not be sent. There is no such statement: so what was sent comes to nothing.
      if (incomplete) wire.bind({ statement: "effect-maestro has prepared none" })
      wire.sync()
    } finally {
      wire.stream.uncork?.()
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
