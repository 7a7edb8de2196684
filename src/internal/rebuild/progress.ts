/**
 * Counts the events that a rebuild projects, measures its rate, and reports its progress. `fillAndSwap.ts` uses it, and
 * `holdWriters.ts` asks for the rate.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { type RebuildContext, run } from "./rebuildOptions.js"

export interface RebuildProgress {
  /** How many events this run has projected. */
  readonly events: () => number
  /** Takes note of projected events, and of the time that they took, in milliseconds. */
  readonly projected: (events: number, millis: number) => void
  /** The same of events that were projected while writers waited. The rate is higher then. */
  readonly projectedHeld: (events: number, millis: number) => void
  /** How many events can be projected in the time, in milliseconds, by the rate of this run. */
  readonly eventsIn: (millis: number) => number
  /** The same while writers wait. */
  readonly eventsInHold: (millis: number) => number
  /** Takes note that a projection needed more time than `eventsInHold` had allowed for. */
  readonly wasSlower: () => void
  /** Takes note that users of the tables waited for so long, in milliseconds. */
  readonly held: (millis: number) => void
  /** The longest of these times, in milliseconds. */
  readonly longestHold: () => number
  /** Calls `onProgress`. */
  readonly report: Effect.Effect<void>
}

/** Stores how many events there are to project. */
export const makeProgress = <E, R>({ options, store }: RebuildContext<E, R>, left: number) =>
  Effect.gen(function* () {
    const begun = yield* Clock.currentTimeMillis
    const [row] = yield* run(
      store,
      store.sql<{
        done: string
      }>`insert into ${store.schema}.rebuilds as r (name, events_total) values (${options.name}, ${left})
        on conflict (name) do update set events_total = r.events_done + ${left} returning events_done::text as done`
    )
    const doneBefore = Number(row?.done ?? 0)
    let total = doneBefore + left
    let events = 0
    let longestHold = 0
    const rate = makeRate()
    const heldRate = makeRate()

    const progress: RebuildProgress = {
      events: () => events,
      projected: (count, millis) => {
        events += count
        rate.measured(count, millis)
      },
      projectedHeld: (count, millis) => {
        events += count
        heldRate.measured(count, millis)
      },
      eventsIn: rate.eventsIn,
      eventsInHold: (millis) =>
        heldRate.isKnown() ? heldRate.eventsIn(millis) : rate.eventsIn(millis * heldRate.scale()),
      wasSlower: heldRate.wasSlower,
      held: (millis) => {
        longestHold = Math.max(longestHold, millis)
      },
      longestHold: () => longestHold,
      report: Effect.gen(function* () {
        const seconds = ((yield* Clock.currentTimeMillis) - begun) / 1000
        const eventsPerSecond = seconds > 0 ? events / seconds : 0
        const done = doneBefore + events
        total = Math.max(total, done)
        if (options.onProgress !== undefined) {
          yield* options.onProgress({
            done,
            total,
            eventsPerSecond: Math.round(eventsPerSecond),
            secondsLeft: eventsPerSecond > 0 ? Math.ceil((total - done) / eventsPerSecond) : 0,
            longestHoldMillis: longestHold
          })
        }
      })
    }
    return progress
  })

// --- internal ---

/** As long as fewer events are measured, the rate allows at least this many, because small batches tell little. */
const firstEvents = 500

/** The newest batches decide: what was measured before a batch counts for nine tenths after it. */
const decay = 0.9

const makeRate = () => {
  let events = 0
  let millis = 0
  let measured = 0
  let scale = 1
  return {
    measured: (count: number, time: number): void => {
      if (count === 0) return
      events = events * decay + count
      millis = millis * decay + time
      measured += count
      scale = Math.min(1, scale * 1.1)
    },
    eventsIn: (time: number): number => {
      const fitting = millis === 0 ? 0 : Math.floor((events / millis) * time * scale)
      return Math.max(measured < firstEvents ? Math.floor(firstEvents * scale) : 1, fitting, 1)
    },
    /** Whether enough was measured. */
    isKnown: (): boolean => measured >= firstEvents / 10,
    scale: (): number => scale,
    wasSlower: (): void => {
      scale /= 2
    }
  }
}
