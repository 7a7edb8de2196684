/** Programs for processes of their own, for tests that kill, stop or starve a process. */
import { mkdtemp, rm } from "node:fs/promises"
import { createRequire } from "node:module"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath, pathToFileURL } from "node:url"
import { build, type Plugin } from "esbuild"
import { afterAll, beforeAll } from "vitest"

const root = fileURLToPath(new URL("..", import.meta.url))

/**
 * Writes a program, with all that it imports, to one file before the first test, and returns how to get its path. The
 * program may import
 * `effect-maestro` and files by their absolute path. To start such a file takes 0.2 s of processor time; with `tsx`,
 * from the sources, it takes 3.6 s.
 */
export const useProgram = (program: string): (() => string) => {
  let folder = ""
  const file = (): string => join(folder, "program.mjs")
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "effect-maestro-"))
    await build({
      stdin: { contents: program, resolveDir: root, loader: "ts" },
      tsconfig: join(root, "tsconfig.json"),
      outfile: file(),
      bundle: true,
      platform: "node",
      format: "esm",
      logLevel: "error",
      external: ["pg-native"],
      banner: { js: requireFunction },
      plugins: [pgliteByItsPath]
    })
  })
  afterAll(() => rm(folder, { recursive: true, force: true }))
  return file
}

/** CommonJS modules call it. */
const requireFunction = `import { createRequire as requireOf } from "node:module"; const require = requireOf(${JSON.stringify(import.meta.url)});`

/** PGlite finds its files beside its module, so it stays outside of the bundle. */
const pgliteByItsPath: Plugin = {
  name: "pglite",
  setup: ({ onResolve }) =>
    onResolve({ filter: /^@electric-sql\/pglite$/ }, ({ path }) => ({
      path: pathToFileURL(createRequire(import.meta.url).resolve(path)).href,
      external: true
    }))
}
