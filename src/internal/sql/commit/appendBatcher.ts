/**
 * Commits of strangers in one statement: while the database is busy with some, those that arrive wait and leave together. No
 * timer holds a commit back; one that comes alone leaves at once.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import { SqlError } from "@effect/sql/SqlError"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberId from "effect/FiberId"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Tracer from "effect/Tracer"
import { type RetryCommand, StoreError, type StoreErrorReason } from "../../../StoreError.js"
import { awaitAtMost, awaitGrace, boundedInterruption } from "../../runtime/interruption.js"
import { scheduleMacrotask } from "../../runtime/macrotask.js"
import { withSpanIfTraced } from "../../runtime/tracing.js"
import { sizeOf } from "../../store/storedRecord.js"
import { aggregatesOf, type Commit, CommitQueue, isLarge, type Waiting } from "./commitQueue.js"

/** What became of one commit. */
export type AppendResult = "written" | "stored" | RetryCommand

/**
 * Sends commits and answers for each by itself, in their order. With `hurried` it gives up soon where it would have to wait for
 * a lock, and nothing is stored.
 */
export type Send = (
  commits: ReadonlyArray<Commit>,
  hurried: boolean
) => Effect.Effect<ReadonlyArray<AppendResult>, StoreError>

/**
 * A way for single commits to a `send` that takes many.
 *
 * - No two commits of a statement concern the same aggregate, nor do those of two statements that are under way: whether one
 *   is accepted never depends on who travels with it. Those about one aggregate leave in their order.
 * - A statement that fails for a reason that may be one commit's own is sent again, each commit by itself.
 * - A statement waits for nobody's lock while others wait for it: it gives up, and each of its commits waits by itself. One that
 *   is held up otherwise does not hold up those that come after: they leave beside it.
 * - An interruption takes one commit out of the queue. One that is under way is waited for; where nobody waits for a
 *   statement any more, it is cancelled.
 * - Only so many characters wait. Whoever comes when there are more waits in front of the queue.
 * - When the scope closes, what was accepted is sent and answered first. A commit that comes later goes alone.
 */
