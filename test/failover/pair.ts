/**
 * A Postgres server with a streaming replica, behind one address. `failOver` kills the server, promotes the replica, and lets the address
 * lead to it, as a managed failover does. Then a new replica is made.
 */
import { type ChildProcess, execFile, spawn } from "node:child_process"
import { chown, mkdtemp, rm, writeFile } from "node:fs/promises"
import { createServer, connect as openSocket, type Socket } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { promisify } from "node:util"
import type * as SqlClient from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import { freePort } from "../../examples/cluster/freePort.js"
import { connect } from "../faults/database.js"
import { programsOf, serverUser } from "../postgresServers.js"

export interface Pair {
  /** The address, which stays the same. */
  readonly url: string
  readonly port: number
  /** Ends when the replica has all that the server has. */
  readonly caughtUp: Effect.Effect<void, unknown>
  /** Cuts the replica off from the server, so that it lacks what is committed from then on. */
  readonly cutOff: Effect.Effect<void>
  /** Kills the server, and promotes the replica. It is as safe as the server was when it ends. */
  readonly failOver: Effect.Effect<void, unknown>
}

/** The version of Postgres: the first argument of `npm run test:failover`. Versions before 15 take backups by other functions. */
export const major = Number(process.argv.slice(2).find((text) => /^1[5-9]$/.test(text)) ?? 18)

