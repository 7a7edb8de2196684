/** Callers for tests: each with a context of its own, and the stores on which they meet. */

import * as Reactivity from "@effect/experimental/Reactivity"
import * as SqlClient from "@effect/sql/SqlClient"
import type { Statement } from "@effect/sql/Statement"
import { PgClient } from "@effect/sql-pg"
import { expect } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as FiberRef from "effect/FiberRef"
import * as HashMap from "effect/HashMap"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Tracer from "effect/Tracer"
import { Aggregate, type Event, MemoryStore, Projection, SqlStore, StoreAdapter, Timestamp } from "effect-maestro"
import pg from "pg"
import { layerPglite, makeMigratedDatabase, uniqueName } from "./database.js"
import { macrotask } from "./nodes.js"

// --- stores ---

/** The URL of the Postgres database of a test. */
export class Database extends Context.Tag("test/Database")<Database, string>() {}

/** A database of its own, with the tables of the store. */
export const layerDatabase = Layer.scoped(Database, Effect.orDie(makeMigratedDatabase))

/** A pool on the database. */
export const layerPool = (maxConnections: number, applicationName = "callers") =>
  Layer.unwrapEffect(
    Effect.map(Database, (url) => PgClient.layer({ url: Redacted.make(url), maxConnections, applicationName }))
  ).pipe(Layer.orDie)

export const onPostgres = SqlStore.layer.pipe(
  Layer.provideMerge(layerPool(10)),
  Layer.provideMerge(layerDatabase),
  Layer.orDie
)

export const onPglite = SqlStore.layer.pipe(Layer.provideMerge(layerPglite), Layer.orDie)

// --- callers ---

/** The number of callers that meet. */
export const callers: ReadonlyArray<string> = Arr.makeBy(20, (n) => `caller ${String(n).padStart(2, "0")}`)

export class Tenant extends Context.Reference<Tenant>()("test/Tenant", { defaultValue: () => "no tenant" }) {}

export const Own = FiberRef.unsafeMake("no caller")

