/**
 * Prints the figures of `results.json` as Markdown rows: `npm run bench:table` has the rows of the front page, and
 * `npm run bench:table -- --all` those of the guide on performance.
 */
import { readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { parseArgs } from "node:util"
import type { Line } from "./lines.js"
import type { ContestantName } from "./measure.js"

/** The rows of the front page: two on which this library is slower than another, and the main kinds of work. */
const frontPage = [
  "append/1",
  "append/64",
  "new/16",
  "hot/16",
  "hot-one/64",
  "projection/16",
  "projection-sql/1",
  "load/1",
  "growth/append/10^6",
  "feed/live-elsewhere"
]

const columns: ReadonlyArray<readonly [name: ContestantName, title: string]> = [
  ["ours", "effect-maestro"],
  ["emmett", "Emmett"],
  ["pg", "bare `pg`"],
  ["pgbench", "`pgbench`"]
]

const isColumn = (name: string): boolean => columns.some(([column]) => column === name)

const figure = (value: number): string => (value >= 100 ? value.toFixed(0) : value.toFixed(value >= 10 ? 1 : 2))

/** The median, with this library's ratio to the contestant in brackets. */
const cellOf = ({ measured, ratios }: Line, name: ContestantName): string => {
  const of = measured[name]
  if (of === undefined) return ""
  const ratio = ratios[name]
  const details = [
    ...(ratio === undefined ? [] : [`${figure(ratio)}×`]),
    // A ratio to another line, such as that of a shorter log, has no column.
    ...(name === "ours"
      ? Object.entries(ratios).flatMap(([to, of]) =>
          isColumn(to) ? [] : `${figure(of)}× that ${/^\d/.test(to) ? "at " : ""}${to}`
        )
      : []),
    ...(of.failures === undefined || of.failures === 0 ? [] : [`**${of.failures} failed**`])
  ]
  return `${figure(of.median)}${details.length === 0 ? "" : ` (${details.join(", ")})`}`
}

const row = (cells: ReadonlyArray<string>): string => `| ${cells.join(" | ")} |`

const { values } = parseArgs({ options: { all: { type: "boolean", default: false } } })
const { lines }: { readonly lines: ReadonlyArray<Line> } = JSON.parse(
  readFileSync(fileURLToPath(new URL("results.json", import.meta.url)), "utf8")
)
const chosen = values.all
  ? lines.filter(({ unit }) => unit !== "bytes")
  : frontPage.flatMap((id) => lines.filter((line) => line.id === id))
const shown = columns.filter(([name]) => values.all || name !== "pgbench")

console.log(row(["work", "clients", ...shown.map(([, title]) => title)]))
console.log(row(["---", "--:", ...shown.map(() => "--:")]))
for (const line of chosen) {
  console.log(row([`${line.work}, ${line.unit}`, String(line.clients), ...shown.map(([name]) => cellOf(line, name))]))
}
