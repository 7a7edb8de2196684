/**
 * The contract of `StoreAdapter` as a suite of tests, for whoever writes an adapter: the stores of this library pass the same.
 *
 * It runs on `@effect/vitest`, which is an optional dependency of this package; import it in tests only. It is not part of the
 * index for that reason.
 *
 * The idea of a published suite is that of Akka Persistence's TCK.
 *
 * @since 0.1.0
 */
import { it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import { badInputCases } from "./internal/contract/badInput.js"
import { callersTransactionCases } from "./internal/contract/callersTransaction.js"
import type { Settings } from "./internal/contract/case.js"
import { commitAllCases } from "./internal/contract/commitAll.js"
import { commitEventsCases } from "./internal/contract/commitEvents.js"
import { interruptionCases } from "./internal/contract/interruption.js"
import { modelCases } from "./internal/contract/modelCheck.js"
import { readCases } from "./internal/contract/reads.js"
import { snapshotCases } from "./internal/contract/snapshots.js"
import type { StoreAdapter } from "./StoreAdapter.js"

/**
 * What an adapter may lack and still be one. All else is the contract.
 *
 * - `callerTransaction`: it takes part in `SqlClient.withTransaction`, of the `SqlClient` that its layer provides beside the
 *   store.
 * - `concurrentReads`: a read is answered while a commit is under way, from what was there before. A store with one connection
 *   lacks it: its reads wait.
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
   * tells what a store can't do.
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
  /** It expects the services of a test, such as `TestClock`. */
  readonly run: Effect.Effect<void, unknown, StoreAdapter>
}

/**
 * Registers the suite with the test runner, as one block of that name. The layer is built once for all of it; it need not be
 * empty, and the cases leave their events behind.
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
export const suite = <A, E>(name: string, layer: Layer.Layer<StoreAdapter | A, E>, options?: Options): void => {
  const timeout = options?.timeout ?? "60 seconds"
  it.layer(layer, { timeout })(name, (it) => {
    for (const { name, needs, run } of cases(options)) {
      if (needs !== undefined && options?.lacks?.includes(needs)) {
        it.effect.skip(`${name} (this store lacks ${needs})`, () => run)
      } else {
        it.effect(name, () => run, Duration.toMillis(timeout))
      }
    }
  })
}

/**
 * The sentences of the contract as values, for another test runner or for a part of them.
 *
 * @since 0.1.0
 * @category suites
 */
export const cases = (options?: Options): ReadonlyArray<Case> => {
  const settings: Settings = { lacks: options?.lacks ?? [], runs: options?.runs ?? 100, seed: options?.seed }
  return [
    ...commitEventsCases(settings),
    ...commitAllCases(settings),
    ...snapshotCases,
    ...readCases,
    ...callersTransactionCases,
    ...interruptionCases,
    ...badInputCases(settings),
    ...modelCases(settings)
  ]
}
