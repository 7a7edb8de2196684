/**
 * The types of the options that `Subscription.make` takes.
 */
import type { NonEmptyReadonlyArray } from "effect/Array"
import type * as Effect from "effect/Effect"
import type { FeedEvent, Filter } from "../../EventFeed.js"
import type { Options } from "../../Subscription.js"

/** A union instead of overloads, because the compiler then reports the wrong option only. */
export type MakeOptions<Ons, E, R> =
  | (OptionsWithoutTypes & {
      /** The handlers for the events of each aggregate. The types and kinds of the filter follow from them. */
      readonly on: Ons
    })
  | (Options & Handler<E, R> & { readonly on?: undefined })

/** The options of a subscription whose types follow from its handlers. */
export type OptionsWithoutTypes = Omit<Options, "filter"> & { readonly filter?: Omit<Filter, "types"> | undefined }

/** The items of a list, or the one item. */
export type EachOf<Ons> = Ons extends ReadonlyArray<infer One> ? One : Ons

/** The handler of a subscription: of one event after the other, or of a batch. */
export type Handler<E, R> =
  | { readonly handle: (event: FeedEvent) => Effect.Effect<unknown, E, R>; readonly handleBatch?: undefined }
  | {
      readonly handleBatch: (events: NonEmptyReadonlyArray<FeedEvent>) => Effect.Effect<unknown, E, R>
      readonly handle?: undefined
    }
