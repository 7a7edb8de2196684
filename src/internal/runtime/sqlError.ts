/**
 * Classifies the failure of a statement: a `SqlError` with a driver's error inside becomes a `StoreError`. All rooms of the SQL store use it.
 *
 * The reason decides whether a commit is retried or settled, so it must be certain that nothing was stored before a reason says so.
 */
import type { SqlError } from "@effect/sql/SqlError"
import { StoreError, type StoreErrorReason } from "../../StoreError.js"

/** What an operation was doing when its statement failed: it decides whether a lost connection is `CommitUnknown`. */
export type Phase =
  /** It had changed nothing. */
  | "reading"
  /** It was in a transaction, before COMMIT. */
  | "writing"
  /** The statement was COMMIT, or its own commit. */
  | "committing"

/** The event that a projection handled. */
export interface EventPlace {
  readonly aggregateId: string
  readonly sequence: number
  readonly type: string
}

export const fromSqlError = (operation: string, phase: Phase, error: SqlError): StoreError => {
  const code = findCode(error.cause)
  const reason = classify(phase, code, error)
  return new StoreError({
    reason,
    operation,
    description: `${meaningOf(reason, code, error)}: ${messageWithTable(error)}`,
    ...(code === undefined ? {} : { code }),
    ...placeOf(error.cause),
    cause: error
  })
}

/** The failure of a projection's statement at an event. The description is the message of the database. */
export const fromProjection = (
  projection: string,
  { aggregateId, sequence, type }: EventPlace,
  error: SqlError
): StoreError => {
  const code = findCode(error.cause)
  return new StoreError({
    reason: classify("writing", code, error),
    operation: `Projection ${projection}`,
    description: messageWithTable(error),
    ...(code === undefined ? {} : { code }),
    projection,
    aggregateId,
    sequence,
    type,
    ...placeOf(error.cause),
    cause: error
  })
}

/** The constraint or unique index that a statement has violated. A `not null` has none, because databases do not report its name. */
export const violatedConstraint = (error: SqlError): string | undefined =>
  violation.test(findCode(error.cause) ?? "") ? placeOf(error.cause).constraint : undefined

/** Whether the failure of a statement is transient. */
export const isTransientSqlError = (error: SqlError): boolean =>
  transientReasons.has(classify("writing", findCode(error.cause), error))

/** The reasons of transient failures. */
export const transientReasons: ReadonlySet<StoreErrorReason> = new Set([
  "CommitUnknown",
  "ConnectionLost",
  "Unavailable",
  "Contention",
  "ClusterUnavailable"
])

/**
 * Whether a statement was cancelled by mistake. `@effect/sql-pg` cancels an interrupted statement by the process of its connection. If the
 * statement has ended before the cancel arrives, the cancel hits the next statement on that connection.
 */
export const isStrayCancel = (error: unknown): boolean =>
  error instanceof StoreError && error.code === "57014" && !/timeout/i.test(error.description)

/** The severity that the server reports with an error, if the error comes from the server and not from the driver. */
export const severityOf = ({ cause }: SqlError): string | undefined =>
  typeof cause === "object" && cause !== null && "severity" in cause && typeof cause.severity === "string"
    ? cause.severity
    : undefined

/** The code of the server or of the system. */
export const codeOf = (error: SqlError | undefined): string | undefined => findCode(error?.cause)

/** What the server says, with its details, such as the objects that depend on a table. */
export const serverMessage = (error: SqlError): string => {
  const cause = withCode(error.cause)
  const detail: unknown = cause === undefined ? undefined : Reflect.get(cause, "detail")
  return typeof detail === "string" && detail !== "" ? `${messageOf(error)}: ${detail}` : messageOf(error)
}

/** Whether a failure may have left the session in any state: the driver reports it, or the server ends the session. */
export const isOfSession = (error: SqlError): boolean =>
  severityOf(error) === undefined || serverLeaves.test(codeOf(error) ?? "")

// --- internal ---

/** The codes with which the server ends a connection in any state. */
const serverLeaves = /^57P0[1-5]$/

