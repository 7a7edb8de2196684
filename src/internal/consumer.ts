/**
 * The work of a subscription: lease, read, handle, remember how far it has come; and what to do with an event that can't be handled.
 */
import { SqlError } from "@effect/sql/SqlError"
import type { NonEmptyReadonlyArray } from "effect/Array"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import {
  beginning,
  type EventFeedService,
  type FeedEvent,
  type Filter,
  type Page,
  type Position
} from "../EventFeed.js"
import { StoreError, type ValidationError } from "../StoreError.js"
import { type Failure, type Lease, LeaseLost, type SubscriptionStoreService } from "../SubscriptionStore.js"
import { isPassing } from "./settling.js"
import { fromSqlError } from "./sqlError.js"

/** What a subscription does. */
export interface Work<E, R> {
  readonly name: string
  readonly filter: Filter | undefined
  readonly from: "beginning" | "now" | Position
  readonly partitions: number
  readonly batchSize: number
  readonly handle: (events: NonEmptyReadonlyArray<FeedEvent>) => Effect.Effect<unknown, E, R>
  /** Whether it runs in the transaction that stores the checkpoint. */
  readonly transactional: boolean
  readonly retry: Schedule.Schedule<unknown>
  readonly onFailure: "stop" | "setAside" | "setAsideAggregate"
  /** In milliseconds. */
  readonly lease: number
  readonly holder: string
  /** How long a batch that is under way may go on after an interruption, in milliseconds. */
  readonly grace: number
  /** Is told what happens. */
  readonly observe: (happening: Happening) => Effect.Effect<void>
}

export type Happening =
  | { readonly _tag: "Handled"; readonly partition: number; readonly events: number; readonly last: FeedEvent }
  | { readonly _tag: "Failed"; readonly partition: number; readonly failure: Failure }
  | { readonly _tag: "SetAside"; readonly partition: number; readonly failure: Failure }

/** An event could not be handled, and the subscription stopped there. */
export class HasStopped extends Data.TaggedError("HasStopped")<{
  readonly partition: number
  readonly failure: Failure
}> {}

/** Works for one partition, for ever, whenever it has the lease. */
export const work = <E, R>(
  job: Work<E, R>,
  feed: EventFeedService,
  store: SubscriptionStoreService,
  partition: number
): Effect.Effect<never, HasStopped | StoreError | ValidationError, R> => {
  const filter: Filter | undefined =
    job.partitions === 1 ? job.filter : { ...job.filter, slice: { index: partition, of: job.partitions } }

  const leased: Effect.Effect<Lease, StoreError, Scope.Scope> = Effect.flatMap(
    job.from === "now" ? feed.head : Effect.succeed(job.from === "beginning" ? beginning : job.from),
    (from) =>
      store.lease({
        key: { name: job.name, partition, partitions: job.partitions },
        from,
        holder: job.holder,
        duration: job.lease
      })
  )

  const turn = Effect.scoped(
    Effect.flatMap(enduring(leased), (lease) => {
      const post: Post<E, R> = { job, feed, filter, partition, lease, lost: false }
      const lost = Effect.map(lease.lost, () => {
        post.lost = true
      })
      return Effect.raceFirst(lost, follow(post))
    })
  )
  return Effect.forever(Effect.catchIf(turn, isLeaseLost, () => Effect.void)) as Effect.Effect<
    never,
    HasStopped | StoreError | ValidationError,
    R
  >
}

/** What somebody is told of a failure: of its cause as much as can be kept. */
export const failureOf = (event: FeedEvent, cause: Cause.Cause<unknown>, attempts: number): Failure => ({
  position: event.position,
  aggregateId: event.aggregateId,
  sequence: event.sequence,
  type: event.type,
  error: wellFormed(Cause.pretty(cause).slice(0, maxError)),
  attempts
})

// --- internal ---

const maxError = 4000

/** How often a subscription that finds nothing for it stores how far it has looked, in milliseconds. */
const idleCheckpoint = 2000

/** Waits between attempts to reach a database that does not answer, in milliseconds: at least and at most. */
const firstPause = 50
const lastPause = 5000

const isLeaseLost = (error: unknown): error is LeaseLost => error instanceof LeaseLost

/** Text that a database takes: no NUL, no half of a surrogate pair. */
const wellFormed = (text: string): string =>
  text.replaceAll("\0", "").replace(/[\uD800-\uDBFF](?![\uDC00-\uDFFF])|(?<![\uD800-\uDBFF])[\uDC00-\uDFFF]/g, "\uFFFD")

/** Tries again for as long as the database can't be reached. */
const enduring = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> => {
  const from = (pause: number): Effect.Effect<A, E, R> =>
    Effect.catchAll(effect, (error) =>
      isPassing(error) ? Effect.zipRight(Effect.sleep(pause), from(Math.min(pause * 2, lastPause))) : Effect.fail(error)
    )
  return from(firstPause)
}

