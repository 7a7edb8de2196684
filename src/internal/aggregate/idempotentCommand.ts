/**
 * Idempotent commands: one with an id (`Aggregate.withCommandId`) takes effect once. `service.ts` calls it.
 *
 * The command is decided on the stored state, and its events are committed with a receipt. If the command has taken
 * effect before, the attempt fails: by a conflict with the stored receipt, by a refusal, or by a defect of a handler.
 * So after a failure the receipt is read, except after a failure of the store and after an interruption. If it is stored, the command is a duplicate, and succeeds with the
 * current state.
 *
 * Such a command never joins a batch, because a stored receipt would make the commit of the whole batch fail.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type { Evaluated } from "../../Aggregate.js"
import { CommandIdReused, StoreError } from "../../StoreError.js"
import type { Tagged } from "../codec/eventCodec.js"
import { type EntryOf, flushBatch, releaseLock } from "./aggregateLock.js"
import type { CommandCall, CommandContext, CommandFailure } from "./commandContext.js"
import { answerOf, loadEntry } from "./commandHandler.js"
import { retryableRead, retrying, type TransientReadError } from "./commandRetry.js"
import { withLock } from "./fairLock.js"
import type { VersionedState } from "./loadState.js"
import { isReceiptOfAnother, makeReceipt, type ReceiptKey, receiptKey } from "./receipt.js"
import { provenanceOf, recordEvents } from "./recordEvents.js"
import { cacheState, markStale } from "./stateCache.js"
import { snapshotWhenDue } from "./takeSnapshot.js"

/** Evaluates a command with an id. A `commandId` that is no valid id fails with a `ValidationError`. */
export const evaluateIdempotent = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  call: CommandCall<C>,
  commandId: unknown
): Effect.Effect<Evaluated<State, A>, CommandFailure<E>> => {
  const { definition, retry, store } = context
  const attempt = (key: ReceiptKey) =>
    withLock(
      () => context.stateCache.entry(call.id, call.clock.unsafeCurrentTimeMillis()),
      (entry) => releaseLock(context, entry),
      (entry, restore) =>
        Effect.flatMap(Effect.exit(restore(attemptOnce(context, call, entry, key))), (exit) => {
          if (Exit.isSuccess(exit)) cacheState(entry, exit.value.root)
          else markStale(entry)
          return Effect.zipRight(releaseLock(context, entry), exit)
        })
    )
  const streamId = definition.streams.streamId(call.id)
  return receiptKey(definition, streamId, commandId, definition.digest(call.command)).pipe(
    Effect.flatMap((key) => retrying(retry, attempt(key), () => attempt(key))),
    Effect.tap(({ decided, root }) => snapshotWhenDue(definition, store, root, decided.length)),
    Effect.map((handled) => answerOf(handled, handled.duplicate))
  )
}

// --- internal ---

interface Handled<State, A> {
  readonly root: VersionedState<State>
  readonly decided: ReadonlyArray<A>
  readonly duplicate: boolean
}

const attemptOnce = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  call: CommandCall<C>,
  entry: EntryOf<State, E>,
  key: ReceiptKey
): Effect.Effect<Handled<State, A>, CommandFailure<E> | TransientReadError> =>
  Effect.gen(function* () {
    yield* flushBatch(context, entry)
    const root = yield* loadEntry(context, entry)
    return yield* Effect.catchAllCause(decideAndCommit(context, call, root, key), (cause) =>
      resolveDuplicate(context, entry, root, key, cause)
    )
  })

const decideAndCommit = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  call: CommandCall<C>,
  root: VersionedState<State>,
  key: ReceiptKey
): Effect.Effect<Handled<State, A>, CommandFailure<E>> =>
  Effect.gen(function* () {
    const { clock, commit, decide, definition } = context
    const decided = yield* decide(call, root)
    const recorded = yield* recordEvents(definition, clock, call, root, decided)
    const receipt = yield* makeReceipt(clock, key, recorded.root.sequence, (timestamp) =>
      provenanceOf(call, recorded.events[0]?.timestamp ?? timestamp)
    )
    yield* commit([...recorded.events, receipt])
    return { decided, root: recorded.root, duplicate: false }
  })

/** Finds out what a failed attempt means: a duplicate, an id that belongs to another command, or the failure itself. */
const resolveDuplicate = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  entry: EntryOf<State, E>,
  root: VersionedState<State>,
  key: ReceiptKey,
  cause: Cause.Cause<CommandFailure<E>>
): Effect.Effect<Handled<State, A>, CommandFailure<E> | TransientReadError> => {
  const failed = Effect.failCause(cause)
  // The receipt can't be read from a store that fails, and an interruption must not wait for it.
  if (Cause.isInterrupted(cause) || Option.getOrUndefined(Cause.failureOption(cause)) instanceof StoreError) {
    return failed
  }
  const receipts = context.store.getEvents(key.id, 1)
  return Effect.flatMap(
    // In a transaction that the failure has aborted no read succeeds, and nothing will be stored.
    context.isInTransaction ? Effect.orElseSucceed(receipts, () => []) : retryableRead(receipts),
    ([receipt]): Effect.Effect<Handled<State, A>, CommandFailure<E> | TransientReadError> => {
      if (receipt === undefined) return failed
      if (isReceiptOfAnother(key, receipt)) {
        return new CommandIdReused({ kind: key.aggregate, id: root.id, commandId: key.commandId })
      }
      return Effect.map(loadEntry(context, entry), (current) => ({ decided: [], root: current, duplicate: true }))
    }
  )
}
