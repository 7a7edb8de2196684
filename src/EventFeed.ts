/**
 * The second port of a store: all its events in one order, for readers that follow them.
 *
 * A `Position` is the place of an event in that order. The feed shows an event only when no other can appear before it
 * any more. So a reader that has read up to a position has seen all events up to it, in whatever order concurrent
 * commits ended.
 *
 * Events are shown as they are stored: `type`, `version` and `body` are those of the release that wrote them, and no
 * history (`Upcast`) is applied. `Account.decode(event)` of an aggregate reads one as events of today.
 *
 * @since 0.1.0
 */
import type * as Brand from "effect/Brand"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Order_ from "effect/Order"
import * as ParseResult from "effect/ParseResult"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { type Envelope, maxSequence } from "./Event.js"
import type { StoreError, ValidationError } from "./StoreError.js"
import type { Time } from "./Timestamp.js"

/**
 * The place of an event in the feed. It is text that can be stored, sent, and compared by `order`, and it is valid for
 * its own store only.
 *
 * @since 0.1.0
 * @category models
 */
export type Position = string & Brand.Brand<"effect-maestro/Position">

/**
 * Returns whether a value is a position.
 *
 * @since 0.1.0
 * @category guards
 */
export const isPosition = (u: unknown): u is Position => {
  const parts = typeof u === "string" ? pattern.exec(u) : null
  return parts !== null && BigInt(parts[1] ?? 0) <= maxKey && BigInt(parts[2] ?? 0) <= maxNumber
}

/**
 * The schema of a position, whose encoded form is text.
 *
 * @since 0.1.0
 * @category schemas
 */
export const Position: Schema.Schema<Position, string> = Schema.String.pipe(
  Schema.filter(isPosition, {
    identifier: "Position",
    description: "a position of the feed",
    message: () => "Expected a position of the feed"
  })
)

/**
 * The position before the first event.
 *
 * @since 0.1.0
 * @category constants
 */
export const beginning = "0-0" as Position

/**
 * The order of positions in the feed.
 *
 * @since 0.1.0
 * @category instances
 */
export const order: Order_.Order<Position> = Order_.make((self, that) => {
  if (self === that) return 0
  const [a, b] = [partsOf(self), partsOf(that)]
  return a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : a[1] < b[1] ? -1 : a[1] > b[1] ? 1 : 0
})

/**
 * The place of an event in the stream of its aggregate. `evaluate` of an aggregate returns one.
 *
 * @since 0.1.0
 * @category models
 */
export interface StreamPosition {
  /** The id of the stream: `Account.streamId(id)`. */
  readonly aggregateId: string
  readonly sequence: number
}

/**
 * The schema of a stream position, which is its own encoded form. The sequence is 0 where the aggregate has no events.
 *
 * @since 0.1.0
 * @category schemas
 */
export const StreamPosition: Schema.Schema<StreamPosition> = Schema.Struct({
  aggregateId: Schema.String.pipe(Schema.minLength(1)),
  sequence: Schema.Int.pipe(Schema.between(0, maxSequence))
}).annotations({ identifier: "StreamPosition" })

/**
 * A stream position as text, such as `Account/42@3`: for a header or a query of a URL. The id of the stream is
 * percent-encoded apart from its slashes, so the text is ASCII without spaces.
 *
 * @since 0.1.0
 * @category schemas
 *
 * @example
 * ```ts
 * import { EventFeed } from "effect-maestro"
 * import * as Schema from "effect/Schema"
 *
 * const text = Schema.encodeSync(EventFeed.StreamPositionFromString)({ aggregateId: "Account/42", sequence: 3 })
 * console.log(text) // prints: Account/42@3
 * ```
 */
