/**
 * A subscription as a program runs it: all partitions, in the foreground or as a layer, with its status and its parked events.
 * `Subscription.make` calls it.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { maxNameLength } from "../../Event.js"
import { EventFeed, isPosition, type StreamPosition } from "../../EventFeed.js"
import { SubscriptionStore } from "../../SubscriptionStore.js"
import { HybridClock } from "../../Timestamp.js"
import { nameProblem } from "../codec/names.js"
import { validateStreamPosition } from "../store/storedRecord.js"
import { HasStopped } from "./batchFailure.js"
import { runConsumer } from "./consumer.js"
import { lineOf } from "./failureText.js"
import { measureLag, recordMetrics } from "./metrics.js"
import type { ConsumerOptions } from "./session.js"
import { statusOf } from "./status.js"

/** The options of a subscription. Its metrics are the runner's. */
export interface RunnerOptions<E, R> extends Omit<ConsumerOptions<E, R>, "holder" | "observe"> {
  /** A new id by default. */
  readonly holder: string | undefined
}

/** Makes the parts of a subscription. `stoppedAt` makes the error of a subscription that stopped at an event. Throws on invalid options. */
export const makeRunner = <E, R, Stopped extends Error>(
  options: RunnerOptions<E, R>,
  stoppedAt: (error: HasStopped) => Stopped
) => {
  checkOptions(options)
  const { filter, handle, name, partitions } = options

  const consumerOptions = Effect.map(
    options.holder === undefined ? Effect.flatMap(HybridClock, ({ now }) => now) : Effect.succeed(options.holder),
    (holder): ConsumerOptions<E, R> => ({ ...options, holder, observe: recordMetrics(name) })
  )

  const runPartition = (partition: number) =>
    Effect.gen(function* () {
      const feed = yield* EventFeed
      const store = yield* SubscriptionStore
      return yield* runConsumer(yield* consumerOptions, feed, store, partition)
    }).pipe(Effect.annotateLogs({ subscription: name, partition }))

  /** Logs the failure, also a defect, and runs again. The end of the layer is an interruption, which is not caught. */
  const runInBackground = (partition: number) =>
    Effect.forever(
      Effect.catchAllCause(runPartition(partition), (cause) => {
        const error = Cause.squash(cause)
        const hasStopped = error instanceof HasStopped
        return Effect.zipRight(
          Effect.logError(hasStopped ? stoppedAt(error).message : lineOf(cause)),
          // A consumer that stopped waits for `resume`. Any other failure is a fault of the program or the database, and may last.
          hasStopped ? Effect.void : Effect.sleep("10 seconds")
        )
      })
    )

  const retryOne = (place: StreamPosition) =>
    Effect.flatMap(SubscriptionStore, (store) =>
      store.retryParked(name, place, (event) => Effect.asVoid(handle([event])))
    )

  const retryAllParked = Effect.flatMap(
    Effect.flatMap(SubscriptionStore, (store) => store.parked(name)),
    (events) =>
      Effect.reduce(events, 0, (count, event) => Effect.map(retryOne(event), (done) => count + (done ? 1 : 0)))
  )

  const status = statusOf(name, filter, partitions)

  const indexes = Array.from({ length: partitions }, (_, partition) => partition)

  const runAll = <A, E2, R2>(runOne: (partition: number) => Effect.Effect<A, E2, R2>) =>
    Effect.scoped(
      Effect.zipRight(
        Effect.forkScoped(measureLag(name, status)),
        Effect.zipRight(Effect.forEach(indexes, runOne, { concurrency: "unbounded", discard: true }), Effect.never)
      )
    )

  return {
    name,
    filter,
    partitions,
    run: Effect.mapError(runAll(runPartition), (error) => (error instanceof HasStopped ? stoppedAt(error) : error)),
    layer: Layer.scopedDiscard(Effect.forkScoped(runAll(runInBackground))),
    retryParked: (place: StreamPosition) =>
      Effect.zipRight(validateStreamPosition("Subscription.retryParked", place), retryOne(place)),
    retryAllParked,
    status
  }
}

// --- internal ---

const checkOptions = ({
  batchSize,
  filter,
  from,
  lease,
  name,
  partitions
}: Omit<RunnerOptions<never, never>, "handle">): void => {
  const checkInteger = (value: number, field: string, max: number) => {
    if (!(Number.isInteger(value) && value >= 1 && value <= max)) {
      throw new TypeError(`${field} of subscription ${name} must be a whole number from 1 to ${max}, and is ${value}`)
    }
  }
  const problem = nameProblem(name, maxNameLength)
  if (problem !== undefined) throw new TypeError(`the name of subscription ${JSON.stringify(name)} ${problem}`)
  for (const field of ["types", "kinds"] as const) {
    if (filter?.[field]?.length === 0) {
      throw new TypeError(`subscription ${name} would handle no events: its settings let through no ${field}`)
    }
  }
  checkInteger(batchSize, "batchSize", 10_000)
  checkInteger(partitions, "partitions", 1000)
  if (from !== "beginning" && from !== "now" && !isPosition(from)) {
    throw new TypeError(
      `from of subscription ${name} must be "beginning", "now" or a position of the feed, and is ${JSON.stringify(from)}`
    )
  }
  if (filter?.slice !== undefined && partitions > 1) {
    throw new TypeError(`subscription ${name} can't be cut into partitions and be about a slice: partitions are slices`)
  }
  if (!(lease >= 10 && lease <= 86_400_000)) {
    throw new TypeError(`lease of subscription ${name} must be from 10 milliseconds to a day`)
  }
}
