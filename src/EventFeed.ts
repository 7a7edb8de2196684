/**
 * The second port: all events of a store in one order, for whoever follows them.
 *
 * A place in that order is a `Position`. Reading after a position never misses what comes to be before it: a store shows an event
 * only once nothing can appear in front of it any more. So a reader that remembers where it was has seen all there is up to there,
 * whatever was committed at the same time, and in whatever order those commits ended.
 *
 * @since 0.1.0
 */
import type * as Brand from "effect/Brand"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Order_ from "effect/Order"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { type Envelope, maxSequence } from "./Event.js"
import type { StoreError, ValidationError } from "./StoreError.js"

/**
 * A place in the feed, as text that may be kept, sent and compared by `order`. It belongs to the store that gave it.
 *
 * @since 0.1.0
 * @category models
 */
export type Position = string & Brand.Brand<"effect-maestro/Position">

/**
 * Tells whether a value is a position.
 *
 * @since 0.1.0
 * @category guards
 */
export const isPosition = (u: unknown): u is Position => {
  const parts = typeof u === "string" ? pattern.exec(u) : null
  return parts !== null && BigInt(parts[1] ?? 0) <= maxKey && BigInt(parts[2] ?? 0) <= maxPlace
}

/**
 * The schema of a position, decoding from text.
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
 * Positions as the feed has them.
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
 * The place of an event in its aggregate's stream. `Aggregate.evaluate` answers with one.
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
 * The schema of the place of an event in its aggregate's stream; its encoded form is the same, as JSON. The sequence is 0 where the
 * aggregate has no events.
 *
 * @since 0.1.0
 * @category schemas
 */
export const StreamPosition: Schema.Schema<StreamPosition> = Schema.Struct({
  aggregateId: Schema.String.pipe(Schema.minLength(1)),
  sequence: Schema.Int.pipe(Schema.between(0, maxSequence))
}).annotations({ identifier: "StreamPosition" })

/**
 * An event, the kind and the id of its aggregate, and its place in the feed.
 *
 * @since 0.1.0
 * @category models
 */
export interface FeedEvent extends Envelope {
  readonly position: Position
}

/**
 * Which events to show. What is left out restricts nothing; what is given must all be so. The store applies it, so what is not
 * shown does not travel.
 *
 * @since 0.1.0
 * @category models
 */
export interface Filter {
  /** Only events of these types. */
  readonly types?: ReadonlyArray<string> | undefined
  /** Only events of aggregates of these kinds: the names that `Aggregate.make` was given. The kind of a stream that names none is `""`. */
  readonly kinds?: ReadonlyArray<string> | undefined
  /** Only events of one share of the aggregates, cut by a hash of their ids: share `index` (from 0) of `of`. */
  readonly slice?: { readonly index: number; readonly of: number } | undefined
}

/**
 * What to read.
 *
 * @since 0.1.0
 * @category models
 */
export interface ReadOptions {
  /** The position to go on after; the beginning by default. */
  readonly after?: Position | undefined
  /**
   * How many events a page has at most: 1 000 by default, and up to 10 000. A page ends earlier where its events are large: one of
   * several events has less than 8 MB of JSON.
   */
  readonly limit?: number | undefined
  readonly filter?: Filter | undefined
}

/**
 * A part of the feed.
 *
 * @since 0.1.0
 * @category models
 */
export interface Page {
  /** In the order of the feed. May be empty though `more` is there: a store looks through only so much at once. */
  readonly events: ReadonlyArray<FeedEvent>
  /** All that the filter lets through up to here has been shown. Go on after it. */
  readonly position: Position
  /** Whether there is more already. */
  readonly more: boolean
}

/**
 * The transaction that the feed waits for, as far as the database shows it to the role of this client.
 *
 * @since 0.1.0
 * @category models
 */
