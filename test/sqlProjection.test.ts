/** Projections that are SQL statements and nothing else: the result is that of running the statements one after the other. */
import { inspect } from "node:util"
import * as Reactivity from "@effect/experimental/Reactivity"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Statement from "@effect/sql/Statement"
import { PgClient } from "@effect/sql-pg"
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import type * as Tracer from "effect/Tracer"
import { type Event, Projection, SqlStore, StoreAdapter, StoreError, Timestamp } from "effect-maestro"
import { layerPg, layerPglite, makeDatabase, makePool } from "./database.js"
import { macrotask } from "./nodes.js"
import { collectSpans } from "./spans.js"

const stores = {
  Postgres: SqlStore.layer.pipe(Layer.provideMerge(layerPg()), Layer.orDie),
  "Postgres with a pool of one": SqlStore.layer.pipe(Layer.provideMerge(layerPg({ maxConnections: 1 })), Layer.orDie),
  "Postgres with repeatable reads": SqlStore.layer.pipe(
    Layer.provideMerge(
      Layer.unwrapScoped(
        Effect.map(makeDatabase, (url) =>
          PgClient.layer({
            url: Redacted.make(`${url}?options=-c%20default_transaction_isolation%3Drepeatable%5C%20read`)
          })
        )
      )
    ),
    Layer.orDie
  ),
  PGlite: SqlStore.layer.pipe(Layer.provideMerge(layerPglite), Layer.orDie)
}

