/**
 * A process of a cluster whose entity does nothing: no aggregate, no store, no receipt. It shows what the messages of the
 * cluster cost by themselves, over the transport and serialization of `examples/cluster`. It takes the orders of the
 * runners there.
 */
import * as Entity from "@effect/cluster/Entity"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Rpc from "@effect/rpc/Rpc"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Schema from "effect/Schema"
import { serveParent } from "../../examples/cluster/children.js"
import type { Entry, Load } from "../../examples/cluster/load.js"
import { layerDatabase, layerRunner } from "../../examples/cluster/node.js"
import type { Done, Order, RunnerOptions } from "../../examples/cluster/runner.js"

const Bare = Entity.make("Bare", [
  Rpc.make("Deposit", { payload: { amount: Schema.Number }, success: Schema.Struct({ balance: Schema.Number }) })
])

const options: RunnerOptions = JSON.parse(process.argv[2] ?? "{}")

/** A message after the other in each client, to one entity after the other, until the end. */
const sendUntil = ({ accounts, clients }: Load, end: number) =>
  Effect.gen(function* () {
    const clientOf = yield* Bare.client
    const entries: Array<Entry> = []
    const send = (client: number, count: number) =>
      Effect.gen(function* () {
        const account = accounts[(client + count * clients) % accounts.length] ?? "none"
        const began = yield* Clock.currentTimeMillis
        yield* Effect.orDie(clientOf(account).Deposit({ amount: 1 }))
        const millis = (yield* Clock.currentTimeMillis) - began
        entries.push({ command: `${client}-${count}`, hasId: false, outcome: "acknowledged", millis })
      })
    yield* Effect.forEach(
      Array.from({ length: clients }),
      (_, client) =>
        Effect.gen(function* () {
          for (let count = 0; performance.now() < end; count++) yield* send(client, count)
        }),
      { concurrency: "unbounded", discard: true }
    )
    return entries
  })

const answer = ({ load, seconds }: Order) =>
  Effect.gen(function* () {
    const end = performance.now() + seconds * 1000
    const entries = yield* sendUntil(load, end)
    const done: Done = { entries, conflicts: 0, seconds: (performance.now() - end) / 1000 + seconds }
    return done
  })

const layerEntity = Bare.toLayer(
  { Deposit: ({ payload }) => Effect.succeed({ balance: payload.amount }) },
  { concurrency: "unbounded" }
)

const program = Effect.gen(function* () {
  const cluster = yield* Layer.build(
    layerEntity.pipe(
      Layer.provideMerge(layerRunner(options, options.port)),
      Layer.provide(layerDatabase(options.url, `bare-${options.port}`))
    )
  )
  return yield* serveParent((order) => Effect.provide(answer(order as Order), cluster))
}).pipe(Effect.scoped, Logger.withMinimumLogLevel(LogLevel.None))

NodeRuntime.runMain(program)
