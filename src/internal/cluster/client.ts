/**
 * The service of an aggregate whose commands are evaluated by runners: what `layerClient` provides, under the tag of the
 * local layer. `operations.ts` gets it from the context of a caller as it gets the local one.
 *
 * A command goes with what its caller has set around it. What can't go, such as a transaction of the caller, is refused.
 */
import type { Sharding } from "@effect/cluster/Sharding"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { AsOf, Evaluated, Root } from "../../Aggregate.js"
import { ValidationError, ValidationIssue } from "../../StoreError.js"
import { type Caller, type CommandFailure, decidesItself, makeCallerReader } from "../aggregate/commandContext.js"
import { acknowledgedOf, type Reply } from "../aggregate/commandResult.js"
import { expectedOf, isSequence, sequenceRule } from "../aggregate/conditions.js"
import type { AggregateDefinition } from "../aggregate/definition.js"
import type { HistoricEvent } from "../aggregate/history.js"
import { noMetadata } from "../aggregate/metadata.js"
import type { Parts } from "../aggregate/parts.js"
import { commandIdProblem } from "../aggregate/receipt.js"
import { badInput, idProblem, type ReadFailure, type Service } from "../aggregate/service.js"
import { type Tagged, tagOf, unknownTag } from "../codec/eventCodec.js"
import { isPlain, stringifyObject, withoutUndefined } from "../codec/json.js"
import { type Chain, chainOf } from "../runtime/commandCause.js"
import { boundOf, noTime, timeIn } from "../store/asOf.js"
import { type CallLimits, callUntilAnswered } from "./call.js"
import { makeCallTimer } from "./callTimer.js"
import type { AnyEntity } from "./entity.js"
import { readHistory } from "./history.js"
import type { AcknowledgedAnswer, CommandMessage, EvaluatedAnswer, IndexedEvent } from "./types.js"

/** Makes the service. It has the failures and the results of the local one. */
export const makeClientService = <Name extends string, State, A extends Tagged, C, E>(
  entity: AnyEntity,
  { definition }: Pick<Parts<Name, State, A, C, E>, "definition">,
  limits: CallLimits
): Effect.Effect<Service<State, A, C, E>, never, Sharding | Scope.Scope> => {
  // The type of the entity does not name its messages.
  const client = entity.client as unknown as Effect.Effect<EntityClient, never, Sharding>
  return Effect.zipWith(client, makeCallTimer, (clientOf, timer) => {
    const { name, streams } = definition
    const send: Send = <B>(operation: string, tag: string, id: string, message: object) =>
      callUntilAnswered(
        { operation: `${name}.${operation}`, aggregateId: streams.streamId(id) },
        limits,
        timer,
        operation === "evaluate" ? "command" : "read",
        (counted) =>
          Effect.suspend(() => messageTo(clientOf, id, tag)({ ...message, ...counted }) as Effect.Effect<B, unknown>)
      )
    return {
      definition,
      ...makeCommands(definition, send),
      several: { elsewhere: ofCluster },
      forget: () => {},
      ...makeReads(definition, send),
      history: (id) => {
        const refused = idProblem(definition, "history", id)
        if (refused !== undefined) return Stream.fail(refused)
        const open = (message: object) =>
          messageTo(clientOf, id, "history")({ ...message, id }) as Stream.Stream<IndexedEvent<A>, unknown>
        const place = { operation: `${name}.history`, aggregateId: streams.streamId(id) }
        // Its failures are those of the schema of the message.
        return readHistory(place, limits, timer, open) as Stream.Stream<HistoricEvent<A>, ReadFailure>
      }
    }
  })
}

// --- internal ---

/** The client of an entity: for each aggregate, a function for each message. */
type EntityClient = (entityId: string) => Readonly<Record<string, ((message: object) => unknown) | undefined>>

/** Sends a message by its tag, and fails as the runner has failed. */
type Send = <B>(operation: string, tag: string, id: string, message: object) => Effect.Effect<B, unknown>

