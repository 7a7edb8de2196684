/**
 * The store on Postgres, through any `SqlClient` that speaks to one: a server by `@effect/sql-pg`, or the embedded one of
 * `PgliteClient`.
 *
 * @since 0.1.0
 */
import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import { maxSequence } from "./Event.js"
import { EventFeed } from "./EventFeed.js"
import { textProblem } from "./internal/codec/json.js"
import { whenInTransaction } from "./internal/runtime/ambientTransaction.js"
import { fromSqlError, isStrayCancel, type Phase } from "./internal/runtime/sqlError.js"
import { withoutInnerSpans, withSpanIfTraced } from "./internal/runtime/tracing.js"
import { type AppendResult, makeAppendBatcher } from "./internal/sql/commit/appendBatcher.js"
import { makeInsertCommits, upsertSnapshot, verdictsOf } from "./internal/sql/commit/appendEvents.js"
import type { Commit } from "./internal/sql/commit/commitQueue.js"
import { commandsOf, makeStatementCommits } from "./internal/sql/commit/commitWithStatements.js"
import { makeSqlFeed } from "./internal/sql/feed.js"
import { checkSchema, migrate as migrateSchema } from "./internal/sql/migrations.js"
import { type Notifications, notificationsOf } from "./internal/sql/notifications.js"
import { executeAlone } from "./internal/sql/pg/connection.js"
import { isEmbedded } from "./internal/sql/pg/embedded.js"
import { withSavepoint, withTransactionFrom } from "./internal/sql/pg/transaction.js"
import {
  eventOf,
  isSnapshot,
  pageOf,
  pageOfMeasured,
  pageOfRow,
  selectEvents,
  selectFittingEvents,
  selectPage,
  selectSmallEvents,
  selectSnapshot,
  selectStream
} from "./internal/sql/readStream.js"
import { repair } from "./internal/sql/repair.js"
import { Tables } from "./internal/sql/storeTables.js"
import { makeSqlSubscriptions } from "./internal/sql/subscriptions.js"
import type { LogTable } from "./internal/store/pageBytes.js"
import { decodeSnapshot, validateRange } from "./internal/store/storedRecord.js"
import { provideStreamReader } from "./internal/store/streamReader.js"
import { makeEncoded, type SequenceRange, StoreAdapter, type StoreAdapterService } from "./StoreAdapter.js"
import { type RetryCommand, StoreError, type ValidationError } from "./StoreError.js"
import { SubscriptionStore } from "./SubscriptionStore.js"

/**
 * The switches of the store.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options {
  /**
   * The Postgres schema that holds the store's tables, `maestro` by default; several stores can share a database. At most
   * 63 bytes.
   */
  readonly schema?: string | undefined
  /**
   * Whether to create and update the tables when the layer is built; `true` by default. With `false` somebody else does,
   * with the rights for it: `SqlStore.migrate`.
   */
  readonly migrate?: boolean | undefined
  /**
   * How often, at least, those who wait for events look for them: 500 milliseconds by default. Commits made in this process wake them
   * at once, and those of others by a notification of the database, where the client can hear one: `@effect/sql-pg` can, by a
   * connection of its pool, if that has four or more. Polling is for what neither tells, such as the end of your own transaction.
   */
  readonly pollInterval?: Duration.DurationInput | undefined
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
 * Makes the store alone, without the feed. When the scope closes, commits that are under way end first, and nothing is left behind.
 *
 * Inside a transaction of yours every statement of the store has a savepoint: a failure of the store that you handle
 * leaves the transaction usable, where Postgres would otherwise refuse all that follows and answer COMMIT by a silent
 * rollback.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (
  options?: Options
): Effect.Effect<StoreAdapterService, StoreError, SqlClient.SqlClient | Scope.Scope> =>
  Effect.flatMap(prepare(options), makeOn)

/**
 * The store in the schema `maestro`, whose tables it creates and updates when the layer is built; its feed, and what subscriptions
 * keep.
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
 * The store with switches of your own.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerWith = (
  options: Options
): Layer.Layer<StoreAdapter | EventFeed | SubscriptionStore | Tables, StoreError, SqlClient.SqlClient> =>
  Layer.scopedContext(
    Effect.gen(function* () {
      const prepared = yield* prepare(options)
      const { client, log, name, notifications } = prepared
      const tables = { ...log, name, isEmbedded: isEmbedded(client) }
      const store = yield* makeOn(prepared)
      const feed = yield* makeSqlFeed(log, notifications, Duration.toMillis(options.pollInterval ?? usualPollInterval))
      return Context.make(StoreAdapter, store).pipe(
        Context.add(EventFeed, feed),
        Context.add(SubscriptionStore, makeSqlSubscriptions(tables, notifications)),
        Context.add(Tables, tables)
      )
    })
  )

/**
 * Creates or updates the tables, where the layer is not to do it: in a deployment step, by a role that may. Any number of
 * nodes may do so concurrently.
 *
 * @since 0.1.0
 * @category migrations
 */
