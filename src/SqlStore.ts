/**
 * The store on Postgres, on any `SqlClient` for it: a server by `@effect/sql-pg`, or the embedded one of `PgliteClient`.
 *
 * @since 0.1.0
 */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { EventFeed } from "./EventFeed.js"
import { textProblem } from "./internal/codec/json.js"
import { makeAppendEvents } from "./internal/sql/commit/appendEvents.js"
import { makeCommitStatements, upsertSnapshot } from "./internal/sql/commitStatements.js"
import { makeSqlFeed } from "./internal/sql/feed.js"
import { checkFeedOrder } from "./internal/sql/feedOrder.js"
import { checkPartitions } from "./internal/sql/logPartitions.js"
import { checkSchema, feedOrderOf, type LogOptions, migrate as migrateSchema } from "./internal/sql/migrations.js"
import { makeNotifications, type Notifications } from "./internal/sql/notifications.js"
import { partitionLog as partition } from "./internal/sql/partitionLog.js"
import { CommandRunner } from "./internal/sql/pg/commandRunner.js"
import { isEmbedded } from "./internal/sql/pg/driver.js"
import { execute, retryDisturbed } from "./internal/sql/pg/execute.js"
import { makeReads } from "./internal/sql/readStream.js"
import { repair } from "./internal/sql/repair.js"
import { checkReadFrom, makeReplica, type Replica } from "./internal/sql/replica.js"
import { makeReplicaReads } from "./internal/sql/replicaReads.js"
import { makeSend } from "./internal/sql/sendCommits.js"
import { Tables } from "./internal/sql/storeTables.js"
import { makeSqlSubscriptions } from "./internal/sql/subscriptions.js"
import type { FeedOrder, LogTable } from "./internal/store/pageBytes.js"
import { type EncodedStore, makeEncoded, StoreAdapter, type StoreAdapterService } from "./StoreAdapter.js"
import { StoreError } from "./StoreError.js"
import { SubscriptionStore } from "./SubscriptionStore.js"

/**
 * Options of the store.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options<out R = never> {
  /**
   * The Postgres schema that holds the store's tables, `maestro` by default; several stores can share a database. At most
   * 63 bytes.
   */
  readonly schema?: string | undefined
  /**
   * Whether the layer creates and updates the tables when it is built; `true` by default. With `false` they have to be there:
   * `SqlStore.migrate` makes them, in a role that has the right.
   */
  readonly migrate?: boolean | undefined
  /**
   * Into how many partitions the table `event_log` is divided when it is created, by a hash of `aggregate_id`: a whole number from 1 to 256. It
   * is one ordinary table by default. 16 is sensible: each statement on the feed takes about six locks for each partition, so many need a
   * higher `max_locks_per_transaction` of the server.
   *
   * An existing log is never changed by it. Without the option each log is right. With another number than the log has, the layer fails with
   * `Misconfigured`; `SqlStore.partitionLog` changes the log.
   */
  readonly logPartitions?: number | undefined
  /**
   * What the order of the feed is made of in a new log: `"transactionIds"` by default, or `"counter"`. A counter is for databases that speak
   * Postgres and have no ids of transactions that rise.
   *
   * With a counter a transaction that has appended makes all other appends wait until it ends. The feed shows events as soon as they are
   * committed.
   *
   * A log keeps its order. Without the option each log is right. With another order than the log has, the layer fails with `Misconfigured`.
   */
  readonly feedOrder?: FeedOrder | undefined
  /**
   * How often, at least, the feed polls for new events while something waits for them: every 500 milliseconds by default. Commits of this
   * store wake the waiters whose filter may let their events through, immediately or, in a burst, every 15 milliseconds. Commits of other
   * processes wake them by a notification of the database, if the client is that of `@effect/sql-pg` and its pool has four connections or
   * more. Polling finds all others, such as the end of your own transaction.
   */
  readonly pollInterval?: Duration.DurationInput | undefined
  /**
   * Whether the statements that are sent most are prepared in each session; `true` by default. It saves the server a third of the time of a
   * short commit. A session that loses its prepared statements costs a further round trip, and no commit. So `true` works behind a
   * pooler in transaction mode, but `false` is faster there if the pooler does not keep prepared statements. The embedded database does not
   * prepare.
   */
  readonly preparedStatements?: boolean | undefined
  /**
   * A layer of the client of a replica: a physical standby of the database. The layer is built with the store, and `R` is what it requires.
   *
   * Readers of the feed that are behind get their pages from it, and queries that ask for it (`fromReplica`) are answered by it. Everything
   * else uses the client of the store. If the replica can't be read, because it is down, promoted or of another timeline, the primary is read
   * in its place. Another database fails the layer with `Misconfigured`.
   */
  readonly readFrom?: Layer.Layer<SqlClient.SqlClient, unknown, R> | undefined
}

