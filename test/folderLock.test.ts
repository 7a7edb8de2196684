/** One at a time in a folder: what other processes, containers and threads, dead or alive, do to its lock. */

import { type ChildProcess, spawn, spawnSync } from "node:child_process"
import { once } from "node:events"
import { existsSync } from "node:fs"
import { mkdir, mkdtemp, readdir, rename, rm, symlink } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { describe, expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import { lockFolder } from "../src/internal/pglite/folderLock.js"
import { useProgram } from "./program.js"

// The systems differ in what tells the living from the dead: on Linux a socket, elsewhere the number of the process.
const systems = process.platform === "linux" ? ["linux", "darwin"] : [process.platform]

/** Runs a command as the first process of a container. */
const contain = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]

const hasNamespaces = spawnSync("env", [...contain, "true"]).status === 0

describe.each(systems)("a folder's lock, as on %s", (platform) => {
  it.scoped("another process is refused while its holder lives, and gets in when that one was killed", () =>
    Effect.gen(function* () {
      const folder = yield* makeFolder
      const holder = yield* start({ platform, folder })
      expect(yield* holder.says).toBe("in")
      // One that is stopped, or busy, lives.
      holder.child.kill("SIGSTOP")
      const message = yield* (yield* start({ platform, folder })).says
      expect(message).toContain(
        `process ${holder.child.pid} has the database open; if that is not so, delete ${folder}`
      )
      yield* kill(holder.child)
      expect(yield* (yield* start({ platform, folder, end: true })).ended).toEqual(["in"])
      expect(yield* Effect.promise(() => readdir(join(folder, "..")))).toEqual([])
    })
  )

  it.scoped("of processes that find a killed one's lock at the same moment, exactly one gets in", () =>
    Effect.gen(function* () {
      const folder = yield* makeFolder
      const rounds = 12
      // A lock for each round, all left by the same process.
      const left = yield* start({ platform, folder, rounds, thenDie: true })
      expect(yield* left.ended).toEqual(Arr.replicate("in", rounds))
      const at = Date.now() + 2500
      const contenders = yield* Effect.forEach(Arr.range(1, 3), () =>
        start({ platform, folder, rounds, every: 150, at })
      )
      const said = yield* Effect.forEach(contenders, ({ lines }) => lines(rounds))
      for (const round of Arr.range(0, rounds - 1)) {
        expect(said.filter((lines) => lines[round] === "in").length, `round ${round} of ${JSON.stringify(said)}`).toBe(
          1
        )
      }
    })
  )

  it.scoped("one that is killed while it takes the lock leaves nothing that keeps others out", () =>
    Effect.gen(function* () {
      const folder = yield* makeFolder
      for (const dieAt of platform === "linux" ? ["rename", "renamed"] : ["wroteFile"]) {
        yield* (yield* start({ platform, folder, dieAt })).ended
      }
      expect(yield* (yield* start({ platform, folder, end: true })).ended).toEqual(["in"])
      expect(yield* Effect.promise(() => readdir(join(folder, "..")))).toEqual([])
    })
  )

  it.scoped("a worker thread of the same process is refused", () =>
    Effect.gen(function* () {
      const folder = yield* makeFolder
      const [main, worker] = yield* (yield* start({ platform, folder, worker: true, end: true })).ended
      expect(main).toBe("in")
      expect(worker).toMatch(/^worker: .*process \d+ has the database open/)
    })
  )
})

it.scoped.runIf(hasNamespaces)(
  "a folder's lock: a process with the same number in another container is refused while its holder lives",
  () =>
    Effect.gen(function* () {
      for (const socketless of [false, true]) {
        const folder = yield* makeFolder
        const order = { platform: process.platform, folder, socketless }
        const holder = yield* start({ ...order, contained: true })
        expect(yield* holder.says).toBe("in")
        const refusal = expect.stringMatching(/process 1 of another container or machine has the database open/)
        expect(yield* (yield* start({ ...order, contained: true })).says).toEqual(refusal)
        expect(yield* Effect.flip(Effect.scoped(lockFolder(folder)))).toMatchObject({ message: refusal })
        yield* kill(holder.child)
        // Without a socket nobody outside knows whether it lives.
        const after = yield* Effect.either(Effect.scoped(lockFolder(folder)))
        expect(after._tag).toBe(socketless ? "Left" : "Right")
      }
    })
)

