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
import type { Envelope, Event, StreamIds } from "./Event.js"
import type { HandlerContext, HandlerError, Tagged } from "./internal/codec/eventCodec.js"
import { envelopeOf, type Origin as OriginOf, withOwnIds } from "./internal/store/origin.js"
import { declaredTables, type TableOptions } from "./internal/store/declaredTables.js"
import { decodingFor, refusalFor, refusalsOf, withoutSqlError } from "./internal/store/projectionFailure.js"
import { provideStatementsFor, statementsFor } from "./internal/store/statements.js"
import type { StoreError } from "./StoreError.js"

/**
 * A strong projection. `project` runs for every event of a commit, one after the other, in the transaction that stores
 * them. When it fails with `E`, nothing is stored, and the commit fails with it. It writes its tables
 * through `SqlClient`, as part of the transaction. Your migrations make them, or the projection owns them (`tables`).
 *
 * It runs again when the commit is tried again, so what it does beside the database (a mail, a call) may be done
 * more than once, or for a commit that failed in the end.
 *
 * @since 0.1.0
 * @category models
 */
export interface Projection<out E = never, out R = never> extends TableOptions {
  /** Names the projection in traces and messages. */
  readonly name: string
  /** The types of the events that concern it: all, when it does not say. A commit without them takes the short way. */
  readonly events?: ReadonlyArray<string> | undefined
  /**
   * Whose events concern it: those of one aggregate, or of `"all"`. A projection without it is of the aggregate that has it among its
   * `projections`; see `Projection.of`.
   */
  readonly of?: Projection.Origin | undefined
  /** What is to be done for one event. */
  readonly project: (event: Event) => Effect.Effect<void, E, R>
  /**
   * The refusal that the projection declares for a violated constraint, at an event; none where it declares none. `make` and `makeSql`
   * make it of `onConstraint`. `project` fails with the refusal itself, where one of its statements violates the constraint. The store asks
   * for it where the constraint was deferred, and COMMIT fails.
   */
  readonly refusalOf?: ((constraint: string, event: Event) => E | undefined) | undefined
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
 * A stored event of a named type that the schema can't decode fails the commit with `StoreError` (`UnreadableEvent`). Failures of the handlers
 * stay what they are, but that `onConstraint` makes refusals of violated constraints. `orStoreError` makes a `StoreError` of each
 * other `SqlError`.
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
  <
    A extends Tagged,
    Handlers extends ProjectionHandlers<A>,
    Types extends A["_tag"],
    Refusals extends ConstraintHandlers<Handled<A, Types>>
  >(
    options: Options<Handlers, A, Types, Refusals> & BoundTo<A>
  ): Projection.Bound<HandlersError<Handlers> | Refusal<Refusals> | StoreError, HandlersContext<Handlers>>
  <
    A extends Tagged,
    I extends Tagged,
    Handlers extends ProjectionHandlers<A>,
    Types extends A["_tag"],
    Refusals extends ConstraintHandlers<Handled<A, Types>>
  >(
    options: Options<Handlers, A, Types, Refusals> & { readonly of?: undefined; readonly events: Schema.Schema<A, I> }
  ): Projection<HandlersError<Handlers> | Refusal<Refusals> | StoreError, HandlersContext<Handlers>>
} = <
  A extends Tagged,
  Handlers extends ProjectionHandlers<A>,
  Types extends A["_tag"],
  Refusals extends ConstraintHandlers<Handled<A, Types>>
