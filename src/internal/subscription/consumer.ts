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
import * as Option from "effect/Option"
import type * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import {
  beginning,
  type EventFeedService,
  type FeedEvent,
  type Filter,
  order,
  type Page,
  type Position
} from "../../EventFeed.js"
import { StoreError, type ValidationError } from "../../StoreError.js"
import { type EventFailure, type Lease, LeaseLost, type SubscriptionStoreService } from "../../SubscriptionStore.js"
import { liveClock, liveSleep } from "../runtime/clock.js"
import { awaitAtMost, awaitGrace } from "../runtime/interruption.js"
import { isTransient } from "../runtime/retry.js"
import { fromSqlError, isStrayCancel } from "../runtime/sqlError.js"
import { filterOfPartition } from "../store/readOptions.js"
import { makeTrouble, type Trouble } from "./attempts.js"
import { failureOf, lineOf, textOf } from "./failureText.js"
import { enduring, firstPause, lastPause, mayPass } from "./unavailable.js"

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
  readonly onFailure: "stop" | "park" | "parkAggregate"
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
  | { readonly _tag: "Failed"; readonly partition: number; readonly failure: EventFailure }
  | { readonly _tag: "ParkedEvent"; readonly partition: number; readonly failure: EventFailure }

/** An event could not be handled, and the subscription stopped there. */
export class HasStopped extends Data.TaggedError("HasStopped")<{
  readonly partition: number
  readonly failure: EventFailure
}> {}

/** Works for one partition, for ever, whenever it has the lease. */
export const work = <E, R>(
  job: Work<E, R>,
  feed: EventFeedService,
  store: SubscriptionStoreService,
  partition: number
): Effect.Effect<never, HasStopped | StoreError | ValidationError, R> => {
  const filter = filterOfPartition(job.filter, partition, job.partitions)

  const leased: Effect.Effect<Lease, StoreError | ValidationError, Scope.Scope> = Effect.flatMap(
    job.from === "now" ? feed.head : Effect.succeed(job.from === "beginning" ? beginning : job.from),
    (from) =>
      store.lease({
        key: { name: job.name, partition, partitions: job.partitions },
        from,
        holder: job.holder,
        duration: job.lease
      })
  )

  // A lease may be lost because of an event, such as one that blocks the process.
  let wasLost = false
  const turn = Effect.scoped(
    Effect.flatMap(enduring(leased), (lease) => {
      const trouble = Option.getOrUndefined(Option.map(lease.attempts, (known) => makeTrouble(job.retry, known)))
      const isCareful = wasLost || lease.isTakenOver || trouble !== undefined
      const post: Post<E, R> = { job, feed, filter, partition, lease, lost: false, isCareful, trouble }
      wasLost = true
      return untilLost(post, follow(post))
    })
  )
  return Effect.forever(Effect.catchIf(turn, isLeaseLost, () => Effect.void)) as Effect.Effect<
    never,
    HasStopped | StoreError | ValidationError,
    R
  >
}

// --- internal ---

/** How often a subscription that finds nothing for it stores how far it has looked, in milliseconds. */
const idleCheckpoint = 2000

