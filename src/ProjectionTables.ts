/**
 * Creates the tables that projections own at the first start of the application. For a higher version it builds new
 * tables beside those in use.
 *
 * Marten has projection versions, too, and also builds the tables of a new version beside the old ones.
 *
 * @since 0.1.0
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { EventFeed, Filter } from "./EventFeed.js"
import { forgetTables, prepareTables } from "./internal/rebuild/prepareTables.js"
import type { Tables } from "./internal/sql/storeTables.js"
import type { TableStatements as Statements } from "./internal/store/declaredTables.js"
import type { Projection } from "./Projection.js"
import type { Progress } from "./Rebuild.js"
import type { StoreError, ValidationError } from "./StoreError.js"
import type { SubscriptionStore } from "./SubscriptionStore.js"

/**
 * The statements that create one table of a projection, with its indexes: one statement or a list. They name the table
 * without a schema.
 *
 * @since 0.1.0
 * @category models
 */
export type TableStatements = Statements

/**
 * The projections whose tables are prepared: strong ones, as in `Account.projections`, or the eventual ones of a
 * subscription that `Subscription.fromProjections` returned. Strong projections that own no tables are left out.
 *
 * @since 0.1.0
 * @category models
 */
export type Source =
  | ReadonlyArray<Projection.AnyBound>
  | {
      readonly name: string
      readonly partitions: number
      readonly filter: Filter | undefined
      readonly projections: ReadonlyArray<Projection.AnyBound>
    }

/**
 * @since 0.1.0
 * @category models
 */
export declare namespace Source {
  /**
   * The projections of a source.
   *
   * @since 0.1.0
   * @category models
   */
  export type Each<S> =
    S extends ReadonlyArray<infer P> ? P : S extends { readonly projections: ReadonlyArray<infer P> } ? P : never
}

/**
 * The options of `prepare` and `layer`.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options {
  /**
   * What happens where a table exists, and no record says that this library has created it.
   *
   * - `"refuse"`, the default: it fails with `Misconfigured`, and names the table.
   * - `"rebuild"`: new tables are built from all events, and replace the existing ones.
   * - `"adopt"`: the existing tables become those of this version, with the rows that they have.
   */
  readonly onExisting?: "refuse" | "rebuild" | "adopt" | undefined
  /**
   * What happens where a higher version changes what keeps the tables: the commits themselves, or a subscription.
   *
   * - `"refuse"`, the default: it fails with `Misconfigured`, because a process of the older version would write each
   *   event a second time.
   * - `"allow"`: new tables are built. Set it only where no process of the older version runs any more.
   */
  readonly onKeeperChange?: "refuse" | "allow" | undefined
  /**
   * What happens where a higher version is given without an aggregate whose events are in the tables.
   *
   * - `"refuse"`, the default: it fails with `Misconfigured`, because the new tables would lose the rows of that
   *   aggregate.
   * - `"allow"`: new tables are built from the events of the given aggregates.
   */
  readonly onFewerAggregates?: "refuse" | "allow" | undefined
  /**
   * How many events a rebuild projects in one transaction, at most 10 000. By default these are as many as half a second
   * is enough for, and at least 250.
   */
  readonly batchSize?: number | undefined
  /**
   * How long a rebuild has users of the tables wait at a time, from 100 milliseconds to 1 minute: 2 seconds by default,
   * see `Rebuild.Options`.
   */
  readonly maxHold?: Duration.DurationInput | undefined
  /** Runs after each batch. */
  readonly onProgress?: ((progress: Progress) => Effect.Effect<unknown>) | undefined
}

