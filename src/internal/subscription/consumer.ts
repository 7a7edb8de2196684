/**
 * The consumer of one partition of a subscription: takes the lease, reads the feed, has the events handled, and stores
 * the checkpoint. `runner.ts` runs one for each partition.
 *
 * - It ends between two batches when its turn is over, with its checkpoint stored and its lease released (`turn.ts`).
 * - It ends, too, when the subscription has another number of partitions. `shares.ts` then runs the new ones.
 * - Nothing is handled without the lease. When it is lost, the batch under way is interrupted, and the consumer waits
 *   for the lease again.
 * - Each batch ends with a checkpoint. After a failure of the database the consumer goes on from the checkpoint that
 *   the store then has.
 * - A page is handled as one batch. If that fails, each of its events is handled by itself, to find the one that fails
 *   (`handleOne.ts`).
 */
import type { NonEmptyReadonlyArray } from "effect/Array"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import { beginning, type EventFeedService, type Page, type Position } from "../../EventFeed.js"
import type { StoreError, ValidationError } from "../../StoreError.js"
import type { Key, Lease, LeaseLost, PartitionsChanged, SubscriptionStoreService } from "../../SubscriptionStore.js"
import { liveClock, liveSleep } from "../runtime/clock.js"
import { scoped } from "../runtime/interruption.js"
import { filterOfPartition } from "../store/readOptions.js"
import { callStore, DatabaseFailed, HandlerFailed, type HasStopped, orDatabaseFailed } from "./batchFailure.js"
import { checkpointStored, handleBatch, reportHandled } from "./handleBatch.js"
import { handleOne } from "./handleOne.js"
import { longestPause, retryWhileUnavailable } from "./retryWhileUnavailable.js"
import { type ConsumerOptions, makeSession, type Session } from "./session.js"
import { duringTurn, endAt, type Turn, withinTurn } from "./turn.js"

/**
 * Consumes one partition until its turn is over, or until the number of partitions is another one. It waits for the
 * lease, and waits again when the lease is lost.
 */
export const runConsumer = <E, R>(
  options: ConsumerOptions<E, R>,
  feed: EventFeedService,
  store: SubscriptionStoreService,
  key: Key,
  turn: Turn
): Effect.Effect<void, HasStopped | StoreError | ValidationError, R> => {
  const { partition } = key
  const filter = filterOfPartition(options.filter, partition, key.partitions)
  const takeLease: Effect.Effect<Lease, PartitionsChanged | StoreError | ValidationError, Scope.Scope> = Effect.flatMap(
    options.from === "now" ? feed.head : Effect.succeed(options.from === "beginning" ? beginning : options.from),
    (from) => store.lease({ key, from, holder: options.holder, duration: options.lease })
  )
  // An event may cause the loss of a lease, for example by blocking the process.
  let wasLost = false
  const underLease = scoped(
    Effect.flatMap(retryWhileUnavailable(takeLease), (lease) => {
      const session = makeSession<R>({ options, feed, filter, partition, turn, lease }, wasLost)
      wasLost = true
      return Effect.zipRight(observeHolding(options, partition), untilLost(session, consume(session)))
    })
  )
  const untilOver: Effect.Effect<void, HasStopped | StoreError | ValidationError, R> = Effect.suspend(() =>
    turn.isOver
      ? Effect.void
      : Effect.zipRight(
          Effect.catchTags(underLease, {
            LeaseLost: () => Effect.void,
            PartitionsChanged: () =>
              Effect.sync(() => {
                turn.isOver = true
              })
          }),
          untilOver
        )
  )
  return untilOver
}

// --- internal ---

/** How often the checkpoint of an idle subscription is moved, in milliseconds. */
const idleCheckpoint = 2000

/** Reports that the lease is held, until the scope closes. */
const observeHolding = <E, R>({ observe }: ConsumerOptions<E, R>, partition: number) =>
  Effect.acquireRelease(observe({ _tag: "Held", partition }), () => observe({ _tag: "Released", partition }))

/**
 * Runs the effect until the lease is lost. It is no race, because an interrupted race does not wait for its fibers: the
 * lease would be released before the batch under way has ended.
 */