export const StreamPositionFromString: Schema.Schema<StreamPosition, string> = Schema.transformOrFail(
  Schema.String.annotations({ description: "the place of an event in its stream, such as Account/42@3" }),
  StreamPosition,
  {
    strict: true,
    decode: (text, _, ast) => {
      const [, id = "", sequence = ""] = /^(.+)@(\d{1,10})$/s.exec(text) ?? []
      try {
        return sequence === ""
          ? ParseResult.fail(new ParseResult.Type(ast, text, "Expected a stream position, such as Account/42@3"))
          : ParseResult.succeed({ aggregateId: decodeURIComponent(id), sequence: Number(sequence) })
      } catch {
        return ParseResult.fail(new ParseResult.Type(ast, text, "The id of the stream is not percent-encoded"))
      }
    },
    encode: ({ aggregateId, sequence }, _, ast) => {
      try {
        return ParseResult.succeed(`${encodeURIComponent(aggregateId).replaceAll("%2F", "/")}@${sequence}`)
      } catch {
        return ParseResult.fail(new ParseResult.Type(ast, aggregateId, "The id of the stream is no valid text"))
      }
    }
  }
)

/**
 * An event as it is stored, with the kind and the id of its aggregate, and its position in the feed.
 *
 * @since 0.1.0
 * @category models
 */
export interface FeedEvent<out Id extends string = string> extends Envelope<Id> {
  readonly position: Position
}

/**
 * Selects events. An event must meet all conditions that are given. The store applies them, so other events are not
 * sent.
 *
 * @since 0.1.0
 * @category models
 */
export interface Filter {
  /**
   * Only events of these types, as they are stored. A type that was renamed since needs both names here. Projections and
   * `Subscription.on` find the stored types themselves.
   */
  readonly types?: ReadonlyArray<string> | undefined
  /**
   * Only events of aggregates of these kinds, such as `Account.kind`. The kind of a stream without one is `""`.
   */
  readonly kinds?: ReadonlyArray<string> | undefined
  /**
   * Only events of one chain, which is named by their `correlationId`: a text of 1 to 255 characters. The store finds
   * them by an index.
   */
  readonly correlationId?: string | undefined
  /** Only events of one slice of the aggregates, by a hash of their ids: slice `index` (from 0) of `of`. */
  readonly slice?: { readonly index: number; readonly of: number } | undefined
}

/**
 * The options of a read.
 *
 * @since 0.1.0
 * @category models
 */
export interface ReadOptions {
  /** The page begins after this position, by default with the first event. */
  readonly after?: Position | undefined
  /**
   * The maximum number of events on a page: 1 000 by default, at most 10 000. A page of several events has less than 8
   * MB of JSON, so it may end earlier.
   */
  readonly limit?: number | undefined
  readonly filter?: Filter | undefined
  /**
   * Leaves out the events that were made after this time, by their timestamps (`Timestamp.Time`). The order of the feed
   * is not the order of time, so events that are left out may stand before others that are shown. A later read as of the
   * same time may show more, because an event is made before it is committed.
   */
  readonly asOf?: Time | undefined
}

/**
 * A page of the feed.
 *
 * @since 0.1.0
 * @category models
 */
export interface Page {
  /**
   * In the order of the feed. It may be empty though `more` is true, because a store scans a limited number of events
   * for one page.
   */
  readonly events: ReadonlyArray<FeedEvent>
  /** The position after which the next page begins. All matching events up to it have been shown. */
  readonly position: Position
  /** Whether the feed has more events already. */
  readonly more: boolean
}

/**
 * The open transaction that the feed waits for, as far as the role of this client may see it.
 *
 * @since 0.1.0
 * @category models
 */
export interface OpenTransaction {
  /** The server process of its session; none for a prepared transaction. */
  readonly pid: Option.Option<number>
  /** The global identifier of a prepared transaction, by which it can be committed or rolled back. */
  readonly prepared: Option.Option<string>
  readonly database: Option.Option<string>
  readonly user: Option.Option<string>
  readonly applicationName: Option.Option<string>
  /** The state of its session, such as `idle in transaction`. */
  readonly state: Option.Option<string>
  /** When it began, in milliseconds since 1970 by the clock of the database. */
  readonly startedAt: Option.Option<number>
}

/**
 * Committed events that the feed does not show before an older transaction has ended, because that transaction may
 * commit events before them.
 *
 * @since 0.1.0
 * @category models
 */
export interface HeldBack {
  /** The number of events. */
  readonly events: number
  /** The timestamp of the first one, in milliseconds since 1970. */
  readonly since: number
  /** The transaction that they wait for; none where the database does not show it. */
  readonly transaction: Option.Option<OpenTransaction>
}

