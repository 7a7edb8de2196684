/** Commits with projections from several callers concurrently: each is a transaction of its own. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberRef from "effect/FiberRef"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as Stream from "effect/Stream"
import { type Event, type Projection, SqlStore, StoreAdapter, StoreError, Timestamp } from "effect-maestro"
import { inject } from "vitest"
import { layerPg, layerPglite } from "./database.js"
import { macrotask } from "./nodes.js"

/** With a counter a commit waits for the one before, so a projection can't wait for the next. Its own commits are subtransactions there. */
const hasCounter = inject("feedOrder") === "counter"

const stores = {
  Postgres: SqlStore.layer.pipe(Layer.provideMerge(layerPg()), Layer.orDie),
  "Postgres with a pool of one": SqlStore.layer.pipe(Layer.provideMerge(layerPg({ maxConnections: 1 })), Layer.orDie),
  PGlite: SqlStore.layer.pipe(Layer.provideMerge(layerPglite), Layer.orDie)
}

it.layer(stores.Postgres, { timeout: 60_000 })("concurrent commits with projections on Postgres", (it) => {
  it.effect("each commit is a transaction of its own", () =>
    Effect.gen(function* () {
      const rows = yield* aTable
      const ids = Arr.makeBy(20, (): string => crypto.randomUUID())
      yield* allSucceed(yield* concurrently(ids.map((id) => commit(id, [rows.projection()]))))
      expect(yield* transactionsOf(ids)).toBe(20)
      expect(yield* rows.ids).toEqual([...ids].sort())
    })
  )

  it.effect("a projection may read by a cursor", () =>
    Effect.gen(function* () {
      const rows = yield* aTable
      const ids = sixIds()
      let read = 0
      const reading: Projection.Projection<unknown, SqlClient.SqlClient> = {
        name: "reading",
        project: () =>
          inSql((sql) =>
            Stream.runForEach(sql`select 1 from generate_series(1, 300)`.stream, () => Effect.sync(() => read++))
          )
      }
      yield* allSucceed(
        yield* concurrently(
          ids.map((id, index) => commit(id, index === 2 ? [reading, rows.projection()] : [rows.projection()]))
        )
      )
      expect(yield* rows.ids).toEqual([...ids].sort())
      expect(read).toBe(300)
    })
  )

  for (const [name, { expected, misbehaves }] of Object.entries(misfits)) {
    it.effect(`a projection that ${name} fails its own commit only`, () =>
      Effect.gen(function* () {
        const rows = yield* aTable
        const neighbours = sixIds()
        const misfit: string = crypto.randomUUID()
        let runs = 0
        const counted: Projection.Projection<unknown, SqlClient.SqlClient> = {
          name: "misfit",
          project: (event) =>
            Effect.suspend(() => {
              runs++
              return misbehaves(event, rows.name)
            })
        }
        const commits = [...neighbours.slice(0, 3), misfit, ...neighbours.slice(3)].map((id) =>
          commit(id, id === misfit ? [rows.projection(), counted] : [rows.projection()])
        )
        const exits = yield* concurrently(commits)
        yield* allSucceed(exits.filter((_, index) => index !== 3))
        const own = exits[3] ?? Exit.void
        if (expected === undefined) expect(own).toEqual(Exit.void)
        else expect(Exit.isFailure(own) ? Cause.squash(own.cause) : undefined).toMatchObject(expected)
        const stored = expected === undefined ? [...neighbours, misfit] : neighbours
        expect(yield* rows.ids).toEqual([...stored].sort())
        expect(yield* eventsOf([...neighbours, misfit])).toEqual(yield* rows.ids)
        expect(runs).toBe(1)
      })
    )
  }

  it.effect("a refused commit and a duplicate do not disturb the others", () =>
    Effect.gen(function* () {
      const rows = yield* aTable
      const [refused, stored, ...others] = sixIds()
      const known = yield* stamped(stored, 1)
      const store = yield* StoreAdapter.StoreAdapter
      yield* store.commitEvents([known])
      const exits = yield* concurrently([
        Effect.asVoid(commit(refused, [rows.projection()], 2)),
        store.commitAll([known], [rows.projection()]),
        ...others.map((id) => commit(id, [rows.projection()]))
      ])
      expect(exits[0]).toEqual(Exit.fail(new StoreError.RetryCommand({ aggregateId: refused, sequence: 2 })))
      yield* allSucceed(exits.slice(1))
      expect(yield* rows.ids).toEqual([...others].sort())
      expect(yield* transactionsOf(others)).toBe(4)
    })
  )

  it.effect("an interrupted commit leaves nothing, and the others succeed", () =>
    Effect.gen(function* () {
      const rows = yield* aTable
      for (const moment of ["waiting", "projecting"] as const) {
        const started = yield* Deferred.make<void>()
        const hanging: Projection.Projection = {
          name: "hanging",
          project: () => Effect.zipRight(Deferred.succeed(started, undefined), Effect.never)
        }
        const [id, ...others] = sixIds()
        const fiber = yield* Deferred.make<Fiber.RuntimeFiber<void, unknown>>()
        const interrupting = Effect.gen(function* () {
          const interrupted = yield* Effect.fork(commit(id, [rows.projection(), hanging]))
          yield* Deferred.succeed(fiber, interrupted)
          if (moment === "projecting") yield* Deferred.await(started)
          expect(Exit.isInterrupted(yield* Fiber.interrupt(interrupted))).toBe(true)
        })
        yield* allSucceed(yield* concurrently([interrupting, ...others.map((id) => commit(id, [rows.projection()]))]))
        expect(yield* eventsOf([id, ...others])).toEqual([...others].sort())
        expect((yield* rows.ids).filter((row) => [id, ...others].includes(row))).toEqual([...others].sort())
      }
    })
  )

  it.effect.skipIf(hasCounter)(
    "a commit that is interrupted after its projections is stored wholly or not at all",
    () =>
      Effect.gen(function* () {
        const rows = yield* aTable
        const [id, slow, ...others] = sixIds()
        const [projected, go] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
        const telling: Projection.Projection = {
          name: "telling",
          project: () => Deferred.succeed(projected, undefined)
        }
        const waiting: Projection.Projection = { name: "waiting", project: () => Deferred.await(go) }
        const interrupting = Effect.gen(function* () {
          const fiber = yield* Effect.fork(commit(id, [rows.projection(), telling]))
          yield* Deferred.await(projected)
          yield* Effect.repeatN(macrotask, 3)
          const interruption = yield* Effect.fork(Fiber.interrupt(fiber))
          yield* macrotask
          yield* Deferred.succeed(go, undefined)
          yield* Fiber.join(interruption)
        })
        yield* allSucceed(
          yield* concurrently([
            interrupting,
            commit(slow, [rows.projection(), waiting]),
            ...others.map((id) => commit(id, [rows.projection()]))
          ])
        )
        const all = [id, slow, ...others]
        expect(yield* eventsOf(all)).toEqual(yield* rows.ids)
        expect(yield* eventsOf([slow, ...others])).toHaveLength(5)
      })
  )

  it.effect("a projection that waits for a lock delays no other commit", () =>
    Effect.gen(function* () {
      const rows = yield* aTable
      const sql = yield* SqlClient.SqlClient
      const [id, row, ...others] = sixIds()
      yield* sql`insert into ${sql(rows.name)} values (${row})`
      const [holding, go] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      const holder = yield* Effect.fork(
        sql.withTransaction(
          Effect.gen(function* () {
            yield* sql`update ${sql(rows.name)} set id = id where id = ${row}`
            yield* Deferred.succeed(holding, undefined)
            yield* Deferred.await(go)
          })
        )
      )
      yield* Deferred.await(holding)
      const waiting: Projection.Projection<unknown, SqlClient.SqlClient> = {
        name: "waiting",
        project: () =>
          inSql((sql) =>
            Effect.ignore(
              sql.withTransaction(sql`update ${sql(rows.name)} set id = ${`${row} changed`} where id = ${row}`)
            )
          )
      }
      const waited = yield* Deferred.make<Exit.Exit<unknown, unknown>>()
      yield* allSucceed(
        yield* concurrently([
          Effect.forkDaemon(
            Effect.flatMap(Effect.exit(commit(id, [waiting])), (exit) => Deferred.succeed(waited, exit))
          ),
          ...others.map((id) => commit(id, [rows.projection()]))
        ])
      )
      expect(yield* Deferred.isDone(waited)).toBe(false)
      yield* Deferred.succeed(go, undefined)
      yield* Fiber.join(holder)
      expect(Exit.isSuccess(yield* Deferred.await(waited))).toBe(true)
      expect(yield* rows.ids).toEqual([`${row} changed`, ...others].sort())
    })
  )

  it.effect("a projection runs with the context of its caller, and sets its FiberRefs", () =>
    Effect.gen(function* () {
      const rows = yield* aTable
      const who = FiberRef.unsafeMake("no caller")
      const ids = sixIds()
      const seen: Array<readonly [string, string]> = []
      const looking: Projection.Projection = {
        name: "looking",
        project: ({ aggregateId }) =>
          Effect.flatMap(FiberRef.get(who), (name) => {
            seen.push([aggregateId, name])
            return FiberRef.set(who, `${name}, projected`)
          })
      }
      const exits = yield* concurrently(
        ids.map((id) =>
          Effect.gen(function* () {
            yield* FiberRef.set(who, id)
            yield* commit(id, [rows.projection(), looking])
            expect(yield* FiberRef.get(who)).toBe(`${id}, projected`)
          })
        )
      )
      yield* allSucceed(exits)
      for (const [id, name] of seen) expect(name).toBe(id)
      expect(yield* transactionsOf(ids)).toBe(6)
    })
  )

  it.effect.skipIf(hasCounter)("a fiber that outlives its projection can't write to the connection", () =>
    Effect.gen(function* () {
      const rows = yield* aTable
      const [id, waiting, ...others] = sixIds()
      const [over, written] = [yield* Deferred.make<void>(), yield* Deferred.make<Exit.Exit<unknown, unknown>>()]
      const leaving: Projection.Projection<unknown, SqlClient.SqlClient> = {
        name: "leaving",
        project: () =>
          Effect.flatMap(SqlClient.SqlClient, (sql) =>
            Effect.zipRight(
              Deferred.await(over),
              Effect.exit(sql`insert into ${sql(rows.name)} values ('a ghost')`)
            ).pipe(
              Effect.flatMap((exit) => Deferred.succeed(written, exit)),
              Effect.forkDaemon
            )
          )
      }
      const after: Projection.Projection<unknown> = {
        name: "after",
        project: () => Effect.zipRight(Deferred.succeed(over, undefined), Deferred.await(written))
      }
      yield* allSucceed(
        yield* concurrently([
          commit(id, [rows.projection(), leaving]),
          commit(waiting, [rows.projection(), after]),
          ...others.map((id) => commit(id, [rows.projection()]))
        ])
      )
      expect(Exit.isFailure(yield* Deferred.await(written))).toBe(true)
      expect(yield* rows.ids).toEqual([id, waiting, ...others].sort())
      expect(yield* transactionsOf([id, waiting, ...others])).toBe(6)
    })
  )

  it.effect("a projection that reads the log finds its own events, and no uncommitted ones of other callers", () =>
    Effect.gen(function* () {
      const rows = yield* aTable
      const store = yield* StoreAdapter.StoreAdapter
      const ids = sixIds()
      const seen = new Map<string, ReadonlyArray<number>>()
      const reading: Projection.Projection<unknown> = {
        name: "reading",
        project: ({ aggregateId }) =>
          Effect.map(
            Effect.forEach(ids, (id) => store.getEvents(id, 1)),
            (streams) =>
              seen.set(
                aggregateId,
                streams.map(({ length }) => length)
              )
          )
      }
      const exits = yield* concurrently(
        ids.map((id, index) => commit(id, index === 2 ? [rows.projection(), reading] : [rows.projection()]))
      )
      yield* allSucceed(exits)
      const [own, ...others] = [seen.get(ids[2] ?? "")?.[2], ...(seen.get(ids[2] ?? "") ?? [])]
      expect(own).toBe(1)
      // Others may have been stored before it, but all of one transaction are not seen halfway.
      for (const [index, count] of others.entries()) if (count > 0) expect(yield* rows.ids).toContain(ids[index])
      expect(yield* transactionsOf([ids[2] ?? ""])).toBe(1)
    })
  )

  it.effect("a setting that a projection makes for its transaction is not seen by other callers", () =>
    Effect.gen(function* () {
      const rows = yield* aTable
      const ids = sixIds()
      const tenants: Array<string | null> = []
      const setting: Projection.Projection<unknown, SqlClient.SqlClient> = {
        name: "setting",
        project: () => Effect.flatMap(SqlClient.SqlClient, (sql) => sql`select set_config('app.tenant', 'one', true)`)
      }
      const asking: Projection.Projection<unknown, SqlClient.SqlClient> = {
        name: "asking",
        project: () =>
          Effect.flatMap(SqlClient.SqlClient, (sql) =>
            Effect.map(
              sql<{ tenant: string | null }>`select nullif(current_setting('app.tenant', true), '') as tenant`,
              ([row]) => tenants.push(row?.tenant ?? null)
            )
          )
      }
      yield* allSucceed(
        yield* concurrently(
          ids.map((id, index) => commit(id, index === 0 ? [rows.projection(), setting] : [rows.projection(), asking]))
        )
      )
      expect(tenants.filter((tenant) => tenant !== null)).toEqual([])
    })
  )

  it.effect.skipIf(hasCounter)("a projection's own transactions and commits are part of its transaction", () =>
    Effect.gen(function* () {
      const rows = yield* aTable
      const store = yield* StoreAdapter.StoreAdapter
      const [nesting, following, ...others] = sixIds()
      const follower = crypto.randomUUID()
      const attempting: Projection.Projection<unknown, SqlClient.SqlClient> = {
        name: "attempting",
        project: ({ aggregateId }) =>
          Effect.flatMap(SqlClient.SqlClient, (sql) =>
            Effect.ignore(
              sql.withTransaction(
                Effect.zipRight(
                  sql`insert into ${sql(rows.name)} values (${`undone ${aggregateId}`})`,
                  Effect.fail("no")
                )
              )
            )
          )
      }
      const committing: Projection.Projection<unknown, SqlClient.SqlClient> = {
        name: "committing",
        project: () => Effect.flatMap(stamped(follower, 1), (event) => store.commitAll([event], [rows.projection()]))
      }
      yield* allSucceed(
        yield* concurrently([
          commit(nesting, [rows.projection(), attempting]),
          commit(following, [rows.projection(), committing]),
          ...others.map((id) => commit(id, [rows.projection()]))
        ])
      )
      const all = [nesting, following, follower, ...others].sort()
      expect(yield* rows.ids).toEqual(all)
      expect(yield* eventsOf(all)).toEqual(all)
      expect(yield* transactionsOf([following, follower])).toBe(1)
    })
  )
})

