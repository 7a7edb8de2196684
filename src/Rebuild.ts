/**
 * Rebuilds the tables of projections: new tables are filled from all events while the old ones stay in use, and replace
 * them in one transaction.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { EventFeed, Filter } from "./EventFeed.js"
import { checkOwnership } from "./internal/rebuild/checkOwnership.js"
import { abandonRebuild, rebuild } from "./internal/rebuild/rebuild.js"
import type { RebuildOptions } from "./internal/rebuild/rebuildOptions.js"
import { rebuildStatus } from "./internal/rebuild/rebuildRecord.js"
import type { Tables } from "./internal/sql/storeTables.js"
import { withoutReceipts } from "./internal/store/receiptStreams.js"
import type { Projection } from "./Projection.js"
import type { StoreError, ValidationError } from "./StoreError.js"
import type { SubscriptionStore } from "./SubscriptionStore.js"

/**
 * The options of `run`.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options<Projections extends ReadonlyArray<Projection.AnyBound>, E, R> {
  /**
   * The name of this rebuild, such as `balances-2`. A rebuild is done once under its name: a second run finds it
   * finished, or continues it. A name has 1 to 255 characters, and does not begin with `effect-maestro`. Any other name
   * fails with a `ValidationError`.
   */
  readonly name: string
  /**
   * The projections that write the tables, in their new version. Each says whose events it projects:
   * `Account.projections`, `Projection.of(Account, Balances)`, or `of: Account` and `of: "all"` in `Projection.make`.
   */
  readonly projections: Projections
  /** All tables that the projections write. The projections must name them without a schema. */
  readonly tables: readonly [string, ...ReadonlyArray<string>]
  /**
   * Creates the new tables where they have another shape: under their names, without a schema. By default they get the
   * shape of the old ones.
   *
   * These statements then decide on columns, constraints, indexes, sequences, statistics, storage and comments. The new
   * tables keep these settings of the old ones:
   *
   * - the owner, the rights, and the rights on columns that both have;
   * - the replica identity, and the comment on a table where the statements make none;
   * - row level security and policies, unless the statements enable or create any;
   * - a sequence that a default of the new table uses. Other sequences of the old table are dropped.
   */
  readonly create?: Effect.Effect<unknown, E, R> | undefined
  /**
   * The subscription that keeps the tables, for eventual projections. The rebuild projects the events that its filter
   * lets through, and then moves the subscription to its own last event. Without this option the projections are strong
   * ones, which run in all commits. The subscription keeps the number of partitions that it has in the store.
   *
   * The records of `ProjectionTables` say what keeps a table, and a rebuild that does not fit them is refused. For a
   * table without a record you must know it. If the rebuild then leaves out the subscription, that projects events a
   * second time, and the table becomes wrong.
   */
  readonly subscription?:
    | { readonly name: string; readonly partitions: number; readonly filter: Filter | undefined }
    | undefined
  /**
   * How many events are projected in one transaction, at most 10 000. By default these are as many as half a second is
   * enough for, and at least 250.
   */
  readonly batchSize?: number | undefined
  /**
   * How long users of the tables wait at a time, from 100 milliseconds to 1 minute: 2 seconds by default. In the swap
   * the statements that put the new tables in place come on top. `run` says when they wait.
   */
  readonly maxHold?: Duration.DurationInput | undefined
  /** Runs after each batch. */
  readonly onProgress?: ((progress: Progress) => Effect.Effect<unknown>) | undefined
}

/**
 * The progress of a rebuild, after a batch.
 *
 * @since 0.1.0
 * @category models
 */
export interface Progress {
  /** How many events this run and earlier ones have projected. */
  readonly done: number
  /** How many events there are to project, as far as is known. */
  readonly total: number
  /** The rate of this run. */
  readonly eventsPerSecond: number
  /** The time left by that rate; 0 when the rebuild is finished. */
  readonly secondsLeft: number
  /** The longest time for which this run has had users of the tables wait, in milliseconds. */
  readonly longestHoldMillis: number
}

/**
 * The state of a rebuild in the store.
 *
 * @since 0.1.0
 * @category models
 */
export interface Status {
  /** How many events are projected. */
  readonly done: number
  /** How many events there were to project when the last run began. */
  readonly total: number
  readonly finished: boolean
}

