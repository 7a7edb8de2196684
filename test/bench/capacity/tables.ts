/** The tables of `capacity.json`, for the guide on scaling. */
import { writeFileSync } from "node:fs"
import { figure, putTable, table } from "../pages.js"
import type { Bytes } from "./log.js"
import { formula, reckon } from "./model.js"
import type { Capacity, LogFigures } from "./result.js"
import { usualBody } from "./result.js"
import { speedNames } from "./speed.js"
import { eventsOfWal, walNames } from "./wal.js"

/** The tables by their names in the guide. */
export const capacityTables = (capacity: Capacity): Readonly<Record<string, string>> => ({
  run: runTable(capacity),
  model: modelTable(capacity),
  bytes: bytesTable(capacity),
  bodies: bodiesTable(capacity),
  wal: walTable(capacity),
  speeds: speedsTable(capacity),
  reading: readingTable(capacity),
  changes: changesTable(capacity),
  partitions: partitionsTable(capacity),
  sizing: sizingTable(capacity)
})

/** Writes `capacity.json`, and the tables into the guide. They have its rounded figures, so that they can be made of it again. */
export const writeCapacity = (capacity: Capacity): void => {
  const text = JSON.stringify(capacity, shortened, 2)
  writeFileSync(new URL("../capacity.json", import.meta.url), `${text}\n`)
  putCapacityTables(JSON.parse(text))
}

/** Puts the tables into the guide. */
export const putCapacityTables = (capacity: Capacity): void => {
  for (const [name, text] of Object.entries(capacityTables(capacity))) putTable(guide, `capacity ${name}`, text)
}

// --- internal ---

const guide = new URL("../../../examples/scaling/README.md", import.meta.url)

/** Five significant digits. */
const shortened = (_: string, value: unknown): unknown =>
  typeof value === "number" ? Number(value.toPrecision(5)) : value

const sized = (events: number): string =>
  Number.isInteger(Math.log10(events)) ? `10^${Math.log10(events)}` : String(events)

const inUnits = (bytes: number): string =>
  bytes >= 1e9 ? `${figure(bytes / 1e9)} GB` : bytes >= 1e6 ? `${figure(bytes / 1e6)} MB` : `${figure(bytes / 1e3)} kB`

const inTime = (seconds: number): string =>
  seconds >= 120
    ? `${figure(seconds / 60)} min`
    : seconds >= 1
      ? `${figure(seconds)} s`
      : `${figure(1000 * seconds)} ms`

const whole = (value: number): string => value.toFixed(0)

const indexNames = ({ indexes }: Bytes): ReadonlyArray<string> => Object.keys(indexes).sort()

const runTable = ({ date, machine, seconds, versions }: Capacity): string =>
  table(
    ["the run", ""],
    [
      ["date", date.slice(0, 10)],
      ["machine", `${machine.cores} cores (${machine.cpu}), ${machine.memoryGB} GB, ${machine.platform}`],
      [
        "versions",
        `effect-maestro ${versions["effect-maestro"]}, Effect ${versions.effect}, Node ${machine.node}, Postgres ${machine.postgres}`
      ],
      [
        "settings",
        Object.entries(machine.settings)
          .map(([name, value]) => `\`${name}=${value}\``)
          .join(", ")
      ],
      ["time in all", inTime(seconds)]
    ],
    2
  )

const modelTable = ({ compared, model: { disk, indexes, table: ofTable, wal } }: Capacity): string => {
  const worst = (kind: string): string => {
    const offs = compared.filter(({ what }) => what.startsWith(`${kind},`)).map(({ off }) => Math.abs(off))
    return offs.length === 0 ? "" : `${figure(100 * Math.max(...offs))} %`
  }
  return table(
    ["bytes of an event", "formula", "greatest difference from what was measured"],
    [
      ["disk, in all", formula(disk), worst("disk")],
      ["disk, table", formula(ofTable), worst("table")],
      ["disk, indexes", formula(indexes), worst("indexes")],
      [`WAL, ${walNames.one}`, formula(wal.one), worst("WAL one")],
      [`WAL, ${walNames.many}`, formula(wal.many), worst("WAL many")],
      [`WAL, ${walNames.ten}`, formula(wal.ten), worst("WAL ten")]
    ],
    2
  )
}

const bytesTable = ({ logs }: Capacity): string => {
  const [first] = logs
  const names = first === undefined ? [] : indexNames(first.bytes)
  return table(
    ["events", "table", ...names.map((name) => `\`${name}\``), "in all", "the log"],
    logs.map(({ bytes, events }) => [
      sized(events),
      whole(bytes.table),
      ...names.map((name) => whole(bytes.indexes[name] ?? 0)),
      whole(bytes.total),
      inUnits(bytes.total * events)
    ])
  )
}

const bodiesTable = ({ bodies, model: { disk }, references }: Capacity): string =>
  table(
    ["bytes of the body", "table", "indexes", "in all", "by the model", "in all, of events by the library"],
    bodies.map(({ body, bytes }) => [
      String(body),
      whole(bytes.table),
      whole(bytes.total - bytes.table),
      whole(bytes.total),
      whole(reckon(disk, body)),
      references
        .filter((reference) => reference.body === body)
        .map(({ library }) => whole(library.total))
        .join("")
    ])
  )

