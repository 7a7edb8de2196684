/**
 * Projects a batch of events into the shadow tables, in the transaction around it. `fillAndSwap.ts` calls it for each
 * batch, and `swapTables.ts` for the events that are left.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import type { FeedEvent } from "../../EventFeed.js"
import type { Projection } from "../../Projection.js"
import { StoreError } from "../../StoreError.js"
import { followingEvents } from "../runtime/commandCause.js"
import { isTransient } from "../runtime/retry.js"
import { runProjections } from "../store/runProjections.js"
import { withSearchPathPrefix } from "./catalogStatements.js"
import { projectStatements } from "./projectStatements.js"
import { operation, type RebuildContext, run } from "./rebuildOptions.js"
import { checkedForOtherWrites } from "./shadowTables.js"

/** Projects the events of a transaction, checks deferred constraints, and stores the progress. */
export const projectBatch = <E, R>(
  context: RebuildContext<E, R>,
  events: ReadonlyArray<FeedEvent>
): Effect.Effect<void, E | StoreError, R> =>
  projectWith(
    context,
    events,
    Effect.zipRight(runAll(context, events), setConstraintsImmediate(context, events.at(-1)))
  )

/**
 * Projects a part of the events of a transaction, and stores the progress. `checkDeferred` follows after the last part.
 */
export const projectPart = <E, R>(
  context: RebuildContext<E, R>,
  events: ReadonlyArray<FeedEvent>
): Effect.Effect<void, E | StoreError, R> => projectWith(context, events, runAll(context, events))

/**
 * Checks the constraints that are deferred to the end of the transaction, after this event. COMMIT would check them
 * too, but its failure can't name a projection. Besides, the database refuses to move a table while a deferred check is
 * pending.
 */
export const checkDeferred = <E, R>(
  context: RebuildContext<E, R>,
  last: FeedEvent | undefined
): Effect.Effect<void, StoreError> =>
  last === undefined
    ? Effect.void
    : withSearchPathPrefix(context.store.sql, context.shadowSchema, setConstraintsImmediate(context, last))

// --- internal ---

const runAll = <E, R>(
  { options, store }: RebuildContext<E, R>,
  events: ReadonlyArray<FeedEvent>
): Effect.Effect<void, E | StoreError, R> => {
  // Without their `tables`, because the failure of a statement would advise to provide `ProjectionTables.layer`.
  const projections = options.projections.map((projection) => ({ ...projection, tables: undefined }))
  const projectOne = runProjections(projections, { endsRun: true })
  const oneByOne = followingEvents((follow) =>
    Effect.forEach(
      events,
      (event) => {
        follow(event)
        return projectOne(event)
      },
      { discard: true }
    )
  )
  return projectStatements(store, projections, events, oneByOne)
}

const projectWith = <E, R>(
  { options, shadowSchema, store }: RebuildContext<E, R>,
  events: ReadonlyArray<FeedEvent>,
  projecting: Effect.Effect<void, E | StoreError, R>
): Effect.Effect<void, E | StoreError, R> => {
  const { name, schema, sql } = store
  return Effect.zipRight(
    checkedForOtherWrites(sql, [shadowSchema, name], withSearchPathPrefix(sql, shadowSchema, projecting)),
    run(
      store,
      sql`update ${schema}.rebuilds set events_done = events_done + ${events.length} where name = ${options.name}`
    )
  )
}

const setConstraintsImmediate = <E, R>(
  { options, store }: RebuildContext<E, R>,
  last: FeedEvent | undefined
): Effect.Effect<void, StoreError> =>
  last === undefined
    ? Effect.void
    : Effect.catchAll(Effect.asVoid(run(store, store.sql`set constraints all immediate`)), (error) => {
        if (isTransient(error)) return Effect.fail(error)
        const { failure, problem } = deferredViolation(options, last, error)
        return Effect.zipRight(
          Effect.logError(`a rebuild ends, because ${problem}`, Cause.fail(failure)),
          Effect.fail(failure)
        )
      })

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
