/**
 * The handlers of the endpoints: from a request to a command or a read, and from its result to a response.
 */
import type * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import type * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import type * as Schema from "effect/Schema"
import * as Aggregate from "../../Aggregate.js"
import type { Source } from "../aggregate/declaring.js"
import { decodeInput, type Tagged } from "../codec/eventCodec.js"
import { decodeUnknownEither } from "../codec/fastSchema.js"
import { readName } from "./endpoints.js"
import type { Plan, PlannedCommand } from "./plan.js"
import { readBody } from "./requestBody.js"
import { conditionsOf, isKnown, type RequestConditions } from "./requestHeaders.js"
import {
  badRequestResponse,
  causeResponse,
  type FailedCall,
  failureResponse,
  notFound,
  notModified,
  stateResponse,
  wrongBodyResponse
} from "./responses.js"
import type { CommandHeaders, HandleOptions, ReadHeaders, SetMetadata } from "./types.js"

/** What a handler gets of `HttpApi`, which has decoded path and headers. */
export interface RawRequest<Id extends string, Headers> {
  readonly path: { readonly id: Id }
  readonly headers: Headers
  readonly request: HttpServerRequest.HttpServerRequest
}

type Response = HttpServerResponse.HttpServerResponse

/** An endpoint with its handler. */
export interface Handler<E, R> {
  readonly name: string
  // biome-ignore lint/suspicious/noExplicitAny: the headers of the endpoint
  readonly handle: (request: RawRequest<any, any>) => Effect.Effect<Response, E, R>
}

export const makeHandlers = <Name extends string, State, C extends Tagged, CI, Declared, Id extends string, E, R>(
  aggregate: Source<Name, State, C, CI, Declared, Id>,
  plan: Plan<State, C, Id>,
  options: HandleOptions<C, Id, E, R>
): ReadonlyArray<Handler<E, R | Aggregate.Instance<Name>>> => [
  { name: readName, handle: reading(aggregate, plan, options) },
  ...plan.commands.map((command) => ({ name: command.name, handle: evaluating(aggregate, plan, command, options) }))
]

// --- internal ---

const reading =
  <Name extends string, State, C extends Tagged, CI, Declared, Id extends string, E, R>(
    aggregate: Source<Name, State, C, CI, Declared, Id>,
    plan: Plan<State, C, Id>,
    { authorize }: HandleOptions<C, Id, E, R>
  ) =>
  ({
    headers,
    path: { id }
  }: RawRequest<Id, ReadHeaders>): Effect.Effect<Response, E, R | Aggregate.Instance<Name>> => {
    const call = callOf(aggregate, plan, id, readName, noConditions, [])
    const respond = aggregate.root(id).pipe(
      Effect.matchEffect({
        onFailure: failureResponse(call),
        onSuccess: (root) => {
          if (root.sequence === 0) return Effect.succeed(notFound)
          const position = { aggregateId: aggregate.streamId(id), sequence: root.sequence }
          return isKnown(headers["if-none-match"], root.sequence)
            ? Effect.succeed(notModified(position))
            : stateResponse(plan.schemas.read, { state: plan.view(root), position }, position)
        }
      }),
      Effect.catchAllCause(causeResponse(call))
    )
    return authorize === undefined ? respond : Effect.zipRight(authorize({ id, command: undefined }), respond)
  }

const evaluating = <Name extends string, State, C extends Tagged, CI, Declared, Id extends string, E, R>(
  aggregate: Source<Name, State, C, CI, Declared, Id>,
  plan: Plan<State, C, Id>,
  command: PlannedCommand<C>,
  options: HandleOptions<C, Id, E, R>
) => {
  const decode = bounded(command.schema)
  const operation = `${aggregate.name}.${command.tag}`
  const evaluate = commandResponse(aggregate, plan, options)
  return ({
    headers,
    path: { id },
    request
  }: RawRequest<Id, CommandHeaders>): Effect.Effect<Response, E, R | Aggregate.Instance<Name>> => {
    const conditions = conditionsOf(headers)
    if (Either.isLeft(conditions)) return badRequestResponse(conditions.left)
    const call = callOf(aggregate, plan, id, command.tag, conditions.right, command.refusals)
    const correlationId = plan.correlationHeader === undefined ? undefined : request.headers[plan.correlationHeader]
    return readBody(request, command.tag, plan.maxBodySize).pipe(
      Effect.matchEffect({
        onFailure: ({ message, status }) => badRequestResponse([{ path: [], message }], status),
        onSuccess: ({ fields, length }) =>
          Effect.matchEffect(decodeInput(operation, decode(length), fields), {
            onFailure: wrongBodyResponse,
            onSuccess: (decoded) => evaluate(id, decoded, call, correlationId)
          })
      })
    )
  }
}

