/** What a runner keeps of the messages that it has handled. */
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { MemoryStore } from "effect-maestro"
import { makeCluster } from "./cluster.js"
import { Account, Accounts, Deposit, id } from "./clusterBank.js"
import { layerRunner } from "./clusterFaults.js"
import { eventually } from "./subscribers.js"

/** The sets that got an id of the cluster, which is a bigint. */
const setsOfIds = Effect.acquireRelease(
  Effect.sync(() => {
    const { add } = Set.prototype
    const sets: Set<unknown>[] = []
    Set.prototype.add = function (value: unknown) {
      if (typeof value === "bigint" && !sets.includes(this)) sets.push(this)
      return add.call(this, value)
    }
    return { add, sets }
  }),
  ({ add }) =>
    Effect.sync(() => {
      Set.prototype.add = add
    })
)

it.scopedLive("a runner forgets the ids of the messages that it has handled", () =>
  Effect.gen(function* () {
    const { sets } = yield* setsOfIds
    const cluster = yield* makeCluster()
    yield* cluster.startRunner(layerRunner.pipe(Layer.provide(MemoryStore.layer)))
    const client = yield* Layer.build(Accounts.layerClient.pipe(Layer.provide(cluster.layerClient)))
    const deposits = Array.from({ length: 20 }, (_, index) =>
      Account.evaluate(id(`account-${index}`), new Deposit({ amount: 1 }))
    )
    yield* Effect.provide(Effect.all(deposits, { concurrency: "unbounded" }), client)
    expect(sets.length).toBeGreaterThan(0)
    yield* eventually(
      Effect.sync(() => sets.reduce((sum, { size }) => sum + size, 0)),
      (kept) => kept === 0
    )
  })
)
