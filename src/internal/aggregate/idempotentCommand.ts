/**
 * Idempotent commands: one with an id (`Aggregate.withCommandId`) takes effect once. `service.ts` calls it.
 *
 * The command is decided on the stored state, and its events are committed with a receipt. If the command has taken
 * effect before, the attempt fails: by a conflict with the stored receipt, by a refusal, or by a defect of a handler.
 * So after a failure the receipt is read, except after a failure of the store and after an interruption. If it is
 * stored, the command is a duplicate, and succeeds with the current state.
 *
 * A call with an id of its own (`attempt`) may arrive more than once, where an answer was lost. Its receipt has that id.
 * So a later arrival has the result of the first one, with its events, and is no duplicate.
 *
 * A command with an id of its own never joins a batch, because a stored receipt would make the commit of the whole batch
 * fail. One that has the id of its call alone may, when it arrives for the first time.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type { Evaluated } from "../../Aggregate.js"
import type { Event } from "../../Event.js"
import { CommandIdReused, RetryCommand, StoreError } from "../../StoreError.js"
import { partsOf, type Tagged } from "../codec/eventCodec.js"
import { type EntryOf, flushBatch, releaseLock } from "./aggregateLock.js"
import type { CommandCall, CommandContext, CommandFailure } from "./commandContext.js"
import { answerOf, attempt, loadEntry } from "./commandHandler.js"
import { retryableRead, retrying, TransientReadError } from "./commandRetry.js"
import type { Attempt, ConditionValues } from "./conditions.js"
import { withLock } from "./fairLock.js"
import { RetryOutsideBatch } from "./groupCommit.js"
import { load, type VersionedState } from "./loadState.js"
import {
  isReceiptOfAnother,
  makeReceipt,
  type ReceiptKey,
  receiptAt,
  receiptKey,
  type StoredAttempt,
  storedByAttempt
} from "./receipt.js"
import { provenanceOf, recordEvents } from "./recordEvents.js"
import { cacheState, markStale } from "./stateCache.js"
import { snapshotWhenDue } from "./takeSnapshot.js"

/** Evaluates a command with an id, or of a call with an id. A `commandId` that is no valid id fails with a `ValidationError`. */
export const evaluateIdempotent = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  call: CommandCall<C>,
  conditions: Pick<ConditionValues, "attempt" | "commandId">
): Effect.Effect<Evaluated<State, A>, CommandFailure<E>> => {
  const { definition } = context
  const { attempt } = conditions
  const isNamed = "commandId" in conditions
  const commandId = isNamed ? conditions.commandId : attempt?.id
  const streamId = definition.streams.streamId(call.id)
  return Effect.flatMap(receiptKey(definition, streamId, commandId, definition.digest(call.command)), (key) => {
    const alone = evaluateAlone(context, call, key, attempt)
    return isNamed || attempt === undefined || attempt.before > 0
      ? alone
      : evaluateWithOthers(context, call, key, attempt.id, alone)
  })
}

// --- internal ---

/** Evaluates the command on the stored state, and commits it alone. */
const evaluateAlone = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  call: CommandCall<C>,
  key: ReceiptKey,
  attempt: Attempt | undefined
): Effect.Effect<Evaluated<State, A>, CommandFailure<E>> => {
  const { definition, retry, store } = context
  const once = () =>
    withLock(
      () => context.stateCache.entry(call.id, call.clock.unsafeCurrentTimeMillis()),
      (entry) => releaseLock(context, entry),
      (entry, restore) =>
        Effect.flatMap(Effect.exit(restore(attemptOnce(context, call, entry, key, attempt))), (exit) => {
          if (Exit.isSuccess(exit)) cacheState(entry, exit.value.current ?? exit.value.root)
          else markStale(entry)
          return Effect.zipRight(releaseLock(context, entry), exit)
        })
    )
  return retrying(retry, once(), once).pipe(
    Effect.tap(({ decided, root }) => snapshotWhenDue(definition, store, root, decided.length)),
    Effect.map((handled) => answerOf(handled, handled.duplicate))
  )
}

/**
 * Evaluates a command that probably arrives for the first time, as a command without an id: it may join a batch, with its
 * receipt. Only a result with events shows that it has not arrived before. So a refusal, or a decision of no events, is
 * returned if there is no receipt. After any other failure the command is evaluated alone.
 */
