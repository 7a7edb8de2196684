import { availableParallelism } from "node:os"
import { fileURLToPath } from "node:url"
import { defineConfig, type ViteUserConfig } from "vitest/config"
import { BaseSequencer, type TestSpecification } from "vitest/node"

const root = fileURLToPath(new URL("..", import.meta.url))

declare module "vitest" {
  export interface ProvidedContext {
    /** How many random inputs a property test tries. */
    runs: number
    /** How long a case may take, in milliseconds. */
    timeout: number
    /** The order of the feed of a new log. */
    feedOrder: "transactionIds" | "counter"
  }
}

// One more than there are cores, because tests also wait: for time limits, for child processes and for the server.
const workers = availableParallelism() + 1

/** The files that take longest, which begin first, so that no worker ends long after the others. */
const longest = [
  "faults",
  "preparedStatements",
  "rebuildUnderLoad",
  "feedOrder",
  "feedOrderOption",
  "subscriptionBalance",
  "pageBytes",
  "subscriptionPartitions",
  "callersApart",
  "subscription",
  "partitionLogParts",
  "chessPage",
  "rebuild",
  "subscriptionProcess",
  "projectionTables",
  "logPartitions",
  "layersClosed",
  "pgliteSignals",
  "application",
  "store.pglite",
  "rebuildTables",
  "brokenStores",
  "partitionLog",
  "feedOfProjections",
  "sqlStore"
]

class LongestFirst extends BaseSequencer {
  override async sort(files: Array<TestSpecification>): Promise<Array<TestSpecification>> {
    const isLong = (name: string, { moduleId }: TestSpecification) => moduleId.endsWith(`/${name}.test.ts`)
    const first = longest.flatMap((name) => files.filter((file) => isLong(name, file)))
    return [...first, ...(await super.sort(files.filter((file) => !first.includes(file))))]
  }
}

/** Turns the default of `SqlStore`'s option `preparedStatements` into false: `npm run test:unprepared`. */
const unprepared: NonNullable<ViteUserConfig["plugins"]>[number] = {
  name: "unprepared",
  enforce: "pre",
  transform: (code, id) => {
    if (!id.endsWith("/src/SqlStore.ts")) return undefined
    const changed = code.replace("options?.preparedStatements !== false", "options?.preparedStatements === true")
    if (changed === code) throw new Error("SqlStore.ts has no such default")
    return changed
  }
}

/** Lets each new log have partitions: `npm run test:partitioned`. */
const partitioned: NonNullable<ViteUserConfig["plugins"]>[number] = {
  name: "partitioned",
  enforce: "pre",
  transform: (code, id) => {
    if (!id.endsWith("/src/internal/sql/logPartitions.ts")) return undefined
    const changed = code.replace("usualPartitions: number = 1", "usualPartitions: number = 4")
    if (changed === code) throw new Error("logPartitions.ts has no such default")
    return changed
  }
}

/** Lets each new log have a counter for its order: `npm run test:counter`. */
const counter: NonNullable<ViteUserConfig["plugins"]>[number] = {
  name: "counter",
  enforce: "pre",
  transform: (code, id) => {
    if (!id.endsWith("/src/internal/sql/feedOrder.ts")) return undefined
    const changed = code.replace(
      'usualFeedOrder: FeedOrder = "transactionIds"',
      'usualFeedOrder: FeedOrder = "counter"'
    )
    if (changed === code) throw new Error("feedOrder.ts has no such default")
    return changed
  }
}

const pluginsOf: Readonly<Record<string, ViteUserConfig["plugins"]>> = {
  unprepared: [unprepared],
  partitioned: [partitioned],
  counter: [counter]
}

/** What a mode leaves out, because it is about what the mode turns off. */
const excludedBy: Readonly<Record<string, Array<string>>> = {
  unprepared: ["test/preparedStatements.test.ts"],
  // A counter holds no event back, needs no repair, and has no sequence, which the tests of `partitionLog` fill the log by. No commit is an
  // insert by itself. A transaction that has appended can't wait for an append beside it, as those of the last two files do.
  counter: [
    "heldBack",
    "feedOrderRestore",
    "repairAfterRestore",
    "subscriptionRestore",
    "partitionLog",
    "partitionLogParts",
    "preparedStatements",
    "feedInterleavings",
    "feedOfProjections"
  ].map((name) => `test/${name}.test.ts`)
}

/** `unprepared+partitioned` is both. */
export default defineConfig(({ mode }) => {
  const modes = mode.split("+")
  // `npm run test:long` tries 50 times as many random inputs.
  const [runs, timeout] = modes.includes("long") ? [1000, 1_800_000] : [20, 60_000]
  return {
    root,
    plugins: modes.flatMap((one) => pluginsOf[one] ?? []),
    resolve: {
      alias: [
        { find: /^effect-maestro$/, replacement: `${root}src/index.ts` },
        { find: /^effect-maestro\/(.+)$/, replacement: `${root}src/$1.ts` }
      ]
    },
    test: {
      include: ["test/**/*.test.ts"],
      exclude: modes.flatMap((one) => excludedBy[one] ?? []),
      globalSetup: "test/postgres.globalSetup.ts",
      setupFiles: "test/vitest.setup.ts",
      pool: "forks",
      // A worker runs its files one after another and keeps the modules: to load them takes 2 s for each file.
      isolate: false,
      maxWorkers: workers,
      // Vitest fails if it ends an idle worker while others run.
      minWorkers: workers,
      sequence: { sequencer: LongestFirst },
      reporters: "default",
      provide: { runs, timeout, feedOrder: modes.includes("counter") ? "counter" : "transactionIds" },
      testTimeout: timeout,
      hookTimeout: 60_000
    }
  }
})
