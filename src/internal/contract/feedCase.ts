/**
 * The parts that the cases of the contract of the feed and of subscriptions are made of.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import type { Event } from "../../Event.js"
import {
  beginning,
  EventFeed,
  type EventFeedService,
  type FeedEvent,
  order,
  type Position,
  type ReadOptions,
  type StreamPosition
} from "../../EventFeed.js"
import type { Capability } from "../../FeedContract.js"
import { StoreAdapter, type StoreAdapterService } from "../../StoreAdapter.js"
import { RetryCommand, StoreError, ValidationError } from "../../StoreError.js"
import {
  type EventFailure,
  type Lease,
  type LeaseOptions,
  type PartitionState,
  type PartitionsChanged,
  SubscriptionStore,
  type SubscriptionStoreService
} from "../../SubscriptionStore.js"
import { macrotask, newId, noSqlClient, projecting, type Settings, stream } from "./case.js"

export type { Case as FeedCase } from "../../FeedContract.js"

export type FeedSettings = Settings<Capability>

export const ports = Effect.all({ store: StoreAdapter, feed: EventFeed, subscriptions: SubscriptionStore })

// --- reading ---

/** The place of an event in its stream, as text. */
export const placeOf = ({ aggregateId, sequence }: StreamPosition): string => `${aggregateId} ${sequence}`

/** The events of the given aggregates. A feed may also show events that the case did not commit. */
export const eventsOf = <E extends StreamPosition>(
  events: ReadonlyArray<E>,
  ids: Iterable<string>
): ReadonlyArray<E> => {
  const own = new Set(ids)
  return events.filter(({ aggregateId }) => own.has(aggregateId))
}

/** An event as it was committed. */
export const committedOf = ({ id: _id, kind: _kind, position: _position, ...event }: FeedEvent): Event => event

/** All events after a position, page by page to the end of the feed. */
export const readOn = (
  feed: EventFeedService,
  options: ReadOptions = {}
): Effect.Effect<ReadonlyArray<FeedEvent>, ValidationError | StoreError> => follow(feed, options, () => true)

/**
 * Follows the feed from a position on, until it has shown enough and has no more events.
 */
export const follow = (
  feed: EventFeedService,
  options: ReadOptions,
  isEnough: (shown: ReadonlyArray<FeedEvent>) => boolean
): Effect.Effect<ReadonlyArray<FeedEvent>, ValidationError | StoreError> =>
  Effect.gen(function* () {
    const shown: Array<FeedEvent> = []
    let after = options.after ?? beginning
    for (;;) {
      const { events, more, position } = yield* feed.read({ ...options, after })
      expect(events.length, "a page has as many events as its limit, at most").toBeLessThanOrEqual(
        options.limit ?? 1000
      )
      for (const event of events) expectRise(after, event.position, "an event of a page")
      const last = events.at(-1)
      expect(order(position, last?.position ?? after), "the position of a page is at its last event or later").not.toBe(
        -1
      )
      if (more) expectRise(after, position, "the position of a page that has more")
      shown.push(...events)
      if (!more && isEnough(shown)) return shown
      after = more ? position : yield* feed.awaitAppend(position, options.filter)
      expect(order(after, position), "news does not lead back").not.toBe(-1)
    }
  })

/** Waits until the feed shows this number of events of the aggregates after a position, and returns all of them. */
export const shown = (
  feed: EventFeedService,
  options: ReadOptions,
  ids: Iterable<string>,
  count: number
): Effect.Effect<ReadonlyArray<FeedEvent>, ValidationError | StoreError> => {
  const own = [...ids]
  return Effect.map(
    follow(feed, options, (events) => eventsOf(events, own).length >= count),
    (events) => eventsOf(events, own)
  )
}

/** Each position is behind the one before it. */
export const expectRising = (events: ReadonlyArray<FeedEvent>, what = "the feed"): void => {
  for (const [index, { position }] of events.entries()) {
    const before = events[index - 1]
    if (before !== undefined) expectRise(before.position, position, `an event of ${what}`)
  }
}

/** Each stream has all its sequences, in their order. */
export const expectInSequence = (events: ReadonlyArray<FeedEvent>): void => {
  const streams = new Map<string, Array<number>>()
  for (const { aggregateId, sequence } of events) {
    const known = streams.get(aggregateId)
    if (known === undefined) streams.set(aggregateId, [sequence])
    else known.push(sequence)
  }
  for (const sequences of streams.values()) expect(sequences).toEqual(sequences.map((_, index) => index + 1))
}

const expectRise = (before: Position, after: Position, what: string): void =>
  expect(order(after, before), `${what} is behind what came before: ${before}, ${after}`).toBe(1)

// --- committing ---

/** Commits the next event of an aggregate as a command does. After a conflict it loads and retries. */
export const commitNext = (
  store: StoreAdapterService,
  aggregateId: string
): Effect.Effect<ReadonlyArray<Event>, unknown> =>
  Effect.retry(
    Effect.flatMap(store.getEvents(aggregateId, 0), (stored) =>
      Effect.flatMap(stream(aggregateId, stored.length + 1, 1), (events) =>
        Effect.as(store.commitEvents(events), events)
      )
    ),
    { while: (error) => error instanceof RetryCommand }
  )

/** Retries after a conflict and after `Contention`. */
export const again = <A, R>(effect: Effect.Effect<A, unknown, R>): Effect.Effect<A, unknown, R> =>
  Effect.retry(effect, {
    while: (error) => error instanceof RetryCommand || (error instanceof StoreError && error.reason === "Contention")
  })

