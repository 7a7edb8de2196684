/** A caller that is interrupted, and a projection that ends its transaction, spoil no connection for other callers. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Random from "effect/Random"
import * as Stream from "effect/Stream"
import { type Projection, StoreAdapter } from "effect-maestro"
import {
  callerOf,
  cancelWaiting,
  Database,
  describe,
  endings,
  inPool,
  intact,
  makeGates,
  makeTable,
  makeWatchedPool,
  onPglite,
  onPool,
  onPostgres,
  open,
  Pool,
  poolState,
  saidBy,
  styles,
  untilActive,
  untilAsleep,
  untilWaiting,
  waitFor
} from "./callers.js"
import { macrotask } from "./nodes.js"

type Store = StoreAdapter.StoreAdapter | SqlClient.SqlClient

it.layer(onPostgres, { timeout: 60_000 })("Callers that are interrupted", (it) => {
  it.scoped("a projection that reads rows by a cursor is interrupted soon, and the pool stays whole", () =>
    Effect.gen(function* () {
      const reading = {
        name: "reading",
        project: () => Effect.flatMap(SqlClient.SqlClient, (sql) => Stream.runDrain(sql`select pg_sleep(30)`.stream))
      }
      const id = newId()
      const exit = yield* Effect.exit(Effect.timeout(commit(id, [reading]), "60 millis"))
      expect(describe(exit)).toBe("fails with TimeoutException")
      expect([yield* poolState(2), yield* eventsOf(id)]).toEqual([intact, 0])
    }).pipe((program) => onPool(2, program))
  )

  it.scoped(
    "commits that are interrupted while they wait for a lock are not sent again, and the pool stays whole",
    () =>
      Effect.gen(function* () {
        const { admin } = yield* Pool
        const ids = Arr.makeBy(4, newId)
        // Each waits for the transaction that has inserted the same event, until that is rolled back.
        const [inserted, over] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
        const holder = yield* Effect.gen(function* () {
          for (const id of ids) {
            yield* admin`insert into maestro.event_log (position, aggregate_id, sequence, type, body, metadata, "timestamp")
            values (1, ${id}, 1, 'Said', '{}', '{}', gen_random_uuid())`
          }
          yield* Deferred.succeed(inserted, undefined)
          yield* Deferred.await(over)
          return yield* Effect.fail("roll back")
        }).pipe(admin.withTransaction, Effect.fork)
        yield* Deferred.await(inserted)
        const waiting = yield* Effect.forEach(ids, (id, index) =>
          Effect.fork(index === 0 ? commit(id, [styles.statements((sql) => [sql`select 1`])]) : commitPlainly(id))
        )
        yield* untilActive(4, "wait_event_type = 'Lock'")
        yield* Fiber.interruptAll(waiting)
        expect(yield* poolState(4)).toBe(intact)
        yield* Deferred.succeed(over, undefined)
        yield* Fiber.await(holder)
        expect(yield* Effect.forEach(ids, eventsOf)).toEqual([0, 0, 0, 0])
      }).pipe((program) => onPool(5, program))
  )

  it.scoped("a session that a projection leaves in a failed transaction does not go back to the pool", () =>
    Effect.gen(function* () {
      const leaves = styles.statements((sql) => [sql`rollback`, sql`begin`, sql`select nonsense`])
      expect(describe(yield* Effect.exit(commit(newId(), [leaves])))).toMatch("fails with StoreError")
      expect(yield* poolState(1)).toBe(intact)
    }).pipe((program) => onPool(1, program))
  )

  it.scoped("a commit on a connection that the application left in a transaction is stored all the same", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const nothing = { name: "nothing", project: () => Effect.void }
      for (const leave of ["begin", "begin; select nonsense"]) {
        for (const projections of [[], [nothing], [styles.statements((sql) => [sql`select 1`])]]) {
          const id = newId()
          yield* Effect.ignore(sql.unsafe(leave))
          yield* commit(id, projections)
          expect([leave, projections.length, yield* onPool(1, eventsOf(id))]).toEqual([leave, projections.length, 1])
        }
      }
      expect(yield* poolState(1)).toEqual(intact)
    }).pipe((program) => onPool(1, program))
  )

  for (const [style, projectionOf] of Object.entries(styles)) {
    const commitSlowly = (id: string, seconds: number) =>
      commit(id, [projectionOf((sql) => [sql`select pg_sleep(${seconds})`])])

    const commitThatWaits = (gate: string) => commit(newId(), [projectionOf((sql) => [waitFor(sql, gate)])])

    it.scoped(`a commit that is interrupted in a projection by ${style} cancels no statement of another caller`, () =>
      Effect.gen(function* () {
        yield* makeGates
        const cases = Arr.cartesian(Object.entries(others), moments)
        const outcomes = yield* Effect.forEach(
          cases,
          ([[name, other], moment]) =>
            onPool(2, interruptBeside(commitThatWaits, other, moment)).pipe(
              Effect.map((ends) => [name, moment, ...ends])
            ),
          { concurrency: "unbounded" }
        )
        const ends = ["succeeds", "succeeds", "is interrupted", intact]
        expect(outcomes).toEqual(cases.map(([[name], moment]) => [name, moment, ...ends]))
      })
    )

    it.scoped(`a commit is stored although the late cancel of another caller hits its projection by ${style}`, () =>
      Effect.gen(function* () {
        yield* makeGates
        const [gate, id] = [newId(), newId()]
        const committing = yield* Effect.fork(commit(id, [projectionOf((sql) => [waitFor(sql, gate)])]))
        yield* untilWaiting(gate)
        expect(yield* cancelWaiting(gate)).toBe(1)
        yield* open(gate)
        expect(describe(yield* Fiber.await(committing))).toBe("succeeds")
        expect([yield* eventsOf(id), yield* poolState(2)]).toEqual([1, intact])
      }).pipe((program) => onPool(2, program))
    )

    it.scoped(`a commit whose projection by ${style} is cancelled again and again is not stored`, () =>
      Effect.gen(function* () {
        yield* makeGates
        const [gate, id] = [newId(), newId()]
        const committing = yield* Effect.fork(commit(id, [projectionOf((sql) => [waitFor(sql, gate)])]))
        yield* Effect.repeat(Effect.zipRight(cancelWaiting(gate), macrotask), {
          until: () => committing.unsafePoll() !== null
        })
        expect(describe(yield* Fiber.await(committing))).toBe("fails with StoreError Cancelled 57014")
        expect([yield* eventsOf(id), yield* poolState(2)]).toEqual([0, intact])
      }).pipe((program) => onPool(2, program))
    )

    it.scoped(`in a pool of one, a commit follows one that timed out in a projection by ${style}`, () =>
      Effect.gen(function* () {
        const next = newId()
        const exit = yield* Effect.exit(Effect.timeout(commitSlowly(newId(), 0.3), "60 millis"))
        expect(describe(exit)).toBe("fails with TimeoutException")
        yield* Effect.timeout(commitSlowly(next, 0), "3 seconds")
        expect([yield* eventsOf(next), yield* poolState(1)]).toEqual([1, intact])
      }).pipe((program) => onPool(1, program))
    )

    it.scoped(`a commit by ${style} that is interrupted while it waits for a connection is not stored`, () =>
      Effect.gen(function* () {
        yield* makeGates
        const sql = yield* SqlClient.SqlClient
        const [gate, id] = [newId(), newId()]
        const holder = yield* Effect.fork(waitFor(sql, gate))
        yield* untilWaiting(gate)
        const waiting = yield* Effect.fork(commitSlowly(id, 0))
        yield* Effect.repeatN(macrotask, 5)
        expect(describe(yield* Fiber.interrupt(waiting))).toBe("is interrupted")
        yield* open(gate)
        yield* Fiber.join(holder)
        expect([yield* poolState(1), yield* eventsOf(id)]).toEqual([intact, 0])
      }).pipe((program) => onPool(1, program))
    )

    it.scoped(`a caller's transaction goes on, or is rolled back, after a time-out in a projection by ${style}`, () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const table = yield* makeTable("value text")
        const id = newId()
        const insert = (value: string) => sql`insert into ${sql(table.name)} values (${value})`
        const third = yield* Effect.fork(ownStatement(0.5))
        yield* untilAsleep(1)
        const limited = Effect.ignore(Effect.timeout(commitSlowly(id, 0.3), "60 millis"))
        const transaction = yield* Effect.fork(
          sql.withTransaction(Effect.all([insert("before"), limited, insert("after")]))
        )
        // On a busy machine the time is over before its projection sleeps.
        yield* Effect.raceFirst(untilAsleep(2), Fiber.await(transaction))
        const other = yield* Effect.fork(ownStatement(0.5))
        const exits = [yield* Fiber.await(other), yield* Fiber.await(third)]
        expect(exits.map(describe)).toEqual(["succeeds", "succeeds"])
        const isCommitted = Exit.isSuccess(yield* Fiber.await(transaction))
        expect(yield* table.rows).toEqual(isCommitted ? ["after", "before"] : [])
        expect([yield* eventsOf(id), yield* poolState(2)]).toEqual([0, intact])
      }).pipe((program) => onPool(2, program))
    )
  }

  it.scoped("a commit is stored although a late cancel hits a projection that fails with its own SqlError", () =>
    Effect.gen(function* () {
      yield* makeGates
      const [gate, id] = [newId(), newId()]
      const raw = {
        name: "raw",
        project: () => Effect.flatMap(SqlClient.SqlClient, (sql) => Effect.asVoid(waitFor(sql, gate)))
      }
      const committing = yield* Effect.fork(commit(id, [raw]))
      yield* untilWaiting(gate)
      expect(yield* cancelWaiting(gate)).toBe(1)
      yield* open(gate)
      expect(describe(yield* Fiber.await(committing))).toBe("succeeds")
      expect([yield* eventsOf(id), yield* poolState(2)]).toEqual([1, intact])
    }).pipe((program) => onPool(2, program))
  )

  const seed = Math.floor(Math.random() * 2 ** 31)

  it.scoped(`no caller without a time limit feels the limits of 100 others (seed ${seed})`, () =>
    Effect.gen(function* () {
      const outcomes = yield* Effect.forEach(
        Arr.range(1, 200),
        (n) =>
          Effect.gen(function* () {
            const isLimited = n % 2 === 0
            // The driver cancels a statement of the application late, when another caller may have its connection.
            const among = isLimited ? ofStore : [...ofStore, ownStatement, ownTransaction]
            const kind = among[yield* Random.nextIntBetween(0, among.length)] ?? ownStatement
            const program = Effect.asVoid(kind(yield* Random.nextRange(0, isLimited ? 0.4 : 0.1)))
            const millis = yield* Random.nextIntBetween(1, 1200)
            const outcome = describe(yield* Effect.exit(isLimited ? Effect.timeout(program, millis) : program))
            return isLimited && outcome === "fails with TimeoutException" ? "succeeds" : outcome
          }),
        { concurrency: "unbounded" }
      )
      expect(outcomes).toEqual(outcomes.map(() => "succeeds"))
      expect(yield* poolState(10)).toBe(intact)
    }).pipe((program) => onPool(10, program), Effect.withRandom(Random.make(seed)))
  )

  for (const [name, projectionsOf] of Object.entries(stepwise)) {
    it.scoped(`a commit with ${name} that is interrupted at any step is stored wholly or not at all`, () =>
      Effect.gen(function* () {
        const admin = yield* SqlClient.SqlClient
        const pool = makeWatchedPool(yield* Database)
        const program = Effect.gen(function* () {
          const table = yield* makeTable("id text, value text")
          const projections = projectionsOf(table.name)
          yield* slowDownCommits
          /** Interrupts a commit after so many of its statements were sent, and so many seconds more. */
          const interruptAt = (step: number, seconds: number) =>
            Effect.gen(function* () {
              const id = `slow ${newId()}`
              const reached = yield* Deferred.make<void>()
              let sent = 0
              pool.onQuery = () => {
                if (++sent === step) Deferred.unsafeDone(reached, Effect.void)
              }
              const fiber = yield* Effect.fork(commit(id, projections))
              yield* Effect.raceFirst(Deferred.await(reached), Fiber.await(fiber))
              if (seconds > 0) yield* admin`select pg_sleep(${seconds})`
              const exit = yield* Fiber.interrupt(fiber)
              pool.onQuery = () => {}
              const next = describe(
                yield* Effect.exit(Effect.all(Arr.replicate(ownStatement(0), 3), { concurrency: "unbounded" }))
              )
              const [events, rows] = [
                yield* eventsOf(id),
                (yield* table.rows).filter((row) => row.startsWith(id)).length
              ]
              const isWhole = rows === (projections.length > 0 ? events : 0) && (Exit.isFailure(exit) || events === 1)
              return { sent, outcome: { step, seconds, next, isWhole } }
            })
          const { sent } = yield* interruptAt(Number.POSITIVE_INFINITY, 0)
          const steps = Arr.cartesian(Arr.range(1, sent), [0, 0.01])
          const tries = yield* Effect.forEach(steps, ([step, seconds]) => interruptAt(step, seconds))
          expect(tries.map(({ outcome }) => outcome)).toEqual(
            steps.map(([step, seconds]) => ({ step, seconds, next: "succeeds", isWhole: true }))
          )
          expect(yield* poolState(3)).toBe(intact)
        })
        yield* inPool(pool.name, pool.layer, program)
      })
    )
  }

  it.scoped("of commits in one batch, all that are not interrupted are stored", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const [locked, unlock] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      const locking = Effect.all([
        sql`lock table maestro.event_log in exclusive mode`,
        Deferred.succeed(locked, undefined),
        Deferred.await(unlock)
      ])
      const holder = yield* Effect.fork(sql.withTransaction(locking))
      yield* Deferred.await(locked)
      const ids = Arr.makeBy(24, newId)
      const fibers = yield* Effect.forEach(ids, (id) => Effect.fork(commitPlainly(id)))
      yield* untilActive(1, "wait_event_type = 'Lock'")
      yield* Fiber.interruptAll(fibers.filter((_, index) => index % 3 === 0))
      yield* Deferred.succeed(unlock, undefined)
      yield* Fiber.join(holder)
      const exits = yield* Effect.forEach(fibers, Fiber.await)
      const others = ids.filter((_, index) => index % 3 > 0)
      expect(exits.filter((_, index) => index % 3 > 0).map(describe)).toEqual(others.map(() => "succeeds"))
      for (const id of others) expect(yield* eventsOf(id)).toBe(1)
      expect(yield* poolState(10)).toBe(intact)
    }).pipe((program) => onPool(10, program))
  )

  for (const [style, projectionOf] of Object.entries(styles)) {
    for (const ending of endings) {
      it.scoped(`a projection by ${style} that says ${ending} leaves no transaction open in its pool`, () =>
        onPool(1, Effect.zipRight(commitsAround(projectionOf((sql) => [sql.unsafe(ending)])), poolState(1))).pipe(
          Effect.map((state) => expect(state).toBe(intact))
        )
      )
    }
  }
})