for (const [name, layer] of Object.entries(stores)) {
  it.layer(layer, { timeout: 60_000 })(`SQL projections on ${name}`, (it) => {
    it.effect(
      "the statements of an accepted commit run once, in order; those of a refused commit or a duplicate do not run",
      () =>
        Effect.gen(function* () {
          const { notes, projection } = yield* aTable
          const first = yield* noted("a", 1, "one", "two")
          yield* commit(first, projection)
          yield* commit(first, projection)
          expect(yield* Effect.flip(commit(yield* noted("a", 1, "other"), projection))).toBeInstanceOf(
            StoreError.RetryCommand
          )
          expect(yield* Effect.flip(commit(yield* noted("a", 3, "gap"), projection))).toBeInstanceOf(
            StoreError.RetryCommand
          )
          yield* commit(yield* noted("a", 2), projection)
          expect(yield* notes).toEqual(["a one", "a two"])
        })
    )

    it.effect("a statement that fails is a StoreError, and nothing is stored", () =>
      Effect.gen(function* () {
        const { notes, projection } = yield* aTable
        const id = crypto.randomUUID()
        const error = yield* Effect.flip(commit(yield* noted(id, 1, "twice", "twice"), projection))
        expect(error).toMatchObject({ _tag: "StoreError", reason: "Constraint", code: "23505", projection: "notes" })
        expect(yield* notes).toEqual([])
        yield* commit(yield* noted(id, 1, "once"), projection)
      })
    )

    it.effect("a constraint that is checked at COMMIT is a StoreError, and nothing is stored", () =>
      Effect.gen(function* () {
        const { notes, projection } = yield* aTable
        yield* commit(yield* noted(crypto.randomUUID(), 1, "unique at the end"), projection)
        const error = yield* Effect.flip(commit(yield* noted(crypto.randomUUID(), 1, "unique at the end"), projection))
        expect(error).toMatchObject({ _tag: "StoreError", code: "23P01" })
        expect(yield* notes).toHaveLength(1)
      })
    )

    it.effect("an event, a handler or a value that fails does so as in an effect, and nothing is stored", () =>
      Effect.gen(function* () {
        const { name: table, notes, projection } = yield* aTable
        const events = yield* noted(crypto.randomUUID(), 1, "one")
        const unreadable = events.map((event) => ({ ...event, body: { texts: 1 } }))
        expect(yield* Effect.flip(commit(unreadable, projection))).toMatchObject({ reason: "UnreadableEvent" })
        const throwing = Projection.makeSql({
          name: "throwing",
          events: Noted,
          project: {
            Noted: () => {
              throw new Error("told to")
            }
          }
        })
        expect(yield* Effect.exit(commit(events, throwing))).toEqual(Exit.die(new Error("told to")))
        const circular: Record<string, unknown> = {}
        circular.itself = circular
        const unsendable = Projection.makeSql({
          name: "unsendable",
          events: Noted,
          project: {
            Noted: ({ texts }, { aggregateId }, sql) => [
              sql`insert into ${sql(table)} (id, note) values (${aggregateId}, ${texts[0]})`,
              sql.unsafe("select $1::text", [circular]),
              sql`insert into ${sql(table)} (id, note) values (${aggregateId}, ${"after"})`
            ]
          }
        })
        // The embedded database makes a text of it, as it does of anything.
        if (name !== "PGlite") expect(Exit.isFailure(yield* Effect.exit(commit(events, unsendable)))).toBe(true)
        expect(yield* notes).toEqual([])
        yield* commit(events, projection)
      })
    )

    it.effect("a statement's error of any code is the error of the projection", () =>
      Effect.gen(function* () {
        const { notes, projection } = yield* aTable
        const events = yield* noted(crypto.randomUUID(), 1, "one")
        const store = yield* StoreAdapter.StoreAdapter
        const sql = yield* SqlClient.SqlClient
        yield* sql`create or replace function raise_as(code text) returns void language plpgsql as
          $$ begin raise exception 'raised' using errcode = code; end $$`
        for (const code of ["E0001", "MA001", "MA003", "08001", "53300", "40001", "P0001"]) {
          const raising = Projection.makeSql({
            name: "raising",
            events: Noted,
            project: { Noted: (_event, _envelope, sql) => sql`select raise_as(${code})` }
          })
          expect(yield* Effect.flip(store.commitAll(events, [projection, raising]))).toMatchObject({
            _tag: "StoreError",
            code,
            projection: "raising"
          })
        }
        expect(yield* notes).toEqual([])
        yield* commit(events, projection)
      })
    )

    it.effect("a statement that is not plain runs or fails as in an effect, and the connection stays usable", () =>
      Effect.gen(function* () {
        const { name: table, notes, projection } = yield* aTable
        const events = yield* noted(crypto.randomUUID(), 1, "one")
        const store = yield* StoreAdapter.StoreAdapter
        const saying = (text: string) =>
          Projection.makeSql({
            name: "saying",
            events: Noted,
            project: { Noted: (_event, _envelope, sql) => sql.unsafe(text) }
          })
        // The embedded database is asked for files here, by a function of its own.
        if (name !== "PGlite") {
          yield* Effect.flip(store.commitAll(events, [projection, saying(`copy ${table} from stdin`)]))
          expect(yield* notes).toEqual([])
        }
        const two = `insert into ${table} (id, note) values ('b', 'two'); insert into ${table} (id, note) values ('b', 'three')`
        yield* store.commitAll(events, [projection, saying(two), saying("set local lock_timeout = '1s'")])
        expect(yield* notes).toHaveLength(3)
      })
    )

    it.effect("a projection made of another does what its own project does", () =>
      Effect.gen(function* () {
        const { notes, projection } = yield* aTable
        yield* commit(yield* noted(crypto.randomUUID(), 1, "one"), {
          ...Projection.toEffect(projection),
          project: () => Effect.void
        })
        expect(yield* notes).toEqual([])
      })
    )

    it.effect("inside a caller's transaction the statements are part of it", () =>
      Effect.gen(function* () {
        const { notes, projection } = yield* aTable
        const sql = yield* SqlClient.SqlClient
        const events = yield* noted(crypto.randomUUID(), 1, "one")
        yield* Effect.flip(sql.withTransaction(Effect.zipRight(commit(events, projection), Effect.fail("no"))))
        expect(yield* notes).toEqual([])
        yield* sql.withTransaction(commit(events, projection))
        expect(yield* notes).toHaveLength(1)
      })
    )

    it.effect("of many concurrent commits each gets its own true result", () =>
      Effect.gen(function* () {
        const { notes, projection } = yield* aTable
        const store = yield* StoreAdapter.StoreAdapter
        const shared = crypto.randomUUID()
        const exits = yield* Effect.forEach(
          Arr.range(0, 79),
          (n) =>
            Effect.gen(function* () {
              // Some want the same place, some fail, some are slow, some are given up.
              const id = n % 8 === 0 ? shared : crypto.randomUUID()
              const texts = n % 10 === 3 ? ["twice", "twice"] : n % 20 === 5 ? [slow, "one"] : ["one"]
              const events = yield* noted(id, 1, ...texts)
              const fiber = yield* Effect.fork(commit(events, projection))
              if (n % 16 === 7) {
                yield* Effect.repeatN(macrotask, n % 5)
                yield* Fiber.interrupt(fiber)
              }
              return { n, id, events, exit: yield* Fiber.await(fiber) }
            }),
          { concurrency: "unbounded" }
        )
        const stored = new Map<string, ReadonlyArray<Event.Event>>()
        for (const { id } of exits) stored.set(id, yield* store.getEvents(id, 1))
        const expected = [...stored].flatMap(([id, events]) => (events.length === 0 ? [] : [`${id} one`]))
        expect((yield* notes).toSorted()).toEqual(expected.toSorted())
        for (const { events, exit, id, n } of exits) {
          const isStored = stored.get(id)?.[0]?.timestamp === events[0]?.timestamp
          if (Exit.isSuccess(exit)) expect(isStored).toBe(true)
          else if (!Cause.isInterrupted(exit.cause)) {
            expect(isStored).toBe(false)
            const error = Option.getOrThrow(Cause.failureOption(exit.cause))
            expect(n % 8 === 0 ? error instanceof StoreError.RetryCommand : n % 10 === 3).toBe(true)
          }
        }
        expect(exits.filter(({ exit }) => Exit.isSuccess(exit)).length).toBeGreaterThan(50)
      })
    )
  })
}

