/**
 * Bounded interruption: the clean-up of an interrupted effect is awaited for the grace period at most. The SQL store, its feed and its leases
 * use it, because the clean-up waits for a database that may not reply.
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
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

// --- internal ---

/** The function that `Effect.uninterruptibleMask` passes. */
type Restore = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/** The grace period: enough for a cancelled statement and its rollback on a healthy connection. */
const grace = "250 millis"