/** A row for each kind of figure, and a column for each log. */
const byLog = (
  logs: ReadonlyArray<LogFigures>,
  head: string,
  rows: ReadonlyArray<readonly [name: string, cell: (figures: LogFigures) => string]>
): string =>
  table(
    [head, ...logs.map(({ events }) => sized(events))],
    rows.map(([name, cell]) => [name, ...logs.map(cell)])
  )

const walTable = ({ logs }: Capacity): string =>
  byLog(
    logs,
    "bytes of WAL for an event: steady / after a checkpoint",
    namesOf(walNames).map(([name, what]) => [
      what,
      ({ wal }) => `${whole(wal[name].steady)} / ${whole(wal[name].afterCheckpoint)}`
    ])
  )

const speedsTable = ({ logs }: Capacity): string =>
  byLog(
    logs,
    "work",
    namesOf(speedNames).map(([name, what]) => [what, ({ speeds }) => figure(speeds[name] ?? Number.NaN)])
  )

const readingTable = ({ logs }: Capacity): string =>
  byLog(logs, "a subscription reads the log", [
    ["events a second", ({ reading }) => whole(reading.events / reading.seconds)],
    ["time", ({ reading }) => inTime(reading.seconds)],
    ["memory of the process before", ({ reading }) => inUnits(reading.before)],
    ["memory of the process, at most", ({ reading }) => inUnits(reading.rss)],
    ["heap, at most", ({ reading }) => inUnits(reading.heap)]
  ])

const changesTable = ({ logs }: Capacity): string =>
  byLog(logs, "work", [
    ["`vacuum (analyze)` after filling", ({ vacuum }) => inTime(vacuum.seconds)],
    ["its WAL", ({ vacuum }) => inUnits(vacuum.wal)],
    ["a column with a constant default", ({ migrations }) => inTime(migrations.columnUnchecked)],
    ["the same with a check, as `version` has it", ({ migrations }) => inTime(migrations.column)],
    ["an index, `event_log_types`", ({ migrations }) => inTime(migrations.index)],
    ["`SqlStore.partitionLog`", ({ partitioning }) => inTime(partitioning.seconds)],
    ["its WAL", ({ partitioning }) => inUnits(partitioning.wal)],
    ["`SqlStore.repairAfterRestore`", ({ repair }) => inTime(repair.repair.seconds)],
    ["its WAL", ({ repair }) => inUnits(repair.repair.wal)],
    [
      "the log after it, as a multiple of the log before",
      ({ repair }) => `${figure(repair.repair.after.total / repair.repair.before.total)}×`
    ],
    ["`vacuum (analyze)` after it", ({ repair }) => inTime(repair.vacuum.seconds)]
  ])

const partitionsTable = ({ partitioned: { divided, events, partitions, plain } }: Capacity): string =>
  table(
    [`a log of ${sized(events)} events`, "one table", `${partitions} partitions`],
    [
      ["bytes of an event: table", whole(plain.bytes.table), whole(divided.bytes.table)],
      ["bytes of an event: indexes", ...[plain, divided].map(({ bytes }) => whole(bytes.total - bytes.table))],
      ...namesOf(speedNames).map(([name, what]) => [
        what,
        ...[plain, divided].map(({ speeds }) => figure(speeds[name] ?? Number.NaN))
      ])
    ]
  )

/**
 * What follows from the model. Bytes of WAL have two bounds. With the lower one all events go to new aggregates, and each checkpoint
 * lets the few pages in use be written once. With the upper one each event goes to an old aggregate, whose page is written each time.
 */
const sizingTable = ({ logs, model: { disk, wal } }: Capacity): string => {
  const largest = logs.at(-1)
  if (largest === undefined) return ""
  const long = 10 * usualBody
  const pages = (largest.wal.one.afterCheckpoint - largest.wal.one.steady) * eventsOfWal * checkpointsADay
  return table(
    [
      "events a day",
      "a second, mean / peak",
      `disk a year, bodies of ${usualBody} bytes`,
      `disk a year, bodies of ${long} bytes`,
      "WAL a day, new aggregates",
      "WAL a day, old aggregates",
      "the same, compressed"
    ],
    [1e4, 1e5, 1e6, 1e7].map((events) => [
      sized(events),
      `${figure(events / 86_400)} / ${figure((peak * events) / 86_400)}`,
      inUnits(365 * events * reckon(disk, usualBody)),
      inUnits(365 * events * reckon(disk, long)),
      inUnits(events * reckon(wal.one, usualBody) + pages),
      inUnits(events * largest.wal.old.afterCheckpoint + pages),
      inUnits(events * largest.wal.oldCompressed.afterCheckpoint + pages)
    ])
  )
}

/** The rate at the busiest time of a day, as a multiple of the mean. */
const peak = 10

/** One every five minutes, which is the default of Postgres. */
const checkpointsADay = 288

/** The names of figures with their texts. */
const namesOf = <Name extends string>(
  names: Readonly<Record<Name, string>>
): ReadonlyArray<readonly [Name, string]> => {
  const entries: ReadonlyArray<readonly [string, string]> = Object.entries(names)
  return entries.filter((entry): entry is readonly [Name, string] => entry[0] in names)
}
