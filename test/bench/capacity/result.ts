/** What a run of `capacity.ts` has measured, as it is stored in `capacity.json`, and the model that follows from it. */
import type { Machine } from "../machine.js"
import type { Change, Migrations } from "./changes.js"
import type { Bytes } from "./log.js"
import { type Compared, compare, type Line, lineThrough } from "./model.js"
import type { Reading } from "./reading.js"
import type { Speeds } from "./speed.js"
import type { Wal, walNames } from "./wal.js"

export type Wals = Readonly<Record<keyof typeof walNames, Wal>>

/** One of several logs of one size, whose bodies differ in theirs. Bytes are of a single event. */
export interface BodyFigures {
  readonly body: number
  readonly bytes: Bytes
  readonly wal: Pick<Wals, ModelledWal>
}

/** A log whose events the library has made, beside one of the same events that SQL has made. Bytes are those of an event. */
export interface Reference {
  readonly body: number
  readonly events: number
  readonly library: Bytes
  readonly sql: Bytes
}

export interface LogFigures {
  readonly events: number
  /** Seconds in which SQL filled the log. */
  readonly filled: number
  /** Bytes of an event, after the vacuum. */
  readonly bytes: Bytes
  readonly vacuum: Change
  readonly speeds: Speeds
  readonly wal: Wals
  readonly migrations: Migrations
  readonly reading: Reading
  readonly repair: { readonly repair: Change; readonly vacuum: Change }
  readonly partitioning: Change
}

/** A log with partitions beside a copy of it without them. */
export interface Partitioned {
  readonly events: number
  readonly partitions: number
  readonly plain: { readonly bytes: Bytes; readonly speeds: Speeds }
  readonly divided: { readonly bytes: Bytes; readonly speeds: Speeds }
}

export interface Measurements {
  readonly references: ReadonlyArray<Reference>
  readonly bodies: ReadonlyArray<BodyFigures>
  readonly logs: ReadonlyArray<LogFigures>
  readonly partitioned: Partitioned
}

/** Bytes of an event as functions of the bytes of its body. */
export interface Model {
  readonly disk: Line
  readonly table: Line
  readonly indexes: Line
  readonly wal: Readonly<Record<ModelledWal, Line>>
}

export interface Capacity extends Measurements {
  readonly date: string
  readonly machine: Machine
  /** The version of this library, and of Effect. */
  readonly versions: Readonly<Record<string, string>>
  readonly options: unknown
  /** How long the run took. */
  readonly seconds: number
  readonly model: Model
  /** Each figure that the model reckons, beside what was measured. */
  readonly compared: ReadonlyArray<Compared>
}

/** The size of the bodies in all other logs. */
export const usualBody = 100

/** The model goes through the logs with the shortest and the longest bodies. */
export const modelOf = (bodies: ReadonlyArray<BodyFigures>): Model => {
  const sorted = [...bodies].sort((a, b) => a.body - b.body)
  const [first, last] = [sorted[0], sorted.at(-1)]
  if (first === undefined || last === undefined || first === last) throw new Error("a line needs bodies of two sizes")
  const line = (bytes: (figures: BodyFigures) => number): Line =>
    lineThrough({ body: first.body, bytes: bytes(first) }, { body: last.body, bytes: bytes(last) })
  const steady = (name: ModelledWal) => line(({ wal }) => wal[name].steady)
  return {
    disk: line(({ bytes }) => bytes.total),
    table: line(({ bytes }) => bytes.table),
    indexes: line(({ bytes }) => bytes.total - bytes.table),
    wal: { one: steady("one"), many: steady("many"), ten: steady("ten") }
  }
}

/** Compares the model with all logs that it was not made of. */
export const compareAll = ({ disk, indexes, table, wal }: Model, { bodies, logs }: Measurements) => {
  const sizes = bodies.map(({ body }) => body)
  const between = bodies.filter(({ body }) => body !== Math.min(...sizes) && body !== Math.max(...sizes))
  const others = [
    ...between.map((figures) => ({ ...figures, log: `bodies of ${figures.body} bytes` })),
    ...logs.map((figures) => ({ ...figures, body: usualBody, log: `${figures.events} events` }))
  ]
  return others.flatMap(({ body, bytes, log, wal: written }) => [
    compare(`disk, ${log}`, disk, { body, bytes: bytes.total }),
    compare(`table, ${log}`, table, { body, bytes: bytes.table }),
    compare(`indexes, ${log}`, indexes, { body, bytes: bytes.total - bytes.table }),
    ...modelled.map((name) => compare(`WAL ${name}, ${log}`, wal[name], { body, bytes: written[name].steady }))
  ])
}

export type ModelledWal = (typeof modelled)[number]

// --- internal ---

/** Commits to new aggregates change few pages, so their steady WAL does not depend on the size of the log. */
const modelled = ["one", "many", "ten"] as const
