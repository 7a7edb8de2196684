/**
 * Rebuilds the tables of projections: new tables are filled from all events while the old ones stay in use, and replace them in one
 * transaction.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type { EventFeed, Filter } from "./EventFeed.js"
import { checkOwned } from "./internal/rebuild/ownedTables.js"
import { abandonRebuild, rebuild, rebuildStatus } from "./internal/rebuild/rebuild.js"
import type { Tables } from "./internal/sql/storeTables.js"
import { withoutReceipts } from "./internal/store/receiptStreams.js"
import type { Projection } from "./Projection.js"
import type { StoreError, ValidationError } from "./StoreError.js"
import type { SubscriptionStore } from "./SubscriptionStore.js"

/**
 * What is to be rebuilt.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options<Projections extends ReadonlyArray<Projection.AnyBound>, E, R> {
  /**
   * Names this rebuild, such as `balances-2`. A rebuild is done once by its name. A second run finds it done, or goes on where the first
   * one was interrupted. A name has 1 to 255 characters, and does not begin with `effect-maestro`; another is a `ValidationError`.
   */
  readonly name: string
  /**
   * The projections that write the tables, in their new version. Each says whose events it is about: `Account.projections`,
   * `Projection.of(Account, Balances)`, or `of: Account` and `of: "all"` in `Projection.make`.
   */
  readonly projections: Projections
  /** The tables that the projections write, all of them. The projections must name them without a schema. */
  readonly tables: readonly [string, ...ReadonlyArray<string>]
  /**
   * Makes the new tables where they have another shape: by the same names, without a schema. By default they are equal to the old ones.
   *
   * These statements then decide on columns, constraints, indexes, sequences, statistics, storage and comments. Of the old tables remain:
   * owner, rights, rights on columns that both have, the replica identity, and the comment on a table where they make none. Row level
   * security and policies remain, unless these statements enable or create any. A sequence of the old table remains where a default of the
   * new one uses it, and is dropped otherwise.
   */
  readonly create?: Effect.Effect<unknown, E, R> | undefined
  /**
   * The subscription that keeps the tables, for eventual projections: the rebuild projects what its filter lets through, and it goes on behind
   * the rebuild's last event. Without it the projections are taken for strong ones, which all commits run.
   *
   * Only the records of `ProjectionTables` say what keeps a table: a rebuild that does not fit them is refused. Of a table without a record
   * nothing tells whether a subscription keeps it. A rebuild that leaves its subscription out makes that table wrong, because the subscription
   * projects events again that the rebuild has projected.
   */
  readonly subscription?:
    | { readonly name: string; readonly partitions: number; readonly filter: Filter | undefined }
    | undefined
  /** As many events as are projected in one transaction: 1 000 by default, at most 10 000. */
  readonly batchSize?: number | undefined
  /** Runs after each batch. */
  readonly onProgress?: ((progress: Progress) => Effect.Effect<unknown>) | undefined
}

/**
 * How far a rebuild is.
 *
 * @since 0.1.0
 * @category models
 */
export interface Progress {
  /** The events that this run and earlier ones have projected. */
  readonly done: number
  /** The events that there are to project, as far as is known. */
  readonly total: number
  /** The rate of this run. */
  readonly eventsPerSecond: number
  /** The time left by that rate; 0 when the rebuild is done. */
  readonly secondsLeft: number
}

/**
 * What the store knows of a rebuild.
 *
 * @since 0.1.0
 * @category models
 */
export interface Status {
  readonly done: number
  readonly total: number
  readonly finished: boolean
}