/**
 * The operations of a feed.
 *
 * @since 0.1.0
 * @category models
 */
export interface EventFeedService {
  /**
   * Reads a page of the feed. It shows committed events only, also inside a transaction that has events of its own.
   *
   * On Postgres it fails with `Misconfigured` where the log has lost the event at `after`, by a failover or by a backup that was restored.
   * Events may have taken the places before it since, and the reader would miss them.
   */
  readonly read: (options?: ReadOptions) => Effect.Effect<Page, ValidationError | StoreError>

  /** The position of the last event that the feed shows; `beginning` while there is none. */
  readonly head: Effect.Effect<Position, StoreError>

  /** The number of events that the feed shows after the position. */
  readonly count: (
    options?: Pick<ReadOptions, "after" | "asOf" | "filter">
  ) => Effect.Effect<number, ValidationError | StoreError>

  /**
   * The committed events that the feed does not show yet, if there are any. On a busy store a few events are held back
   * for some milliseconds, so check `since`. Inside a transaction its own events count, too.
   */
  readonly heldBack: (filter?: Filter) => Effect.Effect<Option.Option<HeldBack>, ValidationError | StoreError>

  /** The position of an event, also of one that the feed does not show yet; none where there is no such event. */
  readonly positionOf: (event: StreamPosition) => Effect.Effect<Option.Option<Position>, ValidationError | StoreError>

  /**
   * One or a few events of each kind, type and version in the store, where possible the oldest and the newest. With
   * `kinds` only those of these kinds. Every committed event counts, also one that the feed does not show yet. Their
   * order is open.
   *
   * A store finds them by an index, not by reading its log, and one sample after the other is in memory. `Aggregate.check`
   * decodes them.
   */
  readonly samples: (filter?: Pick<Filter, "kinds">) => Stream.Stream<FeedEvent, ValidationError | StoreError>

  /**
   * Waits until there may be an event after the position, and returns the position to read after. It is the given one,
   * or a later one if no event between them matches the filter. The wait may end without a matching event: read, and
   * wait again.
   */
  readonly awaitAppend: (after: Position, filter?: Filter) => Effect.Effect<Position, ValidationError | StoreError>
}

/**
 * The feed of a store. Layers: `MemoryStore.layer`, `SqlStore.layer`.
 *
 * @since 0.1.0
 * @category tags
 */
export class EventFeed extends Context.Tag("effect-maestro/EventFeed")<EventFeed, EventFeedService>() {}

/**
 * Reads a page of the feed.
 *
 * @since 0.1.0
 * @category accessors
 */
export const read = (options?: ReadOptions): Effect.Effect<Page, ValidationError | StoreError, EventFeed> =>
  Effect.flatMap(EventFeed, (feed) => feed.read(options))

/**
 * The position of the last event that the feed shows; `beginning` while there is none.
 *
 * @since 0.1.0
 * @category accessors
 */
export const head: Effect.Effect<Position, StoreError, EventFeed> = Effect.flatMap(EventFeed, (feed) => feed.head)

/**
 * The committed events that the feed does not show before an older transaction has ended, if there are any.
 *
 * @since 0.1.0
 * @category accessors
 */
export const heldBack = (
  filter?: Filter
): Effect.Effect<Option.Option<HeldBack>, ValidationError | StoreError, EventFeed> =>
  Effect.flatMap(EventFeed, (feed) => feed.heldBack(filter))

/**
 * The position in the feed of an event, such as the `position` that `evaluate` returned; none where there is no such
 * event.
 *
 * @since 0.1.0
 * @category accessors
 *
 * @example
 * ```ts
 * import { EventFeed } from "effect-maestro"
 * import * as Option from "effect/Option"
 * import * as Stream from "effect/Stream"
 *
 * // What comes after an event.
 * export const eventsAfter = (event: EventFeed.StreamPosition) =>
 *   EventFeed.positionOf(event).pipe(
 *     Stream.flatMap((position) => EventFeed.streamStored({ after: Option.getOrUndefined(position) }))
 *   )
 * ```
 */
export const positionOf = (
  event: StreamPosition
): Effect.Effect<Option.Option<Position>, ValidationError | StoreError, EventFeed> =>
  Effect.flatMap(EventFeed, (feed) => feed.positionOf(event))

