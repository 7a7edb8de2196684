/**
 * The service that the layer of an aggregate provides: `operations.ts` gets it from the context of a caller.
 *
 * Its operations take the ids that callers know, check them, and work on the streams of these ids. `evaluate` chooses
 * how a command is evaluated: with the aggregate's lock, or isolated; idempotent, or not; under an expected sequence,
 * or not.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"
import type { Acknowledged, AsOf, Evaluated, Root } from "../../Aggregate.js"
import type { Event } from "../../Event.js"
import { StoreAdapter, type StoreAdapterService } from "../../StoreAdapter.js"
import { type StoreError, ValidationError, ValidationIssue } from "../../StoreError.js"
import { HybridClock } from "../../Timestamp.js"
import type { Tagged } from "../codec/eventCodec.js"
import { insideTransaction } from "../runtime/ambientTransaction.js"
import { type Chain, DecidingOn } from "../runtime/commandCause.js"
import { settleCommit } from "../runtime/retry.js"
import { withoutReceipts } from "../store/receiptStreams.js"
import { handles } from "../store/runProjections.js"
import { streamReaderOf } from "../store/streamReader.js"
import {
  type CommandCall,
  type CommandContext,
  type CommandFailure,
  callOf,
  type DecidedCall,
  decidesItself,
  expecting,
  isolated,
  makeCallerReader
} from "./commandContext.js"
import { evaluate } from "./commandHandler.js"
import { acknowledgedOf } from "./commandResult.js"
import { withServices } from "./commitSeveral.js"
import { type ConditionValues, expectedOf, hasConditions, withoutConditions } from "./conditions.js"
import type { AggregateDefinition, RunDecision } from "./definition.js"
import { type HistoricEvent, history } from "./history.js"
import { evaluateIdempotent } from "./idempotentCommand.js"
import { captureLayerContext, type LayerContext } from "./layerContext.js"
import { initial, load, refresh, type VersionedState } from "./loadState.js"
import { makeSeveralLayer, type SeveralElsewhere, type SeveralLayer } from "./member.js"
import { replay } from "./replay.js"
import { makeReplicaQueries } from "./replicaQueries.js"
import { type CacheLimits, makeStateCache, type StateCache } from "./stateCache.js"
import { commitSnapshot } from "./takeSnapshot.js"

/** The failures of a read. */
export type ReadFailure = ValidationError | StoreError

/** The operations of an aggregate. */
export interface Service<State, A extends Tagged, C, E> {
  /**
   * The definition that the layer was made of. `operations.ts` finds out by it that another aggregate has the same
   * name.
   */
  readonly definition: AggregateDefinition<State, A, C>
  /** Evaluates a command in the context of its caller's fiber. */
  readonly evaluate: (
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    id: string,
    command: C
  ) => Effect.Effect<Evaluated<State, A>, CommandFailure<E>>
  /** Evaluates a command as `evaluate` does. Its result has no state and no events. */
  readonly acknowledge: (
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    id: string,
    command: C
  ) => Effect.Effect<Acknowledged, CommandFailure<E>>
  /** What `evaluateAll` evaluates commands of this aggregate with, or why it can't. */
  readonly several: SeveralLayer | SeveralElsewhere
  /** Drops the cached state of an aggregate that is not in use. */
  readonly forget: (id: string) => void
  readonly exists: (id: string) => Effect.Effect<boolean, ReadFailure>
  readonly get: (id: string) => Effect.Effect<State, ReadFailure>
  readonly fetch: (id: string) => Effect.Effect<State, ReadFailure>
  readonly root: <Id extends string>(id: Id) => Effect.Effect<Root<State, Id>, ReadFailure>
  readonly replay: (id: string, at: number | AsOf) => Effect.Effect<State, ReadFailure>
  readonly snapshot: (id: string) => Effect.Effect<void, ReadFailure>
  readonly history: (id: string) => Stream.Stream<HistoricEvent<A>, ReadFailure>
}

