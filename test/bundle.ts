/** Writes a program, with all that it imports, to one file, for processes that tests start. */
import { createRequire } from "node:module"
import { join } from "node:path"
import { fileURLToPath, pathToFileURL } from "node:url"
import { build, type Plugin } from "esbuild"

const root = fileURLToPath(new URL("..", import.meta.url))

/**
 * The program may import `effect-maestro`, and files by their absolute path. With a `folder` it is as if it were in that folder: it may import and
 * read the files there. To start the file takes 0.2 s of processor time; with `tsx`, from the sources, it takes 3.6 s. The `tsconfig` tells where
 * `effect-maestro` is.
 */
export const bundle = async (
  program: string,
  outfile: string,
  { folder, tsconfig = "tsconfig.json" }: { readonly folder?: string; readonly tsconfig?: string } = {}
): Promise<void> => {
  await build({
    stdin: { contents: program, resolveDir: folder ?? root, loader: "ts" },
    tsconfig: `${root}${tsconfig}`,
    outfile,
    bundle: true,
    platform: "node",
    format: "esm",
    logLevel: "error",
    external: ["pg-native"],
    banner: { js: requireFunction },
    define:
      folder === undefined
        ? {}
        : { "import.meta.url": JSON.stringify(pathToFileURL(join(folder, "program.mjs")).href) },
    plugins: [pgliteByItsPath]
  })
}

// --- internal ---

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