it.layer(onPglite, { timeout: 60_000 })("Callers on PGlite", (it) => {
  for (const [style, projectionOf] of Object.entries(styles)) {
    for (const ending of endings) {
      it.scoped(`a projection by ${style} that says ${ending} leaves no transaction open`, () =>
        commitsAround(projectionOf((sql) => [sql.unsafe(ending)]))
      )
    }
  }
})

// --- what the cases are made of ---

const newId = (): string => crypto.randomUUID()

const commit = <E, R>(id: string, projections: ReadonlyArray<Projection.Projection<E, R>>) =>
  Effect.flatMap(StoreAdapter.StoreAdapter, (store) =>
    Effect.flatMap(saidBy(id, id), (events) => store.commitAll(events, projections))
  )

const commitPlainly = (id: string) => commit<never, never>(id, [])

const eventsOf = (id: string) =>
  Effect.flatMap(StoreAdapter.StoreAdapter, (store) => Effect.map(store.getEvents(id, 1), ({ length }) => length))

/** A statement of the application, which takes so many seconds. */
const ownStatement = (seconds: number): Effect.Effect<unknown, unknown, Store> =>
  Effect.flatMap(SqlClient.SqlClient, (sql) => sql`select pg_sleep(${seconds})`)

const ownTransaction = (seconds: number): Effect.Effect<unknown, unknown, Store> =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    sql.withTransaction(Effect.replicateEffect(ownStatement(seconds / 2), 2))
  )

