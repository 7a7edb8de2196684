/**
 * Validates the options of reads of a feed, and combines filters. The feeds and subscriptions of all stores call it.
 */
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import { beginning, type Filter, isPosition, type Position, type ReadOptions } from "../../EventFeed.js"
import { ValidationError, ValidationIssue } from "../../StoreError.js"
import { correlationProblem } from "../codec/names.js"
import { boundOf, noTime } from "./asOf.js"

/** The filter of a read, with the bound of the time that it is of. */
export interface ReadFilter extends Filter {
  /** Only events up to this timestamp, as text. */
  readonly madeBy?: string | undefined
}

/** Validates a read and fills in its defaults. A filter that restricts nothing becomes `undefined`. */
export const validateFeedRead = (
  options: ReadOptions | undefined
): Effect.Effect<
  { readonly after: Position; readonly limit: number; readonly filter: ReadFilter | undefined },
  ValidationError
> =>
  checked((issues) => {
    const { after = beginning, asOf, filter, limit = usualLimit } = options ?? {}
    if (!isPosition(after)) issues.push(issue(["after"], problemOf(after)))
    if (!isWhole(limit, 1, maxLimit)) issues.push(issue(["limit"], `must be an integer from 1 to ${maxLimit}`))
    checkFilter(filter, ["filter"], issues)
    if (asOf === undefined) return { after, limit, filter: restricting(filter) }
    const madeBy = boundOf(asOf)
    if (madeBy === undefined) issues.push(issue(["asOf"], noTime))
    return { after, limit, filter: { ...filter, madeBy } }
  })

/** Fails with the operation and the path of the input, unless the value is a position. */
export const checkPosition = (
  operation: string,
  position: unknown,
  path: ReadonlyArray<string>
): Effect.Effect<void, ValidationError> =>
  isPosition(position)
    ? Effect.void
    : Effect.fail(new ValidationError({ operation, issues: [issue(path, problemOf(position))] }))

/** The filter, restricted to one partition. */
export const filterOfPartition = (
  filter: Filter | undefined,
  partition: number,
  partitions: number
): Filter | undefined => (partitions === 1 ? filter : { ...filter, slice: { index: partition, of: partitions } })

/** The filter for events that match both filters. At most one of them has a slice, and at most one a correlation id. */
export const bothOf = (one: Filter | undefined, other: Filter | undefined): Filter => ({
  types: common(one?.types, other?.types),
  kinds: common(one?.kinds, other?.kinds),
  correlationId: one?.correlationId ?? other?.correlationId,
  slice: one?.slice ?? other?.slice
})

// --- internal ---

const common = (
  some: ReadonlyArray<string> | undefined,
  others: ReadonlyArray<string> | undefined
): ReadonlyArray<string> | undefined =>
  some === undefined || others === undefined ? (some ?? others) : some.filter((name) => others.includes(name))

/** The problem of a value that is no position. The `position` of a command's result is another one. */
const problemOf = (value: unknown): string =>
  Predicate.hasProperty(value, "aggregateId") && Predicate.hasProperty(value, "sequence")
    ? "must be a position that the feed has given, and is that of an event in its stream: EventFeed.positionOf returns the one of the feed"
    : "must be a position that the feed has given"

const usualLimit = 1000
const maxLimit = 10_000
const maxSlices = 10_000

const checked = <A>(check: (issues: Array<ValidationIssue>) => A): Effect.Effect<A, ValidationError> =>
  Effect.suspend(() => {
    const issues: Array<ValidationIssue> = []
    const value = check(issues)
    const [first, ...rest] = issues
    return first === undefined
      ? Effect.succeed(value)
      : new ValidationError({ operation: "EventFeed.read", issues: [first, ...rest] })
  })

const issue = (path: ReadonlyArray<string>, message: string) => new ValidationIssue({ path, message })

const checkFilter = (filter: unknown, path: ReadonlyArray<string>, issues: Array<ValidationIssue>): void => {
  if (filter === undefined) return
  if (typeof filter !== "object" || filter === null) {
    issues.push(issue(path, "must be an object"))
    return
  }
  for (const field of ["types", "kinds"] as const) {
    const names: unknown = Reflect.get(filter, field)
    if (names !== undefined && !(Array.isArray(names) && names.every((name) => typeof name === "string"))) {
      issues.push(issue([...path, field], "must be a list of names"))
    }
  }
  const correlationId: unknown = Reflect.get(filter, "correlationId")
  if (correlationId !== undefined) {
    const problem = correlationProblem(correlationId)
    if (problem !== undefined) issues.push(issue([...path, "correlationId"], problem))
  }
  const slice: unknown = Reflect.get(filter, "slice")
  if (slice === undefined) return
  const { index, of } = (typeof slice === "object" && slice !== null ? slice : {}) as Record<string, unknown>
  if (!isWhole(of, 1, maxSlices) || !isWhole(index, 0, of - 1)) {
    issues.push(
      issue([...path, "slice"], `must have an \`of\` from 1 to ${maxSlices}, and an \`index\` from 0 and below it`)
    )
  }
}

const isWhole = (value: unknown, min: number, max: number): value is number =>
  typeof value === "number" && Number.isInteger(value) && value >= min && value <= max

// A value that is no filter is refused before.
const restricting = (filter: Filter | undefined): Filter | undefined =>
  filter?.types === undefined &&
  filter?.kinds === undefined &&
  filter?.correlationId === undefined &&
  filter?.slice === undefined
    ? undefined
    : filter
