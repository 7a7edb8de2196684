/**
 * How a subscription stands, and how far it is behind. Events that the feed holds back count, because they are committed and not handled.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { EventFeed, type FeedEvent, type Filter, type HeldBack, order, type Position } from "../EventFeed.js"
import type { StoreError, ValidationError } from "../StoreError.js"
import { SubscriptionStore } from "../SubscriptionStore.js"
import { toMillis } from "../Timestamp.js"
import { filterOfPartition } from "./feedInput.js"

export const statusOf = (name: string, filter: Filter | undefined) =>
  Effect.gen(function* () {
    const feed = yield* EventFeed
    const store = yield* SubscriptionStore
    const now = yield* Clock.currentTimeMillis
    const heldBack = yield* feed.heldBack(filter)
    const partitions = yield* Effect.forEach(yield* store.standing(name), (standing) =>
      Effect.gen(function* () {
        const { partition, partitions, position } = standing
        const own = filterOfPartition(filter, partition, partitions)
        const shown = yield* feed.count({ after: position, filter: own })
        const first = shown === 0 ? undefined : yield* firstAfter(feed, position, own)
        const held = Option.isNone(heldBack) || partitions === 1 ? heldBack : yield* feed.heldBack(own)
        const oldest =
          first === undefined ? Option.map(held, ({ since }) => since) : Option.some(toMillis(first.timestamp))
        return {
          ...standing,
          eventsBehind: shown + Option.match(held, { onNone: () => 0, onSome: ({ events }) => events }),
          secondsBehind: Option.match(oldest, { onNone: () => 0, onSome: (since) => Math.max(now - since, 0) / 1000 })
        }
      })
    )
    const isStopped = partitions.some(({ stopped }) => stopped)
    const isRunning = partitions.some(({ holder }) => Option.isSome(holder))
    return {
      state: isStopped ? ("stopped" as const) : isRunning ? ("running" as const) : ("idle" as const),
      eventsBehind: partitions.reduce((sum, { eventsBehind }) => sum + eventsBehind, 0),
      secondsBehind: partitions.reduce((most, { secondsBehind }) => Math.max(most, secondsBehind), 0),
      heldBack,
      setAside: partitions.reduce((sum, { setAside }) => sum + setAside, 0),
      partitions
    }
  })

/** What is said of a feed that is held back, for people to read. */
export const describeHeldBack = ({ events, holder, since }: HeldBack, now: number): string => {
  const seconds = (from: number) => Math.round((now - from) / 1000)
  const waiting = `the feed has held back ${events} committed events for ${seconds(since)} seconds`
  if (Option.isNone(holder)) return `${waiting}, because of an older transaction that the database does not show`
  const { applicationName, database, pid, prepared, startedAt, state, user } = holder.value
  const known = [
    Option.map(applicationName, (name) => `application ${JSON.stringify(name)}`),
    Option.map(user, (name) => `user ${JSON.stringify(name)}`),
    Option.map(database, (name) => `database ${JSON.stringify(name)}`),
    state,
    Option.map(startedAt, (from) => `open for ${seconds(from)} seconds`)
  ].flatMap(Option.toArray)
  const whose = Option.match(prepared, {
    onSome: (id) => `the prepared transaction ${JSON.stringify(id)}`,
    onNone: () => `the transaction of process ${Option.getOrElse(pid, () => "unknown")}`
  })
  return `${waiting}, until ${whose} has ended${known.length === 0 ? "" : ` (${known.join(", ")})`}`
}

// --- internal ---

const firstAfter = (
  feed: EventFeed["Type"],
  after: Position,
  filter: Filter | undefined
): Effect.Effect<FeedEvent | undefined, ValidationError | StoreError> =>
  Effect.flatMap(feed.read({ after, filter, limit: 1 }), ({ events, more, position }) =>
    events[0] !== undefined || !more || order(position, after) <= 0
      ? Effect.succeed(events[0])
      : firstAfter(feed, position, filter)
  )
