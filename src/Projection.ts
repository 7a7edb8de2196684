/**
 * Strong projections, as data: for each event the work that runs inside the transaction that commits it. Marten and
 * Emmett call them inline projections. `Aggregate.make` takes them, and so do `Subscription.fromProjections` and
 * `Rebuild.run`.
 *
 * @since 0.1.0
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type { Statement } from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import type * as Schema from "effect/Schema"
import type { Envelope, Event, StreamIds } from "./Event.js"
import type { Tagged } from "./internal/codec/eventCodec.js"
import type { TableOptions } from "./internal/store/declaredTables.js"
import { makeEffectProjection, makeSqlProjection } from "./internal/store/makeProjection.js"
import { bindTo, checkHistory, hasIds, withIdsOf } from "./internal/store/origin.js"
import { convertRefusals, withoutSqlError } from "./internal/store/projectionFailure.js"
import type {
  Handled,
  HandlersContext,
  HandlersError,
  Refusal,
  SqlHandler,
  TaggedError,
  TaggedNoEffect
} from "./internal/store/projectionTypes.js"
import { project as runProjection } from "./internal/store/runProjections.js"
import type { StoreError } from "./StoreError.js"

/**
 * A strong projection: an effect for each event, or SQL statements for each event. It runs for every event of a commit
 * that it handles, one after the other, in the transaction that stores them. When it fails with `E`, nothing is stored
 * and the commit fails with it.
 *
 * It writes its tables through `SqlClient`, as part of the transaction. Your migrations create them, or the projection
 * owns them (`tables`).
 *
 * It runs again when the commit is retried. So an effect outside the database, such as a mail, may happen more than
 * once, or for a commit that fails later.
 *
 * @since 0.1.0
 * @category models
 */
export type Projection<E = never, R = never> = EffectProjection<E, R> | SqlProjection<E, R>

/**
 * A projection that runs an effect for each event. `make` makes one.
 *
 * @since 0.1.0
 * @category models
 */
export interface EffectProjection<out E = never, out R = never> extends Projection.Base<E> {
  /** Runs for one event. */
  readonly project: (event: Event) => Effect.Effect<void, E, R>
  readonly statements?: undefined
}

/**
 * A projection that is SQL statements and nothing else. `makeSql` makes one. On Postgres the store sends the events and
 * the statements in one round trip.
 *
 * @since 0.1.0
 * @category models
 */
export interface SqlProjection<out E = never, out R = never> extends Projection.Base<E> {
  /**
   * Returns the statements for one event; the store runs them in this order. It is called before the store accepts the
   * event, and maybe again, so it must have no side effects. A statement that fails is a `StoreError`, or the refusal
   * of the violated constraint.
   */
  readonly statements: (event: Event) => Effect.Effect<ReadonlyArray<Statement<unknown>>, E, R>
  readonly project?: undefined
}

/**
 * @since 0.1.0
 * @category models
 */
export declare namespace Projection {
  /**
   * What both kinds of projections have.
   *
   * @since 0.1.0
   * @category models
   */
  export interface Base<out E = never> extends TableOptions {
    /** Names the projection in traces and messages. */
    readonly name: string
    /** The types of the events that it handles; all by default. A commit without such events does not run it. */
    readonly events?: ReadonlyArray<string> | undefined
    /**
     * Whose events it handles: those of one aggregate, or of `"all"`. A projection without it is of the aggregate that
     * has it among its `projections`; see `Projection.of`.
     */
    readonly of?: Origin | undefined
    /**
     * The refusal that the projection declares for a violated constraint, at an event. `make` and `makeSql` make it of
     * `onConstraint`. An effect fails with the refusal itself, where one of its statements violates the constraint. The
     * store calls `refusalOf` for a failed statement of a `SqlProjection`, and for a deferred constraint that fails at
     * COMMIT.
     */
    readonly refusalOf?: ((constraint: string, event: Event) => E | undefined) | undefined
    /**
     * The schema by which it reads events: `make` and `makeSql` set it. An aggregate refuses a projection whose schema
     * lacks the history of its own events (`Upcast.events`), because it would miss old events, or misread them.
     */
    readonly schema?: Schema.Schema.Any | undefined
  }

  /**
   * Any projection.
   *
   * @since 0.1.0
   * @category models
   */
  // biome-ignore lint/suspicious/noExplicitAny: the bound of a type parameter that takes every projection
  export type Any = Projection<any, any>

  /**
   * Whose events a projection handles: those of one aggregate, known by its kind, or of all.
   *
   * @since 0.1.0
   * @category models
   */
  export type Origin = "all" | { readonly name: string; readonly kind: string; readonly streams: StreamIds }

  /**
   * A projection that says whose events it handles, so that a subscription or a rebuild can find them.
   *
   * @since 0.1.0
   * @category models
   */
  export type Bound<E = never, R = never> = Projection<E, R> & { readonly of: Origin }

