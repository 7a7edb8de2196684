/**
 * The account of the guide on aggregates in a cluster: a runner that evaluates its commands, and a client that sends them
 * over a socket. Both are in this process, so that the program can replace the runner while commands are under way.
 *
 * Run it by `npx tsx examples/cluster/main.ts`. It uses the store in memory.
 */
import * as MessageStorage from "@effect/cluster/MessageStorage"
import * as RunnerAddress from "@effect/cluster/RunnerAddress"
import * as RunnerStorage from "@effect/cluster/RunnerStorage"
import * as ShardingConfig from "@effect/cluster/ShardingConfig"
import * as NodeClusterSocket from "@effect/platform-node/NodeClusterSocket"
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Clock from "effect/Clock"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import { Aggregate, MemoryStore } from "effect-maestro"
import * as ClusterAggregate from "effect-maestro/ClusterAggregate"
import { Account, Deposit, Open, Withdraw } from "../aggregates/Account.js"

const Accounts = ClusterAggregate.make(Account, { timeout: "10 seconds" })

/** Each run has a port of its own. */
const address = RunnerAddress.make("localhost", 20_000 + (process.pid % 20_000))

const shardingConfig = { shardsPerGroup: 10, refreshAssignmentsInterval: 200 }

/** A process of the cluster that evaluates commands: it has the store. */
const layerRunner = Accounts.layerRunner.pipe(
  Layer.provide(Account.layer),
  Layer.provide(
    NodeClusterSocket.layer({
      storage: "byo",
      shardingConfig: { ...shardingConfig, runnerAddress: Option.some(address) }
    })
  )
)

/** A process that sends commands: it has no store. `Account.layer` in its place evaluates them here. */
const layerAccounts = Accounts.layerClient.pipe(
  Layer.provide(
    NodeClusterSocket.layer({
      storage: "byo",
      clientOnly: true,
      shardingConfig: { ...shardingConfig, runnerAddress: Option.none() }
    })
  )
)

/** What the processes of a cluster share. Over several processes it is `SqlRunnerStorage.layer`. */
const layerShared = Layer.mergeAll(RunnerStorage.layerMemory, MessageStorage.layerMemory, MemoryStore.layer).pipe(
  Layer.provide(ShardingConfig.layer(shardingConfig))
)

const commands = Effect.gen(function* () {
  yield* Console.log("Commands")
  yield* Account.evaluate("ann", new Open({ owner: "Ann" }))
  const { sequence, state } = yield* Account.evaluate("ann", new Deposit({ amount: 100 }))
  yield* Console.log(`  the account of ${state.owner} has ${state.balance} at sequence ${sequence}`)
  const refused = yield* Account.evaluate("ann", new Withdraw({ amount: 300 })).pipe(
    Effect.catchTag("InsufficientFunds", ({ balance }) => Effect.succeed(`refused: the balance is ${balance}`))
  )
  yield* Console.log(`  ${refused}`)
  const once = Account.evaluate("ann", new Deposit({ amount: 5 })).pipe(Aggregate.withCommandId("request-7"))
  yield* Console.log(`  duplicate: ${(yield* once).duplicate}, and then: ${(yield* once).duplicate}`)
})

/** Evaluates commands one after the other, and returns the longest time that one took. */
const load = (id: string) =>
  Effect.gen(function* () {
    yield* Account.evaluate(id, new Open({ owner: id }))
    let longest = 0
    for (let count = 0; count < 100; count++) {
      const began = yield* Clock.currentTimeMillis
      // Nothing here looks at the state, so the runner does not send it.
      yield* Account.evaluate(id, new Deposit({ amount: 1 }), { reply: "position" })
      longest = Math.max(longest, (yield* Clock.currentTimeMillis) - began)
      yield* Effect.sleep("2 millis")
    }
    return longest
  })

const accounts = Array.from({ length: 4 }, (_, index) => `account-${index}`)

const replaced = (replace: Effect.Effect<void>) =>
  Effect.gen(function* () {
    yield* Console.log("A runner is replaced while 400 commands are under way")
    const fiber = yield* Effect.fork(Effect.forEach(accounts, load, { concurrency: "unbounded" }))
    yield* Effect.sleep("300 millis")
    yield* replace
    const longest = yield* Fiber.join(fiber)
    const roots = yield* Effect.forEach(accounts, Account.root)
    yield* Console.log(`  events of each account: ${roots.map(({ sequence }) => sequence).join(", ")}`)
    yield* Console.log(`  longest wait: ${Math.max(...longest)} ms`)
  })

const refusals = Effect.gen(function* () {
  yield* Console.log("What is no part of a transaction")
  const error = yield* Effect.flip(Aggregate.evaluateAll([Account.command("ann", new Deposit({ amount: 1 }))]))
  yield* Console.log(`  ${error._tag}: ${error.message}`)
})

const program = Effect.gen(function* () {
  // Each runner has a scope of its own.
  const shared = yield* Layer.build(layerShared)
  const start = Effect.flatMap(Scope.make(), (scope) =>
    Layer.buildWithScope(layerRunner, scope).pipe(Effect.provide(shared), Effect.as(Scope.close(scope, Exit.void)))
  )
  let stop = yield* start
  const replace = Effect.orDie(
    Effect.gen(function* () {
      yield* stop
      stop = yield* start
    })
  )
  yield* Effect.zipRight(commands, Effect.zipRight(replaced(replace), refusals)).pipe(
    Effect.provide(layerAccounts),
    Effect.provide(shared)
  )
  yield* stop
}).pipe(Effect.scoped, Logger.withMinimumLogLevel(LogLevel.None))

NodeRuntime.runMain(program)