/** With the lease in hand: from the checkpoint on, for ever. Where the database fails in between, from what it says then. */
const follow = <E, R>(
  post: Post<E, R>
): Effect.Effect<never, HasStopped | LeaseLost | StoreError | ValidationError, R> =>
  Effect.gen(function* () {
    let position = post.lease.position
    let pause = firstPause
    const progressed = () => {
      pause = firstPause
    }
    for (;;) {
      const error = yield* Effect.flip(
        Effect.catchIf(Effect.scoped(followFrom(post, position, progressed)), isNotDatabaseFailed, (error) =>
          Effect.fail(new Final({ error }))
        )
      )
      if (error instanceof Final) return yield* error.error
      yield* Effect.logWarning(`subscription ${post.job.name}, partition ${post.partition}: ${error.error.message}`)
      yield* Effect.sleep(pause)
      pause = Math.min(pause * 2, lastPause)
      position = yield* enduring(post.lease.checkpoint)
    }
  })

/** Who works where, and by which right. */
interface Post<E, R> {
  readonly job: Work<E, R>
  readonly feed: EventFeedService
  readonly filter: Filter | undefined
  readonly partition: number
  readonly lease: Lease
  /** Whether the lease is lost, so that there is nothing to finish. */
  lost: boolean
}

const followFrom = <E, R>(
  post: Post<E, R>,
  start: Position,
  progressed: () => void
): Effect.Effect<never, HasStopped | LeaseLost | DatabaseFailed | StoreError | ValidationError, R | Scope.Scope> => {
  const { feed, filter, job, lease, partition } = post
  let stored = start
  let storedAt = 0
  /** Whether the last failure that is kept for people to see is out of date. */
  let failing = true

  const read = (after: Position) => Effect.mapError(feed.read({ after, limit: job.batchSize, filter }), ofDatabase)
  const readOn = ({ more, position }: Page) =>
    more ? read(position) : Effect.flatMap(Effect.mapError(feed.awaitNews(position, filter), ofDatabase), read)

  const advance = (position: Position, effect: Effect.Effect<void, Refusal | StoreError, R>) =>
    Effect.flatMap(finishing(post, lease.advance(position, effect)), (exit) => {
      if (Exit.isFailure(exit)) return Effect.fail(reasonOf(exit.cause))
      stored = position
      progressed()
      return Effect.map(Clock.currentTimeMillis, (now) => {
        storedAt = now
      })
    })

  /** What this library itself stores with a checkpoint: if it fails, that is nobody's fault but the database's. */
  const note = (position: Position, effect: Effect.Effect<void, StoreError>) =>
    Effect.catchIf(advance(position, effect), isRefusal, ({ cause }) =>
      Effect.fail(new DatabaseFailed({ error: storeErrorOf(cause) }))
    )

  /** Handles the events, and moves on behind them; those whose aggregates wait for an earlier event join it. */
  const handle = (events: NonEmptyReadonlyArray<FeedEvent>, position: Position) => {
    const run = (open: ReadonlyArray<FeedEvent>): Effect.Effect<void, Refusal, R> => {
      const [first, ...rest] = open
      return first === undefined
        ? Effect.void
        : Effect.catchAllCause(Effect.asVoid(job.handle([first, ...rest])), (cause) => new Refusal({ cause }))
    }
    const blocked =
      job.onFailure === "setAsideAggregate"
        ? lease.blocked([...new Set(events.map(({ aggregateId }) => aggregateId))])
        : Effect.succeed(none)
    const join = (ids: ReadonlySet<string>) =>
      Effect.forEach(
        events.filter(({ aggregateId }) => ids.has(aggregateId)),
        (event) => lease.setAside(failureOf(event, Cause.fail("an earlier event of the aggregate is set aside"), 0)),
        { discard: true }
      )
    const open = (ids: ReadonlySet<string>) =>
      ids.size === 0 ? events : events.filter(({ aggregateId }) => !ids.has(aggregateId))
    return job.transactional
      ? advance(
          position,
          Effect.flatMap(blocked, (ids) => Effect.zipRight(run(open(ids)), join(ids)))
        )
      : Effect.flatMap(Effect.mapError(blocked, ofDatabase), (ids) =>
          Effect.flatMap(finishing(post, run(open(ids))), (exit) =>
            Exit.isSuccess(exit) ? advance(position, join(ids)) : Effect.fail(reasonOf(exit.cause))
          )
        )
  }

  const handled = (events: NonEmptyReadonlyArray<FeedEvent>) =>
    Effect.suspend(() => {
      const cleared = failing ? Effect.mapError(lease.failing(undefined), ofDatabase) : Effect.void
      failing = false
      return Effect.zipRight(
        cleared,
        job.observe({ _tag: "Handled", partition, events: events.length, last: events.at(-1) ?? events[0] })
      )
    })

  /** One event by itself: as often as the schedule says, then aside, or no further. */
  const handleAlone = (event: FeedEvent, position: Position) =>
    Effect.suspend(() => {
      let attempts = 0
      const attempt = Effect.catchIf(handle([event], position), isRefusal, ({ cause }) => {
        const failure = failureOf(event, cause, ++attempts)
        failing = true
        return Effect.mapError(lease.failing(failure), ofDatabase).pipe(
          Effect.zipRight(job.observe({ _tag: "Failed", partition, failure })),
          Effect.zipRight(new Refused({ failure }))
        )
      })
      const giveUp = ({ failure }: Refused) =>
        job.onFailure === "stop"
          ? Effect.zipRight(Effect.mapError(lease.stop(failure), ofDatabase), new HasStopped({ partition, failure }))
          : Effect.zipRight(
              note(position, lease.setAside(failure)),
              job.observe({ _tag: "SetAside", partition, failure })
            )
      return Effect.retry(attempt, { schedule: job.retry, while: isRefused }).pipe(
        Effect.zipRight(handled([event])),
        Effect.catchIf(isRefused, giveUp)
      )
    })

  return Effect.gen(function* () {
    storedAt = yield* Clock.currentTimeMillis
    let next = yield* Effect.forkScoped(read(start))
    for (;;) {
      const page = yield* Fiber.join(next)
      // The next page comes while this one is handled; one at a time, so there are never more than two.
      next = yield* Effect.forkScoped(readOn(page))
      const [first, ...rest] = page.events
      if (first === undefined) {
        const idle = (yield* Clock.currentTimeMillis) - storedAt
        if (page.position !== stored && idle >= idleCheckpoint) {
          yield* Effect.mapError(lease.pass(page.position), ofDatabase)
          stored = page.position
          storedAt = yield* Clock.currentTimeMillis
        }
        continue
      }
      const events: NonEmptyReadonlyArray<FeedEvent> = [first, ...rest]
      yield* Effect.catchIf(Effect.zipRight(handle(events, page.position), handled(events)), isRefusal, () =>
        // Whose fault it was each finds out by itself.
        Effect.forEach(
          events,
          (event, index) => handleAlone(event, index === rest.length ? page.position : event.position),
          { discard: true }
        )
      )
    }
  })
}

