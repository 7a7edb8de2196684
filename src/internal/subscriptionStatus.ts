/**
 * How a subscription stands, and how far it is behind.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { EventFeed, type FeedEvent, type Filter, order, type Position } from "../EventFeed.js"
import type { StoreError, ValidationError } from "../StoreError.js"
import { SubscriptionStore } from "../SubscriptionStore.js"
import { toMillis } from "../Timestamp.js"
import { filterOfPartition } from "./feedInput.js"

export const statusOf = (name: string, filter: Filter | undefined) =>
  Effect.gen(function* () {
    const feed = yield* EventFeed
    const store = yield* SubscriptionStore
    const now = yield* Clock.currentTimeMillis
    const partitions = yield* Effect.forEach(yield* store.standing(name), (standing) =>
      Effect.gen(function* () {
        const { partition, partitions, position } = standing
        const own = filterOfPartition(filter, partition, partitions)
        const eventsBehind = yield* feed.count({ after: position, filter: own })
        const first = eventsBehind === 0 ? undefined : yield* firstAfter(feed, position, own)
        return {
          ...standing,
          eventsBehind,
          secondsBehind: first === undefined ? 0 : Math.max(now - toMillis(first.timestamp), 0) / 1000
        }
      })
    )
    const isStopped = partitions.some(({ stopped }) => stopped)
    const isRunning = partitions.some(({ holder }) => Option.isSome(holder))
    return {
      state: isStopped ? ("stopped" as const) : isRunning ? ("running" as const) : ("idle" as const),
      eventsBehind: partitions.reduce((sum, { eventsBehind }) => sum + eventsBehind, 0),
      secondsBehind: partitions.reduce((most, { secondsBehind }) => Math.max(most, secondsBehind), 0),
      setAside: partitions.reduce((sum, { setAside }) => sum + setAside, 0),
      partitions
    }
  })

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
