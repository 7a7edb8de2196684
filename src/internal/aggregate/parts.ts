/**
 * The parts of an aggregate that `ClusterAggregate` needs beside its public operations: `Aggregate.make` puts them under a
 * symbol, so that no type of a user has them.
 */
import type * as Context from "effect/Context"
import * as Predicate from "effect/Predicate"
import type { Instance } from "../../Aggregate.js"
import type { Tagged } from "../codec/eventCodec.js"
import type { AggregateDefinition } from "./definition.js"
import type { Service } from "./service.js"
import type { CacheLimits } from "./stateCache.js"

/** What a layer of an aggregate is made of. */
export interface Parts<Name extends string, State, A extends Tagged, C, E> {
  readonly definition: AggregateDefinition<State, A, C>
  /** The key of its service. */
  readonly tag: Context.Tag<Instance<Name>, Service<State, A, C, E>>
  readonly cache: CacheLimits
}

/** Adds the parts to an aggregate. */
export const withParts = <Made extends object, Name extends string, State, A extends Tagged, C, E>(
  parts: Parts<Name, State, A, C, E>,
  aggregate: Made
): Made => Object.assign(aggregate, { [key]: parts })

/** Whether `Aggregate.make` has made the value. */
export const isAggregate = (value: unknown): boolean => Predicate.hasProperty(value, key)

/** The parts of an aggregate, whose types are those of the aggregate. A value that `make` did not make throws. */
export const partsOfAggregate = <Name extends string, State, A extends Tagged, C, E>(aggregate: {
  readonly name: Name
}): Parts<Name, State, A, C, E> => {
  const parts: unknown = Reflect.get(aggregate, key)
  if (parts === undefined) throw new TypeError("an aggregate must be made by Aggregate.make")
  return parts as Parts<Name, State, A, C, E>
}

// --- internal ---

const key: unique symbol = Symbol.for("effect-maestro/Aggregate/parts")
