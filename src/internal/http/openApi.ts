/**
 * What OpenAPI shows of an endpoint beside its schemas: the headers of its responses, and statuses without a body.
 * `HttpApi` takes it as a transformation of the operation.
 */
import type { PlannedCommand, PlannedRefusal } from "./plan.js"

/** The headers of responses. */
export const positionHeader = "stream-position"

// biome-ignore lint/suspicious/noExplicitAny: the type of `OpenApi.Transform`
type Operation = Record<string, any>

export const describeRead = (operation: Operation): Operation => ({
  ...operation,
  responses: withHeaders({ ...operation.responses, 304: { description: "The state has the ETag of if-none-match" } })
})

export const describeCommand =
  ({ refusals, tag }: Pick<PlannedCommand<never>, "refusals" | "tag">, correlationHeader: string | undefined) =>
  (operation: Operation): Operation => ({
    summary: tag,
    ...operation,
    parameters: [...operation.parameters, ...(correlationHeader === undefined ? [] : [correlation(correlationHeader)])],
    requestBody: { ...open(operation.requestBody), required: true },
    responses: withHeaders(described(operation.responses, refusals), refusals)
  })

// --- internal ---

/** A status may be that of several failures, so its description names all of them. */
const described = (responses: Operation, refusals: ReadonlyArray<PlannedRefusal>): Operation =>
  Object.fromEntries(
    Object.entries(responses).map(([status, response]) => {
      const refused = refusals.flatMap((refusal) => (String(refusal.status) === status ? refusal.tags : []))
      const own = descriptions[status]
      const all = [
        ...(refused.length === 0 ? [] : [`Refused: ${refused.join(", ")}`]),
        ...(own === undefined ? [] : [own])
      ]
      return [status, all.length === 0 ? response : { ...response, description: all.join(". ") }]
    })
  )

const descriptions: Readonly<Record<string, string>> = {
  200: "The command took effect, or did before",
  400: "The request is wrong",
  409: "Another command was first, also after all retries",
  412: "The aggregate is at another sequence than that of if-match or if-none-match",
  413: "The body is too large",
  415: "The content-type is not application/json",
  422: "The Idempotency-Key belongs to another command",
  500: "The command failed"
}

/** The body without the promise that further fields are refused: the schema of a command leaves them out. */
const open = (value: Operation): Operation =>
  Object.fromEntries(
    Object.entries(value).flatMap(([key, part]) => {
      if (key === "additionalProperties" && part === false) return []
      return [[key, values.has(key) ? part : openPart(part)]]
    })
  )

const openPart = (part: unknown): unknown => {
  if (Array.isArray(part)) return part.map(openPart)
  return typeof part === "object" && part !== null ? open(part) : part
}

/** The keys of a JSON schema whose values are data and no schemas. */
const values: ReadonlySet<string> = new Set(["default", "examples", "example", "const", "enum"])

const withHeaders = (responses: Operation, refusals: ReadonlyArray<PlannedRefusal> = []): Operation =>
  Object.fromEntries(
    Object.entries(responses).map(([status, response]) => {
      const isShared = refusals.some((refusal) => String(refusal.status) === status)
      const headers = (isShared ? headersOfShared : headersOf)[status]
      return [status, headers === undefined ? response : { ...response, headers }]
    })
  )

const header = (description: string, schema: object) => ({ description, schema })

const etag = { etag: header('The sequence of the state, in quotes, such as "3"', { type: "string" }) }

const success = {
  ...etag,
  [positionHeader]: header("The place of the last event, such as Account/42@3, for the parameter after", {
    type: "string"
  })
}

const retryAfter = { "retry-after": header("When to send the request again, in seconds", { type: "integer" }) }

/** A refusal of the same status does not have the header. */
const retryAfterOf = (failure: string) => ({
  "retry-after": header(`When to send the request again, in seconds. Only ${failure} has it`, { type: "integer" })
})

const headersOfShared: Readonly<Record<string, object>> = {
  409: retryAfterOf("RetryCommand"),
  503: retryAfterOf("Unavailable")
}

const headersOf: Readonly<Record<string, object>> = { 200: success, 304: etag, 409: retryAfter, 503: retryAfter }

const correlation = (name: string) => ({
  name,
  in: "header",
  schema: { type: "string", minLength: 1, maxLength: 255 },
  required: false,
  description: "the id of the chain that the events of the command belong to"
})
