/**
 * The bound of reads as of a time: the highest timestamp that an event of that time can have.
 */
import * as DateTime from "effect/DateTime"
import { fromParts } from "../../Timestamp.js"

/** The bound of a time. It is undefined for a value that is no time. Timestamps sort as text, and so does the bound. */
export const boundOf = (time: unknown): string | undefined => {
  const millis = millisOf(time)
  if (typeof millis !== "number" || Number.isNaN(millis)) return undefined
  return millis < 0 ? beforeAll : fromParts({ millis: Math.floor(millis), counter: highest, node: highestNode })
}

/** What is wrong with a value that is no time. */
export const noTime = "must be a DateTime, or a valid Date"

/** The time that options have. Callers that circumvent the types may give anything, also what can't be read. */
export const timeIn = (options: unknown): unknown => {
  try {
    return typeof options === "object" && options !== null && "asOf" in options ? options.asOf : undefined
  } catch {
    return undefined
  }
}

/** The value as text, for a span. */
export const textOfTime = (time: unknown): string => {
  try {
    return String(time)
  } catch {
    return typeof time
  }
}

// --- internal ---

/** The milliseconds of a time. A value that only looks like one may have anything there, or throw. */
const millisOf = (time: unknown): unknown => {
  try {
    if (DateTime.isDateTime(time)) return DateTime.toEpochMillis(time)
    return time instanceof Date ? time.getTime() : undefined
  } catch {
    return undefined
  }
}

const highest = 0xfff
const highestNode = 2n ** 62n - 1n

/** A text below every timestamp. It is a UUID, so that a database can compare it. */
const beforeAll = "00000000-0000-0000-0000-000000000000"
