/**
 * Projects events so that the statements of many events are sent in one round trip. `projectBatch.ts` calls it, inside
 * the transaction of a batch.
 *
 * - Projections that are SQL statements are compiled. That of the next events goes on while the database works.
 * - Projections that are effects run one after the other, and their writes are deferred (`sql/pg/deferredWrites.ts`).
 *
 * All of it runs behind a savepoint. Where a statement fails, or an effect, or an event can't be decoded, it is rolled
 * back, and each event is projected by itself. That run has the failure, with the names of projection and event.
 */
import * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { Event } from "../../Event.js"
import type { Projection, SqlProjection } from "../../Projection.js"
import { StoreError } from "../../StoreError.js"
import { followingEvents } from "../runtime/commandCause.js"
import { withSpanIfTraced } from "../runtime/tracing.js"
import { canCompile, compileAll } from "../sql/pg/compileStatements.js"
import { makeDeferredWrites } from "../sql/pg/deferredWrites.js"
import type { Command } from "../sql/pg/driver.js"
import { endedInside, type SendInside, sendInside, withTransaction } from "../sql/pg/transaction.js"
import type { StoreTables } from "../sql/storeTables.js"
import { handles, isSqlProjection, project } from "../store/runProjections.js"
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
    if (events.length === 0) return Effect.void
    return Effect.flatMap(sendInside, (send) => {
      if (send === undefined) return oneByOne
      const batches =
        projections.every(isSqlProjection) && canCompile(fiber, sql)
          ? sendAll(send, projections, events)
          : runDeferred(projections, events)
      return Effect.catchIf(
        withTransaction(sql, operation, batches),
        (error) => error instanceof NotProjected,
        // The savepoint shows whether the transaction is still open. A failed batch may have ended it.
        () => withTransaction(sql, operation, oneByOne)
      ).pipe(Effect.mapError((error) => (isEnded(error) ? endedInside(operation) : error)))
    })
  })

// --- internal ---

const isEnded = (error: unknown): boolean => error instanceof StoreError && error.code === noTransaction

/** The `SQLSTATE` of a savepoint, or of a batch, outside of a transaction. */
const noTransaction = "25P01"

/** How many events are compiled while the database works on those before, and how many writes are kept. */
const chunkSize = 250

class NotProjected extends Data.TaggedError("NotProjected") {}

const sendAll = <E, R>(
  send: SendInside,
  projections: ReadonlyArray<SqlProjection<E, R>>,
  events: ReadonlyArray<Event>
): Effect.Effect<void, NotProjected, R> =>
  Effect.gen(function* () {
    let next = yield* compile(projections, events.slice(0, chunkSize))
    for (let first = chunkSize; next !== undefined; first += chunkSize) {
      const sending = sendChunk(send, next)
      if (first >= events.length) return yield* Effect.asVoid(sending)
      // `compile` does not fail, because its failure would interrupt the statements.
      const compiling = compile(projections, events.slice(first, first + chunkSize))
      next = (yield* Effect.all([sending, compiling], { concurrency: 2 }))[1]
    }
    return yield* new NotProjected()
  })

/** The statements of the events, or undefined where a handler fails. */
const compile = <E, R>(
  projections: ReadonlyArray<SqlProjection<E, R>>,
  events: ReadonlyArray<Event>
): Effect.Effect<ReadonlyArray<Command> | undefined, never, R> =>
  compileAll(
    events.flatMap((event) =>
      projections.flatMap((projection) => (handles(projection, event) ? [projection.statements(event)] : []))
    )
  )

/** Runs the effects of the events one after the other, and sends what they write when enough is kept. */
const runDeferred = <E, R>(
  projections: ReadonlyArray<Projection<E, R>>,
  events: ReadonlyArray<Event>
): Effect.Effect<void, NotProjected, R> =>
  Effect.flatMap(makeDeferredWrites, (deferred) => {
    if (deferred === undefined) return new NotProjected()
    const sendKept = Effect.suspend(() =>
      deferred.kept() === 0 ? Effect.void : withSpanOfBatch(deferred.kept(), deferred.flush)
    )
    const work = events.flatMap((event) =>
      projections.flatMap((projection) => (handles(projection, event) ? [{ event, projection }] : []))
    )
    const running = followingEvents((follow) =>
      Effect.forEach(
        work,
        ({ event, projection }) => {
          follow(event)
          return Effect.zipRight(
            deferred.run(Effect.suspend(() => project(projection, event))),
            Effect.suspend(() => (deferred.kept() >= chunkSize ? sendKept : Effect.void))
          )
        },
        { discard: true }
      )
    )
    return Effect.zipRight(running, sendKept).pipe(
      Effect.catchAllCause((cause) => (Cause.isInterruptedOnly(cause) ? Effect.interrupt : new NotProjected())),
      // An effect may have handled the failure of statements that were sent before one of its own.
      Effect.tap(() => (deferred.hasFailed() ? new NotProjected() : Effect.void)),
      Effect.ensuring(Effect.sync(deferred.end))
    )
  })

const sendChunk = (send: SendInside, commands: ReadonlyArray<Command>): Effect.Effect<unknown, NotProjected> =>
  commands.length === 0
    ? Effect.void
    : withSpanOfBatch(
        commands.length,
        Effect.mapError(send(commands), () => new NotProjected())
      )

const withSpanOfBatch = <A, E>(statements: number, sending: Effect.Effect<A, E>): Effect.Effect<A, E> =>
  withSpanIfTraced("sql.execute", {
    kind: "client",
    attributes: {
      "db.system.name": "postgresql",
      "db.operation.name": "execute",
      "db.operation.batch.size": statements
    }
  })(sending)
