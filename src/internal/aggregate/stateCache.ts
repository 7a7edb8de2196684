/**
 * The state cache: for each aggregate in use its lock, its cached state, and its open command batch.
 *
 * `commandHandler.ts` takes entries with their locks. `service.ts` reads and puts cached states. Entries are removed in
 * three ways:
 *
 * - When an entry is released and there are more than `capacity`, the one that was not used for the longest time goes.
 * - A timer removes entries that were not used for `idleTimeToLive`.
 * - When the layer closes, all of them go, those in use when they are released.
 *
 * An entry that is locked, or has a batch, is never removed: it would get a second lock.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { FairLock } from "./fairLock.js"
import type { CommandBatch } from "./groupCommit.js"
import type { VersionedState } from "./loadState.js"
import { addNewest, type Linked, makeUseOrder, remove } from "./useOrder.js"

/** The options of a cache, with their defaults. */
export interface CacheLimits {
  readonly capacity: number
  readonly idleTimeToLive: Duration.Duration
}

/** The entry of one aggregate. It is the aggregate's lock. */
export interface AggregateEntry<State, E> extends FairLock, Linked<AggregateEntry<State, E>> {
  readonly id: string
  /** The newest state that is known to be stored. For a fresh id it is the initial state. */
  cached: VersionedState<State> | undefined
  /** Whether the store may have events after the cached state, so that it must be refreshed first. */
  isStale: boolean
  lastUsedAt: number
  /** The batch of the commands that held the lock before, until its commit has ended. */
  batch: CommandBatch<VersionedState<State>, E> | undefined
}

export interface StateCache<State, E> {
  /** Whether the aggregate has an entry. Only valid ids have one. */
  readonly has: (id: string) => boolean
  /** The entry of the aggregate, made if there is none. The caller must lock it or release it. */
  readonly entry: (id: string, now: number) => AggregateEntry<State, E>
  /** The cached state, if there is one. */
  readonly peek: (id: string, now: number) => VersionedState<State> | undefined
  /** Caches a state that was read without the lock, unless a newer one than `previous` is cached meanwhile. */
  readonly put: (root: VersionedState<State>, previous: VersionedState<State> | undefined, now: number) => void
  /** Drops the cached state of an aggregate that is not in use. */
  readonly forget: (id: string) => void
  /** Ends a use of the entry. */
  readonly release: (entry: AggregateEntry<State, E>) => void
}

/** How many states a cache has, and for how long. */
export interface CacheOptions {
  /** The number of cached states; the longest unused is discarded first. With 0 a state is cached only while commands wait. 10 000 by default. */
  readonly capacity?: number | undefined
  /** How long an unused state stays in the cache; 10 minutes by default. */
  readonly idleTimeToLive?: Duration.DurationInput | undefined
}

/** The limits of an aggregate's cache. A capacity that is no whole number is a mistake in the program, and throws. */
export const cacheLimits = (name: string, options: CacheOptions | undefined): CacheLimits => {
  const capacity = options?.capacity ?? 10_000
  if (!(Number.isInteger(capacity) && capacity >= 0)) {
    throw new TypeError(`cache.capacity of ${name} must be a whole number from 0 on, and is ${capacity}`)
  }
  return { capacity, idleTimeToLive: Duration.decode(options?.idleTimeToLive ?? "10 minutes") }
}

/**
 * Makes a cache. `firstState` returns the state of an aggregate that no other process can have written to, because its
 * id is fresh.
 */
