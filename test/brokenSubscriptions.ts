/** Stores of subscriptions with one fault each. The contract must fail for each of them. */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
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

/** A node that has left is still listed. */
export const keepsNodesThatHaveLeft: Breaking = withSubscriptions((subscriptions) => ({
  ...subscriptions,
  join: (options) => Effect.flatMap(Scope.make(), (never) => Scope.extend(subscriptions.join(options), never))
}))

/** An interrupted node joins nevertheless, and never leaves. */
export const joinsThoughInterrupted: Breaking = withSubscriptions((subscriptions) => ({
  ...subscriptions,
  join: (options) =>
    Effect.onInterrupt(
      Effect.zipRight(Effect.yieldNow(), Effect.zipRight(Effect.yieldNow(), subscriptions.join(options))),
      () => Effect.flatMap(Scope.make(), (never) => Effect.ignore(Scope.extend(subscriptions.join(options), never)))
    )
}))

/** A node joins with the number of partitions that the store has. */
export const forgetsWhatANodeWants: Breaking = withSubscriptions((subscriptions) => ({
  ...subscriptions,
  join: (options) =>
    Effect.flatMap(subscriptions.partitions(options.name), ({ length }) =>
      subscriptions.join({ ...options, partitions: length === 0 ? options.partitions : length })
    )
}))

/** A partition is listed after its first lease. */
export const makesOnePartitionAtATime: Breaking = withSubscriptions((subscriptions) => {
  const leased = new Set<string>()
  const idOf = ({ name, partition }: Pick<SubscriptionStore.Key, "name" | "partition">) =>
    JSON.stringify([name, partition])
  return {
    ...subscriptions,
    lease: (options) =>
      Effect.tap(subscriptions.lease(options), () => {
        leased.add(idOf(options.key))
      }),
    partitions: (name) =>
      Effect.map(subscriptions.partitions(name), (states) => states.filter((state) => leased.has(idOf(state))))
  }
})

/** The new partitions have handled nothing yet. */
export const repartitionsFromTheBeginning: Breaking = withRepartition((subscriptions, name) =>
  Effect.gen(function* () {
    for (const key of yield* subscriptions.partitions(name)) {
      const lease = subscriptions.lease({ key, from: EventFeed.beginning, holder: "broken", duration: 1000 })
      yield* Effect.scoped(Effect.flatMap(lease, ({ advanceTo }) => advanceTo(EventFeed.beginning)))
    }
  })
)

export const losesParkedEventsByRepartition: Breaking = withRepartition((subscriptions, name) =>
  Effect.gen(function* () {
    for (const event of yield* subscriptions.parked(name)) yield* subscriptions.discardParked(name, event)
  })
)

/** A parked event is listed in the partition in which it was parked. */
export const leavesParkedEventsInTheirPartition: Breaking = withSubscriptions((subscriptions) => {
  const partitions = new Map<string, number>()
  return {
    ...subscriptions,
    parked: (name) =>
      Effect.map(subscriptions.parked(name), (events) =>
        events.map((event) => ({ ...event, partition: partitions.get(event.aggregateId) ?? event.partition }))
      ),
    lease: (options) =>
      Effect.map(
        subscriptions.lease(options),
        (lease): SubscriptionStore.Lease => ({
          ...lease,
          park: (failure) =>
            Effect.tap(lease.park(failure), () => {
              partitions.set(failure.aggregateId, options.key.partition)
            })
        })
      )
  }
})

/** Partitions at different positions are brought to the furthest one, so events are left out. */
export const repartitionsWhateverTheState: Breaking = withMembership((membership, { name }, subscriptions) => ({
  ...membership,
  repartition: (from) =>
    Effect.gen(function* () {
      const states = yield* subscriptions.partitions(name)
      const [first, ...others] = states.map(({ position }) => position)
      if (first === undefined || states.some(({ holder }) => Option.isSome(holder))) return false
      const last = others.reduce((one, other) => (EventFeed.order(other, one) > 0 ? other : one), first)
      yield* subscriptions.resume(name)
      for (const key of states) {
        const lease = subscriptions.lease({ key, from: last, holder: "broken", duration: 1000 })
        yield* Effect.ignore(Effect.scoped(Effect.flatMap(lease, ({ advanceTo }) => advanceTo(last))))
      }
      return yield* membership.repartition(from)
    })
}))

