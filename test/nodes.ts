/** Nodes: layers of aggregates, each with its own locks and state cache, on a shared store or on a wrapped one. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { StoreAdapter, StoreError } from "effect-maestro"

/** A node on the given store. */
export const aNodeOn = <Instances, R>(
  layer: Layer.Layer<Instances, never, StoreAdapter.StoreAdapter | R>,
  store: StoreAdapter.StoreAdapterService
) => Layer.build(Layer.fresh(layer).pipe(Layer.provide(Layer.succeed(StoreAdapter.StoreAdapter, store))))

/** A node on the shared store, or on the given one. */
export const aNode = <Instances, R>(
  layer: Layer.Layer<Instances, never, StoreAdapter.StoreAdapter | R>,
  store?: StoreAdapter.StoreAdapterService
) => Effect.flatMap(StoreAdapter.StoreAdapter, (shared) => aNodeOn(layer, store ?? shared))

/** A failure of a store. */
export const failure = (reason: StoreError.StoreErrorReason) =>
  new StoreError.StoreError({ reason, operation: "commitAll", description: "as the test wants it" })

/** Waits for a macrotask, so that fibers that wait for this process only can go on. */
export const macrotask = Effect.async<void>((resume) => {
  setImmediate(() => resume(Effect.void))
})
