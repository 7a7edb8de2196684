/**
 * The store on connections that lack, lose or keep for too long what was prepared on them. They are behind a pooler that gives each
 * transaction another one. Or they have met DISCARD ALL, a failover, or replaced functions and tables.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import { PgClient } from "@effect/sql-pg"
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Chunk from "effect/Chunk"
import type * as ConfigError from "effect/ConfigError"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import {
  Aggregate,
  type Event,
  EventFeed,
  Projection,
  SqlStore,
  StoreAdapter,
  StoreError,
  Subscription
} from "effect-maestro"
import { makeMigratedDatabase } from "./database.js"
import { macrotask } from "./nodes.js"
import { event, eventually, Ledger, newId, placeOf, start, write, written } from "./subscribers.js"
import { type Counts, makeTransactionPooler } from "./transactionPooler.js"

/** How nodes reach the database. */
interface Way {
  readonly url: string
  /** The connections of each node. */
  readonly connections: number
  /** Runs a statement on every connection to the server that the node can get. */
  readonly onEach: (statement: string) => Effect.Effect<void, SqlError, SqlClient.SqlClient>
  /** Ends every connection to the server. */
  readonly drop: Effect.Effect<void, SqlError, SqlClient.SqlClient>
  readonly counts: () => Counts | undefined
}

/** Three connections are too few for one that listens, so the node can hold all of them here. */
const directly = (url: string): Effect.Effect<Way> =>
  Effect.map(Effect.makeSemaphore(1), (oneAtATime) => ({
    url,
    connections: 3,
    onEach: (statement) =>
      Effect.flatMap(SqlClient.SqlClient, (sql) =>
        Effect.scoped(
          Effect.flatMap(Effect.all(Arr.replicate(sql.reserve, 3), { concurrency: 3 }), (connections) =>
            Effect.forEach(connections, (connection) => connection.executeUnprepared(statement, [], undefined), {
              concurrency: 3,
              discard: true
            })
          )
        )
      ).pipe(oneAtATime.withPermits(1)),
    drop: Effect.flatMap(
      SqlClient.SqlClient,
      (sql) => sql`select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and application_name = 'node'`
    ),
    counts: () => undefined
  }))

const behindPooler =
  (maxPreparedStatements: number) =>
  (url: string): Effect.Effect<Way, never, Scope.Scope> =>
    Effect.map(makeTransactionPooler(url, { maxPreparedStatements }), (pooler) => ({
      ...pooler,
      connections: 6,
      drop: pooler.dropServers
    }))

const ways: Readonly<Record<string, (url: string) => Effect.Effect<Way, never, Scope.Scope>>> = {
  "directly connected": directly,
  "behind a pooler that hands names through": behindPooler(0),
  "behind a pooler with max_prepared_statements": behindPooler(100),
  "behind a pooler with fewer prepared statements than there are": behindPooler(2)
}

// --- the aggregates ---

class Moved extends Schema.TaggedClass<Moved>()("Moved", { amount: Schema.Number }) {}
class Move extends Schema.TaggedClass<Move>()("Move", { amount: Schema.Number }) {}
class Overdrawn extends Schema.TaggedError<Overdrawn>()("Overdrawn", {}) {}

interface Balance {
  readonly balance: number
}

const definition = {
  state: Schema.Struct({ balance: Schema.Number }),
  initialState: { balance: 0 },
  events: Moved,
  commands: Move,
  decide: {
    Move: ({ amount }: Move, { state }: Aggregate.Root<Balance>) =>
      state.balance + amount < 0 ? new Overdrawn() : Effect.succeed([new Moved({ amount })])
  },
  evolve: { Moved: (state: Balance, { amount }: Moved) => ({ balance: state.balance + amount }) }
}

const upsert = (sql: SqlClient.SqlClient, aggregateId: string, amount: number) =>
  sql`insert into balances as b (id, amount) values (${aggregateId}, ${amount})
    on conflict (id) do update set amount = b.amount + excluded.amount returning *`

