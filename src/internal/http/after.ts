/**
 * Waits for a subscription before a read of its tables: the parameter `after` of a URL. `AggregateHttp` exports it.
 */
import type * as HttpApiError from "@effect/platform/HttpApiError"
import * as HttpApp from "@effect/platform/HttpApp"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { type EventFeed, Position, StreamPositionFromString } from "../../EventFeed.js"
import * as Subscription from "../../Subscription.js"
import type { SubscriptionStore } from "../../SubscriptionStore.js"
import { badRequest, isUnavailable, mistakesOf, Unavailable } from "./errors.js"

/** The parameter `after` of a URL: the `stream-position` of an own write, or a position of the feed. */
export const After = Schema.Struct({
  after: Schema.optional(
    Schema.Union(Position, StreamPositionFromString).annotations({
      jsonSchema: {
        type: "string",
        description: "the stream-position of a response, such as Account/42@3: the read waits until it has that event"
      }
    })
  )
})

/** The options of `waitFor`. */
export interface WaitOptions {
  /** How long a request waits: 2 seconds by default. */
  readonly timeout?: Duration.DurationInput | undefined
  /** The `Retry-After` after the timeout: 1 second by default. */
  readonly retryAfter?: Duration.DurationInput | undefined
}

/**
 * Waits until a subscription has handled the events up to the parameter `after` of a request, so that a client reads its
 * own writes in the tables of the subscription. Without the parameter it does not wait.
 *
 * After the timeout it fails with `Unavailable`, and sets `Retry-After` on the response. A position that is none of this
 * store is an `HttpApiDecodeError`. Other failures of the store are defects: status 500.
 */
export const waitFor =
  (subscription: string | { readonly name: string }, options: WaitOptions = {}) =>
  ({
    after
  }: typeof After.Type): Effect.Effect<
    void,
    Unavailable | HttpApiError.HttpApiDecodeError,
    EventFeed | SubscriptionStore
  > => {
    if (after === undefined) return Effect.void
    // A mistake of the program throws, because a failure would be the mistake of the request.
    const timeout = Duration.decode(options.timeout ?? "2 seconds")
    const retryAfter = Math.ceil(Duration.toSeconds(options.retryAfter ?? "1 second"))
    return Subscription.waitFor(subscription, after, timeout).pipe(
      Effect.catchTags({
        NotReached: (error) =>
          Effect.logWarning(error.message).pipe(
            Effect.zipRight(sendingRetryAfter(retryAfter)),
            Effect.zipRight(new Unavailable({ what: "Projection", retryAfter }))
          ),
        ValidationError: (error) => badRequest(mistakesOf(error, {})),
        StoreError: (error) =>
          isUnavailable(error)
            ? Effect.logError(error).pipe(
                Effect.zipRight(sendingRetryAfter(retryAfter)),
                Effect.zipRight(new Unavailable({ what: "Store", retryAfter }))
              )
            : Effect.die(error)
      })
    )
  }

// --- internal ---

const sendingRetryAfter = (seconds: number): Effect.Effect<void> =>
  HttpApp.appendPreResponseHandler((_request, response) =>
    Effect.succeed(HttpServerResponse.setHeader(response, "retry-after", String(seconds)))
  )
