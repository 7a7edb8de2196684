/** Stores whose reader of streams is broken on purpose, which the contract must catch. */
import * as Effect from "effect/Effect"
import type { StoreAdapter } from "effect-maestro"

type Store = StoreAdapter.StoreAdapterService

/** To its reader every stream is empty, though its pages have events. */
export const deniesThatAnAggregateExists = (store: Store): Store => ({
  ...store,
  streamReader: store.streamReader && { ...store.streamReader, exists: () => Effect.succeed(false) }
})
