/**
 * The work of a subscription: lease, read, handle, remember how far it has come; and what to do with an event that can't be handled.
 */
import { SqlError } from "@effect/sql/SqlError"
import type { NonEmptyReadonlyArray } from "effect/Array"
import * as Cause from "effect/Cause"
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
import { filterOfPartition } from "./feedInput.js"
import { machineClock, machineSleep } from "./machineTime.js"
import { within, withinGrace } from "./promptly.js"
import { isPassing } from "./settling.js"
import { fromSqlError, isStrayCancel } from "./sqlError.js"

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
  | { readonly _tag: "Handled"; readonly partition: number; readonly events: number }
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
  const filter = filterOfPartition(job.filter, partition, job.partitions)

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
      return untilLost(post, follow(post))
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
  error: wellFormed(textOf(cause).slice(0, maxError)),
  attempts
})

// --- internal ---

const maxError = 4000

/** What a handler fails with may be anything, such as an object that can't be told as JSON. */
const textOf = (cause: Cause.Cause<unknown>): string => {
  try {
    return Cause.pretty(cause)
  } catch (error) {
    return `a failure that can't be told as text: ${String(error)}`
  }
}

/** How often a subscription that finds nothing for it stores how far it has looked, in milliseconds. */
const idleCheckpoint = 2000

/** Waits between attempts to reach a database that does not answer, in milliseconds: at least and at most. */
const firstPause = 50
const lastPause = 5000

const isLeaseLost = (error: unknown): error is LeaseLost => error instanceof LeaseLost

/** Text that a database takes: no NUL, no half of a surrogate pair. */
const wellFormed = (text: string): string =>
  text.replaceAll("\0", "").replace(/[\uD800-\uDBFF](?![\uDC00-\uDFFF])|(?<![\uD800-\uDBFF])[\uDC00-\uDFFF]/g, "\uFFFD")

/** Whether a statement of this library may succeed the next time: none of them fails for what is in it. */
const mayPass = (error: unknown): boolean =>
  isPassing(error) || (error instanceof StoreError && (error.reason === "Cancelled" || error.reason === "Exhausted"))

/** Tries again for as long as the database can't be reached. */
const enduring = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> => {
  const from = (pause: number): Effect.Effect<A, E, R> =>
    Effect.catchAll(effect, (error) =>
      mayPass(error)
        ? Effect.logWarning(`waiting for the database: ${error}`).pipe(
            Effect.zipRight(machineSleep(pause)),
            Effect.zipRight(from(Math.min(pause * 2, lastPause)))
          )
        : Effect.fail(error)
    )
  return from(firstPause)
}

/**
 * Works until the lease is lost. Not a race: when that is interrupted it does not wait for those who run it, and the lease would be given
 * back before the batch under way has ended.
 */
