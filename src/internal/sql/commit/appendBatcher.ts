/**
 * Group commit: commits of several callers, which are events and nothing else, in one statement. `appendEvents.ts` calls it.
 *
 * While the database works on statements, commits that arrive wait, and then share the next statement. No timer delays a commit, and a lone
 * commit is sent immediately. A statement for each commit would be simpler, but its cost is the round trip and the parsing. With 64 clients
 * the batches make 5 times as many commits a second as Emmett, which sends each alone (`test/bench/README.md`).
 *
 * - Whether a commit is accepted never depends on the others of its statement, because no two in flight concern the same aggregate.
 *   Commits about one aggregate are sent in the order in which they came.
 * - A statement that fails for a reason that may be one commit's fault is sent again, each commit in a statement of its own.
 * - While others wait for it, a statement gives up where it would wait for a lock, and its commits are sent again one by one. A statement
 *   that is slow for another reason does not delay later commits: they are sent beside it.
 * - The queue holds a limited number of characters. A commit that arrives when it is full waits before it enters the queue.
 * - When the scope closes, accepted commits are sent and answered first. A later commit has a statement of its own.
 *
 * A commit is in one of these states, and only `move` changes it:
 *
 * - Queued: waits for a statement.
 *   - to InFlight, when a sender takes it into a batch
 *   - to Withdrawn, when its caller is interrupted: it is not sent
 *   - to Answered, when the scope has closed before it was sent
 * - InFlight: part of a batch.
 *   - to InFlight in a batch of its own, when its batch has failed for a reason that may be one commit's fault
 *   - to Abandoned, when its caller is interrupted: a batch that no caller waits for any more is cancelled
 *   - to Answered, when its batch ends
 * - Abandoned: part of a batch, while its caller waits for the end for the grace period at most.
 *   - to Answered, when its batch ends
 */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberId from "effect/FiberId"
import type * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Tracer from "effect/Tracer"
import { type RetryCommand, StoreError } from "../../../StoreError.js"
import { makeBackpressure } from "../../runtime/backpressure.js"
import { awaitAtMost, awaitFiberAtMost, awaitGrace, boundedInterruption } from "../../runtime/interruption.js"
import { scheduleMacrotask } from "../../runtime/macrotask.js"
import { isOfStatement } from "../../runtime/storeFailure.js"
import { withBatchSpanIfTraced } from "../../runtime/tracing.js"
import { sizeOf } from "../../store/storedRecord.js"
import { aggregatesOf, type Commit, CommitQueue, isLarge, type QueuedCommit } from "./commitQueue.js"

/** The result of one commit: a duplicate was stored before. */
export type AppendResult = "appended" | "duplicate" | RetryCommand

/**
 * Sends commits in one statement and returns the result of each, in their order; a result that is left out is `appended`. With
 * `failFastOnLock` it fails soon where it would wait for a lock, and nothing is stored.
 */
export type Send = (
  commits: ReadonlyArray<Commit>,
  failFastOnLock: boolean
) => Effect.Effect<ReadonlyArray<AppendResult>, StoreError>

