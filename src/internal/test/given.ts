/**
 * The events that a test gives: they are encoded and numbered as the command handler does it, so that a store has them
 * as it has the events of commands.
 *
 * An event that could not be stored fails the test, because no aggregate can have it.
 */
import type * as Clock from "effect/Clock"
import * as Either from "effect/Either"
import type { Aggregate } from "../../Aggregate.js"
import type { Event } from "../../Event.js"
import type { ValidationIssue } from "../../StoreError.js"
import type { HybridClockService } from "../../Timestamp.js"
import { makeEventCodec, type Tagged } from "../codec/eventCodec.js"
import { type AssertionFailed, impossible, type Section } from "./failure.js"
import { show } from "./show.js"

/** Any aggregate. */
// biome-ignore lint/suspicious/noExplicitAny: a test takes every aggregate
export type AnyAggregate = Aggregate<any, any, any, any, any, any, any, any, any, any, any>

/** An event as an older release has stored it. */
export interface StoredForm {
  readonly type: string
  /** The version of the type, 1 by default. */
  readonly version?: number | undefined
  /** The stored JSON object. */
  readonly body: Readonly<Record<string, unknown>>
  /** The stored metadata, none by default. */
  readonly metadata?: Readonly<Record<string, unknown>> | undefined
}

/** Events that a test gives to one aggregate, at a time. */
export interface Given {
  readonly aggregate: AnyAggregate
  readonly id: string
  /** Milliseconds since 1970, or `undefined` for the time of the clock. */
  readonly millis: number | undefined
  readonly events: ReadonlyArray<GivenEvent>
}

/** An event of today, or a stored one. */
export type GivenEvent =
  | { readonly _tag: "Event"; readonly event: Tagged }
  | { readonly _tag: "Stored"; readonly stored: StoredForm }

/** The clock of a test. Its time is that of the step which is carried out, or that of the clock around the test. */
export interface StepClock extends Clock.Clock {
  readonly setMillis: (millis: number | undefined) => void
}

/** Makes the events to store, in order. */
export const recordGiven = (
  given: ReadonlyArray<Given>,
  hybrid: HybridClockService,
  clock: StepClock
): Either.Either<ReadonlyArray<Event>, AssertionFailed> => {
  const sequences = new Map<string, number>()
  const events: Array<Event> = []
  for (const { aggregate, events: ofStep, id, millis } of given) {
    const aggregateId = aggregate.streamId(id)
    clock.setMillis(millis)
    for (const each of ofStep) {
      const stored = each._tag === "Stored" ? Either.right(formOf(each.stored)) : encodeEvent(aggregate, each.event)
      if (Either.isLeft(stored)) {
        return Either.left(
          impossible(`a given event of ${aggregate.name} can't be stored`, sectionsOf(given), stored.left.map(textOf))
        )
      }
      const sequence = (sequences.get(aggregateId) ?? 0) + 1
      sequences.set(aggregateId, sequence)
      events.push({ timestamp: hybrid.unsafeNow(clock), aggregateId, sequence, ...stored.right })
    }
  }
  return Either.right(events)
}

/** Encodes an event of an aggregate, or returns why it can't be stored. */
export const encodeEvent = (
  aggregate: AnyAggregate,
  event: Tagged
): Either.Either<Pick<Event, "type" | "version" | "body" | "metadata">, ReadonlyArray<ValidationIssue>> =>
  Either.map(makeEventCodec<Tagged, Tagged>(aggregate.events).record(event, 0), ({ body, version }) => ({
    type: event._tag,
    version,
    body,
    metadata: {}
  }))

/** The event as every load returns it, or the event itself if it can't be stored. */
export const asLoaded = (aggregate: AnyAggregate, event: Tagged): Tagged =>
  Either.match(makeEventCodec<Tagged, Tagged>(aggregate.events).record(event, 0), {
    onLeft: () => event,
    onRight: ({ decoded }) => decoded
  })

/** The given events for a message. */
export const sectionsOf = (given: ReadonlyArray<Given>): ReadonlyArray<Section> => {
  const streams = new Set(given.map(({ aggregate, id }) => aggregate.streamId(id)))
  return given.flatMap(
    ({ aggregate, events, id }): ReadonlyArray<Section> =>
      events.length === 0
        ? []
        : [
            [
              streams.size > 1 ? `given ${aggregate.name} ${JSON.stringify(id)}` : "given",
              events.map((each) => (each._tag === "Event" ? show(each.event) : `stored ${show(each.stored)}`))
            ]
          ]
  )
}

export const textOf = ({ message, path }: ValidationIssue): string =>
  path.length === 0 ? message : `${path.join(".")}: ${message}`

/** The stored form with its defaults. */
export const formOf = ({
  body,
  metadata = {},
  type,
  version = 1
}: StoredForm): Pick<Event, "type" | "version" | "body" | "metadata"> => ({ type, version, body, metadata })
