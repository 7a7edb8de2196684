/**
 * A subscription as its callers run it: all partitions, in the foreground or as a layer, and what can be asked of it.
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
import { HasStopped, type Work, work } from "./consumer.js"
import { lineOf } from "./failureText.js"
import { measured, measureLag } from "./metrics.js"
import { statusOf } from "./status.js"

/** What a subscription does, but for what is known only when it runs. */
export interface Plan<E, R> extends Omit<Work<E, R>, "holder" | "observe"> {
  /** A new id by default. */
  readonly holder: string | undefined
}

/** What `Subscription.make` makes; a plan that can be none is a mistake in the program, and throws. `stoppedAt` says what it fails with when it stops at an event. */
export const runnable = <E, R, Stopped extends Error>(plan: Plan<E, R>, stoppedAt: (error: HasStopped) => Stopped) => {
  checkPlan(plan)
  const { filter, handle, name, partitions } = plan

  const job = Effect.map(
    plan.holder === undefined ? Effect.flatMap(HybridClock, ({ now }) => now) : Effect.succeed(plan.holder),
    (holder): Work<E, R> => ({ ...plan, holder, observe: measured(name) })
  )

  const runPartition = (partition: number) =>
    Effect.gen(function* () {
      const feed = yield* EventFeed
      const store = yield* SubscriptionStore
      return yield* work(yield* job, feed, store, partition)
    }).pipe(Effect.annotateLogs({ subscription: name, partition }))

  const all = Array.from({ length: partitions }, (_, partition) => partition)

  const handleParked = (place: StreamPosition) =>
    Effect.flatMap(SubscriptionStore, (store) =>
      store.retryParked(name, place, (event) => Effect.asVoid(handle([event])))
    )

  const retryParked = (place: StreamPosition) =>
    Effect.zipRight(validateStreamPosition("Subscription.retryParked", place), handleParked(place))

  const status = statusOf(name, filter, partitions)

  const lag = measureLag(name, status)

  const inAll = <A, E2, R2>(runOne: (partition: number) => Effect.Effect<A, E2, R2>) =>
    Effect.scoped(
      Effect.zipRight(
        Effect.forkScoped(lag),
        Effect.zipRight(Effect.forEach(all, runOne, { concurrency: "unbounded", discard: true }), Effect.never)
      )
    )

  return {
    name,
    filter,
    partitions,
    run: Effect.mapError(inAll(runPartition), (error) => (error instanceof HasStopped ? stoppedAt(error) : error)),
    layer: Layer.scopedDiscard(
      Effect.forkScoped(
        inAll((partition) =>
          Effect.forever(
            // A defect too is to be told, and to be tried again. The end of the layer, which interrupts, is not caught.
            Effect.catchAllCause(runPartition(partition), (cause) => {
              const error = Cause.squash(cause)
              const isStopped = error instanceof HasStopped
              return Effect.zipRight(
                Effect.logError(isStopped ? stoppedAt(error).message : lineOf(cause)),
                // Stopped, it waits for `resume`. Anything else is a mistake in the program or the database: not too often.
                isStopped ? Effect.void : Effect.sleep("10 seconds")
              )
            })
          )
        )
      )
    ),
    retryParked,
    retryAllParked: Effect.flatMap(
      Effect.flatMap(SubscriptionStore, (store) => store.parked(name)),
      (events) =>
        Effect.reduce(events, 0, (count, event) => Effect.map(handleParked(event), (done) => count + (done ? 1 : 0)))
    ),
    status
  }
}

// --- internal ---

const checkPlan = ({ batchSize, filter, from, lease, name, partitions }: Omit<Plan<never, never>, "handle">): void => {
  const whole = (value: number, field: string, max: number) => {
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
  whole(batchSize, "batchSize", 10_000)
  whole(partitions, "partitions", 1000)
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
