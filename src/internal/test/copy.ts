/**
 * Copies of what a test gives, and of states, so that code that changes them changes no test, and is found out.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Layer from "effect/Layer"
import { fromParts } from "../../Timestamp.js"
import type { AggregateDefinition } from "../aggregate/definition.js"
import { serviceTag } from "../aggregate/operations.js"
import { makeService } from "../aggregate/service.js"
import { cacheLimits } from "../aggregate/stateCache.js"
import type { Tagged } from "../codec/eventCodec.js"
import type { AnyAggregate } from "./given.js"
import { isSame } from "./same.js"
import type { AnyLayer } from "./world.js"

/**
 * Copies a value with all that it contains. An instance of a class without fields of its own keeps its content where
 * no copy reaches it, so it is returned itself.
 */
export const copyOf = <A>(value: A): A => copy(value, new Map()) as A

/** The layer of the aggregate, with a copy of its initial state: `evolve` may change that one. */
export const freshLayer = (aggregate: AnyAggregate): AnyLayer => {
  const tag = serviceTag<string, unknown, Tagged, unknown, unknown>(aggregate.name)
  return Layer.flatMap(aggregate.layer as AnyLayer, (context) => {
    const { definition } = Context.unsafeGet(context as Context.Context<unknown>, tag) as Context.Tag.Service<
      typeof tag
    >
    const service = makeService(
      { ...definition, initialState: freshState(definition) },
      cacheLimits(aggregate.name, undefined)
    )
    // The operations of the aggregate compare the definition with their own.
    return Layer.scoped(
      tag,
      Effect.map(service, (made) => ({ ...made, definition }))
    )
  }) as AnyLayer
}

// --- internal ---

/** The initial state, as a snapshot of it restores it. Where its schema can't do that, a copy of its fields. */
const freshState = ({ initialState, state }: AggregateDefinition<unknown, Tagged>): unknown => {
  const stored = Either.flatMap(state.encode(initialState), ({ body, metadata }) =>
    state.decode({ ...noSnapshot, body: copyOf(body), metadata })
  )
  return Either.isRight(stored) && isSame(stored.right, initialState) ? stored.right : copyOf(initialState)
}

const noSnapshot = { aggregateId: "", sequence: 0, timestamp: fromParts({ millis: 0, counter: 0, node: 0n }) }

const copy = (value: unknown, copies: Map<object, object>): unknown => {
  if (typeof value !== "object" || value === null) return value
  const known = copies.get(value)
  if (known !== undefined) return known
  const keep = <A extends object>(made: A): A => {
    copies.set(value, made)
    return made
  }
  if (Array.isArray(value)) {
    const items: Array<unknown> = keep(new Array(value.length))
    for (const key of Object.keys(value)) Reflect.set(items, key, copy(Reflect.get(value, key), copies))
    return items
  }
  const prototype = Object.getPrototypeOf(value)
  if (prototype === Date.prototype) return keep(new Date((value as Date).getTime()))
  if (prototype === Map.prototype) {
    const entries = keep(new Map())
    for (const [key, item] of value as Map<unknown, unknown>) entries.set(copy(key, copies), copy(item, copies))
    return entries
  }
  if (prototype === Set.prototype) {
    const items = keep(new Set())
    for (const item of value as Set<unknown>) items.add(copy(item, copies))
    return items
  }
  if (ArrayBuffer.isView(value)) return keep(structuredClone(value))
  return copyFields(value, prototype, keep, copies)
}

const copyFields = (
  value: object,
  prototype: object | null,
  keep: (made: object) => object,
  copies: Map<object, object>
): object => {
  const keys = Reflect.ownKeys(value).filter((key) => Object.prototype.propertyIsEnumerable.call(value, key))
  const isPlain = prototype === null || prototype === Object.prototype
  if (value instanceof Error || (keys.length === 0 && !isPlain)) return value
  const made = Object.create(prototype)
  copies.set(value, made)
  for (const key of keys) {
    Object.defineProperty(made, key, {
      value: copy(Reflect.get(value, key), copies),
      enumerable: true,
      writable: true,
      configurable: true
    })
  }
  return isPlain || isLike(made, value) ? made : keep(value)
}

/** A class with private fields may have an equality that needs them, which a copy lacks. */
const isLike = (made: object, value: object): boolean => {
  try {
    return isSame(made, value)
  } catch {
    return false
  }
}
