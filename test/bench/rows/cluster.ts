/**
 * Commands in a cluster of three processes, on spread and on hot aggregates, and the longest wait after one of them was
 * killed. The processes are those of `examples/cluster`, and each has clients of its own.
 */
import { randomUUID } from "node:crypto"
import { mkdtemp, readFile, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { basename, dirname, join } from "node:path"
import { setTimeout } from "node:timers/promises"
import { fileURLToPath } from "node:url"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import type { Aggregate } from "effect-maestro"
import { Accounts } from "../../../examples/cluster/accounts.js"
import { type Child, startChild } from "../../../examples/cluster/children.js"
import { freePort } from "../../../examples/cluster/freePort.js"
import { runLoad } from "../../../examples/cluster/load.js"
import { layerClientOnly, layerDatabase } from "../../../examples/cluster/node.js"
import type { Done, Order, RunnerOptions } from "../../../examples/cluster/runner.js"
import { bundle } from "../../bundle.js"
import { makeLine } from "../lines.js"
import { type Contestant, compete, type Measured, type Round } from "../measure.js"
import { makeDatabase, type Ours, openOurs } from "../stage.js"
import type { Row } from "./row.js"

export const cluster: Row = {
  name: "cluster",
  run: async (stage, emit) => {
    const folder = await mkdtemp(join(tmpdir(), "effect-maestro-"))
    const scope = await Effect.runPromise(Scope.make())
    try {
      const start = async (program: Promise<string>, url: string): Promise<Child> => {
        const order: RunnerOptions = { ...options, url, port: await freePort() }
        return Effect.runPromise(Effect.provideService(startChild(await program, order), Scope.Scope, scope))
      }
      const runner = bundled(folder, new URL("../../../examples/cluster/runner.ts", import.meta.url))
      const bare = bundled(folder, new URL("../bareEntity.ts", import.meta.url))
      const [one, three, none] = [
        await makeDatabase(stage, "cluster_one"),
        await makeDatabase(stage, "cluster_three"),
        await makeDatabase(stage, "cluster_bare")
      ]
      await Promise.all([one.pool.end(), three.pool.end(), none.pool.end()])
      // A process of a cluster of its own, whose clients use the local layer.
      const alone = [await start(runner, one.url)]
      const runners = [await start(runner, three.url), await start(runner, three.url), await start(runner, three.url)]
      const floor = [await start(bare, none.url), await start(bare, none.url), await start(bare, none.url)]
      const client = await openOurs(
        Accounts.layerClient.pipe(
          Layer.provide(layerClientOnly(options)),
          Layer.provide(layerDatabase(three.url, "client"))
        )
      )
      await throughput({ alone, runners, floor }, stage.effort, emit)
      const kill = async (killed: Child) => {
        await Effect.runPromise(killed.signal("SIGKILL"))
        await start(runner, three.url)
      }
      await afterKill(client.run, runners.slice(0, Math.min(stage.effort.rounds, 3)), kill, emit)
      await client.close()
    } finally {
      await Effect.runPromise(Scope.close(scope, Exit.void))
      await rm(folder, { recursive: true, force: true })
    }
  }
}

// --- internal ---

type Emit = Parameters<Row["run"]>[1]

const options = { locks: "rows", leaseMillis: 5000 } as const

const spread = Array.from({ length: 400 }, (_, index) => `spread-${index}`)
const hot = Array.from({ length: 4 }, (_, index) => `hot-${index}`)

/** Bundles a program of a process into the folder, and returns its file. */
const bundled = async (folder: string, program: URL): Promise<string> => {
  const source = fileURLToPath(program)
  const file = join(folder, `${basename(source, ".ts")}.mjs`)
  await bundle(await readFile(source, "utf8"), file, {
    folder: dirname(source),
    tsconfig: ".config/tsconfig.bench.json"
  })
  return file
}

/** All clients together, in one process or in three. */
const clients = 48

/** One turn: all processes have clients at work at the same time. */
const turn = async (
  processes: ReadonlyArray<Child>,
  accounts: ReadonlyArray<string>,
  through: Order["through"],
  seconds: number,
  opens = false
): Promise<Round> => {
  const done = await Promise.all(
    processes.map(async (process): Promise<Done> => {
      const load = { prefix: randomUUID(), accounts, clients: clients / processes.length, withIds: false }
      const order: Order = { load, through, seconds, opens }
      return (await Effect.runPromise(process.ask(order))) as Done
    })
  )
  const entries = done.flatMap((one) => one.entries)
  const decided = entries.filter(({ outcome }) => outcome === "acknowledged" || outcome === "refused")
  return {
    rate: decided.length / Math.max(...done.map((one) => one.seconds)),
    latencies: decided.map(({ millis }) => millis),
    failures: entries.length - decided.length
  }
}

interface Processes {
  readonly alone: ReadonlyArray<Child>
  readonly runners: ReadonlyArray<Child>
  /** Their entity does nothing. */
  readonly floor: ReadonlyArray<Child>
}

/** V8 compiles the code of a cluster for about ten seconds: the processor time of a command falls to a half or a third. */
const warmUpSeconds = 10

/** Opens the accounts, and lets V8 compile the code of each process. */
const warmUp = async ({ alone, floor, runners }: Processes): Promise<void> => {
  const accounts = [...spread, ...hot]
  await turn(alone, accounts, "the local layer", 1, true)
  await turn(runners.slice(0, 1), accounts, "the cluster", 1, true)
  await turn(alone, accounts, "the local layer", warmUpSeconds)
  await turn(runners, accounts, "the cluster", warmUpSeconds)
  await turn(floor, accounts, "the cluster", warmUpSeconds)
}

const throughput = async (
  processes: Processes,
  effort: { readonly rounds: number; readonly seconds: number },
  emit: Emit
): Promise<void> => {
  const { alone, floor, runners } = processes
  const contestant = <Name extends string>(
    name: Name,
    processes: ReadonlyArray<Child>,
    accounts: ReadonlyArray<string>,
    through: Order["through"]
  ): Contestant<Name> => ({ name, round: (_, seconds) => turn(processes, accounts, through, seconds) })
  await warmUp(processes)
  const onSpread = await compete(
    [
      contestant("three", runners, spread, "the cluster"),
      contestant("others", alone, spread, "the local layer"),
      contestant("floor", floor, spread, "the cluster")
    ],
    clients,
    effort
  )
  emitRatio(emit, "cluster/spread", "command in a cluster of three, spread aggregates", onSpread, "one process")
  const onHot = await compete(
    [
      contestant("three", runners, hot, "the cluster"),
      contestant("others", runners, hot, "the local layer"),
      contestant("floor", floor, hot, "the cluster")
    ],
    clients,
    effort
  )
  emitRatio(emit, "cluster/hot", "command in a cluster of three, four hot aggregates", onHot, "without it")
}

/** Our figure beside the messages of a bare entity, with its ratio to the figure of the others. */
const emitRatio = (
  emit: Emit,
  id: string,
  work: string,
  { floor, others, three }: Partial<Record<"floor" | "others" | "three", Measured>>,
  than: string
): void => {
  if (three === undefined || others === undefined || floor === undefined) return
  const measured = { ours: three, floor }
  emit(makeLine({ id, work, clients, unit: "per second", measured }, { [than]: three.median / others.median }))
}

/** The longest time that a command took, from a second before a runner is killed to ten seconds after. */
const afterKill = async (
  run: Ours<Aggregate.Instance<"Account">>["run"],
  runners: ReadonlyArray<Child>,
  kill: (runner: Child) => Promise<void>,
  emit: Emit
): Promise<void> => {
  const longest: Array<number> = []
  let failures = 0
  for (const runner of runners) {
    let isOver = false
    const load = { prefix: randomUUID(), accounts: [...spread, ...hot, ...hot], clients: 16, withIds: true }
    const entries = run(runLoad(load, () => isOver))
    await setTimeout(1000)
    await kill(runner)
    await setTimeout(10_000)
    isOver = true
    const done = await entries
    longest.push(Math.max(...done.map(({ millis }) => millis)))
    failures += done.filter(({ outcome }) => outcome === "unknown" || outcome === "gave up").length
  }
  const ours: Measured = { median: Math.max(...longest), rounds: longest, failures }
  emit(
    makeLine({
      id: "cluster/kill",
      work: "longest wait after SIGKILL of a runner",
      clients: 16,
      unit: "ms",
      measured: { ours }
    })
  )
}
