/**
 * The command handler: from a command to stored events. `service.ts` calls it; `idempotentCommand.ts` uses its lock, its loop and its steps.
 *
 * Each attempt has five steps, and `retrying` repeats them:
 *
 * 1. Lock: the aggregate's lock is acquired, so the process decides the commands on an aggregate one at a time, in order of arrival.
 * 2. Load: the state after the open batch, or the cached state, or the state of the store.
 * 3. Decide: the handler returns events or refuses the command. A refusal on a cached state is checked against the store.
 * 4. Record and commit: the events are encoded, numbered and stamped, and committed alone or with the batch.
 * 5. Answer: the result is returned after the commit, also that of a refused command that was decided on events of the batch.
 *
 * While other commands wait for the lock, the holder opens a batch and hands the lock over before the commit. The next command is decided on
 * the state after the batch, and committed with it. So twenty commands on one aggregate need two commits instead of twenty.
 * Events that a projection handles are never in a batch with those of another command, because a projection runs in its own caller's fiber.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type { Evaluated } from "../../Aggregate.js"
import { RetryCommand, type StoreError, type ValidationError } from "../../StoreError.js"
import type { Tagged } from "../codec/eventCodec.js"
import { isTransient } from "../runtime/retry.js"
import { called, flatMapSync, isSettled } from "../runtime/syncEffect.js"
import {
  type BatchOf,
  closeBatch,
  type EntryOf,
  flushBatch,
  handOverBatch,
  lockAggregate,
  releaseLock,
  unsafeReleaseLock
} from "./aggregateLock.js"
import { type CallContext, type CommandContext, type CommandFailure, evaluated } from "./commandContext.js"
import { retryableRead, retrying, type TransientReadError } from "./commandRetry.js"
import type { Restore } from "./fairLock.js"
import * as Batch from "./groupCommit.js"
import { load, refresh, type VersionedState } from "./loadState.js"
import { type RecordedEvents, recordEvents } from "./recordEvents.js"
import { cacheState, markStale } from "./stateCache.js"
import { isSnapshotDue, snapshotWhenDue } from "./takeSnapshot.js"

/** Evaluates a command, and repeats that by the `retry` schedule after a lost race or a transient failure of a read. */
export const evaluate = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  call: CallContext,
  streamId: string,
  command: C
): Effect.Effect<Evaluated<State, A>, CommandFailure<E>> => {
  let mayJoinBatch = true
  const attempt = (): Effect.Effect<Evaluated<State, A>, CommandFailure<E> | TransientReadError> =>
    Effect.catchAll(attemptOnce(context, call, streamId, command, mayJoinBatch), (error) => {
      if (!(error instanceof Batch.RetryOutsideBatch)) return Effect.fail(error)
      mayJoinBatch = false
      return attempt()
    })
  return retrying(context.retry, attempt)
}

/** Step 2, from the store: loads the state, or refreshes the cached one. */
export const loadEntry = <State, A extends Tagged, C, E>(
  { definition, isInTransaction, store }: CommandContext<State, A, C, E>,
  entry: EntryOf<State, E>
): Effect.Effect<VersionedState<State>, StoreError | ValidationError | TransientReadError> => {
  const { cached } = entry
  const read = cached === undefined ? load(definition, store, entry.streamId) : refresh(definition, store, cached)
  return Effect.map(isInTransaction ? read : retryableRead(read), (root) => {
    cacheState(entry, root)
    return root
  })
}

// --- internal ---

/** The result of steps 2 and 3, and the batch whose events lead to the state that was decided on. */
interface Decision<State, A, E> {
  readonly batch: BatchOf<State, E> | undefined
  readonly exit: Exit.Exit<RecordedEvents<State> & { readonly decided: ReadonlyArray<A> }, CommandFailure<E>>
}

/** One attempt. It is interruptible where it waits for the lock, the handler, a batch or the store. */
const attemptOnce = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  call: CallContext,
  streamId: string,
  command: C,
  mayJoinBatch: boolean
): Effect.Effect<Evaluated<State, A>, CommandFailure<E> | TransientReadError | Batch.RetryOutsideBatch> =>
  lockAggregate(context, call, streamId, (entry, restore) => {
    const proceed = (
      decided: Exit.Exit<Decision<State, A, E>, CommandFailure<E> | TransientReadError>
    ): Effect.Effect<Evaluated<State, A>, CommandFailure<E> | TransientReadError | Batch.RetryOutsideBatch> =>
      Exit.isSuccess(decided)
        ? conclude(context, entry, decided.value, mayJoinBatch, restore)
        : Effect.zipRight(releaseLock(context, entry), Effect.failCause(decided.cause))
    const deciding = called(() => decideOnNewest(context, call, entry, command, mayJoinBatch))
    return isSettled(deciding) ? proceed(deciding) : Effect.flatMap(Effect.exit(restore(deciding)), proceed)
  })

/** Steps 2 and 3. It is one synchronous step if the state is cached and the handler waits for nothing. */
const decideOnNewest = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  call: CallContext,
  entry: EntryOf<State, E>,
  command: C,
  mayJoinBatch: boolean
): Effect.Effect<Decision<State, A, E>, CommandFailure<E> | TransientReadError> => {
  const again = Effect.suspend(() => decideOnNewest(context, call, entry, command, mayJoinBatch))
  const { batch, cached } = entry
  if (batch !== undefined) {
    return mayJoinBatch
      ? decideOn(context, call, batch.root, batch, command)
      : Effect.zipRight(flushBatch(context, entry), again)
  }
  if (cached === undefined || entry.isStale) {
    return Effect.flatMap(loadEntry(context, entry), (root) => decideOn(context, call, root, undefined, command))
  }
  return flatMapSync(decideOn(context, call, cached, undefined, command), (decision) =>
    // The store refuses events on an outdated state, but it does not see a refusal.
    storesNothing(decision.exit)
      ? Effect.flatMap(loadEntry(context, entry), (root) => (root === cached ? Exit.succeed(decision) : again))
      : Exit.succeed(decision)
  )
}

