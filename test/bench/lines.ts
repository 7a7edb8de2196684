/** A line of the result: the figure of each contestant, their ratios, and whether the goals are reached. */
import { type Judged, judge } from "./goals.js"
import type { ContestantName, Measured } from "./measure.js"

/** One line of the table: a kind of work, with a number of clients. */
export interface Line {
  readonly id: string
  readonly work: string
  readonly clients: number
  readonly unit: Unit
  readonly measured: Partial<Record<ContestantName, Measured>>
  /** How many times better this library is than each other contestant: faster, or with less memory or time. */
  readonly ratios: Readonly<Record<string, number>>
  readonly goals: ReadonlyArray<Judged>
}

export type Unit = "per second" | "ms" | "µs" | "round trips" | "bytes"

/** Makes a line with its ratios and goals. `ratios` adds ratios to figures that are not in the line. */
export const makeLine = (line: Omit<Line, "ratios" | "goals">, ratios: Readonly<Record<string, number>> = {}): Line => {
  const { ours, ...others } = line.measured
  const all = { ...ratios }
  for (const [name, { median }] of Object.entries(others)) {
    if (ours !== undefined) all[name] = line.unit === "per second" ? ours.median / median : median / ours.median
  }
  return { ...line, ratios: all, goals: judge(line.id, { measured: line.measured, ratios: all }) }
}
