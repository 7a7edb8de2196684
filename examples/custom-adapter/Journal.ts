/**
 * A file to which lines are appended. Each line is stored whole and durably, or not at all.
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
// The lock of the library is not exported, so a store of your own brings its own lock.
import { hold } from "../../src/internal/pglite/folderLock.js"

export interface Journal<A> {
  /** The folder, by its real path. */
  readonly folder: string
  readonly file: string
  /** The entries that it had when it was opened, oldest first. */
  readonly entries: ReadonlyArray<A>
  /**
   * Appends a line. It can't be interrupted, and must not be called concurrently. After `CommitUnknown` the line may or
   * may not be there when the journal is opened again. After any other failure it is not.
   */
  readonly append: (operation: string, entry: A) => Effect.Effect<void, StoreError.StoreError>
}

/** Opens the journal of a folder, and locks the folder until the scope closes. */
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
    // The folder may be new, so its name has to be made durable, too.
    if (content.length === 0) yield* io("FileStore", () => syncAbove(home))
    const entries: Array<A> = []
    /** The length of the whole lines, in bytes. */
    let length = 0
    for (let end = content.indexOf("\n"); end >= 0; end = content.indexOf("\n", length)) {
      const entry = decode<A>(content.subarray(length, end))
      if (Option.isNone(entry)) {
        // A crash tears only the last line, so a broken line before it is damage. A disk writes in any order, so the
        // last line can be torn with its line feed in place.
        if (end + 1 < content.length) return yield* broken(file, entries.length + 1)
        break
      }
      entries.push(entry.value)
      length = end + 1
    }

    /** Whether there may be a torn line at the end. A line after it could not be read again. */
    let torn = length < content.length
    const cut = Effect.zipRight(
      io("FileStore", () => handle.truncate(length).then(() => handle.datasync())),
      Effect.sync(() => {
        torn = false
      })
    )
    if (torn) {
      yield* Effect.logWarning(`${file}: cut off ${content.length - length} bytes of a commit that a crash interrupted`)
      yield* cut
    }

    const append = (operation: string, entry: A) =>
      Effect.gen(function* () {
        const line = yield* io(operation, async () => encode(entry))
        // Nothing of this line is written yet.
        if (torn) yield* Effect.mapError(cut, (error) => failure("Unavailable", operation, stuck, error))
        torn = true
        // Without `datasync` a power cut could lose the line.
        yield* io(operation, () => handle.appendFile(line).then(() => handle.datasync())).pipe(
          // It is cut off now, because a crash before the next line would bring back a commit that has failed.
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

/** Returns an entry that `encode` has written. The checksum shows that it is unchanged. */
const decode = <A>(line: Buffer): Option.Option<A> => {
  const json = line.subarray(65)
  return line.subarray(0, 65).equals(Buffer.from(`${checksum(json)} `))
    ? Option.some(JSON.parse(json.toString()))
    : Option.none()
}

/** Makes the names in a folder durable. A file whose name is not durable can be lost. */
const syncFolder = async (folder: string): Promise<void> => {
  // Windows can't open a folder as a file, and does not need it.
  if (process.platform === "win32") return
  const handle = await fs.open(folder, "r")
  await handle.sync().finally(() => handle.close())
}

/** Makes the folders above durable, because they may be new as well. */
const syncAbove = async (folder: string): Promise<void> => {
  const above = path.dirname(folder)
  if (above === folder) return
  await syncFolder(above).catch((error: unknown) => {
    // A folder that can't be read or written was not created here.
    if (!["EACCES", "EPERM", "EROFS", "EINVAL"].includes(codeOf(error) ?? "")) throw error
  })
  return syncAbove(above)
}

/**
 * Locks the folder: one process at a time, and one store in it. The imported file depends on nothing of this library,
 * so it can be copied together with this one.
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
