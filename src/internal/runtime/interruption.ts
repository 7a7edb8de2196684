/**
 * Interruption that does not wait for a database that does not answer.
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { withLiveClock } from "./clock.js"

/** Waits for what has to be cleaned up after an interruption, but only so long. */
export const awaitGrace = <A>(cleanUp: Effect.Effect<A>): Effect.Effect<unknown> => awaitAtMost(grace, cleanUp)

/** The same with a time of your own. */
export const awaitAtMost = <A>(time: Duration.DurationInput, cleanUp: Effect.Effect<A>): Effect.Effect<unknown> =>
  Effect.flatMap(
    // A fiber that is interrupted once more interrupts its children at once, whatever region it is in: so this is no child.
    Effect.forkDaemon(withLiveClock(Effect.timeoutOption(Effect.interruptible(cleanUp), time))),
    Fiber.await
  )

/**
 * Runs the effect so that an interruption of it returns soon. What has to be cleaned up (cancelling a statement, rolling back,
 * handing back a connection) is waited for only so long; where the database does not answer by then, it goes on in the
 * background, and the connection stays out of the pool until it is done.
 */
export const boundedInterruption = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(Effect.forkDaemon(restore(effect)), (fiber) => joinBounded(restore, fiber))
  )

/** The same for a fiber that was started already, and belongs to no other. */
export const joinBounded = <A, E>(restore: Restore, fiber: Fiber.RuntimeFiber<A, E>): Effect.Effect<A, E> =>
  Effect.onInterrupt(restore(Fiber.join(fiber)), () =>
    Effect.zipRight(
      Effect.fiberIdWith((id) => Fiber.interruptAsFork(fiber, id)),
      awaitGrace(Fiber.await(fiber))
    )
  )

// --- internal ---

/** What `Effect.uninterruptibleMask` hands out. */
type Restore = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/** Enough for a cancelled statement and its rollback on a healthy connection, little for who has waited long enough. */
const grace = "250 millis"