it.layer(stores.Postgres, { timeout: 60_000 })("SQL projections", (it) => {
  it.effect("an interruption while a statement waits for a lock returns soon, and leaves no statement", () =>
    Effect.gen(function* () {
      const { name, notes, projection } = yield* aTable
      const sql = yield* SqlClient.SqlClient
      const [holding, go] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      const holder = yield* Effect.fork(
        sql.withTransaction(
          Effect.all([
            sql`lock table ${sql(name)} in exclusive mode`,
            Deferred.succeed(holding, undefined),
            Deferred.await(go)
          ])
        )
      )
      yield* Deferred.await(holding)
      const id = crypto.randomUUID()
      const fiber = yield* Effect.fork(commit(yield* noted(id, 1, "one"), projection))
      yield* sql`select 1 from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock' and query like ${`%${name}%`}`.pipe(
        Effect.zipLeft(macrotask),
        Effect.repeat({ until: (rows) => rows.length > 0 })
      )
      yield* Fiber.interrupt(fiber)
      // Cancelled, not waiting on.
      yield* sql`select 1 from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock' and query like ${`%${name}%`}`.pipe(
        Effect.zipLeft(macrotask),
        Effect.repeat({ until: (rows) => rows.length === 0 })
      )
      yield* Deferred.succeed(go, undefined)
      yield* Fiber.join(holder)
      expect(yield* notes).toEqual([])
      yield* commit(yield* noted(id, 1, "other"), projection)
    })
  )

  it.effect("an interrupted commit in flight is stored wholly or not at all when the interruption returns", () =>
    Effect.gen(function* () {
      const { notes, projection } = yield* aTable
      for (const interrupted of Arr.range(1, 7)) {
        yield* Effect.forEach(
          Arr.range(1, 40),
          () => Effect.flatMap(noted(crypto.randomUUID(), 1, "one"), (events) => commit(events, projection)),
          { concurrency: "unbounded" }
        )
        const ids = Arr.makeBy(8, (): string => crypto.randomUUID())
        const fibers = yield* Effect.forEach(ids, (id) =>
          Effect.flatMap(noted(id, 1, slow, "one"), (events) => Effect.fork(commit(events, projection)))
        )
        yield* Effect.repeatN(macrotask, 20)
        yield* Effect.fromNullable(fibers[interrupted]).pipe(Effect.flatMap(Fiber.interrupt))
        const isNoted = Effect.map(notes, (all) => all.includes(`${ids[interrupted]} one`))
        const answered = yield* isNoted
        yield* Fiber.awaitAll(fibers)
        yield* commit(yield* noted(crypto.randomUUID(), 1, slow, slow, slow, slow), projection)
        expect(yield* isNoted).toBe(answered)
      }
    })
  )

  it.effect("slow commits are each a transaction of their own", () =>
    Effect.gen(function* () {
      const { notes, projection } = yield* aTable
      const sql = yield* SqlClient.SqlClient
      yield* Effect.forEach(
        Arr.range(1, 40),
        () => Effect.flatMap(noted(crypto.randomUUID(), 1, "one"), (events) => commit(events, projection)),
        { concurrency: "unbounded" }
      )
      const ids = Arr.makeBy(8, (): string => crypto.randomUUID())
      yield* Effect.forEach(
        ids,
        (id) => Effect.flatMap(noted(id, 1, ...Arr.replicate(slow, 5), "one"), (events) => commit(events, projection)),
        { concurrency: "unbounded" }
      )
      expect((yield* notes).filter((line) => ids.some((id) => line.startsWith(id)))).toHaveLength(8)
      const transactions =
        yield* sql`select distinct xmin::text from maestro.event_log where ${sql.in("aggregate_id", ids)}`
      expect(transactions).toHaveLength(8)
    })
  )

  it.effect("interruptions cancel no statement of other callers", () =>
    Effect.gen(function* () {
      const { projection } = yield* aTable
      const sql = yield* SqlClient.SqlClient
      const others = yield* Effect.fork(
        Effect.forEach(Arr.range(1, 8), () => Effect.repeatN(sql`select pg_sleep(0.002)`, 150), {
          concurrency: "unbounded",
          discard: true
        })
      )
      yield* Effect.forEach(
        Arr.range(1, 300),
        (n) =>
          Effect.flatMap(noted(crypto.randomUUID(), 1, "one"), (events) =>
            Effect.flatMap(Effect.fork(commit(events, projection)), (fiber) =>
              Effect.zipRight(Effect.repeatN(macrotask, n % 7), Fiber.interrupt(fiber))
            )
          ),
        { concurrency: 4, discard: true }
      )
      yield* Fiber.join(others)
    })
  )

  it.effect("a connection that breaks meanwhile is CommitUnknown, and committing again settles it", () =>
    Effect.gen(function* () {
      const { notes, projection } = yield* aTable
      const killing = Projection.makeSql({
        name: "killing",
        events: Noted,
        project: { Noted: (_event, _envelope, sql) => sql`select pg_terminate_backend(pg_backend_pid())` }
      })
      const store = yield* StoreAdapter.StoreAdapter
      const events = yield* noted(crypto.randomUUID(), 1, "one")
      expect(yield* Effect.flip(store.commitAll(events, [projection, killing]))).toMatchObject({
        _tag: "StoreError",
        reason: "CommitUnknown"
      })
      yield* Effect.retry(commit(events, projection), { times: 20 })
      expect(yield* notes).toHaveLength(1)
    })
  )

  it.effect("a transformer of the application transforms these statements, too", () =>
    Effect.gen(function* () {
      const { notes, projection } = yield* aTable
      const changing = Statement.setTransformer((statement, sql) =>
        Effect.succeed(
          statement.compile()[0].includes("notes_")
            ? sql.unsafe(
                statement.compile()[0],
                statement.compile()[1].map((value) => (value === "one" ? "changed" : value))
              )
            : statement
        )
      )
      yield* Effect.provide(
        Effect.flatMap(noted("t", 1, "one"), (events) => commit(events, projection)),
        changing
      )
      expect(yield* notes).toEqual(["t changed"])
    })
  )

  it.effect("a tracer sees each statement inside of the span of the commit", () =>
    Effect.gen(function* () {
      const { name, projection } = yield* aTable
      const { spans, tracer } = yield* collectSpans
      yield* Effect.flatMap(noted(crypto.randomUUID(), 1, "one"), (events) => commit(events, projection)).pipe(
        Effect.withSpan("request"),
        Effect.withTracer(tracer)
      )
      const text = (span: Tracer.Span) => String(span.attributes.get("db.query.text"))
      const own = spans.filter((span) => text(span).includes(name))
      expect(own).toHaveLength(1)
      const request = spans.find((span) => span.name === "request")
      expect(own.map(({ traceId }) => traceId)).toEqual([request?.traceId])
    })
  )
})

