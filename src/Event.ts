/**
 * An event: a fact about one aggregate, at its place in that aggregate's stream.
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
 * An event as it is stored.
 *
 * @since 0.1.0
 * @category models
 */
export interface Event {
  /** The event's identity, and when it was made. */
  readonly timestamp: Timestamp
  /** The stream of the aggregate that it is about: 1 to 255 characters. `Aggregate` writes the kind, a `/` and the id: see `identityOf`. */
  readonly aggregateId: string
  /** Its place in the aggregate's stream: 1, 2, 3 … without gaps. */
  readonly sequence: number
  /** What kind of fact it is: 1 to 255 characters. */
  readonly type: string
  /** The fact: a JSON object. */
  readonly body: Readonly<Record<string, unknown>>
  /** What is known about the event beside the fact: a JSON object. */
  readonly metadata: Readonly<Record<string, unknown>>
}

/**
 * What an aggregate is known by: its kind, which is the name that `Aggregate.make` was given, and its id among those of that kind.
 *
 * @since 0.1.0
 * @category models
 */
export interface Identity {
  /** Empty for a stream whose `aggregateId` names no kind. */
  readonly kind: string
  readonly id: string
}

/**
 * An event as handlers receive it: with the identity of its aggregate.
 *
 * @since 0.1.0
 * @category models
 */
export interface Envelope extends Event, Identity {}

/**
 * How an aggregate names its streams: `byKind` composes `<kind>/<id>`, and `plain` takes the id as it is.
 *
 * @since 0.1.0
 * @category models
 */
export type StreamIds = "byKind" | "plain"

/**
 * Splits the `aggregateId` of a stored event, such as `Account/42`: the kind is the text before the first `/`, the id all after it. An
 * `aggregateId` without a `/`, or with nothing before it, has no kind, and is the id itself.
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
 * export const { kind, id } = Event.identityOf("Account/42")
 * ```
 */
export const identityOf = (aggregateId: string): Identity => {
  const end = aggregateId.indexOf("/")
  return end < 1 ? { kind: "", id: aggregateId } : { kind: aggregateId.slice(0, end), id: aggregateId.slice(end + 1) }
}

/**
 * The schema of an event; its encoded form is the same, as JSON. It checks an event's form. What a store asks beyond that
 * (bodies without loss in JSON, sequences that follow each other) is checked when it is committed.
 *
 * @since 0.1.0
 * @category schemas
 */
export const Event: Schema.Schema<Event, EventEncoded> = Schema.Struct({
  timestamp: Timestamp,
  aggregateId: Schema.String.pipe(Schema.minLength(1)),
  sequence: Schema.Int.pipe(Schema.between(1, maxSequence)),
  type: Schema.String.pipe(Schema.minLength(1)),
  body: Schema.Record({ key: Schema.String, value: Schema.Unknown }),
  metadata: Schema.Record({ key: Schema.String, value: Schema.Unknown })
}).annotations({ identifier: "Event" })

/**
 * An event as JSON.
 *
 * @since 0.1.0
 * @category models
 */
export interface EventEncoded extends Omit<Event, "timestamp"> {
  readonly timestamp: string
}

/**
 * An event as an adapter keeps it: checked, and its JSON parts as text.
 *
 * @since 0.1.0
 * @category models
 */
export interface StoredEvent extends Omit<Event, "body" | "metadata"> {
  /** The text of a JSON object. */
  readonly body: string
  /** The text of a JSON object. */
  readonly metadata: string
}
