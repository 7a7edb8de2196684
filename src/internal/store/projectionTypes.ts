/**
 * The types that `Projection.make` and `Projection.makeSql` derive from the handlers that they are given.
 */
import type { SqlClient } from "@effect/sql/SqlClient"
import type { Statement } from "@effect/sql/Statement"
import type * as Effect from "effect/Effect"
import type { Envelope } from "../../Event.js"
import type { ConstraintRefusal } from "../../Projection.js"
import type { HandlerContext, HandlerError, Tagged } from "../codec/eventCodec.js"

/** The events whose types have a handler. */
export type Handled<A extends Tagged, Types> = Extract<A, { readonly _tag: Types }>

/**
 * The results of the handlers of constraints. Without handlers the compiler infers the bound of their type, which has
 * every name.
 */
export type Refusal<Refusals> = string extends keyof Refusals
  ? DeclaredRefusal<ReturnOf<Refusals[string]>>
  : NonNullable<ReturnOf<Refusals[keyof Refusals]>>
type DeclaredRefusal<E> = [ConstraintRefusal] extends [E] ? never : NonNullable<E>
type ReturnOf<F> = F extends (...args: infer _A) => infer E ? E : never

/** Instances of `Schema.TaggedError` are effects, so the type of tagged objects without effects excludes them. */
export interface TaggedError extends Error, Tagged {}

/** `Either`, `Exit` and `Option` have a tag, but are effects. */
export interface TaggedNoEffect extends Tagged {
  readonly [Effect.EffectTypeId]?: never
}

export type HandlersError<Handlers> = HandlerError<Handlers[keyof Handlers]>
export type HandlersContext<Handlers> = HandlerContext<Handlers[keyof Handlers]>

/** A handler of `makeSql`. */
export type SqlHandler<A, Id extends string = string> = (
  event: A,
  envelope: Envelope<Id>,
  sql: SqlClient
) => Statement<unknown> | ReadonlyArray<Statement<unknown>>
