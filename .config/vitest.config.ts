import { availableParallelism } from "node:os"
import { fileURLToPath } from "node:url"
import { defineConfig } from "vitest/config"

const root = fileURLToPath(new URL("..", import.meta.url))

declare module "vitest" {
  export interface ProvidedContext {
    /** How many random inputs a property test tries. */
    runs: number
    /** How long a case may take, in milliseconds. */
    timeout: number
  }
}

// One more than there are cores, because tests also wait: for time limits, for child processes and for the server.
const workers = availableParallelism() + 1

export default defineConfig(({ mode }) => {
  // `npm run test:long` tries 100 times as many random inputs.
  const [runs, timeout] = mode === "long" ? [5000, 1_800_000] : [50, 60_000]
  return {
    root,
    resolve: {
      alias: [
        { find: /^effect-maestro$/, replacement: `${root}src/index.ts` },
        { find: /^effect-maestro\/(.+)$/, replacement: `${root}src/$1.ts` }
      ]
    },
    test: {
      include: ["test/**/*.test.ts"],
      globalSetup: "test/postgres.globalSetup.ts",
      setupFiles: "test/vitest.setup.ts",
      pool: "forks",
      // A worker runs its files one after another and keeps the modules: to load them takes 2 s for each file.
      isolate: false,
      maxWorkers: workers,
      // Vitest fails if it ends an idle worker while others run.
      minWorkers: workers,
      reporters: "default",
      provide: { runs, timeout },
      testTimeout: timeout,
      hookTimeout: 60_000
    }
  }
})
