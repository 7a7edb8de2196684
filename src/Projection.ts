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
import { located, refusalFor, withoutSqlError } from "./internal/projectionFailure.js"
import { provideStatementsFor, statementsFor } from "./internal/statements.js"
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
 *     Deposited: (event, { aggregateId }) =>
 *       Effect.flatMap(
 *         SqlClient.SqlClient,
 *         (sql) => sql`update balances set amount = amount + ${event.amount} where account = ${aggregateId}`
 *       )
 *   }
 * })
 * ```
 */
export const make = <
  A extends Tagged,
  I extends Tagged,
  Handlers extends ProjectionHandlers<A>,
  Refusals extends ConstraintHandlers<A> = ConstraintHandlers<A, never>
>(options: {
  /** Names the projection in traces and messages. */
  readonly name: string
  /** The events that it is about: one tagged schema, or a union of them. */
  readonly events: Schema.Schema<A, I>
  /** What is to be done for each type. */
  readonly project: Handlers & { readonly [K in Exclude<keyof Handlers, A["_tag"]>]: never }
  /** The refusals that violated constraints stand for, by their names. */
  readonly onConstraint?: Refusals | undefined
}): Projection<
  HandlerError<Handlers[keyof Handlers]> | Refusal<Refusals> | StoreError,
  HandlerContext<Handlers[keyof Handlers]>
> => {
  type E = HandlerError<Handlers[keyof Handlers]>
  type R = HandlerContext<Handlers[keyof Handlers]>
  const { name } = options
  const handlers = new Map<string, (event: A, envelope: Event) => Effect.Effect<unknown, E, R>>(
    Object.entries(options.project)
  )
  const decode = decoding(name, options.events)
  const refusalOf = refusalsOf<A, Refusal<Refusals>>(handlers, decode, options.onConstraint)
  return {
    name,
    events: [...handlers.keys()],
    project: (envelope) => {
      const handler = handlers.get(envelope.type)
      if (handler === undefined) return Effect.void
      const projecting = Effect.asVoid(Effect.flatMap(decode(envelope), (event) => handler(event, envelope)))
      return refusalOf === undefined
        ? projecting
        : Effect.mapError(projecting, (error) => refusalFor(refusalOf, envelope, error) ?? error)
    },
    ...(refusalOf === undefined ? {} : { refusalOf })
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
 *     Deposited: ({ amount }, { aggregateId }, sql) =>
 *       sql`update balances set amount = amount + ${amount} where account = ${aggregateId}`
 *   }
 * })
 * ```
 */
export const makeSql = <
  A extends Tagged,
  I extends Tagged,
  Handlers extends SqlHandlers<A>,
  Refusals extends ConstraintHandlers<A> = ConstraintHandlers<A, never>
