/** Programs for processes of their own, for tests that kill, stop or starve a process. */
import { mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, beforeAll } from "vitest"
import { bundle } from "./bundle.js"

/** Writes a program to one file before the first test, and returns how to get its path. It may import and read files in the folder `beside`. */
export const useProgram = (program: string, beside?: string): (() => string) => {
  let folder = ""
  const file = (): string => join(folder, "program.mjs")
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "effect-maestro-"))
    await bundle(program, file(), beside === undefined ? {} : { folder: beside })
  })
  afterAll(() => rm(folder, { recursive: true, force: true }))
  return file
}
