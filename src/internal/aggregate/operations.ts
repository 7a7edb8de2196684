/**
 * The operations of an aggregate: each gets the service of the aggregate's layer from its caller's context, and runs in
 * a span. `Aggregate.ts` gives them their public types.
 *
 * The key of the service is the aggregate's name. If two aggregates have one name, the context has the layer of only
 * one of them, and a command of the other would be decided by the wrong handlers. So each operation compares the
 * definitions, and dies if they differ.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type { RuntimeFiber } from "effect/Fiber"
import type * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import type { Acknowledged, AsOf, Evaluated, Instance } from "../../Aggregate.js"
import { ValidationError } from "../../StoreError.js"
import { HybridClock } from "../../Timestamp.js"
import { type Tagged, tagOf } from "../codec/eventCodec.js"
import { makeInSpanIfTraced } from "../runtime/tracing.js"
import { textOfTime, timeIn } from "../store/asOf.js"
import type { CommandFailure } from "./commandContext.js"
import { makeCommandInput } from "./commandInput.js"
import { type CommandOptions, makeOptionsReader } from "./commandOptions.js"
import type { AggregateDefinition } from "./definition.js"
import type { Service } from "./service.js"

/** The key of an aggregate's service. */
export const serviceTag = <Name extends string, State, A extends Tagged, C, E>(
  name: Name
): Context.Tag<Instance<Name>, Service<State, A, C, E>> => Context.GenericTag(`effect-maestro/Instance/${name}`)

/**
 * Makes the operations. In their types `evaluate` and `evaluateUnknown` may fail with the refusals of every command.
 */
export const makeOperations = <Name extends string, State, A extends Tagged, C extends Tagged, CI, E>(
  tag: Context.Tag<Instance<Name>, Service<State, A, C, E>>,
  definition: AggregateDefinition<State, A, C>,
  commands: Schema.Schema<C, CI>
) => {
  type Operations = Service<State, A, C, E>
  const { name } = definition
  const { commandTags } = definition
  const decodeCommand = makeCommandInput(`${name}.evaluateUnknown`, commands)
  const readOptions = makeOptionsReader(`${name}.evaluate`, ["reply"], commandTags)
  const readUnknownOptions = makeOptionsReader(`${name}.evaluateUnknown`, ["only", "reply"], commandTags)

  const checked = (service: Operations): Operations => {
    if (service.definition !== definition) throw otherDefinition(name)
    return service
  }

  type Fiber = RuntimeFiber<unknown, unknown>

  const operate = <B, E2>(
    operation: string,
    id: string,
    run: (service: Operations, fiber: Fiber) => Effect.Effect<B, E2>,
    attributes?: () => object
  ): Effect.Effect<B, E2, Instance<Name>> =>
    Effect.withFiberRuntime((fiber) =>
      makeInSpanIfTraced(
        fiber,
        `Aggregate.${operation}`,
        () => ({ attributes: { "aggregate.name": name, "aggregate.id": id, ...attributes?.() } }),
        // The type of the operation requires the service.
        (fiber) => run(checked(Context.unsafeGet(fiber.currentContext, tag)), fiber)
      )
    )

  const evaluateWith = (
    service: Operations,
    fiber: Fiber,
    id: string,
    command: C,
    { reply }: CommandOptions
  ): Effect.Effect<Evaluated<State, A> | Acknowledged, CommandFailure<E>> =>
    reply === undefined ? service.evaluate(fiber, id, command) : service.acknowledge(fiber, id, command)

  return {
    newId: newIdOf(definition),
    evaluate: (
      id: string,
      command: C,
      options: unknown
    ): Effect.Effect<Evaluated<State, A> | Acknowledged, CommandFailure<E>, Instance<Name>> =>
      operate(
        "evaluate",
        id,
        (service, fiber) => {
          if (options === undefined) return service.evaluate(fiber, id, command)
          const read = readOptions(options)
          return read instanceof ValidationError ? Effect.fail(read) : evaluateWith(service, fiber, id, command, read)
        },
        () => ({ command: tagOf(command) })
      ),
    /** For `evaluateAll`, whose type requires the service. */
    severalIn: (context: Context.Context<never>) => checked(Context.unsafeGet(context, tag)).several,
    evaluateUnknown: (
      id: string,
      command: unknown,
      options: unknown
    ): Effect.Effect<Evaluated<State, A> | Acknowledged, CommandFailure<E> | ValidationError, Instance<Name>> =>
      operate("evaluateUnknown", id, (service, fiber) => {
        const read = options === undefined ? noOptions : readUnknownOptions(options)
        return read instanceof ValidationError
          ? Effect.fail(read)
          : Effect.flatMap(decodeCommand(command, read.only), (decoded) =>
              evaluateWith(service, fiber, id, decoded, read)
            )
      }),
    exists: (id: string) => operate("exists", id, (service) => service.exists(id)),
    get: (id: string) => operate("get", id, (service) => service.get(id)),
    fetch: (id: string) => operate("fetch", id, (service) => service.fetch(id)),
    root: <Id extends string>(id: Id) => operate("root", id, (service) => service.root(id)),
    replay: (id: string, at: number | AsOf) =>
      operate(
        "replay",
        id,
        (service) => service.replay(id, at),
        () => (typeof at === "number" ? { sequence: at } : { asOf: textOfTime(timeIn(at)) })
      ),
    snapshot: (id: string) => operate("snapshot", id, (service) => service.snapshot(id)),
    history: (id: string) =>
      Stream.unwrap(Effect.map(tag, (service) => checked(service).history(id))).pipe(
        Stream.withSpan("Aggregate.history", { attributes: { "aggregate.name": name, "aggregate.id": id } })
      )
  }
}

// --- internal ---

const noOptions: CommandOptions = { only: undefined, reply: undefined }

/** Makes an id, and remembers that it is fresh. One that the aggregate would refuse is a mistake in the program. */
const newIdOf = <State, A extends Tagged>(definition: AggregateDefinition<State, A>): Effect.Effect<string> => {
  const { freshIds, name, newId, streams } = definition
  const made = newId ?? Effect.flatMap(HybridClock, ({ now }) => now)
  const mayBeRefused = newId !== undefined || streams.mayRefuseTimestamps
  return Effect.map(made, (id) => {
    const problem = mayBeRefused ? streams.problemOf(id) : undefined
    if (problem !== undefined) throw noNewId(name, id, newId === undefined, problem)
    freshIds.add(id)
    return id
  })
}

const noNewId = (name: string, id: unknown, isTimestamp: boolean, problem: string): TypeError =>
  new TypeError(
    isTimestamp
      ? `${name}.newId made the timestamp ${JSON.stringify(id)}, and the schema of its ids refuses it: ${problem}. Give the option newId, an effect that makes ids of that schema`
      : `the option newId of ${name} made ${JSON.stringify(id)}, which is no id of it: ${problem}`
  )

const otherDefinition = (name: string): Error =>
  new Error(
    `Two aggregates are named ${JSON.stringify(name)}, and the layer in the context is that of the other one. The name is the key of an aggregate's service, so give each aggregate a name of its own, or provide the layer of the aggregate that is used.`
  )
