/**
 * Projects events by projections that are SQL statements: the statements of many events are sent in one round trip.
 * `projectBatch.ts` calls it, inside the transaction of a batch.
 *
 * The statements of the next events are compiled while the database works. All of it runs behind a savepoint. Where a
 * statement fails, or an event can't be decoded, it is rolled back, and the caller projects the events one after the
 * other. That run has the failure, with the names of projection and event.
 */
import type { SqlError } from "@effect/sql/SqlError"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { Event } from "../../Event.js"
import type { Projection, SqlProjection } from "../../Projection.js"
import { StoreError } from "../../StoreError.js"
import { fromSqlError, severityOf } from "../runtime/sqlError.js"
import { withSpanIfTraced } from "../runtime/tracing.js"
import { canCompile, compileAll } from "../sql/pg/compileStatements.js"
import type { Command } from "../sql/pg/driver.js"
import { endedInside, type SendInside, sendInside, withTransaction } from "../sql/pg/transaction.js"
import type { StoreTables } from "../sql/storeTables.js"
import { handles, isSqlProjection } from "../store/runProjections.js"
import { operation } from "./rebuildOptions.js"

/**
 * Projects the events by batches of statements where that is possible, and by `oneByOne` where it is not, or where a
 * batch has failed.
 */
export const projectStatements = <E, R>(
  { sql }: StoreTables,
  projections: ReadonlyArray<Projection<E, R>>,
  events: ReadonlyArray<Event>,
  oneByOne: Effect.Effect<void, E | StoreError, R>
): Effect.Effect<void, E | StoreError, R> =>
  Effect.withFiberRuntime((fiber) => {
    if (events.length === 0 || !projections.every(isSqlProjection) || !canCompile(fiber, sql)) return oneByOne
    return Effect.flatMap(sendInside, (send) =>
      send === undefined
        ? oneByOne
        : Effect.catchIf(
            withTransaction(sql, operation, sendAll(send, projections, events)),
            (error) => error instanceof NotProjected,
            // The savepoint shows whether the transaction is still open. A failed batch may have ended it.
            () => withTransaction(sql, operation, oneByOne)
          ).pipe(Effect.mapError((error) => (isEnded(error) ? endedInside(operation) : error)))
    )
  })

// --- internal ---

const isEnded = (error: unknown): boolean => error instanceof StoreError && error.code === noTransaction

/** The `SQLSTATE` of a savepoint, or of a batch, outside of a transaction. */
const noTransaction = "25P01"

/** How many events are compiled while the database works on those before. */
const chunkSize = 250

class NotProjected extends Data.TaggedError("NotProjected") {}

const sendAll = <E, R>(
  send: SendInside,
  projections: ReadonlyArray<SqlProjection<E, R>>,
  events: ReadonlyArray<Event>
): Effect.Effect<void, NotProjected | StoreError, R> =>
  Effect.gen(function* () {
    let next = yield* compile(projections, events.slice(0, chunkSize))
    for (let first = chunkSize; next !== undefined; first += chunkSize) {
      const sending = sendChunk(send, next)
      if (first >= events.length)
        return yield* sending
        // A failure of `compile` must not interrupt the statements, so it is a value.
      ;[, next] = yield* Effect.all([sending, compile(projections, events.slice(first, first + chunkSize))], {
        concurrency: 2
      })
    }
    return yield* new NotProjected()
  })

const compile = <E, R>(
  projections: ReadonlyArray<SqlProjection<E, R>>,
  events: ReadonlyArray<Event>
): Effect.Effect<ReadonlyArray<Command> | undefined, never, R> =>
  compileAll(
    Effect.map(
      Effect.forEach(
        events.flatMap((event) =>
          projections.flatMap((projection) => (handles(projection, event) ? [projection.statements(event)] : []))
        ),
        (statements) => statements
      ),
      (lists) => lists.flat()
    )
  )

const sendChunk = (
  send: SendInside,
  commands: ReadonlyArray<Command>
): Effect.Effect<void, NotProjected | StoreError> =>
  commands.length === 0
    ? Effect.void
    : Effect.asVoid(
        Effect.mapError(send(commands), (error) =>
          isOfStatement(error) ? new NotProjected() : fromSqlError(operation, "writing", error)
        )
      ).pipe(
        withSpanIfTraced("sql.execute", {
          kind: "client",
          attributes: {
            "db.system.name": "postgresql",
            "db.operation.name": "execute",
            "db.operation.batch.size": commands.length
          }
        })
      )

/** Whether the server has reported the error, and not lost the connection or ended the transaction. */
const isOfStatement = (error: SqlError): boolean => severityOf(error) !== undefined