  /**
   * Any projection that says whose events it handles.
   *
   * @since 0.1.0
   * @category models
   */
  // biome-ignore lint/suspicious/noExplicitAny: the bound of a type parameter that takes every projection
  export type AnyBound = Bound<any, any>

  /**
   * The failures of a projection.
   *
   * @since 0.1.0
   * @category models
   */
  export type Error<P> =
    P extends EffectProjection<infer E, infer _R>
      ? E
      : P extends SqlProjection<infer E, infer _R>
        ? E | StoreError
        : never

  /**
   * The services that a projection needs.
   *
   * @since 0.1.0
   * @category models
   */
  export type Context<P> = P extends Projection<infer _E, infer R> ? R : never
}

/**
 * What projections and subscriptions need of an aggregate. `Aggregate.make` makes one.
 *
 * @since 0.1.0
 * @category models
 */
export interface Source<A extends Tagged, Id extends string = string> {
  readonly name: string
  /** The kind under which its events are stored. */
  readonly kind: string
  /** The schema of its ids. */
  // biome-ignore lint/suspicious/noExplicitAny: the encoded form is text of any type
  readonly id: Schema.Schema<Id, any>
  /** How its streams are named: by kind and id, or by the id alone. */
  readonly streams: StreamIds
  /** The schema of its events. */
  // biome-ignore lint/suspicious/noExplicitAny: stored events have any encoded form
  readonly events: Schema.Schema<A, any>
}

/**
 * Makes a projection of typed handlers, one for each event type that it handles. A handler receives the decoded event,
 * and the envelope with the kind and id of its aggregate, the sequence and the timestamp.
 *
 * - With `of: Account` it handles the events of that aggregate, and takes their schema from it. Subscriptions and
 *   rebuilds take such projections.
 * - With `events` alone it handles the events of the aggregate that has it among its `projections`.
 * - With `events` and `of: "all"` it handles the events of all aggregates that have these types.
 *
 * A stored event of a handled type that the schema can't decode fails the commit with `StoreError` (`UnreadableEvent`).
 * The failures of the handlers stay as they are, except for violated constraints that `onConstraint` names.
 * `orStoreError` makes a `StoreError` of every other `SqlError`.
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
    Handlers extends ProjectionHandlers<A, Id>,
    Types extends A["_tag"],
    Refusals extends ConstraintHandlers<Handled<A, Types>, ConstraintRefusal | undefined, Id>,
    Id extends string = string
  >(
    options: Options<Handlers, A, Types, Refusals> & BoundTo<A, Id>
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
} = makeEffectProjection

/**
 * Makes a projection that is SQL statements and nothing else. The handler of an event type returns a statement, or a
 * list of them. On Postgres the events and the statements are one transaction in one round trip. Emmett calls such
 * projections raw SQL projections.
 *
 * A handler only returns statements of the `sql` that it is given. It runs before the store accepts the event, and may
 * run again, so it must have no side effects. The results of its statements are discarded. It has no access to the
 * caller's context, so the values that a statement needs must be in the event or in its `metadata`
 * (`Aggregate.Metadata`). Where a result decides the next statement, use `make`.
 *
 * A stored event of a handled type that the schema can't decode fails the commit with `StoreError` (`UnreadableEvent`).
 * So does a statement that fails, with the reason that the database gives, such as `Constraint` or `Misconfigured`. The
 * error names projection, event, table and constraint. For a violated constraint that `onConstraint` names, the commit
 * fails with the refusal that its handler returns.
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
 * export const Balances = Projection.makeSql({ name: "balances", events: Deposited, project: { Deposited: ({ amount },
 * { id }, sql) => sql`update balances set amount = amount + ${amount} where account = ${id}` } })
 * ```
 */