/** The id of an entity has no space around it. It only finds the runner: each message has the id of the aggregate. */
const messageTo = (clientOf: EntityClient, id: string, tag: string): ((message: object) => unknown) => {
  const message = clientOf(id.trim() === id ? id : JSON.stringify(id))[tag]
  if (message === undefined) throw new Error(`the entity has no message ${tag}`)
  return message
}

const ofCluster =
  "must not be of an aggregate that runners of a cluster evaluate, because another process can't be part of a transaction of this one"

type Commands<State, A extends Tagged, C, E> = Pick<Service<State, A, C, E>, "acknowledge" | "evaluate">

const makeCommands = <State, A extends Tagged, C, E>(
  definition: AggregateDefinition<State, A, C>,
  send: Send
): Commands<State, A, C, E> => {
  const callerOf = makeCallerReader()
  /** Sends a command, and makes its result of the answer. The message says which form the answer has. */
  const sendCommand = <B extends AcknowledgedAnswer, Result>(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    id: string,
    command: C,
    reply: Reply | undefined,
    resultOf: (answer: B) => Result
  ): Effect.Effect<Result, CommandFailure<E>> => {
    const caller = callerOf(fiber.currentContext)
    const refused = problemOf(definition, caller, id, command)
    if (refused !== undefined) return Effect.fail(refused)
    const chain = chainOf(fiber, caller.decision)
    return Effect.flatMap(messageOf(definition.name, caller, chain, { id, command, reply }), (message) =>
      Effect.map(
        // A runner fails with what the handlers of the aggregate fail with, and so do the schemas of the messages.
        send<B>("evaluate", tagOf(command) ?? "", id, message) as Effect.Effect<B, CommandFailure<E>>,
        (answer) => {
          // The command has begun the chain in the handler of another one.
          if (chain !== undefined) chain.correlationId ??= answer.correlationId
          return resultOf(answer)
        }
      )
    )
  }
  return {
    evaluate: (fiber, id, command) => sendCommand(fiber, id, command, undefined, evaluatedOf<State, A>),
    acknowledge: (fiber, id, command) => sendCommand(fiber, id, command, "position", acknowledgedOf)
  }
}

const evaluatedOf = <State, A>({
  duplicate,
  events,
  position,
  sequence,
  state
}: EvaluatedAnswer<State, A>): Evaluated<State, A> => ({ state, sequence, events, position, duplicate })

/** Why a command is refused before it is sent. */
const problemOf = <State, A extends Tagged, C>(
  definition: AggregateDefinition<State, A, C>,
  { conditions, decision, isInTransaction }: Caller,
  id: string,
  command: C
): ValidationError | undefined => {
  const operation = `${definition.name}.evaluate`
  const refused = idProblem(definition, "evaluate", id)
  if (refused !== undefined) return refused
  if (isInTransaction) return failing(operation, [], inTransaction)
  if (decision.streams.includes(definition.streams.streamId(id))) return badInput(operation, "id", decidesItself)
  if (!definition.commandTags.includes(tagOf(command) ?? "")) {
    return new ValidationError({ operation, issues: [unknownTag(definition.commandTags, command)] })
  }
  const problem = "commandId" in conditions ? commandIdProblem(conditions.commandId) : undefined
  return problem === undefined ? undefined : badInput(operation, "commandId", problem)
}

const inTransaction =
  "can't be part of the transaction around it, because a runner of a cluster evaluates the command: evaluate it outside of the transaction"

