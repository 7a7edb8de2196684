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
import * as Exit from "effect/Exit"
import { isLostStatement, PreparedNames, type PreparedText } from "./preparedStatements.js"

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

/** Calls back with the payload of each notification of a channel, until the returned function is called. */
export const onNotification = (
  connection: Connection,
  channel: string,
  notified: (payload: string | undefined) => void
): (() => void) => {
  const driver = driverOf(connection)
  if (!isEmitter(driver)) return () => {}
  const hear = (message: Notification) => {
    if (message.channel === channel) notified(message.payload)
  }
  driver.on("notification", hear)
  return () => driver.removeListener("notification", hear)
}

/** A statement with its parameters. A statement with a name is prepared once in each session (`preparedStatements.ts`). */
export interface Command extends PreparedText {
  readonly values: ReadonlyArray<unknown>
}

/** The rows of a statement, as lists of texts. Its columns are texts in SQL, too, because not every client returns others as texts. */
export type Rows = ReadonlyArray<ReadonlyArray<string | null>>

/** The status of a session: idle, or inside a transaction. */
export type Status = "I" | "T"

/** The session of a connection that can send batches. */
export class BatchSession {
  readonly names = new PreparedNames()
  private unsynced: Wire | undefined

  constructor(private readonly driver: BatchDriver) {}

  isInTransaction(): boolean {
    const status = this.driver.getTransactionStatus()
    return status === "T" || status === "E"
  }

  /**
   * Sends the statements and calls back with the rows of the last one. The session must have the first status before and the second status
   * afterwards: anything else is a failure. `T` before includes a transaction that has failed, because the server then refuses the
   * statements with the error to report.
   *
   * If the session has lost a prepared statement, the server has undone the whole batch, and the batch is sent once more, without names. An
   * open transaction would be lost with it, so there no statement is prepared.
   */
  submit(
    commands: ReadonlyArray<Command>,
    [before, after]: readonly [before: Status, after: Status],
    done: (result: Exit.Exit<Rows, SqlError>) => void
  ): void {
    const { driver } = this
    if ((driver.getTransactionStatus() === "I") !== (before === "I")) return done(failure(wrongStatus(before)))
    const send = (all: ReadonlyArray<Command>, prepares: boolean): void => {
      const batch = new Batch(this, all, prepares, (error) => {
        if (error === undefined || error === null) {
          const status = driver.getTransactionStatus()
          return done(status === after ? Exit.succeed(batch.rows) : failure(wrongStatus(after)))
        }
        if (!batch.hasNames || !isLostStatement(error)) return this.whenReady(() => done(failure(error)))
        this.names.forgetAll()
        // BEGIN has no name, so the refused statement has left its transaction open.
        send(after === "T" ? [{ text: "ROLLBACK", values: [] }, ...commands] : commands, false)
      })
      driver.query(batch)
    }
    send(commands, before === "I")
  }

  /**
   * Calls back when the session is ready again after a failure. The driver reports a failure before that, when it does not know yet whether
   * the statements have left a transaction open.
   */
  private whenReady(done: () => void): void {
    this.driver.query(new Batch(this, [], false, done))
  }

  /** A query of the driver, with names of this session. */
  makeQuery(config: object, notice: (error: unknown) => void): Query {
    return new this.driver.constructor.Query(config, undefined, notice)
  }

  /** For queries of the driver, which end with a Sync and ask what the columns are. Here one Sync ends the batch. */
  withoutSync(wire: Wire): Wire {
    this.unsynced ??= Object.create(wire, {
      sync: { value: () => {} },
      describe: { value: () => {} },
      parsedStatements: { value: this.names.texts },
      submittedNamedStatements: { get: () => ({}) }
    }) as Wire
    return this.unsynced
  }
}

/**
 * The session of the connection. Undefined if it can't send batches, and the statements are sent one after the other. A client of `pg` that
 * pipelines its statements does not know where a batch ends.
 */
export const batchSessionOf = (connection: Connection): BatchSession | undefined => {
  const driver = driverOf(connection)
  const known = isObject(driver) ? sessions.get(driver) : undefined
  if (known !== undefined) return known
  if (!isBatchDriver(driver)) return undefined
  const session = new BatchSession(driver)
  sessions.set(driver, session)
  return session
}

/** `BatchSession.submit` as an effect, which is not interruptible by itself. */
export const sendBatch = (
  session: BatchSession,
  commands: ReadonlyArray<Command>,
  statuses: readonly [before: Status, after: Status]
): Effect.Effect<Rows, SqlError> => Effect.async((resume) => session.submit(commands, statuses, resume))

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

const failure = (cause: unknown): Exit.Exit<never, SqlError> =>
  Exit.fail(new SqlError({ cause, message: "Failed to execute statement" }))

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