for (const [name, layer] of Object.entries(stores)) {
  // In the name: so it is known also of a storm that does not end.
  const seed = Math.floor(Math.random() * 2 ** 31)
  it.layer(layer, { timeout: 60_000 })(`random commits on ${name}, seed ${seed}`, (it) => {
    it.effect("projections agree with the events, and each result is true", () =>
      Effect.gen(function* () {
        const rows = yield* aTable
        const outcomes = yield* Effect.forEach(
          Arr.makeBy(24, (client) => client),
          () =>
            Effect.forEach(Arr.range(1, 12), () =>
              Effect.gen(function* () {
                const id = crypto.randomUUID()
                const [fate, other] = [yield* Random.nextIntBetween(0, 40), yield* Random.nextIntBetween(0, 12)]
                const project = rows.projection(fate)
                const fiber = yield* Effect.fork(commit(id, [project]))
                if (fate === 7) {
                  yield* Effect.repeatN(macrotask, other)
                  yield* Fiber.interrupt(fiber)
                }
                return { id, exit: yield* Fiber.await(fiber) }
              })
            ),
          { concurrency: "unbounded" }
        ).pipe(Effect.map((all) => all.flat()))
        const stored = new Set(yield* eventsOf(outcomes.map(({ id }) => id)))
        expect(yield* rows.ids).toEqual([...stored].sort())
        for (const { exit, id } of outcomes) {
          if (Exit.isSuccess(exit)) expect(stored.has(id)).toBe(true)
          else if (!Exit.isInterrupted(exit)) expect(stored.has(id)).toBe(false)
        }
        expect(outcomes.filter(({ exit }) => Exit.isSuccess(exit)).length).toBeGreaterThan(150)
      }).pipe(Effect.withRandom(Random.make(seed)))
    )
  })
}

