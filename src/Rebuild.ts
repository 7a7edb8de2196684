/**
 * Rebuilding projections: the new version of their tables is made beside the old one, out of all events, while everybody goes on reading
 * and writing the old one; then it takes its place, in one transaction.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type { EventFeed, Filter } from "./EventFeed.js"
import { abandonRebuild, rebuild, rebuildStatus } from "./internal/rebuilding.js"
import { withoutReceipts } from "./internal/receipt.js"
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
   * Names this rebuild, such as `balances-2`. It is done once: whoever runs it again finds it done, or goes on where it was
   * interrupted. A name has 1 to 255 characters, and does not begin with `effect-maestro`; another is a `ValidationError`.
   */
  readonly name: string
  /**
   * The projections whose tables they are, as they are to be from now on. Each says whose events it is about: `Account.projections`,
   * `Projection.of(Account, Balances)`, or `of: Account` and `of: "all"` in `Projection.make`.
   */
  readonly projections: Projections
  /** The tables that the projections write, all of them. The projections must name them without a schema. */
  readonly tables: readonly [string, ...ReadonlyArray<string>]
  /**
   * Makes the new tables, where they are to be other than the old ones: by the same names, without a schema. By default they are
   * like the old ones, with their defaults, constraints and indexes.
   */
  readonly create?: Effect.Effect<unknown, E, R> | undefined
  /**
   * The subscription that keeps the tables, for eventual projections: the rebuild projects what its filter lets through, and it goes on behind
   * the rebuild's last event. Without it the projections are taken for strong ones, which all who commit run.
   */
  readonly subscription?:
    | { readonly name: string; readonly partitions: number; readonly filter: Filter | undefined }
    | undefined
  /** As many events as are projected in one transaction: 1 000 by default, at most 10 000. */
  readonly batchSize?: number | undefined
  /** Is told after each batch how far it is. */
  readonly onProgress?: ((progress: Progress) => Effect.Effect<unknown>) | undefined
}

/**
 * How far a rebuild is.
 *
 * @since 0.1.0
 * @category models
 */
export interface Progress {
  /** Events projected so far, by earlier runs too. */
  readonly done: number
  /** Events there are to project, as far as is known. */
  readonly total: number
  /** Of this run. */
  readonly eventsPerSecond: number
  /** By that rate; 0 when it is done. */
  readonly secondsLeft: number
}

/**
 * How a rebuild stands in the store.
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
 * Rebuilds the tables of projections, and answers how many events that took; 0 when it was done before.
 *
 * - Readers and writers go on meanwhile. At the end they wait for as long as it takes to project the last few events and to rename the
 *   tables; where others use them for long, it lets them go first and tries again.
 * - Nothing is skipped and nothing comes twice: for strong projections it ends with all that is committed while nobody can project;
 *   for a subscription, the subscription goes on exactly where the rebuild has ended.
 * - After a kill, run it again: it goes on behind the last batch. Of several processes one works; the others wait, and find it done.
 * - A projection's failure ends it, with all that is done kept. Mend the projection and run it again, or `abandon` it.
 * - A projection that writes other tables than those named is refused, before it has written anything there.
 *
 * It is also the way from strong to eventual and back: change how the projections are run, then rebuild, with `subscription` or without.
 *
 * The tables must be ordinary ones without views, foreign keys, triggers or policies on them, which would be lost: it says so before it
 * begins. Owner, rights, indexes and their names, and sequences of columns are kept. It needs the store in SQL.
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
  EventFeed | SubscriptionStore | Projection.Context<Projections[number]> | R
> =>
  rebuild<Projection.Error<Projections[number]> | E, Projection.Context<Projections[number]> | R>({
    ...options,
    projections: options.projections.map((projection) => withoutReceipts(projection))
  }).pipe(Effect.withSpan("Rebuild.run", { attributes: { rebuild: options.name }, captureStackTrace: false }))

/**
 * How far a rebuild is, whoever runs it; none where it was never begun.
 *
 * @since 0.1.0
 * @category accessors
 */
export const status = rebuildStatus

/**
 * Gives up a rebuild that was begun, with the tables that it has made, or forgets one that is done, so that it can be run again.
 *
 * @since 0.1.0
 * @category operations
 */
export const abandon = abandonRebuild
