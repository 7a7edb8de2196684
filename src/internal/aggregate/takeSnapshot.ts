/**
 * Stores snapshots: after a commit that passes a multiple of `snapshotEvery`, for `commandHandler.ts` and
 * `idempotentCommand.ts`, and for `Aggregate.snapshot`.
 */
import * as Effect from "effect/Effect"
import type { StoreAdapterService } from "../../StoreAdapter.js"
import type { StoreError, ValidationError } from "../../StoreError.js"
import type { Tagged } from "../codec/eventCodec.js"
import type { AggregateDefinition } from "./definition.js"
import type { VersionedState } from "./loadState.js"

/** Stores a snapshot of the state. */
export const commitSnapshot = <State, A extends Tagged>(
  definition: AggregateDefinition<State, A>,
  store: StoreAdapterService,
  { streamId, sequence, state, timestamp }: VersionedState<State>
): Effect.Effect<void, ValidationError | StoreError> =>
  // An aggregate without events has no timestamp, and no snapshot.
  timestamp === undefined
    ? Effect.void
    : Effect.flatMap(definition.state.encode(state), (encoded) =>
        store.commitSnapshot({ timestamp, aggregateId: streamId, sequence, ...encoded })
      )

/** Stores a snapshot if one is due. A failure is a warning, because the events of the command are stored already. */
export const snapshotWhenDue = <State, A extends Tagged>(
  definition: AggregateDefinition<State, A>,
  store: StoreAdapterService,
  root: VersionedState<State>,
  added: number
): Effect.Effect<void> =>
  isSnapshotDue(definition, root, added)
    ? Effect.catchAll(commitSnapshot(definition, store, root), (error) =>
        Effect.logWarning(
          `${definition.name}: no snapshot of ${JSON.stringify(root.streamId)} at ${root.sequence}: ${error.message}`
        )
      )
    : Effect.void

/** Whether the last `added` events passed a multiple of `snapshotEvery`. */
export const isSnapshotDue = <State, A extends Tagged>(
  { snapshotEvery: every }: AggregateDefinition<State, A>,
  { sequence }: VersionedState<State>,
  added: number
): boolean => every !== undefined && Math.floor(sequence / every) > Math.floor((sequence - added) / every)