/** With `isSynchronous`, COMMIT succeeds when the replica has written it, too. */
export const makePair = (isSynchronous: boolean): Effect.Effect<Pair, unknown, Scope.Scope> =>
  Effect.gen(function* () {
    const scope = yield* Effect.scope
    const folder = yield* Effect.acquireRelease(
      Effect.promise(() => mkdtemp(join(tmpdir(), "effect-maestro-"))),
      (path) => Effect.promise(() => rm(path, { recursive: true, force: true }))
    )
    const user = serverUser()
    if ("uid" in user) yield* Effect.promise(() => chown(folder, user.uid, user.gid))
    const first = join(folder, "0")
    yield* Effect.promise(() =>
      promisify(execFile)(
        program("initdb"),
        ["-D", first, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"],
        { ...user, cwd: folder }
      )
    )
    const address = yield* makeSwitch
    const toPrimary = yield* makeSwitch
    let primary = yield* startServer(first, folder)
    let replica = primary
    let made = 0

    const follow = Scope.extend(scope)(
      Effect.gen(function* () {
        toPrimary.leadTo(primary.port)
        const data = join(folder, String(++made))
        yield* Effect.scoped(
          Effect.flatMap(connect(primary.url), (sql) => backUp(sql, primary.data, data, toPrimary.port))
        )
        replica = yield* startServer(data, folder)
        const synced = isSynchronous ? "sync" : "async"
        yield* Effect.scoped(
          Effect.gen(function* () {
            const sql = yield* connect(primary.url)
            if (isSynchronous) {
              yield* sql`alter system set synchronous_standby_names = '*'`
              yield* sql`select pg_reload_conf()`
            }
            yield* until(sql`select 1 from pg_stat_replication where state = 'streaming' and sync_state = ${synced}`)
          })
        )
      })
    )
    yield* follow
    address.leadTo(primary.port)

    return {
      url: `postgres://postgres@127.0.0.1:${address.port}/postgres`,
      port: address.port,
      caughtUp: Effect.scoped(
        Effect.flatMap(
          Effect.suspend(() => connect(primary.url)),
          (sql) => until(sql`select 1 from pg_stat_replication where replay_lsn >= pg_current_wal_lsn()`)
        )
      ),
      cutOff: Effect.sync(() => toPrimary.leadTo(undefined)),
      failOver: Effect.gen(function* () {
        yield* primary.kill
        address.leadTo(undefined)
        toPrimary.leadTo(undefined)
        yield* Effect.scoped(Effect.flatMap(connect(replica.url), (sql) => sql`select pg_promote()`))
        primary = replica
        address.leadTo(primary.port)
        yield* follow
      })
    }
  })

// --- internal ---

const program = (name: string): string => {
  const programs = programsOf(major)
  if (programs === undefined) throw new Error(`Postgres ${major} was not found`)
  return join(programs, name)
}

interface Server {
  readonly url: string
  readonly port: number
  readonly data: string
  readonly kill: Effect.Effect<void>
}

const settings = [
  ...["listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=200", "shared_buffers=32MB"],
  ...(major < 18 ? [] : ["io_method=sync"]),
  ...["deadlock_timeout=50ms", "wal_keep_size=512MB", "wal_retrieve_retry_interval=100ms"],
  // A killed process loses nothing that it had handed to the kernel.
  "fsync=off"
].flatMap((setting) => ["-c", setting])

/** Starts a server on the data, and kills it with the scope. */
const startServer = (data: string, folder: string): Effect.Effect<Server, unknown, Scope.Scope> =>
  Effect.gen(function* () {
    const port = yield* Effect.promise(() => freePort())
    const url = `postgres://postgres@127.0.0.1:${port}/postgres`
    const child = yield* Effect.acquireRelease(
      Effect.sync(() =>
        spawn(program("postgres"), ["-D", data, "-p", String(port), ...settings], {
          ...serverUser(),
          cwd: folder,
          stdio: "ignore"
        })
      ),
      (child) => end(child)
    )
    // A replica accepts connections when it has reached a consistent state.
    yield* Effect.scoped(Effect.flatMap(connect(url), (sql) => sql`select 1`)).pipe(
      Effect.retry(Schedule.intersect(Schedule.spaced("50 millis"), Schedule.recurs(200)))
    )
    return { url, port, data, kill: end(child) }
  })

/** Ends a server without a word to its clients, and without a checkpoint, as a crash does. */
const end = (child: ChildProcess): Effect.Effect<void> =>
  Effect.async((resume) => {
    if (child.exitCode !== null || child.signalCode !== null) return resume(Effect.void)
    child.once("exit", () => resume(Effect.void))
    child.kill("SIGQUIT")
  })

/** Copies the data of a server that runs, for a replica that follows it on the port. A backup belongs to a session, so it has a transaction. */
const backUp = (sql: SqlClient.SqlClient, from: string, to: string, port: number) =>
  sql.withTransaction(
    Effect.gen(function* () {
      yield* sql`select pg_backup_start('replica', true)`
      yield* Effect.promise(() => promisify(execFile)("cp", ["-R", from, to]))
      const [stopped] = yield* sql<{ labelfile: string }>`select labelfile from pg_backup_stop(false)`
      yield* Effect.promise(async () => {
        await rm(join(to, "postmaster.pid"), { force: true })
        await writeFile(join(to, "backup_label"), stopped?.labelfile ?? "")
        await writeFile(join(to, "standby.signal"), "")
        await writeFile(
          join(to, "postgresql.auto.conf"),
          `primary_conninfo = 'host=127.0.0.1 port=${port} user=postgres'\n`
        )
        const user = serverUser()
        if ("uid" in user) await promisify(execFile)("chown", ["-R", `${user.uid}:${user.gid}`, to])
        await promisify(execFile)("chmod", ["700", to])
      })
    })
  )

const until = <E>(rows: Effect.Effect<ReadonlyArray<unknown>, E>): Effect.Effect<void, E> =>
  rows.pipe(
    Effect.zipLeft(Effect.sleep("20 millis")),
    Effect.repeat({ until: ({ length }) => length > 0, times: 1000 }),
    Effect.asVoid
  )

interface Switch {
  readonly port: number
  /** Cuts all connections, and lets new ones go to the port, or to none. */
  readonly leadTo: (port: number | undefined) => void
}

/** A TCP address that leads to one port or another. */
const makeSwitch: Effect.Effect<Switch, never, Scope.Scope> = Effect.gen(function* () {
  let target: number | undefined
  const sockets = new Set<Socket>()
  const listener = createServer((client) => {
    if (target === undefined) return void client.destroy()
    const server = openSocket(target, "127.0.0.1")
    for (const [socket, other] of [
      [client, server],
      [server, client]
    ] as const) {
      socket.setNoDelay(true)
      sockets.add(socket)
      socket.pipe(other)
      socket.on("error", () => {})
      socket.on("close", () => {
        sockets.delete(socket)
        other.destroy()
      })
    }
  })
  const leadTo = (port: number | undefined): void => {
    target = port
    for (const socket of sockets) socket.destroy()
  }
  const port = yield* Effect.promise(() => freePort())
  yield* Effect.acquireRelease(
    Effect.async<void>((resume) => void listener.listen(port, "127.0.0.1", () => resume(Effect.void))),
    () =>
      Effect.async<void>((resume) => {
        leadTo(undefined)
        listener.close(() => resume(Effect.void))
      })
  )
  return { port, leadTo }
})
