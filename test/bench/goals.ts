/** The goal of each line of the result, and whether the measured figures reach it. */
import type { ContestantName, Measured } from "./measure.js"

export interface Judged {
  /** The goal as text. */
  readonly goal: string
  /** The measured figure, in the unit of the goal. */
  readonly measured: number
  readonly met: boolean
}

/** The figures of a line that goals are about. */
export interface Figures {
  readonly measured: Partial<Record<ContestantName, Measured>>
  /** How many times better this library is than the contestant that the key names. */
  readonly ratios: Readonly<Record<string, number>>
}

/** The judgements on the line with the id. A goal against a contestant that was not measured is left out. */
export const judge = (id: string, figures: Figures): ReadonlyArray<Judged> =>
  (goals[id] ?? []).flatMap((goal) => goal(figures) ?? [])

// --- internal ---

type Goal = (figures: Figures) => Judged | undefined

/** At least so many times better than the first of the contestants that was measured. */
const atLeast =
  (factor: number, than: string, ...otherwise: ReadonlyArray<string>): Goal =>
  ({ ratios }) => {
    for (const name of [than, ...otherwise]) {
      const measured = ratios[name]
      if (measured !== undefined)
        return { goal: `${factor}× ${shown[name] ?? name}`, measured, met: measured >= factor }
    }
    return undefined
  }

/** At most so many times as long as the contestant. */
const takesAtMost =
  (factor: number, than: string): Goal =>
  ({ ratios }) => {
    const ratio = ratios[than]
    return ratio === undefined
      ? undefined
      : { goal: `≤ ${factor}× ${shown[than] ?? than}'s time`, measured: 1 / ratio, met: 1 / ratio <= factor }
  }

/** A median below a number of milliseconds. */
const within =
  (millis: number): Goal =>
  ({ measured }) => {
    const median = measured.ours?.median
    return median === undefined ? undefined : { goal: `< ${millis} ms`, measured: median, met: median < millis }
  }

const noneFailing: Goal = ({ measured }) => {
  const failures = measured.ours?.failures
  return failures === undefined ? undefined : { goal: "none failing", measured: failures, met: failures === 0 }
}

const shown: Readonly<Record<string, string>> = { emmett: "Emmett", pg: "bare pg", pgbench: "pgbench" }

const goals: Readonly<Record<string, ReadonlyArray<Goal>>> = {
  "append/1": [atLeast(2, "emmett")],
  "append/16": [atLeast(8, "emmett")],
  "append/64": [atLeast(15, "emmett"), atLeast(4, "pgbench", "pg")],
  "append/256": [atLeast(20, "emmett")],
  "hot/1": [atLeast(4, "emmett")],
  "hot/16": [atLeast(12, "emmett")],
  "hot/64": [atLeast(20, "emmett")],
  "hot-one/16": [atLeast(80, "emmett"), noneFailing],
  "hot-one/64": [atLeast(80, "emmett"), noneFailing],
  "projection/1": [atLeast(2, "emmett")],
  "projection/16": [atLeast(4, "emmett")],
  "projection-hot/1": [atLeast(2, "emmett")],
  "projection-hot/16": [atLeast(4, "emmett")],
  "projection-sql/1": [atLeast(2, "emmett")],
  "projection-sql/16": [atLeast(4, "emmett")],
  "projection-sql-hot/1": [atLeast(2, "emmett")],
  "projection-sql-hot/16": [atLeast(4, "emmett")],
  "load/1": [takesAtMost(1.3, "pg"), takesAtMost(1, "emmett")],
  "memory/16": [atLeast(3, "emmett")],
  "memory-hot/16": [atLeast(3, "emmett")],
  "feed/count": [atLeast(0.5, "pg")],
  "feed/live-here": [within(20)],
  "feed/live-elsewhere": [within(20)],
  "feed/idle/1": [atLeast(0.97, "without them")],
  "feed/idle/16": [atLeast(0.97, "without them")],
  "growth/append/10^6": [atLeast(0.9, "10^4")]
}
