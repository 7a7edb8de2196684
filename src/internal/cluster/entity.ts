/**
 * Makes the entity of an aggregate: a message for each command and each read. What can't work throws a `TypeError` here,
 * when the entity is made.
 */
import * as Entity from "@effect/cluster/Entity"
import * as Rpc from "@effect/rpc/Rpc"
import * as Schema from "effect/Schema"
import { schemasByTag, type Tagged } from "../codec/eventCodec.js"
import * as Messages from "./messages.js"
import type { ClusterSource } from "./types.js"

/** An entity whose type does not name its messages. */
export type AnyEntity = Entity.Entity<string, Rpc.Any>

/** The messages that read. No command may have their names. */
export const readNames = ["exists", "get", "fetch", "root", "replay", "snapshot", "history"] as const

export const makeEntity = <
  Name extends string,
  State,
  A extends Tagged,
  C extends Tagged,
  CI,
  Declared,
  Id extends string
>(
  aggregate: ClusterSource<Name, State, A, C, CI, Declared, Id>
): AnyEntity => {
  const { name } = aggregate
  const state: Messages.Wire<State> = aggregate.state
  const event: Messages.Wire<A> = aggregate.events
  const type = checkedName(name, "the type of its entity", `Aggregate/${name}`)
  const success = Messages.answer(state, event)
  const commands = [...schemasByTag(aggregate.commands)].map(([tag, command]) =>
    Rpc.make(checkedTag(name, tag), {
      payload: Messages.commandMessage(Schema.make<C, unknown>(command.ast)),
      success,
      error: Messages.commandFailure(refusalsOf(aggregate.refusals, tag))
    })
  )
  return Entity.make(type, [...commands, ...readsOf(state, event)])
}

// --- internal ---

const readsOf = <State, A>(state: Messages.Wire<State>, event: Messages.Wire<A>): ReadonlyArray<Rpc.Any> => {
  const error = Messages.readFailure()
  const [payload, success] = [Messages.readMessage, Messages.stateOnly(state)]
  return [
    Rpc.make("exists", { payload, success: Schema.Boolean, error }),
    Rpc.make("get", { payload, success, error }),
    Rpc.make("fetch", { payload, success, error }),
    Rpc.make("root", { payload, success: Messages.root(state), error }),
    Rpc.make("replay", { payload: Messages.replayMessage, success, error }),
    Rpc.make("snapshot", { payload, success: Schema.Void, error }),
    Rpc.make("history", {
      payload: Messages.historyMessage,
      success: Messages.indexedEvent(event),
      error,
      stream: true
    })
  ]
}

/**
 * The refusals of a command first, and then those of all others: a refusal of a projection is declared at any command.
 */
const refusalsOf = (declared: unknown, tag: string): ReadonlyArray<Messages.Wire<unknown>> => {
  const lists: Readonly<Record<string, unknown>> =
    typeof declared === "object" && declared !== null ? { ...declared } : {}
  const own = Object.entries(lists).filter(([key]) => key === tag)
  const others = Object.entries(lists).filter(([key]) => key !== tag)
  const schemas = [...own, ...others].flatMap(([, list]) => (Array.isArray(list) ? list : []))
  return [...new Set(schemas)].flatMap((schema: unknown) =>
    Schema.isSchema(schema) ? [Schema.make<unknown, unknown>(schema.ast)] : []
  )
}

const checkedTag = (name: string, tag: string): string => {
  if (readNames.some((read) => read === tag)) {
    throw new TypeError(`${name}: the command ${JSON.stringify(tag)} has the name of a message that reads`)
  }
  // A message of such a name would be found where there is none, or would not be kept.
  if (tag in {})
    throw new TypeError(`${name}: no command can have the tag ${JSON.stringify(tag)}, which every object has`)
  return checkedName(name, "the tag of a command", tag)
}

/** The tables of the cluster have room for 50 characters. */
const checkedName = (name: string, what: string, text: string): string => {
  if (text.length > maxName || text.trim() !== text || text === "") {
    throw new TypeError(
      `${name}: ${what} must have at most ${maxName} characters and no space around it, and is ${JSON.stringify(text)}`
    )
  }
  return text
}

const maxName = 50