// --- what the cases are made of ---

/** A table of its own, with a row for each event that was projected into it. */
const aTable = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const name = `rows_${crypto.randomUUID().slice(0, 8)}`
  yield* sql`create table ${sql(name)} (id text not null)`
  return {
    name,
    ids: Effect.map(sql<{ id: string }>`select distinct id from ${sql(name)}`, (rows) =>
      rows.map(({ id }) => id).sort()
    ),
    projection: (fate?: number): Projection.Projection<unknown, SqlClient.SqlClient> => ({
      name,
      project: ({ aggregateId }) =>
        Effect.flatMap(SqlClient.SqlClient, (sql) => {
          const row = sql`insert into ${sql(name)} values (${aggregateId})`
          switch (fate) {
            case 1:
              return Effect.zipRight(row, Effect.fail("told to"))
            case 2:
              return Effect.zipRight(row, Effect.die("told to"))
            case 3:
              return Effect.zipRight(row, sql`select nonsense`)
            case 4:
              return Effect.zipRight(row, Effect.ignore(sql`select nonsense`))
            case 5:
              return Effect.zipRight(sql`select pg_sleep(0.05)`, row)
            default:
              return row
          }
        })
    })
  }
})

interface Misfit {
  readonly misbehaves: (event: Event.Event, table: string) => Effect.Effect<unknown, unknown, SqlClient.SqlClient>
  /** Its failure; without one it succeeds. */
  readonly expected: object | undefined
}

