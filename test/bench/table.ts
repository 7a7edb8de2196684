/**
 * Prints the figures of `results.json` as Markdown rows: `npm run bench:table` has the rows of the front page,
 * `npm run bench:table -- --all` those of the guide on performance, and `npm run bench:table -- --goals` the goals.
 * `npm run bench:table -- --capacity` prints the tables of `capacity.json`. With `--write` the page gets its tables, and nothing
 * changes outside of their marks.
 */
import { readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { parseArgs } from "node:util"
import type { Capacity } from "./capacity/result.js"
import { goalText, type Judged, judge } from "./goals.js"
import type { Line } from "./lines.js"
import type { ContestantName } from "./measure.js"
import { figure, putTable, row } from "./pages.js"

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
  ["floor", "floor"],
  ["pg", "bare `pg`"],
  ["pgbench", "`pgbench`"]
]

const isColumn = (name: string): boolean => columns.some(([column]) => column === name)

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

/** Goals of one kind, of lines that differ by their number of clients only. */
interface Goals {
  readonly work: string
  readonly clients: ReadonlyArray<number>
  readonly judged: ReadonlyArray<Judged>
}

/** The goals are judged anew, so that the figures of a run can be compared with goals that have changed since. */
const goalsOf = (lines: ReadonlyArray<Line>): ReadonlyArray<Goals> => {
  const groups = new Map<string, Goals>()
  for (const { clients, id, measured, ratios, work } of lines) {
    for (const judged of judge(id, { measured, ratios })) {
      const key = `${work} ${judged.is} ${judged.unit}`
      const group = groups.get(key) ?? { work, clients: [], judged: [] }
      groups.set(key, { work, clients: [...group.clients, clients], judged: [...group.judged, judged] })
    }
  }
  return [...groups.values()]
}

const verdictOf = (judged: ReadonlyArray<Judged>): string =>
  judged.every(({ met }) => met)
    ? "met"
    : judged.some(({ met }) => met)
      ? judged.map(({ met }) => (met ? "met" : "**missed**")).join(" / ")
      : "**missed**"

const goalRow = ({ clients, judged, work }: Goals): string => {
  const [first] = judged
  const bounds = judged.map(({ bound }) => bound)
  // Goals that are the same for every number of clients are written once.
  const shown = new Set(bounds).size === 1 ? bounds.slice(0, 1) : bounds
  const unit = first?.unit.startsWith("×") === true ? "×" : ""
  const measured = judged.map(({ measured }) => `${figure(measured)}${unit}`)
  const goal = first === undefined ? "" : goalText(first, ...shown)
  return row([work, clients.join(" / "), goal, measured.join(" / "), verdictOf(judged)])
}

const { values } = parseArgs({
  options: {
    all: { type: "boolean", default: false },
    goals: { type: "boolean", default: false },
    /** The tables of `capacity.json`. */
    capacity: { type: "boolean", default: false },
    /** Into the page instead of the console. */
    write: { type: "boolean", default: false }
  }
})
const { lines }: { readonly lines: ReadonlyArray<Line> } = JSON.parse(
  readFileSync(fileURLToPath(new URL("results.json", import.meta.url)), "utf8")
)

const goalTable = (): string =>
  [row(["work", "clients", "goal", "measured", ""]), row(["---", "--:", "---", "---", "---"])]
    .concat(goalsOf(lines).map(goalRow))
    .join("\n")

const figureTable = (): string => {
  const chosen = values.all
    ? lines.filter(({ unit }) => unit !== "bytes")
    : frontPage.flatMap((id) => lines.filter((line) => line.id === id))
  const shown = columns.filter(([name]) => values.all || name !== "pgbench")
  return [row(["work", "clients", ...shown.map(([, title]) => title)]), row(["---", "--:", ...shown.map(() => "--:")])]
    .concat(
      chosen.map((line) =>
        row([`${line.work}, ${line.unit}`, String(line.clients), ...shown.map(([name]) => cellOf(line, name))])
      )
    )
    .join("\n")
}

/** Its modules are loaded here, because they load the library. */
const showCapacity = async (): Promise<void> => {
  const { capacityTables, putCapacityTables } = await import("./capacity/tables.js")
  const capacity: Capacity = JSON.parse(readFileSync(new URL("capacity.json", import.meta.url), "utf8"))
  if (values.write) putCapacityTables(capacity)
  else for (const [name, text] of Object.entries(capacityTables(capacity))) console.log(`${name}\n\n${text}\n`)
}

const [page, mark, table] = values.goals
  ? (["README.md", "goals", goalTable()] as const)
  : ([values.all ? "../../examples/performance/README.md" : "../../README.md", "results", figureTable()] as const)
if (values.capacity) await showCapacity()
else if (values.write) putTable(new URL(page, import.meta.url), mark, table)
else console.log(table)
