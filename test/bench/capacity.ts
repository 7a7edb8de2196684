/**
 * Measures what a log takes on disk, in WAL and in time as it grows: `npm run bench:capacity`. It makes a model of the bytes of an event,
 * compares it with each log, and fails where it is off by more than ten per cent. `README.md` describes the figures.
 *
 * With `--write` it writes `capacity.json`, and the tables of the guide on scaling. `--resume` goes on after the last step of a run that was
 * interrupted.
 */
import { readFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { parseArgs } from "node:util"
import pg from "pg"
import { startPostgres } from "../postgres.globalSetup.js"
import { isWhole } from "./capacity/events.js"
import { measureAll, type Options } from "./capacity/measureAll.js"
import { beyond, type Compared } from "./capacity/model.js"
import { type Capacity, compareAll, modelOf } from "./capacity/result.js"
import { openSteps } from "./capacity/steps.js"
import { capacityTables, writeCapacity } from "./capacity/tables.js"
import { describeMachine, machineInWords } from "./machine.js"

const { values } = parseArgs({
  options: {
    events: { type: "string", default: "10000,100000,1000000,10000000" },
    partitions: { type: "string", default: "16" },
    /** The size of the log that gets partitions beside a copy of it without them. */
    divided: { type: "string" },
    seconds: { type: "string", default: "0.3" },
    rounds: { type: "string", default: "5" },
    /** Into `capacity.json` and the guide instead of the console alone. */
    write: { type: "boolean", default: false },
    resume: { type: "boolean", default: false }
  }
})

const events = values.events
  .split(",")
  .map(Number)
  .sort((a, b) => a - b)
const options: Options = {
  events,
  partitions: Number(values.partitions),
  divided: Number(values.divided ?? Math.max(...events.filter((size) => size <= 1_000_000))),
  effort: { seconds: Number(values.seconds), rounds: Number(values.rounds) }
}
if (
  !events.every(isWhole) ||
  !events.includes(options.divided) ||
  !(options.partitions > 1) ||
  !(options.effort.seconds > 0) ||
  !(options.effort.rounds >= 1)
) {
  console.error(
    `options: --events N,N (multiples of 10000, or of a million) --partitions N --divided N (one of the events) --seconds S --rounds N --write --resume`
  )
  process.exit(2)
}

const versionOf = (file: string): string => {
  const { version }: { readonly version: string } = JSON.parse(readFileSync(new URL(file, import.meta.url), "utf8"))
  return version
}

const shown = ({ measured, off, reckoned, what }: Compared): string =>
  `${what}: ${measured.toFixed(0)} measured, ${reckoned.toFixed(0)} by the model, ${(100 * off).toFixed(1)} %`

const steps = openSteps(join(tmpdir(), "effect-maestro-capacity.json"), options, values.resume)
// Without autovacuum, so that no figure has its work in it. A vacuum is measured by itself.
const server = await startPostgres(["-c", "autovacuum=off"])
const pool = new pg.Pool({ connectionString: server.url, max: 1 })
try {
  const machine = await describeMachine(pool, undefined)
  console.error(machineInWords(machine))
  const measurements = await measureAll({ url: server.url, pool }, options, steps)
  const model = modelOf(measurements.bodies)
  const compared = compareAll(model, measurements)
  const capacity: Capacity = {
    date: new Date().toISOString(),
    machine,
    versions: {
      "effect-maestro": versionOf("../../package.json"),
      effect: versionOf("../../node_modules/effect/package.json")
    },
    options,
    seconds: steps.seconds(),
    model,
    compared,
    ...measurements
  }
  for (const one of compared) console.error(shown(one))
  for (const [name, table] of Object.entries(capacityTables(capacity))) console.log(`${name}\n\n${table}\n`)
  const wrong = beyond(compared)
  if (wrong.length > 0) {
    console.error(`The model is off by more than ten per cent:\n${wrong.map(shown).join("\n")}`)
    process.exitCode = 1
  } else {
    if (values.write) writeCapacity(capacity)
    steps.end()
  }
  console.error(`${capacity.seconds.toFixed(0)} s`)
} finally {
  await pool.end()
  await server.stop()
}