/** A statement with a parameter whose type follows from a column of the table. */
const noting = Projection.makeSql({
  name: "notes",
  events: Moved,
  project: {
    Moved: (_event, { aggregateId, sequence }, sql) =>
      sql`insert into notes (id, sequence) values (${aggregateId}, ${sequence}) returning *`
  }
})

const Plain = Aggregate.make("Plain", definition)
const BySql = Aggregate.make("BySql", {
  ...definition,
  projections: [
    Projection.makeSql({
      name: "balances",
      events: Moved,
      project: { Moved: ({ amount }, { aggregateId }, sql) => upsert(sql, aggregateId, amount) }
    })
  ]
})
const ByEffect = Aggregate.make("ByEffect", {
  ...definition,
  projections: [
    Projection.make({
      name: "balances",
      events: Moved,
      project: {
        Moved: ({ amount }, { aggregateId }) =>
          Effect.flatMap(SqlClient.SqlClient, (sql) => upsert(sql, aggregateId, amount))
      }
    })
  ]
})

type Name = "Plain" | "BySql" | "ByEffect"

interface Commands {
  readonly move: (id: string, amount: number) => Effect.Effect<unknown, Failure | Overdrawn, Services>
  /** Loads with nothing cached. */
  readonly load: (id: string) => Effect.Effect<Balance, Failure, Services>
}

type Failure = Aggregate.Failure | SqlError
type Services =
  | Aggregate.Instance<"Plain">
  | Aggregate.Instance<"BySql">
  | Aggregate.Instance<"ByEffect">
  | StoreAdapter.StoreAdapter
  | SqlClient.SqlClient

const aggregates: Readonly<Record<Name, Commands>> = {
  Plain: {
    move: (id: string, amount: number) => Plain.evaluate(id, new Move({ amount })),
    load: (id: string) => Effect.provide(Plain.fetch(id), Layer.fresh(Plain.layer))
  },
  BySql: {
    move: (id: string, amount: number) => BySql.evaluate(id, new Move({ amount })),
    load: (id: string) => Effect.provide(BySql.fetch(id), Layer.fresh(BySql.layer))
  },
  ByEffect: {
    move: (id: string, amount: number) => ByEffect.evaluate(id, new Move({ amount })),
    load: (id: string) => Effect.provide(ByEffect.fetch(id), Layer.fresh(ByEffect.layer))
  }
}
const names: ReadonlyArray<Name> = ["Plain", "BySql", "ByEffect"]

// --- the scene ---

const layerOf = ({ connections, url }: Way, options?: SqlStore.Options) =>
  Layer.mergeAll(Plain.layer, BySql.layer, ByEffect.layer).pipe(
    Layer.provideMerge(Layer.merge(SqlStore.layerWith({ pollInterval: "20 millis", ...options }), Ledger.layerSql)),
    Layer.provideMerge(
      PgClient.layer({ url: Redacted.make(url), maxConnections: connections, applicationName: "node" })
    )
  )

type Node = Context.Context<Layer.Layer.Success<ReturnType<typeof layerOf>>>

interface Scene {
  readonly way: Way
  /** Connected to the server itself. */
  readonly admin: SqlClient.SqlClient
  readonly nodes: readonly [Node, Node]
}

const aScene = (
  connect: (typeof ways)[string],
  options?: SqlStore.Options
): Effect.Effect<Scene, SqlError | StoreError.StoreError | ConfigError.ConfigError, Scope.Scope> =>
  Effect.gen(function* () {
    const url = yield* makeMigratedDatabase
    const way = yield* connect(url)
    const client = yield* Layer.build(PgClient.layer({ url: Redacted.make(url), maxConnections: 2 }))
    const admin = yield* Effect.provide(SqlClient.SqlClient, client)
    yield* admin`create table balances (id text primary key, amount int not null)`
    yield* admin`create table notes (id text, sequence int, primary key (id, sequence))`
    const aNode = Effect.suspend(() => Layer.build(Layer.fresh(layerOf(way, options))))
    return { way, admin, nodes: [yield* aNode, yield* aNode] as const }
  })

/**
 * Commands of all nodes on the same new aggregates of each kind. Returns how many were accepted, and checks what they did. A client runs
 * the disturbance after every tenth accepted command.
 */