it.scoped("events and statements are one round trip, on a connection that is in no transaction", () =>
  Effect.gen(function* () {
    const url = yield* makeDatabase
    const sent: Array<unknown> = []
    const pool = yield* Effect.acquireRelease(
      Effect.sync(() => makePool(url)),
      (pool) => Effect.promise(() => pool.end())
    )
    pool.on("connect", (client) => {
      const query = client.query.bind(client) as (...args: ReadonlyArray<unknown>) => unknown
      Object.assign(client, {
        query: (statement: unknown, ...args: ReadonlyArray<unknown>) => {
          sent.push(statement)
          return query(statement, ...args)
        }
      })
    })
    const client = Layer.scopedContext(
      Effect.map(Effect.provide(PgClient.fromPool({ acquire: Effect.succeed(pool) }), Reactivity.layer), (client) =>
        Context.make(SqlClient.SqlClient, client as SqlClient.SqlClient)
      )
    )
    yield* Effect.gen(function* () {
      const { notes, projection } = yield* aTable
      const events = yield* noted("a", 1, "one", "two")
      sent.length = 0
      yield* commit(events, projection)
      // A duplicate takes one round trip, too, besides an empty one, after which the session is known to be ready.
      yield* commit(events, projection)
      const isOfCommit = (statement: unknown) =>
        typeof statement === "object" &&
        statement !== null &&
        /event_log|commit_events/.test(inspect(Reflect.get(statement, "commands")))
      expect(sent.filter(isOfCommit)).toHaveLength(2)
      expect(sent.filter((statement) => statement === "COMMIT" || String(statement).startsWith("BEGIN"))).toEqual([])
      const sql = yield* SqlClient.SqlClient
      yield* sql`begin`
      yield* commit(yield* noted("b", 1, "three"), projection)
      yield* sql`begin`
      yield* Effect.ignore(sql`select nonsense`)
      yield* commit(yield* noted("c", 1, "four"), projection)
      // Another connection sees committed rows only.
      const seen = yield* Effect.flatMap(SqlClient.SqlClient, (sql) => sql`select 1 from maestro.event_log`).pipe(
        Effect.provide(PgClient.layer({ url: Redacted.make(url), maxConnections: 1 }))
      )
      expect(seen).toHaveLength(3)
      expect(yield* notes).toEqual(["a one", "a two", "b three", "c four"])
    }).pipe(Effect.provide(SqlStore.layer.pipe(Layer.provideMerge(client))))
  })
)