/** A node that finds the partitions replaced says that it has replaced them. */
export const claimsWhatAnotherNodeDid: Breaking = withMembership((membership, wanted) => ({
  ...membership,
  repartition: (from) =>
    Effect.zipRight(
      membership.repartition(from),
      Effect.map(membership.look([]), ({ partitions }) => partitions === wanted.partitions)
    )
}))

export const keepsAssignmentsOfOldPartitions: Breaking = withMembership((membership) => {
  let before: SubscriptionStore.Shares["assigned"] = []
  return {
    ...membership,
    look: (declines) =>
      Effect.map(membership.look(declines), (shares) => {
        if (shares.assigned.length > 0) before = shares.assigned
        return { ...shares, assigned: before }
      })
  }
})

/** A wait for a lease of the earlier number gets a lease of the new one. */
export const waitsForWhateverNumber: Breaking = withSubscriptions((subscriptions) => ({
  ...subscriptions,
  lease: (options) => {
    const again = (partitions: number): ReturnType<typeof subscriptions.lease> =>
      Effect.catchTag(
        subscriptions.lease({ ...options, key: { ...options.key, partitions } }),
        "PartitionsChanged",
        ({ stored }) => again(stored)
      )
    return again(options.key.partitions)
  }
}))

export const forgetsWhatANodeDeclines: Breaking = withMembership((membership) => ({
  ...membership,
  look: () => membership.look([])
}))

/** An assignment is made whatever another node has assigned meanwhile. */
export const assignsBlindly: Breaking = withMembership((membership) => ({
  ...membership,
  assign: (changes) =>
    Effect.flatMap(membership.look([]), ({ assigned }) =>
      membership.assign(
        changes.map((change) => ({
          ...change,
          from: assigned.find(({ partition }) => partition === change.partition)?.node
        }))
      )
    )
}))

/** Assignments are in the memory of the node. */
export const assignsForItselfOnly: Breaking = withMembership((membership) => {
  const own = new Map<number, string>()
  return {
    ...membership,
    look: (declines) =>
      Effect.map(membership.look(declines), (shares) => ({
        ...shares,
        assigned: [...own].map(([partition, node]) => ({ partition, node }))
      })),
    assign: (changes) =>
      Effect.sync(() => {
        for (const { from, partition, to } of changes) if (own.get(partition) === from) own.set(partition, to)
      })
  }
})

/** A node never looks again. */
export const looksOnlyOnce: Breaking = withMembership((membership) => ({ ...membership, due: Effect.never }))

export const forgetsSinceWhen: Breaking = withSubscriptions((subscriptions) => ({
  ...subscriptions,
  partitions: (name) =>
    Effect.map(subscriptions.partitions(name), (states) =>
      states.map((state) => ({ ...state, heldSince: Option.none() }))
    )
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

/** Runs an effect on the new partitions after each change of their number. */
function withRepartition(
  afterwards: (
    subscriptions: Ports["subscriptions"],
    name: string
  ) => Effect.Effect<
    void,
    | StoreError.StoreError
    | StoreError.ValidationError
    | SubscriptionStore.LeaseLost
    | SubscriptionStore.PartitionsChanged
  >
): Breaking {
  return withMembership((membership, { name }, subscriptions) => ({
    ...membership,
    repartition: (from) =>
      Effect.tap(membership.repartition(from), (done) =>
        done ? Effect.orDie(afterwards(subscriptions, name)) : Effect.void
      )
  }))
}

function withMembership(
  breaking: (
    membership: SubscriptionStore.Membership,
    options: SubscriptionStore.JoinOptions,
    subscriptions: Ports["subscriptions"]
  ) => SubscriptionStore.Membership
): Breaking {
  return withSubscriptions((subscriptions) => ({
    ...subscriptions,
    join: (options) =>
      Effect.map(subscriptions.join(options), (membership) => breaking(membership, options, subscriptions))
  }))
}