/**
 * Rebuilds the tables of projections, and returns how many events this run has projected: 0 when the rebuild was done before.
 *
 * - Readers and writers of the tables go on meanwhile. At the end they wait until the last few events are projected and the tables are
 *   swapped. If a transaction uses the tables for longer, the swap gives up its lock and tries again.
 * - An open transaction anywhere on the server may hold back more events than the swap can project quickly (`EventFeed.heldBack`). The rebuild of
 *   strong projections then waits for that transaction to end, and logs a warning that names its session.
 * - No event is skipped or projected twice. For strong projections, the swap projects all that is committed while the tables are locked.
 *   A subscription goes on exactly where the rebuild has ended.
 * - After a kill, run it again: it goes on behind the last batch. Of several processes one works; the others wait, and find it done.
 * - A failure of a projection ends the run, and what was done is kept. The log names projection, event and aggregate, as an error. Mend the projection and run it again, or `abandon` the rebuild.
 * - A projection that writes other tables than those named is refused, and its batch is rolled back.
 *
 * To make strong projections eventual, or the other way round, end all processes that run them the old way, then rebuild with `subscription` or without.
 *
 * The tables must be ordinary ones. What belongs to a table is carried over exactly: owner, rights (also revoked ones), row level
 * security and policies, constraints, indexes, extended statistics, storage, comments, and sequences with their state. What hangs on it from
 * outside would be lost, so the rebuild fails with `Misconfigured` before it begins, and names it: views, rules, triggers, foreign
 * keys, functions and columns of its row type, publications, inheritance, partitions, extensions, event triggers that would fire, and
 * whatever else the database knows. Foreign keys among the tables are allowed with `create`. The check runs again before the
 * tables are swapped; where it fails then, the old tables stay, and the next run goes on.
 *
 * A REPEATABLE READ or SERIALIZABLE transaction of yours with an older snapshot than the swap can't commit with strong projections any more: it
 * fails with `Contention`, so run the whole transaction again. What it reads from the new table itself is empty, as after a TRUNCATE.
 *
 * Tables that a projection owns are made anew by a higher version of it. For the same version, such as after rows were changed by hand, this
 * function makes them anew by the projection's own statements. It is refused with `Misconfigured` without all tables of the projection, or with
 * `create`, or where the record of `ProjectionTables` is of another projection, version or keeper. All projections of a subscription are
 * rebuilt together.
 *
 * It needs the SQL store (`SqlStore.Tables`), and fails with `Misconfigured` inside of a transaction.
 *
 * @since 0.1.0
 * @category constructors
 *
 * @example
 * ```ts
 * import { SqlClient } from "@effect/sql"
 * import { Aggregate, Projection, Rebuild } from "effect-maestro"
 * import * as Console from "effect/Console"
 * import * as Effect from "effect/Effect"
 * import * as Schema from "effect/Schema"
 *
 * class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", { amount: Schema.Positive }) {}
 *
 * const Balances = Projection.make({
 *   name: "balances",
 *   events: Deposited,
 *   project: {
 *     Deposited: (event, { id }) =>
 *       Effect.flatMap(
 *         SqlClient.SqlClient,
 *         (sql) => sql`insert into balances as b (account, amount) values (${id}, ${event.amount})
 *           on conflict (account) do update set amount = b.amount + excluded.amount`
 *       )
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
 * export const program = Rebuild.run({
 *   name: "balances-2",
 *   projections: Account.projections,
 *   tables: ["balances"],
 *   onProgress: ({ done, secondsLeft, total }) => Console.log(`${done} of ${total}, ${secondsLeft} s left`)
 * })
 * ```
 */
export const run = <const Projections extends ReadonlyArray<Projection.AnyBound>, E = never, R = never>(
  options: Options<Projections, E, R>
): Effect.Effect<
  number,
  Projection.Error<Projections[number]> | E | ValidationError | StoreError,
  EventFeed | SubscriptionStore | Tables | Projection.Context<Projections[number]> | R
> =>
  checkedRebuild<Projection.Error<Projections[number]> | E, Projection.Context<Projections[number]> | R>({
    ...options,
    projections: options.projections.map((projection) => withoutReceipts(projection))
  }).pipe(Effect.withSpan("Rebuild.run", { attributes: { rebuild: options.name }, captureStackTrace: false }))

/**
 * How far a rebuild is, in whichever process it runs; none if it was never begun.
 *
 * @since 0.1.0
 * @category accessors
 */
export const status = rebuildStatus

/**
 * Gives up a rebuild that was begun, and drops the tables that it has made; or forgets one that is done, so that it can be run again.
 *
 * @since 0.1.0
 * @category operations
 */
export const abandon = abandonRebuild

// --- internal ---

const checkedRebuild = <E, R>(plan: Parameters<typeof rebuild<E, R>>[0]) =>
  rebuild<E, R>({ ...plan, check: checkOwned(plan) })
