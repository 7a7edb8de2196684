/**
 * A store for tests of trouble: it fails, waits, or loses the acknowledgement of a commit where the test says so.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { EventFeed } from "./EventFeed.js"
import { troubledStore } from "./internal/test/troubledStore.js"
import * as MemoryStore from "./MemoryStore.js"
import { StoreAdapter } from "./StoreAdapter.js"
import type { RetryCommand, StoreError, StoreErrorReason, ValidationError } from "./StoreError.js"
import type { SubscriptionStore } from "./SubscriptionStore.js"
import * as Timestamp from "./Timestamp.js"

/**
 * An operation of the store. Aggregates commit by `commitAll`, and read by `getSnapshot` and `getEvents`.
 *
 * @since 0.1.0
 * @category models
 */
export type Operation = "commitEvents" | "commitAll" | "commitSnapshot" | "getEvents" | "getSnapshot"

/**
 * A failure of the store, or the reason of a `StoreError`. `"RetryCommand"` is a lost race.
 *
 * @since 0.1.0
 * @category models
 */
export type Trouble<Op extends Operation = Operation> =
  | StoreErrorReason
  | StoreError
  | ValidationError
  | (Op extends "commitEvents" | "commitAll" ? "RetryCommand" | RetryCommand : never)

/**
 * What a test sets the store to do. A control throws a `TypeError` for an operation, a trouble or a duration that does
 * not exist.
 *
 * @since 0.1.0
 * @category models
 */
export interface TestStoreService {
  /** The next call of the operation fails, and does nothing. With `times`, so do the calls after it. */
  readonly failNext: <Op extends Operation>(
    operation: Op,
    trouble: Trouble<Op>,
    options?: { readonly times?: number | undefined }
  ) => Effect.Effect<void>
  /** The next commit stores its events, and then fails with `CommitUnknown`. */
  readonly loseNextAcknowledgement: Effect.Effect<void>
  /** Each call of the operation waits so long before it begins, by the `Clock` of its fiber. Zero ends it. */
  readonly delay: (operation: Operation, duration: Duration.DurationInput) => Effect.Effect<void>
  /** How often the operation was called since the store was made, or since `reset`. */
  readonly calls: (operation: Operation) => Effect.Effect<number>
  /** Ends all trouble, and forgets the calls. What is stored stays. */
  readonly reset: Effect.Effect<void>
}

/**
 * The controls of the store.
 *
 * @since 0.1.0
 * @category tags
 */
export class TestStore extends Context.Tag("effect-maestro/TestStore")<TestStore, TestStoreService>() {}

/**
 * The next call of the operation fails, and does nothing. With `times`, so do the calls after it.
 *
 * @since 0.1.0
 * @category controls
 */
export const failNext = <Op extends Operation>(
  operation: Op,
  trouble: Trouble<Op>,
  options?: { readonly times?: number | undefined }
): Effect.Effect<void, never, TestStore> =>
  Effect.flatMap(TestStore, (controls) => controls.failNext(operation, trouble, options))

/**
 * The next commit stores its events, and then fails with `CommitUnknown`, as where a connection is lost at COMMIT.
 *
 * @since 0.1.0
 * @category controls
 */
export const loseNextAcknowledgement: Effect.Effect<void, never, TestStore> = Effect.flatMap(
  TestStore,
  (controls) => controls.loseNextAcknowledgement
)

/**
 * Each call of the operation waits so long before it begins, by the `Clock` of its fiber. Zero ends it.
 *
 * @since 0.1.0
 * @category controls
 */
export const delay = (operation: Operation, duration: Duration.DurationInput): Effect.Effect<void, never, TestStore> =>
  Effect.flatMap(TestStore, (controls) => controls.delay(operation, duration))

/**
 * How often the operation was called since the store was made, or since `reset`.
 *
 * @since 0.1.0
 * @category controls
 */
export const calls = (operation: Operation): Effect.Effect<number, never, TestStore> =>
  Effect.flatMap(TestStore, (controls) => controls.calls(operation))

/**
 * Ends all trouble, and forgets the calls. What is stored stays.
 *
 * @since 0.1.0
 * @category controls
 */
export const reset: Effect.Effect<void, never, TestStore> = Effect.flatMap(TestStore, (controls) => controls.reset)

/**
 * The store in memory with the controls. Its clock accepts timestamps of any time, so events of the real time are no
 * `ClockDrift` under `TestClock`.
 *
 * @since 0.1.0
 * @category layers
 *
 * @example
 * ```ts
 * import { Aggregate } from "effect-maestro"
 * import * as TestStore from "effect-maestro/TestStore"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 * import * as Schema from "effect/Schema"
 *
 * class Increased extends Schema.TaggedClass<Increased>()("Increased", { by: Schema.Int }) {}
 *
 * const Counter = Aggregate.make("Counter", {
 *   state: Schema.Int,
 *   initialState: 0,
 *   events: Increased,
 *   commands: Increased,
 *   decide: { Increased: (command) => Effect.succeed([command]) },
 *   evolve: { Increased: (count, { by }) => count + by }
 * })
 *
 * // The acknowledgement is lost, and the command still takes effect once.
 * export const state = Effect.gen(function* () {
 *   yield* TestStore.loseNextAcknowledgement
 *   return (yield* Counter.evaluate("a", new Increased({ by: 3 }))).state
 * }).pipe(Effect.provide(Counter.layer.pipe(Layer.provideMerge(TestStore.layer))))
 * ```
 */
export const layer: Layer.Layer<TestStore | StoreAdapter | EventFeed | SubscriptionStore | Timestamp.HybridClock> =
  Layer.suspend(() => Layer.merge(layerOver(MemoryStore.layer), Timestamp.layerWith({ maxDrift: Duration.infinity })))

/**
 * Another store with the controls, such as one of yours. Only the operations of `StoreAdapter` have trouble, so
 * the feed and the subscriptions go on.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerOver = <A, E, R>(
  store: Layer.Layer<A | StoreAdapter, E, R>
): Layer.Layer<A | StoreAdapter | TestStore, E, R> =>
  Layer.flatMap(store, (services) => {
    const { controls, store } = troubledStore(Context.get(services as Context.Context<StoreAdapter>, StoreAdapter))
    return Layer.succeedContext(services.pipe(Context.add(StoreAdapter, store), Context.add(TestStore, controls)))
  })
