/** A cluster of real processes: one is killed, one is stopped and goes on (`npm run test:cluster` is the long run). */
import { fileURLToPath } from "node:url"
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { underLoad } from "./cluster/run.js"
import { makeDatabase } from "./database.js"
import { clean } from "./faults/history.js"
import { useProgram } from "./program.js"

const runner = fileURLToPath(new URL("cluster/runner.ts", import.meta.url))
const program = useProgram(
  `import { runRunner } from ${JSON.stringify(runner)}\nrunRunner(JSON.parse(process.argv[2]))`
)

it.scopedLive(
  "a runner is killed, and one is stopped: every acknowledged command is stored once, and no refused one",
  () =>
    Effect.gen(function* () {
      const url = yield* makeDatabase
      const report = yield* underLoad({
        file: program(),
        url,
        locks: "rows",
        leaseMillis: 1000,
        clients: 4,
        runners: 3,
        happening: (crew, record) =>
          Effect.gen(function* () {
            yield* record.answers(20)
            yield* crew.kill
            yield* record.answers(20)
            // One of the clients soon waits for the runner that is stopped, and the others go on.
            yield* crew.stop(record.answers(20))
            yield* record.answers(20)
          })
      })
      expect(report.acknowledged).toBeGreaterThan(0)
      expect(report).toMatchObject({ ...clean, failed: [], open: [] })
    })
)