const sessions = new WeakMap<object, BatchSession>()

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
  readonly parse: (config: { readonly name: string; readonly text: string }) => void
  readonly bind: (config: { readonly statement: string; readonly values?: ReadonlyArray<string | null> }) => void
  readonly execute: (config: object) => void
  readonly close: (config: { readonly type: "S"; readonly name: string }) => void
  readonly sync: () => void
  readonly sendCopyFail: (message: string) => void
}

/** A query object for `pg`, which passes the answers of the server to the methods. */
class Batch {
  /** The driver may replace it, to see when the query is over. */
  callback: (error: unknown) => void
  /** The rows of the last statement. */
  rows: Rows = []
  /** Whether it has sent a statement under a name. */
  hasNames = false
  private hasReused = false
  private next: Array<ReadonlyArray<string | null>> = []
  private parsed: ReadonlyArray<string> = []
  /** A statement without a name lasts until the next one, so equal ones in a row are parsed once. */
  private unnamed: string | undefined

  constructor(
    private readonly session: BatchSession,
    private readonly commands: ReadonlyArray<Command>,
    private readonly prepares: boolean,
    callback: (error: unknown) => void
  ) {
    this.callback = callback
  }

  submit(wire: Wire): void {
    wire.stream.cork?.()
    try {
      let isComplete = true
      for (const command of this.commands) isComplete = this.send(wire, command) && isComplete
      // A statement that does not exist makes the server skip the rest.
      if (!isComplete) wire.bind({ statement: "effect-maestro has prepared none" })
      wire.sync()
    } finally {
      wire.stream.uncork?.()
    }
  }

  /** Sends a command, and returns whether its values could be sent. */
  private send(wire: Wire, command: Command): boolean {
    const { text, values } = command
    const { names } = this.session
    const name = this.prepares ? names.usable(command) : undefined
    const isKnown = name !== undefined && names.knows(name)
    this.hasNames ||= name !== undefined
    if (isKnown) this.hasReused ||= !this.parsed.includes(name)
    else if (name !== undefined) {
      // The session may or may not know it. To close a name that does not exist is no error.
      wire.close({ type: "S", name })
      this.parsed = [...this.parsed, name]
    }
    const texts = encodeValues(values)
    if (texts !== undefined) {
      // The driver's query takes longer than the rest of a short batch.
      if (name === undefined ? this.unnamed !== text : !isKnown) wire.parse({ name: name ?? "", text })
      if (name === undefined) this.unnamed = text
      wire.bind({ statement: name ?? "", values: texts })
      wire.execute({})
      if (name !== undefined) names.add(name, text)
      return true
    }
    this.unnamed = undefined
    let isSent = true
    const notice = (error: unknown) => {
      if (error !== undefined && error !== null) isSent = false
    }
    const config = { text, values, queryMode: "extended", ...(name === undefined ? {} : { name }) }
    notice(this.session.makeQuery(config, notice).submit(this.session.withoutSync(wire)))
    if (name === undefined) return isSent
    names.add(name, text)
    // The driver has closed the statement whose value it could not send.
    if (!isSent) names.forget([name])
    return isSent
  }

  handleRowDescription(): void {}

  handleDataRow({ fields }: { readonly fields: ReadonlyArray<string | null> }): void {
    this.next.push(fields)
  }

  handleCommandComplete(): void {
    this.rows = this.next
    this.next = []
  }

  handleEmptyQuery(): void {
    this.rows = []
  }

  handleReadyForQuery(): void {
    if (this.hasReused) this.session.names.countReused()
    this.callback(undefined)
  }

  handleError(error: unknown): void {
    this.session.names.forget(this.parsed)
    this.callback(error)
  }

  handleCopyInResponse(wire: Wire): void {
    wire.sendCopyFail("there is nothing to copy from")
  }

  handlePortalSuspended(): void {}
  handleCopyData(): void {}
}

/** The values as the driver would encode them, or undefined if there are others than texts, numbers, booleans and lists of them. */
const encodeValues = (values: ReadonlyArray<unknown>): ReadonlyArray<string | null> | undefined => {
  const encoded: Array<string | null> = []
  for (const value of values) {
    const text = Array.isArray(value) ? encodeList(value) : encodeValue(value)
    if (text === undefined) return undefined
    encoded.push(text)
  }
  return encoded
}

const encodeValue = (value: unknown): string | null | undefined => {
  if (typeof value === "string") return value
  if (value === null || value === undefined) return null
  return typeof value === "number" || typeof value === "boolean" || typeof value === "bigint"
    ? String(value)
    : undefined
}

/** https://www.postgresql.org/docs/current/arrays.html#ARRAYS-INPUT */
const encodeList = (values: ReadonlyArray<unknown>): string | undefined => {
  const encoded: Array<string> = []
  for (const value of values) {
    const text = encodeValue(value)
    if (text === undefined) return undefined
    encoded.push(text === null ? "NULL" : `"${text.replace(/[\\"]/g, "\\$&")}"`)
  }
  return `{${encoded.join(",")}}`
}
