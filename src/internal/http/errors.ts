/**
 * The failures of requests, as responses of an HTTP API. `AggregateHttp` exports `Unavailable`.
 */
import * as HttpApiError from "@effect/platform/HttpApiError"
import * as HttpApiSchema from "@effect/platform/HttpApiSchema"
import * as Schema from "effect/Schema"
import type { StoreError, ValidationError } from "../../StoreError.js"
import { isTransient } from "../runtime/retry.js"

/**
 * The store, or a projection that the request waits for, is not available in time: status 503, with `Retry-After`.
 * Nothing of the request took effect, or it has an `Idempotency-Key`. So the client may send it again.
 *
 * @since 0.1.0
 * @category errors
 */
export class Unavailable extends Schema.TaggedError<Unavailable>()(
  "Unavailable",
  {
    /** What is not available. */
    what: Schema.Literal("Store", "Projection"),
    /** When to send the request again, in seconds: the value of the header `Retry-After`. */
    retryAfter: Schema.Number
  },
  HttpApiSchema.annotations({ status: 503, description: "The store or a projection is not available in time" })
) {
  override get message(): string {
    return `The ${this.what === "Store" ? "store" : "projection"} is not available, try again in ${this.retryAfter} seconds`
  }
}

/** Whether the command may have taken effect. */
export const mayBeStored = ({ reason }: StoreError): boolean =>
  reason === "CommitUnknown" || reason === "ClusterUnavailable"

/** Whether the store may succeed later, and nothing took effect. */
export const isUnavailable = (error: StoreError): boolean =>
  error.reason === "Exhausted" || error.reason === "Cancelled" || (isTransient(error) && !mayBeStored(error))

/** A place in the request with a mistake. */
export interface Mistake {
  readonly path: ReadonlyArray<string | number>
  readonly message: string
}

/**
 * A request that is wrong, in the form in which `HttpApi` answers a request that it can't decode. It has at most 20 issues
 * of bounded length, so that a response is small whatever the request is.
 */
export const badRequest = (mistakes: ReadonlyArray<Mistake>): HttpApiError.HttpApiDecodeError => {
  const shown = mistakes.slice(0, maxIssues).map(shortened)
  const lines = shown.map(({ message, path }) => (path.length === 0 ? message : `${path.join(".")}: ${message}`))
  return new HttpApiError.HttpApiDecodeError({
    issues: shown.map(({ message, path }) => ({ _tag: "Type", path, message })),
    message: [...lines, ...(mistakes.length > maxIssues ? [`and ${mistakes.length - maxIssues} more`] : [])].join("\n")
  })
}

/** The mistakes of the input. The ones of an option name the header that it is given by. */
export const mistakesOf = (
  { issues }: ValidationError,
  headers: Readonly<Record<string, string>>
): ReadonlyArray<Mistake> =>
  issues.map(({ index, message, path }) => {
    const header = headers[String(path[0])]
    const place = header === undefined || path.length > 1 ? path : [header]
    return { path: index === undefined ? place : ["events", index, ...place], message }
  })

// --- internal ---

const maxIssues = 20

const maxMessage = 300

/** Keys come from the request too, so they are bounded, as is the depth. */
const maxKey = 100
const maxDepth = 20

const shortened = ({ message, path }: Mistake): Mistake => ({
  path: path.slice(0, maxDepth).map((key) => (typeof key === "string" ? cut(key, maxKey) : key)),
  message: cut(message, maxMessage)
})

const cut = (text: string, max: number): string => (text.length > max ? `${text.slice(0, max)}…` : text)
