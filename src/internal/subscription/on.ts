/**
 * Typed handlers of a subscription, for the events of one aggregate. `Subscription` exports all of it.
 */
import * as Effect from "effect/Effect"
import type { FeedEvent } from "../../EventFeed.js"
import type { Projection, Source } from "../../Projection.js"
import type { StoreError } from "../../StoreError.js"
import { type HandlerContext, type HandlerError, makeEventCodec, type Tagged } from "../codec/eventCodec.js"
import { storedTypesOf } from "../codec/eventHistory.js"
import { runHandlers } from "../store/handledParts.js"
import { checkingIds, originOf, withOwnIds } from "../store/origin.js"

/**
 * The handlers of a subscription for the events of one aggregate. `on` makes them.
 */
export interface On<out E = never, out R = never> {
  readonly of: Projection.Origin
  /** The stored types of the events that have a handler. */
  readonly events: ReadonlyArray<string>
  /** Runs the handlers of the event. */
  readonly handle: (event: FeedEvent) => Effect.Effect<void, E, R>
}

/**
 * The types of such handlers.
 */
export declare namespace On {
  /**
   * Handlers of any types.
   */
  // biome-ignore lint/suspicious/noExplicitAny: the bound of a type parameter that takes all of them
  export type Any = On<any, any>

  /**
   * The failures of the handlers.
   */
  export type Error<O> = O extends On<infer E, infer _R> ? E : never

  /**
   * The context that the handlers need.
   */
  export type Context<O> = O extends On<infer _E, infer R> ? R : never
}

/**
 * The handlers that `on` takes, by event type. Each gets the decoded event, and the stored one with the `id` of its
 * aggregate.
 */
export type EventHandlers<A extends Tagged, Id extends string = string> = {
  readonly [K in A["_tag"]]?: (
    event: Extract<A, { readonly _tag: K }>,
    envelope: FeedEvent<Id>
    // biome-ignore lint/suspicious/noExplicitAny: the bound of a type parameter that takes every handler
  ) => Effect.Effect<unknown, any, any>
}

/**
 * Makes typed handlers for the events of one aggregate, for the option `on` of `make`. They get no events of other
 * aggregates, also not of an equal type. An event that its schema can't decode, or whose id is none of the aggregate's,
 * fails with `UnreadableEvent`, which is not retried.
 *
 * The stored types follow from the handlers and the history of the events, so the filter of `make` takes no `types`
 * beside `on`. The handlers of the parts of a split event (`Upcast.toEvents`) run in order. A retry runs all of them.
 */
export const on = <A extends Tagged, Handlers extends EventHandlers<A, Id>, Id extends string = string>(
  aggregate: Source<A, Id>,
  handlers: Handlers & { readonly [K in Exclude<keyof Handlers, A["_tag"]>]: never }
): On<HandlerError<Handlers[keyof Handlers]> | StoreError, HandlerContext<Handlers[keyof Handlers]>> => {
  type E = HandlerError<Handlers[keyof Handlers]>
  type R = HandlerContext<Handlers[keyof Handlers]>
  const codec = makeEventCodec(aggregate.events)
  const decode = checkingIds(aggregate, { operation }, (stored) => codec.decode(operation, stored))
  const byTag = new Map<string, (event: A, envelope: FeedEvent) => Effect.Effect<unknown, E, R>>(
    Object.entries(handlers)
  )
  const tags = [...byTag].flatMap(([tag, handler]) => (handler === undefined ? [] : [tag]))
  const types = storedTypesOf(aggregate.events, tags)
  const handled = new Set(types)
  return {
    of: originOf(aggregate),
    events: types,
    handle: (stored) =>
      handled.has(stored.type)
        ? Effect.asVoid(
            Effect.flatMap(decode(stored), (read) =>
              runHandlers(byTag, read, aggregate.streams === "plain" ? withOwnIds(stored) : stored)
            )
          )
        : Effect.void
  }
}

// --- internal ---

const operation = "Subscription.on"
