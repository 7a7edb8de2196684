/**
 * How a subscription stands, and how far it is behind. Events that the feed holds back count, because they are committed and not handled.
 */
import * as Clock from "effect/Clock"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import {
  EventFeed,
  type FeedEvent,
  type Filter,
  type HeldBack,
  order,
  type Position,
  type StreamPosition
} from "../../EventFeed.js"
import { type StoreError, ValidationError, ValidationIssue } from "../../StoreError.js"
import { type EventFailure, type PartitionState, SubscriptionStore } from "../../SubscriptionStore.js"
import { toMillis } from "../../Timestamp.js"
import { checkPosition, filterOfPartition } from "../store/readOptions.js"

/** `here` is how many partitions the subscription has in this program. */
export const statusOf = (name: string, filter: Filter | undefined, here: number) =>
  Effect.gen(function* () {
    const feed = yield* EventFeed
    const store = yield* SubscriptionStore
    const now = yield* Clock.currentTimeMillis
    const heldBack = yield* feed.heldBack(filter)
    const partitions = yield* Effect.forEach(yield* store.partitions(name), (standing) =>
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
    const isMisconfigured = partitions.some(({ partitions }) => partitions !== here)
    const state = isMisconfigured ? "misconfigured" : isStopped ? "stopped" : isRunning ? "running" : "idle"
    return {
      state: state as typeof state,
      eventsBehind: partitions.reduce((sum, { eventsBehind }) => sum + eventsBehind, 0),
      secondsBehind: partitions.reduce((most, { secondsBehind }) => Math.max(most, secondsBehind), 0),
      heldBack,
      parked: partitions.reduce((sum, { parked }) => sum + parked, 0),
      partitions
    }
  })

/** Why a subscription has not come to a position in time. */
export interface Delay {
  readonly position: Position
  readonly reason: "Behind" | "Idle" | "Stopped" | "NeverRun"
  /** What it stopped at. */
  readonly failure?: EventFailure
}

/** Waits until a subscription has come to a place. Where it does not in time, the delay is returned. */
export const awaitArrival = (
  name: string,
  place: StreamPosition | Position,
  timeout: Duration.DurationInput
): Effect.Effect<Delay | undefined, ValidationError | StoreError, EventFeed | SubscriptionStore> =>
  Effect.gen(function* () {
    const feed = yield* EventFeed
    const store = yield* SubscriptionStore
    const isPlace = typeof place === "object" && place !== null
    if (isPlace && place.sequence === 0) return undefined
    if (!isPlace) yield* checkPosition(waiting, place, ["position"])
    const position = isPlace ? Option.getOrUndefined(yield* feed.positionOf(place)) : place
    if (position === undefined) {
      const issue = new ValidationIssue({ path: ["sequence"], message: "must be that of a stored event" })
      return yield* new ValidationError({ operation: waiting, issues: [issue] })
    }
    const reached = store.awaitPosition(name, position, isPlace ? place.aggregateId : undefined)
    if (Option.isSome(yield* Effect.timeoutOption(reached, timeout))) return undefined
    // A database that does not answer must not keep the caller much longer.
    const standing = yield* Effect.option(Effect.timeout(Effect.disconnect(store.partitions(name)), "1 second"))
    return Option.match(standing, {
      onNone: (): Delay => ({ position, reason: "Behind" }),
      onSome: (partitions) => delayOf(partitions, position)
    })
  })

/** What is said of a feed that is held back, for people to read. */
export const describeHeldBack = ({ events, transaction: holder, since }: HeldBack, now: number): string => {
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

const waiting = "Subscription.waitFor"

const delayOf = (standing: ReadonlyArray<PartitionState>, position: Position): Delay => {
  const [first] = standing
  if (first === undefined) return { position, reason: "NeverRun" }
  const behind = standing.filter((one) => order(one.position, position) < 0)
  const stopped = behind.find((one) => one.stopped)
  if (stopped !== undefined) {
    const failure = Option.getOrUndefined(stopped.lastFailure)
    return { position, reason: "Stopped", ...(failure === undefined ? {} : { failure }) }
  }
  const isIdle = standing.length < first.partitions || behind.some(({ holder }) => Option.isNone(holder))
  return { position, reason: isIdle ? "Idle" : "Behind" }
}

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
