/**
 * What a failed statement means: `SqlError` with a driver's error inside, told as a `StoreError`.
 */
import type { SqlError } from "@effect/sql/SqlError"
import { StoreError, type StoreErrorReason } from "../StoreError.js"

/** How far an operation had come when the statement failed: it decides what a lost connection means. */
export type Phase =
  /** Nothing that could change the store was under way. */
  | "reading"
  /** Inside a transaction whose commit was not asked for yet. */
  | "writing"
  /** The statement that failed was, or ended with, the commit. */
  | "committing"

export const fromSqlError = (operation: string, phase: Phase, error: SqlError): StoreError => {
  const code = findCode(error.cause)
  const reason = classify(phase, code, error)
  return new StoreError({
    reason,
    operation,
    description: `${describe[reason]}: ${messageOf(error)}`,
    ...(code === undefined ? {} : { code }),
    cause: error
  })
}

/**
 * Whether a statement was cancelled that nobody here asked to cancel. `@effect/sql-pg` cancels an interrupted statement by its
 * connection, through another one; when the statement ends before that, the next one on the connection is hit.
 */
export const isStrayCancel = (error: unknown): boolean =>
  error instanceof StoreError && error.code === "57014" && !/timeout/i.test(error.description)

// --- internal ---

const describe: Record<StoreErrorReason, string> = {
  Unavailable: "no connection to the database",
  ConnectionLost: "the connection to the database broke; nothing was stored",
  CommitUnknown: "the connection broke during the commit; commit the same events again to learn what happened",
  Contention: "the database broke off a conflict between transactions; nothing was stored",
  Cancelled: "the statement was cancelled; nothing was stored",
  Misconfigured: "the database is not set up for the store",
  Exhausted: "the database can't take more",
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
const bySqlState: ReadonlyArray<readonly [RegExp, StoreErrorReason]> = [
  [/^40/, "Contention"],
  [/^(57014|55P03|25P03|25P04)$/, "Cancelled"],
  [/^(42501|42P01|42883|3D000|3F000|0A000|42703)$/, "Misconfigured"],
  [/^(53|54|25006)/, "Exhausted"]
]

/** The server's `SQLSTATE` or the system's error code, wherever a driver put it. */
const findCode = (cause: unknown): string | undefined => {
  for (let depth = 0, current = cause; depth < 5 && typeof current === "object" && current !== null; depth++) {
    if ("code" in current && typeof current.code === "string") return current.code
    current = "cause" in current ? current.cause : undefined
  }
  return undefined
}

const messageOf = (error: SqlError): string =>
  error.cause instanceof Error && error.cause.message !== "" ? error.cause.message : (error.message ?? "no message")