const untilLost = <A, E, R>(
  session: { readonly lease: Lease; isLost: boolean },
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A | undefined, E, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function* () {
      const working = yield* Effect.fork(restore(effect))
      const watching = yield* session.lease.lost.pipe(
        Effect.zipRight(
          Effect.suspend(() => {
            session.isLost = true
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
      return session.isLost && Exit.isInterrupted(exit) ? undefined : yield* exit
    })
  )

/**
 * Consumes from the checkpoint on, until the turn is over. After a failure of the database it waits, and goes on from
 * the checkpoint that the store then has.
 */
const consume = <R>(
  session: Session<R>
): Effect.Effect<void, HasStopped | LeaseLost | StoreError | ValidationError, R> =>
  Effect.gen(function* () {
    for (;;) {
      const ended = yield* Effect.either(scoped(consumePages(session)))
      if (Either.isRight(ended)) return
      const error = ended.left
      if (!(error instanceof DatabaseFailed)) return yield* error
      yield* Effect.logWarning(
        `subscription ${session.options.name}, partition ${session.partition}: ${error.error.message}`
      )
      yield* liveSleep(session.pause)
      session.pause = Math.min(session.pause * 2, longestPause)
      if (error.handlerRan) session.isCareful = true
      session.checkpoint = yield* retryWhileUnavailable(session.lease.checkpoint)
    }
  })

/** Handles one page after the other. The next page is read while one is handled, so that at most two are in memory. */
const consumePages = <R>(
  session: Session<R>
): Effect.Effect<void, HasStopped | LeaseLost | StoreError | ValidationError | DatabaseFailed, R | Scope.Scope> =>
  Effect.gen(function* () {
    session.mayHaveFailure = true
    session.handlerRan = false
    session.checkpointAt = yield* liveClock.currentTimeMillis
    endAt(session.turn, session.checkpoint)
    let next = yield* Effect.forkScoped(readPage(session, session.checkpoint))
    while (!session.turn.isOver) {
      const page = withinTurn(session.turn, yield* Fiber.join(next))
      next = yield* Effect.forkScoped(readNextPage(session, page))
      const [first, ...rest] = page.events
      if (first === undefined) yield* moveIdleCheckpoint(session, page.position, next)
      else yield* duringTurn(session.turn, handlePage(session, page, [first, ...rest]))
      endAt(session.turn, session.checkpoint)
    }
  })

const readPage = <R>({ feed, filter, options }: Session<R>, after: Position) =>
  orDatabaseFailed(feed.read({ after, limit: options.batchSize, filter }))

const readNextPage = <R>(session: Session<R>, { more, position }: Page) =>
  more
    ? readPage(session, position)
    : Effect.flatMap(orDatabaseFailed(session.feed.awaitAppend(position, session.filter)), (after) =>
        readPage(session, after)
      )

/**
 * Handles the events as one batch; each by itself where that failed, or where the last events broke a connection, a
 * lease or a process.
 */
const handlePage = <R>(session: Session<R>, page: Page, events: NonEmptyReadonlyArray<Page["events"][number]>) =>
  Effect.gen(function* () {
    const oneByOne = Effect.forEach(
      events,
      (event, index) =>
        session.turn.isOver
          ? Effect.void
          : handleOne(session, event, index === events.length - 1 ? page.position : event.position),
      { discard: true }
    )
    const together = Effect.flatMap(handleBatch(session, events, page.position), (parked) =>
      reportHandled(session, events, parked)
    )
    yield* events.length === 1 || session.isCareful
      ? oneByOne
      : Effect.catchAll(together, (error) => (error instanceof HandlerFailed ? oneByOne : Effect.fail(error)))
    session.isCareful = false
  })

/**
 * Moves the checkpoint to a position up to which no event is for this subscription: at most once in `idleCheckpoint`,
 * and not if the next page comes before.
 */
const moveIdleCheckpoint = <R>(session: Session<R>, position: Position, next: Fiber.Fiber<unknown, unknown>) =>
  Effect.gen(function* () {
    if (position === session.checkpoint) return
    const now = yield* liveClock.currentTimeMillis
    const isLast = position === session.turn.until
    const due = isLast ? 0 : Math.min(session.checkpointAt + idleCheckpoint - now, idleCheckpoint)
    const hasMore = due > 0 && (yield* Effect.raceFirst(Effect.as(Fiber.await(next), true), liveSleep(due)))
    if (hasMore === true) return
    yield* callStore(session.lease.advanceTo(position))
    yield* checkpointStored(session, position)
  })
