/**
 * Prints each line of the result when it is measured, and writes all lines as JSON and as a chart after the last one.
 */
import { writeFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { chart } from "./chart.js"
import { goalText } from "./goals.js"
import type { Line } from "./lines.js"
import type { Machine } from "./machine.js"
import type { ContestantName, Effort } from "./measure.js"

export const tableHead = ({ pgbench }: Machine): string =>
  `| work | clients | effect-maestro | Emmett | floor | bare \`pg\` | pgbench${pgbench === undefined ? " (not found)" : ""} | goal: measured |
|---|--:|---|---|---|---|---|---|`

export const tableRow = (line: Line): string => {
  const unit = line.unit === "per second" || line.unit === "round trips" ? "" : `, ${line.unit}`
  const cells = columns.map((name) => {
    const measured = line.measured[name]
    if (measured === undefined) return ""
    const ratio = line.ratios[name]
    const details = [
      ratio === undefined ? [] : `${figure(ratio)}×`,
      name === "ours"
        ? Object.entries(line.ratios).flatMap(([to, of]) => (isColumn(to) ? [] : `${figure(of)}× ${to}`))
        : [],
      measured.p99 === undefined ? [] : `p99 ${figure(measured.p99)} ms`,
      measured.failures === undefined || measured.failures === 0 ? [] : `**${measured.failures} failed**`
    ].flat()
    return `${figure(measured.median)}${details.length === 0 ? "" : ` (${details.join(", ")})`}`
  })
  const goals = line.goals.map(
    (goal) => `${goalText(goal, goal.bound)}: ${figure(goal.measured)} ${goal.met ? "✓" : "✗"}`
  )
  return `| ${[`${line.work}${unit}`, line.clients, ...cells, goals.join("; ")].join(" | ")} |`
}

/** Writes `results.json` and `results.svg` beside this file. */
export const write = (lines: ReadonlyArray<Line>, machine: Machine, effort: Effort): void => {
  const result = { date: new Date().toISOString(), machine, effort, lines: lines.map(shortened) }
  writeFileSync(beside("results.json"), `${onOneLine(JSON.stringify(result, undefined, 2))}\n`)
  writeFileSync(beside("results.svg"), chart(lines))
}

// --- internal ---

const columns: ReadonlyArray<ContestantName> = ["ours", "emmett", "floor", "pg", "pgbench"]

const isColumn = (name: string): boolean => columns.some((column) => column === name)

const beside = (file: string): string => fileURLToPath(new URL(file, import.meta.url))

const figure = (value: number): string =>
  Number.isInteger(value) || Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(Math.abs(value) >= 10 ? 1 : 2)

/** Writes lists of numbers as the formatter of this repository does. */
const onOneLine = (json: string): string =>
  json.replaceAll(/\[\s+([-\d.e+,\s]+?)\s+\]/g, (_, numbers: string) => `[${numbers.split(/,\s*/).join(", ")}]`)

/** Rounds figures to their significant digits. */
const shortened = (line: Line): unknown =>
  JSON.parse(JSON.stringify(line, (_, value) => (typeof value === "number" ? Number(value.toPrecision(5)) : value)))