const decideOn = <State, A extends Tagged, C, E>(
  { clock, decide, definition }: CommandContext<State, A, C, E>,
  call: CallContext,
  root: VersionedState<State>,
  batch: BatchOf<State, E> | undefined,
  command: C
): Effect.Effect<Decision<State, A, E>> => {
  const recorded = called(() =>
    flatMapSync(decide(command, root), (decided) =>
      decided.length === 0
        ? Exit.succeed({ decided, root, events: [] })
        : Exit.map(recordEvents(definition, clock, call, root, decided), ({ events, root }) => ({
            decided,
            events,
            root
          }))
    )
  )
  return isSettled(recorded)
    ? Exit.succeed({ batch, exit: recorded })
    : Effect.map(Effect.exit(recorded), (exit) => ({ batch, exit }))
}

/** Whether the command is refused, or decided on no event. */
const storesNothing = (exit: Exit.Exit<{ readonly events: ReadonlyArray<unknown> }, unknown>): boolean =>
  Exit.isSuccess(exit) ? exit.value.events.length === 0 : !Cause.isInterrupted(exit.cause)

/** Steps 4 and 5. */
const conclude = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  entry: EntryOf<State, E>,
  { batch, exit }: Decision<State, A, E>,
  mayJoinBatch: boolean,
  restore: Restore
): Effect.Effect<Evaluated<State, A>, CommandFailure<E> | Batch.RetryOutsideBatch> => {
  const answer = Exit.map(exit, ({ decided, root }) => evaluated(root, decided, false))
  if (Exit.isFailure(exit) || exit.value.events.length === 0) {
    return batch === undefined || !storesNothing(exit)
      ? Effect.zipRight(releaseLock(context, entry), answer)
      : Effect.zipRight(waitWithBatch(context, entry, batch, restore), answer)
  }
  const { events, root } = exit.value
  const isProjected = context.isProjected?.(events) === true
  if (batch === undefined) {
    return isProjected || !mayJoinBatch || entry.requests.size === 0
      ? commitAlone(context, entry, exit.value, answer, restore)
      : Effect.zipRight(commitWithBatch(context, entry, Batch.openBatch(root), exit.value, restore), answer)
  }
  if (Batch.isOpen(batch) && !isProjected) {
    return Effect.zipRight(commitWithBatch(context, entry, batch, exit.value, restore), answer)
  }
  return Effect.flatMap(Effect.exit(waitForBasis(context, entry, batch, restore)), (stored) =>
    Exit.isFailure(stored)
      ? Effect.zipRight(releaseLock(context, entry), Effect.failCause(stored.cause))
      : conclude(context, entry, { batch: undefined, exit }, mayJoinBatch, restore)
  )
}

/** Commits the events in the caller's fiber, with the lock. */
const commitAlone = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  entry: EntryOf<State, E>,
  { events, root }: RecordedEvents<State>,
  answer: Exit.Exit<Evaluated<State, A>, CommandFailure<E>>,
  restore: Restore
): Effect.Effect<Evaluated<State, A>, CommandFailure<E>> => {
  const { commit, definition, store } = context
  return Effect.matchCauseEffect(restore(commit(events)), {
    onFailure: (cause) => {
      markStale(entry)
      unsafeReleaseLock(context, entry)
      return Effect.failCause(cause)
    },
    onSuccess: () => {
      cacheState(entry, root)
      unsafeReleaseLock(context, entry)
      return isSnapshotDue(definition, root, events.length)
        ? Effect.zipRight(restore(snapshotWhenDue(definition, store, root, events.length)), answer)
        : answer
    }
  })
}

/** Adds the events to an open batch, hands the lock over, and waits for the commit of the batch. */
const commitWithBatch = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  entry: EntryOf<State, E>,
  batch: BatchOf<State, E>,
  { events, root }: RecordedEvents<State>,
  restore: Restore
): Effect.Effect<void, CommandFailure<E> | Batch.RetryOutsideBatch> => {
  Batch.joinBatch(batch, events, root)
  return Effect.zipRight(handOverBatch(context, entry, batch), Batch.awaitBatch(batch, failsWholeBatch, restore))
}

/** A command that stores nothing was decided on events of the batch: it hands the lock over, and waits until they are stored. */
const waitWithBatch = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  entry: EntryOf<State, E>,
  batch: BatchOf<State, E>,
  restore: Restore
): Effect.Effect<void, CommandFailure<E> | Batch.RetryOutsideBatch> => {
  Batch.joinWithoutEvents(batch)
  return Effect.zipRight(
    Batch.isOpen(batch) ? handOverBatch(context, entry, batch) : releaseLock(context, entry),
    Batch.awaitBatch(batch, failsWholeBatch, restore)
  )
}

/** The events can't join the batch that they were decided on. The command keeps the lock, and waits until the batch is stored. */
const waitForBasis = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  entry: EntryOf<State, E>,
  batch: BatchOf<State, E>,
  restore: Restore
): Effect.Effect<void, CommandFailure<E> | Batch.RetryOutsideBatch> => {
  Batch.joinWithoutEvents(batch)
  closeBatch(context, entry, batch)
  return Batch.awaitBatch(batch, failsWholeBatch, restore)
}

/** Whether the failure of a batch is that of each of its commands: a lost race, or a store that can't be reached. */
const failsWholeBatch = (cause: Cause.Cause<unknown>): boolean =>
  Option.exists(Cause.failureOption(cause), (error) => error instanceof RetryCommand || isTransient(error))
