/** Commits of strangers with their projections in one transaction: none of them notices. */
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
import * as PgliteClient from "effect-maestro/PgliteClient"
import { layerPg } from "./database.js"
import { macrotask } from "./nodes.js"

const stores = {
  Postgres: SqlStore.layer.pipe(Layer.provideMerge(layerPg()), Layer.orDie),
  "Postgres with a pool of one": SqlStore.layer.pipe(Layer.provideMerge(layerPg({ maxConnections: 1 })), Layer.orDie),
  PGlite: SqlStore.layerWith({ shareTransactions: true }).pipe(
    Layer.provideMerge(PgliteClient.layerMemory),
    Layer.orDie
  )
}

for (const known of [false, true]) {
  const title = `shared transactions on Postgres${known ? ", of projections known to be one statement" : ""}`
  it.layer(stores.Postgres, { timeout: 60_000 })(title, ({ effect }) => {
    // Each with a store of its own: what one has learned about projections is not to be another's.
    const it = {
      effect: <A, E>(
        name: string,
        run: () => Effect.Effect<A, E, SqlClient.SqlClient | StoreAdapter.StoreAdapter>,
        timeout = 20_000
      ) =>
        effect(
          name,
          () =>
            Effect.provide(
              known ? Effect.zipRight(makeKnown, Effect.suspend(run)) : run(),
              SqlStore.layerWith({ migrate: false })
            ),
          timeout
        )
    }

    it.effect("one that comes alone is a transaction of its own, and waits for no clock", () =>
      Effect.gen(function* () {
        const rows = yield* aTable
        const ids = Arr.makeBy(5, (): string => crypto.randomUUID())
        for (const id of ids) yield* commit(id, [rows.projection()])
        expect(yield* transactionsOf(ids)).toBe(5)
        expect(yield* rows.ids).toEqual([...ids].sort())
      })
    )

    it.effect("those that wait leave together", () =>
      Effect.gen(function* () {
        const rows = yield* aTable
        const ids = Arr.makeBy(20, (): string => crypto.randomUUID())
        yield* allSucceed(yield* inCompany(ids.map((id) => commit(id, [rows.projection()]))))
        expect(yield* transactionsOf(ids)).toBeLessThan(5)
        expect(yield* rows.ids).toEqual([...ids].sort())
      })
    )

    it.effect(
      "statements of projections that are one each are sent before the first is answered; others one by one",
      () =>
        Effect.gen(function* () {
          const rows = yield* aTable
          const log: Array<string> = []
          const logged = ({ name, project }: Projection.Projection<unknown, SqlClient.SqlClient>) => ({
            name,
            project: (event: Event.Event) =>
              Effect.suspend(() => {
                log.push("sent")
                return Effect.tap(project(event), () => Effect.sync(() => log.push("answered")))
              })
          })
          yield* allSucceed(yield* inCompany(sixIds().map((id) => commit(id, [logged(rows.projection())]))))
          expect(log).toEqual(
            known
              ? [...Arr.replicate("sent", 6), ...Arr.replicate("answered", 6)]
              : Arr.replicate(["sent", "answered"], 6).flat()
          )
        })
    )

    it.effect("one that reads by a cursor does so, and the others do not notice", () =>
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
          yield* inCompany(
            ids.map((id, index) => commit(id, index === 2 ? [reading, rows.projection()] : [rows.projection()]))
          )
        )
        expect(yield* rows.ids).toEqual([...ids].sort())
        expect(read).toBe(300)
      })
    )

    it.effect("with shareTransactions: false each is a transaction of its own", () =>
      Effect.gen(function* () {
        const rows = yield* aTable
        const ids = Arr.makeBy(8, (): string => crypto.randomUUID())
        yield* allSucceed(yield* inCompany(ids.map((id) => commit(id, [rows.projection()]))))
        expect(yield* transactionsOf(ids)).toBe(8)
      }).pipe(Effect.provide(SqlStore.layerWith({ migrate: false, shareTransactions: false })))
    )

    it.effect("those about one aggregate keep their order, and strangers do not wait for them", () =>
      Effect.gen(function* () {
        const rows = yield* aTable
        const id = crypto.randomUUID()
        const strangers = Arr.makeBy(5, () => crypto.randomUUID())
        const exits = yield* inCompany([
          ...[1, 2, 3].map((sequence) => commit(id, [rows.projection()], sequence)),
          ...strangers.map((id) => commit(id, [rows.projection()]))
        ])
        yield* allSucceed(exits)
        expect(yield* transactionsOf([id])).toBe(3)
        expect(yield* transactionsOf(strangers)).toBeLessThan(5)
      })
    )

    for (const [name, { expected, misbehaves }] of Object.entries(misfits)) {
      it.effect(`one that ${name} has its own failure, and the others do not notice`, () =>
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
                return misbehaves(event, rows.name, runs)
              })
          }
          const commits = [...neighbours.slice(0, 3), misfit, ...neighbours.slice(3)].map((id) =>
            commit(id, id === misfit ? [rows.projection(), counted] : [rows.projection()])
          )
          const exits = yield* inCompany(commits)
          yield* allSucceed(exits.filter((_, index) => index !== 3))
          const own = exits[3] ?? Exit.void
          if (expected === undefined) expect(own).toEqual(Exit.void)
          else expect(Exit.isFailure(own) ? Cause.squash(own.cause) : undefined).toMatchObject(expected)
          const stored = expected === undefined ? [...neighbours, misfit] : neighbours
          expect(yield* rows.ids).toEqual([...stored].sort())
          expect(yield* eventsOf([...neighbours, misfit])).toEqual(yield* rows.ids)
          // Once with the others, once by itself.
          expect(runs).toBe(2)
        })
      )
    }

    it.effect("one that is refused, and one that is stored already, answer at once, and the others go on", () =>
      Effect.gen(function* () {
        const rows = yield* aTable
        const [refused, stored, ...others] = sixIds()
        const known = yield* stamped(stored, 1)
        const store = yield* StoreAdapter.StoreAdapter
        yield* store.commitEvents([known])
        const exits = yield* inCompany([
          Effect.asVoid(commit(refused, [rows.projection()], 2)),
          store.commitAll([known], [rows.projection()]),
          ...others.map((id) => commit(id, [rows.projection()]))
        ])
        expect(exits[0]).toEqual(Exit.fail(new StoreError.RetryCommand({ aggregateId: refused, sequence: 2 })))
        yield* allSucceed(exits.slice(1))
        expect(yield* rows.ids).toEqual([...others].sort())
        expect(yield* transactionsOf(others)).toBeLessThan(4)
      })
    )

    it.effect("one that is interrupted goes away; nothing of it stays, and the others do not notice", () =>
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
          yield* allSucceed(yield* inCompany([interrupting, ...others.map((id) => commit(id, [rows.projection()]))]))
          expect(yield* eventsOf([id, ...others])).toEqual([...others].sort())
          expect((yield* rows.ids).filter((row) => [id, ...others].includes(row))).toEqual([...others].sort())
        }
      })
    )

    it.effect("whoever has projected and is interrupted is stored with the others, or not at all", () =>
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
          yield* inCompany([
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

    it.effect("one that waits for a lock keeps no stranger waiting, whatever it makes of it", () =>
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
          yield* inCompany([
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

    it.effect("a projection runs with what its caller has around it, and what it sets there stays", () =>
      Effect.gen(function* () {
        const rows = yield* aTable
        const who = FiberRef.unsafeMake("nobody")
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
        const exits = yield* inCompany(
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
        expect(yield* transactionsOf(ids)).toBeLessThan(4)
      })
    )

    it.effect("a fiber that outlives its projection can't write where others project", () =>
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
          yield* inCompany([
            commit(id, [rows.projection(), leaving]),
            commit(waiting, [rows.projection(), after]),
            ...others.map((id) => commit(id, [rows.projection()]))
          ])
        )
        expect(Exit.isFailure(yield* Deferred.await(written))).toBe(true)
        expect(yield* rows.ids).toEqual([id, waiting, ...others].sort())
        expect(yield* transactionsOf([id, waiting, ...others])).toBeLessThan(4)
      })
    )

    it.effect("a projection that reads the log finds its own events there, and no stranger's", () =>
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
        const exits = yield* inCompany(
          ids.map((id, index) => commit(id, index === 2 ? [rows.projection(), reading] : [rows.projection()]))
        )
        yield* allSucceed(exits)
        const [own, ...strangers] = [seen.get(ids[2] ?? "")?.[2], ...(seen.get(ids[2] ?? "") ?? [])]
        expect(own).toBe(1)
        // Others may have been stored before it, but all of one transaction are not seen halfway.
        for (const [index, count] of strangers.entries()) if (count > 0) expect(yield* rows.ids).toContain(ids[index])
        expect(yield* transactionsOf([ids[2] ?? ""])).toBe(1)
      })
    )

    it.effect("what a projection sets for its transaction, nobody else has", () =>
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
          yield* inCompany(
            ids.map((id, index) => commit(id, index === 0 ? [rows.projection(), setting] : [rows.projection(), asking]))
          )
        )
        expect(tenants.filter((tenant) => tenant !== null)).toEqual([])
      })
    )

    it.effect("a projection's own transactions and commits are part of its transaction", () =>
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
          yield* inCompany([
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

    it.effect("who takes transactions apart again and again goes alone, and comes back", () =>
      Effect.gen(function* () {
        const rows = yield* aTable
        let runs = 0
        const failing: Projection.Projection<string> = {
          name: "failing",
          project: () =>
            Effect.suspend(() => {
              runs++
              return Effect.fail("no")
            })
        }
        for (const _ of Arr.range(1, 8)) {
          const neighbours = Arr.makeBy(4, () => crypto.randomUUID())
          const exits = yield* inCompany([
            ...neighbours.map((id) => commit(id, [rows.projection()])),
            commit(crypto.randomUUID(), [failing], 1, "Unlucky")
          ])
          yield* allSucceed(exits.slice(0, 4))
          expect(exits[4]).toEqual(Exit.fail("no"))
        }
        // Twice as often as it was asked for, where nobody minds.
        expect(runs).toBeLessThan(14)
      })
    )
  })
}

