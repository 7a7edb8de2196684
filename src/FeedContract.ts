/**
 * The contract of `EventFeed` and `SubscriptionStore` as a suite of tests, for stores that provide them beside
 * `StoreAdapter`. The stores of this library pass the same.
 *
 * It runs on `@effect/vitest`, which is an optional dependency of this package. Import it in tests only, because
 * outside of vitest the import itself throws. It is not part of the index for that reason.
 *
 * The contract of `StoreAdapter` itself is `effect-maestro/StoreContract`.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import type * as Layer from "effect/Layer"
import type { EventFeed } from "./EventFeed.js"
import { feedAsOfCases } from "./internal/contract/feedAsOf.js"
import { feedAwaitCases } from "./internal/contract/feedAwait.js"
import { feedBadInputCases } from "./internal/contract/feedBadInput.js"
import type { FeedSettings } from "./internal/contract/feedCase.js"
import { feedFilterCases } from "./internal/contract/feedFilters.js"
import { feedLeaseCases } from "./internal/contract/feedLeases.js"
import { feedNodeCases } from "./internal/contract/feedNodes.js"
import { feedOverlapCases } from "./internal/contract/feedOverlap.js"
import { feedParkedCases } from "./internal/contract/feedParked.js"
import { feedProgressCases } from "./internal/contract/feedProgress.js"
import { feedRandomCases } from "./internal/contract/feedRandom.js"
import { feedReadCases } from "./internal/contract/feedReads.js"
import { feedRepartitionCases } from "./internal/contract/feedRepartition.js"
import { feedSampleCases } from "./internal/contract/feedSamples.js"
import { feedStatusCases } from "./internal/contract/feedStatus.js"
import { register } from "./internal/contract/register.js"
import type { StoreAdapter } from "./StoreAdapter.js"
import type * as StoreContract from "./StoreContract.js"
import type { SubscriptionStore } from "./SubscriptionStore.js"

/**
 * The capabilities that a store may lack. Everything else is the contract.
 *
 * - `callerTransaction`: its three ports take part in `SqlClient.withTransaction`, of the `SqlClient` that its layer
 *   provides beside them.
 * - `concurrentReads`: a read returns while a commit is under way, with what was there before. A store with one
 *   connection lacks it, because its reads wait, or fail.
 * - `transactionalEffects`: the effects of `advance` and `retryParked` run in a transaction, so that what a failing
 *   effect has committed is undone.
 *
 * @since 0.1.0
 * @category models
 */
export type Capability = "callerTransaction" | "concurrentReads" | "transactionalEffects"

/**
 * How the suite is run.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options {
  /**
   * The capabilities that the store lacks; none by default. Cases that need one are shown as skipped, with the reason.
   */
  readonly lacks?: ReadonlyArray<Capability> | undefined
  /** The number of random inputs of a property test; 100 by default. Random programs run a tenth as often. */
  readonly runs?: number | undefined
  /**
   * The seed of the random inputs. Drawn by default, and printed when a case fails, so that you can repeat the failure.
   */
  readonly seed?: number | undefined
  /** How long a case, and building the layer, may take; 60 seconds by default. */
  readonly timeout?: Duration.DurationInput | undefined
}

/**
 * One sentence of the contract, and the effect that fails where a store breaks it.
 *
 * @since 0.1.0
 * @category models
 */
export type Case = StoreContract.Case<StoreAdapter | EventFeed | SubscriptionStore, Capability>

/**
 * Registers the suite with vitest, as one block of that name. The layer is built once for all of it, and everything
 * runs on the live clock, so that a store may sleep. The store need not be empty, because the cases use ids of their
 * own in each run, but nothing else may write to it meanwhile. The cases leave their events and subscriptions behind.
 *
 * On a server of Postgres the feed waits for the transactions of all its databases, so the suite is fast where the
 * server has no long ones.
 *
 * @since 0.1.0
 * @category suites
 *
 * @example
 * ```ts
 * import { MemoryStore } from "effect-maestro"
 * import * as FeedContract from "effect-maestro/FeedContract"
 *
 * FeedContract.suite("MemoryStore", MemoryStore.layer, { lacks: ["callerTransaction", "transactionalEffects"] })
 * ```
 */
export const suite = <A, E>(
  name: string,
  layer: Layer.Layer<StoreAdapter | EventFeed | SubscriptionStore | A, E>,
  options?: Options
): void => register(name, layer, cases(options), options)

/**
 * The cases of the contract, to run a part of them, or to run them in your own tests.
 *
 * @since 0.1.0
 * @category suites
 */
export const cases = (options?: Options): ReadonlyArray<Case> => {
  const settings: FeedSettings = { lacks: options?.lacks ?? [], runs: options?.runs ?? 100, seed: options?.seed }
  return [
    ...feedReadCases,
    ...feedFilterCases,
    ...feedSampleCases,
    ...feedAsOfCases,
    ...feedOverlapCases,
    ...feedAwaitCases,
    ...feedBadInputCases,
    ...feedRandomCases(settings),
    ...feedLeaseCases,
    ...feedNodeCases,
    ...feedRepartitionCases,
    ...feedProgressCases,
    ...feedParkedCases,
    ...feedStatusCases
  ]
}
