/**
 * The contract of `StoreAdapter` as a suite of tests for authors of adapters. The stores of this library pass it too.
 *
 * It runs on `@effect/vitest`, which is an optional dependency of this package. Import it in tests only, because
 * outside of vitest the import itself throws. For that reason it is not part of the index.
 *
 * Akka Persistence publishes such a suite as its TCK.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import { badInputCases } from "./internal/contract/badInput.js"
import { callersContextCases } from "./internal/contract/callersContext.js"
import { callersTransactionCases } from "./internal/contract/callersTransaction.js"
import type { Settings } from "./internal/contract/case.js"
import { commitAllCases } from "./internal/contract/commitAll.js"
import { commitEventsCases } from "./internal/contract/commitEvents.js"
import { eventFieldCases } from "./internal/contract/eventFields.js"
import { interruptionCases } from "./internal/contract/interruption.js"
import { modelCases } from "./internal/contract/modelCheck.js"
import { readCases } from "./internal/contract/reads.js"
import { register } from "./internal/contract/register.js"
import { snapshotCases } from "./internal/contract/snapshots.js"
import type { StoreAdapter } from "./StoreAdapter.js"

/**
 * The capabilities that an adapter may lack. Everything else is the contract.
 *
 * - `callerTransaction`: the store takes part in `SqlClient.withTransaction`, of the `SqlClient` that its layer
 *   provides beside the store.
 * - `concurrentReads`: a read returns while a commit is under way, without the events of that commit. A store with one
 *   connection lacks it, because its reads wait, or fail.
 *
 * @since 0.1.0
 * @category models
 */
export type Capability = "callerTransaction" | "concurrentReads"

/**
 * How the suite is run.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options {
  /**
   * The capabilities that the adapter lacks; none by default. Cases that need one are shown as skipped, with the
   * reason. Cases that can check less without it do so.
   */
  readonly lacks?: ReadonlyArray<Capability> | undefined
  /** The number of random inputs of each property test; 100 by default. */
  readonly runs?: number | undefined
  /**
   * The seed of the random inputs. Drawn by default, and printed when a case fails, so that you can repeat the failure.
   */
  readonly seed?: number | undefined
  /** How long a case, and building the layer, may take; 60 seconds by default. */
  readonly timeout?: Duration.DurationInput | undefined
}

/**
 * One sentence of the contract, and the effect that fails where a store breaks it. `FeedContract` has cases of the
 * ports `R` and with capabilities `C` of its own.
 *
 * @since 0.1.0
 * @category models
 */
export interface Case<R = StoreAdapter, C extends string = Capability> {
  readonly name: string
  /** The capability that a store needs for it. */
  readonly needs: C | undefined
  /** Runs on the live clock, also where the test around has a `TestClock`. */
  readonly run: Effect.Effect<void, unknown, R>
}

/**
 * Registers the suite with vitest, as one block of that name. The layer is built once for all cases, and everything
 * runs on the live clock, so that a store may sleep. The store need not be empty, because the cases use ids of their
 * own in each run. They leave their events behind, and in a database tables whose names begin with `rows_`.
 *
 * @since 0.1.0
 * @category suites
 *
 * @example
 * ```ts
 * import { MemoryStore } from "effect-maestro"
 * import * as StoreContract from "effect-maestro/StoreContract"
 *
 * StoreContract.suite("MemoryStore", MemoryStore.layer, { lacks: ["callerTransaction"] })
 * ```
 */
export const suite = <A, E>(name: string, layer: Layer.Layer<StoreAdapter | A, E>, options?: Options): void =>
  register(name, layer, cases(options), options)

/**
 * The cases of the contract, to run a part of them, or to run them in your own tests.
 *
 * @since 0.1.0
 * @category suites
 */
export const cases = (options?: Options): ReadonlyArray<Case> => {
  const settings: Settings = { lacks: options?.lacks ?? [], runs: options?.runs ?? 100, seed: options?.seed }
  return [
    ...commitEventsCases(settings),
    ...eventFieldCases,
    ...commitAllCases(settings),
    ...callersContextCases,
    ...snapshotCases(settings),
    ...readCases,
    ...callersTransactionCases,
    ...interruptionCases,
    ...badInputCases(settings),
    ...modelCases(settings)
  ]
}
