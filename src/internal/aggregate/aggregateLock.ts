/**
 * The aggregate lock: a process decides the commands on an aggregate one at a time, in order of arrival.
 *
 * `commandHandler.ts` and `idempotentCommand.ts` take the lock by `withLock` of `fairLock.ts`, and release it here. This
 * module joins the fair lock of an aggregate's entry to the command
 * batch that a holder leaves open for the next. The lock is released in one of three ways:
 *
 * - Another request waits: it gets the lock, and may join the open batch.
 * - No request waits, and a batch is open: the batch is committed, and the lock is released one macrotask after its
 *   commit. By then the callers have their results, and their next commands can join the next batch instead of missing
 *   it.
 * - No request waits, and no batch is open: the lock is free, and the state cache may discard the entry.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { Tagged } from "../codec/eventCodec.js"
import { macrotask } from "../runtime/macrotask.js"
import type { CommandContext, CommandFailure } from "./commandContext.js"
import { grantNext, unlock } from "./fairLock.js"
import * as Batch from "./groupCommit.js"
import type { VersionedState } from "./loadState.js"
import { type AggregateEntry, cacheState, markStale } from "./stateCache.js"
import { snapshotWhenDue } from "./takeSnapshot.js"

/** The cache entry of an aggregate, as commands use it. */
export type EntryOf<State, E> = AggregateEntry<State, CommandFailure<E>>

/** The command batch of an aggregate. */
export type BatchOf<State, E> = Batch.CommandBatch<VersionedState<State>, CommandFailure<E>>

/** Releases the lock, as the head of this module says. */
export const releaseLock = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  entry: EntryOf<State, E>
): Effect.Effect<void> => Effect.sync(() => unsafeReleaseLock(context, entry))

/** The synchronous form of `releaseLock`. */
export const unsafeReleaseLock = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  entry: EntryOf<State, E>
): void => {
  if (grantNext(entry)) return
  const { batch } = entry
  if (batch !== undefined && Batch.isOpen(batch)) {
    commitBatch(context, entry, batch, true)
  } else {
    unlock(entry)
    context.stateCache.release(entry)
  }
}

/** Leaves an open batch to the next request, with the lock. If there is none, or the batch is full, it is committed. */
export const handOverBatch = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  entry: EntryOf<State, E>,
  batch: BatchOf<State, E>
): Effect.Effect<void> =>
  Effect.suspend(() => {
    if (Batch.isFull(batch) || !grantNext(entry)) {
      commitBatch(context, entry, batch, true)
      return Effect.void
    }
    if (entry.batch === batch) return Effect.void
    entry.batch = batch
    return Batch.closeAfterDelay(batch, () => commitBatch(context, entry, batch, false))
  })

/** Commits the open batch, if there is one, and waits for the end of its commit. The caller keeps the lock. */
export const flushBatch = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  entry: EntryOf<State, E>
): Effect.Effect<void> =>
  Effect.suspend(() => {
    const { batch } = entry
    if (batch === undefined) return Effect.void
    closeBatch(context, entry, batch)
    return Effect.asVoid(Deferred.await(batch.result))
  })

/** Begins the commit of a batch that is still open. The caller keeps the lock. */
export const closeBatch = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  entry: EntryOf<State, E>,
  batch: BatchOf<State, E>
): void => {
  if (Batch.isOpen(batch)) commitBatch(context, entry, batch, false)
}

// --- internal ---

/** Commits an open batch, and afterwards releases the lock if the batch holds it. */
const commitBatch = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  entry: EntryOf<State, E>,
  batch: BatchOf<State, E>,
  holdsLock: boolean
): void => {
  const { commit, definition, forkNeutral, stateCache, store } = context
  entry.batch = batch
  Batch.commitBatch(batch, {
    commit,
    fork: forkNeutral,
    onCommitted: (exit) => {
      entry.batch = undefined
      if (Exit.isSuccess(exit)) cacheState(entry, batch.root)
      else markStale(entry)
      return Effect.zipRight(
        holdsLock
          ? Effect.forkDaemon(Effect.zipRight(macrotask, releaseLock(context, entry)))
          : Effect.sync(() => stateCache.release(entry)),
        Exit.isSuccess(exit) && definition.snapshotEvery !== undefined
          ? snapshotWhenDue(definition, store, batch.root, ownEvents(batch))
          : Effect.void
      )
    }
  })
}

/** The number of events of the aggregate: a batch may have receipts, too. */
const ownEvents = <State, E>({ events, root }: BatchOf<State, E>): number =>
  events.reduce((count, { aggregateId }) => (aggregateId === root.streamId ? count + 1 : count), 0)
