/**
 * What the layer of an aggregate provides: the operations, on the store and the services that the layer was built with.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Runtime from "effect/Runtime"
import * as RuntimeFlags from "effect/RuntimeFlags"
import type * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"
import * as Tracer from "effect/Tracer"
import { maxSequence } from "../../Event.js"
import type { StreamPosition } from "../../EventFeed.js"
import type { Projection } from "../../Projection.js"
import { StoreAdapter } from "../../StoreAdapter.js"
import { type StoreError, ValidationError, ValidationIssue } from "../../StoreError.js"
import { HybridClock } from "../../Timestamp.js"
import type { Tagged } from "../codec/eventCodec.js"
import { insideTransaction, isInsideTransaction, StoreTransaction } from "../runtime/ambientTransaction.js"
import { withSpanIfTracedIn } from "../runtime/tracing.js"
import { withoutReceipts } from "../store/receiptStreams.js"
import { handles } from "../store/runProjections.js"
import type { CommandDigest } from "./commandDigest.js"
import {
  type CommandContext,
  evaluate,
  evaluateIsolated,
  expecting,
  type Failures,
  type Outcome
} from "./commandHandler.js"
import { Conditions, expectedOf, hasConditions, withoutConditions } from "./conditions.js"
import type { FreshIds } from "./freshIds.js"
import { type Historic, history } from "./history.js"
import { evaluateIdempotent } from "./idempotentCommand.js"
import { type Definition, initial, type Loaded, load, refresh } from "./loadState.js"
import { type CacheLimits, DecidingOn, makeStateCache } from "./stateCache.js"
import { commitSnapshot } from "./takeSnapshot.js"

/** The operations of an aggregate. They take the ids that callers know, and work on the streams that these are composed to. */
export interface Service<State, A, C, E> {
  readonly evaluate: (id: string, command: C) => Effect.Effect<Evaluated<State, A>, Failures<E>>
  readonly exists: (id: string) => Effect.Effect<boolean, ValidationError | StoreError>
  readonly get: (id: string) => Effect.Effect<State, ValidationError | StoreError>
  readonly fetch: (id: string) => Effect.Effect<State, ValidationError | StoreError>
  readonly root: (
    id: string
  ) => Effect.Effect<Omit<Loaded<State>, "timestamp" | "streamId">, ValidationError | StoreError>
  readonly replay: (id: string, sequence: number) => Effect.Effect<State, ValidationError | StoreError>
  readonly snapshot: (id: string) => Effect.Effect<void, ValidationError | StoreError>
  readonly history: (id: string) => Stream.Stream<Historic<A>, ValidationError | StoreError>
}

interface Evaluated<State, A> {
  readonly state: State
  readonly sequence: number
  readonly events: ReadonlyArray<A>
  readonly position: StreamPosition
  readonly duplicate: boolean
}

/** What an aggregate is made of, compiled. */
export interface Design<State, A extends Tagged, C, E, R> extends Definition<State, A> {
  readonly decide: (command: C, root: Loaded<State>) => Effect.Effect<ReadonlyArray<A>, E | ValidationError, R>
  readonly digest: (command: C) => Effect.Effect<CommandDigest, ValidationError>
  readonly projections: ReadonlyArray<Projection.Bound<E, R>>
  readonly minted: FreshIds
}

/** An operation on the aggregate of an id, in a span, by the service that the caller's context has under the tag. */
export const operating =
  <I, S>(name: string, tag: Context.Tag<I, S>) =>
  (operation: string) =>
  <A, E>(id: string, run: (service: S) => Effect.Effect<A, E>, attributes?: () => object): Effect.Effect<A, E, I> =>
    Effect.withFiberRuntime((fiber) =>
      withSpanIfTracedIn(
        fiber,
        `Aggregate.${operation}`,
        () => ({ attributes: { "aggregate.name": name, "aggregate.id": id, ...attributes?.() } }),
        // A program that does not provide it has no such type.
        run(Context.unsafeGet(fiber.currentContext, tag))
      )
    )