export interface OpenTransaction {
  /** The server process of its session; none for a prepared transaction, which has no session. */
  readonly pid: Option.Option<number>
  /** The global identifier of a prepared transaction (`prepare transaction`), which lasts until it is committed or rolled back by it. */
  readonly prepared: Option.Option<string>
  readonly database: Option.Option<string>
  readonly user: Option.Option<string>
  readonly applicationName: Option.Option<string>
  /** What its session does, such as `idle in transaction`. */
  readonly state: Option.Option<string>
  /** When it began, in milliseconds since 1970 by the clock of the database. */
  readonly startedAt: Option.Option<number>
}

/**
 * Events that are committed, and that the feed does not show before an older transaction has ended, because that one may still commit
 * events in front of them.
 *
 * @since 0.1.0
 * @category models
 */
export interface HeldBack {
  /** How many events wait. */
  readonly events: number
  /** When the first of them was made, by its timestamp, in milliseconds since 1970. */
  readonly since: number
  /** Whom they wait for; none where the database does not tell. */
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
   * A page of the feed. Inside a transaction it shows what others have committed, and nothing that is not committed.
   */
  readonly read: (options?: ReadOptions) => Effect.Effect<Page, ValidationError | StoreError>

  /** The position of the last event that the feed shows; `beginning` while there is none. */
  readonly head: Effect.Effect<Position, StoreError>

  /** How many events the feed shows after the position. */
  readonly count: (
    options?: Pick<ReadOptions, "after" | "filter">
  ) => Effect.Effect<number, ValidationError | StoreError>

  /**
   * The committed events that the feed does not show yet; none where it shows all that are committed. On a busy store a few events wait
   * for some milliseconds, so look at `since`. Inside a transaction its own
   * events count, too.
   */
  readonly heldBack: (filter?: Filter) => Effect.Effect<Option.Option<HeldBack>, ValidationError | StoreError>

  /** The position of an event, whether the feed shows it already or not yet; none where there is no such event. */
  readonly positionOf: (place: StreamPosition) => Effect.Effect<Option.Option<Position>, ValidationError | StoreError>

  /**
   * Waits until there may be something to read after the position, and answers with a position to read after: that one, or a later
   * one up to which the filter lets nothing through. It may answer for nothing: read, and wait again.
   */
  readonly awaitAppend: (after: Position, filter?: Filter) => Effect.Effect<Position, ValidationError | StoreError>
}

/**
 * The service that followers of events read. Layers: `MemoryStore.layer`, `SqlStore.layer`.
 *
 * @since 0.1.0
 * @category tags
 */
export class EventFeed extends Context.Tag("effect-maestro/EventFeed")<EventFeed, EventFeedService>() {}

/**
 * A page of the feed.
 *
 * @since 0.1.0
 * @category accessors
 */
export const read = (options?: ReadOptions): Effect.Effect<Page, ValidationError | StoreError, EventFeed> =>
  Effect.flatMap(EventFeed, (feed) => feed.read(options))

/**
 * The position of the last event that the feed shows.
 *
 * @since 0.1.0
 * @category accessors
 */
export const head: Effect.Effect<Position, StoreError, EventFeed> = Effect.flatMap(EventFeed, (feed) => feed.head)

/**
 * The committed events that the feed does not show before an older transaction has ended.
 *
 * @since 0.1.0
 * @category accessors
 */
export const heldBack = (
  filter?: Filter
): Effect.Effect<Option.Option<HeldBack>, ValidationError | StoreError, EventFeed> =>
  Effect.flatMap(EventFeed, (feed) => feed.heldBack(filter))

/**
 * All events after a position, those stored already and then those that come, for ever: each once, in the order of the feed. It
 * holds one page, and the next one meanwhile.
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
 * The events after a position that are stored already: it ends where there are no more.
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

const pattern = /^(\d{1,20})-(\d{1,19})$/

// What a database can hold: 64 bits without a sign, and 63 bits.
const maxKey = 2n ** 64n - 1n
const maxPlace = 2n ** 63n - 1n

const partsOf = (position: Position): readonly [bigint, bigint] => {
  const [major, minor] = position.split("-")
  return [BigInt(major ?? 0), BigInt(minor ?? 0)]
}

/** Page by page. The next page is read while the last one is used, and none after it, so that two pages are in memory. */
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
