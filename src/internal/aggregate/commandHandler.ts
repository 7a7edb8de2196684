/**
 * The command handler: from a command to stored events. `service.ts` calls it; `idempotentCommand.ts` uses its lock, its loop and its steps.
 *
 * Each attempt has five steps, and `retrying` repeats it:
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
import type { Evaluated } from "../../Aggregate.js"
import type { StoreError, ValidationError } from "../../StoreError.js"
import type { Tagged } from "../codec/eventCodec.js"
import { called, catchFailure, flatMapSync, isSettled } from "../runtime/syncEffect.js"
import {
  type BatchOf,
  closeBatch,
  type EntryOf,
  flushBatch,
  handOverBatch,
  releaseLock,
  unsafeReleaseLock
} from "./aggregateLock.js"
import type { CommandCall, CommandContext, CommandFailure } from "./commandContext.js"
import { failsWholeBatch, retryableRead, retrying, type TransientReadError } from "./commandRetry.js"
import { isAwaited, type Restore, withLock } from "./fairLock.js"
import * as Batch from "./groupCommit.js"
import { load, refresh, type VersionedState } from "./loadState.js"
import { type RecordedEvents, recordEvents } from "./recordEvents.js"
import { cacheState, markStale } from "./stateCache.js"
import { isSnapshotDue, snapshotWhenDue } from "./takeSnapshot.js"

/** Evaluates a command, and repeats that by the `retry` schedule after a lost race or a transient failure of a read. */
export const evaluate = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  call: CommandCall<C>
): Effect.Effect<Evaluated<State, A>, CommandFailure<E>> =>
  catchFailure(attempt(context, call), (error) => {
    const again = () => Effect.catchAll(attempt(context, call), outsideBatch)
    const outsideBatch = (error: AttemptFailure<E>): Effect.Effect<Evaluated<State, A>, RetriedFailure<E>> => {
      if (!(error instanceof Batch.RetryOutsideBatch)) return Effect.fail(error)
      call.mayJoinBatch = false
      return again()
    }
    return retrying(context.retry, outsideBatch(error), again)
  })

/** One attempt. It is interruptible where it waits for the lock, the handler, a batch or the store. */
export const attempt = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  call: CommandCall<C>
): Attempt<State, A, E> =>
  withLock(
    () => context.stateCache.entry(call.id, call.clock.unsafeCurrentTimeMillis()),
    (entry) => releaseLock(context, entry),
    (entry, restore) => {
      const onSuccess = (decision: Decision<State, A, E>): Attempt<State, A, E> =>
        conclude(context, call, entry, decision, restore)
      const deciding = called(() => decideOnNewest(context, call, entry))
      if (isSettled(deciding) && Exit.isSuccess(deciding)) return onSuccess(deciding.value)
      return Effect.matchCauseEffect(restore(deciding), {
        onSuccess,
        onFailure: (cause) => Effect.zipRight(releaseLock(context, entry), Effect.failCause(cause))
      })
    }
  )

/** Step 2, from the store: loads the state, or refreshes the cached one. */
export const loadEntry = <State, A extends Tagged, C, E>(
  { definition, isInTransaction, store }: CommandContext<State, A, C, E>,
  entry: EntryOf<State, E>
): Effect.Effect<VersionedState<State>, StoreError | ValidationError | TransientReadError> => {
  const { cached } = entry
  const read = cached === undefined ? load(definition, store, entry.id) : refresh(definition, store, cached)
  return Effect.map(isInTransaction ? read : retryableRead(read), (root) => {
    cacheState(entry, root)
    return root
  })
}

/** Step 5: the result of a command. */
export const answerOf = <State, A>(
  { decided, root: { sequence, state, streamId } }: Pick<RecordedEvents<State, A>, "decided" | "root">,
  duplicate = false
): Evaluated<State, A> => ({
  state,
  sequence,
  events: decided,
  position: { aggregateId: streamId, sequence },
  duplicate
})

// --- internal ---

type RetriedFailure<E> = CommandFailure<E> | TransientReadError

type AttemptFailure<E> = RetriedFailure<E> | Batch.RetryOutsideBatch

type Attempt<State, A, E> = Effect.Effect<Evaluated<State, A>, AttemptFailure<E>>

/** The result of steps 2 and 3, and the batch whose events lead to the state that was decided on. */
interface Decision<State, A, E> {
  readonly batch: BatchOf<State, E> | undefined
  readonly exit: Exit.Exit<RecordedEvents<State, A>, CommandFailure<E>>
}

/** Steps 2 and 3. It is one synchronous step if the state is cached and the handler waits for nothing. */
const decideOnNewest = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  call: CommandCall<C>,
  entry: EntryOf<State, E>
): Effect.Effect<Decision<State, A, E>, RetriedFailure<E>> => {
  const { batch, cached } = entry
  const again = () => decideOnNewest(context, call, entry)
  if (batch !== undefined && call.mayJoinBatch) return decideOn(context, call, batch.root, batch)
  if (batch !== undefined) return Effect.flatMap(flushBatch(context, entry), again)
  if (cached === undefined || entry.isStale) {
    return Effect.flatMap(loadEntry(context, entry), (root) => decideOn(context, call, root, undefined))
  }
  return flatMapSync(decideOn(context, call, cached, undefined), (decision) =>
    // The store refuses events on an outdated state, but it does not see a refusal.
    storesNothing(decision.exit)
      ? Effect.flatMap(loadEntry(context, entry), (root) => (root === cached ? Exit.succeed(decision) : again()))
      : Exit.succeed(decision)
  )
}

