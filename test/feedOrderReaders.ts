/** Readers, streams and subscriptions that follow the feed during writes, and the events that each of them saw. */
import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import { Aggregate, EventFeed, Subscription } from "effect-maestro"
import { Account, Deposit } from "./account.js"
import { behind, type Place, textOf } from "./feedOrderModel.js"
import { type Ground, Ledger, shortly } from "./subscribers.js"

/** The events that a reader saw, and the part of the feed that it read. */
export interface Sight {
  readonly reader: string
  readonly after: EventFeed.Position
  readonly matches: (event: EventFeed.FeedEvent) => boolean
  readonly events: ReadonlyArray<EventFeed.FeedEvent>
  /** The head of the feed before the reader began. It must have seen all events up to it. */
  readonly head: EventFeed.Position
}

/** Why the events that a reader saw are no prefix of the final feed; empty where they are. */
export const wrongIn = (feed: ReadonlyArray<EventFeed.FeedEvent>, sight: Sight): ReadonlyArray<string> => {
  const expected = behind(feed, sight.after).filter(sight.matches)
  const at = sight.events.findIndex((event, index) => event.position !== expected[index]?.position)
  if (at >= 0) {
    const [seen, instead] = [sight.events[at], expected[at]]
    return [
      `${sight.reader}: event ${at} is ${seen === undefined ? "" : `${textOf(seen)} at ${seen.position}`} and not ${instead === undefined ? "the end" : `${textOf(instead)} at ${instead.position}`}`
    ]
  }
  const missed = expected
    .slice(sight.events.length)
    .filter(({ position }) => EventFeed.order(position, sight.head) <= 0)
  return missed.length > 0
    ? [`${sight.reader}: ${missed.length} events up to the head ${sight.head} were not shown`]
    : []
}

const everything = () => true

/** Reads from random positions to the head, by pages of random sizes, and again after each 50 commands. */
export const restless = (
  reader: string,
  written: () => number,
  upTo: number,
  sights: Array<Sight>
): Effect.Effect<void, unknown, EventFeed.EventFeed> =>
  Effect.gen(function* () {
    const known: Array<EventFeed.Position> = [EventFeed.beginning]
    while (written() < upTo) {
      const next = Math.min(written() + 50, upTo)
      const after = yield* Random.choice(known.slice(-200)).pipe(Effect.orDie)
      const [types, matches] = (yield* Random.nextBoolean)
        ? [undefined, everything]
        : [["Booked", "Sold"], ({ type }: EventFeed.FeedEvent) => type === "Booked" || type === "Sold"]
      const filter = types === undefined ? undefined : { types }
      const head = yield* EventFeed.head
      const events: Array<EventFeed.FeedEvent> = []
      let position = after
      for (let more = true; more; ) {
        const page = yield* EventFeed.read({
          after: position,
          limit: yield* Random.nextIntBetween(1, 400),
          filter
        })
        events.push(...page.events)
        position = page.position
        more = page.more
      }
      known.push(position)
      sights.push({ reader, after, matches, events, head })
      yield* until(() => written() >= next)
    }
  })

/** Waits until the condition holds. */
export const until = (holds: () => boolean): Effect.Effect<void> =>
  Effect.asVoid(Effect.repeat(Effect.map(shortly, holds), { until: (so) => so }))

/** Follows the feed from the beginning up to an event, by pages of random sizes. */
export const follower = (reader: string, last: string): Effect.Effect<Sight, unknown, EventFeed.EventFeed> =>
  Effect.gen(function* () {
    const feed = yield* EventFeed.EventFeed
    const events: Array<EventFeed.FeedEvent> = []
    let position = EventFeed.beginning
    for (;;) {
      const page = yield* feed.read({ after: position, limit: yield* Random.nextIntBetween(1, 50) })
      events.push(...page.events)
      position = page.position
      if (events.at(-1)?.id === last) break
      if (!page.more) position = yield* feed.awaitAppend(position)
    }
    return { reader, after: EventFeed.beginning, matches: everything, events, head: position }
  })

/** A live stream from the beginning up to an event. */
export const live = (reader: string, last: string): Effect.Effect<Sight, unknown, EventFeed.EventFeed> =>
  EventFeed.stream({ limit: 30 }).pipe(
    Stream.takeUntil(({ id }) => id === last),
    Stream.runCollect,
    Effect.map((events) => ({
      reader,
      after: EventFeed.beginning,
      matches: everything,
      events: [...events],
      head: EventFeed.beginning
    }))
  )

// --- subscriptions ---

/** Writes the events of a batch to the ledger, by one statement where the ledger is a table. */
const writeAll = (by: string) => (events: ReadonlyArray<EventFeed.FeedEvent>) =>
  Effect.flatMap(Effect.serviceOption(SqlClient.SqlClient), (sql) =>
    Option.match(sql, {
      onNone: (): Effect.Effect<void, SqlError, Ledger> =>
        Effect.flatMap(Ledger, ({ write }) => Effect.forEach(events, (event) => write(by, event), { discard: true })),
      onSome: (sql) =>
        Effect.asVoid(sql`insert into ledger (by, place) select ${by}, unnest(${events.map(textOf)}::text[])`)
    })
  )

const patient = { retry: Schedule.recurs(100) }

export const exactlyOnce = Subscription.make("exactly once", { ...patient, handleBatch: writeAll("exactly once") })

export const atLeastOnce = Subscription.make("at least once", {
  ...patient,
  delivery: "at-least-once",
  handleBatch: writeAll("at least once")
})

export const partitioned = Subscription.make("partitioned", {
  ...patient,
  partitions: 3,
  handleBatch: writeAll("partitioned")
})

/** Evaluates a command for each sale, in the transaction of the checkpoint. */
export const inside = Subscription.make("inside", {
  ...patient,
  batchSize: 7,
  filter: { types: ["Sold"] },
  handle: (event) => payOn("inside", event)
})

/** Evaluates a command for each sale, once, outside of any transaction. */
export const outside = Subscription.make("outside", {
  ...patient,
  delivery: "at-least-once",
  filter: { types: ["Sold"] },
  handle: (event) =>
    Aggregate.withCommandId(`outside/${textOf(event)}|${Subscription.commandId("outside", event)}`)(
      payOn("outside", event)
    )
})

const payOn = (by: string, event: EventFeed.FeedEvent) =>
  Effect.flatMap(Random.nextIntBetween(0, 6), (index) =>
    Account.evaluate(`account-${index}`, new Deposit({ amount: 1 })).pipe(
      Effect.provideService(Aggregate.Metadata, { attempt: `${by}/${textOf(event)}` })
    )
  )

export const recording = [exactlyOnce, atLeastOnce, partitioned] as const
export const evaluating = [inside, outside] as const

/** Checks that a subscription has written an event after `waitFor` it. */
export const readsOwnWrite = (place: Place): Effect.Effect<ReadonlyArray<string>, unknown, Ground> =>
  Effect.gen(function* () {
    const { name } = yield* Random.choice(recording).pipe(Effect.orDie)
    yield* Subscription.waitFor(name, place, "30 seconds")
    const written = yield* Effect.flatMap(Ledger, ({ written }) => written(name))
    return written.includes(textOf(place)) ? [] : [`${name} has reached ${textOf(place)}, and has not written it`]
  })
