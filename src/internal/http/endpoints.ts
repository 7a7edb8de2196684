/**
 * Makes the group of endpoints of a plan: methods, paths, schemas, and what OpenAPI shows of them.
 */
import * as HttpApiEndpoint from "@effect/platform/HttpApiEndpoint"
import * as HttpApiError from "@effect/platform/HttpApiError"
import * as HttpApiGroup from "@effect/platform/HttpApiGroup"
import * as HttpApiSchema from "@effect/platform/HttpApiSchema"
import * as OpenApi from "@effect/platform/OpenApi"
import type * as Schema from "effect/Schema"
import { CommandIdReused, RetryCommand, UnexpectedSequence } from "../../StoreError.js"
import { Unavailable } from "./errors.js"
import { describeCommand, describeRead } from "./openApi.js"
import type { Plan, PlannedCommand } from "./plan.js"
import { bodySchema, commandHeaders, pathSchema, readHeaders } from "./schemas.js"

/** The name of the endpoint of the state. */
export const readName = "get"

export const makeGroup = <State, C, Id extends string>(
  plan: Plan<State, C, Id>,
  // biome-ignore lint/suspicious/noExplicitAny: the encoded form is text of any type
  id: Schema.Schema<Id, any>
): AnyGroup => {
  const path = pathSchema(id)
  // The types of the endpoints are those of `AggregateHttp.make`. Here they differ from one to the next.
  const group = HttpApiGroup.make(plan.group) as unknown as AnyGroup
  return plan.commands.reduce(
    (group, command) => group.add(commandEndpoint(plan, command, path)),
    group.add(readEndpoint(plan, path))
  )
}

// --- internal ---

/** A group whose type does not name its endpoints. */
interface AnyGroup {
  readonly add: (endpoint: HttpApiEndpoint.HttpApiEndpoint.Any) => AnyGroup
}

/** An endpoint whose type does not name its failures. */
interface AnyEndpoint extends HttpApiEndpoint.HttpApiEndpoint.Any {
  readonly addError: (schema: Schema.Schema.Any, annotations: { readonly status: number }) => AnyEndpoint
}

type PathSchema<Id extends string> = Schema.Schema<{ readonly id: Id }, { readonly id: string }>

const readEndpoint = <Id extends string>(
  { path, schemas }: Pick<Plan<never, never, never>, "path" | "schemas">,
  idPath: PathSchema<Id>
) =>
  HttpApiEndpoint.get(readName, path)
    .setPath(idPath)
    .setHeaders(readHeaders)
    .addSuccess(schemas.read)
    .addError(HttpApiError.NotFound)
    .addError(Unavailable)
    .addError(HttpApiError.InternalServerError)
    .annotate(OpenApi.Transform, describeRead)

const commandEndpoint = <State, C, Id extends string>(
  { correlationHeader, path, schemas }: Plan<State, C, Id>,
  command: PlannedCommand<C>,
  idPath: PathSchema<Id>
) => {
  const { name, path: segment, refusals, schema, tag } = command
  const endpoint = HttpApiEndpoint.post(name, `${path}${segment}`)
    .setPath(idPath)
    .setHeaders(commandHeaders)
    .setPayload(bodySchema(schema, tag))
    .addSuccess(schemas.result)
    .addError(failure(RetryCommand, 409))
    .addError(failure(UnexpectedSequence, 412))
    .addError(HttpApiError.HttpApiDecodeError, { status: 413 })
    .addError(HttpApiError.HttpApiDecodeError, { status: 415 })
    .addError(failure(CommandIdReused, 422))
    .addError(Unavailable)
    .addError(HttpApiError.InternalServerError)
    .annotate(OpenApi.Transform, describeCommand(command, correlationHeader))
  return refusals.reduce(
    (endpoint, refusal) => endpoint.addError(refusal.schema, { status: refusal.status }),
    endpoint as unknown as AnyEndpoint
  )
}

/** The schema of a failure of the library, under a name that a component of OpenAPI may have. */
const failure = <A, I>(schema: Schema.Schema<A, I> & { readonly _tag: string }, status: number): Schema.Schema<A, I> =>
  schema.annotations(HttpApiSchema.annotations({ status, identifier: schema._tag }))