export const makeService = <State, A extends Tagged, C, E, R>(
  definition: AggregateDefinition<State, A, C, E, R>,
  limits: CacheLimits
): Effect.Effect<Service<State, A, C, E>, never, StoreAdapter | R | Scope.Scope> =>
  Effect.gen(function* () {
    const store = yield* StoreAdapter
    const layerContext = yield* captureLayerContext<R>()
    const stateCache = yield* makeStateCache<State, CommandFailure<E>>(
      limits,
      (id) => (definition.freshIds.consume(id) ? initial(definition, id) : undefined),
      Clock.currentTimeMillis
    )
    const context: CommandContext<State, A, C, E> = {
      definition,
      store,
      stateCache,
      clock: yield* HybridClock,
      isInTransaction: false,
      retry: definition.retry,
      decide: definition.decider(deciding(layerContext)),
      forkNeutral: layerContext.forkNeutral,
      ...committing(definition, store, layerContext)
    }
    const projections = definition.projections.map((projection) =>
      withServices(withoutReceipts(projection), layerContext.provide)
    )
    const several = makeSeveralLayer(context, projections, layerContext)
    const evaluate = evaluating(context)
    return {
      definition,
      evaluate,
      acknowledge: (fiber, id, command) => Effect.map(evaluate(fiber, id, command), acknowledgedOf),
      several,
      forget: stateCache.forget,
      ...makeReads(definition, store, stateCache)
    }
  })

/** Why the id is refused, before anything is read or decided. */
export const idProblem = (
  { name, streams }: Pick<AggregateDefinition<never, never>, "name" | "streams">,
  operation: string,
  id: unknown
): ValidationError | undefined => {
  const message = streams.problemOf(id)
  return message === undefined ? undefined : badInput(`${name}.${operation}`, "id", message)
}

export const badInput = (operation: string, field: string, message: string): ValidationError =>
  new ValidationError({ operation, issues: [new ValidationIssue({ path: [field], message })] })

// --- internal ---

/**
 * Runs a decision with the services of the layer, and notes for nested commands which aggregate it decides on, and
 * which chain they belong to.
 */
const deciding =
  <R>({ provide }: LayerContext<R>): RunDecision<R> =>
  (decision, streamId, call) =>
    provide(
      Effect.mapInputContext(decision, (context: Context.Context<R>) =>
        Context.add(context, DecidingOn, {
          streams: [...Context.get(context, DecidingOn).streams, streamId],
          chain: chainWithin(call)
        })
      )
    )

/** The chain of the commands that the handler of the call evaluates. */
const chainWithin = (call: DecidedCall<unknown>): Chain => {
  if (call.chain !== undefined) return call.chain
  call.ownChain ??= { correlationId: undefined, causationId: undefined }
  return call.ownChain
}

const committing = <State, A extends Tagged, C, E, R>(
  definition: AggregateDefinition<State, A, C, E, R>,
  store: StoreAdapterService,
  { provide }: LayerContext<R>
): Pick<CommandContext<State, A, C, E>, "commit" | "commitOnce" | "isProjected"> => {
  const projections = definition.projections.map(withoutReceipts)
  const commitAll = (events: ReadonlyArray<Event>): Effect.Effect<void, CommandFailure<E>> =>
    provide(store.commitAll(events, projections))
  // Without projections a commit needs no services.
  const commitOnly = (events: ReadonlyArray<Event>): Effect.Effect<void, CommandFailure<E>> =>
    store.commitAll(events, noProjections)
  const commitOnce = projections.length === 0 ? commitOnly : commitAll
  return {
    commitOnce,
    commit: (events) => settleCommit(definition.retry, commitOnce(events)),
    isProjected:
      projections.length === 0
        ? undefined
        : (events) => projections.some((projection) => events.some((event) => handles(projection, event)))
  }
}

const noProjections: readonly [] = []

const evaluating = <State, A extends Tagged, C, E>(
  context: CommandContext<State, A, C, E>
): Service<State, A, C, E>["evaluate"] => {
  const { definition, stateCache } = context
  const callerOf = makeCallerReader()
  return (fiber, id, command) => {
    const refused = stateCache.has(id) ? undefined : idProblem(definition, "evaluate", id)
    if (refused !== undefined) return Effect.fail(refused)
    const caller = callerOf(fiber.currentContext)
    const { conditions, decision, isInTransaction } = caller
    const call = callOf(fiber, caller, id, command)
    const isNested = decision.streams.length > 0
    if (isNested && decision.streams.includes(definition.streams.streamId(id))) {
      return Effect.fail(badInput(`${definition.name}.evaluate`, "id", decidesItself))
    }
    const own = isInTransaction || isNested ? isolated(context, isInTransaction) : context
    return hasConditions(conditions) ? evaluateUnder(conditions, own, call) : evaluate(own, call)
  }
}

