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
import type { Envelope, Event } from "./Event.js"
import {
  type EventCodec,
  type HandlerContext,
  type HandlerError,
  makeEventCodec,
  type Tagged
} from "./internal/eventCodec.js"
import { envelopeOf, type Origin as OriginOf, type StreamIds, withOwnIds } from "./internal/origin.js"
import { declaredTables, type TableOptions, type TableStatements as TableStatementsOf } from "./internal/ownedTables.js"
import { provideStatementsFor, statementsFor } from "./internal/statements.js"
import type { StoreError } from "./StoreError.js"

/**
 * A strong projection. `project` runs for every event of a commit, one after the other, in the transaction that stores
 * them; when it fails with `E`, nothing is stored and the failure reaches whoever committed. It writes its tables
 * through `SqlClient`, as part of the transaction. Your migrations make them, or the projection owns them (`tables`).
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
  /**
   * Whose events concern it: those of one aggregate, or of `"all"`. A projection without it is of the aggregate that has it among its
   * `projections`; see `Projection.of`.
   */
  readonly of?: Projection.Origin | undefined
  /** The version of the tables that it owns. */
  readonly version?: number | undefined
  /** The tables that it owns: `ProjectionTables` creates them, and makes them anew for a higher version. None, where they are the application's. */
  readonly tables?: Readonly<Record<string, Projection.TableStatements>> | undefined
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
   * Whose events a projection is about: an aggregate, told by its name, or all of them.
   *
   * @since 0.1.0
   * @category models
   */
  export type Origin = OriginOf

  /**
   * Makes one table that a projection owns, with its indexes: one statement or a list. They name the table without a schema.
   *
   * @since 0.1.0
   * @category models
   */
  export type TableStatements = TableStatementsOf

  /**
   * A projection that says whose events it is about, so that a subscription or a rebuild can find them.
   *
   * @since 0.1.0
   * @category models
   */
  export interface Bound<out E = never, out R = never> extends Projection<E, R> {
    readonly of: Projection.Origin
  }

  /**
   * Any projection that says whose events it is about.
   *
   * @since 0.1.0
   * @category models
   */
  // biome-ignore lint/suspicious/noExplicitAny: the bound of a type parameter that takes every projection
  export type AnyBound = Bound<any, any>

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
 * An aggregate, as far as its projections and subscriptions know it. `Aggregate.make` makes one.
 *
 * @since 0.1.0
 * @category models
 */
export interface Source<A extends Tagged> {
  readonly name: string
  /** Whether its streams are named by its kind, or by ids alone. */
  readonly streams: StreamIds
  /** The schema of its events. */
  // biome-ignore lint/suspicious/noExplicitAny: followers decode stored events of whatever encoded form
  readonly events: Schema.Schema<A, any>
}

/**
 * Makes a projection of typed handlers, one for each event type that concerns it; it passes over all others. A handler
 * receives the decoded event and the stored one around it (kind and id of its aggregate, sequence and timestamp).
 *
 * - With `of: Account` it is about the events of that aggregate, and takes their schema from it. Subscriptions and rebuilds take such
 *   projections.
 * - With `events` alone it is about the events of the aggregate that has it among its `projections`.
 * - With `events` and `of: "all"` it is about the events of all aggregates that have these types.
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
 *     Deposited: (event, { id }) =>
 *       Effect.flatMap(
 *         SqlClient.SqlClient,
 *         (sql) => sql`update balances set amount = amount + ${event.amount} where account = ${id}`
 *       )
 *   }
 * })
 * ```
 */
