/**
 * Measures this library beside Emmett, a bare `pg` and pgbench, on one Postgres server, in one run: `npm run bench`.
 * `README.md` describes the rows and how to read them.
 *
 * A run of all rows writes `results.json` and `results.svg`. A run of some rows only prints the table.
 */
import { parseArgs } from "node:util"
import { startPostgres } from "../postgres.globalSetup.js"
import type { Line } from "./lines.js"
import { describeMachine, machineInWords } from "./machine.js"
import { findPgbench } from "./pgbench.js"
import { profile, profilingFlags } from "./profile.js"
import { tableHead, tableRow, write } from "./results.js"
import { allRows } from "./rows/all.js"
import { openStage } from "./stage.js"
import { tail } from "./tail.js"
import { warmUp } from "./warmUp.js"

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    seconds: { type: "string", default: "0.8" },
    rounds: { type: "string", default: "5" },
    /** The number of clients with which the rows are profiled instead of measured. */
    profile: { type: "string" },
    /** Shows what slow operations coincide with. */
    tail: { type: "boolean", default: false }
  }
})

const effort = { seconds: Number(values.seconds), rounds: Number(values.rounds) }
const unknown = positionals.filter((name) => !allRows.some((row) => row.name === name))
if (unknown.length > 0 || !(effort.seconds > 0) || !(effort.rounds >= 1)) {
  console.error(
    `rows: ${allRows.map(({ name }) => name).join(" ")}\noptions: --seconds S --rounds N --profile CLIENTS --tail`
  )
  process.exit(2)
}
const rows = positionals.length === 0 ? allRows : allRows.filter(({ name }) => positionals.includes(name))

const started = performance.now()
const pgbench = await findPgbench()
const server = await startPostgres(values.profile === undefined ? [] : profilingFlags)
try {
  const stage = await openStage(server.url, effort, pgbench)
  try {
    const machine = await describeMachine(stage.pool, pgbench)
    console.log(`${machineInWords(machine)}\n${effort.rounds} rounds of ${effort.seconds} s each\n`)
    if (values.tail) {
      for (const row of rows) await tail(row, stage)
    } else if (values.profile !== undefined) {
      for (const row of rows) await profile(row, stage, Number(values.profile))
    } else {
      await warmUp(stage)
      const lines: Array<Line> = []
      console.log(tableHead(machine))
      const times: Array<string> = []
      for (const row of rows) {
        const began = performance.now()
        await row.run(stage, (line) => {
          lines.push(line)
          console.log(tableRow(line))
        })
        times.push(`${row.name} ${((performance.now() - began) / 1000).toFixed(0)} s`)
      }
      const goals = lines.flatMap((line) => line.goals)
      console.log(`\n${times.join(", ")}`)
      console.log(`${goals.filter(({ met }) => met).length} of ${goals.length} goals met`)
      if (rows.length === allRows.length) write(lines, machine, effort)
      else console.log("Some rows only: results.json and results.svg stay as they are.")
    }
    console.log(`${((performance.now() - started) / 1000).toFixed(0)} s`)
  } finally {
    await stage.close()
  }
} finally {
  await server.stop()
}