export {
  /**
   * Where the store has its tables. `Rebuild` and `ProjectionTables` require it, so that they compile on this store alone.
   *
   * @since 0.1.0
   * @category tags
   */
  Tables
} from "./internal/sql/storeTables.js"

/**
 * Makes the store alone, without the feed. When the scope closes, commits in flight end first. No fiber, timer or listener is left.
 *
 * Inside a transaction of yours every statement of the store has a savepoint. So the transaction stays usable after a failure that you
 * handle. Without it Postgres would refuse all later statements, and reply to COMMIT with a silent rollback.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = <R = never>(
  options?: Options<R>
): Effect.Effect<StoreAdapterService, StoreError, SqlClient.SqlClient | Scope.Scope | R> => {
  checkReadFrom(options?.readFrom)
  return Effect.flatMap(findFoundation(options), makeOn)
}

/**
 * The store in the schema `maestro`, whose tables it creates and updates when it is built, with its feed and the store of subscriptions.
 *
 * @since 0.1.0
 * @category layers
 *
 * @example
 * ```ts
 * import { PgClient } from "@effect/sql-pg"
 * import { SqlStore } from "effect-maestro"
 * import * as Layer from "effect/Layer"
 * import * as Redacted from "effect/Redacted"
 *
 * export const StoreLive = SqlStore.layer.pipe(
 *   Layer.provideMerge(PgClient.layer({ url: Redacted.make("postgres://localhost:5432/shop") }))
 * )
 * ```
 */
export const layer: Layer.Layer<
  StoreAdapter | EventFeed | SubscriptionStore | Tables,
  StoreError,
  SqlClient.SqlClient
> = Layer.suspend(() => layerWith({}))

/**
 * The store with options.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerWith = <R = never>(
  options: Options<R>
): Layer.Layer<
  StoreAdapter | EventFeed | SubscriptionStore | Tables,
  StoreError,
  SqlClient.SqlClient | Exclude<R, Scope.Scope>
> => {
  checkReadFrom(options.readFrom)
  return Layer.scopedContext(
    Effect.gen(function* () {
      const foundation = yield* findFoundation(options)
      const { client, log, name, notifications, replica, runner } = foundation
      const tables = { ...log, name, isEmbedded: isEmbedded(client) }
      const store = yield* makeOn(foundation)
      const feed = yield* makeSqlFeed(
        log,
        runner,
        notifications,
        Duration.toMillis(options.pollInterval ?? usualPollInterval),
        replica
      )
      return Context.make(StoreAdapter, store).pipe(
        Context.add(EventFeed, feed),
        Context.add(SubscriptionStore, makeSqlSubscriptions(tables, runner, notifications)),
        Context.add(Tables, tables)
      )
    })
  )
}

export {
  /**
   * Lets the replica of the store (the option `readFrom`) answer the queries of an effect: `get`, `fetch`, `root`, `exists`, `replay` and
   * `history` of aggregates. They may return an older state, but never one without the events of `after`.
   *
   * The primary answers, without a failure of the query, where the replica can't be read, where a read fails there, or where it does not have
   * the events in time. It also answers what a transaction or the decision of a command reads. `evaluate` never reads the replica, and no state
   * of it is cached. `get` still returns a cached state.
   *
   * Without the option `readFrom`, on other stores, and for aggregates of a cluster, it has no effect.
   *
   * @since 0.1.0
   * @category replicas
   *
   * @example
   * ```ts
   * import { Aggregate, MemoryStore, SqlStore } from "effect-maestro"
   * import * as Effect from "effect/Effect"
   * import * as Layer from "effect/Layer"
   * import * as Schema from "effect/Schema"
   *
   * class Renamed extends Schema.TaggedClass<Renamed>()("Renamed", { title: Schema.String }) {}
   *
   * const Page = Aggregate.make("Page", {
   *   state: Schema.String,
   *   initialState: "",
   *   events: Renamed,
   *   commands: Renamed,
   *   decide: { Renamed: (command) => Effect.succeed([command]) },
   *   evolve: { Renamed: (_, { title }) => title }
   * })
   *
   * export const program = Effect.gen(function* () {
   *   const { position } = yield* Page.evaluate("home", new Renamed({ title: "Welcome" }))
   *   return yield* Page.fetch("home").pipe(SqlStore.fromReplica({ after: position })) // prints: Welcome
   * }).pipe(Effect.provide(Page.layer.pipe(Layer.provideMerge(MemoryStore.layer))))
   * ```
   */
  fromReplica,
  /**
   * What a query expects of the replica.
   *
   * @since 0.1.0
   * @category models
   */
  type ReplicaOptions
} from "./internal/sql/fromReplica.js"

