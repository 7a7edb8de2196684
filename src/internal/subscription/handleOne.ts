/**
 * Handles one event by itself, and retries it by the schedule of the subscription. The consumer calls it when a page
 * failed as a whole, and for each event after a broken connection, lease or process.
 *
 * When the retries are used up, the subscription stops before the event or parks it.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import { type FeedEvent, order, type Position } from "../../EventFeed.js"
import type { StoreError } from "../../StoreError.js"
import type { LeaseLost } from "../../SubscriptionStore.js"
import { callStore, DatabaseFailed, databaseFailedBy, HandlerFailed, HasStopped, storeErrorOf } from "./batchFailure.js"
import { type EventAttempts, makeEventAttempts } from "./eventAttempts.js"
import { failureOf, lineOf } from "./failureText.js"
import { handleBatch, moveCheckpoint, reportHandled } from "./handleBatch.js"
import type { Session } from "./session.js"
import { outsideOfTurn } from "./turn.js"

/**
 * Handles the event and moves the checkpoint to the position. It ends before that where the turn is over between two
 * attempts.
 */
export const handleOne = <R>(
  session: Session<R>,
  event: FeedEvent,
  position: Position
): Effect.Effect<void, HasStopped | LeaseLost | StoreError | DatabaseFailed, R> =>
  Effect.gen(function* () {
    if (session.retrying?.position !== event.position) session.retrying = undefined
    while (!session.turn.isOver) {
      const { retrying } = session
      if (retrying !== undefined) {
        const mayRetry = yield* outsideOfTurn(session.turn, retrying.awaitNext)
        if (session.turn.isOver) return
        if (!mayRetry) return yield* giveUp(session, event, position, retrying)
      }
      if (retrying !== undefined || session.isCareful) {
        const attempts = (retrying?.attempts ?? 0) + 1
        yield* callStore(session.lease.recordAttempt({ position: event.position, attempts }))
      }
      const parked = yield* Effect.catchAll(handleBatch(session, [event], position), (error) =>
        error instanceof HandlerFailed
          ? Effect.as(countAttempt(session, event, error.cause), undefined)
          : error instanceof DatabaseFailed && error.handlerRan
            ? countBrokenAttempt(session, event, error)
            : Effect.fail(error)
      )
      if (parked !== undefined) return yield* reportHandled(session, [event], parked)
    }
  })

// --- internal ---

/** Counts a failed attempt in the store. It fails where the store can't be written. */
const countAttempt = <R>(session: Session<R>, event: FeedEvent, cause: Cause.Cause<unknown>) =>
  Effect.gen(function* () {
    const { lease, options, partition } = session
    const attempts = session.retrying ?? makeEventAttempts(options.retry, { position: event.position, attempts: 0 })
    session.retrying = attempts
    if (attempts.sparesConflict(storeErrorOf(cause))) return
    const failure = failureOf(event, cause, attempts.attempts + 1)
    session.mayHaveFailure = true
    yield* Effect.logWarning(
      `attempt ${failure.attempts} at event ${event.sequence} of aggregate ${JSON.stringify(event.aggregateId)}, of type ${JSON.stringify(event.type)}, failed: ${lineOf(cause)}`
    )
    yield* Effect.tapError(callStore(lease.recordFailure(failure)), () =>
      Effect.sync(() => {
        session.isCareful = true
      })
    )
    attempts.recordFailure(failure, cause)
    yield* options.observe({ _tag: "Failed", partition, failure })
  })

/**
 * Counts an attempt whose connection broke, unless it has stored the checkpoint nevertheless. Fails with the failure of
 * the database.
 */
const countBrokenAttempt = <R>(session: Session<R>, event: FeedEvent, failed: DatabaseFailed) =>
  Effect.gen(function* () {
    const stored = yield* callStore(session.lease.checkpoint)
    if (order(stored, event.position) < 0) yield* countAttempt(session, event, Cause.fail(failed.error))
    return yield* failed
  })

/** Stops the subscription before the event, or parks the event. */
const giveUp = <R>(
  session: Session<R>,
  event: FeedEvent,
  position: Position,
  { attempts, failure: last }: EventAttempts
) =>
  Effect.gen(function* () {
    const { lease, options, partition } = session
    const failure = last ?? failureOf(event, Cause.fail("the attempt ended with its process or its lease"), attempts)
    if (options.onFailure === "stop") {
      yield* callStore(lease.stop(failure))
      return yield* new HasStopped({ partition, failure })
    }
    // No handler runs here, so a failure is that of the database.
    yield* Effect.catchAll(moveCheckpoint(session, position, lease.advance(position, lease.park(failure))), (error) =>
      Effect.fail(error instanceof HandlerFailed ? databaseFailedBy(error.cause) : error)
    )
    yield* options.observe({ _tag: "Parked", partition, failure })
  })