for (const [name, layer] of Object.entries(stores)) {
  // In the name: so it is known also of a storm that does not end.
  const seed = Math.floor(Math.random() * 2 ** 31)
  it.layer(layer, { timeout: 60_000 })(`a storm on ${name}, of seed ${seed}`, (it) => {
    it.effect("projections agree with the events, and each is answered what is true", () =>
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

/** Has the store find out that the projections of such a commit are one statement. */
const makeKnown = Effect.gen(function* () {
  const rows = yield* aTable
  yield* allSucceed(
    yield* inCompany(Arr.makeBy(40, () => Effect.suspend(() => commit(crypto.randomUUID(), [rows.projection()]))))
  )
})

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
  readonly misbehaves: (
    event: Event.Event,
    table: string,
    run: number
  ) => Effect.Effect<unknown, unknown, SqlClient.SqlClient>
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
  "breaks a constraint that is looked at in the end": {
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
  "does not come to an end": {
    misbehaves: (_event, _table, run) => (run === 1 ? Effect.never : Effect.void),
    expected: undefined
  },
  "does not come to an end and can't be interrupted": {
    misbehaves: (_event, _table, run) =>
      run === 1 ? Effect.uninterruptible(Effect.promise(() => new Promise((go) => setTimeout(go, 400)))) : Effect.void,
    expected: undefined
  },
  "sends a statement that takes long": {
    misbehaves: (_event, _table, run) => inSql((sql) => sql`select pg_sleep(${run === 1 ? 3 : 0})`),
    expected: undefined
  },
  "loses the connection": {
    misbehaves: (_event, _table, run) =>
      run === 1 ? inSql((sql) => sql`select pg_terminate_backend(pg_backend_pid())`) : Effect.void,
    expected: undefined
  }
}

/** Commits one event, in a store whose statistics nobody else has spoilt. */
const commit = <E, R>(
  id: string,
  projections: ReadonlyArray<Projection.Projection<E, R>>,
  sequence = 1,
  type = "Happened"
) =>
  Effect.flatMap(StoreAdapter.StoreAdapter, (store) =>
    Effect.flatMap(stamped(id, sequence, type), (event) => store.commitAll([event], projections))
  )

/** Lets them wait until there is room for all of them at once, and tells what became of each. */
const inCompany = <A, E, R>(commits: ReadonlyArray<Effect.Effect<A, E, R>>) =>
  Effect.gen(function* () {
    // So that it is known how long a projection takes here.
    for (const _ of [1, 2, 3]) {
      yield* commit(crypto.randomUUID(), [{ name: "quick", project: () => Effect.void }], 1, "Before")
    }
    const holders = yield* Effect.forEach([1, 2], () =>
      Effect.gen(function* () {
        const [started, go] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
        const holding: Projection.Projection = {
          name: "holding",
          project: () => Effect.zipRight(Deferred.succeed(started, undefined), Deferred.await(go))
        }
        const fiber = yield* Effect.fork(commit(crypto.randomUUID(), [holding], 1, "Held"))
        yield* Deferred.await(started)
        return { fiber, go }
      })
    )
    const fibers = yield* Effect.forEach(commits, (one) => Effect.zipLeft(Effect.fork(one), Effect.yieldNow()))
    yield* macrotask
    const [first, second] = holders
    if (first !== undefined) yield* Deferred.succeed(first.go, undefined)
    const exits = yield* Effect.forEach(fibers, Fiber.await)
    if (second !== undefined) yield* Deferred.succeed(second.go, undefined)
    for (const { fiber } of holders) yield* Fiber.join(fiber)
    return exits
  })

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
      sql`select distinct transaction_id from maestro.event_log where ${sql.in("aggregate_id", ids)}`,
      (rows) => rows.length
    )
  )

const stamped = (aggregateId: string, sequence: number, type = "Happened"): Effect.Effect<Event.Event> =>
  Effect.flatMap(Timestamp.HybridClock, ({ now }) =>
    Effect.map(now, (timestamp) => ({ timestamp, aggregateId, sequence, type, body: {}, metadata: {} }))
  )
