/**
 * The store on Postgres, through any `SqlClient` that speaks to one: a server by `@effect/sql-pg`, or the embedded one of
 * `PgliteClient`.
 *
 * @since 0.1.0
 */
import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as Statement from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import {
  prepareEvents,
  prepareRange,
  prepareSnapshot,
  type Range,
  restoreEvent,
  restoreSnapshot,
  type StoredEvent,
  type StoredSnapshot
} from "./internal/record.js"
import { fromSqlError, type Phase } from "./internal/sqlError.js"
import { migrate as migrateSchema } from "./internal/sqlMigrations.js"
import { withTransaction } from "./internal/sqlTransaction.js"
import { insideTransaction } from "./internal/storeTransaction.js"
import { StoreAdapter, type StoreAdapterService } from "./StoreAdapter.js"
import { RetryCommand, StoreError } from "./StoreError.js"

/**
 * The switches of the store.
 *
 * @since 0.1.0
 * @category models
 */
export interface SqlStoreOptions {
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
}

/**
 * Makes the store.
 *
 * Inside a transaction of yours every statement of the store has a savepoint: a failure of the store that you handle
 * leaves the transaction usable, where Postgres would otherwise refuse all that follows and answer COMMIT by a silent
 * rollback.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (options?: SqlStoreOptions): Effect.Effect<StoreAdapterService, StoreError, SqlClient.SqlClient> =>
  Effect.gen(function* () {
    const { name, schema, sql } = yield* resolve(options)
    if (options?.migrate !== false) yield* migrateSchema(sql, name, schema)

    /** One statement: on its own, or from a savepoint on in the caller's transaction. */
    const statement = <A>(
      operation: string,
      phase: Phase,
      effect: Effect.Effect<A, SqlError>
    ): Effect.Effect<A, StoreError> =>
      Effect.flatMap(insideTransaction, (inside) => {
        const run = Effect.mapError(effect, (error) => fromSqlError(operation, inside ? "writing" : phase, error))
        return inside ? withTransaction(sql, operation, run) : run
      })

    const append = (operation: string, phase: Phase, events: ReadonlyArray<StoredEvent>) =>
      Effect.flatMap(
        statement(operation, phase, insertEvents(sql, schema, events)),
        ([outcome]): Effect.Effect<"new" | "stored", RetryCommand> =>
          outcome === undefined
            ? Effect.succeed("new")
            : outcome.was_stored
              ? Effect.succeed("stored")
              : Effect.fail(
                  new RetryCommand({ aggregateId: outcome.refused_aggregate_id, sequence: outcome.refused_sequence })
                )
      )

    const commitEvents: StoreAdapterService["commitEvents"] = (events) =>
      Effect.flatMap(prepareEvents("commitEvents", events), (prepared) =>
        prepared.length === 0 ? Effect.void : append("commitEvents", "committing", prepared)
      ).pipe(span("commitEvents", { events: events?.length }))

    return {
      commitEvents,
      commitAll: (events, projections) =>
        projections.length === 0
          ? commitEvents(events)
          : Effect.flatMap(prepareEvents("commitAll", events), (prepared) =>
              prepared.length === 0
                ? Effect.void
                : withTransaction(
                    sql,
                    "commitAll",
                    Effect.gen(function* () {
                      const outcome = yield* append("commitAll", "writing", prepared)
                      if (outcome === "stored") return
                      const restored = prepared.map(restoreEvent)
                      for (const projection of projections) {
                        for (const event of restored) yield* projection.project(event)
                      }
                    })
                  )
            ).pipe(span("commitAll", { events: events?.length, projections: projections.map(({ name }) => name) })),
      commitSnapshot: (snapshot) =>
        Effect.flatMap(prepareSnapshot(snapshot), (prepared) =>
          // Outside a transaction the statement is its own commit. One of unknown outcome does no harm when repeated.
          statement("commitSnapshot", "committing", upsertSnapshot(sql, schema, prepared))
        ).pipe(Effect.asVoid, span("commitSnapshot", { "aggregate.id": snapshot?.aggregateId })),
      getEvents: (aggregateId, minSequence, options) =>
        Effect.flatMap(prepareRange("getEvents", aggregateId, minSequence, options), (range) =>
          Effect.map(statement("getEvents", "reading", selectEvents(sql, schema, range)), (rows) =>
            rows.map(restoreEvent)
          )
        ).pipe(span("getEvents", { "aggregate.id": aggregateId })),
      getSnapshot: (aggregateId, minSequence, options) =>
        Effect.flatMap(prepareRange("getSnapshot", aggregateId, minSequence, options), (range) =>
          Effect.map(statement("getSnapshot", "reading", selectSnapshot(sql, schema, range)), ([row]) =>
            Option.map(Option.fromNullable(row), restoreSnapshot)
          )
        ).pipe(span("getSnapshot", { "aggregate.id": aggregateId }))
    }
  })

