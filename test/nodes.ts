/** Nodes: layers of an aggregate, each with turns and kept states of its own, on one store or on one that a test has put before it. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { type Aggregate, StoreAdapter, StoreError } from "effect-maestro"

/** A node on the given store. */
export const aNodeOn = <Name extends string, R>(
  layer: Layer.Layer<Aggregate.Instance<Name>, never, StoreAdapter.StoreAdapter | R>,
  store: StoreAdapter.StoreAdapterService
) => Layer.build(Layer.fresh(layer).pipe(Layer.provide(Layer.succeed(StoreAdapter.StoreAdapter, store))))

/** A node on the store that all share, or on another. */
export const aNode = <Name extends string, R>(
  layer: Layer.Layer<Aggregate.Instance<Name>, never, StoreAdapter.StoreAdapter | R>,
  store?: StoreAdapter.StoreAdapterService
) => Effect.flatMap(StoreAdapter.StoreAdapter, (shared) => aNodeOn(layer, store ?? shared))

/** What a store fails with. */
export const failure = (reason: StoreError.StoreErrorReason) =>
  new StoreError.StoreError({ reason, operation: "commitAll", description: "as the test wants it" })

/** A turn of the event loop: whoever only waits for this process goes on. */
export const macrotask = Effect.async<void>((resume) => {
  setImmediate(() => resume(Effect.void))
})
