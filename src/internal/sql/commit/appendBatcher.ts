/**
 * Group commit: commits of several callers, which are events and nothing else, in one statement. `appendEvents.ts` calls it.
 *
 * While the database works on statements, commits that arrive wait, and then share the next statement. No timer delays a commit, and a lone
 * commit is sent immediately. A statement for each commit would be simpler, but its cost is the round trip and the flush to disk. With 64 clients
 * the batches make 5.8 times as many commits a second as Emmett, which sends each alone (`test/bench/README.md`).
 *
 * - Whether a commit is accepted never depends on the others of its statement, because no two in flight concern the same aggregate.
 *   Commits about one aggregate are sent in the order in which they came.
 * - A statement that fails for a reason that may be one commit's fault is sent again, each commit in a statement of its own.
 * - While others wait for it, a statement gives up where it would wait for a lock, and its commits are sent again one by one. A statement
 *   that is slow for another reason does not delay later commits: they are sent beside it.
 * - The queue holds a limited number of characters. A commit that arrives when it is full waits before it enters the queue.
 * - When the scope closes, accepted commits are sent and answered first. A later commit has a statement of its own.
 *
 * A commit is in one of these states:
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
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberId from "effect/FiberId"
import type * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Tracer from "effect/Tracer"
import { type RetryCommand, StoreError } from "../../../StoreError.js"
import { makeBackpressure } from "../../runtime/backpressure.js"
import { Drain } from "../../runtime/drain.js"
import { awaitGrace } from "../../runtime/interruption.js"
import { scheduleMacrotask } from "../../runtime/macrotask.js"
import { isOfStatement } from "../../runtime/storeFailure.js"
import { sizeOf } from "../../store/storedRecord.js"
import { aggregatesOf, type Commit, CommitQueue, isLarge, type QueuedCommit } from "./commitQueue.js"

/** The result of one commit: a duplicate was stored before. */
export type AppendResult = "appended" | "duplicate" | RetryCommand

/**
 * Sends commits in one statement and calls back with the result of each, in their order. A result that is left out is `appended`. With
 * `failFastOnLock` it fails soon where it would wait for a lock, and nothing is stored. The effect that it returns cancels the statement.
 */
export type Send = (
  commits: ReadonlyArray<Commit>,
  options: { readonly failFastOnLock: boolean; readonly callers: ReadonlyArray<Option.Option<Tracer.AnySpan>> },
  done: (results: Results) => void
) => Effect.Effect<void>

export type Results = Exit.Exit<ReadonlyArray<AppendResult>, StoreError>

/**
 * Makes the function that commits, on a `send` that takes many commits. `isSerial` says that the database commits one statement after the
 * other. Then sending more of them beside slow ones gains little, and would take the connections of readers.
 */
export const makeAppendBatcher = (
  send: Send,
  isSerial = false,
  maxSenderWait = isSerial ? serialSenderWait : usualSenderWait
): Effect.Effect<(commit: Commit) => Effect.Effect<AppendResult, StoreError>, never, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(
      Effect.sync(() => new AppendBatcher(send, isSerial, maxSenderWait)),
      ({ close }) => close
    ),
    ({ append }) => append
  )

// --- internal ---

class AppendBatcher {
  private readonly queue = new CommitQueue<Entry>()
  private readonly room = makeBackpressure(maxWaitingSize)
  /** The commits that have no result yet. */
  private readonly accepted = new Drain()
  /** The batches in flight that were sent from the queue, without lone ones that are slow. */
  private readonly inFlight = new Set<Batch>()
  /** Those of them that later commits wait for. */
  private readonly awaited: Array<Batch> = []
  private recentBatchSize = 1
  private isPumpDue = false
  private timer: ReturnType<typeof setTimeout> | undefined

  constructor(
    private readonly send: Send,
    private readonly isSerial: boolean,
    private readonly maxSenderWait: number
  ) {}

  readonly append = (commit: Commit): Effect.Effect<AppendResult, StoreError> => {
    const size = sizeOf(commit)
    const hasOwn = isLarge(commit, size)
    const append = Effect.withFiberRuntime<AppendResult, StoreError>((fiber) => {
      const span = Context.getOption(fiber.currentContext as Context.Context<never>, Tracer.ParentSpan)
      return Effect.async((resume) =>
        this.accepted.phase === "open" && !hasOwn
          ? this.enqueue({ commit, size, aggregates: aggregatesOf(commit), span, resume, state: { _tag: "Queued" } })
          : this.send([commit], { failFastOnLock: false, callers: [span] }, (results) =>
              resume(Exit.map(results, ([result]) => result ?? "appended"))
            )
      )
    })
    return this.room.isFull() && !hasOwn ? Effect.zipRight(this.room.awaitRoom, append) : append
  }

  /** Accepted commits are sent and answered first. */
  readonly close = Effect.suspend(() =>
    Effect.map(this.accepted.close(maxDrain), () => {
      clearTimeout(this.timer)
      this.refuseUnsent()
    })
  )

  private enqueue(entry: Entry): Effect.Effect<void> {
    this.queue.push(entry)
    this.accepted.begin()
    this.room.add(entry.size)
    this.pumpSoon()
    return Effect.suspend(() => this.interrupt(entry))
  }

