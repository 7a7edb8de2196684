/**
 * What commands are evaluated with: `CommandContext` for all commands of a layer, `CommandCall` for one call.
 *
 * `service.ts` makes both. `expecting` and `isolated` make variants for commands under a condition, and for commands
 * that must not take their aggregate's lock.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Tracer from "effect/Tracer"
import type { Failure } from "../../Aggregate.js"
import type { Event } from "../../Event.js"
import type { StoreAdapterService } from "../../StoreAdapter.js"
import type { CommandIdReused, UnexpectedSequence, ValidationError } from "../../StoreError.js"
import type { HybridClockService } from "../../Timestamp.js"
import type { BadInput, Tagged } from "../codec/eventCodec.js"
import { isInsideTransaction } from "../runtime/ambientTransaction.js"
import { type Chain, chainOf, DecidingOn, type Decision } from "../runtime/commandCause.js"
import { traceparentOf } from "../runtime/traceContext.js"
import { Conditions, type ConditionValues, unexpected } from "./conditions.js"
import type { AggregateDefinition } from "./definition.js"
import type { VersionedState } from "./loadState.js"
import { Metadata } from "./metadata.js"
import { makeDetachedCache, type StateCache } from "./stateCache.js"

/**
 * The failures of a command. The last two come only from a command under a condition. `Aggregate` adds them to the
 * types of those alone.
 */
export type CommandFailure<E> = E | Failure | CommandIdReused | UnexpectedSequence

/** What the commands of one layer are evaluated with. */
export interface CommandContext<State, A extends Tagged, C, E> {
  readonly definition: AggregateDefinition<State, A, C>
  readonly store: StoreAdapterService
  readonly clock: HybridClockService
  readonly stateCache: StateCache<State, CommandFailure<E>>
  /**
   * Whether commands are part of a transaction. Then no read is retried by itself, because it can't succeed any more.
   */
  readonly isInTransaction: boolean
  /** Runs the command's handler, with the services of the layer. */
  readonly decide: (
    call: DecidedCall<C>,
    root: VersionedState<State>
  ) => Effect.Effect<ReadonlyArray<A>, E | ValidationError | UnexpectedSequence>
  /** The schedule of deciding again, after a lost race or a transient failure of a read. */
  readonly retry: Schedule.Schedule<unknown>
  /**
   * Commits the events with the projections, with the services of the layer, and settles a commit of unknown outcome.
   */
  readonly commit: (events: ReadonlyArray<Event>) => Effect.Effect<void, CommandFailure<E>>
  /** Commits without settling, for commands in a transaction. */
  readonly commitOnce: (events: ReadonlyArray<Event>) => Effect.Effect<void, CommandFailure<E>>
  /**
   * Whether a projection handles one of the events. Such events are a transaction of their own, in their caller's
   * fiber. Undefined without projections.
   */
  readonly isProjected: ((events: ReadonlyArray<Event>) => boolean) | undefined
  /**
   * Forks a commit for several callers: uninterruptible, and with the context of the layer, because that of no caller
   * is right for all.
   */
  readonly forkNeutral: <A2>(effect: Effect.Effect<A2>) => Fiber.RuntimeFiber<A2>
}

/** The part of a call that its decision needs. */
export interface DecidedCall<out C> extends BadInput {
  readonly command: C
  /** The chain that the command belongs to; none if the command begins one. */
  readonly chain: Chain | undefined
  /** The chain that the command begins, while its handler may evaluate commands of the same chain. */
  ownChain: Chain | undefined
}

/** One call of `evaluate`. */
export interface CommandCall<out C> extends DecidedCall<C> {
  /** The valid id of the aggregate. */
  readonly id: string
  readonly metadata: Readonly<Record<string, unknown>>
  /** The span of the call. */
  readonly traceparent: string | undefined
  readonly clock: Clock.Clock
  /** Makes the receipt that is stored with the events of a command, where it has one and may join a batch. */
  readonly receiptOf?: ((root: VersionedState<unknown>, events: ReadonlyArray<Event>) => Event) | undefined
  /** Whether the command may join a batch. After a batch failed by the fault of one command, each is committed alone. */
  mayJoinBatch: boolean
}

/** What the context of a caller says about its commands. */
export interface Caller {
  readonly context: Context.Context<never>
  readonly metadata: Readonly<Record<string, unknown>>
  readonly conditions: ConditionValues
  readonly decision: Decision
  readonly span: Tracer.AnySpan | undefined
  readonly isInTransaction: boolean
}

/**
 * Makes a function that reads the context of a caller. Contexts never change, and most calls have the context of the
 * call before, so what was read last is kept.
 */
export const makeCallerReader = (): ((context: Context.Context<never>) => Caller) => {
  let last: Caller | undefined
  return (context) => {
    if (last?.context !== context) {
      last = {
        context,
        metadata: Context.get(context, Metadata),
        conditions: Context.get(context, Conditions),
        decision: Context.get(context, DecidingOn),
        span: Option.getOrUndefined(Context.getOption(context, Tracer.ParentSpan)),
        isInTransaction: isInsideTransaction(context)
      }
    }
    return last
  }
}

/** A call of the fiber that evaluates the command. */
export const callOf = <C>(
  fiber: Fiber.RuntimeFiber<unknown, unknown>,
  { decision, metadata, span }: Caller,
  id: string,
  command: C
): CommandCall<C> => ({
  id,
  command,
  metadata,
  chain: chainOf(fiber, decision),
  ownChain: undefined,
  traceparent: span === undefined ? undefined : traceparentOf(fiber, span),
  clock: Context.get(fiber.currentDefaultServices, Clock.Clock),
  mayJoinBatch: true
})

/**
 * Why a command is refused that the handler of its own aggregate evaluates. It would change the state that the handler
 * decides on, so the handler's own events could never be stored.
 */
export const decidesItself = "must not be the aggregate whose command the handler around is deciding"

/**
 * A context that decides only while the aggregate is at the expected sequence. A mismatch is a refusal like any other:
 * one on a cached state is checked against the store, and one on events of a batch waits for their commit.
 *
 * After a lost race the command is decided again without delay, because the sequence that won shows that the
 * expectation has failed.
 */
export const expecting = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  id: string,
  expected: number
): CommandContext<State, A, C, E> => ({
  ...context,
  decide: (call, root) =>
    root.sequence === expected
      ? context.decide(call, root)
      : Exit.fail(unexpected(context.definition.kind, id, expected, root.sequence)),
  retry: Schedule.andThen(Schedule.recurs(1), context.retry)
})

/**
 * A context without the aggregate's lock and cached state. It is for a fiber that is deciding a command already,
 * because two such fibers could wait for each other forever. It is also for a fiber inside a transaction: what it reads
 * may be rolled back, and the holder of the lock may wait for the end of the transaction.
 */
export const isolated = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>,
  isInTransaction: boolean
): CommandContext<State, A, C, E> => ({
  ...context,
  stateCache: makeDetachedCache(),
  isInTransaction,
  commit: isInTransaction ? context.commitOnce : context.commit
})
