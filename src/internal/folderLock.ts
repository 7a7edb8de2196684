/**
 * Keeps a second process out of a folder that only one may write: PGlite itself would let it in, and both would ruin it.
 */
import { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"

/** Holds the lock for the scope. What a killed process left behind is taken over. */
export const lockFolder = (folder: string): Effect.Effect<void, SqlError, Scope.Scope> =>
  // Where there is no file system of the machine's own, as in a browser, the storage has locks of its own.
  isPath(folder)
    ? Effect.asVoid(
        Effect.acquireRelease(
          Effect.tryPromise({
            try: () => take(folder),
            catch: (cause) =>
              new SqlError({
                cause,
                message: `Failed to open ${folder}: ${cause instanceof Error ? cause.message : String(cause)}`
              })
          }),
          (release) => Effect.promise(release)
        )
      )
    : Effect.void

// --- internal ---

const isPath = (folder: string): boolean => !/^[a-z][a-z0-9+.-]+:\/\//i.test(folder) || folder.startsWith("file://")

/** The locks of this process: one that bears its number and is not here was left by one before it. */
const held = new Set<string>()

const take = async (folder: string): Promise<() => Promise<void>> => {
  const fs = await import("node:fs/promises")
  const path = await import("node:path")
  // Beside the folder: inside, a new database finds it not empty and refuses it.
  const file = `${path.resolve(folder.replace(/^file:\/\//, ""))}.lock`
  await fs.mkdir(path.dirname(file), { recursive: true })
  for (let attempt = 0; attempt < 3; attempt++) {
    try {
      await fs.writeFile(file, String(process.pid), { flag: "wx" })
      held.add(file)
      return async () => {
        held.delete(file)
        await fs.rm(file, { force: true })
      }
    } catch (error) {
      if (!(error instanceof Error && "code" in error && error.code === "EEXIST")) throw error
      const owner = Number(await fs.readFile(file, "utf8").catch(() => ""))
      if (held.has(file) || isAlive(owner)) {
        throw new Error(`process ${owner} has the database open; if it has not, delete ${file}`)
      }
      await fs.rm(file, { force: true })
    }
  }
  throw new Error("others open the database at the same time; try again")
}

const isAlive = (pid: number): boolean => {
  if (!Number.isInteger(pid) || pid <= 0 || pid === process.pid) return false
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    // It is there, and belongs to somebody else.
    return error instanceof Error && "code" in error && error.code === "EPERM"
  }
}
