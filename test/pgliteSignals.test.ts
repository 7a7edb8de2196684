/**
 * A process on the embedded database that gets a signal during its commands ends soon, and leaves a folder that opens
 * again.
 */
import { spawn } from "node:child_process"
import { once } from "node:events"
import { mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as PgliteClient from "effect-maestro/PgliteClient"
import { fillPglite } from "./database.js"
import { useProgram } from "./program.js"

const folder = Effect.acquireRelease(
  Effect.promise(() => mkdtemp(join(tmpdir(), "effect-maestro-"))),
  (path) => Effect.promise(() => rm(path, { recursive: true, force: true }))
)

it.live(
  "SIGTERM between any two commands, one after the other or concurrent, ends the process and loses no acknowledged event",
  () =>
    Effect.gen(function* () {
      const root = yield* folder
      const dataDir = join(root, "db")
      yield* fillPglite(dataDir)
      const acknowledged = new Map<string, number>()
      const seed = Math.floor(Math.random() * 2 ** 31)
      for (const [run, concurrency] of [1, 8].entries()) {
        // The number of commands before the signal: few, many, and late in a macrotask.
        const after = 1 + ((seed >> (run * 8)) & 63)
        const child = spawn(process.execPath, [program(), JSON.stringify({ dataDir, concurrency })], {
          stdio: ["ignore", "pipe", "inherit"],
          env: { ...process.env, NODE_OPTIONS: "" }
        })
        let [text, isAsked] = ["", false]
        child.stdout.on("data", (data) => {
          text += data
          if (isAsked || text.split("\n").length <= after) return
          isAsked = true
          child.kill("SIGTERM")
        })
        const [code] = yield* Effect.promise(() => once(child, "close"))
        // The process was not killed by the signal, so it has closed its layers.
        expect(code, `seed ${seed}`).toBe(0)
        const lines = text.trim().split("\n")
        expect(lines.length, `seed ${seed}`).toBeLessThan(commands)
        for (const line of lines) {
          const [id = "", sequence] = line.split(" ")
          acknowledged.set(id, Math.max(acknowledged.get(id) ?? 0, Number(sequence)))
        }
      }
      const stored = yield* Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        return yield* sql<{ id: string; last: number; events: number }>`
          select aggregate_id as id, max(sequence)::int as last, count(*)::int as events from maestro.event_log group by 1`
      }).pipe(Effect.provide(PgliteClient.layerWith({ dataDir })))
      const byId = new Map(stored.map((row) => [row.id.replace("Counter/", ""), row]))
      for (const [id, sequence] of acknowledged) expect(byId.get(id)?.last, id).toBeGreaterThanOrEqual(sequence)
      for (const { events, last } of stored) expect(events).toBe(last)
    }).pipe(Effect.scoped),
  120_000
)

/** More commands than any run reaches. */
const commands = 100_000

const program = useProgram(`
import { writeSync } from "node:fs"
import { NodeRuntime } from "@effect/platform-node"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { Aggregate, SqlStore } from "effect-maestro"
import * as PgliteClient from "effect-maestro/PgliteClient"
const { concurrency, dataDir } = JSON.parse(process.argv[2])
class Grew extends Schema.TaggedClass()("Grew", {}) {}
const Counter = Aggregate.make("Counter", {
  state: Schema.Number,
  initialState: 0,
  events: Grew,
  commands: Grew,
  decide: { Grew: (command) => Effect.succeed([command]) },
  evolve: { Grew: (count) => count + 1 }
})
Effect.forEach(
  Array.from({ length: ${commands} }, (_, n) => "counter-" + (n % 5)),
  (id) => Effect.map(Counter.evaluate(id, new Grew()), ({ sequence }) => writeSync(1, id + " " + sequence + "\\n")),
  { concurrency, discard: true }
).pipe(
  Effect.provide(
    Counter.layer.pipe(Layer.provide(SqlStore.layer), Layer.provide(PgliteClient.layerWith({ dataDir })))
  ),
  NodeRuntime.runMain
)
`)