const decideOn = <State, A extends Tagged, C, E>(
  { clock, decide, definition }: CommandContext<State, A, C, E>,
  call: CommandCall<C>,
  root: VersionedState<State>,
  batch: BatchOf<State, E> | undefined
): Effect.Effect<Decision<State, A, E>> => {
  const recorded = called(() =>
    flatMapSync(decide(call, root), (decided) => {
      const recorded = recordEvents(definition, clock, call, root, decided)
      return call.receiptOf === undefined ? recorded : Exit.map(recorded, withReceipt(call.receiptOf))
    })
  )
  return isSettled(recorded)
    ? Exit.succeed({ batch, exit: recorded })
    : Effect.map(Effect.exit(recorded), (exit) => ({ batch, exit }))
}

/** Adds the receipt. A decision of no events has none, because it is checked against the store, as a refusal is. */
const withReceipt =
  (receiptOf: NonNullable<CommandCall<unknown>["receiptOf"]>) =>
  <State, A>(recorded: RecordedEvents<State, A>): RecordedEvents<State, A> =>
    recorded.events.length === 0
      ? recorded
      : { ...recorded, events: [...recorded.events, receiptOf(recorded.root, recorded.events)] }

/** Whether the command is refused, or decided on no event. */
const storesNothing = (exit: Exit.Exit<{ readonly events: ReadonlyArray<unknown> }, unknown>): boolean =>
  Exit.isSuccess(exit) ? exit.value.events.length === 0 : !Cause.isInterrupted(exit.cause)

/** Steps 4 and 5. */
const conclude = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  call: CommandCall<C>,
  entry: EntryOf<State, E>,
  { batch, exit }: Decision<State, A, E>,
  restore: Restore
): Effect.Effect<Evaluated<State, A>, CommandFailure<E> | Batch.RetryOutsideBatch> => {
  if (Exit.isFailure(exit) || exit.value.events.length === 0) {
    return Effect.zipRight(
      batch === undefined || !storesNothing(exit)
        ? releaseLock(context, entry)
        : waitWithBatch(context, entry, batch, restore),
      Exit.map(exit, (recorded) => answerOf(recorded))
    )
  }
  const recorded = exit.value
  const isProjected = context.isProjected?.(recorded.events) === true
  if (batch === undefined && (isProjected || !call.mayJoinBatch || !isAwaited(entry))) {
    return commitAlone(context, entry, recorded, restore)
  }
  if (batch === undefined || (Batch.isOpen(batch) && !isProjected)) {
    return commitWithBatch(context, entry, batch ?? Batch.openBatch(recorded.root), recorded, restore)
  }
  return Effect.flatMap(Effect.exit(waitForBasis(context, entry, batch, restore)), (stored) =>
    Exit.isFailure(stored)
      ? Effect.zipRight(releaseLock(context, entry), Effect.failCause(stored.cause))
      : conclude(context, call, entry, { batch: undefined, exit }, restore)
  )
}

/** Commits the events in the caller's fiber, with the lock. */
const commitAlone = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  entry: EntryOf<State, E>,
  recorded: RecordedEvents<State, A>,
  restore: Restore
): Effect.Effect<Evaluated<State, A>, CommandFailure<E>> => {
  const { commit, definition, store } = context
  const { decided, events, root } = recorded
  return Effect.matchCauseEffect(restore(commit(events)), {
    onFailure: (cause) => {
      markStale(entry)
      unsafeReleaseLock(context, entry)
      return Effect.failCause(cause)
    },
    onSuccess: () => {
      cacheState(entry, root)
      unsafeReleaseLock(context, entry)
      const answer = Exit.succeed(answerOf(recorded))
      return isSnapshotDue(definition, root, decided.length)
        ? Effect.zipRight(restore(snapshotWhenDue(definition, store, root, decided.length)), answer)
        : answer
    }
  })
}

/** Adds the events to an open batch, hands the lock over, and waits for the commit of the batch. */
const commitWithBatch = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  entry: EntryOf<State, E>,
  batch: BatchOf<State, E>,
  recorded: RecordedEvents<State, A>,
  restore: Restore
): Effect.Effect<Evaluated<State, A>, CommandFailure<E> | Batch.RetryOutsideBatch> => {
  Batch.joinBatch(batch, recorded.events, recorded.root)
  return Effect.zipRight(
    handOverBatch(context, entry, batch),
    Effect.map(Batch.awaitBatch(batch, failsWholeBatch, restore), () => answerOf(recorded))
  )
}

/** A command that stores nothing hands the lock over, and waits until the events that it was decided on are stored. */
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

/** The events can't join the batch that they were decided on: the command keeps the lock, and waits for the batch. */
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
