/**
 * The text of a failure: a line with the error and its causes, then the stack. The store keeps it, and logs have the
 * line.
 */
import * as Cause from "effect/Cause"
import type { FeedEvent } from "../../EventFeed.js"
import type { EventFailure } from "../../SubscriptionStore.js"

/** The failure of an event, as the store keeps it. */
export const failureOf = (event: FeedEvent, cause: Cause.Cause<unknown>, attempts: number): EventFailure => ({
  position: event.position,
  aggregateId: event.aggregateId,
  sequence: event.sequence,
  type: event.type,
  error: wellFormed(textOf(cause).slice(0, maxError)),
  attempts
})

/**
 * The line of a cause, and the stack if it has one. A handler may fail with any value, also with one that has no text.
 */
export const textOf = (cause: Cause.Cause<unknown>): string =>
  orUnreadable(() => {
    const pretty = Cause.pretty(cause)
    const head = headOf(cause)
    const reasons = reasonsOf(Cause.squash(cause), head)
    if (reasons === "") return pretty
    const stack = pretty.startsWith(head) ? pretty.slice(head.length) : `\n${pretty}`
    return `${head}${reasons}${stack}`
  })

/** The error and its causes, in one line. */
export const lineOf = (cause: Cause.Cause<unknown>): string =>
  orUnreadable(() => {
    const head = headOf(cause)
    return `${head}${reasonsOf(Cause.squash(cause), head)}`.replace(/\s*\n\s*/g, " ").slice(0, maxError)
  })

// --- internal ---

const maxError = 4000

/** The length up to which a chain of causes is read. */
const maxErrors = 6

const orUnreadable = (text: () => string): string => {
  try {
    return text()
  } catch (error) {
    return `a failure without a text: ${String(error)}`
  }
}

/** The name and the message of the first failure. */
const headOf = (cause: Cause.Cause<unknown>): string => {
  const [first] = Cause.prettyErrors(cause)
  return first === undefined ? Cause.pretty(cause) : `${first.name}: ${first.message}`
}

/**
 * The messages of an error's causes, with the codes, tables, columns and constraints of all of them. The `detail` of a
 * driver's error is left out, because it has the values of rows.
 */
const reasonsOf = (error: unknown, head: string): string => {
  let text = head
  for (let depth = 0, current = error; depth < maxErrors && isObject(current); depth++) {
    const message = depth === 0 ? undefined : stringOf(current, "message")
    const details: Array<string> = []
    for (const field of ["code", "table", "column", "constraint"]) {
      const value = stringOf(current, field)
      if (value === undefined) continue
      const shown = field === "code" ? value : JSON.stringify(value)
      if (!`${text}: ${message}`.includes(shown)) details.push(field === "code" ? shown : `${field} ${shown}`)
    }
    if (message !== undefined && !text.includes(message)) text += `: ${message}`
    if (details.length > 0) text += ` (${details.join(", ")})`
    current = causeOf(current)
  }
  return text.slice(head.length)
}

/** The cause of an error, or the first error of an `AggregateError`. */
const causeOf = (error: unknown): unknown => {
  if (!isObject(error)) return undefined
  const cause: unknown = Reflect.get(error, "cause")
  if (typeof cause === "string") return { message: cause }
  if (cause !== undefined && cause !== null) return cause
  const errors: unknown = Reflect.get(error, "errors")
  return error instanceof Error && Array.isArray(errors) ? errors[0] : undefined
}

const isObject = (u: unknown): u is object => typeof u === "object" && u !== null

const stringOf = (error: object, field: string): string | undefined => {
  const value: unknown = Reflect.get(error, field)
  return typeof value === "string" && value !== "" ? value : undefined
}

/** Text that Postgres stores: without NUL and without lone surrogates. */
const wellFormed = (text: string): string =>
  text.replaceAll("\0", "").replace(/[\uD800-\uDBFF](?![\uDC00-\uDFFF])|(?<![\uD800-\uDBFF])[\uDC00-\uDFFF]/g, "\uFFFD")
