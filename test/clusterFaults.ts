/** A cluster in one process whose client loses answers, for the tests of `ClusterAggregate`. */
import * as ClusterError from "@effect/cluster/ClusterError"
import * as EntityAddress from "@effect/cluster/EntityAddress"
import * as EntityId from "@effect/cluster/EntityId"
import * as EntityType from "@effect/cluster/EntityType"
import * as RunnerAddress from "@effect/cluster/RunnerAddress"
import * as ShardId from "@effect/cluster/ShardId"
import { Sharding } from "@effect/cluster/Sharding"
import * as Snowflake from "@effect/cluster/Snowflake"
import * as TestRunner from "@effect/cluster/TestRunner"
import * as Socket from "@effect/platform/Socket"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { MemoryStore, StoreAdapter } from "effect-maestro"
import { Account, Accounts } from "./clusterBank.js"

export const layerRunner = Accounts.layerRunner.pipe(Layer.provide(Account.layer))

/** A cluster whose client has `fault` around each call of a runner. */
export const faulty = (
  fault: (call: Effect.Effect<unknown, unknown>, tag: string) => Effect.Effect<unknown, unknown>,
  layerClient = Accounts.layerClient,
  layerStore: Layer.Layer<StoreAdapter.StoreAdapter> = MemoryStore.layer
) => {
  const layerFaulty = Layer.effect(
    Sharding,
    Effect.map(Sharding, (sharding) => ({
      ...sharding,
      makeClient: (entity) =>
        Effect.map(sharding.makeClient(entity), (clientOf) => (entityId) => {
          // Its messages are functions, which the type of any entity does not say.
          const client = clientOf(entityId) as unknown as Readonly<
            Record<string | symbol, (message: unknown) => Effect.Effect<unknown, unknown>>
          >
          return new Proxy(clientOf(entityId), {
            get: (_, tag) => (message: unknown) =>
              fault(client[tag]?.(message) ?? Effect.dieMessage("no message"), String(tag))
          })
        })
    }))
  )
  return layerClient.pipe(
    Layer.provide(layerFaulty),
    Layer.provideMerge(layerRunner),
    Layer.provide(TestRunner.layer),
    Layer.provideMerge(layerStore)
  )
}

export const address = EntityAddress.make({
  shardId: ShardId.make("default", 1),
  entityType: EntityType.EntityType.make("Aggregate/Account"),
  entityId: EntityId.make("a")
})
export const runner = RunnerAddress.make("localhost", 1)

/** What a client may get although its command took effect. */
export const ambiguous: Readonly<Record<string, Effect.Effect<never, unknown>>> = {
  AlreadyProcessingMessage: new ClusterError.AlreadyProcessingMessage({ address, envelopeId: Snowflake.Snowflake(1n) }),
  MailboxFull: new ClusterError.MailboxFull({ address }),
  PersistenceError: new ClusterError.PersistenceError({ cause: new Error("no database") }),
  RunnerUnavailable: new ClusterError.RunnerUnavailable({ address: runner }),
  RunnerNotRegistered: new ClusterError.RunnerNotRegistered({ address: runner }),
  EntityNotAssignedToRunner: new ClusterError.EntityNotAssignedToRunner({ address }),
  "EntityNotAssignedToRunner as a defect": Effect.die(new ClusterError.EntityNotAssignedToRunner({ address })),
  "a lost connection": Effect.die(new Socket.SocketGenericError({ reason: "Write", cause: new Error("EPIPE") })),
  "an interruption by the runner": Effect.interrupt
}

/** Fails after the first calls, which have taken effect. */
export const losing = (failure: Effect.Effect<never, unknown>, times = 3) => {
  const calls = { count: 0 }
  return {
    calls,
    fault: (call: Effect.Effect<unknown, unknown>) =>
      Effect.flatMap(call, (answer) => {
        calls.count++
        return calls.count <= times ? failure : Effect.succeed(answer)
      })
  }
}

export const eventsOf = (stream: string) =>
  Effect.flatMap(StoreAdapter.StoreAdapter, (store) => store.getEvents(stream, 1))