const untilLost = <A, E, R>(
  post: { readonly lease: Lease; lost: boolean },
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A | undefined, E, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function* () {
      const working = yield* Effect.fork(restore(effect))
      const watching = yield* post.lease.lost.pipe(
        Effect.zipRight(
          Effect.suspend(() => {
            post.lost = true
            return Fiber.interruptFork(working)
          })
        ),
        restore,
        Effect.fork
      )
      const exit = yield* restore(Fiber.await(working)).pipe(
        Effect.onInterrupt(() => Fiber.interrupt(working)),
        Effect.ensuring(Fiber.interrupt(watching))
      )
      return post.lost && Exit.isInterrupted(exit) ? undefined : yield* exit
    })
  )

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
      yield* machineSleep(pause)
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

  /** Does the work that ends with the checkpoint. */
  const move = (position: Position, work: Effect.Effect<void, Refusal | LeaseLost | StoreError, R>) =>
    Effect.flatMap(finishing(post, work), (exit) => {
      if (Exit.isFailure(exit)) return Effect.fail(reasonOf(exit.cause))
      stored = position
      progressed()
      return Effect.map(machineClock.currentTimeMillis, (now) => {
        storedAt = now
      })
    })

  /** What this library itself stores with a checkpoint: if it fails, that is nobody's fault but the database's. */
  const note = (position: Position, effect: Effect.Effect<void, StoreError>) =>
    Effect.catchIf(move(position, lease.advance(position, effect)), isRefusal, ({ cause }) =>
      Effect.fail(new DatabaseFailed({ error: storeErrorOf(cause) }))
    )

  /** Handles the events, and moves on behind them; those whose aggregates wait for an earlier event join it. */
  const handle = (events: NonEmptyReadonlyArray<FeedEvent>, position: Position) => {
    const run = (open: ReadonlyArray<FeedEvent>): Effect.Effect<void, Refusal, R> => {
      const [first, ...rest] = open
      return first === undefined
        ? Effect.void
        : // A handler that dies, or interrupts itself, has failed as one that fails has. Being interrupted from outside is not caught.
          Effect.catchAllCause(
            Effect.suspend(() => Effect.asVoid(job.handle([first, ...rest]))),
            (cause) => new Refusal({ cause })
          )
    }
    const blocked =
      job.onFailure === "setAsideAggregate"
        ? lease.blocked([...new Set(events.map(({ aggregateId }) => aggregateId))])
        : Effect.succeed(none)
    const isBlocked = (ids: ReadonlySet<string>) => (event: FeedEvent) => ids.has(event.aggregateId)
    return Effect.suspend(() => {
      let joined: ReadonlyArray<Failure> = []
      const open = (ids: ReadonlySet<string>) => {
        if (ids.size === 0) return events
        joined = events
          .filter(isBlocked(ids))
          .map((event) => failureOf(event, Cause.fail("an earlier event of the aggregate is set aside"), 0))
        return events.filter((event) => !isBlocked(ids)(event))
      }
      const join = Effect.suspend(() => Effect.forEach(joined, lease.setAside, { discard: true }))
      return Effect.map(
        move(
          position,
          job.transactional
            ? lease.advance(
                position,
                Effect.flatMap(blocked, (ids) => Effect.zipRight(run(open(ids)), join))
              )
            : Effect.flatMap(blocked, (ids) => Effect.zipRight(run(open(ids)), lease.advance(position, join)))
        ),
        () => joined
      )
    })
  }

  /** Tells of events that are done with: handled, but for those that joined an earlier one. */
  const done = (events: NonEmptyReadonlyArray<FeedEvent>, joined: ReadonlyArray<Failure>) =>
    Effect.suspend(() => {
      const cleared = failing ? Effect.mapError(lease.failing(undefined), ofDatabase) : Effect.void
      failing = false
      return cleared.pipe(
        Effect.zipRight(job.observe({ _tag: "Handled", partition, events: events.length - joined.length })),
        Effect.zipRight(
          Effect.forEach(joined, (failure) => job.observe({ _tag: "SetAside", partition, failure }), { discard: true })
        )
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
        Effect.flatMap((joined) => done([event], joined)),
        Effect.catchIf(isRefused, giveUp)
      )
    })

  /** Where nothing was for it, it stores how far it has looked: not too often, but though nothing more should come. */
  const look = (position: Position, next: Fiber.Fiber<unknown, unknown>) =>
    Effect.gen(function* () {
      if (position === stored) return
      const due = Math.min(storedAt + idleCheckpoint - (yield* machineClock.currentTimeMillis), idleCheckpoint)
      const more = due > 0 && (yield* Effect.raceFirst(Effect.as(Fiber.await(next), true), machineSleep(due)))
      if (more === true) return
      yield* Effect.mapError(lease.pass(position), ofDatabase)
      stored = position
      storedAt = yield* machineClock.currentTimeMillis
    })

  return Effect.gen(function* () {
    storedAt = yield* machineClock.currentTimeMillis
    let next = yield* Effect.forkScoped(read(start))
    for (;;) {
      const page = yield* Fiber.join(next)
      // The next page comes while this one is handled; one at a time, so there are never more than two.
      next = yield* Effect.forkScoped(readOn(page))
      const [first, ...rest] = page.events
      if (first === undefined) {
        yield* look(page.position, next)
      } else if (rest.length === 0) {
        yield* handleAlone(first, page.position)
      } else {
        const events: NonEmptyReadonlyArray<FeedEvent> = [first, ...rest]
        yield* handle(events, page.position).pipe(
          Effect.flatMap((joined) => done(events, joined)),
          Effect.catchIf(isRefusal, () =>
            // Whose fault it was each finds out by itself.
            Effect.forEach(
              events,
              (event, index) => handleAlone(event, index === rest.length ? page.position : event.position),
              { discard: true }
            )
          )
        )
      }
    }
  })
}

const none: ReadonlySet<string> = new Set()

/**
 * To the end, whatever happens around it, unless that takes too long, or is in vain. What does not end when it is interrupted, since
 * the database does not answer, is left behind: what it stores is refused when somebody else has the lease.
 */
const finishing = <A, E2, R2>(
  post: { readonly job: { readonly grace: number }; readonly lost: boolean },
  effect: Effect.Effect<A, E2, R2>
): Effect.Effect<Exit.Exit<A, E2>, never, R2> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(Effect.forkDaemon(Effect.interruptible(effect)), (fiber) =>
      Effect.onInterrupt(restore(Fiber.await(fiber)), () =>
        Effect.suspend(() => (post.lost ? Effect.void : within(post.job.grace, Fiber.await(fiber)))).pipe(
          Effect.zipRight(Effect.fiberIdWith((id) => Fiber.interruptAsFork(fiber, id))),
          Effect.zipRight(withinGrace(Fiber.await(fiber)))
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
  error instanceof StoreError && mayPass(error) ? new DatabaseFailed({ error }) : error

/** What stopped a batch: the loss of the lease, the database, or the handler. */
const reasonOf = (cause: Cause.Cause<unknown>): LeaseLost | DatabaseFailed | Refusal => {
  const error = Cause.squash(cause)
  if (isLeaseLost(error)) return error
  const refused = isRefusal(error) ? error.cause : undefined
  const told = storeErrorOf(refused ?? cause)
  if (isPassing(told) || isStrayCancel(told)) return new DatabaseFailed({ error: told })
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
      : new StoreError({ reason: "Unknown", operation: "Subscription", description: textOf(cause), cause: error })
}
