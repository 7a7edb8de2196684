/**
 * Group commit: commands on one aggregate that are decided one on the other, and committed together.
 *
 * `commandHandler.ts` opens a batch when other commands wait for the aggregate's lock. This module knows no store: the
 * commit, and what follows it, are given to `commitBatch`.
 *
 * A batch is in one of three phases:
 *
 * - `Open`: commands join it. It becomes `Closed` when no other command waits for the lock, when it is full, or after
 *   `maxBatchDelay`.
 * - `Closed`: a fiber commits it. A command that was decided on it before may still join, to wait for the result. It
 *   becomes `Done` with the result of the commit.
 * - `Done`: every member has the result.
 *
 * Invariants:
 *
 * - No member gets its result before the commit has ended. A refusal is true only if the state that it was decided on
 *   is stored.
 * - The commit runs in a fiber of its own, so that the interruption of one caller does not interrupt the others. When
 *   the last member has left, the commit is interrupted.
 * - If the commit fails by the fault of one command, which one is unknown, so every member is decided again outside of
 *   a batch.
 */
import type * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberId from "effect/FiberId"
import type { Event } from "../../Event.js"
import { liveSleep } from "../runtime/clock.js"
import { awaitGrace } from "../runtime/interruption.js"
import type { Restore } from "./fairLock.js"

/** Commands that are committed together. `Root` is the state that commands are decided on. */
export interface CommandBatch<Root, E> {
  /** The state after the last event. */
  root: Root
  readonly events: Array<Event>
  /** The number of commands, with the refused ones and the decisions of no events. */
  commands: number
  /** The number of callers that wait for the result. */
  waiting: number
  phase: Phase
  readonly result: Deferred.Deferred<Exit.Exit<void, E>>
}

/** The phase of a batch. The head of this module lists the transitions. */
export type Phase =
  | { readonly _tag: "Open" }
  | { readonly _tag: "Closed"; readonly fiber: Fiber.RuntimeFiber<unknown> }
  | { readonly _tag: "Done" }

/** The commit of a batch of several commands failed: the command is to be decided and committed by itself. */
export class RetryOutsideBatch extends Data.TaggedError("RetryOutsideBatch") {}

/** A batch without commands, on the state that the first command is decided on. */
export const openBatch = <Root, E>(root: Root): CommandBatch<Root, E> => ({
  root,
  events: [],
  commands: 0,
  waiting: 0,
  phase: open,
  result: Deferred.unsafeMake(FiberId.none)
})

/** Adds a command and its events to an open batch. */
export const joinBatch = <Root, E>(batch: CommandBatch<Root, E>, events: ReadonlyArray<Event>, root: Root): void => {
  batch.events.push(...events)
  batch.root = root
  joinWithoutEvents(batch)
}

/** Adds a command that stores nothing with the batch, and waits for its result. */
export const joinWithoutEvents = <Root, E>(batch: CommandBatch<Root, E>): void => {
  batch.commands++
  batch.waiting++
}

/** Whether commands may still add events. */
export const isOpen = ({ phase }: { readonly phase: Phase }): boolean => phase._tag === "Open"

/** Whether the batch has to be committed before another command is decided on it. */
export const isFull = ({ events }: { readonly events: ReadonlyArray<Event> }): boolean =>
  events.length >= maxBatchEvents

/**
 * Closes an open batch and commits it in a fiber of its own. A batch that every caller has left is not committed: its
 * result is an interruption. `onCommitted` runs before the members get the result. `fork` must make the fiber
 * uninterruptible.
 */
export const commitBatch = <Root, E>(
  batch: CommandBatch<Root, E>,
  { commit, fork, onCommitted }: BatchCommit<E>
): void => {
  const committing = Effect.onExit(
    Effect.interruptible(batch.waiting > 0 ? commit(batch.events) : Effect.interrupt),
    (exit) =>
      Effect.zipRight(
        onCommitted(exit),
        Effect.suspend(() => {
          batch.phase = done
          return Deferred.succeed(batch.result, exit)
        })
      )
  )
  batch.phase = { _tag: "Closed", fiber: fork(Effect.exit(committing)) }
}

/** The commit of a batch. */
export interface BatchCommit<E> {
  readonly commit: (events: ReadonlyArray<Event>) => Effect.Effect<void, E>
  readonly onCommitted: (exit: Exit.Exit<void, E>) => Effect.Effect<unknown>
  readonly fork: <A>(effect: Effect.Effect<A>) => Fiber.RuntimeFiber<A>
}

/**
 * Calls `close` after `maxBatchDelay` if the batch is still open, so that a slow handler delays no command that was
 * decided before it.
 */
export const closeAfterDelay = (batch: { readonly phase: Phase }, close: () => void): Effect.Effect<void> =>
  Effect.asVoid(
    Effect.forkDaemon(
      Effect.map(liveSleep(maxBatchDelay), () => {
        if (isOpen(batch)) close()
      })
    )
  )

/**
 * Waits for the result of a joined batch. An interruption leaves the batch. A failure is that of the command if the
 * command is the only one, or if `failsAll` finds that it concerns every command. Otherwise the failure is
 * `RetryOutsideBatch`.
 */
export const awaitBatch = <Root, E>(
  batch: CommandBatch<Root, E>,
  failsAll: (cause: Cause.Cause<E>) => boolean,
  restore: Restore
): Effect.Effect<void, E | RetryOutsideBatch> =>
  Effect.flatMap(
    Effect.exit(restore(Deferred.await(batch.result))),
    (waited): Effect.Effect<void, E | RetryOutsideBatch> => {
      if (Exit.isFailure(waited)) return Effect.zipRight(leaveBatch(batch), Effect.failCause(waited.cause))
      const result = waited.value
      if (Exit.isSuccess(result)) return Effect.void
      return batch.commands === 1 || failsAll(result.cause) ? result : new RetryOutsideBatch()
    }
  )

// --- internal ---

/** The number of events from which on a batch is committed. */
const maxBatchEvents = 1000

/** How long a batch stays open for a command that is being decided, in milliseconds. */
const maxBatchDelay = 5

const open: Phase = { _tag: "Open" }

const done: Phase = { _tag: "Done" }

/**
 * Takes one caller out. The commit is interrupted when no caller waits for it any more, and awaited for the grace
 * period.
 */
const leaveBatch = <Root, E>(batch: CommandBatch<Root, E>): Effect.Effect<void> =>
  Effect.suspend(() => {
    batch.waiting--
    return batch.waiting > 0 || batch.phase._tag !== "Closed"
      ? Effect.void
      : Effect.zipRight(Fiber.interruptFork(batch.phase.fiber), awaitGrace(Deferred.await(batch.result)))
  })