  /** Sends what is queued, as far as batches may be in flight. */
  private pump(): void {
    const maxInFlight = this.isSerial ? maxSerialInFlight : maxBatchesInFlight
    while (this.queue.length > 0 && this.awaited.length < senders && this.inFlight.size < maxInFlight) {
      // Half of the queue for each free sender: then one batch is in the database while the results of the other are handed out.
      const free = Math.max(1, senders - this.inFlight.size)
      const commits = Math.min(limits.commits, Math.max(minBatchSize, Math.ceil(this.queue.length / free)))
      const entries = this.queue.take({ ...limits, commits })
      if (entries.length === 0) return
      this.recentBatchSize = Math.max(entries.length, this.recentBatchSize - 1)
      for (const { size } of entries) this.room.remove(size)
      const batch = this.startBatch(entries)
      this.inFlight.add(batch)
      this.awaited.push(batch)
      this.sendBatch(batch, true)
    }
    if (this.queue.length > 0) this.limitWait()
  }

  /** Where callers share batches, others may commit in this macrotask, too, and share the next one. */
  private pumpSoon(): void {
    if (this.queue.length === 0 || this.isPumpDue) return
    if (this.recentBatchSize <= 1) return this.pump()
    this.isPumpDue = true
    scheduleMacrotask(() => {
      this.isPumpDue = false
      this.pump()
    })
  }

  /** While commits wait for the batches in flight, they wait for a time at most. */
  private limitWait(): void {
    const [first] = this.awaited
    if (this.timer !== undefined || first === undefined) return
    const wait = Math.max(1, first.sentAt + this.maxSenderWait - performance.now())
    this.timer = setTimeout(() => {
      this.timer = undefined
      const slow = performance.now() - this.maxSenderWait + 1
      for (const batch of this.awaited.filter(({ sentAt }) => sentAt <= slow)) this.stopAwaiting(batch)
      this.pump()
    }, wait)
  }

  /**
   * Later commits do not wait for the batch any more. A slow lone commit waits for a lock, as a rule, so it is not counted either, unless all
   * commits wait for that lock.
   */
  private stopAwaiting(batch: Batch): void {
    this.awaited.splice(this.awaited.indexOf(batch), 1)
    if (batch.entries.length === 1 && !this.isSerial) this.inFlight.delete(batch)
  }

  private startBatch(entries: ReadonlyArray<Entry>): Batch {
    const batch: Batch = { entries, waiting: 0, cancel: Effect.void, sentAt: performance.now() }
    for (const entry of entries) {
      if (entry.state._tag === "Abandoned") continue
      entry.state = { _tag: "InFlight", batch }
      batch.waiting++
    }
    return batch
  }

  private sendBatch(batch: Batch, failFastOnLock: boolean): void {
    const [commits, callers] = [batch.entries.map(({ commit }) => commit), batch.entries.map(({ span }) => span)]
    const end = (results: Results) => this.batchEnded(batch, failFastOnLock, results)
    batch.cancel = this.send(commits, { failFastOnLock, callers }, end)
    if (batch.waiting === 0) Effect.runFork(batch.cancel)
  }

  private batchEnded(batch: Batch, failFastOnLock: boolean, exit: Results): void {
    this.inFlight.delete(batch)
    if (this.awaited.includes(batch)) this.stopAwaiting(batch)
    const isFinal = !failFastOnLock || batch.waiting === 0 || Exit.isSuccess(exit) || !isOfStatement(exit.cause)
    if (isFinal) return this.answer(batch.entries, exit)
    // Until they are answered no other commit about their aggregates is sent.
    for (const entry of batch.entries) this.sendBatch(this.startBatch([entry]), false)
    this.pumpSoon()
  }

  private answer(entries: ReadonlyArray<Entry>, exit: Results): void {
    this.accepted.end(entries.length)
    for (const [index, entry] of entries.entries()) {
      this.queue.done(entry)
      const { state } = entry
      entry.state = { _tag: "Answered" }
      if (state._tag === "Abandoned") Deferred.unsafeDone(state.ended, Effect.void)
      else entry.resume(Exit.map(exit, (results) => results[index] ?? "appended"))
    }
    if (this.accepted.phase === "closed") this.refuseUnsent()
    this.pumpSoon()
  }

  /** Nothing is sent any more, so commits in the queue are not stored. */
  private refuseUnsent(): void {
    for (let unsent = this.queue.take(limits); unsent.length > 0; unsent = this.queue.take(limits)) {
      this.answer(unsent, Exit.fail(closed()))
    }
  }

  private interrupt(entry: Entry): Effect.Effect<void> {
    const { state } = entry
    if (state._tag === "Queued") {
      entry.state = { _tag: "Withdrawn" }
      this.queue.dropWithdrawn()
      this.room.remove(entry.size)
      this.accepted.end()
      return Effect.void
    }
    if (state._tag !== "InFlight") return Effect.void
    const { batch } = state
    const ended = Deferred.unsafeMake<void>(FiberId.none)
    entry.state = { _tag: "Abandoned", ended }
    batch.waiting--
    if (batch.waiting === 0) Effect.runFork(batch.cancel)
    return Effect.asVoid(awaitGrace(Deferred.await(ended)))
  }
}

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
  cancel: Effect.Effect<void>
  /** By the clock of the process, in milliseconds. */
  readonly sentAt: number
}

/** While the database works on one batch, the other is made ready, or its results are handed out. */
const senders = 2

/** With the slow batches that the senders do not wait for any more. */
const maxBatchesInFlight = 8
const maxSerialInFlight = 4

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
/** The same where batches wait for transactions of others. A connection that is silent must not stop all commits. */
const serialSenderWait = 1000

/** Of one batch: large enough to make the cost of the statement small, and small enough to answer the first commit soon. */
const limits = { commits: 512, events: 2048, size: 1_000_000, lookahead: 2048 }

/** The queue is not divided into smaller batches, because the cost of a statement does not shrink with them. */
const minBatchSize = 16

/** Of the queue, in characters. */
const maxWaitingSize = 64_000_000