/**
 * Creates or updates the tables, for layers with `migrate: false`: in a deployment step, in a role that has the right. Any number of
 * nodes may do so concurrently.
 *
 * @since 0.1.0
 * @category migrations
 */
export const migrate = (
  options?: Pick<Options, "schema" | "logPartitions" | "feedOrder">
): Effect.Effect<void, StoreError, SqlClient.SqlClient> =>
  Effect.flatMap(resolve(options), ({ name, schema, sql, wanted }) =>
    Effect.asVoid(migrateSchema(sql, name, schema, wanted))
  )

/**
 * Repairs the feed after the database was restored from a dump into a server whose transaction ids start anew. Without it the feed would
 * not show the restored events, because their transactions seem to be in the future. The order of the events and the checkpoints of
 * subscriptions stay. Positions that you keep elsewhere become invalid. Returns whether a repair was needed.
 *
 * Layers that migrate call it. Until then reads of the feed, rebuilds and `partitionLog` fail with `Misconfigured`. It ends all leases, so a
 * subscription that runs meanwhile goes on from its checkpoint, and one that delivers at least once may handle a batch again.
 *
 * It locks the log, and replaces it by a copy as `partitionLog` does. A million events took 8 seconds on two cores, and ten million 107, with as
 * much WAL as the log has bytes. Transactions that began before meet the copy as they meet that of `partitionLog`.
 *
 * It changes the rows in their place where it can't copy the log: where `partitionLog` would refuse it, and where it has foreign keys or
 * partitions of another make. So it does for a role that does not own the log, and in a transaction of yours above READ COMMITTED. That took 35
 * seconds for a million events, and ten times the WAL. Triggers of yours on updates then run for each event.
 *
 * `pg_upgrade`, replicas and file-system backups keep their transaction ids, so they need no repair. Where the order is `"counter"`, positions
 * stay valid. A counter that is behind its log is raised.
 *
 * @since 0.1.0
 * @category migrations
 */
export const repairAfterRestore = (
  options?: Pick<Options, "schema">
): Effect.Effect<boolean, StoreError, SqlClient.SqlClient> =>
  Effect.flatMap(resolve(options), ({ name, schema, sql }) =>
    Effect.flatMap(feedOrderOf(sql, name, schema, "repairAfterRestore"), (feedOrder) =>
      repair({ feedOrder, name, schema, sql })
    )
  )

/**
 * Gives the event log another number of partitions: a whole number from 1 to 256, where 1 makes one ordinary table of it. Returns whether it had
 * another number. A layer that has the option `logPartitions` has to have the new number when it is built the next time.
 *
 * The events, their positions and the checkpoints of subscriptions stay as they are. So do the owner, privileges, names, indexes, constraints,
 * statistics, triggers and comments of the log. It is done as a whole or not at all.
 *
 * A log with anything else that would be lost fails with `Misconfigured` before events are copied, and the failure names it. Such are storage
 * parameters, row security, rules, publications, subscriptions of logical replication, privileges on columns, and privileges that another role
 * than the owner has granted. So are privileges on a partition that their role does not have on the log, and objects that depend on the log,
 * such as views and foreign keys. Remove them before the change, and create them again afterwards.
 *
 * It may be called while the store is in use, by a role that owns the log and may create in its schema. The log is locked meanwhile, so commits
 * and reads wait, and none fails. A million events of 250 bytes took 17 to 21 seconds on two busy cores, for 16 partitions, and the copy needs
 * as much disk as the log. In a transaction of yours it has to be READ COMMITTED.
 *
 * A REPEATABLE READ or SERIALIZABLE transaction of yours that began before fails with a serialization failure when it loads an aggregate
 * afterwards. Its other reads find no events, as after each change of Postgres that writes a table anew. A single statement that waits for the
 * change is such a transaction, too, where the database or the role has a stricter `default_transaction_isolation`.
 *
 * @since 0.1.0
 * @category migrations
 */