/** Gives an effect all that a caller has around it: tenant, FiberRef, log annotation, metadata and root span. */
export const asCaller = <A, E, R>(caller: string, effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  effect.pipe(
    Effect.provideService(Aggregate.Metadata, { caller }),
    Effect.provideService(Tenant, caller),
    Effect.locally(Own, caller),
    Effect.annotateLogs("caller", caller),
    Effect.withSpan(caller, { root: true, captureStackTrace: false })
  ) as Effect.Effect<A, E, R>

/** All that a caller has around it, as the running fiber sees it. */
export const surroundings = Effect.gen(function* () {
  const annotations = yield* Effect.logAnnotations
  return {
    tenant: yield* Tenant,
    own: yield* FiberRef.get(Own),
    annotation: Option.getOrElse(HashMap.get(annotations, "caller"), () => "no annotation"),
    trace: rootOf(Option.getOrUndefined(yield* Effect.option(Effect.currentParentSpan)))
  }
})

const rootOf = (span: Tracer.AnySpan | undefined): string =>
  span?._tag !== "Span" ? "no span" : Option.isSome(span.parent) ? rootOf(span.parent.value) : span.name

// --- commands ---

export class Said extends Schema.TaggedClass<Said>()("Said", { caller: Schema.String }) {}

/** Says it as often as asked for. */
export class Say extends Schema.TaggedClass<Say>()("Say", { caller: Schema.String, times: Schema.Number }) {}

/** An aggregate whose handler yields once, so that commands meet. */
export const makeTalk = <const P extends ReadonlyArray<Projection.Projection.Any>>(projections: P) =>
  Aggregate.make("Talk", {
    state: Schema.Number,
    initialState: 0,
    events: Said,
    commands: Say,
    decide: {
      Say: ({ caller, times }: Say) =>
        Effect.as(
          Effect.yieldNow(),
          Arr.makeBy(times, () => new Said({ caller }))
        )
    },
    evolve: { Said: (said: number) => said + 1 },
    projections,
    retry: Schedule.recurs(50)
  })

/** The caller that an event is from. */
export const callerOf = ({ body }: Event.Event): string => String(body.caller)

/** The events of one caller for `commitAll`. */
export const saidBy = (caller: string, aggregateId: string, sequence = 1) =>
  Effect.flatMap(Timestamp.HybridClock, ({ now }) =>
    Effect.map(
      now,
      (timestamp): ReadonlyArray<Event.Event> => [
        { timestamp, aggregateId, sequence, type: "Said", version: 1, body: { caller }, metadata: { caller } }
      ]
    )
  )

/** Where the commands of all callers meet, of those in a place that no other test knows. */
export const meetings = {
  "on one aggregate": (place: string) => place,
  "on an aggregate each": (place: string, caller: string) => `${place} ${caller}`
} as const

export type Meeting = (place: string, caller: string) => string

/** Evaluates a command of each caller, on an aggregate with the projections. */
export const meet = <E, R>(
  { place, run }: Scene,
  idOf: Meeting,
  projections: ReadonlyArray<Projection.Projection<E, R>>,
  present = callers
) =>
  Effect.gen(function* () {
    const Talk = makeTalk(projections)
    const node = yield* Layer.build(Layer.fresh(Talk.layer))
    return yield* run(
      present.map((caller) =>
        asCaller(caller, Effect.provide(Talk.evaluate(idOf(place, caller), new Say({ caller, times: 1 })), node))
      )
    )
  })

/** The callers whose events are stored, each as often as it has events. */
export const storedAt = ({ place }: Scene, idOf: Meeting) =>
  Effect.flatMap(StoreAdapter.StoreAdapter, (store) =>
    Effect.map(
      Effect.forEach(new Set(callers.map((caller) => idOf(place, caller))), (id) => store.getEvents(`Talk/${id}`, 1)),
      (streams) => streams.flat().map(callerOf).sort()
    )
  )

// --- the oracle ---

/** Runs the programs of all callers, and describes how each ended, in their order. */
export type Run = <A, E, R>(
  programs: ReadonlyArray<Effect.Effect<A, E, R>>
) => Effect.Effect<ReadonlyArray<string>, never, R>

const runWith =
  (concurrency: 1 | "unbounded"): Run =>
  (programs) =>
    Effect.forEach(programs, (program) => Effect.map(exitOf(program), describe), { concurrency })

/** In a fiber of its own, also where one program runs after the other. */
const exitOf = <A, E, R>(program: Effect.Effect<A, E, R>): Effect.Effect<Exit.Exit<A, E>, never, R> =>
  Effect.flatMap(Effect.fork(program), Fiber.await)

/** How a program ended: by the tag, reason, code and caller of its failure, or the message of its defect. */
export const describe = (exit: Exit.Exit<unknown, unknown>): string => {
  if (Exit.isSuccess(exit)) return "succeeds"
  if (Cause.isInterruptedOnly(exit.cause)) return "is interrupted"
  const error = Cause.squash(exit.cause)
  if (Cause.isDie(exit.cause) || !Predicate.isRecord(error)) return `dies with ${String(error)}`
  const code = Predicate.isRecord(error.cause) ? error.cause.code : undefined
  return ["fails with", error._tag, error.reason, error.code ?? code, error.caller]
    .filter(Predicate.isNotNullable)
    .join(" ")
}

/** What a scenario is played with. */
export interface Scene {
  readonly run: Run
  /** The beginning of the ids of its aggregates, of which the store has no events. */
  readonly place: string
}

/** Plays a scenario with one caller after the other, and with all of them concurrently, and expects the same of both. */
export const asOneByOne = <A, E, R>(scenario: (scene: Scene) => Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const oneByOne = yield* onFreshStore(scenario({ run: runWith(1), place: uniqueName("one by one") }))
    const concurrent = onFreshStore(scenario({ run: runWith("unbounded"), place: uniqueName("concurrently") }))
    expect(yield* concurrent).toEqual(oneByOne)
    return oneByOne
  })