/** Commits events, and runs a body in the same transaction. */
export interface Transaction {
  readonly name: string
  readonly needs: Capability | undefined
  readonly run: (
    store: StoreAdapterService,
    events: ReadonlyArray<Event>,
    body: Effect.Effect<unknown, unknown>
  ) => Effect.Effect<void, unknown>
}

/** The ways to run a body in the transaction of a commit. */
export const transactions: ReadonlyArray<Transaction> = [
  {
    name: "commitAll",
    needs: undefined,
    run: (store, events, body) => store.commitAll(events, [projecting(body)])
  },
  {
    name: "caller's transaction",
    needs: "callerTransaction",
    run: (store, events, body) =>
      Effect.flatMap(sqlClient, (sql) =>
        Effect.asVoid(sql.withTransaction(Effect.zipRight(store.commitEvents(events), body)))
      )
  }
]

/** The client that the layer of the store provides beside it. */
export const sqlClient = Effect.map(Effect.serviceOption(SqlClient.SqlClient), Option.getOrThrowWith(noSqlClient))

/** A transaction that stays open until the case ends it. */
export const opened = (
  store: StoreAdapterService,
  events: ReadonlyArray<Event>,
  body: Effect.Effect<unknown, unknown> = Effect.void
) =>
  Effect.gen(function* () {
    const [began, end] = [yield* Deferred.make<void>(), yield* Deferred.make<void, unknown>()]
    const holding = Effect.zipRight(body, Effect.zipRight(Deferred.succeed(began, undefined), Deferred.await(end)))
    const fiber = yield* Effect.fork(store.commitAll(events, [projecting(holding)]))
    yield* Effect.raceFirst(Deferred.await(began), Fiber.join(fiber))
    return {
      fiber,
      commit: Effect.zipRight(Deferred.succeed(end, undefined), Fiber.join(fiber)),
      fail: (error: unknown) => Effect.zipRight(Deferred.fail(end, error), Fiber.await(fiber)),
      die: (defect: unknown) => Effect.zipRight(Deferred.die(end, defect), Fiber.await(fiber))
    }
  })

// --- waiting ---

/**
 * Waits for a fiber, but only for a number of macrotasks, because it may wait for a transaction that the case holds
 * open.
 */
export const endedWithin = <A, E>(
  fiber: Fiber.Fiber<A, E>,
  macrotasks: number = manyMacrotasks
): Effect.Effect<Option.Option<Exit.Exit<A, E>>> =>
  Effect.gen(function* () {
    for (let turn = 0; turn < macrotasks; turn++) {
      const exit = yield* Fiber.poll(fiber)
      if (Option.isSome(exit)) return exit
      yield* macrotask
    }
    return yield* Fiber.poll(fiber)
  })

/** Several times as many macrotasks as a commit takes on a database nearby. */
const manyMacrotasks = 5000

/** A number of macrotasks after which a fiber that need not wait has ended. */
export const briefly = 1000

export const macrotasks = (count: number): Effect.Effect<void> => Effect.repeatN(macrotask, count - 1)

// --- failures ---

/** The paths of the issues. */
export const refusedPaths = (error: unknown): ReadonlyArray<string> | unknown =>
  error instanceof ValidationError ? error.issues.map(({ path }) => path.join(".")) : error

// --- subscriptions ---

/** The options of a lease for a minute: of a subscription with one partition, from the beginning of the feed. */
export const leaseOf = (
  name: string,
  options: {
    readonly partition?: number
    readonly partitions?: number
    readonly from?: Position
    readonly holder?: string
  } = {}
): LeaseOptions => ({
  key: { name, partition: options.partition ?? 0, partitions: options.partitions ?? 1 },
  from: options.from ?? beginning,
  holder: options.holder ?? "holder",
  duration: 60_000
})

/** A lease, and an effect that closes its scope. The scope of the case closes it, too. */
export interface Held {
  readonly lease: Lease
  readonly giveBack: Effect.Effect<void>
}

export const take = (
  subscriptions: SubscriptionStoreService,
  options: LeaseOptions
): Effect.Effect<Held, ValidationError | PartitionsChanged | StoreError, Scope.Scope> =>
  Effect.gen(function* () {
    const own = yield* Scope.fork(yield* Effect.scope, ExecutionStrategy.sequential)
    const lease = yield* Scope.extend(subscriptions.lease(options), own)
    return { lease, giveBack: Scope.close(own, Exit.void) }
  })

/** The state of a partition without the time, which no case knows. */
export const withoutTime = (state: PartitionState | undefined): Omit<PartitionState, "heldSince"> | undefined => {
  if (state === undefined) return undefined
  const { heldSince: _heldSince, ...others } = state
  return others
}

/** Commits events of a new aggregate, and returns them as the feed shows them. */
export const commitShown = (
  { feed, store }: Effect.Effect.Success<typeof ports>,
  count: number
): Effect.Effect<ReadonlyArray<FeedEvent>, unknown> =>
  Effect.gen(function* () {
    const after = yield* feed.head
    const id = newId()
    yield* store.commitEvents(yield* stream(id, 1, count))
    return yield* shown(feed, { after }, [id], count)
  })

/** The item of a list, which must have it. */
export const at = <A>(list: ReadonlyArray<A>, index: number): A => {
  const found = list.at(index)
  if (found === undefined) throw new Error(`the case has no item ${index}`)
  return found
}

export const failureAt = ({ aggregateId, position, sequence, type }: FeedEvent, error = "no"): EventFailure => ({
  position,
  aggregateId,
  sequence,
  type,
  error,
  attempts: 3
})