export const migrate = (options?: Pick<Options, "schema">): Effect.Effect<void, StoreError, SqlClient.SqlClient> =>
  Effect.flatMap(resolve(options), ({ name, schema, sql }) => Effect.asVoid(migrateSchema(sql, name, schema)))

/**
 * Puts the feed in order after the database was restored from a dump into a server whose transaction ids start anew: there, what
 * was stored would be of transactions that have not begun yet, and the feed would not show it. It keeps the order of the events, and
 * where subscriptions are; positions kept elsewhere mean nothing afterwards. Answers whether there was something to do.
 *
 * Layers that migrate do it by themselves. It takes a lock on the log meanwhile, and writes every event anew: about a minute for
 * some millions. `pg_upgrade`, replicas and file-system backups keep their transaction ids, and need none of this.
 *
 * @since 0.1.0
 * @category migrations
 */
export const repairAfterRestore = (
  options?: Pick<Options, "schema">
): Effect.Effect<boolean, StoreError, SqlClient.SqlClient> =>
  Effect.flatMap(resolve(options), ({ schema, sql }) => repair(sql, schema))

// --- internal ---

/** From so many events on it pays to have them in one row. */
const longPage = 1000

const usualPollInterval = "500 millis"

/** What a store is made on. */
interface Prepared {
  /** As the application has it, and which the store uses without its transforms. */
  readonly client: SqlClient.SqlClient
  readonly name: string
  readonly log: LogTable
  readonly notifications: Notifications
}

/** Brings the schema up to date, or checks it. */
const prepare = (options: Options | undefined): Effect.Effect<Prepared, StoreError, SqlClient.SqlClient> =>
  Effect.gen(function* () {
    const { client, name, schema, sql, notifications } = yield* resolve(options)
    const isMigrating = options?.migrate !== false
    const measuring = yield* isMigrating ? migrateSchema(sql, name, schema) : checkSchema(sql, name, schema)
    if (isMigrating) yield* repair(sql, schema)
    return { client, name, log: { measuring, schema, sql }, notifications }
  })

const makeOn = ({ client, log, notifications }: Prepared): Effect.Effect<StoreAdapterService, never, Scope.Scope> =>
  Effect.gen(function* () {
    const { schema, sql } = log
    const accepted = acceptedBy(notifications)
    const insertCommits = makeInsertCommits(sql, schema)
    const statementCommits = makeStatementCommits(sql, insertCommits)

    /** One statement: on its own, or from a savepoint on in the transaction around it. */
    const statement = <A>(
      operation: string,
      phase: Phase,
      effect: Effect.Effect<A, SqlError>
    ): Effect.Effect<A, StoreError> =>
      whenInTransaction((inside) =>
        inside
          ? withSavepoint(
              operation,
              Effect.mapError(effect, (error) => fromSqlError(operation, "writing", error))
            )
          : againWhenDisturbed(executeAlone(sql, operation, phase, effect))
      )

    /** One commit with its projections: a transaction of its own, or part of the transaction around it. */
    const transact = <E, R>(events: Commit, project: Effect.Effect<void, E, R>) =>
      withTransactionFrom(
        sql,
        "commitAll",
        {
          command: insertCommits.command([events], {}),
          statement: withoutInnerSpans(insertCommits.statement([events], { checksSnapshot: true }))
        },
        (returned) =>
          Effect.flatMap(accepted(verdictsOf(returned)[0]), (outcome) => (outcome === "stored" ? Effect.void : project))
      )

    /** The same outside of a transaction: in one round trip, where the projections are statements. */
    const commitWith = <E, R>(events: Commit, project: Effect.Effect<void, E, R>) =>
      Effect.withFiberRuntime<void, RetryCommand | StoreError | E, R>((fiber) => {
        const commands = statementCommits.isSupported() ? commandsOf(fiber, client, project) : undefined
        return commands === undefined
          ? transact(events, project)
          : Effect.flatMap(statementCommits.commit(events, commands), (stored) =>
              stored ? Effect.void : transact(events, project)
            )
      })

    /** One statement of an aggregate that loads. */
    const read = <A>(
      operation: string,
      id: string,
      minSequence: number,
      upTo: number,
      select: (range: SequenceRange) => Effect.Effect<A, SqlError>
    ): Effect.Effect<A, ValidationError | StoreError> =>
      Effect.flatMap(validateRange(operation, id, minSequence, { maxSequence: upTo }), (range) =>
        withSpanIfTraced(`SqlStore.${operation}`, { attributes: { "aggregate.id": id } })(
          statement(operation, "reading", select(range))
        )
      )

    const commit = yield* makeAppendBatcher((commits, hurried) =>
      againWhenDisturbed(
        Effect.map(
          executeAlone(sql, "commitEvents", "committing", insertCommits.statement(commits, { lockTimeout: hurried })),
          verdictsOf
        )
      )
    )

    const service = makeEncoded({
      name: "SqlStore",
      append: (events) =>
        whenInTransaction((inside) =>
          Effect.flatMap(
            inside
              ? Effect.map(
                  statement("commitEvents", "writing", insertCommits.statement([events], {})),
                  (returned) => verdictsOf(returned)[0]
                )
              : commit(events),
            accepted
          )
        ),
      appendWith: (events, project) =>
        whenInTransaction((inside) =>
          // Accepted is not committed yet: waiting readers are woken again.
          inside ? transact(events, project) : Effect.tap(commitWith(events, project), notifications.committed)
        ),
      putSnapshot: (snapshot) =>
        // Outside a transaction the statement is its own commit. One of unknown outcome does no harm when repeated.
        Effect.asVoid(statement("commitSnapshot", "committing", upsertSnapshot(sql, schema, snapshot))),
      readEvents: (range) =>
        Effect.map(statement("getEvents", "reading", selectEvents(log, range)), (rows) =>
          rows.map((row) => eventOf(range.aggregateId, row))
        ),
      readSnapshot: (range) =>
        Effect.map(statement("getSnapshot", "reading", selectSnapshot(log, range)), ([row]) =>
          Option.map(Option.fromNullable(row), (found) => ({
            ...found,
            sequence: Number(found.sequence),
            aggregateId: range.aggregateId
          }))
        )
    })

    /** As many events as a page can have, where some of them are large. */
    const measured = (id: string, minSequence: number, upTo: number, limit: number) =>
      read("getEvents", id, minSequence, upTo, (range) =>
        Effect.map(selectFittingEvents(log, range, limit), (rows) => pageOfMeasured(id, rows))
      )

    provideStreamReader(service, {
      events: (id, minSequence, limit) => {
        if (limit < longPage) {
          const small = read("getEvents", id, minSequence, maxSequence, (range) =>
            Effect.map(selectSmallEvents(log, range, limit), (rows) => pageOf(id, rows, limit))
          )
          return Effect.flatMap(small, (page) =>
            "measureFrom" in page ? measured(id, page.measureFrom, maxSequence, limit) : Effect.succeed(page)
          )
        }
        const inOneRow = read("getEvents", id, minSequence, maxSequence, (range) =>
          Effect.map(selectPage(log, range, limit), ([row]) => pageOfRow(id, row, limit))
        )
        return Effect.flatMap(inOneRow, (page) =>
          "rowsUpTo" in page ? measured(id, minSequence, page.rowsUpTo, limit) : Effect.succeed(page)
        )
      },
      fromSnapshot: (id, upTo, limit) => {
        const small = read("getEvents", id, 1, upTo, (range) =>
          Effect.map(selectStream(log, range, limit), (rows) => ({
            snapshot: Option.map(Option.fromNullable(rows.find(isSnapshot)), (row) =>
              decodeSnapshot({ ...row, sequence: Number(row.sequence), aggregateId: id })
            ),
            page: pageOf(id, rows, limit)
          }))
        )
        return Effect.flatMap(small, ({ page, snapshot }) =>
          Effect.map(
            "measureFrom" in page ? measured(id, page.measureFrom, upTo, limit) : Effect.succeed(page),
            (stream) => ({ ...stream, snapshot })
          )
        )
      }
    })

    return service
  })

