/**
 * Typed handlers of a subscription, for the events of one aggregate. `Subscription` exports all of it.
 */
import * as Effect from "effect/Effect"
import type { FeedEvent } from "../../EventFeed.js"
import type { Projection, Source } from "../../Projection.js"
import type { StoreError } from "../../StoreError.js"
import { type HandlerContext, type HandlerError, makeEventCodec, type Tagged } from "../codec/eventCodec.js"
import { withOwnIds } from "../store/origin.js"

/**
 * What a subscription does with the events of one aggregate. `on` makes one.
 */
export interface On<out E = never, out R = never> {
  readonly of: Projection.Origin
  /** The types of the events that have a handler. */
  readonly events: ReadonlyArray<string>
  readonly handle: (event: FeedEvent) => Effect.Effect<void, E, R>
}

export declare namespace On {
  /**
   * Any of them.
   */
  // biome-ignore lint/suspicious/noExplicitAny: the bound of a type parameter that takes all of them
  export type Any = On<any, any>

  /**
   * What its handlers may fail with.
   */
  export type Error<O> = O extends On<infer E, infer _R> ? E : never

  /**
   * What its handlers need.
   */
  export type Context<O> = O extends On<infer _E, infer R> ? R : never
}

/**
 * What `on` takes for each event type: a handler of the decoded event, and of the stored one around it, with the `id` of its aggregate.
 */
export type EventHandlers<A extends Tagged> = {
  readonly [K in A["_tag"]]?: (
    event: Extract<A, { readonly _tag: K }>,
    envelope: FeedEvent
    // biome-ignore lint/suspicious/noExplicitAny: the bound of a type parameter that takes every handler
  ) => Effect.Effect<unknown, any, any>
}

/**
 * Typed handlers for events of one aggregate, by their type: what `make` takes as `on`. They are given events of that aggregate only, though
 * others have events of the same type. An event that its schema can't decode fails with `UnreadableEvent`, which is not retried.
 */
export const on = <A extends Tagged, Handlers extends EventHandlers<A>>(
  aggregate: Source<A>,
  handlers: Handlers & { readonly [K in Exclude<keyof Handlers, A["_tag"]>]: never }
): On<HandlerError<Handlers[keyof Handlers]> | StoreError, HandlerContext<Handlers[keyof Handlers]>> => {
  type E = HandlerError<Handlers[keyof Handlers]>
  type R = HandlerContext<Handlers[keyof Handlers]>
  const codec = makeEventCodec(aggregate.events)
  const byType = new Map<string, (event: A, envelope: FeedEvent) => Effect.Effect<unknown, E, R>>(
    Object.entries(handlers)
  )
  return {
    of: { name: aggregate.name, streams: aggregate.streams },
    events: [...byType].flatMap(([type, handler]) => (handler === undefined ? [] : [type])),
    handle: (stored) => {
      const handler = byType.get(stored.type)
      return handler === undefined
        ? Effect.void
        : Effect.asVoid(
            Effect.flatMap(codec.decode("Subscription.on", stored), (event) =>
              handler(event, aggregate.streams === "plain" ? withOwnIds(stored) : stored)
            )
          )
    }
  }
}