/**
 * The store in the schema `maestro`, whose tables it creates and updates when the layer is built.
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
export const layer: Layer.Layer<StoreAdapter, StoreError, SqlClient.SqlClient> = Layer.effect(StoreAdapter, make())

/**
 * The store with switches of your own.
 *
 * @since 0.1.0
 * @category layers
 */
export const layerWith = (options: SqlStoreOptions): Layer.Layer<StoreAdapter, StoreError, SqlClient.SqlClient> =>
  Layer.effect(StoreAdapter, make(options))

/**
 * Creates or updates the tables, where the layer is not to do it: in a deployment step, by a role that may. Any number of
 * nodes may do so at once.
 *
 * @since 0.1.0
 * @category migrations
 */
export const migrate = (
  options?: Pick<SqlStoreOptions, "schema">
): Effect.Effect<void, StoreError, SqlClient.SqlClient> =>
  Effect.flatMap(resolve(options), ({ name, schema, sql }) => migrateSchema(sql, name, schema))

// --- internal ---

const resolve = (options: Pick<SqlStoreOptions, "schema"> | undefined) =>
  Effect.gen(function* () {
    const name = options?.schema ?? "maestro"
    const bytes = new TextEncoder().encode(name).length
    if (bytes < 1 || bytes > 63 || name.includes("\0")) {
      return yield* new StoreError({
        reason: "Misconfigured",
        operation: "SqlStore",
        description: `the schema's name must be 1 to 63 bytes without NUL, and ${JSON.stringify(name)} is not`
      })
    }
    // Without transforms: they would rename keys inside stored JSON. As a literal: the schema's name is what was asked for.
    const sql = (yield* SqlClient.SqlClient).withoutTransforms()
    return { name, schema: sql.literal(quoteIdentifier(name)), sql }
  })

const quoteIdentifier = Statement.defaultEscape('"')

const span = (operation: string, attributes: Record<string, unknown>) =>
  Effect.withSpan(`SqlStore.${operation}`, { attributes, captureStackTrace: false })

interface CommitOutcome {
  readonly was_stored: boolean
  readonly refused_aggregate_id: string
  readonly refused_sequence: number
}

/** One commit; a row comes back only when it was not written. Arrays, since parameters are limited to 65 535. */
const insertEvents = (sql: SqlClient.SqlClient, schema: Statement.Fragment, events: ReadonlyArray<StoredEvent>) => {
  const seen = new Set<string>()
  const firsts = events.map(({ aggregateId }) => !seen.has(aggregateId) && seen.add(aggregateId).has(aggregateId))
  return sql<CommitOutcome>`select was_stored, refused_aggregate_id, refused_sequence from ${schema}.commit_events(
    ${events.map(() => 0)}::int[],
    ${firsts}::boolean[],
    ${events.map(({ aggregateId }) => aggregateId)}::text[],
    ${events.map(({ sequence }) => sequence)}::int[],
    ${events.map(({ type }) => type)}::text[],
    ${events.map(({ body }) => body)}::jsonb[],
    ${events.map(({ metadata }) => metadata)}::jsonb[],
    ${events.map(({ timestamp }) => timestamp)}::uuid[]
  )`
}

const upsertSnapshot = (sql: SqlClient.SqlClient, schema: Statement.Fragment, snapshot: StoredSnapshot) =>
  sql`insert into ${schema}.snapshots as s (aggregate_id, sequence, timestamp, body, metadata)
    values (${snapshot.aggregateId}, ${snapshot.sequence}, ${snapshot.timestamp}, ${snapshot.body}, ${snapshot.metadata})
    on conflict (aggregate_id) do update
    set sequence = excluded.sequence, timestamp = excluded.timestamp, body = excluded.body, metadata = excluded.metadata
    where s.sequence < excluded.sequence`

// JSON comes as text and is parsed here, so that no type parser of the driver can change what is in it.
const selectEvents = (sql: SqlClient.SqlClient, schema: Statement.Fragment, range: Range) =>
  sql<StoredEvent>`select timestamp::text, aggregate_id as "aggregateId", sequence, type, body::text, metadata::text
    from ${schema}.event_log
    where aggregate_id = ${range.aggregateId} and sequence between ${range.minSequence} and ${range.maxSequence}
    order by sequence`

const selectSnapshot = (sql: SqlClient.SqlClient, schema: Statement.Fragment, range: Range) =>
  sql<StoredSnapshot>`select timestamp::text, aggregate_id as "aggregateId", sequence, body::text, metadata::text
    from ${schema}.snapshots
    where aggregate_id = ${range.aggregateId} and sequence between ${range.minSequence} and ${range.maxSequence}`
