/**
 * The metrics of subscriptions. `runner.ts` records what consumers report, and measures the lag.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import type { HeldBack } from "../../EventFeed.js"
import type { ConsumerEvent } from "./session.js"
import { describeHeldBack } from "./status.js"

/** Counts the events that consumers report, and the partitions whose lease this process holds. */
export const makeHoldings = (name: string) => {
  // A partition may be held again before its release was reported.
  const holds = new Map<number, number>()
  const hold = (partition: number, change: 1 | -1) =>
    Effect.suspend(() => {
      const count = (holds.get(partition) ?? 0) + change
      if (count > 0) holds.set(partition, count)
      else holds.delete(partition)
      return Metric.set(ofAll(partitionsHeld, name), holds.size)
    })
  return {
    held: Effect.sync((): ReadonlyArray<number> => [...holds.keys()].sort((a, b) => a - b)),
    observe: (event: ConsumerEvent): Effect.Effect<void> => {
      switch (event._tag) {
        case "Handled":
          return Metric.incrementBy(of(handled, name, event.partition), event.events)
        case "Failed":
          return Metric.increment(of(failed, name, event.partition))
        case "Parked":
          return Metric.increment(of(parked, name, event.partition))
        case "Held":
          return hold(event.partition, 1)
        case "Released":
          return hold(event.partition, -1)
      }
    }
  }
}

/**
 * Measures from time to time how far a subscription is behind, without end. It warns when the feed is held back for
 * half a minute, and again each time that duration has doubled.
 */
export const measureLag = <E, R>(
  name: string,
  status: Effect.Effect<
    {
      readonly heldBack: Option.Option<HeldBack>
      readonly partitions: ReadonlyArray<{
        readonly partition: number
        readonly eventsBehind: number
        readonly secondsBehind: number
      }>
    },
    E,
    R
  >
): Effect.Effect<void, never, R> =>
  Effect.suspend(() => {
    const measureHeldBack = makeHeldBackMeter(name)
    let known = 0
    const measure = Effect.gen(function* () {
      const { heldBack, partitions } = yield* status
      for (const { eventsBehind, partition, secondsBehind: seconds } of partitions) {
        yield* Metric.set(of(events, name, partition), eventsBehind)
        yield* Metric.set(of(secondsBehind, name, partition), seconds)
      }
      // Partitions that no longer exist.
      for (let partition = partitions.length; partition < known; partition++) {
        yield* Metric.set(of(events, name, partition), 0)
        yield* Metric.set(of(secondsBehind, name, partition), 0)
      }
      known = partitions.length
      yield* measureHeldBack(heldBack)
    })
    return Effect.sleep(pause).pipe(
      Effect.zipRight(measure),
      Effect.ignore,
      Effect.forever,
      Effect.withTracerEnabled(false)
    )
  })

// --- internal ---

/** The time between two measurements. */
const pause = "15 seconds"

/** How long events are held back before the first warning, in milliseconds. */
const firstWarning = 30_000

/** Sets the gauges of held back events, and warns. */
const makeHeldBackMeter = (name: string) => {
  let warnAfter = firstWarning
  return (heldBack: Option.Option<HeldBack>) =>
    Effect.gen(function* () {
      const now = yield* Clock.currentTimeMillis
      const waited = Option.match(heldBack, { onNone: () => 0, onSome: ({ since }) => Math.max(now - since, 0) })
      const count = Option.match(heldBack, { onNone: () => 0, onSome: ({ events }) => events })
      yield* Metric.set(ofAll(heldBackEvents, name), count)
      yield* Metric.set(ofAll(heldBackSeconds, name), waited / 1000)
      if (waited < firstWarning) warnAfter = firstWarning
      if (Option.isNone(heldBack) || waited < warnAfter) return
      warnAfter = waited * 2
      yield* Effect.logWarning(`subscription ${name}: ${describeHeldBack(heldBack.value, now)}`)
    })
}

const handled = Metric.counter("effect_maestro_subscription_events_handled", {
  description: "Events that a subscription has handled",
  incremental: true
})
const failed = Metric.counter("effect_maestro_subscription_failures", {
  description: "Attempts to handle an event that failed",
  incremental: true
})
const parked = Metric.counter("effect_maestro_subscription_parked_events", {
  description: "Events that a subscription has parked",
  incremental: true
})
const partitionsHeld = Metric.gauge("effect_maestro_subscription_partitions_held", {
  description: "Partitions of a subscription whose lease this process holds"
})
const events = Metric.gauge("effect_maestro_subscription_events_behind", {
  description: "Events that a subscription has not handled yet"
})
const secondsBehind = Metric.gauge("effect_maestro_subscription_seconds_behind", {
  description: "Age of the first event that a subscription has not handled yet, in seconds"
})

const heldBackEvents = Metric.gauge("effect_maestro_subscription_events_held_back", {
  description: "Committed events for a subscription that the feed does not show before an older transaction has ended"
})
const heldBackSeconds = Metric.gauge("effect_maestro_subscription_seconds_held_back", {
  description: "Age of the first of these events, in seconds"
})

const ofAll = <Type, In, Out>(metric: Metric.Metric<Type, In, Out>, name: string) =>
  Metric.tagged(metric, "subscription", name)

const of = <Type, In, Out>(metric: Metric.Metric<Type, In, Out>, name: string, partition: number) =>
  Metric.tagged(ofAll(metric, name), "partition", String(partition))
