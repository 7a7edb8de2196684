/**
 * A lock that is granted in the order of its requests.
 *
 * `stateCache.ts` has one for each aggregate, so that a process decides the commands on an aggregate one at a time.
 * `aggregateLock.ts` takes and releases it.
 *
 * - A request is granted once. If it is interrupted when it is granted already, `withLock` releases the lock.
 * - The lock stays locked while it goes from one holder to the next, so no other request can come between them.
 *
 * `Effect.makeSemaphore(1)` is not enough: a holder that leaves an open batch behind must know whether another request
 * follows.
 */
import * as Effect from "effect/Effect"

/** The state of a lock. */
export interface FairLock {
  isLocked: boolean
  /** The requests that wait, the oldest first. Most locks never have one, so the first request makes the set. */
  requests: Set<LockRequest> | undefined
}

/** A request that waits for the lock. */
export interface LockRequest {
  isGranted: boolean
  resume: () => void
}

/** What `Effect.uninterruptibleMask` provides: makes a part of its effect interruptible. */
export type Restore = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/**
 * Runs `work` with the lock that `find` returns. `work` must release the lock itself, because it may have to wait for a
 * commit afterwards. It is uninterruptible except for what it restores, so that no interruption comes between the grant
 * and the release.
 *
 * `find` runs in the same synchronous step that takes the lock, so a cache can't discard the lock between the two.
 */
export const withLock = <Lock extends FairLock, A, E>(
  find: () => Lock,
  release: (lock: Lock) => Effect.Effect<void>,
  work: (lock: Lock, restore: Restore) => Effect.Effect<A, E>
): Effect.Effect<A, E> =>
  Effect.uninterruptibleMask((restore: Restore) => {
    const lock = find()
    if (!lock.isLocked) {
      lock.isLocked = true
      return work(lock, restore)
    }
    const request: LockRequest = { isGranted: false, resume: () => {} }
    return Effect.matchCauseEffect(restore(awaitGrant(lock, request)), {
      onSuccess: () => work(lock, restore),
      // The grant and an interruption can coincide: then this request holds the lock.
      onFailure: (cause) => Effect.zipRight(request.isGranted ? release(lock) : Effect.void, Effect.failCause(cause))
    })
  })

/** Grants a held lock to the oldest request. Returns `false` if there is none: then the caller still holds the lock. */
export const grantNext = ({ requests }: FairLock): boolean => {
  if (requests === undefined) return false
  for (const next of requests) {
    requests.delete(next)
    next.isGranted = true
    next.resume()
    return true
  }
  return false
}

/** Whether a request waits for the lock. */
export const isAwaited = ({ requests }: FairLock): boolean => requests !== undefined && requests.size > 0

/** Frees a lock that `grantNext` found no request for. */
export const unlock = (lock: FairLock): void => {
  lock.isLocked = false
  lock.requests = undefined
}

// --- internal ---

const awaitGrant = (lock: FairLock, request: LockRequest): Effect.Effect<void> =>
  Effect.async((resume) => {
    request.resume = () => resume(Effect.void)
    const requests = lock.requests ?? new Set()
    lock.requests = requests
    requests.add(request)
    return Effect.sync(() => {
      requests.delete(request)
    })
  })
