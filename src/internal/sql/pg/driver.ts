/**
 * The objects of the driver behind an `SqlClient`: clients of `pg`, and PGlite.
 *
 * This is the only file that knows them, except `PgliteClient.ts`, which makes PGlite. The other files of this room, `notifications.ts` and `SqlStore.ts` ask it what a connection can do.
 *
 * - Every part is looked for before it is used. A client that does not show it, such as PGlite, has the fallback that is named here.
 * - No private field is read or written. A batch is a query object with `submit`, which is how `pg-cursor` extends `pg`, too.
 * - A batch is several statements before one Sync, so that after an error the server skips the rest
 *   (https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-PIPELINING). Outside of a transaction it is one by itself:
 *   the server commits all of it or nothing, even if the connection breaks meanwhile.
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { Connection } from "@effect/sql/SqlConnection"
import { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"

/** Whether the database is part of this process: one session, no network, and no other process that commits. */
export const isEmbedded = (client: SqlClient.SqlClient): boolean => "pglite" in client

/** Whether the pool can do without the connection that listens. A pool of few connections needs them all. */
export const canSpareConnection = (client: SqlClient.SqlClient): boolean => {
  const { config } = client as { readonly config?: { readonly maxConnections?: unknown } }
  const most = config?.maxConnections
  return !isEmbedded(client) && (typeof most !== "number" || most >= 4)
}

/** Whether the session is inside a transaction. False if the driver does not show it. */
export const isInTransaction = (connection: Connection): boolean => {
  const driver = driverOf(connection)
  return hasMethod(driver, "getTransactionStatus") && /^[TE]$/.test(String(driver.getTransactionStatus()))
}

/** The server's process of the connection, which no other connection to that server has. */
export const processIdOf = (connection: Connection): number | undefined => {
  const driver = driverOf(connection)
  const id: unknown = isObject(driver) && "processID" in driver ? driver.processID : undefined
  return typeof id === "number" ? id : undefined
}

/** Whether `close` has an effect. A connection that can't be closed has to roll back instead. */
export const canClose = (connection: Connection): boolean => hasMethod(driverOf(connection), "end")

/** Ends the session, so that the pool removes the connection. */
export const close = (connection: Connection): void => {
  const driver = driverOf(connection)
  if (hasMethod(driver, "end")) driver.end(() => {})
}

/** Calls back when the connection ends, until the returned function is called. Undefined if the driver does not show it. */
export const onEnd = (connection: Connection, ended: () => void): (() => void) | undefined => {
  const driver = driverOf(connection)
  if (!isEmitter(driver)) return undefined
  driver.on("end", ended)
  driver.on("error", ended)
  return () => {
    driver.removeListener("end", ended)
    driver.removeListener("error", ended)
  }
}

/** Whether the connection shows notifications, and all that is needed to listen on it. */
export const canListen = (connection: Connection): boolean =>
  isEmitter(driverOf(connection)) && processIdOf(connection) !== undefined && canClose(connection)

/** Calls back for the notifications of a channel that another connection has sent, until the returned function is called. */
export const onNotification = (connection: Connection, channel: string, wake: () => void): (() => void) => {
  const driver = driverOf(connection)
  if (!isEmitter(driver)) return () => {}
  const own = String(processIdOf(connection))
  const hear = (message: Notification) => {
    if (message.channel === channel && message.payload !== own) wake()
  }
  driver.on("notification", hear)
  return () => driver.removeListener("notification", hear)
}

/** A statement with its parameters. */
export interface Command {
  readonly text: string
  readonly values: ReadonlyArray<unknown>
}

/** Whether the connection can send a batch. Otherwise the statements are sent one after the other. */
export const canSendBatch = (connection: Connection): boolean => batchDriverOf(connection) !== undefined

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
    const driver = batchDriverOf(connection)
    if (driver === undefined) return resume(failure(new Error("the driver can't send a batch")))
    if ((driver.getTransactionStatus() === "I") !== (before === "I")) return resume(failure(wrongStatus(before)))
    const batch = new Batch(driver, commands, (error) => {
      if (error !== undefined && error !== null) resume(failure(error))
      else if (driver.getTransactionStatus() !== after) resume(failure(wrongStatus(after)))
      else resume(Effect.succeed(batch.column))
    })
    driver.query(batch)
  })

