/** Postgres' own load generator, where it is found: inserts one by one, with nothing of JavaScript in between. */
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

/** The one that `PGBENCH` names, or that of the newest server on this machine, or the one on the path. */
export const findPgbench = async (): Promise<Pgbench | undefined> => {
  for (const path of candidates()) {
    if (!existsSync(path)) continue
    try {
      const { stdout } = await run(path, ["--version"])
      return { path, version: /[\d.]+/.exec(stdout)?.[0] ?? stdout.trim() }
    } catch {
      // One that does not start is none.
    }
  }
  return undefined
}

/** So many connections, each running the script's one statement, prepared, over and over. */
export const pgbenchContestant = ({ path }: Pgbench, url: string, statement: string): Contestant => ({
  name: "pgbench",
  // It has a connection for each client, and the server is not to run out of them.
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
  // The folders of versions, the newest first.
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
