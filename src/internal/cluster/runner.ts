/**
 * The handlers of an entity on a runner: each evaluates a command, or reads, by the local service of the aggregate.
 *
 * A message may come from the same process. Then the fiber of its handler has the context of the caller, such as its
 * transaction. So a handler runs in a context of its own, as if the message came from elsewhere.
 */
import type * as Entity from "@effect/cluster/Entity"
import type { Sharding } from "@effect/cluster/Sharding"
import type * as Rpc from "@effect/rpc/Rpc"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import type { Acknowledged, AsOf, Evaluated, Instance, Root } from "../../Aggregate.js"
import type { Reply } from "../aggregate/commandResult.js"
import { Conditions } from "../aggregate/conditions.js"
import type { HistoricEvent } from "../aggregate/history.js"
import { Metadata } from "../aggregate/metadata.js"
import type { Parts } from "../aggregate/parts.js"
import type { Service } from "../aggregate/service.js"
import type { Tagged } from "../codec/eventCodec.js"
import { type Chain, DecidingOn } from "../runtime/commandCause.js"
import { spanOnly } from "./call.js"
import type { AnyEntity } from "./entity.js"
import type { Answer, CommandMessage, IndexedEvent, ReadError, ReadMessage } from "./types.js"
import { areTooLarge, sendableCause } from "./unsent.js"

/** The operations of an aggregate that the handlers call. */
export interface Operations<Name extends string, State, A, C> {
  readonly evaluate: (
    id: string,
    command: C,
    options: { readonly reply: Reply } | undefined
  ) => Effect.Effect<Evaluated<State, A> | Acknowledged, unknown, Instance<Name>>
  readonly exists: (id: string) => Effect.Effect<boolean, ReadError, Instance<Name>>
  readonly get: (id: string) => Effect.Effect<State, ReadError, Instance<Name>>
  readonly fetch: (id: string) => Effect.Effect<State, ReadError, Instance<Name>>
  readonly root: (id: string) => Effect.Effect<Root<State>, ReadError, Instance<Name>>
  readonly replay: (id: string, at: number | AsOf) => Effect.Effect<State, ReadError, Instance<Name>>
  readonly snapshot: (id: string) => Effect.Effect<void, ReadError, Instance<Name>>
  readonly history: (id: string) => Stream.Stream<HistoricEvent<A>, ReadError, Instance<Name>>
}

/** Registers the entity on a runner. */
export const makeRunnerLayer = <Name extends string, State, A extends Tagged, C, E>(
  entity: AnyEntity,
  operations: Operations<Name, State, A, C>,
  { cache, definition, tag }: Parts<Name, State, A, C, E>
): Layer.Layer<never, never, Instance<Name> | Sharding> =>
  Layer.unwrapEffect(
    Effect.map(tag, (service) => {
      if ("elsewhere" in service.several) throw notLocal(definition.name)
      return entity.toLayer(handlersOf(operations, { tag, commandTags: definition.commandTags }, service), {
        // The command handler lines commands up, and a command that waits there can be interrupted.
        concurrency: "unbounded",
        maxIdleTime: cache.idleTimeToLive,
        // A defect is the result of its command alone.
        disableFatalDefects: true
      }) as Layer.Layer<never, never, Sharding>
    })
  )

// --- internal ---

/** A handler of a message. */
type Handler = (request: {
  readonly payload: never
}) => Effect.Effect<unknown, unknown> | Stream.Stream<unknown, unknown>