// --- internal ---

/** The client of `pg`, as `@effect/sql-pg` shows it. */
const driverOf = (connection: Connection): unknown => (connection as { readonly pg?: unknown }).pg

const isObject = (u: unknown): u is object => typeof u === "object" && u !== null

const hasMethod = <Name extends string>(
  u: unknown,
  name: Name
): u is { readonly [N in Name]: (...args: ReadonlyArray<unknown>) => unknown } =>
  isObject(u) && name in u && typeof Reflect.get(u, name) === "function"

interface Notification {
  readonly channel: string
  readonly payload?: string | undefined
}

interface Emitter {
  readonly on: (event: string, listener: (message: Notification) => void) => unknown
  readonly removeListener: (event: string, listener: (message: Notification) => void) => unknown
}

const isEmitter = (u: unknown): u is Emitter => hasMethod(u, "on") && hasMethod(u, "removeListener")

const failure = (cause: unknown): Effect.Effect<never, SqlError> =>
  Effect.fail(new SqlError({ cause, message: "Failed to execute statement" }))

/** The session is not in the status that a batch needs. The codes are those of the server for such a statement. */
const wrongStatus = (needed: "I" | "T") =>
  needed === "I"
    ? Object.assign(new Error("the connection was inside a transaction of another owner"), { code: "25001" })
    : Object.assign(new Error("the transaction of the connection has ended"), { code: "25P01" })

/** What a batch needs of a client of `pg`. */
interface BatchDriver {
  readonly query: (query: Batch) => unknown
  readonly getTransactionStatus: () => string | null
  readonly constructor: {
    readonly Query: new (config: object, values: undefined, callback: (error: unknown) => void) => Query
  }
}

/** Undefined if the client pipelines its statements, because such a client does not know where a batch ends. */
const batchDriverOf = (connection: Connection): BatchDriver | undefined => {
  const driver = driverOf(connection)
  return isBatchDriver(driver) ? driver : undefined
}

const isBatchDriver = (u: unknown): u is BatchDriver =>
  hasMethod(u, "query") &&
  hasMethod(u, "getTransactionStatus") &&
  !("pipeline" in u && u.pipeline === true) &&
  "Query" in u.constructor &&
  typeof u.constructor.Query === "function"

interface Query {
  readonly submit: (connection: object) => unknown
}

/** What `pg` passes to `submit`. */
interface Wire {
  /** Not every stream can be corked. */
  readonly stream: { readonly cork?: () => void; readonly uncork?: () => void }
  readonly sync: () => void
  readonly parse: (query: { readonly text: string }) => void
  readonly bind: (config: object) => void
  readonly sendCopyFail: (message: string) => void
}

/** A query object for `pg`, which passes the answers of the server to the methods. */
class Batch {
  /** The driver may replace it, to see when the query is over. */
  callback: (error: unknown) => void
  column: Array<string | null> = []

  constructor(
    private readonly driver: BatchDriver,
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
    let parsed: string | undefined
    const unsynced = Object.create(wire, {
      // A query of the driver ends with a Sync. These end with one Sync for all of them.
      sync: { value: () => {} },
      // A statement without a name lasts until the next one is parsed, so equal ones in a row are parsed once.
      parse: {
        value: (query: { readonly text: string }) => {
          if (query.text !== parsed) wire.parse(query)
          parsed = query.text
        }
      }
    })
    wire.stream.cork?.()
    try {
      for (const { text, values } of this.commands) {
        const query = new this.driver.constructor.Query({ text, values, queryMode: "extended" }, undefined, notice)
        notice(query.submit(unsynced))
      }
      // A value could not be sent. A statement that does not exist makes the server skip the rest.
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