const work = <E>({ admin, nodes }: Scene, disturb: Effect.Effect<unknown, E> = Effect.void) =>
  Effect.gen(function* () {
    const run = newId("run")
    const sums = new Map<string, number>()
    let accepted = 0
    const client = (node: Node, name: Name, id: string) =>
      Effect.forEach(Arr.range(1, 6), (n) => {
        const amount = n % 3 === 0 ? -7 : 5
        return aggregates[name].move(id, amount).pipe(
          Effect.tap(() => {
            accepted++
            sums.set(`${name}/${id}`, (sums.get(`${name}/${id}`) ?? 0) + amount)
            return accepted % 10 === 0 ? disturb : Effect.void
          }),
          Effect.catchTag("Overdrawn", () => Effect.void),
          Effect.provide(node)
        )
      })
    const ids = ["a", "b"].map((letter) => `${letter} of ${run}`)
    yield* Effect.forEach(
      nodes.flatMap((node) => names.flatMap((name) => ids.map((id) => client(node, name, id)))),
      (commands) => commands,
      { concurrency: "unbounded", discard: true }
    )
    const stored = yield* admin<{ id: string; amount: number; least: number; events: number; last: number }>`
      select aggregate_id as id, sum(amount)::int as amount, min(running)::int as least, count(*)::int as events,
        max(sequence) as last
      from (
        select aggregate_id, sequence, (body ->> 'amount')::int as amount,
          sum((body ->> 'amount')::int) over (partition by aggregate_id order by sequence) as running
        from maestro.event_log where aggregate_id like ${`%${run}`}
      ) events group by 1`
    expect(stored).toHaveLength(6)
    for (const { amount, events, id, last, least } of stored) {
      expect(amount).toBe(sums.get(id))
      expect(last).toBe(events)
      expect(least).toBeGreaterThanOrEqual(0)
    }
    const balances = yield* admin<{ id: string; amount: number }>`select id, amount from balances
      where id like ${`%${run}`}`
    expect(new Map(balances.map(({ amount, id }) => [id, amount]))).toEqual(
      new Map([...sums].filter(([id]) => !id.startsWith("Plain")))
    )
    for (const name of names) {
      for (const [index, id] of ids.entries()) {
        const { balance } = yield* Effect.provide(aggregates[name].load(id), nodes[index % 2 === 0 ? 0 : 1])
        expect(balance).toBe(sums.get(`${name}/${id}`))
      }
    }
    return accepted
  })

const commitOn = <E, R>(
  node: Node,
  events: ReadonlyArray<Event.Event>,
  projections: ReadonlyArray<Projection.Projection<E, R>>
) =>
  Effect.provide(
    Effect.flatMap(StoreAdapter.StoreAdapter, (store) => store.commitAll(events, projections)),
    node
  )

const moved = (node: Node, aggregateId: string, ...sequences: ReadonlyArray<number>) =>
  Effect.provide(
    Effect.forEach(sequences, (sequence) =>
      Effect.map(event(aggregateId, sequence, { type: "Moved" }), (event) => ({ ...event, body: { amount: 1 } }))
    ),
    node
  )

// --- the cases ---

