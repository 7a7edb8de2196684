/** A runner of the cluster under faults, in a process of its own. It ends with its parent. */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import { SqlStore } from "effect-maestro"
import { serveParent } from "../../examples/cluster/children.js"
import { layerDatabase, layerRunner } from "../../examples/cluster/node.js"
import type { RunnerOptions } from "../../examples/cluster/runner.js"
import { Wallet, Wallets } from "./domain.js"

export const runRunner = (options: RunnerOptions) =>
  Effect.gen(function* () {
    const database = yield* Layer.build(layerDatabase(options.url, `runner-${options.port}`))
    const local = yield* Effect.provide(Layer.build(Layer.provide(Wallet.layer, SqlStore.layer)), database)
    const cluster = yield* Effect.provide(Layer.build(layerRunner(options, options.port)), database)
    yield* Effect.provide(Layer.build(Wallets.layerRunner), Context.merge(local, cluster))
    return yield* serveParent(() => Effect.succeed({}))
  }).pipe(Effect.scoped, Logger.withMinimumLogLevel(LogLevel.None), NodeRuntime.runMain)
