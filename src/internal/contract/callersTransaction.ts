/**
 * The contract inside the caller's own `SqlClient.withTransaction`, one case for each sentence.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type { Projection } from "../../Projection.js"
import { StoreAdapter } from "../../StoreAdapter.js"
import { RetryCommand, StoreError, ValidationError } from "../../StoreError.js"
import { type Case, failureOf, idOf, newId, noSqlClient, projecting, snapshot, stream, test } from "./case.js"

export const callersTransactionCases: ReadonlyArray<Case> = [
  ...[true, false].map((commits) =>
    test(
      `caller's transaction: when it ${commits ? "commits" : "rolls back"}, so do the commits inside it`,
      () =>
        Effect.gen(function* () {
          const store = yield* StoreAdapter
          const { count, insert, sql } = yield* table
          const [a, b] = [yield* stream(newId(), 1, 2), yield* stream(newId(), 1, 2)]
          const saved = yield* snapshot(newId(), 3)
          const result = yield* sql
            .withTransaction(
              Effect.gen(function* () {
                yield* insert
                yield* store.commitEvents(a)
                yield* store.commitAll(b, [{ name: "insert", project: () => insert }])
                yield* store.commitSnapshot(saved)
                // Again, inside the same transaction.
                yield* store.commitEvents(a)
                yield* store.commitAll(b, [{ name: "insert", project: () => insert }])
                expect(yield* store.getEvents(idOf(a), 1)).toEqual(a)
                return commits ? "done" : yield* Effect.fail("rolled back")
              })
            )
            .pipe(Effect.merge)
          expect(result).toBe(commits ? "done" : "rolled back")
          expect(yield* store.getEvents(idOf(a), 1)).toEqual(commits ? a : [])
          expect(yield* store.getEvents(idOf(b), 1)).toEqual(commits ? b : [])
          expect(Option.isSome(yield* store.getSnapshot(saved.aggregateId, 0))).toBe(commits)
          expect(yield* count).toBe(commits ? 3 : 0)
        }),
      "callerTransaction"
    )
  ),

  ...["read committed", "repeatable read", "serializable"].map((isolation) =>
    test(
      `caller's transaction (${isolation}): the transaction stays usable after every failure`,
      () =>
        Effect.gen(function* () {
          const store = yield* StoreAdapter
          const { count, insert, sql } = yield* table
          const [taken, good, other] = [
            yield* stream(newId(), 1, 2),
            yield* stream(newId(), 1, 2),
            yield* stream(newId(), 1, 2)
          ]
          yield* store.commitEvents(taken)
          const conflict = yield* stream(idOf(taken), 2, 1)
          const failing: Projection<unknown> = {
            name: "failing",
            project: () => Effect.zipRight(insert, Effect.fail("no"))
          }
          const broken: Projection<unknown> = { name: "broken", project: () => sql`select * from nowhere` }
          yield* sql.withTransaction(
            Effect.gen(function* () {
              yield* sql.onDialectOrElse({
                orElse: () => Effect.void,
                pg: () => sql`set transaction isolation level ${sql.literal(isolation)}`
              })
              yield* insert
              expect(yield* Effect.flip(store.commitEvents(conflict))).toBeInstanceOf(RetryCommand)
              expect(yield* Effect.flip(store.commitAll(conflict, [failing]))).toBeInstanceOf(RetryCommand)
              expect(yield* Effect.flip(store.commitEvents(yield* stream("", 1, 1)))).toBeInstanceOf(ValidationError)
              expect(yield* Effect.flip(store.commitAll(other, [failing]))).toBe("no")
              expect(yield* Effect.flip(store.commitAll(other, [broken]))).toMatchObject({ _tag: "SqlError" })
              yield* store.commitEvents(good)
              yield* insert
            })
          )
          expect(yield* store.getEvents(idOf(good), 1)).toEqual(good)
          expect(yield* store.getEvents(idOf(other), 1)).toEqual([])
          expect(yield* store.getEvents(idOf(taken), 1)).toEqual(taken)
          expect(yield* count).toBe(2)
        }),
      "callerTransaction"
    )
  ),

  test(
    "commitAll: a projection that ignores its own failed SQL commits all its writes, or the commit fails and leaves none",
    () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter
        const { count, ignoring } = yield* table
        for (const nested of [false, true]) {
          const [events, outer] = [yield* stream(newId(), 1, 2), yield* stream(newId(), 1, 1)]
          const before = yield* count
          let exit: Exit.Exit<void, unknown> = Exit.void
          const commit = Effect.map(Effect.exit(store.commitAll(events, [ignoring])), (ended) => {
            exit = ended
          })
          yield* nested ? store.commitAll(outer, [projecting(commit)]) : commit
          if (Exit.isFailure(exit)) expect(failureOf(exit)).toBeInstanceOf(StoreError)
          expect(yield* store.getEvents(idOf(events), 1)).toEqual(Exit.isSuccess(exit) ? events : [])
          expect((yield* count) - before).toBe(Exit.isSuccess(exit) ? 4 : 0)
          expect(yield* store.getEvents(idOf(outer), 1)).toEqual(nested ? outer : [])
        }
      }),
    "callerTransaction"
  ),

  test(
    "caller's transaction: a commit whose projection ignores its own failed SQL is stored, or fails and leaves nothing",
    () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter
        const { count, ignoring, insert, sql } = yield* table
        const [events, next] = [yield* stream(newId(), 1, 2), yield* stream(newId(), 1, 1)]
        const exit = yield* sql.withTransaction(
          Effect.gen(function* () {
            yield* insert
            const ended = yield* Effect.exit(store.commitAll(events, [ignoring]))
            yield* store.commitEvents(next)
            yield* insert
            return ended
          })
        )
        if (Exit.isFailure(exit)) expect(failureOf(exit)).toBeInstanceOf(StoreError)
        expect(yield* store.getEvents(idOf(events), 1)).toEqual(Exit.isSuccess(exit) ? events : [])
        expect(yield* store.getEvents(idOf(next), 1)).toEqual(next)
        expect(yield* count).toBe(Exit.isSuccess(exit) ? 6 : 2)
      }),
    "callerTransaction"
  ),

  test(
    "commitAll: the writes of a projection through SqlClient are part of the commit",
    () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter
        const { count, insert } = yield* table
        const inserting: Projection<unknown> = { name: "inserting", project: () => insert }
        const failing: Projection<string> = {
          name: "failing",
          project: (one) => (one.sequence === 3 ? Effect.fail("no") : Effect.void)
        }
        const events = yield* stream(newId(), 1, 3)
        expect(yield* Effect.flip(store.commitAll(events, [inserting, failing]))).toBe("no")
        expect(yield* count).toBe(0)
        yield* store.commitAll(events, [inserting])
        yield* store.commitAll(events, [inserting])
        expect(yield* count).toBe(3)
        expect(yield* Effect.flip(store.commitAll(yield* stream(idOf(events), 3, 1), [inserting]))).toBeInstanceOf(
          RetryCommand
        )
        expect(yield* count).toBe(3)
      }),
    "callerTransaction"
  )
]

// --- internal ---

/** A table of the application, new for each case. */
const table = Effect.gen(function* () {
  const sql = Option.getOrThrowWith(yield* Effect.serviceOption(SqlClient.SqlClient), noSqlClient)
  const name = sql(`rows_${newId().replaceAll("-", "")}`)
  yield* sql`create table ${name} (n int)`
  const insert = sql`insert into ${name} values (1)`
  const missing = sql(`missing_${newId().replaceAll("-", "")}`)
  return {
    sql,
    insert,
    /** Writes before and after a statement that fails, and ignores all failures. */
    ignoring: projecting(
      Effect.all([insert, sql`select * from ${missing}`, insert].map((statement) => Effect.ignore(statement)))
    ),
    count: Effect.map(sql<{ n: string }>`select count(*) as n from ${name}`, ([row]) => Number(row?.n))
  }
})