// --- what the cases are made of ---

class Noted extends Schema.TaggedClass<Noted>()("Noted", { texts: Schema.Array(Schema.String) }) {}

const slow = "slowly"

/** A table of its own for notes, each once for an aggregate, and the projection that writes them. */
const aTable = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const name = `notes_${crypto.randomUUID().slice(0, 8)}`
  yield* sql`create table ${sql(name)} (
    n int generated always as identity, id text not null, note text not null, unique (id, note),
    exclude (note with =) where (note = 'unique at the end') deferrable initially deferred
  )`
  return {
    name,
    notes: Effect.map(sql<{ line: string }>`select id || ' ' || note as line from ${sql(name)} order by n`, (rows) =>
      rows.map(({ line }) => line)
    ),
    projection: Projection.makeSql({
      name: "notes",
      events: Noted,
      project: {
        Noted: ({ texts }, { aggregateId }, sql) =>
          texts.map((text) =>
            text === slow
              ? sql`select pg_sleep(0.02)`
              : sql`insert into ${sql(name)} (id, note) values (${aggregateId}, ${text})`
          )
      }
    })
  }
})

const noted = (aggregateId: string, sequence: number, ...texts: ReadonlyArray<string>) =>
  Effect.flatMap(Timestamp.HybridClock, ({ now }) =>
    Effect.map(now, (timestamp) => [
      { timestamp, aggregateId, sequence, type: "Noted", version: 1, body: { texts }, metadata: {} }
    ])
  )

const commit = <E, R>(events: ReadonlyArray<Event.Event>, projection: Projection.Projection<E, R>) =>
  Effect.flatMap(StoreAdapter.StoreAdapter, (store) => store.commitAll(events, [projection]))