const evaluateWithOthers = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  call: CommandCall<C>,
  key: ReceiptKey,
  attemptId: string,
  alone: Effect.Effect<Evaluated<State, A>, CommandFailure<E>>
): Effect.Effect<Evaluated<State, A>, CommandFailure<E>> => {
  const { clock, store } = context
  const joining: CommandCall<C> = {
    ...call,
    receiptOf: ({ sequence }, events) => {
      const timestamp = clock.unsafeNow(call.clock)
      const provenance = provenanceOf(joining, events[0]?.timestamp ?? timestamp)
      return receiptAt(timestamp, key, sequence, provenance, { id: attemptId, events: events.length })
    }
  }
  /** The result, unless the call has arrived before. A store that fails now is read again with the retries of `alone`. */
  const unlessHandled = (result: Exit.Exit<Evaluated<State, A>, CommandFailure<E>>) =>
    Effect.matchEffect(store.getEvents(key.id, 1), {
      onFailure: () => alone,
      onSuccess: ([receipt]) => (receipt === undefined ? result : alone)
    })
  return Effect.matchCauseEffect(attempt(context, joining), {
    onSuccess: (evaluated) =>
      evaluated.events.length === 0 ? unlessHandled(Exit.succeed(evaluated)) : Effect.succeed(evaluated),
    onFailure: (cause) => {
      const failure = Option.getOrUndefined(Cause.failureOption(cause))
      // The events may be in a batch that failed for another command, or the state was outdated.
      if (
        failure instanceof RetryOutsideBatch ||
        failure instanceof TransientReadError ||
        failure instanceof RetryCommand
      ) {
        return alone
      }
      // The failures of an attempt apart from these are those of the command.
      const failed = Exit.failCause(cause as Cause.Cause<CommandFailure<E>>)
      return Cause.isInterrupted(cause) || failure instanceof StoreError ? failed : unlessHandled(failed)
    }
  })
}

interface Handled<State, A> {
  readonly root: VersionedState<State>
  /** The stored state, where `root` is an earlier one. */
  readonly current?: VersionedState<State> | undefined
  readonly decided: ReadonlyArray<A>
  readonly duplicate: boolean
}

const attemptOnce = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  call: CommandCall<C>,
  entry: EntryOf<State, E>,
  key: ReceiptKey,
  attempt: Attempt | undefined
): Effect.Effect<Handled<State, A>, CommandFailure<E> | TransientReadError> =>
  Effect.gen(function* () {
    yield* flushBatch(context, entry)
    const root = yield* loadEntry(context, entry)
    return yield* Effect.catchAllCause(decideAndCommit(context, call, root, key, attempt?.id), (cause) =>
      resolveDuplicate(context, call, entry, { root, key, cause, attempt })
    )
  })

const decideAndCommit = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  call: CommandCall<C>,
  root: VersionedState<State>,
  key: ReceiptKey,
  attemptId: string | undefined
): Effect.Effect<Handled<State, A>, CommandFailure<E>> =>
  Effect.gen(function* () {
    const { clock, commit, decide, definition } = context
    const decided = yield* decide(call, root)
    const recorded = yield* recordEvents(definition, clock, call, root, decided)
    const receipt = yield* makeReceipt(
      clock,
      key,
      recorded.root.sequence,
      (timestamp) => provenanceOf(call, recorded.events[0]?.timestamp ?? timestamp),
      attemptId === undefined ? undefined : { id: attemptId, events: recorded.events.length }
    )
    yield* commit([...recorded.events, receipt])
    return { decided, root: recorded.root, duplicate: false }
  })

/** An attempt that failed. */
interface Failed<State, E> {
  readonly root: VersionedState<State>
  readonly key: ReceiptKey
  readonly cause: Cause.Cause<CommandFailure<E>>
  readonly attempt: Attempt | undefined
}

