/**
 * The tables that projections own: created at the first start of the application, and made anew for a higher version beside those in use.
 *
 * The version of a projection is known from Marten; there, too, the tables of a new version are built beside the old ones.
 *
 * @since 0.1.0
 */
import type * as SqlClient from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { EventFeed, Filter } from "./EventFeed.js"
import { forgetTables, prepareTables } from "./internal/rebuild/tableVersions.js"
import type { Tables } from "./internal/sql/storeTables.js"
import type { TableStatements as Statements } from "./internal/store/ownedTables.js"
import type { Projection } from "./Projection.js"
import type { Progress } from "./Rebuild.js"
import type { StoreError, ValidationError } from "./StoreError.js"
import type { SubscriptionStore } from "./SubscriptionStore.js"

/**
 * The statements that make one table of a projection, with its indexes: one statement or a list. They name the table without a schema.
 *
 * @since 0.1.0
 * @category models
 */
export type TableStatements = Statements

/**
 * The projections whose tables are meant: strong ones, as `Account.projections` has them, or a subscription of
 * `Subscription.fromProjections`, for the eventual ones that it keeps. Strong projections that own no tables are passed over.
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
 * How the tables are made.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options {
  /**
   * What is done where a table is there already, and no record says that this library has made it.
   *
   * - `"refuse"`, the default: it fails with `Misconfigured`, and says which table.
   * - `"rebuild"`: new tables are made out of all events, and replace those that are there.
   * - `"adopt"`: the tables are taken for those of this version as they are, whatever is in them.
   */
  readonly onExisting?: "refuse" | "rebuild" | "adopt" | undefined
  /**
   * What is done where a higher version changes what keeps the tables: the commits themselves, or a subscription.
   *
   * - `"refuse"`, the default: it fails with `Misconfigured`, because a process of the older version would write each event a second time.
   * - `"allow"`: the tables are made anew. Set it only where no process of the older version runs any more.
   */
  readonly onKeeperChange?: "refuse" | "allow" | undefined
  /** As many events as are projected in one transaction when tables are made anew: 1 000 by default, at most 10 000. */
  readonly batchSize?: number | undefined
  /** Is called after each batch. */
  readonly onProgress?: ((progress: Progress) => Effect.Effect<unknown>) | undefined
}

/**
 * Creates the tables that the projections own, or makes them anew, and ends when they are in place. `layer` does it at the start of an application;
 * call this in a deployment step, with a role that may create tables.
 *
 * - **First start.** One of any number of processes creates the tables, in one transaction with their record; the others wait for it. Where events are
 *   stored already that concern the projection, the tables are filled from them first.
 * - **A higher version** than that of the record: new tables are built beside the old ones out of all events, as by `Rebuild.run`, while other
 *   processes go on reading and writing the old ones. Then the new ones replace them. Of several processes one works. After a kill the next
 *   start goes on. A failure of the statements or of a projection leaves the old tables in use; the next start begins from the first event. The log names projection, version, event and aggregate, also of a refusal. A subscription goes on
 *   behind the last event of the rebuild, and all of its tables are made anew together.
 * - **A lower version** than that of the record: the tables stay as they are, and a warning is logged.
 * - **The same version:** it fails with `Misconfigured` where the statements are not those that made the tables (white space does not count), where the
 *   projections are of other aggregates, or where another subscription keeps them. The message says what differs; raise `version`.
 *
 * The statements name tables without a schema: a table is created in the schema that the search path has first. When they have created the tables,
 * they run a second time in a schema of their own, and are rolled back there: statements that could not make the tables of a higher version are
 * `Misconfigured`. A role that may not create schemas is spared this. A table that a higher version does not name any
 * more stays, because processes of the older version write it. Drop it when they are gone.
 *
 * A subscription whose projections own tables begins at the beginning: `Subscription.fromProjections` refuses another `from`, because new
 * tables are made out of all events.
 *
 * It needs the SQL store (`SqlStore.Tables`), and fails with `Misconfigured` inside of a transaction.
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
    batchSize: options.batchSize,
    onProgress: options.onProgress
  }).pipe(Effect.withSpan("ProjectionTables.prepare", { captureStackTrace: false }))
}

/**
 * A layer that is there when the tables are in place: see `prepare`. Provide it below the layer of the aggregate, or of the subscription.
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
 * Forgets which tables of a projection were made, and leaves the tables themselves. Returns whether there was a record. The next start
 * of a projection whose tables were dropped makes them anew out of all events.
 *
 * @since 0.1.0
 * @category operations
 */
export const forget: (projection: string) => Effect.Effect<boolean, StoreError, Tables> = forgetTables