/**
 * One or a few events of each kind, type and version in the store: what the code must be able to read.
 *
 * @since 0.1.0
 * @category accessors
 *
 * @example
 * ```ts
 * import { EventFeed } from "effect-maestro"
 * import * as Console from "effect/Console"
 * import * as Stream from "effect/Stream"
 *
 * export const listTypes = EventFeed.samples().pipe(
 *   Stream.runForEach(({ kind, type, version }) => Console.log(kind, type, version))
 * )
 * ```
 */
export const samples = (
  filter?: Pick<Filter, "kinds">
): Stream.Stream<FeedEvent, ValidationError | StoreError, EventFeed> =>
  Stream.unwrap(Effect.map(EventFeed, (feed) => feed.samples(filter)))

/**
 * All events after a position, each once and in the order of the feed: first the stored ones, then the new ones,
 * without end, also as of a time. Each is as it is stored. It holds at most two pages in memory.
 *
 * @since 0.1.0
 * @category accessors
 *
 * @example
 * ```ts
 * import { EventFeed, MemoryStore } from "effect-maestro"
 * import * as Console from "effect/Console"
 * import * as Effect from "effect/Effect"
 * import * as Stream from "effect/Stream"
 *
 * // It waits for further events, and prints each.
 * export const audit = EventFeed.stream({ filter: { types: ["Withdrawn"] } }).pipe(
 *   Stream.runForEach((event) => Console.log(event.position, event.kind, event.id, event.body)),
 *   Effect.provide(MemoryStore.layer)
 * )
 * ```
 */
export const stream = (options?: ReadOptions): Stream.Stream<FeedEvent, ValidationError | StoreError, EventFeed> =>
  Stream.unwrapScoped(Effect.flatMap(EventFeed, (feed) => pages(feed, options ?? {}, true))).pipe(
    Stream.flattenIterables
  )

/**
 * The stored events after a position, each as it is stored. The stream ends where the feed has no more events.
 *
 * @since 0.1.0
 * @category accessors
 */
export const streamStored = (
  options?: ReadOptions
): Stream.Stream<FeedEvent, ValidationError | StoreError, EventFeed> =>
  Stream.unwrapScoped(Effect.flatMap(EventFeed, (feed) => pages(feed, options ?? {}, false))).pipe(
    Stream.flattenIterables
  )

// --- internal ---

const pattern = /^(0|[1-9]\d{0,19})-(0|[1-9]\d{0,18})(?:-[0-9a-f]{12})?$/

// The largest `bigint` of Postgres. No server has so many transactions.
const maxKey = 2n ** 63n - 1n
const maxNumber = 2n ** 63n - 1n

const partsOf = (position: Position): readonly [bigint, bigint] => {
  const [major, minor] = position.split("-")
  return [BigInt(major ?? 0), BigInt(minor ?? 0)]
}

/** The pages of the feed. One page is read ahead while another is consumed. */
const pages = (
  feed: EventFeedService,
  options: ReadOptions,
  live: boolean
): Effect.Effect<Stream.Stream<ReadonlyArray<FeedEvent>, ValidationError | StoreError>, never, Scope.Scope> =>
  Effect.flatMap(Effect.scope, (scope) => {
    const readAfter = (after: Position) => Effect.forkIn(feed.read({ ...options, after }), scope)
    const readOn = ({ more, position }: Page) =>
      more
        ? Effect.asSome(readAfter(position))
        : live
          ? Effect.asSome(
              Effect.forkIn(
                Effect.flatMap(feed.awaitAppend(position, options.filter), (after) => feed.read({ ...options, after })),
                scope
              )
            )
          : Effect.succeedNone
    return Effect.map(readAfter(options.after ?? beginning), (first) =>
      Stream.unfoldEffect(
        Option.some(first) as Option.Option<Fiber.Fiber<Page, ValidationError | StoreError>>,
        Option.match({
          onNone: () => Effect.succeedNone,
          onSome: (reading) =>
            Effect.flatMap(Fiber.join(reading), (page) =>
              Effect.map(readOn(page), (next) => Option.some([page.events, next] as const))
            )
        })
      )
    )
  })