for (const [name, connect] of Object.entries(ways)) {
  const itOn = <E>(sentence: string, body: (scene: Scene) => Effect.Effect<void, E, Scope.Scope>) =>
    it.scopedLive(`${name}: ${sentence}`, () =>
      Effect.flatMap(aScene(connect), body).pipe(Logger.withMinimumLogLevel(LogLevel.Error))
    )

  itOn("commands of several nodes take effect once, and the feed and a subscription have each event once", (scene) =>
    Effect.gen(function* () {
      const { admin, nodes, way } = scene
      const ledger = Subscription.make("ledger", { handle: write("ledger") })
      yield* Effect.provide(start(ledger), nodes[0])
      const accepted = yield* work(scene)
      const feed = yield* EventFeed.stream({}).pipe(
        Stream.map(placeOf),
        Stream.take(accepted),
        Stream.runCollect,
        Effect.map(Chunk.toReadonlyArray),
        Effect.provide(nodes[1])
      )
      const [stored] = yield* admin<{ count: number }>`select count(*)::int as count from maestro.event_log`
      expect(stored?.count).toBe(accepted)
      expect(new Set(feed).size).toBe(accepted)
      const ofLedger = Effect.provide(written("ledger"), nodes[0])
      expect(yield* eventually(ofLedger, ({ length }) => length >= accepted)).toEqual(feed)
      const counts = way.counts()
      if (counts !== undefined) expect(counts.moves).toBeGreaterThan(counts.transactions / 4)
    })
  )

  itOn("a conflict, a gap and a duplicate are found on every connection, with projections and without", ({ nodes }) =>
    Effect.gen(function* () {
      const [node] = nodes
      for (const projections of [[], [noting], [Projection.toEffect(noting)]]) {
        // More often than there are connections.
        for (const _ of Arr.range(1, 4)) {
          const id = newId("a")
          const [first, other, next, gap] = [
            yield* moved(node, id, 1),
            yield* moved(node, id, 1, 2),
            yield* moved(node, id, 2, 3),
            yield* moved(node, id, 5)
          ]
          yield* commitOn(node, first, projections)
          yield* commitOn(node, first, projections)
          for (const refused of [other, gap]) {
            expect(yield* Effect.flip(commitOn(node, refused, projections))).toBeInstanceOf(StoreError.RetryCommand)
          }
          yield* commitOn(node, next, projections)
          yield* commitOn(node, next, projections)
          const store = yield* Effect.provide(StoreAdapter.StoreAdapter, node)
          expect(yield* store.getEvents(id, 1)).toEqual([...first, ...next])
        }
      }
    })
  )

  itOn("DISCARD ALL and DEALLOCATE ALL on every connection, amid the work, fail no command", (scene) =>
    Effect.gen(function* () {
      const onAll = (statement: string) =>
        Effect.forEach(scene.nodes, (node) => Effect.provide(scene.way.onEach(statement), node))
      for (const statement of ["discard all", "deallocate all"]) {
        yield* work(scene, onAll(statement))
        yield* onAll(statement)
      }
      yield* work(scene)
    })
  )

  itOn("after a failover all commands succeed, and those amid it take effect once", (scene) =>
    Effect.gen(function* () {
      const drop = Effect.provide(scene.way.drop, scene.nodes[0])
      yield* work(scene, Effect.ignore(drop))
      yield* work(scene)
    })
  )

  itOn("functions that are replaced, or made anew with another result type, are used immediately", (scene) =>
    Effect.gen(function* () {
      const { admin } = scene
      yield* work(scene)
      const functions = yield* admin<{ definition: string }>`select pg_get_functiondef(p.oid) as definition
        from pg_proc p where p.pronamespace = 'maestro'::regnamespace`
      for (const { definition } of functions) yield* admin.unsafe(definition)
      yield* work(scene)
      const returning = yield* admin<{ name: string; takes: string; columns: string }>`select proname as name,
          pg_get_function_arguments(p.oid) as takes, substring(pg_get_function_result(p.oid) from 7) as columns
        from pg_proc p where p.pronamespace = 'maestro'::regnamespace and pg_get_function_result(p.oid) like 'TABLE(%'`
      expect(returning.length).toBeGreaterThan(0)
      for (const { columns, name, takes } of returning) {
        const parameters = takes.split(", ").map((parameter) => parameter.split(" ")[0])
        yield* admin.withTransaction(
          Effect.zipRight(
            admin.unsafe(`alter function maestro.${name} rename to ${name}_before`),
            admin.unsafe(`create function maestro.${name}(${takes}) returns table (added int, ${columns} language sql
              as 'select 1, b.* from maestro.${name}_before(${parameters.join(", ")}) b'`)
          )
        )
      }
      yield* work(scene)
    })
  )

  itOn("a schema that was dropped and made anew is used immediately", (scene) =>
    Effect.gen(function* () {
      const { admin, nodes } = scene
      yield* work(scene)
      const old = newId("old")
      yield* Effect.provide(aggregates.Plain.move(old, 5), nodes[0])
      yield* admin`drop schema maestro cascade`
      // What is prepared in between refers to nothing.
      yield* Effect.flip(Effect.provide(aggregates.Plain.move(newId("a"), 5), nodes[0]))
      yield* Effect.flip(Effect.provide(aggregates.BySql.move(newId("a"), 5), nodes[0]))
      yield* Effect.provideService(SqlStore.migrate(), SqlClient.SqlClient, admin)
      yield* work(scene)
      yield* Effect.provide(aggregates.Plain.move(old, 5), nodes[0])
      expect(yield* Effect.provide(aggregates.Plain.load(old), nodes[0])).toEqual({ balance: 5 })
    })
  )

  itOn("a projection's table whose column gets another type is written immediately", ({ admin, nodes }) =>
    Effect.gen(function* () {
      const commits = (node: Node) =>
        Effect.forEach(Arr.range(1, 8), () =>
          Effect.flatMap(moved(node, newId("a"), 1, 2), (events) => commitOn(node, events, [noting]))
        )
      for (const type of ["text", "bigint", "numeric"]) {
        yield* commits(nodes[0])
        yield* commits(nodes[1])
        yield* admin.unsafe(`alter table notes alter column sequence type ${type} using sequence::${type}`)
      }
      yield* commits(nodes[0])
      yield* admin`alter table notes add column added int`
      yield* commits(nodes[1])
      yield* admin`alter table notes rename to notes_before`
      const events = yield* moved(nodes[0], newId("a"), 1)
      expect(yield* Effect.flip(commitOn(nodes[0], events, [noting]))).toMatchObject({ code: "42P01" })
      expect(yield* Effect.flip(commitOn(nodes[0], events, [noting]))).toMatchObject({ code: "42P01" })
      yield* admin`create table notes (id text, sequence int, primary key (id, sequence))`
      yield* commitOn(nodes[0], events, [noting])
      expect(yield* admin`select * from notes`).toHaveLength(1)
    })
  )

  itOn("interrupted commands fail no others", (scene) =>
    Effect.gen(function* () {
      const interrupting = Effect.forEach(Arr.range(1, 6), (turns) =>
        Effect.forEach(names, (name) =>
          Effect.flatMap(Effect.fork(Effect.provide(aggregates[name].move(newId("a"), 5), scene.nodes[0])), (fiber) =>
            Effect.zipRight(Effect.repeatN(macrotask, turns), Fiber.interrupt(fiber))
          )
        )
      )
      yield* work(scene, interrupting)
      yield* work(scene)
    })
  )
}