/** Evaluates a command under the conditions of its caller. */
const evaluateUnder = <State, A extends Tagged, C, E>(
  conditions: ConditionValues,
  context: CommandContext<State, A, C, E>,
  call: CommandCall<C>
): Effect.Effect<Evaluated<State, A>, CommandFailure<E>> =>
  Effect.flatMap(expectedOf(context.definition.name, conditions), (expected) => {
    const conditional = expected === undefined ? context : expecting(context, call.id, expected)
    return withoutConditions(
      "commandId" in conditions || conditions.attempt !== undefined
        ? evaluateIdempotent(conditional, call, conditions)
        : evaluate(conditional, call)
    )
  })

const makeReads = <State, A extends Tagged, C, E>(
  definition: AggregateDefinition<State, A>,
  store: StoreAdapterService,
  stateCache: StateCache<State, CommandFailure<E>>
): Omit<Service<State, A, C, E>, "acknowledge" | "definition" | "evaluate" | "forget" | "several"> => {
  /**
   * Refreshes the cached state, or loads it. Inside a transaction the cache is left alone, because the state may be
   * rolled back.
   */
  const fetch = (id: string): Effect.Effect<VersionedState<State>, ReadFailure> =>
    Effect.flatMap(insideTransaction, (isInside) =>
      isInside
        ? load(definition, store, id)
        : Effect.flatMap(Clock.currentTimeMillis, (now) => {
            const cached = stateCache.peek(id, now)
            const read = cached === undefined ? load(definition, store, id) : refresh(definition, store, cached)
            return Effect.tap(read, (root) => stateCache.put(root, cached, now))
          })
    )

  const get = (id: string): Effect.Effect<VersionedState<State>, ReadFailure> =>
    Effect.flatMap(insideTransaction, (isInside) =>
      Effect.flatMap(Clock.currentTimeMillis, (now) => {
        const cached = isInside ? undefined : stateCache.peek(id, now)
        return cached === undefined ? fetch(id) : Effect.succeed(cached)
      })
    )

  const onValid = <B, E2>(
    operation: string,
    id: string,
    work: () => Effect.Effect<B, E2>
  ): Effect.Effect<B, E2 | ValidationError> =>
    (stateCache.has(id) ? undefined : idProblem(definition, operation, id)) ?? work()

  const streamIdOf = (id: string): string => definition.streams.streamId(id)
  const { reading, state } = makeReplicaQueries(definition, store, stateCache, fetch)

  return {
    exists: (id) => onValid("exists", id, () => reading((reads) => streamReaderOf(reads).exists(streamIdOf(id)))),
    get: (id) => onValid("get", id, () => Effect.map(state(id, get, true), stateOf)),
    fetch: (id) => onValid("fetch", id, () => Effect.map(state(id, fetch, false), stateOf)),
    root: (id) =>
      onValid("root", id, () =>
        Effect.map(state(id, fetch, false), ({ sequence, state }) => ({ id, sequence, state }))
      ),
    replay: (id, at) =>
      onValid("replay", id, () =>
        reading((reads) => {
          const replayed = replay(definition, reads, id, at)
          // The replica may not have the sequence yet.
          return reads === store
            ? replayed
            : Effect.catchTag(replayed, "ValidationError", () => replay(definition, store, id, at))
        })
      ),
    snapshot: (id) =>
      onValid("snapshot", id, () => Effect.flatMap(fetch(id), (root) => commitSnapshot(definition, store, root))),
    history: (id) =>
      history(
        definition,
        onValid("history", id, () => reading((reads) => Effect.succeed([streamIdOf(id), reads] as const)))
      )
  }
}

const stateOf = <State>({ state }: VersionedState<State>): State => state
