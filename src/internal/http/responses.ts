/**
 * Makes the responses: of a state, of the result of a command, and of each failure.
 *
 * They are made here, and not by failing, because `HttpApi` encodes a failure by the first schema of the whole API that
 * takes it. A refusal of two commands could then have the status of the other one.
 */

import * as HttpApiError from "@effect/platform/HttpApiError"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { type StreamPosition, StreamPositionFromString } from "../../EventFeed.js"
import { CommandIdReused, RetryCommand, StoreError, UnexpectedSequence, ValidationError } from "../../StoreError.js"
import { badRequest, isUnavailable, type Mistake, mayBeStored, mistakesOf, Unavailable } from "./errors.js"
import { positionHeader } from "./openApi.js"
import type { PlannedRefusal } from "./plan.js"
import { etagOf, type RequestConditions } from "./requestHeaders.js"

/** What a failure is judged by. */
export interface FailedCall {
  /** For the log, such as `Account.Deposit`. */
  readonly operation: string
  /** The name of the aggregate. */
  readonly name: string
  readonly isRead: boolean
  readonly kind: string
  readonly id: string
  readonly conditions: RequestConditions
  readonly refusals: ReadonlyArray<PlannedRefusal>
  /** Seconds. */
  readonly retryAfter: number
  readonly correlationHeader: string | undefined
}

/** The response with a state, or without a body where the client has that state. */
export const stateResponse = <A, I>(
  schema: Schema.Schema<A, I>,
  body: A,
  position: StreamPosition
): Effect.Effect<HttpServerResponse.HttpServerResponse> => jsonResponse(200, schema, body, stateHeaders(position))

export const notModified = (position: StreamPosition): HttpServerResponse.HttpServerResponse =>
  HttpServerResponse.empty({ status: 304, headers: stateHeaders(position) })

export const notFound: HttpServerResponse.HttpServerResponse = HttpServerResponse.empty({ status: 404 })

/** The response to a request that is wrong. */
export const badRequestResponse = (
  mistakes: ReadonlyArray<Mistake>,
  status = 400
): Effect.Effect<HttpServerResponse.HttpServerResponse> =>
  jsonResponse(status, HttpApiError.HttpApiDecodeError, badRequest(mistakes))

/** The response to a body that its schema refuses. */
export const wrongBodyResponse = (failure: ValidationError): Effect.Effect<HttpServerResponse.HttpServerResponse> =>
  badRequestResponse(mistakesOf(failure, {}))

/** The response to a failure of the aggregate. What the client must not see is logged. */
export const failureResponse =
  (call: FailedCall) =>
  (failure: unknown): Effect.Effect<HttpServerResponse.HttpServerResponse> => {
    const refusal = call.refusals.find(({ is }) => is(failure))
    if (refusal !== undefined) return jsonResponse(refusal.status, refusal.schema, failure)
    if (failure instanceof ValidationError && isOfRequest(call, failure)) {
      return badRequestResponse(mistakesOf(failure, headerOfOption(call.correlationHeader)))
    }
    if (failure instanceof RetryCommand) {
      return jsonResponse(409, RetryCommand, failure, { "retry-after": String(call.retryAfter) })
    }
    // A handler may evaluate commands with conditions of its own. Their failures say nothing to this client.
    if (
      failure instanceof UnexpectedSequence &&
      isOwn(call, failure) &&
      call.conditions.expectedSequence !== undefined
    ) {
      return jsonResponse(412, UnexpectedSequence, failure)
    }
    if (failure instanceof CommandIdReused && isOwn(call, failure) && failure.commandId === call.conditions.commandId) {
      return jsonResponse(422, CommandIdReused, failure)
    }
    return Effect.zipRight(
      Effect.logError(`${call.operation} failed`, Cause.fail(failure)),
      failure instanceof StoreError && mayTryAgain(call, failure) ? unavailable(call.retryAfter) : internalError
    )
  }

/**
 * The response to a defect, or to an effect that has interrupted itself, which is logged. After an interruption a command
 * may have taken effect, so only a read or a command with an `Idempotency-Key` may be sent again.
 */
export const causeResponse =
  ({ conditions, isRead, operation, retryAfter }: FailedCall) =>
  (cause: Cause.Cause<never>): Effect.Effect<HttpServerResponse.HttpServerResponse> =>
    Effect.zipRight(
      Effect.logError(`${operation} failed`, cause),
      Cause.isInterruptedOnly(cause) && (isRead || conditions.commandId !== undefined)
        ? unavailable(retryAfter)
        : internalError
    )

// --- internal ---

const jsonResponse = <A, I>(
  status: number,
  schema: Schema.Schema<A, I>,
  body: A,
  headers: Readonly<Record<string, string>> = {}
): Effect.Effect<HttpServerResponse.HttpServerResponse> =>
  Schema.encode(schema)(body).pipe(
    Effect.flatMap((encoded) => HttpServerResponse.json(encoded, { status, headers })),
    // A state that its own schema can't encode is a fault of the program.
    Effect.orDie
  )

/** A cache must ask each time, because a state changes at any time, and must not give it to others. */
const stateHeaders = (position: StreamPosition): Readonly<Record<string, string>> => ({
  etag: etagOf(position.sequence),
  [positionHeader]: Schema.encodeSync(StreamPositionFromString)(position),
  "cache-control": "private, no-cache"
})

const unavailable = (retryAfter: number): Effect.Effect<HttpServerResponse.HttpServerResponse> =>
  jsonResponse(503, Unavailable, new Unavailable({ what: "Store", retryAfter }), { "retry-after": String(retryAfter) })

/** As that of a defect, which `HttpApi` answers without a body. */
const internalError = Effect.succeed(HttpServerResponse.empty({ status: 500 }))

const isOwn = ({ id, kind }: FailedCall, failure: { readonly kind: string; readonly id: string }): boolean =>
  failure.kind === kind && failure.id === id

/**
 * Whether the request is wrong, and not the program. An event or metadata that a schema refuses is made by the program,
 * and its values are not for the client. The request is wrong in its id and headers, and where the store or the digest
 * can't write a value that the schemas take, such as a number without end.
 */
const isOfRequest = (call: FailedCall, { issues, operation }: ValidationError): boolean => {
  const own = operation.startsWith(`${call.name}.`)
  const options = headerOfOption(call.correlationHeader)
  return issues.every(({ index, message, path }) => {
    const [field, ...inner] = path
    if (index !== undefined) return commits.has(operation) && field === "body"
    if (call.conditions.commandId !== undefined && own && message.startsWith("can't be encoded")) return true
    if (inner.length > 0) return false
    if (field === "correlationId") return options[field] !== undefined
    if (field === "commandId" || field === "expectedSequence") return call.conditions[field] !== undefined
    return field === "id" && own
  })
}

/** The operations of a store that write events. */
const commits: ReadonlySet<string> = new Set(["commitAll", "commitEvents"])

/** Whether a repetition can't apply the command twice, and may succeed. */
const mayTryAgain = ({ conditions, isRead }: FailedCall, error: StoreError): boolean =>
  isUnavailable(error) || (mayBeStored(error) && (isRead || conditions.commandId !== undefined))

/** The headers that set options of the library, by the names that its issues have. */
const headerOfOption = (correlationHeader: string | undefined): Readonly<Record<string, string>> => ({
  commandId: "idempotency-key",
  expectedSequence: "if-match",
  ...(correlationHeader !== undefined && { correlationId: correlationHeader })
})
