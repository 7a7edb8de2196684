/** Stores of subscriptions with one fault each. The contract must fail for each of them. */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { EventFeed, type StoreError, type SubscriptionStore } from "effect-maestro"
import type { Breaking, Ports } from "./brokenFeeds.js"

export const movesOnThoughTheEffectFails: Breaking = withLease((lease) => ({
  ...lease,
  advance: (position, effect) => Effect.zipRight(lease.advanceTo(position), effect)
}))

/** The effect has ended before the transaction begins. */
export const runsTheEffectOutsideOfTheTransaction: Breaking = withLease((lease) => ({
  ...lease,
  advance: (position, effect) => Effect.zipRight(effect, lease.advanceTo(position))
}))

/** A second request shares the lease of the holder. */
export const hasTwoHoldersAtATime: Breaking = withSubscriptions((subscriptions) => {
  const held = new Map<string, SubscriptionStore.Lease>()
  return {
    ...subscriptions,
    lease: (options) =>
      Effect.suspend(() => {
        const id = JSON.stringify([options.key.name, options.key.partition])
        const known = held.get(id)
        if (known !== undefined) return Effect.succeed(known)
        return Effect.tap(subscriptions.lease(options), (lease) => {
          held.set(id, lease)
          return Effect.addFinalizer(() => Effect.sync(() => held.delete(id)))
        })
      })
  }
})

/** A lease that was taken over still works, by the token of the next holder. */
export const hasNoFencing: Breaking = withSubscriptions((subscriptions) => {
  const held = new Map<string, SubscriptionStore.Lease>()
  return {
    ...subscriptions,
    lease: (options) =>
      Effect.map(subscriptions.lease(options), (lease): SubscriptionStore.Lease => {
        const id = JSON.stringify([options.key.name, options.key.partition])
        held.set(id, lease)
        const current = () => held.get(id) ?? lease
        return {
          ...lease,
          checkpoint: Effect.suspend(() => current().checkpoint),
          advance: (position, effect) =>
            Effect.zipRight(
              effect,
              Effect.suspend(() => current().advanceTo(position))
            ),
          advanceTo: (position) => Effect.suspend(() => current().advanceTo(position)),
          recordFailure: (failure) => Effect.suspend(() => current().recordFailure(failure)),
          stop: (failure) => Effect.suspend(() => current().stop(failure))
        }
      })
  }
})

/** A lease is checked before the effect runs, and not after it. */
export const checksTheLeaseOnlyAtFirst: Breaking = withLease((lease) => ({
  ...lease,
  advance: (position, effect) =>
    Effect.zipRight(
      lease.checkpoint,
      Effect.zipRight(
        effect,
        Effect.catchTag(lease.advanceTo(position), "LeaseLost", () => Effect.void)
      )
    )
}))

/** An interrupted wait for the lease goes on, and never releases the lease that it gets. */
export const keepsTheLeaseForAnInterruptedRequest: Breaking = withSubscriptions((subscriptions) => ({
  ...subscriptions,
  lease: (options) =>
    Effect.onInterrupt(subscriptions.lease(options), () =>
      Effect.asVoid(Effect.forkDaemon(Effect.scoped(Effect.zipRight(subscriptions.lease(options), Effect.never))))
    )
}))

export const beginsWhereItIsTold: Breaking = withSubscriptions((subscriptions) => ({
  ...subscriptions,
  lease: (options) => Effect.map(subscriptions.lease(options), (lease) => ({ ...lease, position: options.from }))
}))

/** An invalid position is taken for the beginning. */
export const takesAnyPosition: Breaking = withSubscriptions((subscriptions) => ({
  ...subscriptions,
  lease: (options) => subscriptions.lease({ ...options, from: orBeginning(options.from) }),
  awaitPosition: (name, position, aggregateId) => subscriptions.awaitPosition(name, orBeginning(position), aggregateId)
}))

/** Names are compared as a case-insensitive collation does. */
export const mixesNames: Breaking = withSubscriptions((subscriptions) => ({
  ...subscriptions,
  lease: (options) => subscriptions.lease({ ...options, key: { ...options.key, name: options.key.name.toLowerCase() } })
}))

export const takesAnyNumberOfPartitions: Breaking = withSubscriptions((subscriptions) => {
  const known = new Map<string, number>()
  return {
    ...subscriptions,
    lease: (options) => {
      const partitions = known.get(options.key.name) ?? options.key.partitions
      known.set(options.key.name, partitions)
      return subscriptions.lease({ ...options, key: { ...options.key, partitions } })
    }
  }
})