export const makeService = <State, A extends Tagged, C, E, R, M>(
  definition: Design<State, A, C, E, R>,
  keeping: CacheLimits,
  metadata: Context.Reference<M, Readonly<Record<string, unknown>>>
): Effect.Effect<Service<State, A, C, E>, never, StoreAdapter | R | Scope.Scope> =>
  Effect.gen(function* () {
    const store = yield* StoreAdapter
    const clock = yield* HybridClock
    // What stays the caller's own: its place in time, so to say.
    const captured = Context.omit(
      SqlClient.TransactionConnection,
      StoreTransaction,
      DecidingOn,
      Tracer.ParentSpan,
      metadata,
      Conditions
    )(yield* Effect.context<R>()) as Context.Context<R>
    const layerRuntime = yield* Effect.runtime<never>()
    const runNeutral = Runtime.runFork(
      Runtime.make({
        context: captured as Context.Context<never>,
        fiberRefs: layerRuntime.fiberRefs,
        // A batch that was closed must be committed: its callers wait for this fiber.
        runtimeFlags: RuntimeFlags.disable(layerRuntime.runtimeFlags, RuntimeFlags.Interruption)
      })
    )
    const provide = provider(captured)
    const seats = yield* makeStateCache<State>(
      keeping,
      (streamId) => (definition.minted.take(streamId) ? initial(definition, streamId) : undefined),
      Clock.currentTimeMillis
    )
    const projections = definition.projections.map(withoutReceipts)
    // Those that are none need nothing.
    const noProjections: readonly [] | undefined = projections.length === 0 ? [] : undefined
    const workplace: CommandContext<State, A, C, E> = {
      clock,
      definition,
      seats,
      store,
      digest: definition.digest,
      again: definition.retry,
      decide: (command, root) => {
        const decision = definition.decide(command, root)
        return Exit.isExit(decision)
          ? (decision as Effect.Effect<ReadonlyArray<A>, E | ValidationError>)
          : provide(
              Effect.mapInputContext(decision, (context: Context.Context<R>) =>
                Context.add(context, DecidingOn, [...Context.get(context, DecidingOn), root.streamId])
              )
            )
      },
      commit: (events) =>
        noProjections === undefined
          ? provide(store.commitAll(events, projections))
          : store.commitAll(events, noProjections),
      isProjected: (events) => projections.some((projection) => events.some((event) => handles(projection, event))),
      forkNeutral: (effect) => Effect.sync(() => runNeutral(effect, { immediate: false }))
    }

    /** Reads on from the state that is kept, and keeps what it came to. */
    const fetch = (streamId: string): Effect.Effect<Loaded<State>, ValidationError | StoreError> =>
      Effect.flatMap(insideTransaction, (inside) =>
        inside
          ? load(definition, store, streamId)
          : Effect.flatMap(Clock.currentTimeMillis, (now) => {
              const kept = seats.kept(streamId, now)
              const read = kept === undefined ? load(definition, store, streamId) : refresh(definition, store, kept)
              return Effect.tap(read, (root) => seats.keep(root, kept, now))
            })
      )

    /** Refuses an id that can be none, before anything is read or decided. */
    const refusedId = (operation: string, id: unknown): ValidationError | undefined => {
      const message = definition.streams.problemOf(id)
      return message === undefined ? undefined : badInput(`${definition.name}.${operation}`, "id", message)
    }

    const onStream =
      (operation: string) =>
      <A2, E2>(
        id: string,
        work: (streamId: string) => Effect.Effect<A2, E2>
      ): Effect.Effect<A2, E2 | ValidationError> =>
        refusedId(operation, id) ?? work(definition.streams.streamId(id))

    return {
      evaluate: (id, command) =>
        Effect.withFiberRuntime((fiber) => {
          const refused = refusedId("evaluate", id)
          if (refused !== undefined) return Effect.fail(refused)
          const streamId = definition.streams.streamId(id)
          const caller = fiber.currentContext
          const surroundings = {
            metadata: Context.get(caller, metadata),
            clock: Context.get(fiber.currentDefaultServices, Clock.Clock)
          }
          const inside = isInsideTransaction(caller)
          const deciding = Context.get(caller, DecidingOn)
          if (deciding.includes(streamId)) return Effect.fail(decidesItself(definition.name))
          const apart = inside || deciding.length > 0
          const conditions = Context.get(caller, Conditions)
          const evaluating = (place: CommandContext<State, A, C, E>) =>
            Effect.map(
              "commandId" in conditions
                ? evaluateIdempotent(place, surroundings, { apart, inside }, streamId, command, conditions.commandId)
                : apart
                  ? evaluateIsolated(place, surroundings, inside, streamId, command)
                  : evaluate(place, surroundings, streamId, command),
              answerOf
            )
          if (!hasConditions(conditions)) return evaluating(workplace)
          return Effect.flatMap(expectedOf(definition.name, conditions), (expected) =>
            withoutConditions(evaluating(expected === undefined ? workplace : expecting(workplace, id, expected)))
          )
        }),
      exists: (id) =>
        onStream("exists")(id, (streamId) =>
          Effect.map(store.getEvents(streamId, 1, { maxSequence: 1 }), ({ length }) => length > 0)
        ),
      get: (id) =>
        onStream("get")(id, (streamId) =>
          Effect.flatMap(insideTransaction, (inside) =>
            Effect.flatMap(Clock.currentTimeMillis, (now) => {
              const kept = inside ? undefined : seats.kept(streamId, now)
              return kept === undefined ? Effect.map(fetch(streamId), stateOf) : Effect.succeed(kept.state)
            })
          )
        ),
      fetch: (id) => onStream("fetch")(id, (streamId) => Effect.map(fetch(streamId), stateOf)),
      root: (id) =>
        onStream("root")(id, (streamId) =>
          Effect.map(fetch(streamId), ({ sequence, state }) => ({ id, sequence, state }))
        ),
      replay: (id, sequence) =>
        onStream("replay")(id, (streamId) => {
          const refused = (message: string) => badInput(`${definition.name}.replay`, "sequence", message)
          if (!Number.isInteger(sequence) || sequence < 0 || sequence > maxSequence) {
            return refused(`must be an integer from 0 to ${maxSequence}`)
          }
          return Effect.flatMap(
            load(definition, store, streamId, sequence),
            (root): Effect.Effect<State, ValidationError> =>
              root.sequence === sequence
                ? Effect.succeed(root.state)
                : refused(`must be at most ${root.sequence}, the sequence of the last event`)
          )
        }),
      snapshot: (id) =>
        onStream("snapshot")(id, (streamId) =>
          Effect.flatMap(fetch(streamId), (root) => commitSnapshot(definition, store, root))
        ),
      history: (id) => history(definition, store, onStream("history")(id, Effect.succeed))
    }
  })

