/**
 * A node of a subscription: the partitions that it runs, in the foreground or in the background. `runner.ts` makes it.
 *
 * In the background a failure is logged, and what failed runs again. A partition that failed is declined for a minute,
 * so that another node gets it. A failure of the handler is no reason for that, because the partition has stopped for
 * all nodes.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import { EventFeed } from "../../EventFeed.js"
import { type Key, SubscriptionStore } from "../../SubscriptionStore.js"
import { HybridClock } from "../../Timestamp.js"
import { liveClock } from "../runtime/clock.js"
import { slicedPartitions } from "../store/partitions.js"
import { HasStopped } from "./batchFailure.js"
import { runConsumer } from "./consumer.js"
import { SubscriptionStopped } from "./errors.js"
import { lineOf } from "./failureText.js"
import type { ConsumerOptions } from "./session.js"
import { runShares } from "./shares.js"
import type { Turn } from "./turn.js"

/** The options of a subscription. Its metrics are the runner's. */
export interface RunnerOptions<E, R> extends Omit<ConsumerOptions<E, R>, "holder" | "observe"> {
  /** A new id by default. */
  readonly holder: string | undefined
  /** How many partitions its nodes want. They run as many as the store has. */
  readonly partitions: number
}

export const makeNode = <E, R>(options: RunnerOptions<E, R>, observe: ConsumerOptions<E, R>["observe"]) => {
  const { name, partitions } = options

  const runNode = <E2, R2>(runOne: (one: Running) => Effect.Effect<void, E2, R2>) =>
    Effect.gen(function* () {
      const node = yield* Effect.flatMap(HybridClock, ({ now }) => now)
      const holder = options.holder ?? node
      const { decline, declines } = makeDeclines()
      return yield* runShares(
        yield* SubscriptionStore,
        { name, partitions, node, holder, duration: options.lease },
        { runOne: (key, turn) => runOne({ holder, key, turn, decline: decline(key.partition) }), declines }
      )
    })

  const runPartition = ({ holder, key, turn }: Running) =>
    Effect.gen(function* () {
      if (options.filter?.slice !== undefined && key.partitions > 1) {
        return yield* slicedPartitions(name, key.partitions)
      }
      const feed = yield* EventFeed
      const store = yield* SubscriptionStore
      return yield* runConsumer({ ...options, holder, observe }, feed, store, key, turn)
    }).pipe(Effect.annotateLogs({ subscription: name, partition: key.partition }))

  /** Logs a failure, also a defect. The end of the layer is an interruption, which is not caught. */
  const runAgain = (running: Running): Effect.Effect<void, never, EventFeed | SubscriptionStore | R> =>
    Effect.suspend(() =>
      running.turn.isOver
        ? Effect.void
        : Effect.zipRight(
            Effect.catchAllCause(runPartition(running), (cause) =>
              Effect.zipRight(logFailure(name, cause), pauseAfter(cause, running))
            ),
            runAgain(running)
          )
    )

  return {
    run: Effect.mapError(runNode(runPartition), (error) =>
      error instanceof HasStopped ? stoppedError(name, error) : error
    ),
    runInBackground: Effect.forever(
      Effect.catchAllCause(runNode(runAgain), (cause) =>
        Effect.zipRight(Effect.annotateLogs(logFailure(name, cause), { subscription: name }), Effect.sleep(faultPause))
      )
    )
  }
}

// --- internal ---

/** A partition that runs on this node. */
interface Running {
  readonly holder: string
  readonly key: Key
  readonly turn: Turn
  /** Declines the partition for `declineTime`. */
  readonly decline: Effect.Effect<void>
}

/** The pause after a fault of the program or the database, before the partition or the node runs again. */
const faultPause = "10 seconds"

/** How long a node declines a partition after a fault, in milliseconds. */
const declineTime = 60_000

/**
 * Pauses after a fault of the program or the database, which may last. A consumer that stopped waits for `resume`
 * instead.
 */
const pauseAfter = (cause: Cause.Cause<unknown>, { decline }: Running): Effect.Effect<void> =>
  Cause.squash(cause) instanceof HasStopped ? Effect.void : Effect.zipRight(decline, Effect.sleep(faultPause))

/** The partitions that a node declines, so that another node gets them, if there is one. */
const makeDeclines = () => {
  const until = new Map<number, number>()
  return {
    decline: (partition: number) =>
      Effect.map(liveClock.currentTimeMillis, (now) => {
        until.set(partition, now + declineTime)
      }),
    declines: Effect.map(liveClock.currentTimeMillis, (now) => {
      for (const [partition, end] of until) if (end <= now) until.delete(partition)
      return [...until.keys()].sort((a, b) => a - b)
    })
  }
}

const logFailure = (name: string, cause: Cause.Cause<unknown>) => {
  const error = Cause.squash(cause)
  return Effect.logError(error instanceof HasStopped ? stoppedError(name, error).message : lineOf(cause))
}

const stoppedError = (name: string, { failure, partition }: HasStopped): SubscriptionStopped =>
  new SubscriptionStopped({
    subscription: name,
    partition,
    aggregateId: failure.aggregateId,
    sequence: failure.sequence,
    type: failure.type,
    error: failure.error,
    attempts: failure.attempts
  })
