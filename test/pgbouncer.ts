/**
 * Runs the suites of the store, of subscriptions and of rebuilds through PgBouncer in transaction mode, on an embedded Postgres 18:
 * `npm run test:pgbouncer`. It needs `pgbouncer` on the PATH, or its file in `PGBOUNCER`; without it, it says so and ends with code 0.
 *
 * `transactionPooler.ts` stands in for PgBouncer in `npm test`. This script shows that the real one behaves in the same way. The suites run
 * with statements that are not prepared, and those of the store and the feed also with prepared ones.
 * `npm run test:pgbouncer -- test/rebuild.test.ts` runs other files, with statements that are not prepared. With `-- partitioned` or
 * `-- counter` the logs of all tests are of that kind.
 */
import { execFileSync, spawn } from "node:child_process"
import { chown, mkdtemp, rm, writeFile } from "node:fs/promises"
import { createConnection } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { setTimeout } from "node:timers/promises"
import { freePort } from "../examples/cluster/freePort.js"
import { disposable } from "./postgres.globalSetup.js"
import { programsOf, type Server, serverUser, startServer } from "./postgresServers.js"
import { runTests } from "./runTests.js"

/** The published suites, the store on a server, subscriptions, rebuilds, tables of projections, and lists of commands. */
const suites = [
  ...["store", "feedContract", "sqlStore", "feed", "heldBack", "rebuild", "rebuildWaiting", "projectionTables"],
  ...["subscription", "subscriptionPostgres", "subscriptionFailures", "subscriptionBalance", "subscriptionBroken"],
  ...["evaluateAll", "evaluateAllOnce", "commandId", "causesPostgres", "concurrentProjections", "clusterAggregate"]
].map((name) => `test/${name}.test.ts`)

const preparedSuites = ["test/store.test.ts", "test/feedContract.test.ts", "test/subscription.test.ts"]

/**
 * Two tests are left out. PgBouncer refuses the startup options of one. It lets the client of the other wait while the database refuses
 * connections.
 */
const allButOthers = ["-t", "^(?!.*(another schema, a search path|a server that can't be reached)).*$"]

const program = process.env.PGBOUNCER ?? "pgbouncer"

/** The version of PgBouncer, if this machine has it. */
const findVersion = (): string | undefined => {
  try {
    return execFileSync(program, ["--version"], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).split(
      "\n"
    )[0]
  } catch {
    return undefined
  }
}

const configurationOf = (server: Server, port: number): string => `[databases]
* = host=127.0.0.1 port=${new URL(server.url).port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 20
max_client_conn = 1000
server_idle_timeout = 5
`

const accepts = (port: number): Promise<boolean> =>
  new Promise((resolve) => {
    const socket = createConnection(port, "127.0.0.1", () => resolve(socket.destroy() !== undefined))
    socket.once("error", () => resolve(false))
  })

/** Starts PgBouncer before the server, and runs the function with its URL. */
const throughPgbouncer = async <A>(server: Server, run: (url: string) => Promise<A>): Promise<A> => {
  const folder = await mkdtemp(join(tmpdir(), "effect-maestro-"))
  const user = serverUser()
  if ("uid" in user) await chown(folder, user.uid, user.gid)
  const port = await freePort()
  const file = join(folder, "pgbouncer.ini")
  await writeFile(file, configurationOf(server, port))
  // It refuses to run as root, as Postgres does.
  const child = spawn(program, [file], { ...user, cwd: folder, stdio: "ignore" })
  const ended = new Promise<void>((resolve) => child.once("exit", () => resolve()))
  try {
    for (let left = 100; !(await accepts(port)); left--) {
      if (left === 0 || child.exitCode !== null) throw new Error("PgBouncer did not start")
      await setTimeout(100)
    }
    return await run(`postgres://postgres@127.0.0.1:${port}/postgres`)
  } finally {
    child.kill("SIGINT")
    await ended
    await rm(folder, { recursive: true, force: true })
  }
}

const main = async (): Promise<boolean> => {
  const version = findVersion()
  if (version === undefined) {
    console.log(`${program} was not found, so nothing was tried: install PgBouncer, or name its file in PGBOUNCER`)
    return true
  }
  const programs = programsOf(18)
  if (programs === undefined) throw new Error("Postgres 18 was not found: run npm ci")
  const server = await startServer(programs, disposable)
  const args = process.argv.slice(2)
  const isKind = (arg: string) => arg === "partitioned" || arg === "counter"
  const kinds = args.filter(isKind)
  const given = args.filter((arg) => !isKind(arg))
  try {
    return await throughPgbouncer(server, async (url) => {
      console.log(`${version} before Postgres ${server.version}, statements not prepared`)
      const unprepared = await runTests(url, given.length > 0 ? given : suites, [
        "--mode",
        ["unprepared", ...kinds].join("+"),
        ...allButOthers
      ])
      if (given.length > 0) return unprepared
      console.log(`${version} before Postgres ${server.version}, statements prepared`)
      const mode = kinds.length === 0 ? [] : ["--mode", kinds.join("+")]
      return (await runTests(url, preparedSuites, mode)) && unprepared
    })
  } finally {
    await server.stop()
  }
}

process.exitCode = (await main()) ? 0 : 1
