/**
 * Reads the conditions of a request from its headers: `Idempotency-Key`, `If-Match`, `If-None-Match`.
 *
 * The ETag of an aggregate is its sequence, `"3"`. A proxy that compresses responses makes a weak one of it, `W/"3"`.
 * Both name the same events, so both are accepted.
 */
import * as Either from "effect/Either"
import type { Mistake } from "./errors.js"
import type { CommandHeaders } from "./types.js"

/** The conditions of a command. */
export interface RequestConditions {
  readonly commandId: string | undefined
  readonly expectedSequence: number | undefined
}

/** The ETag of a sequence. */
export const etagOf = (sequence: number): string => `"${sequence}"`

/** The conditions, or all mistakes in the headers. */
export const conditionsOf = (headers: CommandHeaders): Either.Either<RequestConditions, ReadonlyArray<Mistake>> => {
  const key = keyOf(headers["idempotency-key"])
  const expected = expectedOf(headers)
  if (Either.isRight(key) && Either.isRight(expected)) {
    return Either.right({ commandId: key.right, expectedSequence: expected.right })
  }
  return Either.left([...(Either.isLeft(key) ? [key.left] : []), ...(Either.isLeft(expected) ? [expected.left] : [])])
}

/** Whether a read with this `If-None-Match` has the state of the sequence already. */
export const isKnown = (ifNoneMatch: string | undefined, sequence: number): boolean =>
  (ifNoneMatch ?? "").split(",").some((tag) => tag.trim() === "*" || sequenceOf(tag.trim()) === sequence)

// --- internal ---

/** The key is a string of RFC 9651, in quotes. Many clients send it bare, so that form is accepted, too. */
const keyOf = (header: string | undefined): Either.Either<string | undefined, Mistake> => {
  if (header === undefined) return Either.right(undefined)
  const text = header.trim()
  if (!text.startsWith('"')) {
    return text === "" ? Either.left(mistake("idempotency-key", "must not be empty")) : Either.right(text)
  }
  const [, quoted] = /^"((?:[ !#-[\]-~]|\\["\\])+)"$/.exec(text) ?? []
  return quoted === undefined
    ? Either.left(mistake("idempotency-key", 'must be a text in quotes, such as "8e03978e"'))
    : Either.right(quoted.replaceAll(/\\(["\\])/g, "$1"))
}

const expectedOf = (headers: CommandHeaders): Either.Either<number | undefined, Mistake> => {
  const { "if-match": match, "if-none-match": noneMatch } = headers
  if (match !== undefined && noneMatch !== undefined) {
    return Either.left(mistake("if-none-match", "must not be sent together with if-match"))
  }
  if (noneMatch !== undefined) {
    return noneMatch.trim() === "*"
      ? Either.right(0)
      : Either.left(mistake("if-none-match", "must be * for a command: the aggregate must have no events"))
  }
  if (match === undefined) return Either.right(undefined)
  const sequence = sequenceOf(match.trim())
  return sequence === undefined
    ? Either.left(mistake("if-match", 'must be one ETag of this resource, such as "3"'))
    : Either.right(sequence)
}

/** The sequence of an ETag. */
const sequenceOf = (tag: string): number | undefined => {
  const [, digits] = /^(?:W\/)?"(\d{1,10})"$/.exec(tag) ?? []
  return digits === undefined ? undefined : Number(digits)
}

const mistake = (header: string, message: string): Mistake => ({ path: [header], message })
