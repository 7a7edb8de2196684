/**
 * Locks the folder of a database for one owner: against other processes, also in other containers, worker threads, and
 * copies of this module. PGlite has no such lock, and two writers destroy the database. `PgliteClient` calls it.
 *
 * An owner creates a flag, which is a file with a unique name, and then looks for the flags of others. Of two
 * concurrent owners the later one sees the flag of the other. So never both hold the lock; one removes its flag and
 * retries. The flag of a dead owner is removed when it is found. Names are never used again, so a removal can't hit
 * another flag.
 *
 * On Linux a flag is a socket on which its owner listens, because a process number does not tell whether a process in
 * another container lives. The kernel closes the socket with the process. Elsewhere, and on a disk without sockets, a
 * flag is an empty file with the process number in its name. An owner is taken to be alive unless it is known to be
 * dead.
 */
import type { Server } from "node:net"
import { SqlError } from "@effect/sql/SqlError"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import type * as Scope from "effect/Scope"

/** Why the lock was not taken: another owner holds it, or the disk failed. */
export class LockError extends Data.TaggedError("LockError")<{
  readonly reason: "Held" | "Failed"
  readonly message: string
  readonly cause?: unknown
}> {}

/** Locks the folder of a database for the scope. */
export const lockFolder = (folder: string): Effect.Effect<void, SqlError, Scope.Scope> =>
  // Without a file system, as in a browser, the storage has locks of its own.
  isPath(folder)
    ? attempt(() => beside(folder.replace(/^file:\/\//, ""))).pipe(
        Effect.flatMap((lock) => hold(lock, "the database")),
        Effect.mapError((cause) => new SqlError({ cause, message: `Failed to open ${folder}: ${cause.message}` }))
      )
    : Effect.void

/**
 * Holds a lock for the scope. `lock` is a path that exists only while the lock is held, in an existing folder that has
 * one name for all owners. `what` names the locked thing in messages.
 */
export const hold = (lock: string, what: string): Effect.Effect<void, LockError, Scope.Scope> =>
  Effect.asVoid(
    Effect.acquireRelease(
      attempt(() => take(lock, what)),
      (release) => Effect.promise(release)
    )
  )

// --- internal ---

const isPath = (folder: string): boolean => !/^[a-z][a-z0-9+.-]+:\/\//i.test(folder) || folder.startsWith("file://")

const attempt = <A>(run: () => Promise<A>): Effect.Effect<A, LockError> =>
  Effect.tryPromise({
    try: run,
    catch: (cause) =>
      cause instanceof LockError
        ? cause
        : new LockError({ reason: "Failed", cause, message: cause instanceof Error ? cause.message : String(cause) })
  })

/** Imported when they are needed, because a browser has none of them. */
const load = async () => {
  const [crypto, fs, net, os, path] = await Promise.all([
    import("node:crypto"),
    import("node:fs/promises"),
    import("node:net"),
    import("node:os"),
    import("node:path")
  ])
  return { crypto, fs, net, os, path }
}

type Node = Awaited<ReturnType<typeof load>>

/** Beside the folder, because PGlite can't dump a folder with a socket in it. */
const beside = async (name: string): Promise<string> => {
  const { fs, path } = await load()
  const resolved = path.resolve(name)
  await fs.mkdir(path.dirname(resolved), { recursive: true })
  // Another name of the folder must lead to the same lock. A new folder has no other names yet.
  const folder = await fs.realpath(resolved).catch(async (error: unknown) => {
    if (codeOf(error) !== "ENOENT") throw error
    return path.join(await fs.realpath(path.dirname(resolved)), path.basename(resolved))
  })
  const own = await fs.stat(folder).catch(() => undefined)
  const parent = await fs.stat(path.dirname(folder))
  if (own !== undefined && own.dev !== parent.dev) {
    // Containers may mount the folder as a volume elsewhere, where the files beside it are others.
    const below = path.join(folder, "data")
    throw new Error(
      `it is where a disk is mounted, so no lock can be beside it; take a folder inside, such as ${below}`
    )
  }
  return `${folder}.lock`
}

/** The locks of this thread. The flags show them too, but only after a retry. */
const held = new Set<string>()

const take = async (lock: string, what: string): Promise<() => Promise<void>> => {
  const refuse = (who: string) =>
    new LockError({ reason: "Held", message: `${who} has ${what} open; if that is not so, delete ${lock}` })
  if (held.has(lock)) throw refuse(`process ${process.pid}`)
  held.add(lock)
  try {
    const node = await load()
    const self = await identify(node)
    let seen: Flag | undefined
    for (let attempt = 0; attempt < 20; attempt++) {
      let [other] = await look(node, lock, self)
      if (other === undefined) {
        const flag = await raise(node, lock, self)
        let others = await look(node, lock, self, flag)
        // One of the owners that see each other keeps its flag, because otherwise all could retry for ever.
        for (let wait = 0; wait < 50 && others.length > 0 && others.every(({ id }) => flag.id < id); wait++) {
          await pause(10)
          others = await look(node, lock, self, flag)
        }
        other = others[0]
        if (other === undefined && flag.isRaised) {
          return async () => {
            held.delete(lock)
            await flag.lower()
          }
        }
        await flag.lower()
      }
      // An owner that only tries to get the lock creates a new flag each time.
      if (other !== undefined && other.name === seen?.name) {
        throw refuse(`process ${other.pid}${isHere(other, self) ? "" : " of another container or machine"}`)
      }
      seen = other
      // After a random time, so that the owners do not retry concurrently, and a longer one each time, because the disk
      // may be slow.
      await pause(node.crypto.randomInt(5, Math.min(20 * 2 ** attempt, 500)))
    }
    throw refuse("another process")
  } catch (error) {
    held.delete(lock)
    throw error
  }
}

/** On the live clock, because a `TestClock` does not drive the disk. */
const pause = (milliseconds: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, milliseconds))

/** The owner of a flag. All of it is in the name of the file, so that a full disk or a crash can't leave a part. */
interface Owner {
  readonly pid: number
  /**
   * The start of the process, in milliseconds of a clock that is never set. It is equal in all threads of the process.
   */
  readonly start: number
  readonly host: string
  /** The boot id of the kernel, and the namespace of process numbers; "0" where the system has none. */
  readonly boot: string
  readonly space: string
}

interface Flag extends Owner {
  readonly name: string
  readonly id: string
  /** A `draft` exists, but has no listener yet. It does not hold the lock. */
  readonly kind: "socket" | "number" | "draft"
}

const identify = async ({ crypto, fs, os }: Node): Promise<Owner> => {
  const short = (text: string) => crypto.createHash("sha256").update(text).digest("hex").slice(0, 10)
  const isLinux = process.platform === "linux"
  const boot = isLinux ? await fs.readFile("/proc/sys/kernel/random/boot_id", "utf8").catch(() => "") : ""
  const space = isLinux ? await fs.readlink("/proc/self/ns/pid").catch(() => "") : ""
  return {
    pid: process.pid,
    start: Math.round(Number(process.hrtime.bigint()) / 1e6 - process.uptime() * 1e3),
    host: short(os.hostname()),
    boot: boot === "" ? "0" : short(boot),
    space: /\d+/.exec(space)?.[0] ?? "0"
  }
}

const nameOf = (kind: Flag["kind"], { pid, start, host, boot, space }: Owner, id: string): string =>
  [kind, pid, start, host, boot, space, id].join("-")

const parse = (name: string): Flag | undefined => {
  const match = /^(socket|number|draft)-(\d+)-(-?\d+)-([0-9a-f]+)-([0-9a-f]+)-(\d+)-([0-9a-f]+)$/.exec(name)
  if (match === null) return undefined
  const [, kind, pid, start, host = "", boot = "", space = "", id = ""] = match
  if (kind !== "socket" && kind !== "number" && kind !== "draft") return undefined
  return { name, id, kind, pid: Number(pid), start: Number(start), host, boot, space }
}

interface OwnFlag {
  readonly id: string
  /** Or it was removed as the flag of a dead owner while it was created. */
  readonly isRaised: boolean
  readonly lower: () => Promise<void>
}

const raise = async ({ crypto, fs, net, path }: Node, lock: string, self: Owner): Promise<OwnFlag> => {
  const id = crypto.randomBytes(6).toString("hex")
  const raised = (name: string, server?: Server): OwnFlag => ({
    id,
    isRaised: true,
    lower: async () => {
      await fs.rm(path.join(lock, name), { force: true }).finally(() => server && close(server))
      // Fails while the folder has the flags of others.
      await fs.rmdir(lock).catch(() => {})
    }
  })
  const lost: OwnFlag = { id, isRaised: false, lower: async () => {} }
  const unlessLost = (error: unknown) => {
    // The previous owner has just removed the folder, or another one has removed the draft as the flag of a dead owner.
    if (codeOf(error) === "ENOENT") return lost
    throw error
  }
  await fs.mkdir(lock).catch((error: unknown) => {
    if (codeOf(error) !== "EEXIST") throw error
  })
  const draft = nameOf("draft", self, id)
  // A socket that exists and has no listener yet looks like the socket of a dead owner.
  const server = await through(fs, lock, draft, (address) => listen(net, address))
  if (server !== undefined) {
    const name = nameOf("socket", self, id)
    const flag = raised(name, server)
    try {
      await fs.rename(path.join(lock, draft), path.join(lock, name))
      if ((await through(fs, lock, name, (address) => ask(net, address))) === "alive") return flag
      // The disk can hold sockets, but connections to them fail.
      await flag.lower()
      await fs.mkdir(lock).catch(() => {})
    } catch (error) {
      await fs.rm(path.join(lock, draft), { force: true })
      await flag.lower()
      return unlessLost(error)
    }
  }
  const name = nameOf("number", self, id)
  return fs.writeFile(path.join(lock, name), "", { flag: "wx" }).then(() => raised(name), unlessLost)
}

/** The flags of other living owners. The flags of dead ones are removed. */
const look = async (node: Node, lock: string, self: Owner, own?: OwnFlag): Promise<ReadonlyArray<Flag>> => {
  const { fs, path } = node
  const names = await fs.readdir(lock).catch((error: unknown): ReadonlyArray<string> => {
    if (codeOf(error) === "ENOENT") return []
    throw error
  })
  const others: Array<Flag> = []
  for (const flag of names.map(parse)) {
    if (flag === undefined || flag.id === own?.id) continue
    const state = await stateOf(node, lock, flag, self)
    if (state === "dead") await fs.rm(path.join(lock, flag.name), { force: true })
    if (state === "alive" && flag.kind !== "draft") others.push(flag)
  }
  return others
}

type State = "alive" | "dead" | "gone"

const isHere = (flag: Owner, self: Owner): boolean =>
  flag.boot === self.boot && flag.space === self.space && (self.boot !== "0" || flag.host === self.host)

const stateOf = async ({ fs, net }: Node, lock: string, flag: Flag, self: Owner): Promise<State> => {
  // The same machine after a restart, or another machine, whose owners are unknown.
  if (flag.boot !== self.boot)
    return flag.host === self.host && flag.boot !== "0" && self.boot !== "0" ? "dead" : "alive"
  if (flag.kind !== "number") return (await through(fs, lock, flag.name, (address) => ask(net, address))) ?? "alive"
  if (!isHere(flag, self)) return "alive"
  // With the number of this process, it is an earlier process, or another thread of this one.
  if (flag.pid === self.pid) return Math.abs(flag.start - self.start) > 50 ? "dead" : "alive"
  try {
    process.kill(flag.pid, 0)
    return "alive"
  } catch (error) {
    // Any other error means that the process exists and belongs to another user.
    return codeOf(error) === "ESRCH" ? "dead" : "alive"
  }
}

/** Calls `use` with the address of a socket: a path that is short enough, also where the path of the folder is long. */
const through = async <A>(
  fs: Node["fs"],
  lock: string,
  name: string,
  use: (address: string) => Promise<A>
): Promise<A | undefined> => {
  if (process.platform !== "linux") return undefined
  const folder = await fs.open(lock, "r").catch(() => undefined)
  if (folder === undefined) return undefined
  return use(`/proc/self/fd/${folder.fd}/${name}`).finally(() => folder.close())
}

const listen = (net: Node["net"], address: string): Promise<Server | undefined> =>
  new Promise((resolve) => {
    const server = net.createServer((socket) => socket.destroy())
    // Errors are ignored, because an owner that can't accept a connection for lack of files still has its lock.
    server.on("error", () => resolve(server.listening ? server : undefined))
    // Exclusive, because in a worker of `cluster` the primary would listen. It does not keep the process alive.
    server.listen({ path: address, exclusive: true }, () => resolve(server.unref()))
  })

const close = (server: Server): Promise<void> => new Promise((resolve) => server.close(() => resolve()))

/** The kernel accepts the connection, also while the owner is busy. */
const ask = (net: Node["net"], address: string): Promise<State> =>
  new Promise((resolve) => {
    const socket = net.connect(address)
    socket.once("connect", () => resolve("alive"))
    socket.once("error", (error) => {
      const code = codeOf(error)
      resolve(code === "ECONNREFUSED" ? "dead" : code === "ENOENT" ? "gone" : "alive")
    })
    socket.once("connect", () => socket.destroy())
  })

const codeOf = (error: unknown): unknown => (Predicate.hasProperty(error, "code") ? error.code : undefined)
