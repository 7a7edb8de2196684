/**
 * What a rebuild is asked for and works with, and what is refused before it begins. `rebuild.ts` and `swap.ts` share it.
 */
import type { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import { maxNameLength } from "../../Event.js"
import type { EventFeed, Filter } from "../../EventFeed.js"
import type { Projection } from "../../Projection.js"
import { StoreError, ValidationError, ValidationIssue } from "../../StoreError.js"
import { nameProblem, reservedPrefix } from "../codec/names.js"
import { execute } from "../sql/pg/execute.js"
import type { StoreTables } from "../sql/storeTables.js"

export const operation = "Rebuild"

/** What is asked for. */
export interface Plan<E, R> {
  readonly name: string
  readonly projections: ReadonlyArray<Projection.Bound<E, R>>
  readonly tables: ReadonlyArray<string>
  readonly create?: Effect.Effect<unknown, E, R> | undefined
  readonly subscription?:
    | { readonly name: string; readonly partitions: number; readonly filter: Filter | undefined }
    | undefined
  readonly batchSize?: number | undefined
  /** Whether the library itself has named it, by a name that is reserved. */
  readonly isOwn?: boolean | undefined
  /** Runs before a rebuild begins or goes on. It fails, or says what stands for these two. */
  readonly check?:
    | ((home: StoreTables) => Effect.Effect<
        {
          readonly create: Effect.Effect<unknown, E | StoreError, R> | undefined
          readonly onSwap: Effect.Effect<void, StoreError>
        },
        StoreError
      >)
    | undefined
  /** Runs in the transaction of the swap, after it. When it fails, nothing is swapped. */
  readonly onSwap?: Effect.Effect<void, StoreError> | undefined
  readonly onProgress?:
    | ((progress: {
        readonly done: number
        readonly total: number
        readonly eventsPerSecond: number
        readonly secondsLeft: number
      }) => Effect.Effect<unknown>)
    | undefined
}

/** What a rebuild works with. */
export interface Work<E, R> {
  readonly plan: Plan<E, R>
  readonly feed: EventFeed["Type"]
  readonly filter: Filter
  readonly home: StoreTables
  /** The schema of the shadow tables. */
  readonly shadow: string
}

/** Refuses names that can be none, and projections that came past the types without saying whose events they are about. */
export const checkPlan = (plan: Plan<unknown, unknown>): Effect.Effect<void, ValidationError> => {
  const issues: Array<ValidationIssue> = []
  const refuse = (path: ReadonlyArray<string | number>, message: string) =>
    issues.push(new ValidationIssue({ path, message }))
  const problem = plan.isOwn === true ? undefined : nameProblem(plan.name, maxNameLength)
  if (problem !== undefined) refuse(["name"], problem)
  for (const [index, { of }] of plan.projections.entries()) {
    if (of === undefined) refuse(["projections", index, "of"], "must be an aggregate, or all")
  }
  const { batchSize } = plan
  if (batchSize !== undefined && !(Number.isInteger(batchSize) && batchSize >= 1 && batchSize <= 10_000)) {
    refuse(["batchSize"], "must be an integer from 1 to 10000")
  }
  const [first, ...rest] = issues
  return first === undefined ? Effect.void : new ValidationError({ operation: "Rebuild.run", issues: [first, ...rest] })
}

/** Fails where the subscription is cut into another number of partitions in the store: what is in which would change. */
export const checkPartitions = (
  home: StoreTables,
  { subscription }: Plan<unknown, unknown>
): Effect.Effect<void, StoreError> =>
  subscription === undefined
    ? Effect.void
    : Effect.flatMap(
        run(
          home,
          home.sql<{ partitions: number }>`select distinct partitions from ${home.schema}.subscriptions
            where name = ${subscription.name} and partitions <> ${subscription.partitions}`
        ),
        ([other]) =>
          other === undefined
            ? Effect.void
            : new StoreError({
                reason: "Misconfigured",
                operation,
                description: `subscription ${JSON.stringify(subscription.name)} has ${other.partitions} partitions in the store, and ${subscription.partitions} here: what is in which would change`
              })
      )

/** Runs a statement in the transaction around it, or on a connection of its own, whose interruption is bounded. */
export const run = <A>({ sql }: StoreTables, statement: Effect.Effect<A, SqlError>): Effect.Effect<A, StoreError> =>
  execute(sql, { operation, phase: "writing", savepoint: false }, statement)

/** Of no subscription: its name would be reserved. */
export const leaseOf = (name: string): string => `${reservedPrefix}/rebuild/${name}`

/** The schema of the shadow tables: a hash, since a schema's name has at most 63 bytes, and a database may have several stores. */
export const shadowOf = (home: StoreTables, name: string): Effect.Effect<string, StoreError> =>
  Effect.map(
    run(
      home,
      home.sql<{
        shadow: string
      }>`select 'rebuild_' || left(encode(sha256(convert_to(${JSON.stringify([home.name, name])}, 'UTF8')), 'hex'), 32) as shadow`
    ),
    ([row]) => row?.shadow ?? ""
  )