const sixIds = (): readonly [string, string, string, string, string, string] => [
  crypto.randomUUID(),
  crypto.randomUUID(),
  crypto.randomUUID(),
  crypto.randomUUID(),
  crypto.randomUUID(),
  crypto.randomUUID()
]

const inSql = (run: (sql: SqlClient.SqlClient) => Effect.Effect<unknown, unknown>) =>
  Effect.flatMap(SqlClient.SqlClient, run)

const misfits: Readonly<Record<string, Misfit>> = {
  fails: { misbehaves: () => Effect.fail({ _tag: "Refused" }), expected: { _tag: "Refused" } },
  dies: { misbehaves: () => Effect.die(new Error("it broke")), expected: { message: "it broke" } },
  "sends malformed SQL": {
    misbehaves: () => inSql((sql) => sql`select nonsense`),
    expected: { _tag: "SqlError" }
  },
  "passes over a failed statement": {
    misbehaves: () => inSql((sql) => Effect.ignore(sql`select nonsense`)),
    expected: { _tag: "StoreError", reason: "Unknown" }
  },
  "breaks a constraint that is checked at COMMIT": {
    misbehaves: () =>
      inSql((sql) =>
        Effect.zipRight(
          sql`create table once (n int unique deferrable initially deferred)`,
          sql`insert into once values (1), (1)`
        )
      ),
    expected: { _tag: "StoreError", code: "23505" }
  },
  "undoes its failed statement": {
    misbehaves: () => inSql((sql) => Effect.ignore(sql.withTransaction(sql`select nonsense`))),
    expected: undefined
  },
  "sends a statement that takes long": {
    misbehaves: () => inSql((sql) => sql`select pg_sleep(0.3)`),
    expected: undefined
  },
  "loses the connection": {
    misbehaves: () => inSql((sql) => sql`select pg_terminate_backend(pg_backend_pid())`),
    expected: { _tag: "SqlError" }
  }
}