>(options: {
  /** Names the projection in traces and messages. */
  readonly name: string
  /** The events that it is about: one tagged schema, or a union of them. */
  readonly events: Schema.Schema<A, I>
  /** Which statements are to be done for each type. */
  readonly project: Handlers & { readonly [K in Exclude<keyof Handlers, A["_tag"]>]: never }
  /** The refusals that violated constraints stand for, by their names. */
  readonly onConstraint?: Refusals | undefined
}): Projection<Refusal<Refusals> | StoreError, SqlClient.SqlClient> => {
  const { name } = options
  const handlers = new Map<string, SqlHandler<A>>(Object.entries(options.project))
  const decode = decoding(name, options.events)
  const refusalOf = refusalsOf<A, Refusal<Refusals>>(handlers, decode, options.onConstraint)
  const statements = (envelope: Event, sql: SqlClient.SqlClient) => {
    const handler = handlers.get(envelope.type)
    return handler === undefined
      ? Either.right([])
      : Either.map(decode(envelope), (event) => {
          const some = handler(event, envelope, sql)
          return Array.isArray(some) ? (some as ReadonlyArray<Statement<unknown>>) : [some as Statement<unknown>]
        })
  }
  const project = (envelope: Event) =>
    Effect.flatMap(SqlClient.SqlClient, (sql) =>
      Effect.flatMap(statements(envelope, sql), (all) =>
        Effect.forEach(all, (statement) => statement, { discard: true })
      )
    ).pipe(Effect.mapError((error) => refusalFor(refusalOf, envelope, error) ?? withoutSqlError(name, envelope, error)))
  provideStatementsFor(project, (envelope, sql) => Either.getOrUndefined(statements(envelope, sql)))
  return { name, events: [...handlers.keys()], project, ...(refusalOf === undefined ? {} : { refusalOf }) }
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
 *       Closed: (_event, { aggregateId }) =>
 *         Effect.flatMap(SqlClient.SqlClient, (sql) => sql`delete from open_accounts where account = ${aggregateId}`)
 *     }
 *   })
 * )
 * ```
 */
export const orStoreError = <E, R>(projection: Projection<E, R>): Projection<Exclude<E, SqlError> | StoreError, R> => {
  const { name, refusalOf } = projection
  const project = (event: Event) =>
    Effect.mapError(projection.project(event), (error) => withoutSqlError(name, event, error))
  const statements = statementsFor(projection.project)
  if (statements !== undefined) provideStatementsFor(project, statements)
  return {
    ...projection,
    project,
    refusalOf:
      refusalOf &&
      ((constraint, event) => {
        const refusal: E | undefined = refusalOf(constraint, event)
        return refusal === undefined ? undefined : withoutSqlError<E>(name, event, refusal)
      })
  }
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

/**
 * What `onConstraint` takes: for the name of a constraint of the database (unique, primary key, check, foreign key, exclusion), or of a
 * unique index, the failure that stands for its violation. A handler returns that failure, or nothing where a violation at this
 * event is none.
 *
 * - It receives the event whose statement has failed, and the stored one around it.
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
 *     Registered: ({ email }, { aggregateId }, sql) => sql`insert into guests (id, email) values (${aggregateId}, ${email})`
 *   },
 *   onConstraint: { guests_email_key: ({ email }) => new EmailTaken({ email }) }
 * })
 * ```
 */
export type ConstraintHandlers<A, E = unknown> = {
  readonly [constraint: string]: (event: A, envelope: Event) => E
}

// --- internal ---

/** What the handlers of constraints return. */
type Refusal<Refusals> = RefusalOf<Refusals[keyof Refusals]>
type RefusalOf<F> = F extends (...args: infer _A) => infer E ? NonNullable<E> : never

type Decode<A> = (envelope: Event) => Either.Either<A, StoreError>

const decoding = <A extends Tagged, I extends Tagged>(name: string, events: Schema.Schema<A, I>): Decode<A> => {
  const codec: EventCodec<A> = makeEventCodec(events)
  return (envelope) =>
    Either.mapLeft(codec.decode(`Projection ${name}`, envelope), (error) => located(name, envelope, error))
}

/** Finds the handler of a constraint, and calls it with the decoded event; none where there are no such handlers. */
const refusalsOf = <A extends Tagged, E>(
  handled: ReadonlyMap<string, unknown>,
  decode: Decode<A>,
  onConstraint: Readonly<Record<string, unknown>> | undefined
): ((constraint: string, envelope: Event) => E | undefined) | undefined => {
  if (onConstraint === undefined) return undefined
  const handlers = new Map(Object.entries(onConstraint))
  return (constraint, envelope) => {
    const handler = handlers.get(constraint) as ((event: A, envelope: Event) => E | undefined) | undefined
    if (handler === undefined || !handled.has(envelope.type)) return undefined
    const event = decode(envelope)
    return Either.isRight(event) ? handler(event.right, envelope) : undefined
  }
}

type SqlHandler<A> = (
  event: A,
  envelope: Event,
  sql: SqlClient.SqlClient
) => Statement<unknown> | ReadonlyArray<Statement<unknown>>

type HandlerError<F> = F extends (...args: infer _A) => Effect.Effect<infer _B, infer E, infer _R> ? E : never
type HandlerContext<F> = F extends (...args: infer _A) => Effect.Effect<infer _B, infer _E, infer R> ? R : never