const isLeaseLost = (error: unknown): error is LeaseLost => error instanceof LeaseLost

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
      yield* liveSleep(pause)
      pause = Math.min(pause * 2, lastPause)
      if (error.hasRun) post.isCareful = true
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
  /**
   * Whether the handling of the next page may end with the connection, the lease or the process, as the last one did. Then each event is
   * handled by itself, and each attempt is counted before it begins.
   */
  isCareful: boolean
  /** The event that is tried again. */
  trouble: Trouble | undefined
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
  /** Whether the handler ran in the work that was done last. */
  let hasRun = false

  const read = (after: Position) => Effect.mapError(feed.read({ after, limit: job.batchSize, filter }), ofDatabase)
  const readOn = ({ more, position }: Page) =>
    more ? read(position) : Effect.flatMap(Effect.mapError(feed.awaitAppend(position, filter), ofDatabase), read)

  /** Does the work that ends with the checkpoint. */
  const move = (position: Position, work: Effect.Effect<void, Refusal | LeaseLost | StoreError, R>) =>
    Effect.flatMap(finishing(post, work), (exit) => {
      if (Exit.isFailure(exit)) return Effect.fail(reasonOf(exit.cause, hasRun))
      stored = position
      progressed()
      return Effect.map(liveClock.currentTimeMillis, (now) => {
        storedAt = now
      })
    })

  /** What this library itself stores with a checkpoint: if it fails, that is nobody's fault but the database's. */
  const note = (position: Position, effect: Effect.Effect<void, StoreError>) =>
    Effect.catchIf(move(position, lease.advance(position, effect)), isRefusal, ({ cause }) =>
      Effect.fail(new DatabaseFailed({ error: storeErrorOf(cause), hasRun: false }))
    )

  /** Handles the events, and moves on behind them; those whose aggregates wait for an earlier event join it. */
  const handle = (events: NonEmptyReadonlyArray<FeedEvent>, position: Position) => {
    const run = (open: ReadonlyArray<FeedEvent>): Effect.Effect<void, Refusal, R> => {
      const [first, ...rest] = open
      return first === undefined
        ? Effect.void
        : // A handler that dies, or interrupts itself, has failed as one that fails has. Being interrupted from outside is not caught.
          Effect.catchAllCause(
            Effect.suspend(() => {
              hasRun = true
              return Effect.asVoid(job.handle([first, ...rest]))
            }),
            (cause) => new Refusal({ cause })
          )
    }
    const blocked =
      job.onFailure === "parkAggregate"
        ? lease.parkedAggregates([...new Set(events.map(({ aggregateId }) => aggregateId))])
        : Effect.succeed(none)
    const isBlocked = (ids: ReadonlySet<string>) => (event: FeedEvent) => ids.has(event.aggregateId)
    return Effect.suspend(() => {
      hasRun = false
      let joined: ReadonlyArray<EventFailure> = []
      const open = (ids: ReadonlySet<string>) => {
        if (ids.size === 0) return events
        joined = events
          .filter(isBlocked(ids))
          .map((event) => failureOf(event, Cause.fail("an earlier event of the aggregate is parked"), 0))
        return events.filter((event) => !isBlocked(ids)(event))
      }
      const join = Effect.suspend(() => Effect.forEach(joined, lease.park, { discard: true }))
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
  const done = (events: NonEmptyReadonlyArray<FeedEvent>, joined: ReadonlyArray<EventFailure>) =>
    Effect.suspend(() => {
      const cleared = failing ? ofStore(lease.recordFailure(undefined)) : Effect.void
      failing = false
      return cleared.pipe(
        Effect.zipRight(job.observe({ _tag: "Handled", partition, events: events.length - joined.length })),
        Effect.zipRight(
          Effect.forEach(joined, (failure) => job.observe({ _tag: "ParkedEvent", partition, failure }), {
            discard: true
          })
        )
      )
    })

  /** Where the last attempt failed: counts it, if the database says that it is there. Otherwise fails with what the database said. */
  const count = (event: FeedEvent, cause: Cause.Cause<unknown>) =>
    Effect.suspend(() => {
      const trouble = post.trouble ?? makeTrouble(job.retry, { position: event.position, attempts: 0 })
      post.trouble = trouble
      if (trouble.passesOver(storeErrorOf(cause))) return Effect.void
      const failure = failureOf(event, cause, trouble.attempts + 1)
      failing = true
      return Effect.logWarning(
        `attempt ${failure.attempts} at event ${event.sequence} of aggregate ${JSON.stringify(event.aggregateId)}, of type ${JSON.stringify(event.type)}, failed: ${lineOf(cause)}`
      ).pipe(
        Effect.zipRight(ofStore(lease.recordFailure(failure))),
        Effect.tapError(() => {
          post.isCareful = true
          return Effect.void
        }),
        Effect.zipRight(Effect.sync(() => trouble.failed(failure, cause))),
        Effect.zipRight(job.observe({ _tag: "Failed", partition, failure }))
      )
    })

  /** Counts an attempt whose connection broke, and goes on from the checkpoint: the attempt may have stored it. */
  const countBroken = (event: FeedEvent, broken: DatabaseFailed) =>
    Effect.flatMap(ofStore(lease.checkpoint), (stored) =>
      order(stored, event.position) < 0
        ? Effect.zipRight(count(event, Cause.fail(broken.error)), broken)
        : Effect.fail(broken)
    )

  const giveUp = (event: FeedEvent, position: Position, { attempts, failure: known }: Trouble) => {
    const failure = known ?? failureOf(event, Cause.fail("the attempt ended with its process or its lease"), attempts)
    return job.onFailure === "stop"
      ? Effect.zipRight(ofStore(lease.stop(failure)), new HasStopped({ partition, failure }))
      : Effect.zipRight(note(position, lease.park(failure)), job.observe({ _tag: "ParkedEvent", partition, failure }))
  }

  /** One event by itself: as often as the schedule says, then aside, or no further. */
  const handleAlone = (event: FeedEvent, position: Position) =>
    Effect.gen(function* () {
      if (post.trouble?.position !== event.position) post.trouble = undefined
      for (;;) {
        const trouble = post.trouble
        if (trouble !== undefined && !(yield* trouble.next)) return yield* giveUp(event, position, trouble)
        if (trouble !== undefined || post.isCareful) {
          const attempts = (trouble?.attempts ?? 0) + 1
          yield* ofStore(lease.attempt({ position: event.position, attempts }))
        }
        const joined = yield* handle([event], position).pipe(
          Effect.catchIf(isRefusal, ({ cause }) => Effect.as(count(event, cause), undefined)),
          Effect.catchIf(isDatabaseFailed, (broken) =>
            broken.hasRun ? countBroken(event, broken) : Effect.fail(broken)
          )
        )
        if (joined !== undefined) return yield* done([event], joined)
      }
    })

  /** Where nothing was for it, it stores how far it has looked: not too often, but though nothing more should come. */
  const look = (position: Position, next: Fiber.Fiber<unknown, unknown>) =>
    Effect.gen(function* () {
      if (position === stored) return
      const due = Math.min(storedAt + idleCheckpoint - (yield* liveClock.currentTimeMillis), idleCheckpoint)
      const more = due > 0 && (yield* Effect.raceFirst(Effect.as(Fiber.await(next), true), liveSleep(due)))
      if (more === true) return
      yield* ofStore(lease.advanceTo(position))
      stored = position
      storedAt = yield* liveClock.currentTimeMillis
    })

  return Effect.gen(function* () {
    storedAt = yield* liveClock.currentTimeMillis
    let next = yield* Effect.forkScoped(read(start))
    for (;;) {
      const page = yield* Fiber.join(next)
      // The next page comes while this one is handled; one at a time, so there are never more than two.
      next = yield* Effect.forkScoped(readOn(page))
      const [first, ...rest] = page.events
      if (first === undefined) {
        yield* look(page.position, next)
      } else {
        const events: NonEmptyReadonlyArray<FeedEvent> = [first, ...rest]
        const eachAlone = Effect.forEach(
          events,
          (event, index) => handleAlone(event, index === rest.length ? page.position : event.position),
          { discard: true }
        )
        yield* rest.length === 0 || post.isCareful
          ? eachAlone
          : handle(events, page.position).pipe(
              Effect.flatMap((joined) => done(events, joined)),
              // Whose fault it was each finds out by itself.
              Effect.catchIf(isRefusal, () => eachAlone)
            )
        post.isCareful = false
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
        Effect.suspend(() => (post.lost ? Effect.void : awaitAtMost(post.job.grace, Fiber.await(fiber)))).pipe(
          Effect.zipRight(Effect.fiberIdWith((id) => Fiber.interruptAsFork(fiber, id))),
          Effect.zipRight(awaitGrace(Fiber.await(fiber)))
        )
      )
    )
  )

/** The database failed, not the handler: how far the subscription has come is to be read from it again. */
class DatabaseFailed extends Data.TaggedError("DatabaseFailed")<{
  readonly error: StoreError
  /** Whether the handler had begun, and may be what broke it. */
  readonly hasRun: boolean
}> {}

class Final extends Data.TaggedError("Final")<{
  readonly error: HasStopped | LeaseLost | StoreError | ValidationError
}> {}

/** The handler did not do its work, for a reason of its own. */
class Refusal extends Data.TaggedError("Refusal")<{ readonly cause: Cause.Cause<unknown> }> {}

const isDatabaseFailed = (error: unknown): error is DatabaseFailed => error instanceof DatabaseFailed
const isNotDatabaseFailed = <E>(error: E): error is Exclude<E, DatabaseFailed> => !(error instanceof DatabaseFailed)
const isRefusal = (error: unknown): error is Refusal => error instanceof Refusal

/** A statement of this library. The pool may still give connections that are cut, while the database is there. */
const ofStore = <A, E, R>(statement: Effect.Effect<A, E, R>): Effect.Effect<A, E | DatabaseFailed, R> =>
  Effect.mapError(Effect.retry(statement, { times: 10, while: isCut }), ofDatabase)

const isCut = (error: unknown): boolean => error instanceof StoreError && error.reason === "ConnectionLost"

const ofDatabase = <E>(error: E): E | DatabaseFailed =>
  error instanceof StoreError && mayPass(error) ? new DatabaseFailed({ error, hasRun: false }) : error

/**
 * What stopped a batch: the loss of the lease, a statement of this library, or the handler. A handler that fails with the failure of a
 * database has failed: it may be another database, or a connection that the handler broke.
 */
const reasonOf = (cause: Cause.Cause<unknown>, hasRun: boolean): LeaseLost | DatabaseFailed | Refusal => {
  const error = Cause.squash(cause)
  if (isLeaseLost(error) || isRefusal(error)) return error
  const told = storeErrorOf(cause)
  // Said of the commit, and due to what the handler did in it, unless the database has no room, or lacks something.
  return isTransient(told) || isStrayCancel(told) || told.reason === "Exhausted" || told.reason === "Misconfigured"
    ? new DatabaseFailed({ error: told, hasRun })
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
