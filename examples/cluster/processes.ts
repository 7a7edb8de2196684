/**
 * Three processes of a cluster, a client, and a Postgres server: commands on spread and on hot aggregates, with one
 * process killed and one stopped while they run. Every command is held against the log at the end.
 *
 * Run it by `npm run cluster`, in a clone of the repository. It takes a minute, and ends with code 1 if a command is lost
 * or took effect twice.
 */
import { fileURLToPath } from "node:url"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Console from "effect/Console"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import { SqlStore } from "effect-maestro"
import { Accounts } from "./accounts.js"
import { check } from "./check.js"
import { type Child, startChild } from "./children.js"
import { freePort } from "./freePort.js"
import { type Entry, type Load, openAccounts, runLoad } from "./load.js"
import { type ClusterOptions, layerClientOnly, layerDatabase } from "./node.js"
import { startPostgres } from "./postgres.js"
import type { Done, Order, RunnerOptions } from "./runner.js"

const options: ClusterOptions = { locks: "rows", leaseMillis: 5000 }

const spread = Array.from({ length: 200 }, (_, index) => `spread-${index}`)
const hot = Array.from({ length: 4 }, (_, index) => `hot-${index}`)

/** What happened while commands were evaluated. */
interface Phase {
  readonly name: string
  readonly entries: ReadonlyArray<Entry>
  readonly seconds: number
  readonly conflicts?: number
}

/** Commands of all processes at the same time, each with clients of its own. */
const ofProcesses = (
  name: string,
  runners: ReadonlyArray<Child>,
  { accounts, through }: { readonly accounts: Load["accounts"]; readonly through: Order["through"] }
) =>
  Effect.gen(function* () {
    const done = yield* Effect.forEach(
      runners,
      (runner, index) => {
        const load: Load = { prefix: `${name} ${index}`, accounts, clients: 8, withIds: false }
        const order: Order = { load, through, seconds: 4 }
        return Effect.map(runner.ask(order), (answer) => answer as Done)
      },
      { concurrency: "unbounded" }
    )
    const phase: Phase = {
      name,
      entries: done.flatMap(({ entries }) => entries),
      seconds: Math.max(...done.map(({ seconds }) => seconds)),
      conflicts: done.reduce((sum, { conflicts }) => sum + conflicts, 0)
    }
    return phase
  })

/** Commands of the client in this process, while something happens to the runners. */
const ofClient = <E, R>(name: string, happening: Effect.Effect<void, E, R>) =>
  Effect.gen(function* () {
    let isOver = false
    const began = performance.now()
    const load: Load = { prefix: name, accounts: [...spread, ...hot, ...hot], clients: 16, withIds: true }
    const fiber = yield* Effect.fork(runLoad(load, () => isOver))
    yield* Effect.sleep("2 seconds")
    yield* happening
    isOver = true
    const phase: Phase = { name, entries: yield* Fiber.join(fiber), seconds: (performance.now() - began) / 1000 }
    return phase
  })

const titles = ["acknowledged", "refused", "gave up", "unknown", "lost", "doubled", "longest pause", "conflicts/s"]

const row = (name: string, cells: ReadonlyArray<string>) =>
  `${name.padEnd(42)}${cells.map((cell, index) => cell.padStart((titles[index]?.length ?? 0) + 2)).join("")}`

const report = (phase: Phase) =>
  Effect.gen(function* () {
    const { conflicts, entries, name, seconds } = phase
    const verdict = yield* check(entries)
    const count = (outcome: Entry["outcome"]) => String(entries.filter((entry) => entry.outcome === outcome).length)
    const longest = entries.reduce((most, { millis }) => Math.max(most, millis), 0)
    yield* Console.log(
      row(name, [
        count("acknowledged"),
        count("refused"),
        count("gave up"),
        count("unknown"),
        String(verdict.lost),
        String(verdict.doubled),
        `${(longest / 1000).toFixed(1)} s`,
        conflicts === undefined ? "" : (conflicts / seconds).toFixed(0)
      ])
    )
    return verdict
  })

const startRunner = (url: string) =>
  Effect.gen(function* () {
    const port = yield* Effect.promise(freePort)
    const order: RunnerOptions = { ...options, url, port }
    return yield* startChild(fileURLToPath(new URL("runner.ts", import.meta.url)), order)
  })

const phases = (url: string) =>
  Effect.gen(function* () {
    const runners = yield* Effect.all([startRunner(url), startRunner(url), startRunner(url)], {
      concurrency: "unbounded"
    })
    const [, second, third] = runners
    yield* openAccounts([...spread, ...hot])
    yield* Console.log(row("", titles))
    const killed = Effect.gen(function* () {
      yield* second.signal("SIGKILL")
      yield* startRunner(url)
      yield* Effect.sleep("8 seconds")
    })
    const stopped = Effect.gen(function* () {
      yield* third.signal("SIGSTOP")
      yield* Effect.sleep("12 seconds")
      yield* third.signal("SIGCONT")
      yield* Effect.sleep("2 seconds")
    })
    return yield* Effect.forEach(
      [
        ofProcesses("spread aggregates", runners, { accounts: spread, through: "the cluster" }),
        ofProcesses("four hot aggregates", runners, { accounts: hot, through: "the cluster" }),
        ofProcesses("four hot aggregates, without the cluster", runners, { accounts: hot, through: "the local layer" }),
        ofClient("a runner gets SIGKILL", killed),
        ofClient("a runner gets SIGSTOP for 12 seconds", stopped)
      ],
      (phase) => Effect.flatMap(phase, report)
    )
  })

const program = Effect.gen(function* () {
  const url = yield* startPostgres
  const database = yield* Layer.build(layerDatabase(url, "client"))
  yield* Effect.provide(SqlStore.migrate(), database)
  const client = yield* Effect.provide(
    Layer.build(Layer.provide(Accounts.layerClient, layerClientOnly(options))),
    database
  )
  const verdicts = yield* Effect.provide(phases(url), Context.merge(database, client))
  const wrong = verdicts.reduce((sum, { doubled, lost }) => sum + doubled + lost, 0)
  if (wrong > 0) return yield* Effect.fail(`${wrong} commands are lost or doubled`)
}).pipe(
  Effect.scoped,
  Effect.tapErrorCause((cause) => Console.error(String(cause))),
  Logger.withMinimumLogLevel(LogLevel.None)
)

NodeRuntime.runMain(program, {
  disableErrorReporting: true,
  // Where the first calls are concurrent, a client makes more connections to a runner than it closes at its end.
  teardown: (exit) => process.exit(Exit.isSuccess(exit) ? 0 : 1)
})