export const makeAppendBatcher = (
  send: Send,
  patience = usualPatience
): Effect.Effect<(commit: Commit) => Effect.Effect<AppendResult, StoreError>, never, Scope.Scope> => {
  const queue = new CommitQueue<Entry>()
  let waitingSize = 0
  let underWay = 0
  /** How many have left together of late. */
  let company = 1
  /** Wakes a sender that found nothing to send. */
  const idle: Array<() => void> = []
  let room: Deferred.Deferred<void> | undefined
  /** How many commits were accepted and are not answered yet. */
  let pending = 0
  let isClosing = false
  let isClosed = false
  const drained = Deferred.unsafeMake<void>(FiberId.none)

  /** Takes out of the queue what may leave together. */
  const take = (): ReadonlyArray<Entry> => {
    if (underWay >= maxUnderWay) return []
    const free = Math.max(1, senders - underWay)
    // What is left goes with the next sender: then one half is on its way while the other is answered.
    const commits = Math.min(limits.commits, Math.max(fewest, Math.ceil(queue.length / free)))
    const taken = queue.take({ ...limits, commits })
    if (taken.length > 0) company = Math.max(taken.length, company - 1)
    if (taken.length > 0 && queue.length > 0) wake()
    left(taken.reduce((sum, { size }) => sum + size, 0))
    return taken
  }

  const left = (size: number): void => {
    waitingSize -= size
    if (room !== undefined && waitingSize <= maxWaiting / 2) {
      Deferred.unsafeDone(room, Effect.void)
      room = undefined
    }
  }

  const ended = (count: number): void => {
    pending -= count
    if (isClosing && pending === 0) Deferred.unsafeDone(drained, Effect.void)
  }

  const close: Effect.Effect<unknown> = Effect.suspend(() => {
    isClosing = true
    ended(0)
    return awaitAtMost(patienceAtEnd, Deferred.await(drained))
  }).pipe(
    Effect.zipRight(
      Effect.sync(() => {
        isClosed = true
        refuseUnsent()
      })
    )
  )

  /** Nothing sends any more, and what was not sent until now is not stored. */
  const refuseUnsent = (): void => {
    for (let unsent = queue.take(limits); unsent.length > 0; unsent = queue.take(limits)) {
      answer(unsent, Exit.fail(closed()))
    }
  }

  const answer = (entries: ReadonlyArray<Entry>, exit: Exit.Exit<ReadonlyArray<AppendResult>, StoreError>): void => {
    ended(entries.length)
    for (const [index, entry] of entries.entries()) {
      queue.done(entry)
      entry.answered = true
      entry.resume(Exit.map(exit, (verdicts) => verdicts[index] ?? "written"))
    }
    if (isClosed) refuseUnsent()
    wake()
  }

  /** Sends what was taken; the fiber ends when all of it is answered, or each is under way by itself. */
  const dispatch = (entries: ReadonlyArray<Entry>, hurried: boolean): Effect.Effect<Fiber.RuntimeFiber<unknown>> =>
    Effect.suspend(() => {
      const batch: Batch = { live: 0, fiber: undefined }
      for (const entry of entries) {
        entry.batch = batch
        if (!entry.gone) batch.live++
      }
      if (hurried) underWay++
      const commits = entries.map(({ commit }) => commit)
      const sending = Effect.onExit(Effect.interruptible(send(commits, hurried)), (exit) => {
        if (hurried) underWay--
        // Whose fault it was each finds out by itself; until then nothing else about its aggregates leaves.
        return hurried && Exit.isFailure(exit) && mayBeOnes(exit.cause)
          ? Effect.forEach(entries, (entry) => dispatch([entry], false), { discard: true })
          : Effect.sync(() => answer(entries, exit))
      })
      return Effect.flatMap(Effect.forkDaemon(traced(entries, Effect.exit(sending))), (fiber) => {
        batch.fiber = fiber
        return batch.live === 0 ? Effect.as(Fiber.interruptFork(fiber), fiber) : Effect.succeed(fiber)
      })
    })

  /** Sends as long as something waits that may leave, one statement after the other, but does not wait long for any. */
  const sender: Effect.Effect<never> = Effect.forever(
    Effect.suspend(() => {
      const entries = take()
      return entries.length > 0
        ? Effect.flatMap(dispatch(entries, true), (fiber) => awaitFiberAtMost(fiber, patience))
        : Effect.async<void>((resume) => {
            idle.push(() => resume(Effect.void))
          })
    })
  )

  const wake = (): void => {
    const next = queue.length > 0 ? idle.pop() : undefined
    if (next === undefined) return
    // Where there are others they come in this turn of the event loop: those whom the last statement has answered.
    if (company > 1) scheduleMacrotask(next)
    else next()
  }

  const withdraw = (entry: Entry): Effect.Effect<void> => {
    if (entry.queued) {
      queue.withdraw(entry)
      left(entry.size)
      ended(1)
      return Effect.void
    }
    entry.gone = true
    const { batch } = entry
    // One that was taken just now, and has no batch yet, is not counted there.
    const cancel =
      batch !== undefined && --batch.live === 0 && batch.fiber !== undefined
        ? Fiber.interruptFork(batch.fiber)
        : Effect.void
    const end = Effect.async<void>((resume) => {
      if (entry.answered) resume(Effect.void)
      entry.resume = () => resume(Effect.void)
    })
    return Effect.zipRight(cancel, awaitGrace(end))
  }

  const commitAlone = (commit: Commit): Effect.Effect<AppendResult, StoreError> =>
    boundedInterruption(Effect.map(send([commit], false), ([verdict]) => verdict ?? "written"))

  const roomInQueue: Effect.Effect<void> = Effect.suspend(() => {
    if (waitingSize <= maxWaiting) return Effect.void
    if (room === undefined) room = Deferred.unsafeMake(FiberId.none)
    return Effect.zipRight(Deferred.await(room), roomInQueue)
  })

  const commitInCompany = (commit: Commit, size: number): Effect.Effect<AppendResult, StoreError> =>
    Effect.contextWithEffect((context: Context.Context<never>) => {
      const queued = Effect.async<AppendResult, StoreError>((resume) => {
        const entry: Entry = {
          commit,
          size,
          aggregates: aggregatesOf(commit),
          span: Context.getOption(context, Tracer.ParentSpan),
          resume,
          queued: true,
          answered: false,
          batch: undefined,
          gone: false
        }
        queue.push(entry)
        pending++
        waitingSize += size
        wake()
        return Effect.suspend(() => withdraw(entry))
      })
      const queuedOrAlone = Effect.suspend(() => (isClosing ? commitAlone(commit) : queued))
      return waitingSize <= maxWaiting ? queuedOrAlone : Effect.zipRight(roomInQueue, queuedOrAlone)
    })

  return Effect.as(
    // They belong to no caller, and to nobody's transaction.
    Effect.replicateEffect(Effect.forkScoped(sender), senders).pipe(
      Effect.mapInputContext(
        (context: Context.Context<Scope.Scope>) =>
          Context.omit(Tracer.ParentSpan, SqlClient.TransactionConnection)(context) as Context.Context<Scope.Scope>
      ),
      Effect.zipRight(Effect.addFinalizer(() => close))
    ),
    (commit) => {
      const size = sizeOf(commit)
      return isLarge(commit, size) ? commitAlone(commit) : commitInCompany(commit, size)
    }
  )
}