// --- internal ---

/**
 * Gives an effect the services of the layer, and the context of its caller, which wins: a `Context.Reference` such as a tenant is the
 * caller's. So `HttpApi` and `Rpc` do it, too. What belongs to the store of the layer stays: another client would be another database.
 * An effect that has ended already needs none of it.
 */
const provider = <R>(services: Context.Context<R>) => {
  const pinned = [...services.unsafeMap].filter(([key]) => /^(@effect\/sql|effect-maestro\/)/.test(key))
  // Callers mostly have the same context.
  let last: { readonly caller: Context.Context<never>; readonly merged: Context.Context<R> } | undefined
  const merged = (caller: Context.Context<never>): Context.Context<R> => {
    if (last?.caller !== caller) {
      last = {
        caller,
        merged: Context.unsafeMake(new Map([...services.unsafeMap, ...caller.unsafeMap, ...pinned]))
      }
    }
    return last.merged
  }
  return <A, E>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E> =>
    Exit.isExit(effect) ? (effect as Effect.Effect<A, E>) : Effect.mapInputContext(effect, merged)
}

const answerOf = <State, A>({ events, duplicate, root }: Outcome<State, A>): Evaluated<State, A> => ({
  state: root.state,
  sequence: root.sequence,
  events,
  position: { aggregateId: root.streamId, sequence: root.sequence },
  duplicate: duplicate === true
})

/** It would change what the handler decides on: its own events could never be stored. */
const decidesItself = (name: string): ValidationError =>
  badInput(`${name}.evaluate`, "id", "must not be the aggregate whose command the handler around is deciding")

const badInput = (operation: string, field: string, message: string): ValidationError =>
  new ValidationError({ operation, issues: [new ValidationIssue({ path: [field], message })] })

const stateOf = <State>({ state }: Loaded<State>): State => state
