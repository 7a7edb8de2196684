/**
 * Keeps everybody else out of a folder that only one may write, be it a process, one in another container, a worker thread,
 * or a copy of this module. PGlite itself would let them in, and all would ruin it.
 *
 * Whoever wants in raises a flag, a file with a name that nobody else ever has, and then looks for the flags of others. Of
 * two at once, the one that raised it later sees the other's, so they are never both in; one gives way and tries again. A
 * dead one's flag is removed whenever it is found, and never by mistake another's, since its name does not come back.
 *
 * On Linux a flag is a socket, on which its owner listens: the kernel tells whether it lives, and closes it with the process,
 * which a number does not say of a process in another container. Elsewhere, and on a disk that holds no sockets, it is an
 * empty file, and the number of the process in its name has to do. Who can't be known to be dead is taken to be alive.
 */
import type { Server } from "node:net"
import { SqlError } from "@effect/sql/SqlError"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import type * as Scope from "effect/Scope"

/** Why there is no lock: somebody holds it, or the disk failed. */
export class LockError extends Data.TaggedError("LockError")<{
  readonly reason: "Held" | "Failed"
  readonly message: string
  readonly cause?: unknown
}> {}

/** Locks the folder of a database for the scope. */
export const lockFolder = (folder: string): Effect.Effect<void, SqlError, Scope.Scope> =>
  // Where there is no file system of the machine's own, as in a browser, the storage has locks of its own.
  isPath(folder)
    ? attempt(() => beside(folder.replace(/^file:\/\//, ""))).pipe(
        Effect.flatMap((lock) => hold(lock, "the database")),
        Effect.mapError((cause) => new SqlError({ cause, message: `Failed to open ${folder}: ${cause.message}` }))
      )
    : Effect.void

/**
 * Holds a lock for the scope. `lock` is a path of which there is nothing while nobody holds it, in a folder that is there
 * and has one name for all; `what` it is that is locked.
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

/** Not before they are needed: a browser has none of them. */
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

/** Not inside of the folder: PGlite can't dump one that has a socket in it. */
const beside = async (name: string): Promise<string> => {
  const { fs, path } = await load()
  const resolved = path.resolve(name)
  await fs.mkdir(path.dirname(resolved), { recursive: true })
  // Another name of it must lead to the same lock. A new one has no other names yet.
  const folder = await fs.realpath(resolved).catch(async (error: unknown) => {
    if (codeOf(error) !== "ENOENT") throw error
    return path.join(await fs.realpath(path.dirname(resolved)), path.basename(resolved))
  })
  const own = await fs.stat(folder).catch(() => undefined)
  const parent = await fs.stat(path.dirname(folder))
  if (own !== undefined && own.dev !== parent.dev) {
    // Others may have it mounted elsewhere, as containers have a volume, and what is beside it there is not what is here.
    const below = path.join(folder, "data")
    throw new Error(
      `it is where a disk is mounted, so no lock can be beside it; take a folder inside, such as ${below}`
    )
  }
  return `${folder}.lock`
}

/** The locks of this thread. The flags would tell as well, but only after a second look. */
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
        // One of those who see each other waits for the rest to give way, or they might do so for ever.
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
      // Who only tries to get in has a new flag each time.
      if (other !== undefined && other.name === seen?.name) {
        throw refuse(`process ${other.pid}${isHere(other, self) ? "" : " of another container or machine"}`)
      }
      seen = other
      // At random, or all would come back at once; and later each time, for a disk that is slow.
      await pause(node.crypto.randomInt(5, Math.min(20 * 2 ** attempt, 500)))
    }
    throw refuse("another process")
  } catch (error) {
    held.delete(lock)
    throw error
  }
}

/** In the time of the disk: a `TestClock` would not let it pass. */
const pause = (milliseconds: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, milliseconds))

/** Who has a flag; all of it is in its name, so that a full disk or a crash can't leave half of it. */
interface Owner {
  readonly pid: number
  /** When the process started, in milliseconds of a clock that nobody sets; the same in all of its threads. */
  readonly start: number
  readonly host: string
  /** The run of the kernel, and the namespace of process numbers; "0" where the system does not tell. */
  readonly boot: string
  readonly space: string
}

interface Flag extends Owner {
  readonly name: string
  readonly id: string
  /** A `draft` has its place and no listener yet, and is not in anybody's way. */
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
  /** Or it was taken for that of a dead one while it was made. */
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
      // Not while others have theirs in it.
      await fs.rmdir(lock).catch(() => {})
    }
  })
  const lost: OwnFlag = { id, isRaised: false, lower: async () => {} }
  const unlessLost = (error: unknown) => {
    // Whoever came before has just removed the folder, or taken the draft for that of a dead one.
    if (codeOf(error) === "ENOENT") return lost
    throw error
  }
  await fs.mkdir(lock).catch((error: unknown) => {
    if (codeOf(error) !== "EEXIST") throw error
  })
  const draft = nameOf("draft", self, id)
  // Between its two steps, to be there and to have a listener, a socket looks like that of a dead one.
  const server = await through(fs, lock, draft, (address) => listen(net, address))
  if (server !== undefined) {
    const name = nameOf("socket", self, id)
    const flag = raised(name, server)
    try {
      await fs.rename(path.join(lock, draft), path.join(lock, name))
      if ((await through(fs, lock, name, (address) => ask(net, address))) === "alive") return flag
      // The disk holds sockets, and does not lead to them.
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

/** The flags of others who live. Those of the dead are removed. */
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
  // The same machine, started anew since; or another one, of which nothing is known.
  if (flag.boot !== self.boot)
    return flag.host === self.host && flag.boot !== "0" && self.boot !== "0" ? "dead" : "alive"
  if (flag.kind !== "number") return (await through(fs, lock, flag.name, (address) => ask(net, address))) ?? "alive"
  if (!isHere(flag, self)) return "alive"
  // With this process's own number it was one before it, or is another thread of this one.
  if (flag.pid === self.pid) return Math.abs(flag.start - self.start) > 50 ? "dead" : "alive"
  try {
    process.kill(flag.pid, 0)
    return "alive"
  } catch (error) {
    // Or else it is there, and belongs to somebody else.
    return codeOf(error) === "ESRCH" ? "dead" : "alive"
  }
}

/** Uses the address of a socket, by a path that is short enough for one however long that of the folder is. */
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
    // For good: one that can't accept a question for want of files still has its lock.
    server.on("error", () => resolve(server.listening ? server : undefined))
    // Its own even in a worker of `cluster`, for which the primary would listen. It keeps no process from its end.
    server.listen({ path: address, exclusive: true }, () => resolve(server.unref()))
  })

const close = (server: Server): Promise<void> => new Promise((resolve) => server.close(() => resolve()))

/** The kernel answers for the listener, however busy that one is. */
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
