/**
 * What a failed statement means: a `SqlError` with a driver's error inside becomes a `StoreError`.
 */
import type { SqlError } from "@effect/sql/SqlError"
import { StoreError, type StoreErrorReason } from "../../StoreError.js"

/** How far an operation had come when the statement failed: it decides what a lost connection means. */
export type Phase =
  /** Nothing that could change the store was under way. */
  | "reading"
  /** Inside a transaction whose commit was not asked for yet. */
  | "writing"
  /** The statement that failed was, or ended with, the commit. */
  | "committing"

/** Which event. */
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
    description: `${describe[reason]}: ${saidOf(error)}`,
    ...(code === undefined ? {} : { code }),
    ...placeOf(error.cause),
    cause: error
  })
}

/**
 * The same for a statement of a projection, at an event. Nothing but the projection's own statement was under way, so the description is what
 * the database said of it.
 */
export const fromProjection = (
  projection: string,
  { aggregateId, sequence, type }: EventPlace,
  error: SqlError
): StoreError => {
  const code = findCode(error.cause)
  return new StoreError({
    reason: classify("writing", code, error),
    operation: `Projection ${projection}`,
    description: saidOf(error),
    ...(code === undefined ? {} : { code }),
    projection,
    aggregateId,
    sequence,
    type,
    ...placeOf(error.cause),
    cause: error
  })
}

/** The constraint, or unique index, that a statement has violated. A `not null` has none, because databases do not say its name. */
export const violatedConstraint = (error: SqlError): string | undefined =>
  violation.test(findCode(error.cause) ?? "") ? placeOf(error.cause).constraint : undefined

/** Whether the failure of a statement may not happen again. */
export const isTransientSqlError = (error: SqlError): boolean =>
  transientReasons.has(classify("writing", findCode(error.cause), error))

/** The reasons of what may not happen again. */
export const transientReasons: ReadonlySet<StoreErrorReason> = new Set([
  "CommitUnknown",
  "ConnectionLost",
  "Unavailable",
  "Contention"
])

/**
 * Whether a statement was cancelled that nobody here asked to cancel. `@effect/sql-pg` cancels an interrupted statement by its
 * connection, through another one; when the statement ends before that, the next one on the connection is hit.
 */
export const isStrayCancel = (error: unknown): boolean =>
  error instanceof StoreError && error.code === "57014" && !/timeout/i.test(error.description)

// --- internal ---

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
  ClockDrift: "a clock is wrong",
  Unknown: "the database failed"
}

const classify = (phase: Phase, code: string | undefined, error: SqlError): StoreErrorReason => {
  // Said by `@effect/sql-pg` when the pool had no connection to give, and by `pg` of one that was found dead: the
  // statement was never sent.
  if (/acquire connection/i.test(error.message ?? "") || /not queryable/i.test(messageOf(error))) return "Unavailable"
  if (code !== undefined && neverConnected.test(code)) return "Unavailable"
  if (code === undefined || connectionBroke.test(code)) {
    // Without a code of the server's own, the driver speaks of its connection.
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

/** What the database says of the place in its tables: texts that it leaves out are undefined, or empty. */
const placeOf = (
  cause: unknown
): { readonly table?: string; readonly column?: string; readonly constraint?: string } => {
  const told = withCode(cause)
  const field = (name: "table" | "column" | "constraint") => {
    const value: unknown = told === undefined ? undefined : Reflect.get(told, name)
    return typeof value === "string" && value !== "" ? { [name]: value } : {}
  }
  return { ...field("table"), ...field("column"), ...field("constraint") }
}

/** The error that the driver made of the server's, however deep another has wrapped it. */
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

/** What the database said, and of which table, where its message does not say that. */
const saidOf = (error: SqlError): string => {
  const { table } = placeOf(error.cause)
  const said = messageOf(error)
  return table === undefined || said.includes(`"${table}"`) ? said : `${said} of table "${table}"`
}
