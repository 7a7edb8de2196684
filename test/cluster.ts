/** Runners and clients of a cluster in one process, over sockets, for the tests of `ClusterAggregate`. */
import * as MachineId from "@effect/cluster/MachineId"
import * as MessageStorage from "@effect/cluster/MessageStorage"
import type * as Runner from "@effect/cluster/Runner"
import * as RunnerAddress from "@effect/cluster/RunnerAddress"
import * as RunnerStorage from "@effect/cluster/RunnerStorage"
import type { Sharding } from "@effect/cluster/Sharding"
import * as ShardingConfig from "@effect/cluster/ShardingConfig"
import * as NodeClusterSocket from "@effect/platform-node/NodeClusterSocket"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import { freePort } from "../examples/cluster/freePort.js"

/** The runners of a cluster, and the locks of their shards. The one in memory of the cluster has room for one runner. */
export const makeRunnerStorage = Effect.sync(() => {
  const runners = new Map<string, { readonly runner: Runner.Runner; isHealthy: boolean }>()
  const owners = new Map<string, string>()
  let machines = 0
  const key = (address: RunnerAddress.RunnerAddress) => `${address.host}:${address.port}`
  return RunnerStorage.RunnerStorage.of({
    getRunners: Effect.sync(() => [...runners.values()].map(({ isHealthy, runner }) => [runner, isHealthy] as const)),
    register: (runner, isHealthy) =>
      Effect.sync(() => {
        runners.set(key(runner.address), { runner, isHealthy })
        machines++
        return MachineId.make(machines)
      }),
    unregister: (address) => Effect.sync(() => runners.delete(key(address))),
    setRunnerHealth: (address, isHealthy) =>
      Effect.sync(() => {
        const known = runners.get(key(address))
        if (known !== undefined) known.isHealthy = isHealthy
      }),
    acquire: (address, shards) =>
      Effect.sync(() =>
        [...shards].filter((shard) => {
          const owner = owners.get(String(shard)) ?? key(address)
          owners.set(String(shard), owner)
          return owner === key(address)
        })
      ),
    refresh: (address, shards) =>
      Effect.sync(() => [...shards].filter((shard) => owners.get(String(shard)) === key(address))),
    release: (address, shard) =>
      Effect.sync(() => {
        if (owners.get(String(shard)) === key(address)) owners.delete(String(shard))
      }),
    releaseAll: (address) =>
      Effect.sync(() => {
        for (const [shard, owner] of owners) if (owner === key(address)) owners.delete(shard)
      })
  })
})

/** A cluster without runners. */
export const makeCluster = (serialization: "msgpack" | "ndjson" = "msgpack") =>
  Effect.map(makeRunnerStorage, (storage) => {
    const config = {
      shardsPerGroup: 8,
      refreshAssignmentsInterval: 50,
      entityMessagePollInterval: 100,
      sendRetryInterval: 20,
      entityTerminationTimeout: 500
    }
    const backend = Layer.merge(
      Layer.succeed(RunnerStorage.RunnerStorage, storage),
      Layer.provide(MessageStorage.layerMemory, ShardingConfig.layer(config))
    )
    return {
      storage,
      /** Starts a runner, with the layers of its entities above the cluster. It ends with the scope, or by `stop`. */
      startRunner: <E>(layer: Layer.Layer<never, E, Sharding>) =>
        Effect.gen(function* () {
          const port = yield* Effect.promise(freePort)
          const scope = yield* Scope.fork(yield* Effect.scope, { _tag: "Sequential" })
          const address = RunnerAddress.make("localhost", port)
          const cluster = NodeClusterSocket.layer({
            storage: "byo",
            serialization,
            shardingConfig: { ...config, runnerAddress: Option.some(address) }
          })
          yield* Layer.buildWithScope(layer.pipe(Layer.provide(cluster), Layer.provide(backend), silent), scope)
          return { address, stop: Scope.close(scope, Exit.void) }
        }),
      /** What a client is connected to. */
      layerClient: NodeClusterSocket.layer({
        storage: "byo",
        serialization,
        clientOnly: true,
        shardingConfig: { ...config, runnerAddress: Option.none() }
      }).pipe(Layer.provide(backend), silent)
    }
  })

/** The cluster logs its start, and each runner that ends. */
export const silent = Layer.provide(Logger.minimumLogLevel(LogLevel.None))