export const makeSql: {
  <
    A extends Tagged,
    Handlers extends SqlHandlers<A, Id>,
    Types extends A["_tag"],
    Refusals extends ConstraintHandlers<Handled<A, Types>, ConstraintRefusal | undefined, Id>,
    Id extends string = string
  >(
    options: Options<Handlers, A, Types, Refusals> & BoundTo<A, Id>
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
} = makeSqlProjection

/**
 * Makes a projection that runs the statements of a `SqlProjection` as an effect, and returns any other one as it is.
 * Use it to wrap a projection of either kind: `{ ...effectful, project: (event) => around(effectful.project(event)) }`.
 *
 * @since 0.1.0
 * @category combinators
 */
export const toEffect = <E, R>(projection: Projection<E, R>): EffectProjection<E | StoreError, R> =>
  projection.project === undefined
    ? { ...projection, statements: undefined, project: (event) => runProjection(projection, event) }
    : projection

/**
 * Makes a `StoreError` of each `SqlError` that a projection fails with, as `makeSql` does, so that `evaluate` has one
 * kind of failure for the database. The error names projection and event, and table and constraint where the database
 * does. All other failures stay as they are, and so do refusals by `onConstraint`. Transient failures are retried as
 * before.
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
  type Failure = Exclude<E, SqlError> | StoreError
  const { name } = projection
  const convert = <A>(event: Event, effect: Effect.Effect<A, E, R>): Effect.Effect<A, Failure, R> =>
    Effect.mapError(effect, (error) => withoutSqlError(name, event, error))
  const refusalOf = projection.refusalOf && convertRefusals(projection.refusalOf, name)
  const converted: Projection<Failure, R> =
    projection.project === undefined
      ? { ...projection, refusalOf, statements: (event) => convert(event, projection.statements(event)) }
      : { ...projection, refusalOf, project: (event) => convert(event, projection.project(event)) }
  // It is bound if the projection is.
  return converted as Projection.Bound<Failure, R>
}

/**
 * Binds the projection to that aggregate, or to `"all"`, so that a subscription can run it and `Rebuild.run` can
 * rebuild it. `Account.projections` are bound already. Throws a `TypeError` if the projection is of another aggregate,
 * or if the schema of its events lacks the history of the aggregate's.
 *
 * @since 0.1.0
 * @category combinators
 */
export const of = <E, R>(origin: Projection.Origin, projection: Projection<E, R>): Projection.Bound<E, R> => {
  if (projection.of !== undefined && projection.of !== "all") {
    if (origin === "all" || origin.kind !== projection.of.kind || origin.streams !== projection.of.streams) {
      throw new TypeError(
        `projection ${JSON.stringify(projection.name)} is of aggregate ${projection.of.name}, and can't be of ${origin === "all" ? "all aggregates" : origin.name}`
      )
    }
    return { ...projection, of: projection.of }
  }
  checkHistory(origin, projection)
  const bound = bindTo(origin, projection)
  // Callers pass the aggregate itself, too.
  return origin !== "all" && hasIds(origin) ? (withIdsOf(origin, [bound])[0] ?? bound) : bound
}

/**
 * The options of `make` and `makeSql`.
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
  /** The handler of each type. `Types` are the types that have a handler. */
  readonly project: Handlers & { readonly [K in Types]?: unknown } & {
    readonly [K in Exclude<keyof Handlers, A["_tag"]>]: never
  }
  /** The refusals for violated constraints of the database, by the names of the constraints. */
  readonly onConstraint?: Refusals | undefined
}

/**
 * The handlers of `makeSql`, by event type.
 *
 * @since 0.1.0
 * @category models
 */
export type SqlHandlers<A extends Tagged, Id extends string = string> = {
  readonly [K in A["_tag"]]?: SqlHandler<Extract<A, { readonly _tag: K }>, Id>
}

/**
 * The handlers of `make`, by event type.
 *
 * @since 0.1.0
 * @category models
 */
export type ProjectionHandlers<A extends Tagged, Id extends string = string> = {
  readonly [K in A["_tag"]]?: (
    event: Extract<A, { readonly _tag: K }>,
    envelope: Envelope<Id>
    // biome-ignore lint/suspicious/noExplicitAny: the bound of a type parameter that takes every handler
  ) => Effect.Effect<unknown, any, any>
}

/**
 * The handlers of `onConstraint`, by the name of a constraint of the database (unique, primary key, check, foreign key,
 * exclusion), or of a unique index. A handler returns the refusal, or `undefined` if the violation at this event is no
 * refusal.
 *
 * - It receives the event whose statement has failed, and its envelope. `project` has a handler for the type of the
 *   event.
 * - It returns the error itself. An effect that fails with it does not compile, and leaves the violation a
 *   `StoreError`.
 * - A deferred constraint is checked at COMMIT, which names no statement. Then the first projection of the commit, and
 *   its first event, whose handler returns a refusal decide. Inside your own transaction it is checked at your COMMIT,
 *   and no handler is called.
 * - A violated `not null` has no name; it stays a `StoreError` that names the column. The constraints of a partition
 *   have names of their own.
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
export type ConstraintHandlers<A, E = ConstraintRefusal | undefined, Id extends string = string> = {
  /** By the name of the constraint. */
  readonly [constraint: string]: (event: A, envelope: Envelope<Id>) => E
}

/**
 * The refusals that a handler of `onConstraint` may return: a tagged error, such as an instance of
 * `Schema.TaggedError`, or another tagged object, but no effect.
 *
 * @since 0.1.0
 * @category models
 */
export type ConstraintRefusal = TaggedError | TaggedNoEffect

// --- internal ---

/** The options of a projection that says whose events it handles. */
type BoundTo<A extends Tagged, Id extends string> =
  | { readonly of: Source<A, Id>; readonly events?: undefined }
  // biome-ignore lint/suspicious/noExplicitAny: stored events have any encoded form
  | { readonly of: "all"; readonly events: Schema.Schema<A, any> }
