/**
 * The services that an aggregate's layer was built with, for handlers, projections and commits. `service.ts` calls it.
 *
 * The context of the caller wins over that of the layer: a `Context.Reference` such as a tenant is the caller's, as in
 * `HttpApi` and `Rpc`. Clients of `@effect/sql` and services of this library are always those of the layer, because
 * another client would be another database.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Runtime from "effect/Runtime"
import * as RuntimeFlags from "effect/RuntimeFlags"
import * as Tracer from "effect/Tracer"
import { StoreTransaction } from "../runtime/ambientTransaction.js"
import { DecidingOn } from "../runtime/commandCause.js"
import { Conditions } from "./conditions.js"
import { Metadata } from "./metadata.js"

/** Three ways to run an effect with the context of a layer. */
export interface LayerContext<R> {
  /**
   * Gives an effect the services of the layer, and the context of its caller. An effect that is settled needs neither.
   */
  readonly provide: <A, E>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E>
  /**
   * Gives an effect the clients of `@effect/sql` and the services of this library that the layer has, and nothing else.
   * `evaluateAll` commits with the clients of one layer, and runs the projections of several.
   */
  readonly provideStore: <A, E>(effect: Effect.Effect<A, E>) => Effect.Effect<A, E>
  /** Forks an effect, uninterruptible, with the context and the fiber refs of the layer alone. */
  readonly forkNeutral: <A>(effect: Effect.Effect<A>) => Fiber.RuntimeFiber<A>
}

/** Captures the context that the layer is built in. */
export const captureLayerContext = <R>(): Effect.Effect<LayerContext<R>, never, R> =>
  Effect.map(Effect.runtime<R>(), ({ context, fiberRefs, runtimeFlags }) => {
    const services = withoutCallers(context)
    const runFork = Runtime.runFork(
      Runtime.make({
        context: services,
        fiberRefs,
        // A closed batch must be committed, because its callers wait for this fiber.
        runtimeFlags: RuntimeFlags.disable(runtimeFlags, RuntimeFlags.Interruption)
      })
    )
    const pinned = pinnedOf(services)
    return {
      provide: provider(services, pinned),
      provideStore: (effect) =>
        Effect.mapInputContext(effect, (caller: Context.Context<never>) =>
          Context.unsafeMake(new Map([...caller.unsafeMap, ...pinned]))
        ),
      forkNeutral: (effect) => runFork(effect, { immediate: false })
    }
  })

// --- internal ---

/** Leaves out what belongs to a caller: its transaction, its span, and what it sets around one command. */
const withoutCallers = <R>(context: Context.Context<R>): Context.Context<R> =>
  Context.omit(
    SqlClient.TransactionConnection,
    StoreTransaction,
    DecidingOn,
    Tracer.ParentSpan,
    Metadata,
    Conditions
  )(context) as Context.Context<R>

/** The clients of `@effect/sql` and the services of this library, by their keys. */
const pinnedOf = <R>({ unsafeMap }: Context.Context<R>) =>
  [...unsafeMap].filter(([key]) => /^(@effect\/sql|effect-maestro\/)/.test(key))

const provider = <R>(services: Context.Context<R>, pinned: ReturnType<typeof pinnedOf>): LayerContext<R>["provide"] => {
  // Most calls have the context of the call before, so the merged context of the last caller is cached.
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