it.scoped("a folder's lock is the same by all of its names, and for a copy of the module", () =>
  Effect.gen(function* () {
    const folder = yield* makeFolder
    yield* Effect.promise(() => mkdir(folder))
    const link = join(folder, "..", "link")
    yield* Effect.promise(() => symlink(folder, link))
    const copy: typeof import("../src/internal/pglite/folderLock.js") = yield* Effect.promise(
      () => import(fileURLToPath(new URL("../src/internal/pglite/folderLock.ts", import.meta.url)).concat("?copy"))
    )
    expect(copy.lockFolder).not.toBe(lockFolder)
    yield* lockFolder(folder)
    for (const again of [
      lockFolder(link),
      lockFolder(`file://${folder}`),
      copy.lockFolder(folder),
      copy.lockFolder(link)
    ]) {
      expect(yield* Effect.flip(Effect.scoped(again))).toMatchObject({
        _tag: "SqlError",
        message: expect.stringContaining(`process ${process.pid} has the database open`)
      })
    }
  })
)

it.scoped("a folder's lock fits beside one whose path is longer than a socket's may be", () =>
  Effect.gen(function* () {
    const folder = join(yield* makeFolder, "long".repeat(30), "long".repeat(30))
    yield* Effect.scoped(lockFolder(folder))
    const holder = yield* start({ platform: process.platform, folder })
    expect(yield* holder.says).toBe("in")
    expect(yield* Effect.flip(Effect.scoped(lockFolder(folder)))).toMatchObject({ _tag: "SqlError" })
    yield* kill(holder.child)
    yield* Effect.scoped(lockFolder(folder))
  })
)

it.scoped.runIf(process.platform === "linux")(
  "a folder's lock of another machine holds, and one of before its restart does not",
  () =>
    Effect.gen(function* () {
      const folder = yield* makeFolder
      const lock = `${folder}.lock`
      const holder = yield* start({ platform: process.platform, folder })
      expect(yield* holder.says).toBe("in")
      yield* kill(holder.child)
      const [name = ""] = yield* Effect.promise(() => readdir(lock))
      const [kind, pid, begun, host, , space, id] = name.split("-")
      const renameTo = (from: string, to: string) => Effect.promise(() => rename(join(lock, from), join(lock, to)))
      const elsewhere = [kind, pid, begun, "0123456789", "0123456789", space, id].join("-")
      yield* renameTo(name, elsewhere)
      expect(yield* Effect.flip(Effect.scoped(lockFolder(folder)))).toMatchObject({
        message: expect.stringContaining("of another container or machine has the database open")
      })
      yield* renameTo(elsewhere, [kind, pid, begun, host, "0123456789", space, id].join("-"))
      yield* Effect.scoped(lockFolder(folder))
      expect(existsSync(lock)).toBe(false)
    })
)

it.scoped.runIf(existsSync("/dev/shm"))(
  "a folder that is a mounted disk is refused: a lock beside it is not beside it elsewhere",
  () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(lockFolder("/dev/shm"))
      expect(error.message).toContain("take a folder inside, such as /dev/shm/data")
      expect(existsSync("/dev/shm.lock")).toBe(false)
    })
)

// --- what the cases are made of ---

/** The path of a folder that is not there yet, alone in one that is gone with the scope. */
const makeFolder = Effect.map(
  Effect.acquireRelease(
    Effect.promise(() => mkdtemp(join(tmpdir(), "folder-lock-"))),
    (folder) => Effect.promise(() => rm(folder, { recursive: true }))
  ),
  (folder) => join(folder, "data")
)

interface Order {
  /** What `process.platform` says there. */
  readonly platform: string
  readonly folder: string
  /** Locks as many folders, whose names end in a number, `every` so many milliseconds from `at` on. */
  readonly rounds?: number
  readonly every?: number
  readonly at?: number
  /** Has itself killed at this call of the file system, or right after it. */
  readonly dieAt?: string
  /** Has itself killed when it has them all. */
  readonly thenDie?: boolean
  /** Lets a worker thread try as well. */
  readonly worker?: boolean
  /** Ends, and does not stay. */
  readonly end?: boolean
  /** On a disk that holds no sockets. */
  readonly socketless?: boolean
  /** In a namespace of its own, where its number is 1. */
  readonly contained?: boolean
}

