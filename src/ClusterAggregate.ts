/**
 * Evaluates the commands of an aggregate on the runners of a cluster (`@effect/cluster`), each aggregate on one of them.
 *
 * The cluster places an aggregate, and guarantees nothing: the sequence check of the store stays the only guard. Two
 * runners that evaluate commands on one aggregate concurrently are as slow as two processes without a cluster, and as safe.
 *
 * | part | where |
 * |---|---|
 * | `layerRunner` | on each runner, above the layer of the aggregate |
 * | `layerClient` | wherever commands are evaluated, in place of the layer of the aggregate |
 * | `entity` | for own clients: a message for each command, and one for each read |
 *
 * It needs the packages `@effect/cluster`, `@effect/rpc` and `@effect/workflow`.
 *
 * @since 0.1.0
 */
import type * as Entity from "@effect/cluster/Entity"
import type { Sharding } from "@effect/cluster/Sharding"
import * as Layer from "effect/Layer"
import type { Instance } from "./Aggregate.js"
import type { Declaring } from "./internal/aggregate/declaring.js"
import { partsOfAggregate } from "./internal/aggregate/parts.js"
import { callLimits } from "./internal/cluster/call.js"
import { makeClientService } from "./internal/cluster/client.js"
import { makeEntity } from "./internal/cluster/entity.js"
import { makeRunnerLayer, type Operations } from "./internal/cluster/runner.js"
import type { CallOptions, ClusterSource, CommandRpc, ReadRpc } from "./internal/cluster/types.js"
import type { Tagged } from "./internal/codec/eventCodec.js"

export type {
  /**
   * The options of `make`.
   *
   * @since 0.1.0
   * @category models
   */
  CallOptions as Options
} from "./internal/cluster/types.js"

/**
 * An aggregate in a cluster.
 *
 * @since 0.1.0
 * @category models
 */
export interface ClusterAggregate<Name extends string, State, A, C extends Tagged, Declared> {
  /**
   * The entity of the aggregate, with a message for each command, named by its tag, and one for each read. No message is
   * persisted by the cluster: the receipt of a command makes it safe to send the command again. The answer to a command has
   * `state` and `events`, or neither where the message has `reply: "position"`.
   */
  readonly entity: Entity.Entity<`Aggregate/${Name}`, CommandRpc<C["_tag"], State, A, C, Declared> | ReadRpc<State, A>>
  /**
   * Registers the entity on a runner. It needs the layer of the aggregate, and `Sharding`. The entity of an aggregate ends
   * when it was idle for the `idleTimeToLive` of the cache, or when its shard moves. Its cached state is dropped then.
   */
  readonly layerRunner: Layer.Layer<never, never, Instance<Name> | Sharding>
  /**
   * Provides the service of the aggregate, as its own layer does. Commands and reads are sent to the runners, so
   * application code does not change.
   */
  readonly layerClient: Layer.Layer<Instance<Name>, never, Sharding>
}

/**
 * Makes the entity of an aggregate, and the layers of its runners and clients.
 *
 * Refusals must be declared (the option `refusals` of `Aggregate.make`), because their schemas encode them. State, events
 * and commands are encoded by the schemas of the aggregate, into JSON or what the serialization of the cluster takes. State
 * and events of a result are not encoded where the caller gives `reply: "position"`.
 *
 * - A result and a failure are those of the local layer. `Aggregate.Metadata`, `withCommandId`, `withExpectedSequence`,
 *   `withCorrelationId`, the cause of a command and its span go with it. Other references of a caller stay behind.
 * - A call that no runner has answered is sent again, and takes effect once: each call has an id, and each command stores
 *   a receipt of it. The result is that of the first time. After the `timeout` the failure is a `StoreError` of the
 *   reason `ClusterUnavailable`.
 * - A command can't be part of a transaction: inside one of the caller, in a projection, and in `evaluateAll` it fails
 *   with a `ValidationError`.
 * - An interruption of the caller interrupts the call. As with the local layer, the command may have taken effect.
 *
 * The name of the aggregate has at most 40 characters, and the tag of a command at most 50. No command has the tag
 * `exists`, `get`, `fetch`, `root`, `replay`, `snapshot` or `history`, or of a property of every
 * object, such as `constructor`. Otherwise it throws a `TypeError`.
 *
 * @since 0.1.0
 * @category constructors
 *
 * @example
 * ```ts
 * import { TestRunner } from "@effect/cluster"
 * import { Aggregate, MemoryStore } from "effect-maestro"
 * import * as ClusterAggregate from "effect-maestro/ClusterAggregate"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 * import * as Schema from "effect/Schema"
 *
 * class Increased extends Schema.TaggedClass<Increased>()("Increased", { by: Schema.Int }) {}
 * class Increase extends Schema.TaggedClass<Increase>()("Increase", { by: Schema.Int }) {}
 *
 * const Counter = Aggregate.make("Counter", {
 *   state: Schema.Int,
 *   initialState: 0,
 *   events: Increased,
 *   commands: Increase,
 *   refusals: {},
 *   decide: { Increase: ({ by }) => Effect.succeed([new Increased({ by })]) },
 *   evolve: { Increased: (count, { by }) => count + by }
 * })
 *
 * const Counters = ClusterAggregate.make(Counter)
 *
 * const layerRunner = Counters.layerRunner.pipe(Layer.provide(Counter.layer), Layer.provide(MemoryStore.layer))
 *
 * export const program = Counter.evaluate("a", new Increase({ by: 3 })).pipe(
 *   Effect.map(({ sequence, state }) => [sequence, state]), // prints: [ 1, 3 ]
 *   Effect.provide(Layer.merge(Counters.layerClient, layerRunner).pipe(Layer.provide(TestRunner.layer)))
 * )
 * ```
 */
export const make = <
  Name extends string,
  State,
  A extends Tagged,
  C extends Tagged,
  CI,
  Declared,
  Id extends string,
  Refusals extends { readonly [K in C["_tag"]]: unknown } = { readonly [K in C["_tag"]]: unknown },
  Projected = never
>(
  aggregate: ClusterSource<Name, State, A, C, CI, Declared, Id> &
    Declaring<C, Refusals, Projected, Declared, C["_tag"]>,
  options: CallOptions = {}
): ClusterAggregate<Name, State, A, C, Declared> => {
  const parts = partsOfAggregate<Name, State, A, C, unknown>(aggregate)
  const limits = callLimits(aggregate.name, options)
  const entity = makeEntity<Name, State, A, C, CI, Declared, Id>(aggregate)
  return {
    // The entity has a message of these types for each command, which a loop can't say.
    entity: entity as unknown as ClusterAggregate<Name, State, A, C, Declared>["entity"],
    // The aggregate checks the ids of messages, which its type takes as valid.
    layerRunner: makeRunnerLayer(entity, aggregate as unknown as Operations<Name, State, A, C>, parts),
    layerClient: Layer.scoped(parts.tag, makeClientService(entity, parts, limits))
  }
}