const none: ReadonlySet<string> = new Set()

/** To the end, whatever happens around it, unless that takes too long, or is in vain. */
const finishing = <A, E2, R2>(
  post: { readonly job: { readonly grace: number }; readonly lost: boolean },
  effect: Effect.Effect<A, E2, R2>
): Effect.Effect<Exit.Exit<A, E2>, never, R2> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(Effect.forkDaemon(Effect.interruptible(effect)), (fiber) =>
      Effect.onInterrupt(restore(Fiber.await(fiber)), () =>
        post.lost
          ? Fiber.interrupt(fiber)
          : Effect.zipRight(
              Effect.timeoutOption(Effect.interruptible(Fiber.await(fiber)), post.job.grace),
              Fiber.interrupt(fiber)
            )
      )
    )
  )

/** The database failed, not the handler: how far the subscription has come is to be read from it again. */
class DatabaseFailed extends Data.TaggedError("DatabaseFailed")<{ readonly error: StoreError }> {}

class Final extends Data.TaggedError("Final")<{
  readonly error: HasStopped | LeaseLost | StoreError | ValidationError
}> {}

/** The handler did not do its work, for a reason of its own. */
class Refusal extends Data.TaggedError("Refusal")<{ readonly cause: Cause.Cause<unknown> }> {}

/** And that was told. */
class Refused extends Data.TaggedError("Refused")<{ readonly failure: Failure }> {}

const isNotDatabaseFailed = <E>(error: E): error is Exclude<E, DatabaseFailed> => !(error instanceof DatabaseFailed)
const isRefusal = (error: unknown): error is Refusal => error instanceof Refusal
const isRefused = (error: unknown): error is Refused => error instanceof Refused

const ofDatabase = <E>(error: E): E | DatabaseFailed =>
  error instanceof StoreError && isPassing(error) ? new DatabaseFailed({ error }) : error

/** What stopped a batch: the loss of the lease, the database, or the handler. */
const reasonOf = (cause: Cause.Cause<unknown>): LeaseLost | DatabaseFailed | Refusal => {
  const error = Cause.squash(cause)
  if (isLeaseLost(error)) return error
  const refused = isRefusal(error) ? error.cause : undefined
  const told = storeErrorOf(refused ?? cause)
  if (isPassing(told)) return new DatabaseFailed({ error: told })
  if (refused !== undefined) return new Refusal({ cause: refused })
  // Said of the commit, and due to what the handler did in it, unless the database has no room, or lacks something.
  return told.reason === "Exhausted" || told.reason === "Misconfigured"
    ? new DatabaseFailed({ error: told })
    : new Refusal({ cause })
}

const storeErrorOf = (cause: Cause.Cause<unknown>): StoreError => {
  const error = Cause.squash(cause)
  return error instanceof StoreError
    ? error
    : error instanceof SqlError
      ? fromSqlError("Subscription", "writing", error)
      : new StoreError({ reason: "Unknown", operation: "Subscription", description: Cause.pretty(cause), cause: error })
}