const handlersOf = <Name extends string, State, A extends Tagged, C, E>(
  operations: Operations<Name, State, A, C>,
  { commandTags, tag }: { readonly commandTags: ReadonlyArray<string> } & Pick<Parts<Name, State, A, C, E>, "tag">,
  service: Service<State, A, C, E>
) =>
  Effect.gen(function* () {
    const used = new Set<string>()
    yield* Effect.addFinalizer(() => Effect.sync(() => used.forEach(service.forget)))
    const local = Context.make(tag, service)
    const within =
      (context: Context.Context<Instance<Name>>) =>
      <B, E2>(effect: Effect.Effect<B, E2, Instance<Name>>): Effect.Effect<B, E2> =>
        Effect.catchAllCause(
          Effect.mapInputContext(effect, (caller: Context.Context<never>) => Context.merge(spanOnly(caller), context)),
          (cause) => Effect.failCause(sendableCause(cause))
        )
    const read =
      <Payload extends ReadMessage, B>(run: (payload: Payload) => Effect.Effect<B, ReadError, Instance<Name>>) =>
      ({ payload }: { readonly payload: Payload }) => {
        used.add(payload.id)
        return within(local)(run(payload))
      }
    const evaluate = ({ payload }: { readonly payload: CommandMessage<C> }): Effect.Effect<Answer<State, A>, unknown> =>
      Effect.suspend(() => {
        used.add(payload.id)
        const chain = chainOf(payload)
        return Effect.map(
          within(contextOf(local, payload, chain))(
            operations.evaluate(payload.id, payload.command, payload.reply && { reply: payload.reply })
          ),
          (result) => (chain === undefined ? result : { ...result, correlationId: chain.correlationId })
        )
      })
    const state = (state: State) => ({ state })
    const handlers: Record<string, Handler> = {
      ...Object.fromEntries(commandTags.map((command) => [command, evaluate])),
      exists: read(({ id }) => operations.exists(id)),
      get: read(({ id }) => Effect.map(operations.get(id), state)),
      fetch: read(({ id }) => Effect.map(operations.fetch(id), state)),
      root: read(({ id }) => operations.root(id)),
      replay: read(({ at, id }: ReadMessage & { readonly at: number | AsOf }) =>
        Effect.map(operations.replay(id, at), state)
      ),
      snapshot: read(({ id }) => operations.snapshot(id)),
      history: ({ payload }: { readonly payload: ReadMessage & { readonly skip: number } }) =>
        Stream.mapInputContext(historyFrom(operations.history(payload.id), payload.skip), (caller) =>
          Context.merge(spanOnly(caller), local)
        )
    }
    // The type of the entity does not name its messages.
    return handlers as unknown as Entity.HandlersFrom<Rpc.Any>
  })

/** What the caller of a command has set around it. */
const contextOf = <Name, C>(
  local: Context.Context<Name>,
  { attempt, commandId, deciding = [], expectedSequence, metadata, sends }: CommandMessage<C>,
  chain: Chain | undefined
): Context.Context<Name> => {
  const conditions = {
    attempt: { id: attempt, before: sends?.count ?? 0 },
    ...(commandId !== undefined && { commandId }),
    ...(expectedSequence !== undefined && { expectedSequence })
  }
  const context = Context.add(Context.add(local, Conditions, conditions), DecidingOn, { streams: deciding, chain })
  return metadata === undefined ? context : Context.add(context, Metadata, metadata)
}

/** The chain of the command. Its first event names it where it has no name. */
const chainOf = <C>({ chain }: CommandMessage<C>): Chain | undefined =>
  chain === undefined ? undefined : { correlationId: chain.correlationId, causationId: chain.causationId }

const historyFrom = <A, E, R>(
  events: Stream.Stream<HistoricEvent<A>, E, R>,
  skip: number
): Stream.Stream<IndexedEvent<A>, E, R> =>
  events.pipe(
    // A page is one message. Where events have grown since they were stored, as by upcasts, it may be too large.
    Stream.chunks,
    Stream.flatMap((page) =>
      areTooLarge([...page]) ? Stream.fromIterable(page).pipe(Stream.rechunk(1)) : Stream.fromChunk(page)
    ),
    Stream.drop(skip),
    Stream.zipWithIndex,
    Stream.map(([event, index]) => ({ ...event, index: index + skip }))
  )

const notLocal = (name: string): Error =>
  new Error(
    `layerRunner of ${name} needs the layer of the aggregate below it, and has layerClient, which sends commands`
  )
