/**
 * Interruption of the library's own effects. The SQL store, its feed, its leases and the subscriptions use it.
 *
 * - Bounded interruption: the clean-up of an interrupted effect is awaited for the grace period at most, because it waits for a database that
 *   may not reply.
 * - `scoped`, in which an interruption is not lost.
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import { withLiveClock } from "./clock.js"

/** Waits for a clean-up for the grace period at most. */
export const awaitGrace = <A>(cleanUp: Effect.Effect<A>): Effect.Effect<unknown> => awaitAtMost(grace, cleanUp)

/** Waits for a clean-up for a time at most. The clean-up goes on. */
export const awaitAtMost = <A>(time: Duration.DurationInput, cleanUp: Effect.Effect<A>): Effect.Effect<unknown> =>
  Effect.flatMap(
    // A daemon, because a second interruption of the fiber would interrupt its children immediately, in an uninterruptible region, too.
    Effect.forkDaemon(withLiveClock(Effect.timeoutOption(Effect.interruptible(cleanUp), time))),
    Fiber.await
  )

/**
 * Runs the effect with bounded interruption. A clean-up (cancelling a statement, rolling back, giving back a connection) that takes longer than
 * the grace period goes on in the background. The connection stays out of the pool until it has ended.
 */
export const boundedInterruption = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(Effect.forkDaemon(restore(effect)), (fiber) => joinBounded(restore, fiber))
  )

/** Joins a daemon fiber with bounded interruption. */
export const joinBounded = <A, E>(restore: Restore, fiber: Fiber.RuntimeFiber<A, E>): Effect.Effect<A, E> =>
  Effect.onInterrupt(restore(Fiber.join(fiber)), () =>
    Effect.zipRight(
      Effect.fiberIdWith((id) => Fiber.interruptAsFork(fiber, id)),
      awaitGrace(Fiber.await(fiber))
    )
  )

/**
 * `Effect.scoped`, whose finalizers run in a fiber of their own.
 *
 * In Effect 3.22 a finalizer ends by giving its fiber the references back that it had before, and the mark of an interruption is one of them.
 * So a fiber that is interrupted during the second finalizer of a scope is not interrupted any more, and a loop around the scope never ends.
 */
export const scoped = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, Exclude<R, Scope.Scope>> =>
  Effect.flatMap(Scope.make(), (scope) =>
    Effect.onExit(Scope.extend(effect, scope), (exit) =>
      Effect.flatten(Effect.flatMap(Effect.forkDaemon(Scope.close(scope, exit)), Fiber.await))
    )
  )

// --- internal ---

/** The function that `Effect.uninterruptibleMask` passes. */
type Restore = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/** The grace period: enough for a cancelled statement and its rollback on a healthy connection. */
const grace = "250 millis"