export const partitionLog = (
  options: Pick<Options, "schema"> & { readonly partitions: number }
): Effect.Effect<boolean, StoreError, SqlClient.SqlClient> =>
  Effect.zipRight(
    // A caller without types may leave it out.
    checkPartitions("partitions", options?.partitions),
    Effect.flatMap(resolve(options), ({ name, schema, sql }) => partition(sql, name, schema, options.partitions))
  )

// --- internal ---

const usualPollInterval = "500 millis"

/** What a store is made on. */
interface Foundation {
  /** The client of the application. The store uses it without its transforms. */
  readonly client: SqlClient.SqlClient
  readonly name: string
  readonly log: LogTable
  readonly notifications: Notifications
  readonly runner: CommandRunner
  readonly replica: Replica | undefined
}

/** Brings the schema up to date, or checks it. */
const findFoundation = <R>(
  options: Options<R> | undefined
): Effect.Effect<Foundation, StoreError, SqlClient.SqlClient | Scope.Scope | R> =>
  Effect.gen(function* () {
    const { client, name, schema, sql, wanted } = yield* resolve(options)
    const isMigrating = options?.migrate !== false
    const { feedOrder, measuring } = yield* isMigrating
      ? migrateSchema(sql, name, schema, wanted)
      : checkSchema(sql, name, schema, wanted, "SqlStore")
    const log = { feedOrder, measuring, schema, sql }
    if (isMigrating) yield* repair({ ...log, name })
    const preparedStatements = options?.preparedStatements !== false
    const runner = new CommandRunner(sql, preparedStatements)
    const notifications = yield* makeNotifications(client, name, runner)
    const readFrom = options?.readFrom
    const replica =
      readFrom === undefined ? undefined : yield* makeReplica(readFrom, name, { log, runner }, preparedStatements)
    return { client, name, log, notifications, runner, replica }
  })

const makeOn = ({
  client,
  log,
  notifications,
  replica,
  runner
}: Foundation): Effect.Effect<StoreAdapterService, never, Scope.Scope> =>
  Effect.gen(function* () {
    const { sql } = log
    const statements = makeCommitStatements(log, isEmbedded(client), runner)
    const { append, appendWith } = yield* makeAppendEvents({
      client,
      runner,
      send: yield* makeSend(runner, statements),
      signals: notifications,
      statements
    })
    const reads = makeReads(log, runner)
    const encoded: EncodedStore = {
      name: "SqlStore",
      append,
      appendWith,
      putSnapshot: (snapshot) =>
        // Outside a transaction the statement is its own commit, and one of unknown outcome does no harm when it is repeated.
        Effect.asVoid(
          retryDisturbed(
            execute(
              sql,
              { operation: "commitSnapshot", phase: "committing" },
              upsertSnapshot(sql, log.schema, snapshot)
            )
          )
        ),
      ...reads
    }
    const store = makeEncoded(encoded)
    if (replica === undefined) return store
    const readsFor = makeReplicaReads(replica, reads)
    return {
      ...store,
      replica: {
        replaces: store,
        readsFor: (query) => Effect.map(readsFor(query), (reads) => makeEncoded({ ...encoded, ...reads }))
      }
    }
  })

const resolve = (options: Pick<Options, "schema" | "logPartitions" | "feedOrder"> | undefined) =>
  Effect.gen(function* () {
    if (options?.logPartitions !== undefined) yield* checkPartitions("logPartitions", options.logPartitions)
    yield* checkFeedOrder(options?.feedOrder)
    const name: unknown = options?.schema ?? "maestro"
    if (!isSchemaName(name)) {
      return yield* new StoreError({
        reason: "Misconfigured",
        operation: "SqlStore",
        description: `the schema's name must be 1 to 63 bytes without NUL, and ${typeof name === "string" ? JSON.stringify(name) : typeof name} is not`
      })
    }
    // Without transforms, which would rename keys inside of stored JSON. The schema is a literal, so that no transform changes its name.
    const client = yield* SqlClient.SqlClient
    const sql = client.withoutTransforms()
    const wanted: LogOptions = { partitions: options?.logPartitions, feedOrder: options?.feedOrder }
    return { client, name, schema: sql.literal(quoteIdentifier(name)), sql, wanted }
  })

const isSchemaName = (name: unknown): name is string => {
  if (typeof name !== "string" || textProblem(name) !== undefined) return false
  const bytes = new TextEncoder().encode(name).length
  return bytes >= 1 && bytes <= 63
}

/** Quotes a name as one identifier. `@effect/sql` would take a dot in it for a separator. */
const quoteIdentifier = (name: string): string => `"${name.replaceAll('"', '""')}"`