/** Finds out what a failed attempt means: a duplicate, an id that belongs to another command, or the failure itself. */
const resolveDuplicate = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  call: CommandCall<C>,
  entry: EntryOf<State, E>,
  failed: Failed<State, E>
): Effect.Effect<Handled<State, A>, CommandFailure<E> | TransientReadError> => {
  const { attempt, cause, key, root } = failed
  const failure = Option.getOrUndefined(Cause.failureOption(cause))
  // The receipt can't be read from a store that fails, and an interruption must not wait for it.
  if (Cause.isInterrupted(cause) || failure instanceof StoreError) return Effect.failCause(cause)
  const receipts = context.store.getEvents(key.id, 1)
  return Effect.flatMap(
    // In a transaction that the failure has aborted no read succeeds, and nothing will be stored.
    context.isInTransaction ? Effect.orElseSucceed(receipts, () => []) : retryableRead(receipts),
    ([receipt]): Effect.Effect<Handled<State, A>, CommandFailure<E> | TransientReadError> => {
      if (receipt === undefined) {
        // After a lost race the command is decided again.
        return failure instanceof RetryCommand ? failure : refuseOthers(context, call, entry, failed)
      }
      if (isReceiptOfAnother(key, receipt)) {
        return new CommandIdReused({ kind: key.aggregate, id: root.id, commandId: key.commandId })
      }
      const stored = attempt === undefined ? undefined : storedByAttempt(receipt, attempt.id)
      if (stored === "refused") {
        return failure instanceof RetryCommand ? refusedBefore(key) : Effect.failCause(cause)
      }
      return Effect.flatMap(
        loadEntry(context, entry),
        (current): Effect.Effect<Handled<State, A>, CommandFailure<E> | TransientReadError> =>
          stored === undefined
            ? Effect.succeed({ decided: [], root: current, duplicate: true })
            : firstResult(context, call, current, stored, receipt)
      )
    }
  )
}

/**
 * Fails as the attempt has failed. If an earlier message of the call may still arrive, a receipt is stored before, so that
 * the message takes no effect after its caller has heard of the failure.
 */
const refuseOthers = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  call: CommandCall<C>,
  entry: EntryOf<State, E>,
  failed: Failed<State, E>
): Effect.Effect<Handled<State, A>, CommandFailure<E> | TransientReadError> => {
  const { attempt, cause, key, root } = failed
  if (attempt === undefined || attempt.before === 0 || key.commandId !== attempt.id) return Effect.failCause(cause)
  const receipt = makeReceipt(context.clock, key, root.sequence, (timestamp) => provenanceOf(call, timestamp), {
    id: attempt.id,
    refused: true
  })
  return Effect.matchEffect(
    Effect.flatMap(receipt, (receipt) => context.commit([receipt])),
    {
      onSuccess: () => Effect.failCause(cause),
      onFailure: (error) =>
        error instanceof RetryCommand
          ? resolveDuplicate(context, call, entry, { ...failed, attempt: { ...attempt, before: 0 } })
          : Effect.fail(error)
    }
  )
}

/** A message arrives after another one of its call was refused. Its sender has that answer, or sends the next message. */
const refusedBefore = ({ aggregateId }: ReceiptKey): StoreError =>
  new StoreError({
    reason: "ClusterUnavailable",
    operation: "evaluate",
    aggregateId,
    description: refusedBeforeText
  })

const refusedBeforeText = "another message of the call was refused, and nothing is stored"

/** Whether no message of a call can take effect any more, because one was refused. */
export const isRefusedBefore = (error: unknown): boolean =>
  error instanceof StoreError && error.reason === "ClusterUnavailable" && error.description === refusedBeforeText

/** The result of an earlier arrival of the call: the events that it stored, and the state after them. */
const firstResult = <State, A extends Tagged, C, E>(
  { definition, store }: CommandContext<State, A, C, E>,
  call: CommandCall<C>,
  current: VersionedState<State>,
  { count, sequence }: StoredAttempt,
  receipt: Event
): Effect.Effect<Handled<State, A>, CommandFailure<E> | TransientReadError> => {
  const { name } = definition
  // The events of the failed attempt may have named the chain.
  if (call.chain !== undefined) call.chain.correlationId = receipt.correlationId
  const root =
    current.sequence === sequence
      ? Effect.succeed(current)
      : retryableRead(load(definition, store, current.id, sequence))
  const events =
    count === 0
      ? Effect.succeed([])
      : retryableRead(store.getEvents(current.streamId, sequence - count + 1, { maxSequence: sequence }))
  return Effect.flatMap(Effect.all([root, events]), ([root, stored]) =>
    Effect.map(
      Effect.forEach(stored, (event) => definition.events.decode(`${name}.evaluate`, event)),
      (decoded) => ({ decided: decoded.flatMap(partsOf), root, current, duplicate: false })
    )
  )
}
