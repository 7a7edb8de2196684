/**
 * Several statements in one round trip: all of them are sent before one Sync, so that after an error the server skips the rest
 * (https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-PIPELINING). Outside of a transaction such a batch is one by
 * itself: the server commits it as a whole or not at all, even if the connection breaks on the way.
 *
 * `pg` sends a batch as a query object of one's own, its documented way of extension, which `pg-cursor` uses too. Connections that do not show
 * the driver, such as the embedded one, can't send one.
 */
import type { Connection } from "@effect/sql/SqlConnection"
import { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"

/** A statement that is sent. */
export interface Command {
  readonly text: string
  readonly values: ReadonlyArray<unknown>
}

/** Whether this connection can send a batch. */
export const canSendBatch = (connection: Connection): boolean => driverOf(connection) !== undefined

/**
 * Sends the statements and returns the first column of the last one's rows, as text. The session must have the first status before and
 * the second status afterwards: anything else is a failure. `T` before includes a transaction that has failed, because the server then
 * refuses the statements with the error to report.
 */
export const sendBatch = (
  connection: Connection,
  commands: ReadonlyArray<Command>,
  [before, after]: readonly [before: "I" | "T", after: "I" | "T"]
): Effect.Effect<ReadonlyArray<string | null>, SqlError> =>
  Effect.async((resume) => {
    const driver = driverOf(connection)
    if (driver === undefined) return resume(failure(new Error("the driver can't send a batch")))
    if ((driver.getTransactionStatus() === "I") !== (before === "I")) return resume(failure(leftOpen()))
    const batch = new Batch(driver, commands, (error) => {
      if (error !== undefined && error !== null) resume(failure(error))
      else if (driver.getTransactionStatus() !== after) resume(failure(leftOpen()))
      else resume(Effect.succeed(batch.column))
    })
    driver.query(batch)
  })

// --- internal ---

const failure = (cause: unknown): Effect.Effect<never, SqlError> =>
  Effect.fail(new SqlError({ cause, message: "Failed to execute statement" }))

const leftOpen = () =>
  Object.assign(new Error("the connection was inside a transaction of another owner"), { code: "25001" })

/** The parts of a client of `pg` that this needs. */
interface Driver {
  readonly query: (query: Batch) => unknown
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

/** What `pg` takes for one query: it passes what the server answers to the methods. */
class Batch {
  /** The driver may replace it, to see when the query is over. */
  callback: (error: unknown) => void
  column: Array<string | null> = []

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
      // A value could not be sent: a statement that does not exist makes the server skip the rest.
      if (incomplete) wire.bind({ statement: "effect-maestro has prepared none" })
      wire.sync()
    } finally {
      wire.stream.uncork?.()
    }
  }

  handleRowDescription(): void {
    this.column = []
  }

  handleDataRow({ fields }: { readonly fields: ReadonlyArray<unknown> }): void {
    const [first] = fields
    this.column.push(typeof first === "string" ? first : null)
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

  handleCommandComplete(): void {}
  handleEmptyQuery(): void {}
  handlePortalSuspended(): void {}
  handleCopyData(): void {}
}

/** The driver's client, as `@effect/sql-pg` shows it. One that pipelines all of its statements can't tell where a batch ends. */
const driverOf = (connection: Connection): Driver | undefined => {
  const { pg } = connection as { readonly pg?: unknown }
  return isDriver(pg) ? pg : undefined
}

const isDriver = (u: unknown): u is Driver =>
  typeof u === "object" &&
  u !== null &&
  "query" in u &&
  typeof u.query === "function" &&
  "getTransactionStatus" in u &&
  typeof u.getTransactionStatus === "function" &&
  !("pipeline" in u && u.pipeline === true) &&
  "Query" in u.constructor &&
  typeof u.constructor.Query === "function"
