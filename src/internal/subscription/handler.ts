/**
 * How the handler of a subscription is called: for one event after the other, or for a batch. `Subscription.make` calls
 * it.
 *
 * Commands that a handler evaluates for one event follow from that event. A batch may have several events, so its
 * handler names the cause of each command, by `Aggregate.causedBy`. That holds for a batch of one event, too, because
 * the size of a batch depends on the load.
 *
 * If the program has a tracer, each call has a span that links to the spans that stored its events.
 */
import type { NonEmptyReadonlyArray } from "effect/Array"
import * as Effect from "effect/Effect"
import type { FeedEvent } from "../../EventFeed.js"
import { followingEvents, withChain } from "../runtime/commandCause.js"
import { linksOf } from "../runtime/traceContext.js"
import { isTracedIn, withSpanIfTraced } from "../runtime/tracing.js"

/** Handles a batch of events. */
type BatchHandler<E, R> = (events: NonEmptyReadonlyArray<FeedEvent>) => Effect.Effect<unknown, E, R>

/** Calls the handler for one event after the other. */
export const handlingEach =
  <E, R>(name: string, handle: (event: FeedEvent) => Effect.Effect<unknown, E, R>): BatchHandler<E, R> =>
  (events) =>
    Effect.withFiberRuntime((fiber) => {
      const handleOne = isTracedIn(fiber)
        ? (event: FeedEvent) =>
            inSpan(
              name,
              [event],
              Effect.suspend(() => handle(event))
            )
        : handle
      return followingEvents((follow) =>
        Effect.forEach(
          events,
          (event) => {
            follow(event)
            return handleOne(event)
          },
          { discard: true }
        )
      )
    })

/** Calls the handler for the batch. */
export const handlingTogether =
  <E, R>(name: string, handle: BatchHandler<E, R>): BatchHandler<E, R> =>
  (events) =>
    inSpan(
      name,
      events,
      // Not the cause of the fiber that has built the layer.
      withChain(() => undefined)(Effect.suspend(() => handle(events)))
    )

// --- internal ---

const inSpan = <A, E, R>(
  name: string,
  events: NonEmptyReadonlyArray<FeedEvent>,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E, R> =>
  Effect.suspend(() => {
    const [{ aggregateId, sequence, type }] = events
    return withSpanIfTraced("Subscription.handle", {
      kind: "consumer",
      links: linksOf(events),
      attributes: {
        subscription: name,
        events: events.length,
        ...(events.length === 1
          ? { "event.type": type, "event.sequence": sequence, "aggregate.id": aggregateId }
          : undefined)
      }
    })(effect)
  })
