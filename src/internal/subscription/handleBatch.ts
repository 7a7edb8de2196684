/**
 * Handles a batch of events and stores the checkpoint after it. The consumer calls it for a page, `handleOne.ts` for
 * one event.
 *
 * An exactly-once handler runs in the transaction of the checkpoint: both are stored or neither. An at-least-once
 * handler runs first.
 */
import type { NonEmptyReadonlyArray } from "effect/Array"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type { FeedEvent, Position } from "../../EventFeed.js"
import type { StoreError } from "../../StoreError.js"
import type { EventFailure, LeaseLost } from "../../SubscriptionStore.js"
import { liveClock } from "../runtime/clock.js"
import { awaitAtMost, awaitGrace } from "../runtime/interruption.js"
import { batchFailureOf, callStore, type DatabaseFailed, HandlerFailed } from "./batchFailure.js"
import { failureOf } from "./failureText.js"
import { firstPause } from "./retryWhileUnavailable.js"
import type { Session } from "./session.js"

/**
 * Handles the events and moves the checkpoint after them. Returns the failures of events that were parked, because an
 * earlier event of their aggregate is parked.
 */
export const handleBatch = <R>(
  session: Session<R>,
  events: NonEmptyReadonlyArray<FeedEvent>,
  position: Position
): Effect.Effect<ReadonlyArray<EventFailure>, HandlerFailed | LeaseLost | DatabaseFailed, R> =>
  Effect.suspend(() => {
    const { lease, options } = session
    session.handlerRan = false
    let parkedWithAggregate: ReadonlyArray<EventFailure> = []
    const handled = Effect.flatMap(parkedAggregatesOf(session, events), (aggregates) => {
      parkedWithAggregate = events.filter(({ aggregateId }) => aggregates.has(aggregateId)).map(failureOfFollower)
      return runHandler(
        session,
        events.filter(({ aggregateId }) => !aggregates.has(aggregateId))
      )
    })
    const park = Effect.suspend(() => Effect.forEach(parkedWithAggregate, lease.park, { discard: true }))
    const work = options.transactional
      ? lease.advance(position, Effect.zipRight(handled, park))
      : Effect.zipRight(
          handled,
          Effect.suspend(() =>
            parkedWithAggregate.length === 0 ? lease.advanceTo(position) : lease.advance(position, park)
          )
        )
    return Effect.map(moveCheckpoint(session, position, work), () => parkedWithAggregate)
  })

/** Runs the work that ends with the checkpoint. It fails by what ended the work. */
export const moveCheckpoint = <R>(
  session: Session<R>,
  position: Position,
  work: Effect.Effect<void, HandlerFailed | LeaseLost | StoreError, R>
): Effect.Effect<void, HandlerFailed | LeaseLost | DatabaseFailed, R> =>
  Effect.flatMap(awaitEnd(session, work), (exit) => {
    if (Exit.isFailure(exit)) return Effect.fail(batchFailureOf(exit.cause, session.handlerRan))
    session.pause = firstPause
    return checkpointStored(session, position)
  })

/** Notes in the session that the store has the checkpoint. */
export const checkpointStored = <R>(session: Session<R>, position: Position): Effect.Effect<void> =>
  Effect.map(liveClock.currentTimeMillis, (now) => {
    session.checkpoint = position
    session.checkpointAt = now
  })

/** Reports a batch that was handled, and clears the failure that the store holds. */
export const reportHandled = <R>(
  session: Session<R>,
  events: NonEmptyReadonlyArray<FeedEvent>,
  parkedWithAggregate: ReadonlyArray<EventFailure>
): Effect.Effect<void, LeaseLost | StoreError | DatabaseFailed> =>
  Effect.gen(function* () {
    const { lease, options, partition } = session
    const mayHaveFailure = session.mayHaveFailure
    session.mayHaveFailure = false
    if (mayHaveFailure) yield* callStore(lease.recordFailure(undefined))
    yield* options.observe({ _tag: "Handled", partition, events: events.length - parkedWithAggregate.length })
    for (const failure of parkedWithAggregate) yield* options.observe({ _tag: "Parked", partition, failure })
  })

// --- internal ---

const none: ReadonlySet<string> = new Set()

/** The aggregates of the events that have an event parked, where the later ones are parked with it. */
const parkedAggregatesOf = <R>({ lease, options }: Session<R>, events: ReadonlyArray<FeedEvent>) =>
  options.onFailure === "parkAggregate"
    ? lease.parkedAggregates([...new Set(events.map(({ aggregateId }) => aggregateId))])
    : Effect.succeed(none)

const failureOfFollower = (event: FeedEvent): EventFailure =>
  failureOf(event, Cause.fail("an earlier event of the aggregate is parked"), 0)

/**
 * Runs the handler. A handler that dies or interrupts itself has failed; an interruption from outside is not caught.
 */
const runHandler = <R>(
  session: Session<R>,
  [first, ...rest]: ReadonlyArray<FeedEvent>
): Effect.Effect<void, HandlerFailed, R> =>
  first === undefined
    ? Effect.void
    : Effect.catchAllCause(
        Effect.suspend(() => {
          session.handlerRan = true
          return Effect.asVoid(session.options.handle([first, ...rest]))
        }),
        (cause) => new HandlerFailed({ cause })
      )

/**
 * Runs the work in a fiber of its own and returns its exit. An interruption waits for that fiber: for the grace period
 * of the subscription while the lease is held, and for no longer than `awaitGrace` after it has interrupted the fiber.
 *
 * A fiber that still runs then is abandoned, because its database does not respond. The store refuses what it writes
 * once another process has the lease.
 */
const awaitEnd = <A, E, R>(
  session: { readonly options: { readonly grace: number }; readonly isLost: boolean },
  work: Effect.Effect<A, E, R>
): Effect.Effect<Exit.Exit<A, E>, never, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(Effect.forkDaemon(Effect.interruptible(work)), (fiber) =>
      Effect.onInterrupt(restore(Fiber.await(fiber)), () =>
        Effect.suspend(() =>
          session.isLost ? Effect.void : awaitAtMost(session.options.grace, Fiber.await(fiber))
        ).pipe(
          Effect.zipRight(Effect.fiberIdWith((id) => Fiber.interruptAsFork(fiber, id))),
          Effect.zipRight(awaitGrace(Fiber.await(fiber)))
        )
      )
    )
  )