/** What is done for several is part of the trace of the only one, or points to those of all. */
export const placeAmong = (
  entries: ReadonlyArray<{ readonly span: Option.Option<Tracer.AnySpan> }>
): Tracer.SpanOptions => {
  const spans = entries.flatMap(({ span }) => (Option.isSome(span) ? [span.value] : []))
  const [first, ...others] = spans
  return first !== undefined && others.length === 0
    ? { parent: first }
    : { root: true, links: spans.map((span) => ({ _tag: "SpanLink" as const, span, attributes: {} })) }
}

// --- internal ---

/** A commit on its way. */
interface Entry extends Waiting {
  readonly span: Option.Option<Tracer.AnySpan>
  resume: (answer: Effect.Effect<AppendResult, StoreError>) => void
  answered: boolean
  batch: Batch | undefined
}

/** A statement under way. */
interface Batch {
  /** How many still wait for it. */
  live: number
  fiber: Fiber.RuntimeFiber<unknown> | undefined
}

/** One statement is made ready, or its answers are given, while the database works on the other. */
const senders = 2

/** Statements at once, when they are held up. */
const maxUnderWay = 8

/** How long the end of the scope waits for the commits that are under way, in milliseconds. */
const patienceAtEnd = 10_000

const closed = (): StoreError =>
  new StoreError({
    reason: "Unavailable",
    operation: "commitEvents",
    description: "the store was closed before the commit was sent; nothing was stored"
  })

/** How long those that come after wait for a statement, in milliseconds: far longer than a healthy one takes. */
const usualPatience = 25

// What one statement carries: enough to make its own cost small, little enough not to keep the first waiting for the last.
const limits = { commits: 512, events: 2048, size: 1_000_000, seen: 2048 }

/** A statement of fewer has a cost that is not worth it. */
const fewest = 16

/** Of all that waits, in characters. */
const maxWaiting = 64_000_000

const awaitFiberAtMost = (fiber: Fiber.RuntimeFiber<unknown>, patience: number): Effect.Effect<void> =>
  Effect.async((resume) => {
    const done = () => {
      clearTimeout(timer)
      fiber.removeObserver(done)
      resume(Effect.void)
    }
    const timer = setTimeout(done, patience)
    fiber.addObserver(done)
  })

const traced = <A>(entries: ReadonlyArray<Entry>, effect: Effect.Effect<A>): Effect.Effect<A> =>
  withSpanIfTraced("SqlStore.sendCommits", { ...placeAmong(entries), attributes: { commits: entries.length } })(effect)

/** Whether the failure may be due to one of the commits: then the others must not suffer. */
const mayBeOnes = (cause: Cause.Cause<StoreError>): boolean => {
  const failure = Cause.failureOption(cause)
  return Option.isSome(failure)
    ? !ofTheConnection.has(failure.value.reason) || isRaised(failure.value)
    : !Cause.isInterrupted(cause)
}

const ofTheConnection: ReadonlySet<StoreErrorReason> = new Set(["CommitUnknown", "ConnectionLost", "Unavailable"])

/** Whether the server reports it as the error of a statement, such as a trigger may raise by any code. */
const isRaised = ({ cause }: StoreError): boolean => {
  const reported = cause instanceof SqlError ? cause.cause : undefined
  return typeof reported === "object" && reported !== null && "severity" in reported && reported.severity === "ERROR"
}