for (const maxPreparedStatements of [0, 100]) {
  it.scopedLive(
    `what the store sends most has a name, statements of projections have none, and with the switch off nothing has (${maxPreparedStatements})`,
    () =>
      Effect.gen(function* () {
        const namedWith = (options: SqlStore.Options) =>
          Effect.gen(function* () {
            let named: ReadonlySet<string> = new Set()
            const scene = yield* aScene(
              (url) =>
                Effect.map(makeTransactionPooler(url, { maxPreparedStatements }), (pooler) => {
                  named = pooler.named()
                  return { ...pooler, connections: 6, drop: pooler.dropServers }
                }),
              options
            )
            const ledger = Subscription.make("ledger", { handle: write("ledger") })
            yield* Effect.provide(start(ledger), scene.nodes[0])
            const accepted = yield* work(scene)
            yield* eventually(Effect.provide(written("ledger"), scene.nodes[0]), ({ length }) => length >= accepted)
            return [...named]
          })
        expect(yield* namedWith({ preparedStatements: false })).toEqual([])
        const texts = yield* namedWith({})
        for (const part of [/insert into .*event_log/s, /commit_events/, /read_stream/]) {
          expect(texts).toContainEqual(expect.stringMatching(part))
        }
        // A session would keep the types of its parameters, and the table that its name meant.
        expect(texts.filter((text) => text.includes("balances"))).toEqual([])
      }).pipe(Logger.withMinimumLogLevel(LogLevel.Error))
  )
}
