/**
 * `SqlStore.fromReplica`, by which a program lets the replica answer its queries.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { StreamPosition } from "../../EventFeed.js"
import { ReadingFrom } from "../runtime/readingFrom.js"

/** What queries expect of the replica. */
export interface ReplicaOptions {
  /**
   * Events that the queries must see: the `position` of `evaluate`, so that a caller reads its own write, or several. With an event, a query
   * sees all that was committed before it.
   */
  readonly after?: StreamPosition | ReadonlyArray<StreamPosition> | undefined
  /** How long a query waits for the replica to have these events, before it reads the primary; a second by default. */
  readonly maxWait?: Duration.DurationInput | undefined
}

/** Lets the replica answer the queries of an effect. `SqlStore.ts` exports it. */
export const fromReplica = (
  options?: ReplicaOptions
): (<A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>) => {
  const { after = [], maxWait = "1 second" } = options ?? {}
  const replica = { after: Array.isArray(after) ? after : [after], maxWait: Duration.toMillis(maxWait) }
  return Effect.provideService(ReadingFrom, { replica })
}
