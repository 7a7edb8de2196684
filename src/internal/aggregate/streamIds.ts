/**
 * Maps the ids that callers give to an aggregate to the ids of its streams in the store. `definition.ts` calls it.
 */
import * as Schema from "effect/Schema"
import type { StreamIds } from "../../Event.js"
import { maxNameLength } from "../../Event.js"
import { type IdProblem, type IdSchema, idProblemBy, transforms } from "../codec/ids.js"
import { textProblem } from "../codec/json.js"
import { isLongerThan, nameProblem } from "../codec/names.js"

/** The streams of one aggregate. */
export interface Streams {
  readonly streamId: (id: string) => string
  /** Why the value is no valid id, or `undefined`. */
  readonly problemOf: IdProblem
  /** Whether a timestamp may be no valid id. */
  readonly mayRefuseTimestamps: boolean
}

/** How the streams are named, and which ids are valid. */
export interface StreamOptions {
  readonly kind: string
  readonly streams: StreamIds
  readonly id: IdSchema
}

/**
 * The streams of an aggregate. An invalid name or kind is a mistake in the program, and throws. So does a schema of ids
 * that transforms, because the id is stored as callers give it.
 */
export const makeStreams = (name: string, { id: schema, kind, streams }: StreamOptions): Streams => {
  checkName(`the name of aggregate ${JSON.stringify(name)}`, name)
  checkName(`kind of ${name}`, kind)
  if (streams !== "byKind" && streams !== "plain") {
    throw new TypeError(`streams of ${name} must be "byKind" or "plain", and is ${JSON.stringify(streams)}`)
  }
  if (!Schema.isSchema(schema)) throw new TypeError(`id of ${name} must be a schema`)
  if (transforms(schema)) {
    throw new TypeError(`id of ${name} must be a schema that does not transform, because the id is stored as it is`)
  }
  const { problemOf, streamId } = streams === "plain" ? plain : byKind(kind)
  const idProblem = idProblemBy(schema)
  return {
    streamId,
    problemOf: idProblem === undefined ? problemOf : (id) => problemOf(id) ?? idProblem(id),
    mayRefuseTimestamps: idProblem !== undefined
  }
}

// --- internal ---

const checkName = (what: string, name: unknown): void => {
  const problem =
    nameProblem(name, maxNameLength - 2) ?? (String(name).includes("/") ? 'must not contain "/"' : undefined)
  if (problem !== undefined) throw new TypeError(`${what} ${problem}`)
}

const plain: Pick<Streams, "problemOf" | "streamId"> = {
  streamId: (id) => id,
  problemOf: (id) => nameProblem(id, maxNameLength)
}

const byKind = (kind: string): Pick<Streams, "problemOf" | "streamId"> => {
  const prefix = `${kind}/`
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
