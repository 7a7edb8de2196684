/** A client of a new release, and a runner of an old one that does not know what the client sends, as in a rolling deployment. */
import * as Entity from "@effect/cluster/Entity"
import * as Rpc from "@effect/rpc/Rpc"
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Aggregate, MemoryStore } from "effect-maestro"
import * as ClusterAggregate from "effect-maestro/ClusterAggregate"
import { makeCluster } from "./cluster.js"

class Added extends Schema.TaggedClass<Added>()("Added", { by: Schema.Number }) {}
class Add extends Schema.TaggedClass<Add>()("Add", { by: Schema.Number }) {}
class Reset extends Schema.TaggedClass<Reset>()("Reset", {}) {}

const definition = {
  state: Schema.Number,
  initialState: 0,
  events: Added,
  refusals: {},
  evolve: { Added: (sum: number, { by }: Added) => sum + by }
}
const add = ({ by }: Add) => Effect.succeed([new Added({ by })])
const Old = Aggregate.make("Sum", { ...definition, commands: Add, decide: { Add: add } })
const New = Aggregate.make("Sum", {
  ...definition,
  commands: Schema.Union(Add, Reset),
  decide: { Add: add, Reset: (_, { state }) => Effect.succeed([new Added({ by: -state })]) }
})

/** The runner of a release that had one message. */
const Oldest = Entity.make("Aggregate/Sum", [
  Rpc.make("exists", { payload: Schema.Struct({ id: Schema.String }), success: Schema.Boolean })
])

const isUnknownMessage = (failure: { readonly message: string }, operation: string) => {
  expect(failure).toMatchObject({
    _tag: "StoreError",
    reason: "ClusterUnavailable",
    operation: `Sum.${operation}`,
    aggregateId: "Sum/a"
  })
  expect(failure.message).toContain("the runner does not know the message: it may be of an older release")
}

for (const serialization of ["msgpack", "ndjson"] as const) {
  it.scopedLive(`with ${serialization} a command that the runner does not know is a typed failure`, () =>
    Effect.gen(function* () {
      const cluster = yield* makeCluster(serialization)
      yield* cluster.startRunner(
        ClusterAggregate.make(Old).layerRunner.pipe(Layer.provide(Old.layer), Layer.provide(MemoryStore.layer))
      )
      yield* Effect.gen(function* () {
        expect(yield* New.evaluate("a", new Add({ by: 1 }))).toMatchObject({ state: 1 })
        isUnknownMessage(yield* Effect.flip(New.evaluate("a", new Reset())), "evaluate")
        isUnknownMessage(yield* Effect.flip(New.evaluate("a", new Reset(), { reply: "position" })), "evaluate")
        expect(yield* New.evaluate("a", new Add({ by: 1 }))).toMatchObject({ state: 2, sequence: 2 })
      }).pipe(Effect.provide(ClusterAggregate.make(New).layerClient.pipe(Layer.provide(cluster.layerClient))))
    })
  )

  it.scopedLive(`with ${serialization} a read that the runner does not know is a typed failure`, () =>
    Effect.gen(function* () {
      const cluster = yield* makeCluster(serialization)
      yield* cluster.startRunner(Oldest.toLayer({ exists: () => Effect.succeed(true) }))
      yield* Effect.gen(function* () {
        expect(yield* New.exists("a")).toBe(true)
        isUnknownMessage(yield* Effect.flip(New.get("a")), "get")
        isUnknownMessage(yield* Effect.flip(New.fetch("a")), "fetch")
        isUnknownMessage(yield* Effect.flip(New.root("a")), "root")
        isUnknownMessage(yield* Effect.flip(New.replay("a", 0)), "replay")
        isUnknownMessage(yield* Effect.flip(New.snapshot("a")), "snapshot")
        isUnknownMessage(yield* Effect.flip(Stream.runCollect(New.history("a"))), "history")
        expect(yield* New.exists("a")).toBe(true)
      }).pipe(Effect.provide(ClusterAggregate.make(New).layerClient.pipe(Layer.provide(cluster.layerClient))))
    })
  )
}