type CommitThatWaits = (gate: string) => Effect.Effect<unknown, unknown, Store>

/** What a caller does beside one that is interrupted. */
const others: Readonly<
  Record<string, (gate: string, commitThatWaits: CommitThatWaits) => Effect.Effect<unknown, unknown, Store>>
> = {
  "a statement of the application": (gate) => Effect.flatMap(SqlClient.SqlClient, (sql) => waitFor(sql, gate)),
  "a commit": (gate, commitThatWaits) => commitThatWaits(gate),
  reads: () => Effect.replicateEffect(eventsOf(newId()), 50)
}

/** When the other caller starts, and whether a third one has the other connection of the pool meanwhile. */
const moments = [
  { isBefore: true, hasThird: false },
  { isBefore: true, hasThird: true },
  { isBefore: false, hasThird: true }
]

/** Interrupts a commit in its projection, beside another caller, and a third one that the cancel has to wait for. */
const interruptBeside = (
  commitThatWaits: CommitThatWaits,
  other: (gate: string, commitThatWaits: CommitThatWaits) => Effect.Effect<unknown, unknown, Store>,
  { hasThird, isBefore }: (typeof moments)[number]
) =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const gates = { third: newId(), interrupted: newId(), other: newId() }
    const third = yield* Effect.fork(hasThird ? waitFor(sql, gates.third) : Effect.void)
    if (hasThird) yield* untilWaiting(gates.third)
    const interrupted = yield* Effect.fork(commitThatWaits(gates.interrupted))
    yield* untilWaiting(gates.interrupted)
    const beside = yield* Deferred.make<Fiber.RuntimeFiber<unknown, unknown>>()
    const start = Effect.flatMap(Effect.fork(other(gates.other, commitThatWaits)), (fiber) =>
      Effect.zipRight(macrotask, Deferred.succeed(beside, fiber))
    )
    if (isBefore) yield* start
    const interruption = yield* Effect.fork(Fiber.interrupt(interrupted))
    yield* macrotask
    if (!isBefore) yield* start
    // Without a connection for its cancel, a statement goes on after its caller has its answer.
    if (hasThird) yield* Fiber.join(interruption)
    yield* open(gates.interrupted)
    // By now the other caller has its connection, or it never will before the third has ended.
    yield* Effect.raceFirst(untilWaiting(gates.other), Effect.sleep("500 millis"))
    yield* open(gates.third)
    const thirdExit = yield* Fiber.await(third)
    // In the line of the pool this is behind the cancel.
    yield* ownStatement(0)
    yield* open(gates.other)
    const exits = [
      yield* Effect.flatMap(Deferred.await(beside), Fiber.await),
      thirdExit,
      yield* Fiber.await(interrupted)
    ]
    return [...exits.map(describe), yield* poolState(2)]
  })

