/**
 * Reads the JSON of a command from the body of a request.
 *
 * `HttpApi` dies of a body that is no JSON, and reads bodies of any length. Here each mistake has a response that names
 * it. A body of another media type is refused, because a browser sends such bodies to other origins without asking them.
 */

import * as HttpIncomingMessage from "@effect/platform/HttpIncomingMessage"
import type * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"

/** A body that can't be read, with its status. */
export interface BadBody {
  readonly status: 400 | 413 | 415
  readonly message: string
}

/** What a body has. */
export interface ReadBody {
  /** The object, with the tag of the command. */
  readonly fields: object
  /** The length of its text. */
  readonly length: number
}

/**
 * The object in the body, with the tag of the command. An empty body is that of a command without fields. It needs the
 * content type, too: a page of another origin can send a request without it, with the cookies of the user.
 */
export const readBody = (
  request: HttpServerRequest.HttpServerRequest,
  tag: string,
  maxBytes: number
): Effect.Effect<ReadBody, BadBody> => {
  const { "content-length": length, "content-type": type } = request.headers
  if (type === undefined || !isJson.test(type)) return Effect.fail(noJson)
  if (length !== undefined && Number(length) > maxBytes) return Effect.fail(tooLarge(maxBytes))
  return request.text.pipe(
    HttpIncomingMessage.withMaxBodySize(Option.some(maxBytes)),
    Effect.mapError(({ cause }): BadBody => (isTooLarge(cause) ? tooLarge(maxBytes) : unreadable)),
    Effect.flatMap((text) => Effect.map(parse(text, tag), (fields) => ({ fields, length: text.length })))
  )
}

// --- internal ---

const parse = (text: string, tag: string): Effect.Effect<object, BadBody> => {
  if (text === "") return Effect.succeed({ _tag: tag })
  try {
    const body: unknown = JSON.parse(text)
    if (typeof body !== "object" || body === null || Array.isArray(body)) return Effect.fail(noObject)
    const given = "_tag" in body ? body._tag : tag
    return given === tag ? Effect.succeed({ ...body, _tag: tag }) : Effect.fail(otherTag(tag))
  } catch {
    return Effect.fail(unreadable)
  }
}

const isJson = /^\s*application\/(?:[\w.+-]+\+)?json\s*(?:;|$)/i

/** The platform's reader says it by this message alone. */
const isTooLarge = (cause: unknown): boolean => cause instanceof Error && cause.message === "maxBytes exceeded"

const tooLarge = (maxBytes: number): BadBody => ({
  status: 413,
  message: `the body must have at most ${maxBytes} bytes`
})

const noJson: BadBody = { status: 415, message: "the content-type must be application/json" }

const unreadable: BadBody = { status: 400, message: "the body must be JSON" }

const noObject: BadBody = { status: 400, message: "the body must be a JSON object with the fields of the command" }

const otherTag = (tag: string): BadBody => ({
  status: 400,
  message: `the path is that of ${tag}, and the body has another _tag`
})