>(
  options: AnyOptions<Handlers, A, Types, Refusals>
): Projection.Bound<HandlersError<Handlers> | Refusal<Refusals> | StoreError, HandlersContext<Handlers>> => {
  type E = HandlersError<Handlers>
  type R = HandlersContext<Handlers>
  const { name } = options
  const handlers = new Map<string, (event: A, envelope: Envelope) => Effect.Effect<unknown, E, R>>(
    Object.entries(options.project)
  )
  const decode = decodingFor(name, schemaOf(options))
  const refusalOf = refusalsOf<A, Refusal<Refusals>>(name, handlers, decode, options.onConstraint)
  const projection: Projection<E | Refusal<Refusals> | StoreError, R> = {
    name,
    ...declaredTables(name, options),
    events: [...handlers.keys()],
    project: (stored) => {
      const handler = handlers.get(stored.type)
      if (handler === undefined) return Effect.void
      const projecting = Effect.asVoid(Effect.flatMap(decode(stored), (event) => handler(event, envelopeOf(stored))))
      return refusalOf === undefined
        ? projecting
        : Effect.mapError(projecting, (error) => refusalFor(refusalOf, stored, error) ?? error)
    },
    ...(refusalOf === undefined ? {} : { refusalOf })
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
 * A stored event of a named type that the schema can't decode fails the commit with `StoreError` (`UnreadableEvent`). So does a statement that
 * fails, with the reason that the database gives, such as `Constraint` or `Misconfigured`; the error says projection, event, table and
 * constraint. A violated constraint that `onConstraint` names is the refusal that it returns.
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
  <
    A extends Tagged,
    Handlers extends SqlHandlers<A>,
    Types extends A["_tag"],
    Refusals extends ConstraintHandlers<Handled<A, Types>>
  >(
    options: Options<Handlers, A, Types, Refusals> & BoundTo<A>
  ): Projection.Bound<Refusal<Refusals> | StoreError, SqlClient.SqlClient>
  <
    A extends Tagged,
    I extends Tagged,
    Handlers extends SqlHandlers<A>,
    Types extends A["_tag"],
    Refusals extends ConstraintHandlers<Handled<A, Types>>
  >(
    options: Options<Handlers, A, Types, Refusals> & { readonly of?: undefined; readonly events: Schema.Schema<A, I> }
  ): Projection<Refusal<Refusals> | StoreError, SqlClient.SqlClient>
} = <
  A extends Tagged,
  Handlers extends SqlHandlers<A>,
  Types extends A["_tag"],
  Refusals extends ConstraintHandlers<Handled<A, Types>>
>(
  options: AnyOptions<Handlers, A, Types, Refusals>
): Projection.Bound<Refusal<Refusals> | StoreError, SqlClient.SqlClient> => {
  const { name } = options
  const handlers = new Map<string, SqlHandler<A>>(Object.entries(options.project))
  const decode = decodingFor(name, schemaOf(options))
  const refusalOf = refusalsOf<A, Refusal<Refusals>>(name, handlers, decode, options.onConstraint)
  const statements = (stored: Event, sql: SqlClient.SqlClient) => {
    const handler = handlers.get(stored.type)
    return handler === undefined
      ? Either.right([])
      : Either.map(decode(stored), (event) => {
          const some = handler(event, envelopeOf(stored), sql)
          return Array.isArray(some) ? (some as ReadonlyArray<Statement<unknown>>) : [some as Statement<unknown>]
        })
  }
  const project = (stored: Event) =>
    Effect.flatMap(SqlClient.SqlClient, (sql) =>
      Effect.flatMap(statements(stored, sql), (all) => Effect.forEach(all, (statement) => statement, { discard: true }))
    ).pipe(Effect.mapError((error) => refusalFor(refusalOf, stored, error) ?? withoutSqlError(name, stored, error)))
  provideStatementsFor(project, (stored, sql) => Either.getOrUndefined(statements(stored, sql)))
  const tables = declaredTables(name, options)
  return originate(
    { name, ...tables, events: [...handlers.keys()], project, ...(refusalOf === undefined ? {} : { refusalOf }) },
    options.of
  )
}

/**
 * Makes a `StoreError` of each `SqlError` that a projection fails with, as `makeSql` does, so that `evaluate` has one kind of failure for the
 * database. The error says projection and event, and table and constraint where the database does. All other failures stay, refusals by
 * `onConstraint` too. What may not happen again is retried as before.
 *
 * @since 0.1.0
 * @category combinators
 *
 * @example
 * ```ts
 * import { SqlClient } from "@effect/sql"
 * import { Projection, type StoreError } from "effect-maestro"
 * import * as Effect from "effect/Effect"
 * import * as Schema from "effect/Schema"
 *
 * class Closed extends Schema.TaggedClass<Closed>()("Closed", {}) {}
 *
 * // Its failures are `StoreError` alone.
 * export const Open: Projection.Projection<StoreError.StoreError, SqlClient.SqlClient> = Projection.orStoreError(
 *   Projection.make({
 *     name: "open accounts",
 *     events: Closed,
 *     project: {
 *       Closed: (_event, { id }) =>
 *         Effect.flatMap(SqlClient.SqlClient, (sql) => sql`delete from open_accounts where account = ${id}`)
 *     }
 *   })
 * )
 * ```
 */
export const orStoreError: {
  <E, R>(projection: Projection.Bound<E, R>): Projection.Bound<Exclude<E, SqlError> | StoreError, R>
  <E, R>(projection: Projection<E, R>): Projection<Exclude<E, SqlError> | StoreError, R>
} = <E, R>(projection: Projection<E, R>): Projection.Bound<Exclude<E, SqlError> | StoreError, R> => {
  const { name, refusalOf } = projection
  const project = (event: Event) =>
    Effect.mapError(projection.project(event), (error) => withoutSqlError(name, event, error))
  const statements = statementsFor(projection.project)
  if (statements !== undefined) provideStatementsFor(project, statements)
  const converted: Projection<Exclude<E, SqlError> | StoreError, R> = {
    ...projection,
    project,
    refusalOf:
      refusalOf &&
      ((constraint, event) => {
        const refusal: E | undefined = refusalOf(constraint, event)
        return refusal === undefined ? undefined : withoutSqlError<E>(name, event, refusal)
      })
  }
  // It is bound if the projection is.
  return converted as Projection.Bound<Exclude<E, SqlError> | StoreError, R>
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
export interface Options<
  Handlers,
  A extends Tagged,
  Types extends A["_tag"] = A["_tag"],
  Refusals = ConstraintHandlers<A>
> extends TableOptions {
  /** Names the projection in traces and messages. */
  readonly name: string
  /** What is to be done for each type: with `makeSql`, which statements. `Types` are the types that have a handler. */
  readonly project: Handlers & { readonly [K in Types]?: unknown } & {
    readonly [K in Exclude<keyof Handlers, A["_tag"]>]: never
  }
  /**
   * The refusals that violated constraints of the database stand for, by the constraints' names. Its handlers receive events of the types
   * that `project` handles, and no others.
   */
  readonly onConstraint?: Refusals | undefined
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

/**
 * What `onConstraint` takes: for the name of a constraint of the database (unique, primary key, check, foreign key, exclusion), or of a
 * unique index, the failure that stands for its violation. A handler returns that failure, or nothing where a violation at this
 * event is none.
 *
 * - It receives the event whose statement has failed, and the stored one around it. Its type is one of those that `project` handles.
 * - It returns the error itself. An effect that fails with it does not compile, and leaves the violation a `StoreError`.
 * - A deferred constraint is checked at COMMIT, which names no statement. There it is the first projection of the commit, and its first event,
 *   whose handler returns a failure. Inside a transaction of yours, a deferred constraint is checked at your own COMMIT, and is yours.
 * - A violated `not null` has no name; it stays a `StoreError` that says the column. A partition has constraints of its own names.
 *
 * @since 0.1.0
 * @category models
 *
 * @example
 * ```ts
 * import { Projection } from "effect-maestro"
 * import * as Schema from "effect/Schema"
 *
 * class Registered extends Schema.TaggedClass<Registered>()("Registered", { email: Schema.String }) {}
 * class EmailTaken extends Schema.TaggedError<EmailTaken>()("EmailTaken", { email: Schema.String }) {}
 *
 * // create table guests (id text primary key, email text not null unique)
 * export const Guests = Projection.makeSql({
 *   name: "guests",
 *   events: Registered,
 *   project: {
 *     Registered: ({ email }, { id }, sql) => sql`insert into guests (id, email) values (${id}, ${email})`
 *   },
 *   onConstraint: { guests_email_key: ({ email }) => new EmailTaken({ email }) }
 * })
 * ```
 */
export type ConstraintHandlers<A, E = ConstraintRefusal | undefined> = {
  readonly [constraint: string]: (event: A, envelope: Envelope) => E
}

/**
 * What a handler of `onConstraint` may return: a tagged error, such as an instance of `Schema.TaggedError`, or another tagged object. An
 * effect that fails with it is none: return the error itself.
 *
 * @since 0.1.0
 * @category models
 */
export type ConstraintRefusal = TaggedError | TaggedNoEffect

// --- internal ---

/** The events that have a handler. */
type Handled<A extends Tagged, Types> = Extract<A, { readonly _tag: Types }>

/** What the handlers of constraints return. Without such handlers the compiler infers the bound of their type, which has any name. */
type Refusal<Refusals> = string extends keyof Refusals
  ? DeclaredRefusal<ReturnOf<Refusals[string]>>
  : NonNullable<ReturnOf<Refusals[keyof Refusals]>>
type DeclaredRefusal<E> = [ConstraintRefusal] extends [E] ? never : NonNullable<E>
type ReturnOf<F> = F extends (...args: infer _A) => infer E ? E : never

/** Instances of `Schema.TaggedError` are effects, too. */
interface TaggedError extends Error, Tagged {}

/** `Either`, `Exit` and `Option` have a tag, and are effects. */
interface TaggedNoEffect extends Tagged {
  readonly [Effect.EffectTypeId]?: never
}

/** Whose events a projection is about, where it says so. */
type BoundTo<A extends Tagged> =
  | { readonly of: Source<A>; readonly events?: undefined }
  // biome-ignore lint/suspicious/noExplicitAny: stored events have whatever encoded form
  | { readonly of: "all"; readonly events: Schema.Schema<A, any> }

interface AnyOptions<Handlers, A extends Tagged, Types extends A["_tag"], Refusals>
  extends Options<Handlers, A, Types, Refusals> {
  readonly of?: Source<A> | "all" | undefined
  // biome-ignore lint/suspicious/noExplicitAny: stored events have whatever encoded form
  readonly events?: Schema.Schema<A, any> | undefined
}

// biome-ignore lint/suspicious/noExplicitAny: as above
const schemaOf = <A extends Tagged>(options: AnyOptions<unknown, A, A["_tag"], unknown>): Schema.Schema<A, any> => {
  const { events, name, of } = options
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
  const { refusalOf } = projection
  return {
    ...projection,
    of,
    project,
    refusalOf: refusalOf && ((constraint, event) => refusalOf(constraint, withOwnIds(event)))
  }
}

type SqlHandler<A> = (
  event: A,
  envelope: Envelope,
  sql: SqlClient.SqlClient
) => Statement<unknown> | ReadonlyArray<Statement<unknown>>

type HandlersError<Handlers> = HandlerError<Handlers[keyof Handlers]>
type HandlersContext<Handlers> = HandlerContext<Handlers[keyof Handlers]>