/** Makes the function that commits, on a `send` that takes many commits. */
export const makeAppendBatcher = (
  send: Send,
  maxSenderWait = usualSenderWait
): Effect.Effect<(commit: Commit) => Effect.Effect<AppendResult, StoreError>, never, Scope.Scope> => {
  const queue = new CommitQueue<Entry>()
  let phase: "open" | "closing" | "closed" = "open"
  const room = makeBackpressure(maxWaitingSize)
  let batchesInFlight = 0
  let recentBatchSize = 1
  let unanswered = 0
  const idleSenders: Array<() => void> = []
  const drained = Deferred.unsafeMake<void>(FiberId.none)

  const move = (entry: Entry, state: State): void => {
    entry.state = state
  }

  const startBatch = (entries: ReadonlyArray<Entry>): Batch => {
    const batch: Batch = { entries, waiting: 0, fiber: undefined }
    for (const entry of entries) {
      if (entry.state._tag === "Abandoned") continue
      move(entry, { _tag: "InFlight", batch })
      batch.waiting++
    }
    return batch
  }

  /** Takes the commits of one statement out of the queue. */
  const takeBatch = (): Batch | undefined => {
    if (batchesInFlight >= maxBatchesInFlight) return undefined
    // Half of the queue for each free sender: then one batch is in the database while the results of the other are handed out.
    const free = Math.max(1, senders - batchesInFlight)
    const commits = Math.min(limits.commits, Math.max(minBatchSize, Math.ceil(queue.length / free)))
    const taken = queue.take({ ...limits, commits })
    if (taken.length > 0) recentBatchSize = Math.max(taken.length, recentBatchSize - 1)
    if (taken.length > 0 && queue.length > 0) wakeSender()
    room.remove(taken.reduce((sum, { size }) => sum + size, 0))
    return taken.length > 0 ? startBatch(taken) : undefined
  }

  const countAnswered = (count: number): void => {
    unanswered -= count
    if (phase === "closing" && unanswered === 0) Deferred.unsafeDone(drained, Effect.void)
  }

  const answer = (entries: ReadonlyArray<Entry>, exit: Exit.Exit<ReadonlyArray<AppendResult>, StoreError>): void => {
    countAnswered(entries.length)
    for (const [index, entry] of entries.entries()) {
      queue.done(entry)
      const { state } = entry
      move(entry, { _tag: "Answered" })
      if (state._tag === "Abandoned") Deferred.unsafeDone(state.ended, Effect.void)
      else entry.resume(Exit.map(exit, (results) => results[index] ?? "appended"))
    }
    if (phase === "closed") refuseUnsent()
    wakeSender()
  }

  /** Nothing is sent any more, so commits in the queue are not stored. */
  const refuseUnsent = (): void => {
    for (let unsent = queue.take(limits); unsent.length > 0; unsent = queue.take(limits)) {
      answer(unsent, Exit.fail(closed()))
    }
  }

  const close = Effect.suspend(() => {
    phase = "closing"
    countAnswered(0)
    return Effect.map(awaitAtMost(maxDrain, Deferred.await(drained)), () => {
      phase = "closed"
      refuseUnsent()
    })
  })

  /** Sends a batch. The fiber ends when its commits are answered, or each is in flight in a batch of its own. */
  const sendBatch = (batch: Batch, failFastOnLock: boolean): Effect.Effect<Fiber.RuntimeFiber<unknown>> =>
    Effect.suspend(() => {
      const { entries } = batch
      if (failFastOnLock) batchesInFlight++
      const commits = entries.map(({ commit }) => commit)
      const sending = Effect.onExit(Effect.interruptible(send(commits, failFastOnLock)), (exit) => {
        if (failFastOnLock) batchesInFlight--
        // Until then no other commit about their aggregates is sent.
        return failFastOnLock && Exit.isFailure(exit) && isOfStatement(exit.cause)
          ? Effect.forEach(
              entries.map((entry) => startBatch([entry])),
              (one) => sendBatch(one, false),
              { discard: true }
            )
          : Effect.sync(() => answer(entries, exit))
      })
      return Effect.flatMap(
        Effect.forkDaemon(
          withBatchSpanIfTraced(
            "SqlStore.sendCommits",
            { commits: entries.length },
            entries.map(({ span }) => span)
          )(Effect.exit(sending))
        ),
        (fiber) => {
          batch.fiber = fiber
          return batch.waiting === 0 ? Effect.as(Fiber.interruptFork(fiber), fiber) : Effect.succeed(fiber)
        }
      )
    })

  /** Sends batches one after the other, and goes on to the next after `maxSenderWait` at most. */
  const sender: Effect.Effect<never> = Effect.forever(
    Effect.suspend(() => {
      const batch = takeBatch()
      return batch !== undefined
        ? Effect.flatMap(sendBatch(batch, true), (fiber) => awaitFiberAtMost(fiber, maxSenderWait))
        : Effect.async<void>((resume) => {
            idleSenders.push(() => resume(Effect.void))
          })
    })
  )

  const wakeSender = (): void => {
    const wake = queue.length > 0 ? idleSenders.pop() : undefined
    if (wake === undefined) return
    // Callers that the last batch answered may commit again in this macrotask, and share the next batch.
    if (recentBatchSize > 1) scheduleMacrotask(wake)
    else wake()
  }

  const interrupt = (entry: Entry): Effect.Effect<unknown> => {
    const { state } = entry
    if (state._tag === "Queued") {
      move(entry, { _tag: "Withdrawn" })
      queue.dropWithdrawn()
      room.remove(entry.size)
      countAnswered(1)
      return Effect.void
    }
    if (state._tag !== "InFlight") return Effect.void
    const { batch } = state
    const ended = Deferred.unsafeMake<void>(FiberId.none)
    move(entry, { _tag: "Abandoned", ended })
    batch.waiting--
    return Effect.zipRight(
      batch.waiting === 0 && batch.fiber !== undefined ? Fiber.interruptFork(batch.fiber) : Effect.void,
      awaitGrace(Deferred.await(ended))
    )
  }

  const appendUnbatched = (commit: Commit): Effect.Effect<AppendResult, StoreError> =>
    boundedInterruption(Effect.map(send([commit], false), ([result]) => result ?? "appended"))

  const enqueue = (commit: Commit, size: number): Effect.Effect<AppendResult, StoreError> =>
    Effect.contextWithEffect((context: Context.Context<never>) => {
      const queued = Effect.async<AppendResult, StoreError>((resume) => {
        const span = Context.getOption(context, Tracer.ParentSpan)
        const entry: Entry = { commit, size, aggregates: aggregatesOf(commit), span, resume, state: { _tag: "Queued" } }
        queue.push(entry)
        unanswered++
        room.add(size)
        wakeSender()
        return Effect.suspend(() => Effect.asVoid(interrupt(entry)))
      })
      const append = Effect.suspend(() => (phase === "open" ? queued : appendUnbatched(commit)))
      return room.isFull() ? Effect.zipRight(room.awaitRoom, append) : append
    })

  return Effect.as(
    // The senders belong to no caller, so they have neither its span nor its transaction.
    Effect.replicateEffect(Effect.forkScoped(sender), senders).pipe(
      Effect.mapInputContext(
        (context: Context.Context<Scope.Scope>) =>
          Context.omit(Tracer.ParentSpan, SqlClient.TransactionConnection)(context) as Context.Context<Scope.Scope>
      ),
      Effect.zipRight(Effect.addFinalizer(() => close))
    ),
    (commit) => {
      const size = sizeOf(commit)
      return isLarge(commit, size) ? appendUnbatched(commit) : enqueue(commit, size)
    }
  )
}

