/**
 * The events of all games as they are stored, sent to browsers as server-sent events at `/events`.
 *
 * The first message, `ready`, says that the feed is read from now on. A page that reads games after that message
 * misses no event, also after a lost connection.
 */
import * as HttpApiBuilder from "@effect/platform/HttpApiBuilder"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import { EventFeed } from "effect-maestro"
import { Game } from "./Game.js"

/** The text of the messages, without end. A comment every 15 seconds finds out that a browser is gone. */
export const messages = Stream.unwrap(
  Effect.map(EventFeed.head, (head) =>
    Stream.make("retry: 1000\nevent: ready\ndata: {}\n\n").pipe(
      Stream.concat(
        EventFeed.stream({ after: head, filter: { kinds: [Game.kind] } }).pipe(Stream.mapEffect(messageOf))
      ),
      Stream.merge(Stream.as(Stream.fromSchedule(Schedule.spaced("15 seconds")), ": still here\n\n"))
    )
  )
)

/** The route. Its streams end when the layer is closed, because a server waits for all responses before it closes. */
export const layer = HttpApiBuilder.Router.use((router) =>
  Effect.gen(function* () {
    const feed = yield* EventFeed.EventFeed
    const closing = yield* Effect.acquireRelease(Deferred.make<void>(), (closing) =>
      Deferred.succeed(closing, undefined)
    )
    const body = messages.pipe(
      Stream.tapErrorCause(Effect.logError),
      Stream.provideService(EventFeed.EventFeed, feed),
      Stream.interruptWhenDeferred(closing),
      Stream.encodeText
    )
    yield* router.get(
      "/events",
      HttpServerResponse.stream(body, {
        contentType: "text/event-stream",
        headers: { "cache-control": "no-store", connection: "close" }
      })
    )
  })
)

// --- internal ---

/** The message of an event. JSON has no line breaks, which would end the message. */
const messageOf = (stored: EventFeed.FeedEvent) =>
  Either.map(Game.decode(stored), (events) =>
    events.map((event) => `data: ${JSON.stringify({ game: stored.id, sequence: stored.sequence, event })}\n\n`).join("")
  )