export const forgetsThatItStopped: Breaking = withLease((lease) => ({ ...lease, stop: lease.recordFailure }))

export const keepsAFailureThatIsTakenOff: Breaking = withLease((lease) => ({
  ...lease,
  recordFailure: (failure) => (failure === undefined ? Effect.void : lease.recordFailure(failure))
}))

/** Attempts are counted in memory, and not in the store. */
export const countsAttemptsForOneHolderOnly: Breaking = withLease((lease) => ({ ...lease, attempts: Option.none() }))

export const keepsAttemptsThatLedOn: Breaking = withSubscriptions((subscriptions) => {
  const counted = new Map<string, SubscriptionStore.Attempts>()
  return {
    ...subscriptions,
    lease: (options) =>
      Effect.map(
        subscriptions.lease(options),
        (lease): SubscriptionStore.Lease => ({
          ...lease,
          attempts: Option.fromNullable(counted.get(options.key.name)),
          recordAttempt: (attempts) => Effect.sync(() => void counted.set(options.key.name, attempts)),
          recordFailure: (failure) =>
            Effect.tap(lease.recordFailure(failure), () => {
              if (failure === undefined) counted.delete(options.key.name)
              else counted.set(options.key.name, { position: failure.position, attempts: failure.attempts })
            })
        })
      )
  }
})

/** An event is no longer parked, though its effect has failed. */
export const forgetsAnEventWhoseEffectFails: Breaking = withSubscriptions((subscriptions) => ({
  ...subscriptions,
  retryParked: <E, R>(
    name: string,
    place: EventFeed.StreamPosition,
    effect: (event: EventFeed.FeedEvent) => Effect.Effect<void, E, R>
  ): Effect.Effect<boolean, E | StoreError.StoreError, R> =>
    Effect.suspend(() => {
      let taken: EventFeed.FeedEvent | undefined
      const noting = (event: EventFeed.FeedEvent) =>
        Effect.sync(() => {
          taken = event
        })
      return Effect.flatMap(subscriptions.retryParked(name, place, noting), (found) =>
        taken === undefined ? Effect.succeed(found) : Effect.as(effect(taken), found)
      )
    })
}))

/** Discarding an event that is not parked returns true. */
export const discardsWhatIsNotThere: Breaking = withSubscriptions((subscriptions) => ({
  ...subscriptions,
  discardParked: (name, place) => Effect.as(subscriptions.discardParked(name, place), true)
}))

export const blocksAllAggregates: Breaking = withLease((lease) => ({
  ...lease,
  parkedAggregates: (aggregateIds) =>
    Effect.map(lease.parkedAggregates(aggregateIds), (blocked) => (blocked.size > 0 ? new Set(aggregateIds) : blocked))
}))

/** One partition at the position is taken for all. */
export const reachesByOnePartition: Breaking = withSubscriptions((subscriptions) => ({
  ...subscriptions,
  awaitPosition: (name, position, aggregateId) => {
    if (aggregateId !== undefined) return subscriptions.awaitPosition(name, position, aggregateId)
    const wait: Effect.Effect<void, StoreError.StoreError> = Effect.flatMap(
      subscriptions.partitions(name),
      (partitions) =>
        partitions.some((one) => EventFeed.order(one.position, position) >= 0)
          ? Effect.void
          : Effect.zipRight(macrotask, wait)
    )
    return wait
  }
}))

/** The wait for an aggregate includes all partitions. */
export const waitsForAllPartitions: Breaking = withSubscriptions((subscriptions) => ({
  ...subscriptions,
  awaitPosition: (name, position) => subscriptions.awaitPosition(name, position)
}))

// --- internal ---

const orBeginning = (position: EventFeed.Position): EventFeed.Position =>
  EventFeed.isPosition(position) ? position : EventFeed.beginning

const macrotask = Effect.async<void>((resume) => {
  const immediate = setImmediate(() => resume(Effect.void))
  return Effect.sync(() => clearImmediate(immediate))
})

function withSubscriptions(breaking: (subscriptions: Ports["subscriptions"]) => Ports["subscriptions"]): Breaking {
  return (ports) => ({ ...ports, subscriptions: breaking(ports.subscriptions) })
}

function withLease(breaking: (lease: SubscriptionStore.Lease) => SubscriptionStore.Lease): Breaking {
  return withSubscriptions((subscriptions) => ({
    ...subscriptions,
    lease: (options) => Effect.map(subscriptions.lease(options), breaking)
  }))
}
