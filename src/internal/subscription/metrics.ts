/**
 * What subscriptions tell of themselves as metrics.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import type { HeldBack } from "../../EventFeed.js"
import type { Happening } from "./consumer.js"
import { describeHeldBack } from "./status.js"

/** Counts what happens. */
export const measured =
  (name: string) =>
  (happening: Happening): Effect.Effect<void> =>
    happening._tag === "Handled"
      ? Metric.incrementBy(of(handled, name, happening.partition), happening.events)
      : Metric.increment(of(happening._tag === "Failed" ? failed : parked, name, happening.partition))

/**
 * Measures from time to time how far a subscription is behind, for ever, and warns when the feed is held back for long: after half a minute,
 * and whenever that time has doubled.
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
    let warnAfter = firstWarning
    const tellHeldBack = (heldBack: Option.Option<HeldBack>) =>
      Effect.gen(function* () {
        const now = yield* Clock.currentTimeMillis
        const waited = Option.match(heldBack, { onNone: () => 0, onSome: ({ since }) => Math.max(now - since, 0) })
        yield* Metric.set(
          ofAll(heldBackEvents, name),
          Option.getOrElse(
            Option.map(heldBack, ({ events }) => events),
            () => 0
          )
        )
        yield* Metric.set(ofAll(heldBackSeconds, name), waited / 1000)
        if (waited < firstWarning) warnAfter = firstWarning
        if (Option.isNone(heldBack) || waited < warnAfter) return
        warnAfter = waited * 2
        yield* Effect.logWarning(`subscription ${name}: ${describeHeldBack(heldBack.value, now)}`)
      })
    return Effect.sleep(pause).pipe(
      Effect.zipRight(
        Effect.flatMap(status, ({ heldBack, partitions }) =>
          Effect.zipRight(
            Effect.forEach(
              partitions,
              ({ eventsBehind, partition, secondsBehind: seconds }) =>
                Effect.zipRight(
                  Metric.set(of(events, name, partition), eventsBehind),
                  Metric.set(of(secondsBehind, name, partition), seconds)
                ),
              { discard: true }
            ),
            tellHeldBack(heldBack)
          )
        )
      ),
      Effect.ignore,
      Effect.forever,
      Effect.withTracerEnabled(false)
    )
  })

// --- internal ---

/** Between two measurements of the lag. */
const pause = "15 seconds"

/** How long events are held back before it is worth a warning, in milliseconds. */
const firstWarning = 30_000

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
