/**
 * Queries that ask for the replica of the store (`SqlStore.fromReplica`). `service.ts` makes its reads by it.
 *
 * A state of the replica may be older than the stored one, so it is never cached: commands decide on cached states.
 */
import * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type { ReplicaQuery, StoreAdapterService, StoreReads } from "../../StoreAdapter.js"
import type { StoreError, ValidationError } from "../../StoreError.js"
import type { Tagged } from "../codec/eventCodec.js"
import { replicaQueryIn } from "../runtime/readingFrom.js"
import { replicaOf } from "../store/streamReader.js"
import type { AggregateDefinition } from "./definition.js"
import { load, refresh, type VersionedState } from "./loadState.js"
import type { StateCache } from "./stateCache.js"

type Load<State> = Effect.Effect<VersionedState<State>, ValidationError | StoreError>

/** How an aggregate reads for queries. */
export interface ReplicaQueries<State> {
  /** Runs a query on the reads that its caller asks for. */
  readonly reading: <B, E>(query: (reads: StoreReads) => Effect.Effect<B, E>) => Effect.Effect<B, E | ValidationError>
  /** The state from the replica if the caller asks for it, else by `primary`. With `cached` a cached state will do. */
  readonly state: (id: string, primary: (id: string) => Load<State>, cached: boolean) => Load<State>
}

/** Makes the queries. `fetch` returns the state of the primary. */
export const makeReplicaQueries = <State, A extends Tagged, E>(
  definition: AggregateDefinition<State, A>,
  store: StoreAdapterService,
  stateCache: StateCache<State, E>,
  fetch: (id: string) => Load<State>
): ReplicaQueries<State> => {
  const replica = replicaOf(store)
  if (replica === undefined) return { reading: (query) => query(store), state: (id, primary) => primary(id) }

  const loadFor = (query: ReplicaQuery, id: string, isCachedEnough: boolean): Load<State> =>
    Effect.flatMap(Clock.currentTimeMillis, (now) => {
      const cached = stateCache.peek(id, now)
      if (isCachedEnough && cached !== undefined && query.after.every((event) => includes(cached, event))) {
        return Effect.succeed(cached)
      }
      return Effect.flatMap(replica.readsFor(query), (reads) =>
        cached === undefined
          ? load(definition, reads, id)
          : // The replica may lack the event that the cached state ends with.
            refresh(definition, reads, cached, fetch(id))
      )
    })

  /** Runs one of two effects: the second where the caller asks for the replica. */
  const choose = <B, E2>(primary: () => Effect.Effect<B, E2>, asked: (query: ReplicaQuery) => Effect.Effect<B, E2>) =>
    Effect.contextWithEffect((context: Context.Context<never>) => {
      const query = replicaQueryIn(context)
      return query === undefined ? primary() : asked(query)
    })

  return {
    reading: <B, E2>(run: (reads: StoreReads) => Effect.Effect<B, E2>) =>
      choose<B, E2 | ValidationError>(
        () => run(store),
        (query) => Effect.flatMap(replica.readsFor(query), run)
      ),
    state: (id, primary, isCachedEnough) =>
      choose(
        () => primary(id),
        (query) => loadFor(query, id, isCachedEnough)
      )
  }
}

// --- internal ---

/** Whether the state contains the event. */
const includes = <State>(
  { sequence, streamId }: VersionedState<State>,
  event: ReplicaQuery["after"][number]
): boolean => event.aggregateId === streamId && event.sequence <= sequence