const resolve = (options: Pick<Options, "schema"> | undefined) =>
  Effect.gen(function* () {
    const name: unknown = options?.schema ?? "maestro"
    if (!isSchemaName(name)) {
      return yield* new StoreError({
        reason: "Misconfigured",
        operation: "SqlStore",
        description: `the schema's name must be 1 to 63 bytes without NUL, and ${typeof name === "string" ? JSON.stringify(name) : typeof name} is not`
      })
    }
    // Without transforms: they would rename keys inside stored JSON. As a literal: the schema's name is what was asked for.
    const client = yield* SqlClient.SqlClient
    const sql = client.withoutTransforms()
    return {
      client,
      name,
      schema: sql.literal(quoteIdentifier(name)),
      sql,
      notifications: notificationsOf(client, name)
    }
  })

const isSchemaName = (name: unknown): name is string => {
  if (typeof name !== "string" || textProblem(name) !== undefined) return false
  const bytes = new TextEncoder().encode(name).length
  return bytes >= 1 && bytes <= 63
}

/** As one identifier, whatever is in it; the quoting of `@effect/sql` takes a dot for a separator. */
const quoteIdentifier = (name: string): string => `"${name.replaceAll('"', '""')}"`

/**
 * Sends a statement again that was cancelled by an interruption of another owner of its connection, or that lost a race in a database whose
 * default isolation is stricter than READ COMMITTED. Nothing of it is stored, and the next attempt sees what won.
 */
const againWhenDisturbed = <A>(statement: Effect.Effect<A, StoreError>): Effect.Effect<A, StoreError> =>
  Effect.catchIf(statement, isDisturbed, () => Effect.retry(statement, { times: 10, while: isDisturbed }))

const isDisturbed = (error: StoreError): boolean => isStrayCancel(error) || error.code === serializationFailure

const serializationFailure = "40001"

const acceptedBy =
  (notifications: Notifications) =>
  (verdict: AppendResult | undefined): Effect.Effect<"written" | "stored", RetryCommand> => {
    if (verdict === undefined || verdict === "written") {
      return Effect.as(notifications.committed, "written" as const)
    }
    return verdict === "stored" ? Effect.succeed(verdict) : Effect.fail(verdict)
  }