export const makeStateCache = <State, E>(
  { capacity, idleTimeToLive }: CacheLimits,
  firstState: (id: string) => VersionedState<State> | undefined,
  currentTimeMillis: Effect.Effect<number>
): Effect.Effect<StateCache<State, E>, never, Scope.Scope> => {
  const entries = new Map<string, AggregateEntry<State, E>>()
  // The entries that are not in use.
  const order = makeUseOrder<AggregateEntry<State, E>>()
  const maxIdle = Duration.toMillis(idleTimeToLive)

  let isClosed = false
  const discard = (unused: AggregateEntry<State, E>): void => {
    entries.delete(unused.id)
    remove(order, unused)
  }

  const entry = (id: string, now: number): AggregateEntry<State, E> => {
    const known = entries.get(id)
    if (known === undefined) {
      // Without a cache a fresh id is not trusted either.
      const made = makeEntry<State, E>(id, capacity === 0 ? undefined : firstState(id), now)
      entries.set(id, made)
      return made
    }
    remove(order, known)
    if (now - known.lastUsedAt > maxIdle && !isInUse(known)) known.cached = undefined
    known.lastUsedAt = now
    return known
  }

  const release = (used: AggregateEntry<State, E>): void => {
    if (isInUse(used)) return
    if (used.cached === undefined || capacity === 0 || isClosed) return discard(used)
    addNewest(order, used)
    while (entries.size > capacity && order.oldest !== undefined) discard(order.oldest)
  }

  const removeIdle = Effect.map(currentTimeMillis, (now) => {
    for (const each of entries.values()) {
      if (now - each.lastUsedAt > maxIdle && !isInUse(each)) discard(each)
    }
  })

  const removing = Effect.forkScoped(
    Effect.interruptible(Effect.forever(Effect.zipRight(unrefSleep(maxIdle / 2), removeIdle)))
  )
  // A program that still holds the service of a closed layer must not hold its states.
  const clearing = Effect.addFinalizer(() =>
    Effect.sync(() => {
      isClosed = true
      for (const each of entries.values()) if (!isInUse(each)) discard(each)
    })
  )
  return Effect.as(Effect.zipRight(removing, clearing), {
    has: (id) => entries.has(id),
    entry,
    release,
    forget: (id) => {
      const known = entries.get(id)
      if (known !== undefined && !isInUse(known)) discard(known)
    },
    peek: (id, now) => {
      const known = entries.get(id)
      return known === undefined || now - known.lastUsedAt > maxIdle ? undefined : known.cached
    },
    put: (root, previous, now) => {
      const known = entry(root.id, now)
      if (known.cached === previous || known.cached === undefined || known.cached.sequence < root.sequence) {
        cacheState(known, root)
      }
      release(known)
    }
  })
}

/**
 * A cache of one entry that no other fiber uses, for a command that must not take the aggregate's lock or its cached
 * state. The entry lives as long as the command, with the state from its first attempt on.
 */
export const makeDetachedCache = <State, E>(): StateCache<State, E> => {
  let only: AggregateEntry<State, E> | undefined
  return {
    has: () => false,
    entry: (id, now) => {
      only ??= makeEntry(id, undefined, now)
      return only
    },
    release: () => {},
    forget: () => {},
    peek: () => undefined,
    put: () => {}
  }
}

/** Caches a state that is stored. */
export const cacheState = <State, E>(entry: AggregateEntry<State, E>, root: VersionedState<State>): void => {
  entry.cached = root
  entry.isStale = false
}

/** Makes the next command refresh the cached state: after a failed commit the stored state is unknown. */
export const markStale = <State, E>(entry: AggregateEntry<State, E>): void => {
  entry.isStale = true
}

// --- internal ---

const makeEntry = <State, E>(
  id: string,
  cached: VersionedState<State> | undefined,
  now: number
): AggregateEntry<State, E> => ({
  id,
  cached,
  isStale: false,
  lastUsedAt: now,
  isLocked: false,
  requests: undefined,
  older: undefined,
  newer: undefined,
  batch: undefined
})

const isInUse = (entry: { readonly isLocked: boolean; readonly batch: unknown }): boolean =>
  entry.isLocked || entry.batch !== undefined

/**
 * Sleeps by a timer that keeps no process alive. It takes the machine's time because it only frees memory: an entry
 * that is too old by the program's own clock is not used in any case.
 */
const unrefSleep = (millis: number): Effect.Effect<void> =>
  Effect.async((resume) => {
    const timer = setTimeout(() => resume(Effect.void), Math.min(Math.max(millis, 1000), 3_600_000))
    // A timer of a browser is a number.
    timer.unref?.()
    return Effect.sync(() => clearTimeout(timer))
  })
