/**
 * The options of a rebuild, the checks of them before it begins, and the names that follow from the name of the
 * rebuild.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { maxNameLength } from "../../Event.js"
import type { EventFeed, Filter } from "../../EventFeed.js"
import type { Projection } from "../../Projection.js"
import type { Options } from "../../Rebuild.js"
import { type StoreError, ValidationError, ValidationIssue } from "../../StoreError.js"
import { nameProblem, reservedPrefix } from "../codec/names.js"
import type { StoreTables } from "../sql/storeTables.js"
import { makeRun } from "./runStatement.js"

export const operation = "Rebuild"

/** The options of `Rebuild.run`, with further ones for the library itself. */
export interface RebuildOptions<E, R> extends Options<ReadonlyArray<Projection.Bound<E, R>>, E, R> {
  /** Whether `ProjectionTables` runs the rebuild, under a name that is reserved for the library. */
  readonly isOfVersion?: boolean | undefined
  /** Runs before each attempt. It fails, or returns the options that replace those two. */
  readonly check?:
    | ((store: StoreTables) => Effect.Effect<
        {
          readonly create: Effect.Effect<unknown, E | StoreError, R> | undefined
          readonly onSwap: Effect.Effect<void, StoreError>
        },
        StoreError
      >)
    | undefined
  /** Runs at the end of the transaction of the swap. A failure rolls the swap back. */
  readonly onSwap?: Effect.Effect<void, StoreError> | undefined
}

/** What one attempt of a rebuild works with. */
export interface RebuildContext<E, R> {
  readonly options: RebuildOptions<E, R>
  readonly feed: EventFeed["Type"]
  /** The events that the rebuild projects. */
  readonly filter: Filter
  readonly store: StoreTables
  /** The schema of the shadow tables. */
  readonly shadowSchema: string
}

/** How long users of the tables may wait at a time, in milliseconds. */
export const maxHoldOf = ({ maxHold }: Pick<RebuildOptions<unknown, unknown>, "maxHold">): number =>
  Duration.toMillis(maxHold ?? "2 seconds")

/** Fails where the name, the batch size or the longest hold is invalid, or where a projection does not say whose events it projects. */
export const checkOptions = (options: RebuildOptions<unknown, unknown>): Effect.Effect<void, ValidationError> => {
  const issues: Array<ValidationIssue> = []
  const refuse = (path: ReadonlyArray<string | number>, message: string) => issues.push(issueAt(path, message))
  const problem = options.isOfVersion === true ? undefined : nameProblem(options.name, maxNameLength)
  if (problem !== undefined) refuse(["name"], problem)
  for (const [index, { of }] of options.projections.entries()) {
    if (of === undefined) refuse(["projections", index, "of"], "must be an aggregate, or all")
  }
  return failWith("Rebuild.run", [...issues, ...paceIssues(options)])
}

/** The invalid ones among the options that `Rebuild` and `ProjectionTables` share. */
export const paceIssues = (
  options: Pick<RebuildOptions<unknown, unknown>, "batchSize" | "maxHold">
): ReadonlyArray<ValidationIssue> => {
  const issues: Array<ValidationIssue> = []
  const { batchSize } = options
  if (batchSize !== undefined && !(Number.isInteger(batchSize) && batchSize >= 1 && batchSize <= 10_000)) {
    issues.push(issueAt(["batchSize"], "must be an integer from 1 to 10000"))
  }
  const maxHold = Option.map(Duration.decodeUnknown(options.maxHold ?? "2 seconds"), Duration.toMillis)
  if (!Option.exists(maxHold, (millis) => millis >= shortestHold && millis <= longestHold)) {
    issues.push(issueAt(["maxHold"], "must be a duration from 100 milliseconds to 1 minute"))
  }
  return issues
}

export const issueAt = (path: ReadonlyArray<string | number>, message: string): ValidationIssue =>
  new ValidationIssue({ path, message })

/** Fails where there are issues. */
export const failWith = (
  operation: string,
  [first, ...rest]: ReadonlyArray<ValidationIssue>
): Effect.Effect<void, ValidationError> =>
  first === undefined ? Effect.void : new ValidationError({ operation, issues: [first, ...rest] })

export const run = makeRun(operation)

// In milliseconds.
const shortestHold = 100
const longestHold = 60_000

/** The name of the rebuild's lease. No subscription can have it, because the prefix is reserved. */
export const leaseOf = (name: string): string => `${reservedPrefix}/rebuild/${name}`

/**
 * The name of the schema of the shadow tables. It is a hash of both names, because a schema's name has at most 63 bytes
 * and a database may have several stores.
 */
export const shadowSchemaOf = (store: StoreTables, name: string): Effect.Effect<string, StoreError> =>
  Effect.map(
    run(
      store,
      store.sql<{
        schema: string
      }>`select 'rebuild_' || left(encode(sha256(convert_to(${JSON.stringify([store.name, name])}, 'UTF8')), 'hex'), 32) as schema`
    ),
    ([row]) => row?.schema ?? ""
  )