/** Gives a scenario a store that has seen no commit yet. On a database its tables are those of all. */
const onFreshStore = <A, E, R>(scenario: Effect.Effect<A, E, R>) =>
  Effect.flatMap(Effect.serviceOption(SqlClient.SqlClient), (client) => {
    const store: Layer.Layer<StoreAdapter.StoreAdapter> = Option.isNone(client)
      ? MemoryStore.layer
      : Layer.orDie(SqlStore.layerWith({ migrate: false })).pipe(
          Layer.provide(Layer.succeed(SqlClient.SqlClient, client.value))
        )
    return Effect.provide(scenario, Layer.fresh(store))
  })

// --- tables and projections on SQL ---

/** A table of the given columns, under a name of its own. */
export const makeTable = (columns: string) =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const name = uniqueName("rows")
    yield* sql.unsafe(`create table ${name} (${columns})`)
    return {
      name,
      rows: Effect.map(sql<Record<string, unknown>>`select * from ${sql(name)}`, (rows) =>
        rows.map((row) => Object.values(row).join(": ")).sort()
      )
    }
  })

/** Statements with which a projection ends the transaction that it runs in. */
export const endings = ["ROLLBACK", "COMMIT", "ROLLBACK; BEGIN", "COMMIT AND CHAIN"]

/** What a projection sends for one event. */
export type Statements = (sql: SqlClient.SqlClient, event: Event.Event) => ReadonlyArray<Statement<unknown>>

type Style = (statements: Statements) => Projection.Projection<unknown, SqlClient.SqlClient>

/** The ways to send them: one after the other by an effect, or as statements alone. */
export const styles: Readonly<Record<"an effect" | "statements", Style>> = {
  "an effect": (statements) =>
    Projection.orStoreError(
      Projection.make({
        name: "effect",
        events: Said,
        project: {
          Said: (_said, event) =>
            Effect.flatMap(SqlClient.SqlClient, (sql) =>
              Effect.forEach(statements(sql, event), (statement) => statement, { discard: true })
            )
        }
      })
    ),
  statements: (statements) =>
    Projection.makeSql({
      name: "statements",
      events: Said,
      project: { Said: (_said, event, sql) => statements(sql, event) }
    })
}

/** Counts the notifications until that of the end. */
export const listen = (url: string) =>
  Effect.gen(function* () {
    const client = yield* Effect.acquireRelease(
      Effect.promise(async () => {
        const client = new pg.Client({ connectionString: url })
        client.on("error", () => {})
        await client.connect()
        return client
      }),
      (client) => Effect.promise(() => client.end())
    )
    const ended = yield* Deferred.make<number>()
    let count = 0
    client.on("notification", ({ payload }) => {
      if (payload === "end") Deferred.unsafeDone(ended, Effect.succeed(count))
      else count++
    })
    yield* Effect.promise(() => client.query("listen callers"))
    return { untilEnd: Deferred.await(ended) }
  })

// --- pools ---

/** A pool that a test looks at from outside. */
export class Pool extends Context.Tag("test/Pool")<
  Pool,
  { readonly admin: SqlClient.SqlClient; readonly name: string }
>() {}

/** Runs a program on a pool of its own, by the clock of the machine, since it is the database that takes time. */
export const inPool = <A, E, R, R2>(
  name: string,
  pool: Layer.Layer<SqlClient.SqlClient, never, R2>,
  program: Effect.Effect<A, E, R>
) =>
  Effect.flatMap(SqlClient.SqlClient, (admin) =>
    program.pipe(
      Effect.provide(Layer.orDie(SqlStore.layerWith({ migrate: false })).pipe(Layer.provideMerge(pool))),
      Effect.provideService(Pool, { admin, name }),
      Effect.withClock(Clock.make())
    )
  )

export const onPool = <A, E, R>(maxConnections: number, program: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const name = uniqueName("pool")
    return inPool(name, layerPool(maxConnections, name), program)
  })

