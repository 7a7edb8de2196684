/**
 * Events: facts about one aggregate, in the order of its stream.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import { Timestamp } from "./Timestamp.js"

/**
 * The highest sequence that a store holds: 2 147 483 647, the bound of Maestro and of a four-byte integer.
 *
 * @since 0.1.0
 * @category constants
 */
export const maxSequence = 2_147_483_647

/**
 * The longest aggregate id and event type, in characters (Unicode code points).
 *
 * @since 0.1.0
 * @category constants
 */
export const maxNameLength = 255

/**
 * The highest version of an event's schema.
 *
 * @since 0.1.0
 * @category constants
 */
export const maxVersion = 32_767

/**
 * An event as it is stored.
 *
 * @since 0.1.0
 * @category models
 */
export interface Event {
  /** The identity of the event, and the time when it was made. */
  readonly timestamp: Timestamp
  /**
   * The stream of its aggregate: 1 to 255 characters. `Aggregate` writes the kind, a `/` and the id: see `identityOf`.
   */
  readonly aggregateId: string
  /** Its number in the stream of the aggregate: 1, 2, 3 … without gaps. */
  readonly sequence: number
  /** The type of the fact: 1 to 255 characters. */
  readonly type: string
  /** The version of the schema of its body: 1 to 32 767. It is 1 unless its aggregate declares older versions of the type. */
  readonly version: number
  /** The fact: a JSON object. */
  readonly body: Readonly<Record<string, unknown>>
  /** Further data about the event, such as the user: a JSON object. */
  readonly metadata: Readonly<Record<string, unknown>>
  /** The id that all events of one chain of causes share: 1 to 255 characters. */
  readonly correlationId?: string | undefined
  /** The timestamp of the event that caused this one. */
  readonly causationId?: Timestamp | undefined
  /** The span that the event was made in, as a `traceparent` of W3C Trace Context. */
  readonly traceparent?: string | undefined
}

/**
 * An event to commit. Its version is 1 unless it is given.
 *
 * @since 0.1.0
 * @category models
 */
export interface NewEvent extends Omit<Event, "version"> {
  readonly version?: number | undefined
  /**
   * The timestamp of the event before it in its stream, as its maker knows it. The store refuses the event with `RetryCommand` where another
   * one is stored there. So a decision on events that the database has lost, by a failover or by a backup that was restored, is not stored
   * behind others. Without it only the sequence is compared. It is not stored. Aggregates give it.
   */
  readonly follows?: Timestamp | undefined
}

/**
 * The identity of an aggregate: its kind, which is the name given to `Aggregate.make` or the option `kind`, and its id
 * within that kind.
 *
 * @since 0.1.0
 * @category models
 */
export interface Identity<out Id extends string = string> {
  /** Empty for a stream whose `aggregateId` names no kind. */
  readonly kind: string
  readonly id: Id
}

/**
 * An event as handlers receive it: with the identity of its aggregate.
 *
 * @since 0.1.0
 * @category models
 */
export interface Envelope<out Id extends string = string> extends Event, Identity<Id> {
  /** The number of this part, from 2 on, where `Upcast.toEvents` has split the stored event. The first part has none. */
  readonly part?: number | undefined
}

/**
 * How an aggregate names its streams: `byKind` composes `<kind>/<id>`, and `plain` takes the id as it is.
 *
 * @since 0.1.0
 * @category models
 */
export type StreamIds = "byKind" | "plain"

/**
 * Splits the `aggregateId` of a stored event, such as `Account/42`: the kind is the text before the first `/`, the id
 * all after it. An `aggregateId` without a `/`, or with nothing before it, has no kind, and is the id itself.
 *
 * Feeds of custom stores use it for `kind` and `id` of their events, and for `Filter.kinds`.
 *
 * @since 0.1.0
 * @category accessors
 *
 * @example
 * ```ts
 * import { Event } from "effect-maestro"
 *
 * console.log(Event.identityOf("Account/42")) // prints: { kind: 'Account', id: '42' }
 * ```
 */
export const identityOf = (aggregateId: string): Identity => {
  const end = aggregateId.indexOf("/")
  return end < 1 ? { kind: "", id: aggregateId } : { kind: aggregateId.slice(0, end), id: aggregateId.slice(end + 1) }
}

/**
 * The event of an event to commit: with version 1 unless it has another.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = ({ follows: _follows, version = 1, ...event }: NewEvent): Event => ({ ...event, version })

/**
 * The schema of an event, which is encoded as JSON. It checks the form of an event. A commit also checks that JSON
 * holds the body without loss, and that sequences follow each other.
 *
 * @since 0.1.0
 * @category schemas
 */
export const Event: Schema.Schema<Event, EventEncoded> = Schema.Struct({
  timestamp: Timestamp,
  aggregateId: Schema.String.pipe(Schema.minLength(1)),
  sequence: Schema.Int.pipe(Schema.between(1, maxSequence)),
  type: Schema.String.pipe(Schema.minLength(1)),
  version: Schema.optionalWith(Schema.Int.pipe(Schema.between(1, maxVersion)), { default: () => 1 }),
  body: Schema.Record({ key: Schema.String, value: Schema.Unknown }),
  metadata: Schema.Record({ key: Schema.String, value: Schema.Unknown }),
  correlationId: Schema.optional(Schema.String.pipe(Schema.minLength(1))),
  causationId: Schema.optional(Timestamp),
  traceparent: Schema.optional(Schema.String.pipe(Schema.minLength(1)))
}).annotations({ identifier: "Event" })

/**
 * An event as JSON.
 *
 * @since 0.1.0
 * @category models
 */
export interface EventEncoded extends Omit<NewEvent, "timestamp" | "causationId" | "follows"> {
  readonly timestamp: string
  readonly causationId?: string | undefined
}

/**
 * An event as an adapter stores it: validated, and with its JSON parts as text.
 *
 * @since 0.1.0
 * @category models
 */
export interface StoredEvent extends Omit<Event, "body" | "metadata"> {
  /** The text of a JSON object. */
  readonly body: string
  /** The text of a JSON object. */
  readonly metadata: string
  /** Only of an event to append: the timestamp of the event before it, if its maker knows it (`NewEvent`). */
  readonly follows?: Timestamp | undefined
}
