/**
 * Draws, for `results.ts`, how many times faster than Emmett each line is. The SVG is readable on light and on dark
 * pages.
 */
import { timesEmmett } from "./goals.js"
import type { Line } from "./lines.js"

export const chart = (lines: ReadonlyArray<Line>): string => {
  const bars = lines.filter(
    ({ ratios, unit }) => ratios.emmett !== undefined && (unit === "per second" || unit === "ms")
  )
  const ratios = bars.map((line) => line.ratios.emmett ?? 1)
  const least = Math.min(0.5, ...ratios)
  const most = 1.15 * Math.max(10, ...ratios, ...bars.map(goalOf))
  const at = (ratio: number): number =>
    left + ((right - left) * Math.log(Math.max(ratio, least) / least)) / Math.log(most / least)
  const height = top + bars.length * step + 36
  const bottom = top + bars.length * step + 2

  const grid = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].filter(
    (ratio) => ratio >= least && ratio <= most
  )
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" aria-labelledby="title">
<title id="title">How many times faster than Emmett effect-maestro is, on a logarithmic axis</title>
<style>
  text { font: 12px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
  .head { font-size: 14px; font-weight: 600 }
  .axis { fill: #59636e; font-size: 11px }
  .grid { stroke: #d1d9e0 }
  .one { stroke: #59636e; stroke-width: 1.5 }
  .bar { fill: #0969da }
  .behind { fill: #bc4c00 }
  .goal { stroke: #1f2328; stroke-width: 2 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc }
    .axis { fill: #9198a1 }
    .grid { stroke: #3d444d }
    .one { stroke: #9198a1 }
    .bar { fill: #4493f8 }
    .behind { fill: #db6d28 }
    .goal { stroke: #f0f6fc }
  }
</style>
<text class="head" x="12" y="22">effect-maestro beside Emmett: times as fast</text>
<text class="axis" x="12" y="40">logarithmic; | is the goal</text>
${grid
  .map(
    (ratio) =>
      `<line class="${ratio === 1 ? "one" : "grid"}" x1="${px(at(ratio))}" x2="${px(at(ratio))}" y1="${top - 6}" y2="${bottom}"/><text class="axis" x="${px(at(ratio))}" y="${bottom + 16}" text-anchor="middle">${ratio}×</text>`
  )
  .join("\n")}
${bars
  .map((line, index) => {
    const ratio = line.ratios.emmett ?? 1
    const goal = goalOf(line)
    const y = top + index * step
    const [from, to] = [Math.min(at(1), at(ratio)), Math.max(at(1), at(ratio))]
    return [
      `<text x="${left - 8}" y="${y + 13}" text-anchor="end">${escaped(labelOf(line))}</text>`,
      `<rect class="${ratio < 1 ? "behind" : "bar"}" x="${px(from)}" y="${y + 2}" width="${px(Math.max(1, to - from))}" height="${step - 6}" rx="2"/>`,
      goal === 0 ? "" : `<line class="goal" x1="${px(at(goal))}" x2="${px(at(goal))}" y1="${y}" y2="${y + step - 2}"/>`,
      `<text x="${px(beside(to, at(goal)))}" y="${y + 13}">${ratio >= 10 ? ratio.toFixed(0) : ratio.toFixed(1)}×</text>`
    ].join("")
  })
  .join("\n")}
</svg>
`
}

// --- internal ---

const width = 900
const left = 400
const right = 830
const top = 60
const step = 20

const px = (value: number): string => value.toFixed(1)

/** The left edge of a figure: the end of the bar, moved where the goal's mark would cover it. */
const beside = (end: number, goal: number): number => (goal >= end - 4 && goal < end + 40 ? goal : end) + 6

/** The ratio to Emmett that is the goal, or 0 without a goal. */
const goalOf = ({ goals }: Line): number => goals.find(({ unit }) => unit === timesEmmett)?.bound ?? 0

const labelOf = ({ clients, work }: Line): string => `${work}, ${clients} ${clients === 1 ? "client" : "clients"}`

const escaped = (text: string): string => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;")