/**
 * Rebuilds the tables of projections, and returns how many events this run has projected: 0 when the rebuild was
 * finished before. Then a log line says so, and the tables stay as they are.
 *
 * - Readers and writers of the tables go on meanwhile. At the end they wait until the last few events are projected and
 *   the tables are swapped. A swap that takes longer than `maxHold` is rolled back, and tried again after a pause.
 *   `Progress.longestHoldMillis` and a log line of level Debug say how long they waited at most.
 * - Where writers are faster than the rebuild, writers of the tables wait during some of its batches, for `maxHold` at
 *   most. Reads go on. At first this is a fifth of the time, and more where that is not enough. Where commits without
 *   the projections are faster, too, all writers of the store wait. So the rebuild ends under load, if a batch of
 *   `maxHold` projects more events than come in between two batches. Otherwise raise `maxHold`.
 * - The statements of many events are sent together. An effect whose statement is an `insert`, `update` or `delete`
 *   without `returning` goes on before the statement is sent. Where one fails, the batch is rolled back and each event
 *   is projected by itself. So what an effect does outside the database may happen more than once, also for events
 *   after the one that fails.
 * - A transaction that uses a table for long, such as a report, delays the swap and not your commands. The swap gives
 *   up its lock request within half a second, and waits until that transaction has ended. A warning names its session.
 * - An open transaction anywhere on the server may hold back more events than the swap can project quickly
 *   (`EventFeed.heldBack`). The rebuild of strong projections then waits for its end, and logs a warning that names its
 *   session.
 * - No event is skipped or projected twice. For strong projections, the swap projects all events that are committed
 *   when the tables are locked. A subscription continues at the position where the rebuild has ended.
 * - After a kill, run it again: it continues after the last batch. Of several processes one works. The others wait, and
 *   find it finished.
 * - A failure of a projection ends the run, and the projected batches are kept. The log names projection, event and
 *   aggregate, as an error. Correct the projection and run it again, or `abandon` the rebuild.
 * - A deferred constraint is checked at the end of each batch. Its failure is a `StoreError` that names the rebuild and
 *   its projections. Where the events of one commit violate it in between, a greater `batchSize` may keep them
 *   together.
 * - A projection that declares tables is refused before the first event, unless `tables` names all of them. Any other
 *   projection that writes a table that is not named is refused when it does, and its batch is rolled back.
 *
 * To make strong projections eventual, or eventual ones strong, end all processes that run them the old way. Then
 * rebuild with `subscription`, or without it.
 *
 * The tables must be ordinary ones. The new table keeps what belongs to the old one: owner, rights (also revoked ones),
 * row level security and policies, constraints and indexes. It keeps extended statistics, storage, comments, and
 * sequences with their state, too.
 *
 * An object outside that depends on a table would be lost. The rebuild then fails with `Misconfigured` before the first
 * event, and names the object. Such objects are views, rules, triggers, foreign keys, and functions and columns of the
 * row type. Others are publications, inheritance, partitions, extensions, event triggers that would fire, and what else
 * the database knows. Foreign keys among the tables are allowed with `create`. The check runs again before the swap. If
 * it fails then, the old tables stay, and the next run continues.
 *
 * A REPEATABLE READ or SERIALIZABLE transaction of yours with an older snapshot than the swap can't commit with strong
 * projections any more. It fails with `Contention`; run the whole transaction again. If it reads the new table itself,
 * the table is empty, as after a TRUNCATE.
 *
 * A higher version of a projection that owns tables needs no call of this function (`ProjectionTables`). For the same
 * version, such as after rows were changed by hand, this function rebuilds the tables by the projection's own
 * statements. It fails with `Misconfigured` without all tables of the projection, with `create`, or where the record is
 * of another projection, version or keeper. All projections of a subscription are rebuilt together.
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
 * Returns the state of a rebuild, in whichever process it runs; none if it was never begun.
 *
 * @since 0.1.0
 * @category accessors
 */
export const status = rebuildStatus

/**
 * Abandons a rebuild and drops its shadow tables. A finished rebuild is forgotten, so that it can be run again. A
 * process that works for the rebuild fails.
 *
 * @since 0.1.0
 * @category operations
 */
export const abandon = abandonRebuild

// --- internal ---

const checkedRebuild = <E, R>(options: RebuildOptions<E, R>) =>
  rebuild<E, R>({ ...options, check: checkOwnership(options) })
