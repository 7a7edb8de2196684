/**
 * Maps the ids that callers give to an aggregate to the ids of its streams in the store. `definition.ts` calls it.
 */
import type { StreamIds } from "../../Event.js"
import { maxNameLength } from "../../Event.js"
import { textProblem } from "../codec/json.js"
import { isLongerThan, nameProblem } from "../codec/names.js"

/** The streams of one aggregate. */
export interface Streams {
  readonly streamId: (id: string) => string
  /** Why the value is no valid id, or `undefined`. */
  readonly problemOf: (id: unknown) => string | undefined
}

/** The streams of an aggregate. An invalid name is a mistake in the program, and throws. */
export const makeStreams = (name: string, ids: StreamIds): Streams => {
  const problem = nameProblem(name, maxNameLength - 2) ?? (name.includes("/") ? 'must not contain "/"' : undefined)
  if (problem !== undefined) throw new TypeError(`the name of aggregate ${JSON.stringify(name)} ${problem}`)
  if (ids !== "byKind" && ids !== "plain") {
    throw new TypeError(`streams of ${name} must be "byKind" or "plain", and is ${JSON.stringify(ids)}`)
  }
  if (ids === "plain") {
    return { streamId: (id) => id, problemOf: (id) => nameProblem(id, maxNameLength) }
  }
  const prefix = `${name}/`
  const longest = maxNameLength - Array.from(prefix).length
  return {
    streamId: (id) => prefix + id,
    problemOf: (id) => {
      if (typeof id !== "string") return "must be a text"
      if (id === "") return "must not be empty"
      if (isLongerThan(id, longest)) return `must be at most ${longest} characters long`
      return textProblem(id)
    }
  }
}
