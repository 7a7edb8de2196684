/**
 * Runs this library's part of a row under the sampling profiler of V8, and prints where the time goes, in Node and in
 * Postgres.
 */
import type { Profiler } from "node:inspector"
import { Session } from "node:inspector/promises"
import type pg from "pg"
import type { Row } from "./rows/row.js"
import { serverCpuReader } from "./serverCpu.js"
import type { Stage } from "./stage.js"

/** The flags of a server that keeps statistics of statements. */
export const profilingFlags: ReadonlyArray<string> = ["-c", "shared_preload_libraries=pg_stat_statements"]

export const profile = async (row: Row, stage: Stage, clients: number): Promise<void> => {
  const [contestant] = (await row.contestants?.(stage)) ?? []
  if (contestant === undefined) return console.log(`${row.name} has no profile`)
  const seconds = stage.effort.seconds * stage.effort.rounds
  const serverCpu = await serverCpuReader(stage.pool)
  const hasStatements = await statementStatistics(stage.pool)
  await contestant.round(clients, seconds / 2)
  if (hasStatements) await stage.pool.query("select pg_stat_statements_reset()")

  const session = new Session()
  session.connect()
  await session.post("Profiler.enable")
  await session.post("Profiler.setSamplingInterval", { interval: 250 })
  await session.post("Profiler.start")
  const cpuBefore = process.cpuUsage()
  const serverBefore = serverCpu?.() ?? 0
  const { latencies } = await contestant.round(clients, seconds)
  const cpu = process.cpuUsage(cpuBefore)
  const server = (serverCpu?.() ?? Number.NaN) - serverBefore
  const { profile: recorded } = await session.post("Profiler.stop")
  session.disconnect()

  const each = latencies.length
  console.log(`${row.name}, ${clients} clients: ${each} operations in ${seconds} s
processor time for each: ${((cpu.user + cpu.system) / each).toFixed(0)} µs of the client, ${((1000 * server) / each).toFixed(0)} µs of the server

| where | µs per operation | share |
|---|--:|--:|`)
  const times = selfTimes(recorded, categoryOf)
  const total = [...times.values()].reduce((sum, micros) => sum + micros, 0)
  for (const [where, micros] of [...times].sort(([, a], [, b]) => b - a)) {
    console.log(`| ${where} | ${(micros / each).toFixed(1)} | ${((100 * micros) / total).toFixed(1)} % |`)
  }
  console.log("\n| function | µs per operation |\n|---|--:|")
  for (const [name, micros] of [...selfTimes(recorded, nameOf)].sort(([, a], [, b]) => b - a).slice(0, 15)) {
    console.log(`| ${name} | ${(micros / each).toFixed(1)} |`)
  }
  if (hasStatements) await printStatements(stage.pool, each)
  console.log("")
}

// --- internal ---

type CallFrame = Profiler.ProfileNode["callFrame"]

/** Microseconds by module. */
const selfTimes = (
  { nodes, samples = [], timeDeltas = [] }: Profiler.Profile,
  of: (frame: CallFrame) => string
): ReadonlyMap<string, number> => {
  const categories = new Map(nodes.map(({ callFrame, id }) => [id, of(callFrame)]))
  const times = new Map<string, number>()
  for (const [index, id] of samples.entries()) {
    const category = categories.get(id) ?? "other"
    times.set(category, (times.get(category) ?? 0) + (timeDeltas[index] ?? 0))
  }
  return times
}

const categoryOf = ({ functionName, url }: CallFrame): string =>
  ofV8.get(functionName) ?? places.find(([pattern]) => pattern.test(url))?.[1] ?? "native functions"

const nameOf = ({ functionName, lineNumber, url }: CallFrame): string => {
  const file = url.split(/[\\/]/).slice(-2).join("/")
  // Compiled TypeScript is one long line.
  const line = lineNumber === 0 ? "" : `:${lineNumber + 1}`
  return `${functionName === "" ? "anonymous" : functionName}${file === "" ? "" : `, ${file}${line}`}`
}

const ofV8: ReadonlyMap<string, string> = new Map([
  ["(idle)", "idle"],
  ["(garbage collector)", "garbage collector"],
  ["(program)", "system calls, compiling"]
])

const places: ReadonlyArray<readonly [RegExp, string]> = [
  [/\/node_modules\/pg(-[a-z]+)*\/|\/node_modules\/postgres-/, "pg driver"],
  [/\/node_modules\/effect\//, "Effect"],
  [/\/node_modules\/@effect\//, "@effect/sql"],
  [/\/test\/bench\//, "the benchmark itself"],
  [/\/dist\//, "effect-maestro"],
  [/^node:(net|internal\/(stream|streams|net|js_stream))/, "Node's sockets"],
  [/^node:/, "Node, other"],
  [/\/node_modules\//, "other packages"]
]

const statementStatistics = (pool: pg.Pool): Promise<boolean> =>
  pool.query("create extension if not exists pg_stat_statements").then(
    () => true,
    () => false
  )

const printStatements = async (pool: pg.Pool, operations: number): Promise<void> => {
  const { rows } = await pool.query<{ query: string; calls: number; micros: number }>(`
    select left(regexp_replace(query, '\\s+', ' ', 'g'), 90) as query, calls::int as calls, 1000 * total_exec_time as micros
    from pg_stat_statements where query not like '%pg_stat_statements%' order by total_exec_time desc limit 6`)
  console.log("\n| statement | calls per operation | µs for each call |\n|---|--:|--:|")
  for (const { calls, micros, query } of rows) {
    console.log(
      `| \`${query.replaceAll("|", "\\|")}\` | ${(calls / operations).toFixed(2)} | ${(micros / calls).toFixed(0)} |`
    )
  }
}
