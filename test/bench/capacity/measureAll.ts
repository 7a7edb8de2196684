/** The steps of a run: which logs are made, and in which order they are measured. */
import type { Effort } from "../measure.js"
import { makeDatabase, openOurs } from "../stage.js"
import { measureMigrations, measurePartitionLog, measureRepair, measureVacuum } from "./changes.js"
import { fillByCommands, fillBySql, type Shape } from "./events.js"
import {
  bytesOf,
  copyLog,
  dropDatabase,
  type Log,
  layerOn,
  type MadeLog,
  makeLog,
  measured,
  openLog,
  perEvent,
  type Server,
  withLog
} from "./log.js"
import { measureReading } from "./reading.js"
import {
  type BodyFigures,
  type LogFigures,
  type Measurements,
  type Partitioned,
  type Reference,
  usualBody
} from "./result.js"
import { measureSpeeds, removeAppended, type Speeds } from "./speed.js"
import type { Steps } from "./steps.js"
import { measureNewWal, measureOldWal } from "./wal.js"

export interface Options {
  readonly events: ReadonlyArray<number>
  readonly partitions: number
  /** The size of the log that is compared with one with partitions. */
  readonly divided: number
  readonly effort: Effort
}

export const measureAll = async (server: Server, options: Options, steps: Steps): Promise<Measurements> => {
  const references: Array<Reference> = []
  for (const body of [usualBody, 10 * usualBody])
    references.push(await steps.step(`reference ${body}`, () => measureReference(server, body)))
  const bodies: Array<BodyFigures> = []
  for (const body of [usualBody, 4 * usualBody, 10 * usualBody])
    bodies.push(await steps.step(`bodies ${body}`, () => measureBody(server, body)))
  const filled = await fillLogs(server, options, steps)
  const speeds = await steps.step("speeds", () => measureAllSpeeds(server, [...filled.made.values()], options))
  const logs: Array<LogFigures> = []
  for (const { events, figures } of filled.logs) {
    const name = nameOf(events)
    const wal = await steps.step(`wal ${events}`, () => measureWal(madeOf(filled.made, name)))
    const reading = await steps.step(`reading ${events}`, () => measureReading(madeOf(filled.made, name).url, events))
    const changed = await steps.step(`changes ${events}`, () => measureChanges(madeOf(filled.made, name), options))
    const ofLog = speeds[name]
    if (ofLog === undefined) throw new Error(`no speeds of ${events} events`)
    logs.push({ events, ...figures, speeds: ofLog, wal, reading, ...changed })
    await dropDatabase(server, name)
  }
  return { references, bodies, logs, partitioned: partitionedOf(options, logs, filled.divided, speeds) }
}

// --- internal ---

/** The greatest difference of the bytes of an event between events of the library and those of SQL. */
const fillTolerance = 0.03

const nameOf = (events: number): string => `log_${events}`
const dividedName = "log_divided"

/** Fails unless SQL makes the events that the library makes, and a log of them takes as many bytes. */
const measureReference = async (server: Server, body: number): Promise<Reference> => {
  const events = 10_000
  await dropDatabase(server, "reference")
  const { pool, url } = await makeDatabase(server, "reference")
  const [byLibrary, bySql] = ["by_library", "by_sql"]
  for (const schema of [byLibrary, bySql]) {
    const ours = await openOurs(layerOn(url, { schema }))
    if (schema === byLibrary) await ours.run(fillByCommands({ body, events }))
    await ours.close()
  }
  await fillBySql(pool, bySql, { body, events })
  await pool.query("vacuum (analyze)")
  const { rows } = await pool.query<{ other: number }>(
    `select count(*)::int as other from ${byLibrary}.event_log a full join ${bySql}.event_log b using (aggregate_id, sequence)
      where (a.type, a.body::text, a.metadata::text, a.version, octet_length(a.correlation_id), a.causation_id, a.traceparent)
        is distinct from (b.type, b.body::text, b.metadata::text, b.version, octet_length(b.correlation_id), b.causation_id, b.traceparent)`
  )
  if (rows[0]?.other !== 0) throw new Error(`SQL makes ${rows[0]?.other} events that the library would not make`)
  const library = perEvent(await bytesOf(pool, byLibrary), events)
  const sql = perEvent(await bytesOf(pool, bySql), events)
  await pool.end()
  await dropDatabase(server, "reference")
  if (!(Math.abs(sql.total / library.total - 1) <= fillTolerance))
    throw new Error(`an event of SQL has ${sql.total} bytes, and one of the library ${library.total}`)
  return { body, events, library, sql }
}

