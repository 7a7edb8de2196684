/** Describes the machine, the server and the versions that the figures were measured on. */
import { readFileSync } from "node:fs"
import * as os from "node:os"
import type pg from "pg"
import type { Pgbench } from "./pgbench.js"
import { poolSize } from "./stage.js"

export interface Machine {
  readonly node: string
  readonly cores: number
  readonly cpu: string
  readonly memoryGB: number
  readonly platform: string
  readonly postgres: string
  readonly settings: Readonly<Record<string, string>>
  readonly emmett: string
  readonly pg: string
  /** Undefined where pgbench was not found. */
  readonly pgbench: string | undefined
  readonly pool: number
}

export const describeMachine = async (pool: pg.Pool, pgbench: Pgbench | undefined): Promise<Machine> => {
  const settings = await pool.query<{ name: string; setting: string }>(
    `select name, current_setting(name) as setting from pg_settings where name = any ($1) order by name`,
    [settingsThatMatter]
  )
  const version = await pool.query<{ version: string }>("select current_setting('server_version') as version")
  return {
    node: process.version,
    cores: os.availableParallelism(),
    cpu: os.cpus()[0]?.model.trim() ?? "unknown",
    memoryGB: Math.round(os.totalmem() / 1024 ** 3),
    platform: `${os.platform()} ${os.arch()}`,
    postgres: version.rows[0]?.version ?? "unknown",
    settings: Object.fromEntries(settings.rows.map(({ name, setting }) => [name, setting])),
    emmett: versionOf("@event-driven-io/emmett-postgresql"),
    pg: versionOf("pg"),
    pgbench: pgbench?.version,
    pool: poolSize
  }
}

export const machineInWords = (machine: Machine): string =>
  [
    `Node ${machine.node}, ${machine.cores} cores (${machine.cpu}), ${machine.memoryGB} GB, ${machine.platform}`,
    `Postgres ${machine.postgres}: ${Object.entries(machine.settings)
      .map(([name, value]) => `${name}=${value}`)
      .join(", ")}`,
    `Emmett ${machine.emmett}, pg ${machine.pg}, pgbench ${machine.pgbench ?? "not found"}; a pool of ${machine.pool} for each`
  ].join("\n")

// --- internal ---

const settingsThatMatter = [
  "autovacuum",
  "checkpoint_timeout",
  "fsync",
  "full_page_writes",
  "max_connections",
  "max_wal_size",
  "shared_buffers",
  "synchronous_commit",
  "wal_compression",
  "wal_level"
]

const versionOf = (name: string): string => {
  const file = new URL(`../../node_modules/${name}/package.json`, import.meta.url)
  const { version }: { readonly version?: unknown } = JSON.parse(readFileSync(file, "utf8"))
  return typeof version === "string" ? version : "unknown"
}
