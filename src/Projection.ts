/**
 * A strong projection as data: what is to be done for each event, inside the transaction that commits it.
 *
 * @since 0.1.0
 */
import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type { Statement } from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import type * as Schema from "effect/Schema"
import type { Event } from "./Event.js"
import { type EventCodec, makeEventCodec, type Tagged } from "./internal/eventCodec.js"
import { provideStatementsFor } from "./internal/statements.js"
import type { StoreError } from "./StoreError.js"

/**
 * A strong projection. `project` runs for every event of a commit, one after the other, in the transaction that stores
 * them; when it fails with `E`, nothing is stored and the failure reaches whoever committed. Its tables are your own:
 * write them through `SqlClient`, and they are part of the transaction.
 *
 * It runs again when the commit is tried again, so what it does beside the database (a mail, a call) may be done
 * more than once, or for a commit that failed in the end.
 *
 * @since 0.1.0
 * @category models
 */
export interface Projection<out E = never, out R = never> {
  /** Names the projection in traces and messages. */
  readonly name: string
  /** The types of the events that concern it: all, when it does not say. A commit without them takes the short way. */
  readonly events?: ReadonlyArray<string> | undefined
  /** What is to be done for one event. */
  readonly project: (event: Event) => Effect.Effect<void, E, R>
}

/**
 * @since 0.1.0
 * @category models
 */
export declare namespace Projection {
  /**
   * Any projection.
   *
   * @since 0.1.0
   * @category models
   */
  // biome-ignore lint/suspicious/noExplicitAny: the bound of a type parameter that takes every projection
  export type Any = Projection<any, any>

  /**
   * What a projection may fail with.
   *
   * @since 0.1.0
   * @category models
   */
  export type Error<P> = P extends Projection<infer E, infer _R> ? E : never

  /**
   * What a projection needs.
   *
   * @since 0.1.0
   * @category models
   */
  export type Context<P> = P extends Projection<infer _E, infer R> ? R : never
}

/**
 * Makes a projection of typed handlers, one for each event type that concerns it; it passes over all others. A handler
 * receives the decoded event and the stored one around it (its aggregate, sequence and timestamp).
 *
 * A stored event of a named type that the schema can't decode fails the commit with `StoreError` (`UnreadableEvent`).
 *
 * @since 0.1.0
 * @category constructors
 *
 * @example
 * ```ts
 * import { SqlClient } from "@effect/sql"
 * import { Projection } from "effect-maestro"
 * import * as Effect from "effect/Effect"
 * import * as Schema from "effect/Schema"
 *
 * class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", { amount: Schema.Positive }) {}
 *
 * export const Balances = Projection.make({
 *   name: "balances",
 *   events: Deposited,
 *   project: {
 *     Deposited: (event, { aggregateId }) =>
 *       Effect.flatMap(
 *         SqlClient.SqlClient,
 *         (sql) => sql`update balances set amount = amount + ${event.amount} where account = ${aggregateId}`
 *       )
 *   }
 * })
 * ```
 */
export const make = <A extends Tagged, I extends Tagged, Handlers extends ProjectionHandlers<A>>(options: {
  /** Names the projection in traces and messages. */
  readonly name: string
  /** The events that it is about: one tagged schema, or a union of them. */
  readonly events: Schema.Schema<A, I>
  /** What is to be done for each type. */
  readonly project: Handlers & { readonly [K in Exclude<keyof Handlers, A["_tag"]>]: never }
}): Projection<HandlerError<Handlers[keyof Handlers]> | StoreError, HandlerContext<Handlers[keyof Handlers]>> => {
  type E = HandlerError<Handlers[keyof Handlers]>
  type R = HandlerContext<Handlers[keyof Handlers]>
  const codec: EventCodec<A> = makeEventCodec(options.events)
  const handlers = new Map<string, (event: A, envelope: Event) => Effect.Effect<unknown, E, R>>(
    Object.entries(options.project)
  )
  return {
    name: options.name,
    events: [...handlers.keys()],
    project: (envelope) => {
      const handler = handlers.get(envelope.type)
      return handler === undefined
        ? Effect.void
        : Effect.asVoid(
            Effect.flatMap(codec.decode(`Projection ${options.name}`, envelope), (event) => handler(event, envelope))
          )
    }
  }
}