/** A log of a hundred thousand events with bodies of this size. */
const measureBody = async (server: Server, body: number): Promise<BodyFigures> => {
  const shape: Shape = { body, events: 100_000 }
  const made = await makeLog(server, "bodies", shape)
  await measureVacuum(made.url)
  return withLog(made, async (log) => {
    const bytes = perEvent(await bytesOf(log.pool), shape.events)
    return { body, bytes, wal: await measureNewWal(log) }
  })
}

/** Fills all logs before the first is measured, because they are measured in turns. */
const fillLogs = async (server: Server, options: Options, steps: Steps) => {
  const made = new Map<string, MadeLog>()
  const logs: Array<{ readonly events: number; readonly figures: Pick<LogFigures, "filled" | "bytes" | "vacuum"> }> = []
  for (const events of options.events) {
    const name = nameOf(events)
    const fill = async () => {
      const { seconds } = await measured(server.pool, async () =>
        made.set(name, await makeLog(server, name, { body: usualBody, events }))
      )
      const vacuum = await measureVacuum(madeOf(made, name).url)
      return { filled: seconds, vacuum, bytes: perEvent(vacuum.after, events) }
    }
    const later = ["speeds", `wal ${events}`, `reading ${events}`, `changes ${events}`]
    // A log of an interrupted run is gone with its server.
    const again = steps.has(`fill ${events}`) && !later.every(steps.has)
    logs.push({ events, figures: await steps.step(`fill ${events}`, fill) })
    if (again) await fill()
  }
  const divide = async () => {
    const copy = await copyLog(server, madeOf(made, nameOf(options.divided)), dividedName)
    made.set(dividedName, copy)
    return measurePartitionLog(copy.url, options.partitions)
  }
  const again = steps.has("divide") && !steps.has("speeds")
  const divided = await steps.step("divide", divide)
  if (again) await divide()
  return { made, logs, divided }
}

const measureAllSpeeds = async (
  server: Server,
  made: ReadonlyArray<MadeLog>,
  { effort }: Options
): Promise<Readonly<Record<string, Speeds>>> => {
  const logs: Array<Log> = []
  for (const one of made) logs.push(await openLog(one))
  // What filling has left in memory is written before, and not during the turns.
  await server.pool.query("checkpoint")
  try {
    return await measureSpeeds(logs, effort)
  } finally {
    for (const log of logs) await log.close()
    await dropDatabase(server, dividedName)
  }
}

const measureWal = (made: MadeLog): Promise<LogFigures["wal"]> =>
  withLog(made, async (log) => {
    const wal = { ...(await measureNewWal(log)), ...(await measureOldWal(log)) }
    await removeAppended(log)
    return wal
  })

/** What changes a log is measured last. The partitions are made of the log as the repair and its vacuum have left it. */
const measureChanges = async (
  { url }: MadeLog,
  { partitions }: Options
): Promise<Pick<LogFigures, "migrations" | "repair" | "partitioning">> => {
  const migrations = await measureMigrations(url)
  const repair = await measureRepair(url)
  const partitioning = await measurePartitionLog(url, partitions)
  return { migrations, repair, partitioning }
}

const partitionedOf = (
  { divided: events, partitions }: Options,
  logs: ReadonlyArray<LogFigures>,
  { after }: { readonly after: LogFigures["partitioning"]["after"] },
  speeds: Readonly<Record<string, Speeds>>
): Partitioned => {
  const plain = logs.find((log) => log.events === events)
  const ofDivided = speeds[dividedName]
  if (plain === undefined || ofDivided === undefined) throw new Error("the log with partitions was not measured")
  return {
    events,
    partitions,
    plain: { bytes: plain.bytes, speeds: plain.speeds },
    divided: { bytes: perEvent(after, events), speeds: ofDivided }
  }
}

const madeOf = (made: ReadonlyMap<string, MadeLog>, name: string): MadeLog => {
  const log = made.get(name)
  if (log === undefined) throw new Error(`no log ${name}`)
  return log
}