/**
 * Waits until so many connections of the pool are in a statement, as the server tells. An interruption takes effect between two looks,
 * because the late cancel of a look would hit the next statement of the test on that connection.
 */
export const untilActive = (count: number, condition: string) =>
  Effect.flatMap(Pool, ({ admin, name }) =>
    Effect.uninterruptible(admin`select 1 from pg_stat_activity
      where application_name = ${name} and state = 'active' and ${admin.unsafe(condition)}`).pipe(
      Effect.zipLeft(macrotask),
      Effect.repeat({ until: (rows) => rows.length >= count })
    )
  )

export const untilAsleep = (count: number) => untilActive(count, "query like '%pg_sleep%'")

/** A gate is closed until there is a row of its name: statements wait for that in the database. */
export const makeGates = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  sql.unsafe(`
    create table if not exists gates (name text primary key);
    create or replace function wait_for(gate text) returns void language plpgsql as $$ begin
      while not exists (select 1 from gates where name = gate) loop perform pg_sleep(0.005); end loop;
    end $$`)
)

/** As a literal, so that the server shows which gate a statement waits for. */
export const waitFor = (sql: SqlClient.SqlClient, gate: string) => sql.unsafe(`select wait_for('${gate}')`)

export const untilWaiting = (gate: string) => untilActive(1, `query = 'select wait_for(''${gate}'')'`)

/** Cancels the statements that wait for a gate, as a driver does, and returns how many there were. */
export const cancelWaiting = (gate: string) =>
  Effect.flatMap(Pool, ({ admin, name }) =>
    Effect.map(
      admin`select pg_cancel_backend(pid) from pg_stat_activity
        where application_name = ${name} and state = 'active' and query = ${`select wait_for('${gate}')`}`,
      (rows) => rows.length
    )
  )

export const open = (gate: string) => Effect.flatMap(Pool, ({ admin }) => admin`insert into gates values (${gate})`)

export const intact = "all connections work, and none is in a transaction"

/** Has all connections of the pool at work concurrently, and looks for transactions that were left open. */
export const poolState = (size: number) =>
  Effect.gen(function* () {
    const { admin, name } = yield* Pool
    const sql = yield* SqlClient.SqlClient
    const all = yield* Deferred.make<void>()
    let working = 0
    const work = sql.withTransaction(
      Effect.gen(function* () {
        yield* sql`select 1`
        if (++working === size) yield* Deferred.succeed(all, undefined)
        yield* Deferred.await(all)
      })
    )
    yield* Effect.all(Arr.replicate(work, size), { concurrency: "unbounded", discard: true })
    // A connection that was closed is there until its backend reads so.
    const open = yield* Effect.repeat(
      admin`select query from pg_sleep(0.01), pg_stat_activity
        where application_name = ${name} and state like 'idle in transaction%'`,
      { until: (rows) => rows.length === 0, times: 200 }
    )
    return open.length === 0 ? intact : JSON.stringify(open)
  })

/** A pool of three connections that tells of each statement when it is sent. */
export const makeWatchedPool = (url: string) => {
  const pool = { name: uniqueName("pool"), onQuery: () => {}, layer: Layer.empty as Layer.Layer<SqlClient.SqlClient> }
  const acquire = Effect.acquireRelease(
    Effect.sync(() => {
      const driver = new pg.Pool({ connectionString: url, max: 3, application_name: pool.name })
      driver.on("error", () => {})
      driver.on("connect", (client) => {
        const query = client.query.bind(client) as (...args: ReadonlyArray<unknown>) => unknown
        Object.assign(client, {
          query: (...args: ReadonlyArray<unknown>) => {
            pool.onQuery()
            return query(...args)
          }
        })
      })
      return driver
    }),
    (driver) => Effect.promise(() => driver.end())
  )
  pool.layer = Layer.scopedContext(
    Effect.map(Effect.provide(PgClient.fromPool({ acquire }), Reactivity.layer), (client) =>
      Context.make(SqlClient.SqlClient, client as SqlClient.SqlClient)
    )
  ).pipe(Layer.orDie)
  return pool
}
