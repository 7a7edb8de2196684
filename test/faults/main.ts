/**
 * Kills the server, cuts connections, swallows acknowledgements and worse while clients are at work, and holds what they were
 * told against the log: `npm run test:faults`. Every column after `open` but the last must be zero.
 */
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import { logKind, logKindInWords } from "../logKind.js"
import { faults, type Report, underFault } from "./faults.js"
import { makeProxy } from "./proxy.js"
import { makeServer } from "./server.js"

const only = process.argv[2]
const seed = Number(process.env.SEED ?? Date.now())

type Column = readonly [title: string, of: (report: Report) => number]

/** What must not be. */
const zero: ReadonlyArray<Column> = [
  ["lost", ({ lost }) => lost],
  ["doubled", ({ doubled }) => doubled],
  ["torn", ({ torn }) => torn],
  ["ghosts", ({ ghosts }) => ghosts],
  ["disorder", ({ disorder }) => disorder],
  ["out of order", ({ outOfOrder }) => outOfOrder],
  ["felt by another", ({ felt }) => felt],
  ["untrue", ({ untrue }) => untrue],
  ["projections off", ({ projectionsOff }) => projectionsOff],
  ["states off", ({ statesOff }) => statesOff],
  ["leaked", ({ leaked }) => leaked]
]

const columns: ReadonlyArray<Column> = [
  ["rounds", ({ rounds }) => rounds],
  ["kills, cuts, deadlocks", ({ cuts }) => cuts],
  ["commands", ({ attempts }) => attempts],
  ["acknowledged", ({ acknowledged }) => acknowledged],
  ["open", ({ open }) => open],
  ...zero
]

const row = (name: string, cells: ReadonlyArray<string>) => `| ${[name, ...cells].join(" | ")} |`

const program = Effect.gen(function* () {
  const started = performance.now()
  const server = yield* makeServer(["-c", "deadlock_timeout=50ms"])
  const proxy = yield* makeProxy({ host: "127.0.0.1", port: server.port })
  console.log(`seed ${seed}, ${logKindInWords(logKind())}\n`)
  console.log(row("fault", [...columns.map(([title]) => title), "back after, ms (median / longest)"]))
  console.log(row("---", [...columns.map(() => "--:"), "--:"]))
  const reports: Array<Report> = []
  for (const fault of faults) {
    if (only !== undefined && !fault.name.includes(only)) continue
    const report = yield* underFault(server, proxy, fault, fault.rounds)
    reports.push(report)
    const { longest, median } = report.backAfter
    console.log(
      row(report.fault, [
        ...columns.map(([, of]) => String(of(report))),
        `${median.toFixed(0)} / ${longest.toFixed(0)}`
      ])
    )
  }
  const sum = (of: (report: Report) => number) => reports.reduce((total, report) => total + of(report), 0)
  console.log(row("**all**", [...columns.map(([, of]) => String(sum(of))), ""]))
  console.log(`\n${((performance.now() - started) / 1000).toFixed(0)} s`)
  return zero.every(([, of]) => sum(of) === 0)
}).pipe(Effect.scoped, Effect.withRandom(Random.make(seed)))

process.exitCode = (await Effect.runPromise(program)) ? 0 : 1