/** A process that locks the folder and says how that went, a line for each time. It is killed with the scope. */
const start = ({ contained = false, ...order }: Order) =>
  Effect.gen(function* () {
    const command = [...(contained ? contain : []), ...[process.execPath, program(), JSON.stringify(order)]]
    const child = yield* Effect.acquireRelease(
      Effect.sync(() =>
        spawn(command[0] ?? "", command.slice(1), {
          stdio: ["ignore", "pipe", "inherit"],
          env: { ...process.env, NODE_OPTIONS: "" }
        })
      ),
      (child) => kill(child)
    )
    let text = ""
    child.stdout.on("data", (data) => {
      text += data
    })
    const closed = once(child, "close")
    const lines = async (count: number): Promise<ReadonlyArray<string>> => {
      while (text.split("\n").length <= count && child.exitCode === null && child.signalCode === null) {
        await Promise.race([once(child.stdout, "data"), closed])
      }
      return text.split("\n").slice(0, count)
    }
    return {
      child,
      says: Effect.map(
        Effect.promise(() => lines(1)),
        ([line]) => line
      ),
      lines: (count: number) => Effect.promise(() => lines(count)),
      ended: Effect.promise(() => closed.then(() => text.trim().split("\n")))
    }
  })

const kill = (child: ChildProcess): Effect.Effect<void> =>
  Effect.promise(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return
    const closed = once(child, "close")
    child.kill("SIGKILL")
    await closed
  })

const program = useProgram(`
import { writeSync } from "node:fs"
import { EventEmitter } from "node:events"
import fs from "node:fs/promises"
import net from "node:net"
import { syncBuiltinESMExports } from "node:module"
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads"
import * as Effect from "effect/Effect"
const order = isMainThread ? JSON.parse(process.argv[2]) : workerData
Object.defineProperty(process, "platform", { value: order.platform })
const { lockFolder } = await import(${JSON.stringify(fileURLToPath(new URL("../src/internal/pglite/folderLock.ts", import.meta.url)))})
const die = () => process.kill(process.pid, "SIGKILL")
const replace = (method, replacement) => {
  const original = fs[method]
  fs[method] = (...args) => replacement(() => original(...args))
}
if (order.dieAt === "renamed") replace("rename", (run) => run().then(die))
else if (order.dieAt === "wroteFile") replace("writeFile", (run) => run().then(die))
else if (order.dieAt !== undefined) replace(order.dieAt, die)
if (order.socketless) net.createServer = () => Object.assign(new EventEmitter(), {
  listen() {
    setImmediate(() => this.emit("error", new Error("EPERM")))
  }
})
syncBuiltinESMExports()
const say = (line) => Effect.sync(() => writeSync(1, line + "\\n"))
const attempt = (folder) => lockFolder(folder).pipe(Effect.as("in"), Effect.catchAll((error) => Effect.succeed(error.message)))
const thread = () => new Promise((resolve) => {
  const worker = new Worker(new URL(import.meta.url), { workerData: { platform: order.platform, folder: order.folder } })
  worker.once("message", (message) => resolve("worker: " + message))
  worker.once("error", (error) => resolve("worker failed: " + error.stack))
})
const main = Effect.gen(function* () {
  const { at = 0, every = 0, folder, rounds } = order
  if (rounds === undefined) yield* Effect.flatMap(attempt(folder), say)
  for (let round = 0; round < (rounds ?? 0); round++) {
    const wait = at + round * every - Date.now()
    if (wait > 3) yield* Effect.sleep(wait - 3)
    while (Date.now() < at + round * every) {}
    yield* Effect.flatMap(attempt(folder + round), say)
  }
  if (order.worker) yield* Effect.flatMap(Effect.promise(thread), say)
  if (order.thenDie) die()
  if (order.end !== true) yield* Effect.never
})
const inThread = Effect.map(attempt(order.folder), (message) => parentPort.postMessage(message))
Effect.runPromise(Effect.scoped(isMainThread ? main : inThread))
`)
