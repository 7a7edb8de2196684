/** Interruptions and faults inside of nested transactions, cursors and batches: the caller gets a result soon, and the pool stays whole. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Stream from "effect/Stream"
import { type Projection, StoreAdapter } from "effect-maestro"
import { describe, intact, onPool, onPostgres, Pool, poolState, saidBy } from "./callers.js"
import { outside } from "./database.js"
import { macrotask } from "./nodes.js"

const newId = (): string => crypto.randomUUID()

const commit = <E, R>(id: string, projections: ReadonlyArray<Projection.Projection<E, R>>) =>
  Effect.flatMap(StoreAdapter.StoreAdapter, (store) =>
    Effect.flatMap(saidBy(id, id), (events) => store.commitAll(events, projections))
  )

const eventsOf = (id: string) =>
  Effect.flatMap(StoreAdapter.StoreAdapter, (store) => Effect.map(store.getEvents(id, 1), ({ length }) => length))

const projecting = <E, R>(run: (sql: SqlClient.SqlClient) => Effect.Effect<unknown, E, R>) => ({
  name: "projecting",
  project: () => Effect.flatMap(SqlClient.SqlClient, run)
})

/** Long statements inside of a savepoint, of the application's and of the store's. */
const nested = {
  "a transaction of the application": projecting((sql) => sql.withTransaction(sql`select pg_sleep(30)`)),
  "a commit of its own": projecting(() => commit(newId(), [projecting((sql) => sql`select pg_sleep(30)`)]))
}

it.layer(onPostgres, { timeout: 60_000 })("Faults inside of commits", (it) => {
  for (const [name, projection] of Object.entries(nested)) {
    for (const size of [1, 2, 10]) {
      it.scoped(
        `as many time-outs as a pool of ${size} has connections, in ${name} of a projection, leave it whole`,
        () =>
          Effect.gen(function* () {
            const ids = Arr.makeBy(size, newId)
            const exits = yield* Effect.forEach(
              ids,
              (id) => Effect.exit(Effect.timeout(commit(id, [projection]), "100 millis")),
              { concurrency: "unbounded" }
            )
            expect(exits.map(describe)).toEqual(ids.map(() => "fails with TimeoutException"))
            expect(yield* poolState(size)).toBe(intact)
            expect(yield* Effect.forEach(ids, eventsOf)).toEqual(ids.map(() => 0))
          }).pipe((program) => onPool(size, program))
      )
    }
  }

  const readers: Readonly<Record<string, (rows: Stream.Stream<unknown, unknown>) => Stream.Stream<unknown, unknown>>> =
    {
      "to the end": (rows) => rows,
      "and stops early": (rows) => Stream.take(rows, 200),
      "and fails": (rows) => Stream.mapEffect(rows, () => Effect.fail("its own"))
    }
  for (const [name, read] of Object.entries(readers)) {
    it.scoped(
      `a commit whose projection reads ${name} by a cursor of a connection that is killed fails, and is not stored`,
      () =>
        Effect.gen(function* () {
          const { admin } = yield* Pool
          const id = newId()
          let killed = false
          const kill = (pid: number) =>
            Effect.suspend(() => {
              if (killed) return Effect.void
              killed = true
              return Effect.zipRight(
                outside(admin`select pg_terminate_backend(${pid}, 5000)`),
                Effect.repeatN(macrotask, 20)
              )
            })
          const reading = projecting((sql) =>
            Effect.flatMap(sql<{ pid: number }>`select pg_backend_pid() as pid`, ([row]) =>
              sql`select n from generate_series(1, 100000) n`.stream.pipe(
                Stream.tap(() => kill(row?.pid ?? 0)),
                read,
                Stream.runDrain
              )
            )
          )
          const exit = yield* Effect.exit(commit(id, [reading]))
          expect(Exit.isFailure(exit)).toBe(true)
          expect([yield* poolState(2), yield* eventsOf(id)]).toEqual([intact, 0])
        }).pipe((program) => onPool(2, program))
    )
  }

  it.scoped("in a batch, a commit that a trigger refuses by any code fails alone", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const refused = newId()
      for (const code of ["42501", "08006", "25P02", "53300", "57P01"]) {
        yield* sql.unsafe(`create or replace function refuse() returns trigger language plpgsql as $$ begin
          if new.aggregate_id = '${refused}' then raise exception 'refused' using errcode = '${code}'; end if; return new; end $$`)
        yield* sql`drop trigger if exists refuse on maestro.event_log`
        yield* sql`create trigger refuse before insert on maestro.event_log for each row execute function refuse()`
        const ids = [...Arr.makeBy(20, newId), refused, ...Arr.makeBy(20, newId)]
        const exits = yield* Effect.forEach(ids, (id) => Effect.exit(commit<never, never>(id, [])), {
          concurrency: "unbounded"
        })
        expect([code, exits.filter(Exit.isFailure).length]).toEqual([code, 1])
        expect(yield* eventsOf(refused)).toBe(0)
      }
      yield* sql`drop trigger refuse on maestro.event_log`
    })
  )

  it.effect("a projection that rolls back to the savepoint of its commit has the commit fail", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      for (const text of [
        "rollback to savepoint effect_sql_1",
        "rollback; begin; savepoint effect_sql_1",
        "rollback to savepoint effect_sql_1; release savepoint effect_sql_1; savepoint effect_sql_1"
      ]) {
        const id = newId()
        const exit = yield* Effect.exit(sql.withTransaction(commit(id, [projecting((sql) => sql.unsafe(text))])))
        expect([text, Exit.isFailure(exit), yield* eventsOf(id)]).toEqual([text, true, 0])
      }
    })
  )
})
