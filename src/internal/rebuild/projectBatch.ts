/**
 * Projects a batch of events into the shadow tables, in the transaction around it. `fillAndSwap.ts` calls it for each batch, and
 * `swapTables.ts` for the events that are left.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import type { FeedEvent } from "../../EventFeed.js"
import type { Projection } from "../../Projection.js"
import { StoreError } from "../../StoreError.js"
import { isTransient } from "../runtime/retry.js"
import { runProjections } from "../store/runProjections.js"
import { withSearchPathPrefix } from "./catalogStatements.js"
import { operation, type RebuildContext, run } from "./rebuildOptions.js"
import { checkedForOtherWrites } from "./shadowTables.js"

/** Projects the events, stores the progress, and checks deferred constraints. */
export const projectBatch = <E, R>(
  context: RebuildContext<E, R>,
  events: ReadonlyArray<FeedEvent>
): Effect.Effect<void, E | StoreError, R> =>
  Effect.zipRight(projectEvents(context, events), checkDeferred(context, events.at(-1)))

/** Projects the events, and stores the progress. */
export const projectEvents = <E, R>(
  { options, shadowSchema, store }: RebuildContext<E, R>,
  events: ReadonlyArray<FeedEvent>
): Effect.Effect<void, E | StoreError, R> =>
  Effect.gen(function* () {
    const { name, schema, sql } = store
    // Without their `tables`, because the failure of a statement would advise to provide `ProjectionTables.layer`.
    const projections = options.projections.map((projection) => ({ ...projection, tables: undefined }))
    const projecting = Effect.forEach(events, runProjections(projections, { endsRun: true }), { discard: true })
    yield* checkedForOtherWrites(sql, [shadowSchema, name], withSearchPathPrefix(sql, shadowSchema, projecting))
    yield* run(
      store,
      sql`update ${schema}.rebuilds set events_done = events_done + ${events.length} where name = ${options.name}`
    )
  })

/**
 * Checks the constraints that are deferred to the end of the transaction. COMMIT would check them too, but its failure can't name a projection.
 * Besides, the database refuses to move a table while a deferred check is pending.
 */
export const checkDeferred = <E, R>(
  { options, shadowSchema, store }: RebuildContext<E, R>,
  last: FeedEvent | undefined
): Effect.Effect<void, StoreError> =>
  last === undefined
    ? Effect.void
    : withSearchPathPrefix(store.sql, shadowSchema, run(store, store.sql`set constraints all immediate`)).pipe(
        Effect.catchAll((error) => {
          if (isTransient(error)) return Effect.fail(error)
          const violation = deferredViolation(options, last, error)
          return Effect.zipRight(
            Effect.logError(`a rebuild ends, because ${violation.problem}`, Cause.fail(violation.failure)),
            Effect.fail(violation.failure)
          )
        }),
        Effect.asVoid
      )

// --- internal ---

/** The failure of a deferred constraint names the rebuild, its projections and the last event of the batch. */
const deferredViolation = (
  { name, projections }: RebuildContext<unknown, unknown>["options"],
  last: FeedEvent,
  error: StoreError
): { readonly problem: string; readonly failure: StoreError } => {
  const [projection, ...others] = new Set(projections.map((one) => one.name))
  const which = [...new Set(projections.map(nameWithVersion))].join(", ")
  const problem = `rebuild ${JSON.stringify(name)} of projection${others.length === 0 ? "" : "s"} ${which} violates a deferred constraint at the end of a batch, whose last event is event ${last.sequence} of aggregate ${JSON.stringify(last.aggregateId)}`
  return {
    problem,
    failure: new StoreError({
      ...error,
      operation,
      description: `${problem}: ${error.description}`,
      ...(projection === undefined || others.length > 0 ? {} : { projection })
    })
  }
}

const nameWithVersion = ({ name, version }: Pick<Projection.Any, "name" | "version">): string =>
  `${JSON.stringify(name)}${version === undefined ? "" : ` of version ${version}`}`
