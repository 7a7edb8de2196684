/**
 * Counts the events that a rebuild projects, measures its rate, and reports its progress. `fillAndSwap.ts` uses it, and
 * `holdWriters.ts` asks for the rate.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { type RebuildContext, run } from "./rebuildOptions.js"
import { leaseLostOf } from "./rebuildRecord.js"

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

/** Stores how many events there are to project. Fails with `LeaseLost` where the rebuild was abandoned. */
export const makeProgress = <E, R>({ options, store }: RebuildContext<E, R>, left: number) =>
  Effect.gen(function* () {
    const begun = yield* Clock.currentTimeMillis
    const [row] = yield* run(
      store,
      store.sql<{
        done: string
      }>`update ${store.schema}.rebuilds set events_total = events_done + ${left} where name = ${options.name}
        returning events_done::text as done`
    )
    if (row === undefined) return yield* leaseLostOf(options.name)
    const doneBefore = Number(row.done)
    let total = doneBefore + left
    let events = 0
    let longestHold = 0
    const rate = makeRate()

    const progress: RebuildProgress = {
      events: () => events,
      projected: (count, millis) => {
        events += count
        rate.measured(count, millis)
      },
      projectedHeld: (count, millis) => {
        events += count
        rate.measuredHeld(count, millis)
      },
      eventsIn: rate.eventsIn,
      eventsInHold: rate.eventsInHold,
      wasSlower: rate.wasSlower,
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

// The newest batches decide: what was measured before a batch counts for this part after it.
const decay = 0.9
const heldDecay = 0.5

interface Measured {
  readonly events: number
  readonly millis: number
}

const makeRate = () => {
  let all: Measured = { events: 0, millis: 0 }
  let held: Measured = all
  let count = 0
  let scale = 1
  return {
    measured: (events: number, millis: number): void => {
      all = added(all, decay, { events, millis })
      count += events
    },
    measuredHeld: (events: number, millis: number): void => {
      held = added(held, heldDecay, { events, millis })
      count += events
      scale = Math.min(1, scale * 1.5)
    },
    eventsIn: (millis: number): number => Math.max(count < firstEvents ? firstEvents : 1, fitting(all, millis)),
    eventsInHold: (millis: number): number => {
      const known = held.events === 0 ? all : held
      const least = count < firstEvents ? firstEvents : 1
      return Math.max(1, Math.floor(Math.max(least, fitting(known, millis)) * scale))
    },
    wasSlower: (): void => {
      scale /= 2
    }
  }
}

const added = (before: Measured, decay: number, { events, millis }: Measured): Measured =>
  events === 0 ? before : { events: before.events * decay + events, millis: before.millis * decay + millis }

const fitting = ({ events, millis }: Measured, time: number): number =>
  millis === 0 ? 0 : Math.floor((events / millis) * time)