/** Commits one event with projections. */
const commit = <E, R>(
  id: string,
  projections: ReadonlyArray<Projection.Projection<E, R>>,
  sequence = 1,
  type = "Happened"
) =>
  Effect.flatMap(StoreAdapter.StoreAdapter, (store) =>
    Effect.flatMap(stamped(id, sequence, type), (event) => store.commitAll([event], projections))
  )

/** Runs the effects concurrently, and returns how each ended. */
const concurrently = <A, E, R>(commits: ReadonlyArray<Effect.Effect<A, E, R>>) =>
  Effect.forEach(commits, (one) => Effect.exit(one), { concurrency: "unbounded" })

const allSucceed = (exits: ReadonlyArray<Exit.Exit<unknown, unknown>>) =>
  Effect.sync(() => {
    for (const exit of exits) expect(exit).toSatisfy(Exit.isSuccess)
  })

/** Those of the aggregates that have events. */
const eventsOf = (ids: ReadonlyArray<string>) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    Effect.map(
      sql<{
        id: string
      }>`select distinct aggregate_id as id from maestro.event_log where ${sql.in("aggregate_id", ids)}`,
      (rows) => rows.map(({ id }) => id).sort()
    )
  )

/** By how many transactions the events of the aggregates were written. */
const transactionsOf = (ids: ReadonlyArray<string>) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    Effect.map(
      sql`select distinct xmin::text from maestro.event_log where ${sql.in("aggregate_id", ids)}`,
      (rows) => rows.length
    )
  )

const stamped = (aggregateId: string, sequence: number, type = "Happened"): Effect.Effect<Event.Event> =>
  Effect.flatMap(Timestamp.HybridClock, ({ now }) =>
    Effect.map(now, (timestamp) => ({ timestamp, aggregateId, sequence, type, version: 1, body: {}, metadata: {} }))
  )
