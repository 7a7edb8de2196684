/** The goals of each line of the result, and whether the measured figures reach them. */
import type { ContestantName, Measured } from "./measure.js"

export interface Judged {
  /** `below` includes the bound itself. */
  readonly is: "at least" | "below"
  readonly bound: number
  /** What the bound counts, such as `× Emmett`. */
  readonly unit: string
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

/** The goal as text, for one line or for the bounds of several. */
export const goalText = ({ is, unit }: Pick<Judged, "is" | "unit">, ...bounds: ReadonlyArray<number>): string =>
  bounds.every((bound) => bound === 0) ? `none${unit}` : `${is === "below" ? "≤" : "≥"} ${bounds.join(" / ")}${unit}`

/** The unit of the goals that are a ratio to Emmett. */
export const timesEmmett = "× Emmett"

// --- internal ---

type Goal = (figures: Figures) => Judged | undefined

const goal =
  (is: Judged["is"], bound: number, unit: string, of: (figures: Figures) => number | undefined): Goal =>
  (figures) => {
    const measured = of(figures)
    if (measured === undefined) return undefined
    return { is, bound, unit, measured, met: is === "below" ? measured <= bound : measured >= bound }
  }

/** At least so many times better than the contestant, or than another line. */
const atLeast = (factor: number, than: string): Goal =>
  goal("at least", factor, `× ${shown[than] ?? than}`, ({ ratios }) => ratios[than])

/** At most so many times as long as the contestant. */
const takesAtMost = (factor: number, than: string): Goal =>
  goal("below", factor, `× ${shown[than] ?? than}'s time`, ({ ratios }) => {
    const ratio = ratios[than]
    return ratio === undefined ? undefined : 1 / ratio
  })

const perSecond = (rate: number): Goal => goal("at least", rate, " a second", ({ measured }) => measured.ours?.median)

/** A median of so many milliseconds at most. */
const medianWithin = (millis: number): Goal => goal("below", millis, " ms", ({ measured }) => measured.ours?.median)

const p99Within = (millis: number): Goal => goal("below", millis, " ms p99", ({ measured }) => measured.ours?.p99)

const p99BelowEmmett: Goal = goal("below", 1, "× Emmett's p99", ({ measured: { emmett, ours } }) =>
  ours?.p99 === undefined || emmett?.p99 === undefined ? undefined : ours.p99 / emmett.p99
)

const noneFailing: Goal = goal("below", 0, " failing", ({ measured }) => measured.ours?.failures)

const shown: Readonly<Record<string, string>> = { emmett: "Emmett", floor: "the floor", pg: "bare pg" }

const goals: Readonly<Record<string, ReadonlyArray<Goal>>> = {
  "append/1": [atLeast(3, "emmett"), atLeast(0.8, "floor"), p99BelowEmmett],
  "append/16": [atLeast(6, "emmett")],
  "append/64": [atLeast(10, "emmett")],
  "append/256": [atLeast(14, "emmett")],
  "new/1": [atLeast(3, "emmett")],
  "new/16": [atLeast(6, "emmett")],
  "new/64": [atLeast(10, "emmett")],
  "hot/1": [atLeast(7, "emmett")],
  "hot/16": [atLeast(10, "emmett")],
  "hot/64": [atLeast(12, "emmett")],
  "hot-one/16": [atLeast(40, "emmett"), noneFailing],
  "hot-one/64": [atLeast(70, "emmett"), noneFailing],
  "projection-sql/1": [atLeast(2.5, "emmett")],
  "projection-sql/16": [atLeast(4, "emmett")],
  "projection-sql-hot/1": [atLeast(4, "emmett")],
  "projection-sql-hot/16": [atLeast(5, "emmett")],
  "projection/1": [atLeast(1.5, "emmett")],
  "projection/16": [atLeast(1.5, "emmett")],
  "projection-hot/1": [atLeast(2.5, "emmett")],
  "projection-hot/16": [atLeast(2, "emmett")],
  "load/1": [takesAtMost(1.2, "pg"), takesAtMost(1, "emmett")],
  "load-evolved/1": [atLeast(0.7, "without steps")],
  // There the bare driver commits nothing, which is what one round trip and the flush allow.
  "network/append": [atLeast(0.9, "pg")],
  "network/hot": [atLeast(0.9, "pg")],
  "memory/16": [atLeast(3, "emmett")],
  "memory-hot/16": [atLeast(4, "emmett")],
  "feed/count": [atLeast(0.5, "pg")],
  "feed/live-here": [medianWithin(5), p99Within(20)],
  "feed/live-elsewhere": [medianWithin(5), p99Within(20)],
  "feed/idle/1": [atLeast(0.97, "without them")],
  "feed/idle/16": [atLeast(0.97, "without them")],
  "cluster/spread": [atLeast(0.6, "one process"), noneFailing],
  "cluster/hot": [atLeast(5, "without it"), noneFailing],
  "cluster/kill": [medianWithin(8000), noneFailing],
  "growth/append/10^6": [atLeast(0.9, "10^4")],
  "rebuild/sql": [perSecond(10_000)],
  "rebuild/effect": [perSecond(2000)]
}
