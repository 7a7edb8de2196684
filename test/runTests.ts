/** Runs test files on a given server, in a process of their own. `matrix.ts` and `pgbouncer.ts` use it. */
import { spawn } from "node:child_process"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("..", import.meta.url))

/** Returns whether all tests passed. One file runs after the other, because an open transaction of one delays the feed of another. */
export const runTests = (
  url: string,
  files: ReadonlyArray<string>,
  flags: ReadonlyArray<string> = []
): Promise<boolean> =>
  new Promise((resolve, reject) => {
    const vitest = ["node_modules/vitest/vitest.mjs", "run", "--config", ".config/vitest.config.ts"]
    const all = [...vitest, "--no-file-parallelism", "--reporter", "dot", ...flags, ...files]
    const child = spawn(process.execPath, all, {
      cwd: root,
      stdio: "inherit",
      env: { ...process.env, DATABASE_URL: url }
    })
    child.once("error", reject)
    child.once("exit", (code) => resolve(code === 0))
  })
