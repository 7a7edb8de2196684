/**
 * When a snapshot of an aggregate is stored, and storing it. A command that grows its stream past a multiple of `snapshotEvery` does, and
 * `Aggregate.snapshot`.
 */
import * as Effect from "effect/Effect"
import type { StoreAdapterService } from "../../StoreAdapter.js"
import type { StoreError, ValidationError } from "../../StoreError.js"
import type { Tagged } from "../codec/eventCodec.js"
import type { Definition, Loaded } from "./loadState.js"

/** Stores a snapshot of the state. */
export const commitSnapshot = <State, A extends Tagged>(
  definition: Definition<State, A>,
  store: StoreAdapterService,
  { streamId, sequence, state, timestamp }: Loaded<State>
): Effect.Effect<void, ValidationError | StoreError> =>
  // An aggregate without events has nothing to save.
  timestamp === undefined
    ? Effect.void
    : Effect.flatMap(definition.state.encode(state), (encoded) =>
        store.commitSnapshot({ timestamp, aggregateId: streamId, sequence, ...encoded })
      )

/** Stores a snapshot where one is due. A failure is a warning. */
export const snapshotWhenDue = <State, A extends Tagged>(
  definition: Definition<State, A>,
  store: StoreAdapterService,
  root: Loaded<State>,
  added: number
): Effect.Effect<void> =>
  // The events of the command are stored already, so the command has succeeded.
  isSnapshotDue(definition, root, added)
    ? Effect.catchAll(commitSnapshot(definition, store, root), (error) =>
        Effect.logWarning(
          `${definition.name}: no snapshot of ${JSON.stringify(root.streamId)} at ${root.sequence}: ${error.message}`
        )
      )
    : Effect.void

/** Whether the stream has passed a multiple of `snapshotEvery` by so many events. */
export const isSnapshotDue = <State, A extends Tagged>(
  { snapshotEvery: every }: Definition<State, A>,
  { sequence }: Loaded<State>,
  added: number
): boolean => every !== undefined && Math.floor(sequence / every) > Math.floor((sequence - added) / every)