export const make: {
  <A extends Tagged, Handlers extends ProjectionHandlers<A>>(
    options: Options<Handlers, A> & { readonly of: Source<A> }
  ): Projection.Bound<HandlersError<Handlers> | StoreError, HandlersContext<Handlers>>
  <A extends Tagged, I extends Tagged, Handlers extends ProjectionHandlers<A>>(
    options: Options<Handlers, A> & { readonly of: "all"; readonly events: Schema.Schema<A, I> }
  ): Projection.Bound<HandlersError<Handlers> | StoreError, HandlersContext<Handlers>>
  <A extends Tagged, I extends Tagged, Handlers extends ProjectionHandlers<A>>(
    options: Options<Handlers, A> & { readonly of?: undefined; readonly events: Schema.Schema<A, I> }
  ): Projection<HandlersError<Handlers> | StoreError, HandlersContext<Handlers>>
} = <A extends Tagged, Handlers extends ProjectionHandlers<A>>(
  options: AnyOptions<Handlers, A>
): Projection.Bound<HandlersError<Handlers> | StoreError, HandlersContext<Handlers>> => {
  type E = HandlersError<Handlers>
  type R = HandlersContext<Handlers>
  const codec: EventCodec<A> = makeEventCodec(schemaOf(options))
  const handlers = new Map<string, (event: A, envelope: Envelope) => Effect.Effect<unknown, E, R>>(
    Object.entries(options.project)
  )
  const projection: Projection<E | StoreError, R> = {
    name: options.name,
    ...declaredTables(options.name, options),
    events: [...handlers.keys()],
    project: (stored) => {
      const handler = handlers.get(stored.type)
      return handler === undefined
        ? Effect.void
        : Effect.asVoid(
            Effect.flatMap(codec.decode(`Projection ${options.name}`, stored), (event) =>
              handler(event, envelopeOf(stored))
            )
          )
    }
  }
  return originate(projection, options.of)
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
 *     Deposited: ({ amount }, { id }, sql) => sql`update balances set amount = amount + ${amount} where account = ${id}`
 *   }
 * })
 * ```
 */
export const makeSql: {
  <A extends Tagged, Handlers extends SqlHandlers<A>>(
    options: Options<Handlers, A> & { readonly of: Source<A> }
  ): Projection.Bound<SqlError | StoreError, SqlClient.SqlClient>
  <A extends Tagged, I extends Tagged, Handlers extends SqlHandlers<A>>(
    options: Options<Handlers, A> & { readonly of: "all"; readonly events: Schema.Schema<A, I> }
  ): Projection.Bound<SqlError | StoreError, SqlClient.SqlClient>
  <A extends Tagged, I extends Tagged, Handlers extends SqlHandlers<A>>(
    options: Options<Handlers, A> & { readonly of?: undefined; readonly events: Schema.Schema<A, I> }
  ): Projection<SqlError | StoreError, SqlClient.SqlClient>
} = <A extends Tagged, Handlers extends SqlHandlers<A>>(
  options: AnyOptions<Handlers, A>
): Projection.Bound<SqlError | StoreError, SqlClient.SqlClient> => {
  const codec: EventCodec<A> = makeEventCodec(schemaOf(options))
  const handlers = new Map<string, SqlHandler<A>>(Object.entries(options.project))
  const statements = (stored: Event, sql: SqlClient.SqlClient) => {
    const handler = handlers.get(stored.type)
    return handler === undefined
      ? Either.right([])
      : Either.map(codec.decode(`Projection ${options.name}`, stored), (event) => {
          const some = handler(event, envelopeOf(stored), sql)
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
  const tables = declaredTables(options.name, options)
  return originate({ name: options.name, ...tables, events: [...handlers.keys()], project }, options.of)
}

/**
 * The projection as one of that aggregate, or of `"all"`: so a projection that an aggregate has among its `projections` can be kept by a
 * subscription, or rebuilt. `Account.projections` are bound already. It throws where the projection is of something else.
 *
 * @since 0.1.0
 * @category combinators
 */
export const of = <E, R>(origin: Projection.Origin, projection: Projection<E, R>): Projection.Bound<E, R> => {
  if (projection.of !== undefined && projection.of !== "all") {
    if (origin === "all" || origin.name !== projection.of.name || origin.streams !== projection.of.streams) {
      throw new TypeError(
        `projection ${JSON.stringify(projection.name)} is of aggregate ${projection.of.name}, and can't be of ${origin === "all" ? "all aggregates" : origin.name}`
      )
    }
    return { ...projection, of: projection.of }
  }
  return originate(projection, origin)
}

/**
 * What `make` and `makeSql` have in common.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options<Handlers, A extends Tagged> extends TableOptions {
  /** Names the projection in traces and messages. The record of the tables that it owns has this name too. */
  readonly name: string
  /** The version of the tables that it owns, 1 by default. With a higher one `ProjectionTables` makes them anew, out of all events. */
  readonly version?: number | undefined
  /**
   * The tables that it owns: for each name, as in SQL and without a schema, the statements that make it. `ProjectionTables` runs them. By
   * default the application makes the tables itself.
   */
  readonly tables?: Readonly<Record<string, Projection.TableStatements>> | undefined
  /** What is to be done for each type: with `makeSql`, which statements. */
  readonly project: Handlers & { readonly [K in Exclude<keyof Handlers, A["_tag"]>]: never }
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
    envelope: Envelope
    // biome-ignore lint/suspicious/noExplicitAny: the bound of a type parameter that takes every handler
  ) => Effect.Effect<unknown, any, any>
}

// --- internal ---

interface AnyOptions<Handlers, A extends Tagged> extends Options<Handlers, A> {
  readonly of?: Source<A> | "all" | undefined
  // biome-ignore lint/suspicious/noExplicitAny: stored events have whatever encoded form
  readonly events?: Schema.Schema<A, any> | undefined
}

// biome-ignore lint/suspicious/noExplicitAny: as above
const schemaOf = <A extends Tagged>({ events, name, of }: AnyOptions<unknown, A>): Schema.Schema<A, any> => {
  const schema = typeof of === "object" ? of.events : events
  if (schema === undefined)
    throw new TypeError(`projection ${JSON.stringify(name)} must have \`events\`, or be \`of\` an aggregate`)
  return schema
}

/** A projection of an aggregate with plain ids gets its events with these ids. */
const originate = <E, R>(
  projection: Projection<E, R>,
  origin: Projection.Origin | undefined
): Projection.Bound<E, R> => {
  const of: Projection.Origin | undefined =
    typeof origin === "object" ? { name: origin.name, streams: origin.streams } : origin
  // An unbound projection has no such key; its type has none either.
  if (of === undefined) return projection as Projection.Bound<E, R>
  if (of === "all" || of.streams !== "plain") return { ...projection, of }
  const project = (event: Event) => projection.project(withOwnIds(event))
  const statements = statementsFor(projection.project)
  if (statements !== undefined) provideStatementsFor(project, (event, sql) => statements(withOwnIds(event), sql))
  return { ...projection, of, project }
}

type SqlHandler<A> = (
  event: A,
  envelope: Envelope,
  sql: SqlClient.SqlClient
) => Statement<unknown> | ReadonlyArray<Statement<unknown>>

type HandlersError<Handlers> = HandlerError<Handlers[keyof Handlers]>
type HandlersContext<Handlers> = HandlerContext<Handlers[keyof Handlers]>