/** The decoder of a body of some length. All mistakes of a large body would take seconds, so it has its first one. */
const bounded = <C>(schema: Schema.Schema<C, Tagged>) => {
  const all = decodeUnknownEither(schema, { errors: "all" })
  const first = decodeUnknownEither(schema, { errors: "first" })
  return (length: number) => (length <= maxLengthForAll ? all : first)
}

/** In characters. */
const maxLengthForAll = 4000

/** Evaluates a decoded command, and makes the response. */
const commandResponse =
  <Name extends string, State, C extends Tagged, CI, Declared, Id extends string, E, R>(
    aggregate: Source<Name, State, C, CI, Declared, Id>,
    plan: Plan<State, C, Id>,
    options: HandleOptions<C, Id, E, R>
  ) =>
  (
    id: Id,
    command: C,
    call: FailedCall,
    correlationId: string | undefined
  ): Effect.Effect<Response, E, R | Aggregate.Instance<Name>> =>
    allowed({ id, command }, options, (setMetadata) =>
      aggregate.evaluate(id, command).pipe(
        under(call.conditions),
        correlationId === undefined ? (effect) => effect : Aggregate.withCorrelationId(correlationId),
        setMetadata,
        Effect.matchEffect({
          onFailure: failureResponse(call),
          onSuccess: ({ duplicate, position, sequence, state }) => {
            const body = { state: plan.view({ id, sequence, state }), position, duplicate }
            return stateResponse(plan.schemas.result, body, position)
          }
        }),
        Effect.catchAllCause(causeResponse(call))
      )
    )

/** Runs what the application does before a command. */
const allowed = <C, Id extends string, E, R, R2>(
  call: { readonly id: Id; readonly command: C },
  { authorize, metadata }: HandleOptions<C, Id, E, R>,
  respond: (setMetadata: SetMetadata) => Effect.Effect<Response, never, R2>
): Effect.Effect<Response, E, R | R2> => {
  const response: Effect.Effect<Response, E, R | R2> =
    metadata === undefined
      ? respond((effect) => effect)
      : Effect.flatMap(metadata, (value) => respond(typeof value === "function" ? value : settingMetadata(value)))
  return authorize === undefined ? response : Effect.zipRight(authorize(call), response)
}

const settingMetadata =
  (value: Readonly<Record<string, unknown>>): SetMetadata =>
  (effect) =>
    Effect.provideService(effect, Aggregate.Metadata, value)

/** Sets the conditions of a request. */
const under =
  ({ commandId, expectedSequence }: RequestConditions) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, unknown, R> => {
    const once = commandId === undefined ? effect : Aggregate.withCommandId(commandId)(effect)
    return expectedSequence === undefined ? once : Aggregate.withExpectedSequence(expectedSequence)(once)
  }

const callOf = (
  { kind, name }: { readonly kind: string; readonly name: string },
  { correlationHeader, retryAfter }: Pick<Plan<unknown, unknown, string>, "correlationHeader" | "retryAfter">,
  id: string,
  what: string,
  conditions: RequestConditions,
  refusals: FailedCall["refusals"]
): FailedCall => ({
  operation: `${name}.${what}`,
  name,
  isRead: what === readName,
  kind,
  id,
  conditions,
  refusals,
  retryAfter,
  correlationHeader
})

const noConditions: RequestConditions = { commandId: undefined, expectedSequence: undefined }
