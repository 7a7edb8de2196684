/**
 * The state of a subscription, how far it is behind, and waiting until it reaches a position. `Subscription` and
 * `runner.ts` use it.
 *
 * Held back events count as behind, because they are committed and not handled.
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
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
import { validateStreamPosition } from "../store/storedRecord.js"
import type { NodeStatus } from "./statusTypes.js"

/** The status of a subscription, with the partitions that the store has. */
export const statusOf = (name: string, filter: Filter | undefined) =>
  Effect.gen(function* () {
    const feed = yield* EventFeed
    const store = yield* SubscriptionStore
    const now = yield* Clock.currentTimeMillis
    const heldBack = yield* feed.heldBack(filter)
    const partitions = yield* Effect.forEach(yield* store.partitions(name), (state) =>
      Effect.map(lagOf(feed, filter, state, heldBack), ({ eventsBehind, oldest }) => ({
        ...state,
        eventsBehind,
        secondsBehind: Option.match(oldest, { onNone: () => 0, onSome: (since) => Math.max(now - since, 0) / 1000 })
      }))
    )
    const isStopped = partitions.some(({ stopped }) => stopped)
    const isRunning = partitions.some(({ holder }) => Option.isSome(holder))
    const state = isStopped ? "stopped" : isRunning ? "running" : "idle"
    return {
      state: state as typeof state,
      eventsBehind: partitions.reduce((sum, { eventsBehind }) => sum + eventsBehind, 0),
      secondsBehind: partitions.reduce((most, { secondsBehind }) => Math.max(most, secondsBehind), 0),
      heldBack,
      parked: partitions.reduce((sum, { parked }) => sum + parked, 0),
      partitions
    }
  })

/** The nodes of a subscription, with the partitions that each holds. */
export const nodesOf = (name: string): Effect.Effect<ReadonlyArray<NodeStatus>, StoreError, SubscriptionStore> =>
  Effect.gen(function* () {
    const store = yield* SubscriptionStore
    const nodes = yield* store.nodes(name)
    const partitions = yield* store.partitions(name)
    return nodes.map(({ holder, partitions: wanted, since }) => ({
      holder,
      since,
      partitions: wanted,
      holds: partitions.filter((one) => Option.contains(one.holder, holder)).map(({ partition }) => partition)
    }))
  })

/** Why a subscription has not reached a position in time. */
export interface Delay {
  readonly position: Position
  readonly reason: "Behind" | "Idle" | "Stopped" | "NeverRun"
  /** The failure at which it stopped, or of the event that it retries. */
  readonly failure?: EventFailure
}

/** Waits until a subscription has reached an event or a position. After the timeout it returns the delay. */
export const awaitPosition = (
  name: string,
  target: StreamPosition | Position,
  timeout: Duration.DurationInput
): Effect.Effect<Delay | undefined, ValidationError | StoreError, EventFeed | SubscriptionStore> =>
  Effect.gen(function* () {
    const feed = yield* EventFeed
    const store = yield* SubscriptionStore
    const limit = Option.getOrUndefined(Duration.decodeUnknown(timeout))
    if (limit === undefined) return yield* refused("timeout", 'must be a duration, such as "2 seconds"')
    const isEvent = typeof target === "object" && target !== null
    const position = isEvent
      ? yield* positionOfEvent(feed, target)
      : yield* Effect.as(checkPosition(operation, target, ["position"]), target)
    if (position === undefined) return undefined
    const reached = store.awaitPosition(name, position, isEvent ? target.aggregateId : undefined)
    if (Option.isSome(yield* Effect.timeoutOption(reached, limit))) return undefined
    // The states only explain the delay, so a database that does not respond must not add much to it.
    const states = yield* Effect.option(Effect.timeout(store.partitions(name), "1 second"))
    return Option.match(states, {
      onNone: (): Delay => ({ position, reason: "Behind" }),
      onSome: (partitions) => delayOf(partitions, position)
    })
  })

/** The text of a warning about held back events. */
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

const operation = "Subscription.waitFor"

const refused = (field: string, message: string): ValidationError =>
  new ValidationError({ operation, issues: [new ValidationIssue({ path: [field], message })] })

/** The position of an event in the feed; undefined for an aggregate without events, for which there is no wait. */
const positionOfEvent = (
  feed: EventFeed["Type"],
  target: StreamPosition
): Effect.Effect<Position | undefined, ValidationError | StoreError> =>
  Effect.gen(function* () {
    if (!Predicate.hasProperty(target, "aggregateId") && Predicate.hasProperty(target, "position")) {
      return yield* refused("position", "must be the `position` of a result, and not the result itself")
    }
    const { aggregateId, sequence } = target
    yield* validateStreamPosition(operation, target)
    if (sequence === 0) return undefined
    const position = yield* feed.positionOf(target)
    if (Option.isSome(position)) return position.value
    return yield* refused(
      "sequence",
      `must be that of a stored event, and no event ${sequence} of aggregate ${JSON.stringify(aggregateId)} is stored; the id has the kind of the aggregate, as its \`streamId(id)\` returns it`
    )
  })

/**
 * The number of committed events that a partition has not handled, and the time of the oldest one, in milliseconds
 * since 1970.
 */
const lagOf = (
  feed: EventFeed["Type"],
  filter: Filter | undefined,
  { partition, partitions, position }: PartitionState,
  heldBack: Option.Option<HeldBack>
) =>
  Effect.gen(function* () {
    const own = filterOfPartition(filter, partition, partitions)
    const shown = yield* feed.count({ after: position, filter: own })
    const first = shown === 0 ? undefined : yield* firstAfter(feed, position, own)
    const held = Option.isNone(heldBack) || partitions === 1 ? heldBack : yield* feed.heldBack(own)
    return {
      eventsBehind: shown + Option.match(held, { onNone: () => 0, onSome: ({ events }) => events }),
      oldest: first === undefined ? Option.map(held, ({ since }) => since) : Option.some(toMillis(first.timestamp))
    }
  })

const delayOf = (states: ReadonlyArray<PartitionState>, position: Position): Delay => {
  const [first] = states
  if (first === undefined) return { position, reason: "NeverRun" }
  const behind = states.filter((one) => order(one.position, position) < 0)
  const stopped = behind.find((one) => one.stopped)
  if (stopped !== undefined) {
    const failure = Option.getOrUndefined(stopped.lastFailure)
    return { position, reason: "Stopped", ...(failure === undefined ? {} : { failure }) }
  }
  const isIdle = states.length < first.partitions || behind.some(({ holder }) => Option.isNone(holder))
  if (isIdle) return { position, reason: "Idle" }
  const failure = Option.getOrUndefined(
    Option.firstSomeOf(behind.map(({ lastFailure, retrying }) => (retrying ? lastFailure : Option.none())))
  )
  return { position, reason: "Behind", ...(failure === undefined ? {} : { failure }) }
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