const describe: Record<StoreErrorReason, string> = {
  Unavailable: "no connection to the database; nothing was sent",
  ConnectionLost: "the connection to the database broke; nothing was stored",
  CommitUnknown: "the connection broke during the commit; commit the same events again to learn what happened",
  Contention: "the database ended a deadlock or a conflict between transactions; nothing was stored",
  Cancelled: "the statement was cancelled, or reached a limit of time; nothing was stored",
  Constraint: "a constraint was violated; nothing was stored",
  Misconfigured: "the database is not set up for this; migrate, or correct the configuration",
  Exhausted: "the database has no room, has reached a limit, or is read-only; nothing was stored",
  UnreadableEvent: "a stored event can't be read",
  ClusterUnavailable: "no runner has answered in time",
  ClockDrift: "a clock is wrong",
  Unknown: "the database failed"
}

const meaningOf = (reason: StoreErrorReason, code: string | undefined, error: SqlError): string => {
  if (code === outOfMemory && /shared memory/i.test(messageOf(error))) return noLocks
  return code === insufficientPrivilege ? noRight : describe[reason]
}

const outOfMemory = "53200"
const insufficientPrivilege = "42501"

const noRight = "the role of the connection lacks a right; grant it, or connect as a role that has it"

/** The locks of all sessions share one table. A statement on a log with many partitions takes many. */
const noLocks =
  "the server has no room for more locks: raise its max_locks_per_transaction, or give the event log fewer partitions; nothing was stored"

const classify = (phase: Phase, code: string | undefined, error: SqlError): StoreErrorReason => {
  // The messages of `@effect/sql-pg` for a pool without a free connection, and of `pg` for a dead one: the statement was not sent.
  if (/acquire connection/i.test(error.message ?? "") || /not queryable/i.test(messageOf(error))) return "Unavailable"
  if (code !== undefined && neverConnected.test(code)) return "Unavailable"
  if (code === undefined || connectionBroke.test(code)) {
    // An error without a code is about the driver's connection.
    if (code === undefined && !connectionMessage.test(messageOf(error))) return "Unknown"
    return phase === "committing" ? "CommitUnknown" : "ConnectionLost"
  }
  return bySqlState.find(([pattern]) => pattern.test(code))?.[1] ?? "Unknown"
}

const neverConnected =
  /^(ECONNREFUSED|ENOTFOUND|EHOSTUNREACH|ENETUNREACH|EAI_AGAIN|ENOENT|08001|08004|28...|53300|57P03)$/
const connectionBroke = /^(E[A-Z0-9_]{3,}|08...|57P0[1245]|40003)$/
const connectionMessage = /connection|terminated|not queryable|timeout|socket|ended|closed/i

// https://www.postgresql.org/docs/current/errcodes-appendix.html
const violation = /^23/

const bySqlState: ReadonlyArray<readonly [RegExp, StoreErrorReason]> = [
  [violation, "Constraint"],
  [/^40/, "Contention"],
  [/^(57014|55P03|25P03|25P04)$/, "Cancelled"],
  [/^(42501|42P01|42883|3D000|3F000|0A000|42703)$/, "Misconfigured"],
  [/^(53|54|25006)/, "Exhausted"]
]

/** The server's `SQLSTATE` or the system's error code. */
const findCode = (cause: unknown): string | undefined => withCode(cause)?.code

/** The table, column and constraint that the database reports. A text that it leaves out is undefined or empty. */
const placeOf = (
  cause: unknown
): { readonly table?: string; readonly column?: string; readonly constraint?: string } => {
  const error = withCode(cause)
  const field = (name: "table" | "column" | "constraint") => {
    const value: unknown = error === undefined ? undefined : Reflect.get(error, name)
    return typeof value === "string" && value !== "" ? { [name]: value } : {}
  }
  return { ...field("table"), ...field("column"), ...field("constraint") }
}

/** The driver's error with the code, inside of the errors that wrap it. */
const withCode = (cause: unknown): { readonly code: string } | undefined => {
  for (let depth = 0, current = cause; depth < 5 && typeof current === "object" && current !== null; depth++) {
    if (hasCode(current)) return current
    current = "cause" in current ? current.cause : undefined
  }
  return undefined
}

const hasCode = (error: object): error is { readonly code: string } => "code" in error && typeof error.code === "string"

const messageOf = (error: SqlError): string =>
  error.cause instanceof Error && error.cause.message !== "" ? error.cause.message : (error.message ?? "no message")

/** The message of the database, with the table if the message does not name it. */
const messageWithTable = (error: SqlError): string => {
  const { table } = placeOf(error.cause)
  const message = messageOf(error)
  return table === undefined || message.includes(`"${table}"`) ? message : `${message} of table "${table}"`
}
