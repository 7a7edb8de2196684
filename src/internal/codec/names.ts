/**
 * Checks names of streams, aggregates, subscriptions and rebuilds, and correlation ids.
 */
import { maxNameLength } from "../../Event.js"
import { textProblem } from "./json.js"

/** The prefix of names and ids of the library itself. */
export const reservedPrefix = "effect-maestro"

/** Whether the text has more characters than the limit. */
export const isLongerThan = (text: string, max: number): boolean =>
  // The number of UTF-16 units bounds the number of characters on both sides. Only between the bounds they are counted.
  text.length > max && (text.length > 2 * max || Array.from(text).length > max)

/** Why a value can't be a name that an application gives, or undefined. */
export const nameProblem = (name: unknown, max: number): string | undefined =>
  typeof name === "string" && name.startsWith(reservedPrefix)
    ? `must not begin with ${reservedPrefix}, which is reserved`
    : shortTextProblem(name, max)

/** Why a value can't be a correlation id, or undefined. */
export const correlationProblem = (id: unknown): string | undefined => shortTextProblem(id, maxNameLength)

// --- internal ---

const shortTextProblem = (text: unknown, max: number): string | undefined => {
  if (typeof text !== "string") return "must be a text"
  if (text === "") return "must not be empty"
  if (isLongerThan(text, max)) return `must be at most ${max} characters long`
  return textProblem(text)
}
