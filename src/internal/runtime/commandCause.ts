/**
 * What the commands of a fiber follow from: the event that is handled or projected, the command that is being decided,
 * or what the application names. Subscriptions, projections and aggregates set it, and aggregates read it.
 *
 * - A decision is part of the context, because a decision that waits changes the context in any case (`DecidingOn`).
 * - Any other cause is a `FiberRef`, because handlers run event by event: one value serves a whole batch, and the event
 *   in it is replaced. A change of the context for each event took 13 µs where the handler itself took less than 1. A
 *   fiber that a handler forks keeps the event that was handled at that time.
 *
 * The cause that was set last wins: each cause knows the decision that it was set in.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as FiberRef from "effect/FiberRef"
import type { Timestamp } from "../../Timestamp.js"

/** What the events of a command have of the chain that they belong to. */
export interface Chain {
  /** Undefined while no event of the chain is recorded. The first recorded event then names the chain. */
  correlationId: string | undefined
  /** The event that the command follows from. */
  readonly causationId: Timestamp | undefined
}

/** The part of an event that says which chain its followers belong to. */
export interface CausingEvent {
  readonly timestamp: Timestamp
  readonly correlationId?: string | undefined
}

/** The commands that the fiber is deciding: a handler may evaluate a command of another aggregate, and so on. */
export interface Decision {
  /** The streams of their aggregates. */
  readonly streams: ReadonlyArray<string>
  /** The chain of the innermost command. */
  readonly chain: Chain | undefined
}

export class DecidingOn extends Context.Reference<DecidingOn>()("effect-maestro/internal/DecidingOn", {
  defaultValue: (): Decision => noDecision
}) {}

/** The chain of a command that follows from the event. An event that has no chain begins one. */
export const chainFrom = ({ correlationId, timestamp }: CausingEvent): Chain => ({
  correlationId: correlationId ?? timestamp,
  causationId: timestamp
})

/** The chain of the commands that the fiber evaluates in that decision; none for a command that begins one. */
export const chainOf = (fiber: Fiber.RuntimeFiber<unknown, unknown>, decision: Decision): Chain | undefined => {
  const cause = fiber.getFiberRef(CommandCause)
  return cause?.decision === decision ? chainOfCause(cause) : decision.chain
}

/** Sets the chain of the commands that the effect evaluates. */
export const withChain =
  (chain: (outer: Chain | undefined) => Chain | undefined) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.withFiberRuntime((fiber) => {
      const decision = Context.get(fiber.currentContext, DecidingOn)
      return Effect.locally(effect, CommandCause, {
        decision,
        event: undefined,
        chain: chain(chainOf(fiber, decision))
      })
    })

/**
 * Makes an effect that handles events one after the other, and calls the given function before each. The commands that
 * are evaluated then follow from that event.
 */
export const followingEvents = <A, E, R>(
  handling: (follow: (event: CausingEvent) => void) => Effect.Effect<A, E, R>
): Effect.Effect<A, E, R> =>
  Effect.withFiberRuntime((fiber) => {
    const cause: Cause = { decision: Context.get(fiber.currentContext, DecidingOn), event: undefined, chain: undefined }
    const follow = (event: CausingEvent) => {
      cause.event = event
      cause.chain = undefined
    }
    return Effect.locally(handling(follow), CommandCause, cause)
  })

// --- internal ---

const noDecision: Decision = { streams: [], chain: undefined }

interface Cause {
  /** The decision that the cause was set in. A decision that began later is a nearer cause. */
  readonly decision: Decision
  /** The event that is handled now. */
  event: CausingEvent | undefined
  chain: Chain | undefined
}

const chainOfCause = (cause: Cause): Chain | undefined => {
  if (cause.chain === undefined && cause.event !== undefined) cause.chain = chainFrom(cause.event)
  return cause.chain
}

const CommandCause = FiberRef.unsafeMake<Cause | undefined>(undefined, {
  // The parent goes on with other events.
  fork: (cause) =>
    cause?.event === undefined ? cause : { decision: cause.decision, event: undefined, chain: chainOfCause(cause) },
  join: (parent) => parent
})
