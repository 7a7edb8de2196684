/**
 * A file to which lines are added, each whole and durable or not there at all.
 *
 * A line is the SHA-256 of a JSON text, a space, the text, and a line feed, which JSON has none of.
 */
import { createHash } from "node:crypto"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import type * as Scope from "effect/Scope"
import { StoreError } from "effect-maestro"
// The lock of the library, which is not exported: a store of your own brings a lock of its own.
import { hold } from "../../src/internal/pglite/folderLock.js"

export interface Journal<A> {
  /** The folder that it is in, under the one name that all its names lead to. */
  readonly folder: string
  readonly file: string
  /** What it had when it was opened, oldest first. */
  readonly entries: ReadonlyArray<A>
  /**
   * Adds a line. It can't be interrupted, and is not to be called twice at once. After `CommitUnknown` the line may or may
   * not be there when the journal is opened again; after any other failure it is not.
   */
  readonly append: (operation: string, entry: A) => Effect.Effect<void, StoreError.StoreError>
}

/** Opens the journal of a folder, and keeps everybody else out of it for the scope. */
export const open = <A>(folder: string): Effect.Effect<Journal<A>, StoreError.StoreError, Scope.Scope> =>
  Effect.gen(function* () {
    yield* io("FileStore", () => fs.mkdir(folder, { recursive: true }))
    const home = yield* io("FileStore", () => fs.realpath(folder))
    yield* lock(home)
    const file = path.join(home, "journal.jsonl")
    const handle = yield* Effect.acquireRelease(
      io("FileStore", () => fs.open(file, "a+")),
      (handle) => Effect.promise(() => handle.close())
    )
    yield* io("FileStore", () => syncFolder(home))

    const content = yield* io("FileStore", () => handle.readFile())
    // Nothing was ever acknowledged here, so this may be the first time; or the one before was cut short.
    if (content.length === 0) yield* io("FileStore", () => syncAbove(home))
    const entries: Array<A> = []
    /** How much of the file is good. */
    let length = 0
    for (let end = content.indexOf("\n"); end >= 0; end = content.indexOf("\n", length)) {
      const entry = decode<A>(content.subarray(length, end))
      if (Option.isNone(entry)) {
        // A crash tears only what was being written, and nothing is written after a torn line: so this is damage. The last
        // one can be torn with its line feed in place, since a disk writes in any order; damage to it looks the same.
        if (end + 1 < content.length) return yield* broken(file, entries.length + 1)
        break
      }
      entries.push(entry.value)
      length = end + 1
    }

    /** Whether there may be more in the file than what is good; a line after that could not be read again. */
    let torn = length < content.length
    const cut = Effect.zipRight(
      io("FileStore", () => handle.truncate(length).then(() => handle.datasync())),
      Effect.sync(() => {
        torn = false
      })
    )
    if (torn) {
      yield* Effect.logWarning(`${file}: cut off ${content.length - length} bytes of a commit that a crash broke off`)
      yield* cut
    }

    const append = (operation: string, entry: A) =>
      Effect.gen(function* () {
        const line = yield* io(operation, async () => encode(entry))
        // Nothing of this line was written yet, whatever became of the one before.
        if (torn) yield* Effect.mapError(cut, (error) => failure("Unavailable", operation, stuck, error))
        torn = true
        // Without `datasync` the line is in the memory of the system, which a power cut takes along.
        yield* io(operation, () => handle.appendFile(line).then(() => handle.datasync())).pipe(
          // Now, not with the next line: until then a crash would bring back what was said to have failed.
          Effect.tapError((error) => Effect.mapError(cut, () => failure("CommitUnknown", operation, stuck, error)))
        )
        torn = false
        length += line.length
      }).pipe(Effect.uninterruptible)

    return { folder: home, file, entries, append }
  })

/** The failure of a line that is not what was written. */
export const broken = (file: string, line: number): StoreError.StoreError =>
  failure("Unknown", "FileStore", `line ${line} of ${file} is not what was written there; nothing was changed`)

// --- internal ---

const stuck = "the journal ends in a line that failed, and that can't be cut off"

const checksum = (json: string | Buffer): string => createHash("sha256").update(json).digest("hex")

const encode = (entry: unknown): Buffer => {
  const json = JSON.stringify(entry)
  return Buffer.from(`${checksum(json)} ${json}\n`)
}

/** The checksum vouches for the type: it is what `encode` was given. */
const decode = <A>(line: Buffer): Option.Option<A> => {
  const json = line.subarray(65)
  return line.subarray(0, 65).equals(Buffer.from(`${checksum(json)} `))
    ? Option.some(JSON.parse(json.toString()))
    : Option.none()
}

/** A file that is safe on the disk is lost all the same when its name in the folder is not. */
const syncFolder = async (folder: string): Promise<void> => {
  // There a folder can't be opened as a file, nor need it be.
  if (process.platform === "win32") return
  const handle = await fs.open(folder, "r")
  await handle.sync().finally(() => handle.close())
}

/** The folders above a new one may be new as well, and it is lost with the name of any of them. */
const syncAbove = async (folder: string): Promise<void> => {
  const above = path.dirname(folder)
  if (above === folder) return
  await syncFolder(above).catch((error: unknown) => {
    // It is not made by us, if it is not ours to read or is on a disk that takes nothing.
    if (!["EACCES", "EPERM", "EROFS", "EINVAL"].includes(codeOf(error) ?? "")) throw error
  })
  return syncAbove(above)
}

/**
 * One process at a time, and one opening in it. How that is held to is in the file imported, which has nothing of this
 * library in it: take it along with this one.
 */
const lock = (folder: string): Effect.Effect<void, StoreError.StoreError, Scope.Scope> =>
  hold(path.join(folder, "lock"), folder).pipe(
    Effect.mapError(({ cause, message, reason }) =>
      reason === "Held" ? failure("Unavailable", "FileStore", message) : failureOf("FileStore", cause)
    )
  )

const io = <A>(operation: string, run: () => Promise<A>): Effect.Effect<A, StoreError.StoreError> =>
  Effect.tryPromise({
    try: run,
    catch: (cause) => failureOf(operation, cause)
  })

const failureOf = (operation: string, cause: unknown): StoreError.StoreError =>
  failure(
    isFull(cause) ? "Exhausted" : "Unknown",
    operation,
    cause instanceof Error ? cause.message : String(cause),
    cause
  )

const isFull = (cause: unknown): boolean => ["ENOSPC", "EDQUOT", "EROFS"].includes(codeOf(cause) ?? "")

const codeOf = (cause: unknown): string | undefined =>
  Predicate.hasProperty(cause, "code") && Predicate.isString(cause.code) ? cause.code : undefined

const failure = (
  reason: StoreError.StoreErrorReason,
  operation: string,
  description: string,
  cause?: unknown
): StoreError.StoreError => new StoreError.StoreError({ reason, operation, description, code: codeOf(cause), cause })