// --- internal ---

interface Entry extends QueuedCommit {
  readonly span: Option.Option<Tracer.AnySpan>
  readonly resume: (result: Effect.Effect<AppendResult, StoreError>) => void
  state: State
}

type State =
  | { readonly _tag: "Queued" }
  | { readonly _tag: "Withdrawn" }
  | { readonly _tag: "InFlight"; readonly batch: Batch }
  | { readonly _tag: "Abandoned"; readonly ended: Deferred.Deferred<void> }
  | { readonly _tag: "Answered" }

/** A statement in flight. */
interface Batch {
  readonly entries: ReadonlyArray<Entry>
  /** How many callers wait for it. */
  waiting: number
  fiber: Fiber.RuntimeFiber<unknown> | undefined
}

/** While the database works on one batch, the other is made ready, or its results are handed out. */
const senders = 2

/** With the slow batches that the senders do not wait for any more. */
const maxBatchesInFlight = 8

/** How long the end of the scope waits for commits in flight, in milliseconds. */
const maxDrain = 10_000

const closed = (): StoreError =>
  new StoreError({
    reason: "Unavailable",
    operation: "commitEvents",
    description: "the store was closed before the commit was sent; nothing was stored"
  })

/** How long a sender waits for its batch, in milliseconds: far longer than a healthy one takes. */
const usualSenderWait = 25

/** Of one batch: large enough to make the cost of the statement small, and small enough to answer the first commit soon. */
const limits = { commits: 512, events: 2048, size: 1_000_000, lookahead: 2048 }

/** The queue is not divided into smaller batches, because the cost of a statement does not shrink with them. */
const minBatchSize = 16

/** Of the queue, in characters. */
const maxWaitingSize = 64_000_000
