/**
 * What subscriptions tell of themselves as metrics.
 */
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import type { Happening } from "./consumer.js"

/** Counts what happens. */
export const measured =
  (name: string) =>
  (happening: Happening): Effect.Effect<void> =>
    happening._tag === "Handled"
      ? Metric.incrementBy(of(handled, name, happening.partition), happening.events)
      : Metric.increment(of(happening._tag === "Failed" ? failed : setAside, name, happening.partition))

/** Measures from time to time how far a subscription is behind, for ever. */
export const measureLag = <E, R>(
  name: string,
  status: Effect.Effect<
    {
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
  Effect.sleep(pause).pipe(
    Effect.zipRight(
      Effect.flatMap(status, ({ partitions }) =>
        Effect.forEach(
          partitions,
          ({ eventsBehind, partition, secondsBehind: seconds }) =>
            Effect.zipRight(
              Metric.set(of(events, name, partition), eventsBehind),
              Metric.set(of(secondsBehind, name, partition), seconds)
            ),
          { discard: true }
        )
      )
    ),
    Effect.ignore,
    Effect.forever,
    Effect.withTracerEnabled(false)
  )

// --- internal ---

/** Between two measurements of the lag. */
const pause = "15 seconds"

const handled = Metric.counter("effect_maestro_subscription_events_handled", {
  description: "Events that a subscription has handled",
  incremental: true
})
const failed = Metric.counter("effect_maestro_subscription_failures", {
  description: "Attempts to handle an event that failed",
  incremental: true
})
const setAside = Metric.counter("effect_maestro_subscription_events_set_aside", {
  description: "Events that a subscription has set aside",
  incremental: true
})
const events = Metric.gauge("effect_maestro_subscription_events_behind", {
  description: "Events that a subscription has not handled yet"
})
const secondsBehind = Metric.gauge("effect_maestro_subscription_seconds_behind", {
  description: "Age of the first event that a subscription has not handled yet, in seconds"
})

const of = <Type, In, Out>(metric: Metric.Metric<Type, In, Out>, name: string, partition: number) =>
  Metric.tagged(Metric.tagged(metric, "subscription", name), "partition", String(partition))
