/**
 * What the layer of an aggregate provides: the operations, on the store and the services that the layer was built with.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Tracer from "effect/Tracer"
import { maxSequence } from "../Event.js"
import { StoreAdapter } from "../StoreAdapter.js"
import { type RetryCommand, type StoreError, ValidationError, ValidationIssue } from "../StoreError.js"
import { HybridClock } from "../Timestamp.js"
import type { Tagged } from "./eventCodec.js"
import { commitSnapshot, evaluate, evaluateApart, type Workplace } from "./lifecycle.js"
import { type Definition, type Loaded, load, refresh } from "./loading.js"
import { HoldsTurn, type Keeping, makeSeats } from "./seats.js"
import { insideTransaction, StoreTransaction } from "./storeTransaction.js"

export interface Service<State, A, C, E> {
  readonly evaluate: (
    id: string,
    command: C
  ) => Effect.Effect<Evaluated<State, A>, E | RetryCommand | ValidationError | StoreError>
  readonly get: (id: string) => Effect.Effect<State, ValidationError | StoreError>
  readonly fetch: (id: string) => Effect.Effect<State, ValidationError | StoreError>
  readonly replay: (id: string, sequence: number) => Effect.Effect<State, ValidationError | StoreError>
  readonly snapshot: (id: string) => Effect.Effect<void, ValidationError | StoreError>
}

interface Evaluated<State, A> {
  readonly state: State
  readonly sequence: number
  readonly events: ReadonlyArray<A>
}

export const makeService = <State, A extends Tagged, C extends Tagged, E, R, M>(
  definition: Definition<State, A, C, E, R>,
  keeping: Keeping,
  metadata: Context.Tag<M, Readonly<Record<string, unknown>>> & Effect.Effect<Readonly<Record<string, unknown>>>
): Effect.Effect<Service<State, A, C, E>, never, StoreAdapter | R | Scope.Scope> =>
  Effect.gen(function* () {
    const store = yield* StoreAdapter
    const clock = yield* HybridClock
    // What stays the caller's own: its place in time, so to say.
    const captured = Context.omit(
      SqlClient.TransactionConnection,
      StoreTransaction,
      HoldsTurn,
      Tracer.ParentSpan,
      metadata
    )(yield* Effect.context<R>()) as Context.Context<R>
    const seats = yield* makeSeats<State>(keeping, Clock.currentTimeMillis)
    const workplace: Workplace<State, A, C, E, R> = { clock, definition, seats, store }

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

    const evaluateHere = (id: string, command: C) =>
      Effect.flatMap(metadata, (own) =>
        Effect.flatMap(insideTransaction, (inside) =>
          Effect.flatMap(HoldsTurn, (holds) =>
            inside || holds ? evaluateApart(workplace, own, inside, id, command) : evaluate(workplace, own, id, command)
          )
        )
      )

    return {
      evaluate: (id, command) =>
        Effect.mapInputContext(
          Effect.map(evaluateHere(id, command), ({ events, root }) => ({
            state: root.state,
            sequence: root.sequence,
            events
          })),
          (caller: Context.Context<never>) => Context.merge(caller, captured)
        ),
      get: (id) =>
        Effect.flatMap(insideTransaction, (inside) =>
          Effect.flatMap(Clock.currentTimeMillis, (now) => {
            const kept = inside ? undefined : seats.kept(id, now)
            return kept === undefined ? Effect.map(fetch(id), stateOf) : Effect.succeed(kept.state)
          })
        ),
      fetch: (id) => Effect.map(fetch(id), stateOf),
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

const stateOf = <State>({ state }: Loaded<State>): State => state
