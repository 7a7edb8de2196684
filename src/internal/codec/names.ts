/**
 * What can't be a name: of a stream, an aggregate, a subscription or a rebuild.
 */
import { textProblem } from "./json.js"

/** What names and ids of the library itself begin with. */
export const reservedPrefix = "effect-maestro"

/** Whether the text has more characters than that. */
export const isLongerThan = (text: string, max: number): boolean =>
  // The number of UTF-16 units bounds that of characters from both sides; only between them it takes counting.
  text.length > max && (text.length > 2 * max || Array.from(text).length > max)

/** What keeps a value from being a name that an application gives, of so many characters at most, if anything does. */
export const nameProblem = (name: unknown, max: number): string | undefined => {
  if (typeof name !== "string") return "must be a text"
  if (name === "") return "must not be empty"
  if (isLongerThan(name, max)) return `must be at most ${max} characters long`
  if (name.startsWith(reservedPrefix)) return `must not begin with ${reservedPrefix}, which is reserved`
  return textProblem(name)
}