/**
 * Makes a projection that is SQL statements and nothing else: for each event type a handler that says which, one or a list. It needs no
 * round trip of its own: on Postgres events and statements go to the database together, as one transaction, and the statements are done
 * only if the events are stored. Emmett knows such projections as raw SQL projections.
 *
 * A handler only returns statements of the `sql` that it is given. It runs before the store accepts the event, and may run again, so it must
 * have no side effects. The results of its statements are discarded. It has no access to the caller's context: what a statement needs of
 * it travels in the event's `metadata` (`Aggregate.Metadata`). Where a result decides what comes next, use `make`.
 *
 * A stored event of a named type that the schema can't decode fails the commit with `StoreError` (`UnreadableEvent`), a statement that
 * fails with its `SqlError`.
 *
 * @since 0.1.0
 * @category constructors
 *
 * @example
 * ```ts
 * import { Projection } from "effect-maestro"
 * import * as Schema from "effect/Schema"
 *
 * class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", { amount: Schema.Positive }) {}
 *
 * export const Balances = Projection.makeSql({
 *   name: "balances",
 *   events: Deposited,
 *   project: {
 *     Deposited: ({ amount }, { aggregateId }, sql) =>
 *       sql`update balances set amount = amount + ${amount} where account = ${aggregateId}`
 *   }
 * })
 * ```
 */
export const makeSql = <A extends Tagged, I extends Tagged, Handlers extends SqlHandlers<A>>(options: {
  /** Names the projection in traces and messages. */
  readonly name: string
  /** The events that it is about: one tagged schema, or a union of them. */
  readonly events: Schema.Schema<A, I>
  /** Which statements are to be done for each type. */
  readonly project: Handlers & { readonly [K in Exclude<keyof Handlers, A["_tag"]>]: never }
}): Projection<SqlError | StoreError, SqlClient.SqlClient> => {
  const codec: EventCodec<A> = makeEventCodec(options.events)
  const handlers = new Map<string, SqlHandler<A>>(Object.entries(options.project))
  const statements = (envelope: Event, sql: SqlClient.SqlClient) => {
    const handler = handlers.get(envelope.type)
    return handler === undefined
      ? Either.right([])
      : Either.map(codec.decode(`Projection ${options.name}`, envelope), (event) => {
          const some = handler(event, envelope, sql)
          return Array.isArray(some) ? (some as ReadonlyArray<Statement<unknown>>) : [some as Statement<unknown>]
        })
  }
  const project = (envelope: Event) =>
    Effect.flatMap(SqlClient.SqlClient, (sql) =>
      Effect.flatMap(statements(envelope, sql), (all) =>
        Effect.forEach(all, (statement) => statement, { discard: true })
      )
    )
  provideStatementsFor(project, (envelope, sql) => Either.getOrUndefined(statements(envelope, sql)))
  return { name: options.name, events: [...handlers.keys()], project }
}

/**
 * What `makeSql` takes for each event type.
 *
 * @since 0.1.0
 * @category models
 */
export type SqlHandlers<A extends Tagged> = {
  readonly [K in A["_tag"]]?: SqlHandler<Extract<A, { readonly _tag: K }>>
}

/**
 * What `make` takes for each event type.
 *
 * @since 0.1.0
 * @category models
 */
export type ProjectionHandlers<A extends Tagged> = {
  readonly [K in A["_tag"]]?: (
    event: Extract<A, { readonly _tag: K }>,
    envelope: Event
    // biome-ignore lint/suspicious/noExplicitAny: the bound of a type parameter that takes every handler
  ) => Effect.Effect<unknown, any, any>
}

// --- internal ---

type SqlHandler<A> = (
  event: A,
  envelope: Event,
  sql: SqlClient.SqlClient
) => Statement<unknown> | ReadonlyArray<Statement<unknown>>

type HandlerError<F> = F extends (...args: infer _A) => Effect.Effect<infer _B, infer E, infer _R> ? E : never
type HandlerContext<F> = F extends (...args: infer _A) => Effect.Effect<infer _B, infer _E, infer R> ? R : never
