/**
 * The contract of `StoreAdapter` as a suite of tests, for whoever writes an adapter: the stores of this library pass the same.
 *
 * It runs on `@effect/vitest`, which is an optional dependency of this package: import it in tests only, since outside of vitest
 * the import itself throws. It is not part of the index for that reason.
 *
 * The idea of a published suite is that of Akka Persistence's TCK.
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
import { interruptionCases } from "./internal/contract/interruption.js"
import { modelCases } from "./internal/contract/modelCheck.js"
import { readCases } from "./internal/contract/reads.js"
import { register } from "./internal/contract/register.js"
import { snapshotCases } from "./internal/contract/snapshots.js"
import type { StoreAdapter } from "./StoreAdapter.js"

/**
 * What an adapter may lack and still be one. All else is the contract.
 *
 * - `callerTransaction`: it takes part in `SqlClient.withTransaction`, of the `SqlClient` that its layer provides beside the
 *   store.
 * - `concurrentReads`: a read is answered while a commit is under way, from what was there before. A store with one connection
 *   lacks it: its reads wait, or fail. What is not committed they don't show either.
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
   * What the adapter lacks; nothing by default. The cases that need it are shown as skipped, with the reason, so that a report
   * tells what a store can't do; those that can do without ask for less.
   */
  readonly lacks?: ReadonlyArray<Capability> | undefined
  /** How many random inputs each property test tries; 100 by default. */
  readonly runs?: number | undefined
  /** The seed of the random inputs. Drawn by default, and printed when a case fails: with it the case fails again. */
  readonly seed?: number | undefined
  /** How long a case, and building the layer, may take; 60 seconds by default. */
  readonly timeout?: Duration.DurationInput | undefined
}

/**
 * One sentence of the contract, and the effect that fails where it is not so.
 *
 * @since 0.1.0
 * @category models
 */
export interface Case {
  readonly name: string
  /** What a store must not lack for it. */
  readonly needs: Capability | undefined
  /** Runs on the clock of the machine, also where the test around has a `TestClock`. */
  readonly run: Effect.Effect<void, unknown, StoreAdapter>
}

/**
 * Registers the suite with vitest, as one block of that name. The layer is built once for all of it, and everything runs on the
 * clock of the machine, so that a store may sleep. The store need not be empty: the cases use ids of their own in each run. They
 * leave their events behind, and in a database tables whose names begin with `rows_`.
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
 * The sentences of the contract as values, for who wants to run a part of them, or to run them in tests of their own.
 *
 * @since 0.1.0
 * @category suites
 */
export const cases = (options?: Options): ReadonlyArray<Case> => {
  const settings: Settings = { lacks: options?.lacks ?? [], runs: options?.runs ?? 100, seed: options?.seed }
  return [
    ...commitEventsCases(settings),
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
