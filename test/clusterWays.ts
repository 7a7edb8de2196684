/** The ways to evaluate commands of `clusterBank.ts`: on the local layer, and on runners. The store is that of the runners. */
import * as TestRunner from "@effect/cluster/TestRunner"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { MemoryStore, StoreAdapter } from "effect-maestro"
import { makeCluster } from "./cluster.js"
import { Account, Accounts } from "./clusterBank.js"

const { layer: memory } = MemoryStore

const behindSocket = (serialization: "msgpack" | "ndjson") =>
  Layer.unwrapScoped(
    Effect.gen(function* () {
      const store = yield* StoreAdapter.StoreAdapter
      const cluster = yield* makeCluster(serialization)
      yield* cluster.startRunner(
        Accounts.layerRunner.pipe(
          Layer.provide(Account.layer),
          Layer.provide(Layer.succeed(StoreAdapter.StoreAdapter, store))
        )
      )
      return Accounts.layerClient.pipe(Layer.provide(cluster.layerClient))
    })
  ).pipe(Layer.provideMerge(memory))

export const ways = {
  "the local layer": Account.layer.pipe(Layer.provideMerge(memory)),
  "a runner of the same process": Accounts.layerClient.pipe(
    Layer.provideMerge(Accounts.layerRunner.pipe(Layer.provide(Account.layer))),
    Layer.provide(TestRunner.layer),
    Layer.provideMerge(memory)
  ),
  "a runner behind a socket": behindSocket("msgpack"),
  "a runner behind a socket, with JSON": behindSocket("ndjson")
}

export type Services = Layer.Layer.Success<(typeof ways)["the local layer"]>

export const storedOf = (stream: string) =>
  Effect.flatMap(StoreAdapter.StoreAdapter, (store) => store.getEvents(stream, 1))
