/**
 * Takes runners of a cluster away while clients are at work, and holds the answers that they got against the log:
 * `npm run test:cluster`. Runners are killed, stopped, added and removed, and lose the connection that holds their shards.
 *
 * `SEED` repeats the choices of a run, and `SECONDS` sets its length. Every column after `open` must be zero.
 */
import { mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import { bundle } from "../bundle.js"
import { makeServer } from "../faults/server.js"
import { logKind, logKindInWords } from "../logKind.js"
import type { Crew } from "./crew.js"
import { type Report, underLoad } from "./run.js"

const seed = Number(process.env.SEED ?? Date.now())
const seconds = Number(process.env.SECONDS ?? 120)

const zero = ["lost", "doubled", "torn", "ghosts", "disorder", "untrue", "projectionsOff", "statesOff"] as const

interface Act {
  readonly name: string
  readonly at: number
}

/** Something random every two seconds or so. */
const chaos = (crew: Crew, until: number, done: Array<Act>) =>
  Effect.gen(function* () {
    const act = (name: string, effect: Effect.Effect<void, unknown>) =>
      Effect.suspend(() => {
        done.push({ name, at: performance.now() })
        return effect
      })
    while (performance.now() < until) {
      yield* Effect.sleep(yield* Random.nextIntBetween(200, 3000))
      const dice = yield* Random.nextIntBetween(0, 100)
      if (crew.count() < 2) yield* act("added", crew.add)
      else if (dice < 25) yield* Effect.zipRight(act("killed", crew.kill), act("added", crew.add))
      else if (dice < 50) yield* act("stopped", crew.stop(Effect.sleep(yield* Random.nextIntBetween(100, 8000))))
      else if (dice < 75) yield* act("lock holder cut", crew.cut)
      else if (dice < 87 && crew.count() < 4) yield* act("added", crew.add)
      else if (crew.count() > 2) yield* act("removed", crew.remove)
    }
  })

const print = (name: string, report: Report, done: ReadonlyArray<Act>) => {
  const counts = new Map<string, number>()
  for (const act of done) counts.set(act.name, (counts.get(act.name) ?? 0) + 1)
  console.log(`\n${name}: ${[...counts].map(([what, count]) => `${what} ${count}`).join(", ")}`)
  const { acknowledged, failed, longest, open, refused } = report
  console.log(`  acknowledged ${acknowledged}, refused ${refused}, failed ${failed.length}, open ${open.length}`)
  const around = done
    .map(({ at, name }) => ({ name, seconds: (at - longest.began) / 1000 }))
    .filter(({ seconds }) => seconds > -10 && seconds * 1000 < longest.millis)
    .map(({ name, seconds }) => `${name} at ${seconds.toFixed(1)} s`)
  console.log(`  longest wait ${(longest.millis / 1000).toFixed(1)} s, on ${longest.account}: ${around.join(", ")}`)
  console.log(`  ${zero.map((column) => `${column} ${report[column]}`).join(", ")}`)
  for (const reason of new Set([...failed, ...open])) console.log(`  failed or open: ${reason.slice(0, 300)}`)
}

const program = Effect.gen(function* () {
  console.log(`seed ${seed}, ${seconds} s, ${logKindInWords(logKind())}`)
  const folder = yield* Effect.acquireRelease(
    Effect.promise(() => mkdtemp(join(tmpdir(), "effect-maestro-"))),
    (path) => Effect.promise(() => rm(path, { recursive: true, force: true }))
  )
  const file = join(folder, "runner.mjs")
  const source = fileURLToPath(new URL("runner.ts", import.meta.url))
  yield* Effect.promise(() =>
    bundle(`import { runRunner } from ${JSON.stringify(source)}\nrunRunner(JSON.parse(process.argv[2]))`, file)
  )
  let wrong = 0
  for (const locks of ["rows", "session"] as const) {
    // A server each, so that each run has an empty database.
    const { url } = yield* makeServer()
    const done: Array<Act> = []
    const report = yield* underLoad({
      file,
      url,
      locks,
      leaseMillis: 3000,
      clients: 16,
      runners: 3,
      happening: (crew) => Effect.suspend(() => chaos(crew, performance.now() + seconds * 500, done))
    })
    print(`locks in ${locks === "rows" ? "rows that expire" : "sessions of the database"}`, report, done)
    wrong += zero.reduce((sum, column) => sum + report[column], 0)
  }
  console.log(wrong === 0 ? "\nNothing is wrong." : `\nWrong: ${wrong}. Repeat the choices by SEED=${seed}.`)
  return wrong === 0
}).pipe(Effect.scoped, Effect.withRandom(Random.make(seed)))

// The connections of a client that outlive it would keep the process.
process.exit((await Effect.runPromise(program)) ? 0 : 1)
