/**
 * Runs pgbench, the load generator of Postgres, where it is found: single inserts without JavaScript, as the upper
 * bound of the rows.
 */
import { execFile } from "node:child_process"
import { existsSync, readdirSync } from "node:fs"
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises"
import { availableParallelism, tmpdir } from "node:os"
import { delimiter, join } from "node:path"
import { promisify } from "node:util"
import type { Contestant } from "./measure.js"

export interface Pgbench {
  readonly path: string
  readonly version: string
}

/** The pgbench that `PGBENCH` names, that of the newest server on the machine, or the one on the path. */
export const findPgbench = async (): Promise<Pgbench | undefined> => {
  for (const path of candidates()) {
    if (!existsSync(path)) continue
    try {
      const { stdout } = await run(path, ["--version"])
      return { path, version: /[\d.]+/.exec(stdout)?.[0] ?? stdout.trim() }
    } catch {
      // A program that does not start is passed over.
    }
  }
  return undefined
}

/** Runs the one prepared statement of the script repeatedly, on a number of connections. */
export const pgbenchContestant = ({ path }: Pgbench, url: string, statement: string): Contestant => ({
  name: "pgbench",
  // pgbench has a connection for each client, and the server has a limit of connections.
  maxClients: 64,
  round: async (clients, seconds) => {
    const folder = await mkdtemp(join(tmpdir(), "effect-maestro-pgbench-"))
    try {
      await writeFile(join(folder, "script.sql"), `${statement};\n`)
      const { stdout } = await run(
        path,
        [
          "--no-vacuum",
          "--protocol=prepared",
          `--file=${join(folder, "script.sql")}`,
          `--client=${clients}`,
          `--jobs=${Math.min(clients, availableParallelism())}`,
          `--time=${Math.max(1, Math.round(seconds))}`,
          "--log",
          `--log-prefix=${join(folder, "log")}`,
          url
        ],
        { maxBuffer: 1 << 26 }
      )
      return {
        rate: Number(/tps = ([\d.]+)/.exec(stdout)?.[1] ?? Number.NaN),
        latencies: await latenciesIn(folder),
        failures: Number(/number of failed transactions: (\d+)/.exec(stdout)?.[1] ?? 0)
      }
    } finally {
      await rm(folder, { recursive: true, force: true })
    }
  }
})

// --- internal ---

const run = promisify(execFile)

const candidates = (): ReadonlyArray<string> => {
  const given = process.env.PGBENCH
  // The folder of the newest version is first.
  const servers = ["/usr/lib/postgresql", "/usr/local/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt"].flatMap(
    (folder) =>
      (existsSync(folder) ? readdirSync(folder) : [])
        .filter((name) => /^(postgresql@)?\d+$/.test(name))
        .sort((a, b) => Number(/\d+$/.exec(b)?.[0]) - Number(/\d+$/.exec(a)?.[0]))
        .map((name) => join(folder, name, "bin"))
  )
  const folders = [...servers, "/usr/local/pgsql/bin", ...(process.env.PATH ?? "").split(delimiter)]
  return [...(given === undefined || given === "" ? [] : [given]), ...folders.map((folder) => join(folder, "pgbench"))]
}

/** Each line of its logs is a transaction; the third field is its time in microseconds. */
const latenciesIn = async (folder: string): Promise<ReadonlyArray<number>> => {
  const logs = (await readdir(folder)).filter((name) => name.startsWith("log."))
  const texts = await Promise.all(logs.map((name) => readFile(join(folder, name), "utf8")))
  return texts.flatMap((text) =>
    text.split("\n").flatMap((line) => {
      const micros = Number(line.split(" ")[2])
      return Number.isNaN(micros) ? [] : [micros / 1000]
    })
  )
}