/**
 * Creates the tables that the projections own, or builds those of a higher version, and succeeds when they are in
 * place. `layer` does it at the start of an application. Call this function in a deployment step, with a role that may
 * create tables.
 *
 * - **First start.** One of several processes creates the tables, in one transaction with their record. The others wait
 *   for it. Where events are stored that concern the projection, the tables are filled from them first.
 * - **A higher version** than that of the record: new tables are built from all events beside the old ones, as by
 *   `Rebuild.run`. Other processes go on reading and writing the old tables until the new ones replace them. Of several
 *   processes one works. After a kill the next start continues. A subscription continues after the last event of the
 *   rebuild, and all of its tables are built together.
 * - **A lower version** than that of the record: the tables stay as they are, and a warning is logged.
 * - **An equal version:** it fails with `Misconfigured` where statements, aggregates or keeper are not those of the
 *   record. White space does not count. The message says what differs; raise `version`.
 *
 * **It can fail with a refusal of a projection.** A stored event may violate a constraint that the tables of a new
 * version have, and that `onConstraint` declares. No command is there to refuse, because the event is stored. So the
 * refusal ends the start, and the log names projection, version, event and aggregate. The old tables stay in use.
 * Change the constraint or the projection, so that it accepts all stored events, and start again. The next start begins
 * with the first event. The same holds for each other failure of a projection or of its statements.
 *
 * The statements name tables without a schema, and the database creates them in the first schema of the search path.
 * Then the statements run a second time, in another schema, and are rolled back. Where they could not create the tables
 * of a higher version in that way, it fails with `Misconfigured`. So it does where another object has a name that their
 * indexes or sequences need. This check is left out for a role that may not create schemas.
 *
 * A table that a higher version does not name any more stays, because processes of the older version write it. Drop it
 * when they have ended.
 *
 * A subscription whose projections own tables begins at the beginning: `Subscription.fromProjections` refuses another
 * `from`, because new tables are made out of all events.
 *
 * It needs the SQL store (`SqlStore.Tables`), and fails with `Misconfigured` inside of a transaction. An invalid option
 * fails with a `ValidationError`, also where the tables are in place.
 *
 * @since 0.1.0
 * @category constructors
 */
export const prepare = <const S extends Source>(
  source: S,
  options: Options = {}
): Effect.Effect<
  void,
  Projection.Error<Source.Each<S>> | ValidationError | StoreError,
  EventFeed | SubscriptionStore | Tables | SqlClient.SqlClient | Projection.Context<Source.Each<S>>
> => {
  type E = Projection.Error<Source.Each<S>>
  type R = Projection.Context<Source.Each<S>>
  const isKept = "projections" in source
  return prepareTables<E, R>({
    projections: isKept ? source.projections : source,
    subscription: isKept ? source : undefined,
    onExisting: options.onExisting ?? "refuse",
    onKeeperChange: options.onKeeperChange ?? "refuse",
    onFewerAggregates: options.onFewerAggregates ?? "refuse",
    batchSize: options.batchSize,
    maxHold: options.maxHold,
    onProgress: options.onProgress
  }).pipe(Effect.withSpan("ProjectionTables.prepare", { captureStackTrace: false }))
}

/**
 * A layer that is built when the tables are in place: see `prepare`, also for the failures. Provide it below the layer
 * of the aggregate or of the subscription.
 *
 * @since 0.1.0
 * @category layers
 *
 * @example
 * ```ts
 * import { Aggregate, Projection, ProjectionTables } from "effect-maestro"
 * import * as Effect from "effect/Effect"
 * import * as Layer from "effect/Layer"
 * import * as Schema from "effect/Schema"
 *
 * class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", { amount: Schema.Positive }) {}
 *
 * const Balances = Projection.makeSql({
 *   name: "balances",
 *   events: Deposited,
 *   version: 1,
 *   tables: {
 *     balances: (sql) => sql`create table balances (account text primary key, amount int not null)`
 *   },
 *   project: {
 *     Deposited: ({ amount }, { id }, sql) =>
 *       sql`insert into balances as b (account, amount) values (${id}, ${amount})
 *         on conflict (account) do update set amount = b.amount + excluded.amount`
 *   }
 * })
 *
 * const Account = Aggregate.make("Account", {
 *   state: Schema.Number,
 *   initialState: 0,
 *   events: Deposited,
 *   commands: Deposited,
 *   decide: { Deposited: (command) => Effect.succeed([command]) },
 *   evolve: { Deposited: (balance, { amount }) => balance + amount },
 *   projections: [Balances]
 * })
 *
 * export const AccountLive = Account.layer.pipe(Layer.provide(ProjectionTables.layer(Account.projections)))
 * ```
 */
export const layer = <const S extends Source>(
  source: S,
  options?: Options
): Layer.Layer<
  never,
  Projection.Error<Source.Each<S>> | ValidationError | StoreError,
  EventFeed | SubscriptionStore | Tables | SqlClient.SqlClient | Projection.Context<Source.Each<S>>
> => Layer.effectDiscard(prepare(source, options))

/**
 * Deletes the record of a projection's tables, and leaves the tables themselves. Returns whether there was a record. If
 * the tables were dropped, the next start builds them from all events.
 *
 * @since 0.1.0
 * @category operations
 */
export const forget: (projection: string) => Effect.Effect<boolean, StoreError, Tables> = forgetTables
