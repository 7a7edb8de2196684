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
import * as Tracer from "effect/Tracer"
import { maxSequence } from "../Event.js"
import type { StreamPosition } from "../EventFeed.js"
import type { Projection } from "../Projection.js"
import { StoreAdapter } from "../StoreAdapter.js"
import { type StoreError, ValidationError, ValidationIssue } from "../StoreError.js"
import { HybridClock } from "../Timestamp.js"
import type { CommandDigest } from "./commandDigest.js"
import { Conditions, expectedOf, hasConditions, withoutConditions } from "./conditions.js"
import { evaluateOnce } from "./evaluateOnce.js"
import type { Tagged } from "./eventCodec.js"
import {
  commitSnapshot,
  evaluate,
  evaluateApart,
  expecting,
  type Failures,
  type Outcome,
  type Workplace
} from "./lifecycle.js"
import { type Definition, initial, type Loaded, load, refresh } from "./loading.js"
import type { Minted } from "./minted.js"
import { concerns } from "./projecting.js"
import { withoutReceipts } from "./receipt.js"
import { DecidingOn, type Keeping, makeSeats } from "./seats.js"
import { insideTransaction, isInsideTransaction, StoreTransaction } from "./storeTransaction.js"

export interface Service<State, A, C, E> {
  readonly evaluate: (id: string, command: C) => Effect.Effect<Evaluated<State, A>, Failures<E>>
  readonly exists: (id: string) => Effect.Effect<boolean, ValidationError | StoreError>
  readonly get: (id: string) => Effect.Effect<State, ValidationError | StoreError>
  readonly fetch: (id: string) => Effect.Effect<State, ValidationError | StoreError>
  readonly root: (id: string) => Effect.Effect<Omit<Loaded<State>, "timestamp">, ValidationError | StoreError>
  readonly replay: (id: string, sequence: number) => Effect.Effect<State, ValidationError | StoreError>
  readonly snapshot: (id: string) => Effect.Effect<void, ValidationError | StoreError>
}

interface Evaluated<State, A> {
  readonly state: State
  readonly sequence: number
  readonly events: ReadonlyArray<A>
  readonly position: StreamPosition
  readonly repeated: boolean
}

/** What an aggregate is made of, compiled. */
export interface Design<State, A extends Tagged, C, E, R> extends Definition<State, A> {
  readonly decide: (command: C, root: Loaded<State>) => Effect.Effect<ReadonlyArray<A>, E | ValidationError, R>
  readonly digest: (command: C) => Effect.Effect<CommandDigest, ValidationError>
  readonly projections: ReadonlyArray<Projection<E, R>>
  readonly minted: Minted
}

export const makeService = <State, A extends Tagged, C, E, R, M>(
  definition: Design<State, A, C, E, R>,
  keeping: Keeping,
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
    const seats = yield* makeSeats<State>(
      keeping,
      (id) => (definition.minted.take(id) ? initial(definition, id) : undefined),
      Clock.currentTimeMillis
    )
    const projections = definition.projections.map(withoutReceipts)
    // Those that are none need nothing.
    const noProjections: readonly [] | undefined = projections.length === 0 ? [] : undefined
    const workplace: Workplace<State, A, C, E> = {
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
                Context.add(context, DecidingOn, [
                  ...Context.get(context, DecidingOn),
                  { name: definition.name, id: root.id }
                ])
              )
            )
      },
      commit: (events) =>
        noProjections === undefined
          ? provide(store.commitAll(events, projections))
          : store.commitAll(events, noProjections),
      isProjected: (events) => projections.some((projection) => events.some(({ type }) => concerns(projection, type))),
      forkNeutral: (effect) => Effect.sync(() => runNeutral(effect, { immediate: false }))
    }

    /** Reads on from the state that is kept, and keeps what it came to. */
    const fetch = (id: string): Effect.Effect<Loaded<State>, ValidationError | StoreError> =>
      Effect.flatMap(insideTransaction, (inside) =>
        inside
          ? load(definition, store, id)
          : Effect.flatMap(Clock.currentTimeMillis, (now) => {
              const kept = seats.kept(id, now)
              const read = kept === undefined ? load(definition, store, id) : refresh(definition, store, kept)
              return Effect.tap(read, (root) => seats.keep(root, kept, now))
            })
      )

    return {
      evaluate: (id, command) =>
        Effect.withFiberRuntime((fiber) => {
          const caller = fiber.currentContext
          const surroundings = {
            metadata: Context.get(caller, metadata),
            clock: Context.get(fiber.currentDefaultServices, Clock.Clock)
          }
          const inside = isInsideTransaction(caller)
          const deciding = Context.get(caller, DecidingOn)
          if (deciding.some((other) => other.name === definition.name && other.id === id)) {
            return Effect.fail(decidesItself(definition.name))
          }
          const apart = inside || deciding.length > 0
          const conditions = Context.get(caller, Conditions)
          const evaluating = (place: Workplace<State, A, C, E>) =>
            Effect.map(
              "commandId" in conditions
                ? evaluateOnce(place, surroundings, { apart, inside }, id, command, conditions.commandId)
                : apart
                  ? evaluateApart(place, surroundings, inside, id, command)
                  : evaluate(place, surroundings, id, command),
              answerOf
            )
          if (!hasConditions(conditions)) return evaluating(workplace)
          return Effect.flatMap(expectedOf(definition.name, conditions), (expected) =>
            withoutConditions(evaluating(expected === undefined ? workplace : expecting(workplace, id, expected)))
          )
        }),
      exists: (id) => Effect.map(store.getEvents(id, 1, { maxSequence: 1 }), ({ length }) => length > 0),
      get: (id) =>
        Effect.flatMap(insideTransaction, (inside) =>
          Effect.flatMap(Clock.currentTimeMillis, (now) => {
            const kept = inside ? undefined : seats.kept(id, now)
            return kept === undefined ? Effect.map(fetch(id), stateOf) : Effect.succeed(kept.state)
          })
        ),
      fetch: (id) => Effect.map(fetch(id), stateOf),
      root: (id) => Effect.map(fetch(id), ({ sequence, state }) => ({ id, sequence, state })),
      replay: (id, sequence) => {
        const refused = (message: string) =>
          new ValidationError({
            operation: `${definition.name}.replay`,
            issues: [new ValidationIssue({ index: 0, path: ["sequence"], message })]
          })
        if (!Number.isInteger(sequence) || sequence < 0 || sequence > maxSequence) {
          return Effect.fail(refused(`must be an integer from 0 to ${maxSequence}`))
        }
        return Effect.flatMap(load(definition, store, id, sequence), (root) =>
          root.sequence === sequence
            ? Effect.succeed(root.state)
            : Effect.fail(refused(`must be at most ${root.sequence}, the sequence of the last event`))
        )
      },
      snapshot: (id) => Effect.flatMap(fetch(id), (root) => commitSnapshot(definition, store, root))
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

const answerOf = <State, A>({ events, repeated, root }: Outcome<State, A>): Evaluated<State, A> => ({
  state: root.state,
  sequence: root.sequence,
  events,
  position: { aggregateId: root.id, sequence: root.sequence },
  repeated: repeated === true
})

/** It would change what the handler decides on: its own events could never be stored. */
const decidesItself = (name: string): ValidationError =>
  new ValidationError({
    operation: `${name}.evaluate`,
    issues: [
      new ValidationIssue({
        index: 0,
        path: ["id"],
        message: "must not be the aggregate whose command the handler around is deciding"
      })
    ]
  })

const stateOf = <State>({ state }: Loaded<State>): State => state
