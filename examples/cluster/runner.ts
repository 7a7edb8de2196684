/**
 * A process of the cluster in `processes.ts`: a runner with the store, and a client. On order of its parent it evaluates
 * commands through the cluster, or by the local layer of the aggregate, as a process without a cluster does.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import { SqlStore, StoreAdapter, StoreError } from "effect-maestro"
import { Account } from "../aggregates/Account.js"
import { Accounts } from "./accounts.js"
import { serveParent } from "./children.js"
import { type Entry, type Load, openAccounts, runLoad } from "./load.js"
import { type ClusterOptions, layerDatabase, layerRunner } from "./node.js"

/** The options of the process. */
export interface RunnerOptions extends ClusterOptions {
  readonly url: string
  readonly port: number
}

/** What the parent asks for: commands for so many seconds. */
export interface Order {
  readonly load: Load
  readonly through: "the cluster" | "the local layer"
  readonly seconds: number
  /** Opens the accounts before. */
  readonly opens?: boolean
}

/** What it answers. */
export interface Done {
  readonly entries: ReadonlyArray<Entry>
  /** How many commits of the process came after another one on the same aggregate. */
  readonly conflicts: number
  readonly seconds: number
}

const options: RunnerOptions = JSON.parse(process.argv[2] ?? "{}")

let conflicts = 0

/** The store, which counts the commits that came after another one on the same aggregate. */
const layerStore = Layer.effect(
  StoreAdapter.StoreAdapter,
  Effect.map(StoreAdapter.StoreAdapter, (store) => ({
    ...store,
    commitAll: (events, projections) =>
      Effect.tapError(store.commitAll(events, projections), (error) =>
        Effect.sync(() => {
          if (error instanceof StoreError.RetryCommand) conflicts++
        })
      )
  }))
).pipe(Layer.provide(SqlStore.layer))

const program = Effect.gen(function* () {
  const database = yield* Layer.build(layerDatabase(options.url, `runner-${options.port}`))
  const local = yield* Effect.provide(Layer.build(Layer.provide(Account.layer, layerStore)), database)
  const cluster = yield* Effect.provide(Layer.build(layerRunner(options, options.port)), database)
  yield* Effect.provide(Layer.build(Accounts.layerRunner), Context.merge(local, cluster))
  const clustered = yield* Effect.provide(Layer.build(Accounts.layerClient), cluster)
  const answer = ({ load, opens, seconds, through }: Order) =>
    Effect.gen(function* () {
      const layer = through === "the cluster" ? clustered : local
      if (opens === true) yield* Effect.orDie(Effect.provide(openAccounts(load.accounts), layer))
      const [before, end] = [conflicts, performance.now() + seconds * 1000]
      const entries = yield* Effect.provide(
        runLoad(load, () => performance.now() > end),
        layer
      )
      const result: Done = {
        entries,
        conflicts: conflicts - before,
        seconds: (performance.now() - end) / 1000 + seconds
      }
      return result
    })
  return yield* serveParent((order) => answer(order as Order))
}).pipe(Effect.scoped, Logger.withMinimumLogLevel(LogLevel.None))

NodeRuntime.runMain(program)