const slowCommits = Object.values(styles).map(
  (projectionOf) => (seconds: number) => commit(newId(), [projectionOf((sql) => [sql`select pg_sleep(${seconds})`])])
)

/** What callers of the store do by turns, for so many seconds; most of them commit with a projection. */
const ofStore: ReadonlyArray<(seconds: number) => Effect.Effect<unknown, unknown, Store>> = [
  ...Arr.replicate(slowCommits, 3).flat(),
  () => commitPlainly(newId()),
  () => eventsOf(newId())
]

/** A commit that ends its transaction, alone and inside a transaction of the caller, and what works afterwards. */
const commitsAround = (ending: Projection.Projection<unknown, SqlClient.SqlClient>) =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const table = yield* makeTable("value text")
    const insert = sql`insert into ${sql(table.name)} values ('undone')`
    const ends = [commit(newId(), [ending]), sql.withTransaction(commit(newId(), [ending]))]
    for (const program of ends) {
      expect(describe(yield* Effect.exit(program))).toMatch("fails with StoreError")
      const next = newId()
      yield* commitPlainly(next)
      yield* commit(`${next} too`, [{ name: "nothing", project: () => Effect.void }])
      expect([yield* eventsOf(next), yield* eventsOf(`${next} too`)]).toEqual([1, 1])
      yield* Effect.flip(sql.withTransaction(Effect.zipRight(insert, Effect.fail("no"))))
      expect(yield* table.rows).toEqual([])
    }
  })

/** The projections of a commit that is interrupted at each of its steps. */
const stepwise: Readonly<
  Record<string, (table: string) => ReadonlyArray<Projection.Projection<unknown, SqlClient.SqlClient>>>
> = {
  "no projection": () => [],
  ...Object.fromEntries(
    Object.entries(styles).map(([style, projectionOf]) => [
      `a projection by ${style}`,
      (table: string) => [
        projectionOf((sql, event) => [
          sql`insert into ${sql(table)} values (${callerOf(event)}, 'done')`,
          sql`select pg_sleep(0.02)`
        ])
      ]
    ])
  )
}

/** Has the server take its time to store an event, and again at COMMIT. */
const slowDownCommits = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  sql.unsafe(`
    create or replace function take_time() returns trigger language plpgsql as $$ begin
      perform pg_sleep(0.02);
      return null;
    end $$;
    drop trigger if exists slow_insert on maestro.event_log;
    drop trigger if exists slow_commit on maestro.event_log;
    create trigger slow_insert after insert on maestro.event_log for each row
      when (new.aggregate_id like 'slow %') execute function take_time();
    create constraint trigger slow_commit after insert on maestro.event_log deferrable initially deferred for each row
      when (new.aggregate_id like 'slow %') execute function take_time();`)
)