const messageOf = <C>(
  name: string,
  { conditions, decision, metadata }: Caller,
  chain: Chain | undefined,
  { command, id, reply }: Pick<CommandMessage<C>, "command" | "id" | "reply">
): Effect.Effect<Omit<CommandMessage<C>, "attempt" | "sends">, ValidationError> =>
  Effect.zipWith(
    expectedOf(name, conditions),
    metadata === noMetadata ? Effect.as(Effect.void, undefined) : jsonOf(name, metadata),
    (expectedSequence, metadata) => ({
      id,
      command,
      ...(conditions.commandId !== undefined && { commandId: conditions.commandId }),
      ...(expectedSequence !== undefined && { expectedSequence }),
      ...(metadata !== undefined && { metadata }),
      ...(chain !== undefined && { chain: { ...chain } }),
      ...(decision.streams.length > 0 && { deciding: decision.streams }),
      ...(reply !== undefined && { reply })
    })
  )

/** The metadata as the store will have it. A value that JSON would change is refused, as the store refuses it. */
const jsonOf = (name: string, metadata: object): Effect.Effect<Readonly<Record<string, unknown>>, ValidationError> =>
  Effect.suspend(() => {
    const operation = `${name}.evaluate`
    if (!isObject(metadata)) return failing(operation, ["metadata"], "must be a JSON object")
    const issues: Array<ValidationIssue> = []
    const value = withoutUndefined({ ...metadata })
    stringifyObject(value, (path, message) => {
      issues.push(new ValidationIssue({ path: ["metadata", ...path], message }))
    })
    const [first, ...rest] = issues
    return first === undefined ? Effect.succeed(value) : new ValidationError({ operation, issues: [first, ...rest] })
  })

/** Callers that circumvent the types may give anything, also what can't be read. */
const isObject = (value: unknown): boolean => {
  try {
    return typeof value === "object" && value !== null && !Array.isArray(value) && isPlain(value)
  } catch {
    return false
  }
}

const failing = (operation: string, path: ReadonlyArray<string>, message: string): ValidationError =>
  new ValidationError({ operation, issues: [new ValidationIssue({ path, message })] })

type Reads<State, A extends Tagged, C, E> = Pick<
  Service<State, A, C, E>,
  "exists" | "fetch" | "get" | "replay" | "root" | "snapshot"
>

const makeReads = <State, A extends Tagged, C, E>(
  definition: AggregateDefinition<State, A, C>,
  send: Send
): Reads<State, A, C, E> => {
  /** Sends a message that reads. Its failures are those of its schema. */
  const read = <B>(tag: string, id: string, message: object = {}): Effect.Effect<B, ReadFailure> =>
    idProblem(definition, tag, id) ?? (send<B>(tag, tag, id, { ...message, id }) as Effect.Effect<B, ReadFailure>)
  const stateOf = ({ state }: { readonly state: State }): State => state
  return {
    exists: (id) => read<boolean>("exists", id),
    get: (id) => Effect.map(read<{ readonly state: State }>("get", id), stateOf),
    fetch: (id) => Effect.map(read<{ readonly state: State }>("fetch", id), stateOf),
    root: (id) =>
      Effect.map(read<Omit<Root<State>, "id">>("root", id), ({ sequence, state }) => ({ id, sequence, state })),
    replay: (id, at) =>
      idProblem(definition, "replay", id) ??
      Effect.flatMap(placeInTime(definition.name, at), (at) =>
        Effect.map(read<{ readonly state: State }>("replay", id, { at }), stateOf)
      ),
    snapshot: (id) => read<void>("snapshot", id)
  }
}

/** The sequence, or the time as a `Date`. Callers that circumvent the types may give anything. */
const placeInTime = (name: string, at: number | AsOf): Effect.Effect<number | AsOf, ValidationError> => {
  const operation = `${name}.replay`
  if (typeof at !== "object" || at === null) {
    return isSequence(at) ? Effect.succeed(at) : Effect.fail(badInput(operation, "sequence", sequenceRule))
  }
  return boundOf(timeIn(at)) === undefined
    ? Effect.fail(badInput(operation, "asOf", noTime))
    : Effect.sync(() => ({ asOf: new Date(DateTime.isDateTime(at.asOf) ? DateTime.toEpochMillis(at.asOf) : at.asOf) }))
}
