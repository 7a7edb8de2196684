/** The faults, and what becomes of the history under each of them. */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Random from "effect/Random"
import { connect, makeDatabase } from "./database.js"
import { Wallet } from "./domain.js"
import { type Attempt, type Place, type Row, type Verdict, verdictOf } from "./history.js"
import { forwarded, makeObserver } from "./observer.js"
import type { Mishap, Proxy } from "./proxy.js"
import type { Server } from "./server.js"
import { type Breaking, client, connections, isProjected, makeNode, type Node, World } from "./workload.js"

/** What a fault can lay its hands on. */
export interface Tools {
  readonly server: Server
  readonly proxy: Proxy
  readonly world: World
  readonly nodes: ReadonlyArray<Node>
  /** A way to the server around the proxy. */
  readonly admin: SqlClient.SqlClient
  readonly database: string
}

export interface Fault {
  readonly name: string
  /** How often it is done, at full length. */
  readonly rounds: number
  /** It breaks no connection and no server, so that no caller has a reason to fail. */
  readonly calm: boolean
  /** All commands are exchanges, whose projections deadlock. */
  readonly deadlocks?: boolean
  /** Does it once, and ends when the cause is gone. How many kills or cuts that were. */
  readonly once: (tools: Tools) => Effect.Effect<number, unknown>
}

export interface Report extends Verdict {
  readonly fault: string
  readonly rounds: number
  /** Servers killed, connections cut, and transactions that a deadlock ended. */
  readonly cuts: number
  readonly attempts: number
  readonly acknowledged: number
  /** Those whose outcome was left open, by the answer or by an interruption. */
  readonly open: number
  /** Connections that are lost to their pool, and transactions that stay open. */
  readonly leaked: number
  /** Milliseconds from the end of the cause to the next acknowledged command. */
  readonly backAfter: { readonly median: number; readonly longest: number }
}

const [nodeCount, clientsPerNode] = [3, 4]

/** Runs clients, does the fault so many times while they are at it, lets them come to an end, and holds the record against the log. */
export const underFault = (
  server: Server,
  proxy: Proxy,
  fault: Fault,
  rounds: number,
  breaking?: Breaking,
  lists = true
): Effect.Effect<Report, unknown> =>
  Effect.scoped(
    Effect.gen(function* () {
      const database = `faults_${(yield* Random.nextIntBetween(0, 2 ** 31)).toString(36)}`
      const url = yield* makeDatabase(server, database)
      const admin = yield* connect(url)

      const world = new World(fault.calm, fault.deadlocks, lists)
      const nodes = yield* Effect.forEach(Arr.range(1, nodeCount), (id) =>
        makeNode(`node-${id}`, id, proxy.url(url), breaking, world.felt)
      )
      world.nodes = nodes
      const observer = yield* makeObserver(admin, proxy.url(url), world.felt)
      const clients = yield* Effect.forEach(
        nodes.flatMap((node) => Arr.makeBy(clientsPerNode, () => node)),
        (node) => Effect.fork(client(world, node))
      )

      const tools: Tools = { server, proxy, world, nodes, admin, database }
      let cuts = 0
      const backAfter: Array<number> = []
      for (let round = 0; round < rounds; round++) {
        yield* Effect.sleep(yield* Random.nextIntBetween(10, 60))
        cuts += yield* fault.once(tools)
        const [back] = yield* Effect.timed(world.nextAcknowledgement)
        backAfter.push(Duration.toMillis(back))
      }

      world.stopped = true
      yield* Effect.forEach(clients, Fiber.join)
      proxy.onCommit(() => undefined)
      const seen = yield* observer.finish
      const leaked = (yield* openTransactions(admin, database)) + (yield* missingConnections(nodes))

      const verdict = yield* inspect(admin, world, nodes, seen)
      return {
        fault: fault.name,
        rounds,
        cuts,
        attempts: world.attempts.length,
        acknowledged: world.acknowledged,
        open: world.open,
        leaked,
        backAfter: { median: median(backAfter), longest: Math.max(...backAfter, 0) },
        ...verdict
      }
    })
    // A snapshot that could not be written is a warning, and here there are many.
  ).pipe(Logger.withMinimumLogLevel(LogLevel.Error))

// --- the faults ---

export const noFault: Fault = { name: "none", rounds: 40, calm: true, once: () => Effect.succeed(0) }

export const killServer: Fault = {
  name: "server killed and started again",
  rounds: 150,
  calm: false,
  once: ({ server }) => Effect.as(Effect.zipRight(server.kill, server.start), 1)
}

export const terminateConnections: Fault = {
  name: "connections terminated by the server",
  rounds: 150,
  calm: false,
  once: ({ admin, database }) =>
    Effect.map(
      admin`select pg_terminate_backend(pid) from pg_stat_activity
        where datname = ${database} and pid <> pg_backend_pid() order by random() limit 2`,
      (rows) => rows.length
    )
}

export const cutEverything: Fault = {
  name: "all connections cut together",
  rounds: 50,
  calm: false,
  once: ({ proxy }) => Effect.sync(() => proxy.cutAll())
}

/** The next commit that passes meets with a mishap. */
const mishap = (name: string, rounds: number, what: Mishap): Fault => ({
  name,
  rounds,
  calm: what._tag === "Delay",
  once: ({ proxy }) =>
    Effect.gen(function* () {
      const happened = yield* Deferred.make<void>()
      let met = false
      proxy.onCommit(() => {
        if (met) return undefined
        met = true
        Deferred.unsafeDone(happened, Effect.void)
        return what
      })
      yield* Deferred.await(happened)
      return what._tag === "Delay" ? 0 : 1
    })
})

export const mishaps: ReadonlyArray<Fault> = [
  mishap("cut before the commit reached the server", 200, { _tag: "Cut", at: "before" }),
  mishap("cut while the server commits", 200, { _tag: "Cut", at: "during" }),
  mishap("acknowledgement swallowed", 200, { _tag: "Cut", at: "after" }),
  mishap("stalled before the commit, then cut", 40, { _tag: "Stall", at: "before", millis: 150 }),
  mishap("stalled at the commit, then cut", 40, { _tag: "Stall", at: "after", millis: 150 }),
  mishap("commit delayed", 40, { _tag: "Delay", at: "before", millis: 150 }),
  mishap("acknowledgement delayed", 40, { _tag: "Delay", at: "after", millis: 150 })
]

export const exhaustPool: Fault = {
  name: "pool exhausted",
  rounds: 20,
  calm: true,
  once: ({ nodes }) =>
    Effect.gen(function* () {
      const node = nodes[0]
      if (node === undefined) return 0
      // More than there are, each held for longer than a command takes.
      yield* Effect.forEach(
        Arr.range(1, 2 * connections),
        () =>
          Effect.ignore(
            Effect.provide(
              Effect.flatMap(SqlClient.SqlClient, (sql) => sql`select pg_sleep(0.1)`),
              node.services
            )
          ),
        { concurrency: "unbounded", discard: true }
      )
      return 0
    })
}

export const jumpingClocks: Fault = {
  name: "clocks jump by minutes, both ways",
  rounds: 100,
  calm: true,
  once: ({ nodes }) =>
    Effect.gen(function* () {
      for (const node of nodes) node.skew = (yield* Random.nextIntBetween(-10, 11)) * 60_000
      return 0
    })
}

export const interruptions: Fault = {
  name: "commands interrupted at every step",
  rounds: 200,
  calm: true,
  once: ({ world }) =>
    Effect.gen(function* () {
      let steps = 0
      // Sometimes all the way, or nothing would ever be acknowledged.
      world.interruptAfter = () => (++steps % 4 === 0 ? Number.POSITIVE_INFINITY : steps % 150)
      yield* Effect.sleep("50 millis")
      return 0
    })
}

/** Waits until the server reports more deadlocks, which it does about once a second. Each has ended a transaction. */
export const deadlocks: Fault = {
  name: "projections that deadlock",
  rounds: 15,
  calm: true,
  deadlocks: true,
  once: ({ admin, database }) => {
    const count = Effect.map(
      admin<{ deadlocks: string }>`select deadlocks from pg_stat_database where datname = ${database}`,
      ([row]) => Number(row?.deadlocks)
    )
    return Effect.flatMap(count, (before) =>
      Effect.repeat(Effect.zipLeft(count, Effect.sleep("10 millis")), { until: (now) => now > before }).pipe(
        Effect.map((now) => now - before)
      )
    )
  }
}

export const faults: ReadonlyArray<Fault> = [
  noFault,
  killServer,
  terminateConnections,
  cutEverything,
  ...mishaps,
  exhaustPool,
  jumpingClocks,
  interruptions,
  deadlocks
]

// --- internal ---

const median = (values: ReadonlyArray<number>): number => [...values].sort((a, b) => a - b)[values.length >> 1] ?? 0

/** Waits until the server has done with what the clients left behind; what it has not after five seconds is counted. */
const openTransactions = (admin: SqlClient.SqlClient, database: string): Effect.Effect<number, unknown> =>
  admin<{ n: number }>`select count(*)::int as n from pg_stat_activity
    where datname = ${database} and pid <> pg_backend_pid() and state <> 'idle'`.pipe(
    Effect.map(([row]) => row?.n ?? 0),
    Effect.zipLeft(Effect.sleep("10 millis")),
    Effect.repeat({ until: (n) => n === 0, times: 300 })
  )

/** Runs as many concurrent transactions as a pool has connections: a connection that is lost is missing. */
const missingConnections = (nodes: ReadonlyArray<Node>): Effect.Effect<number, unknown> =>
  Effect.reduce(nodes, 0, (missing, node) =>
    Effect.gen(function* () {
      const sql = Context.get(node.services, SqlClient.SqlClient)
      const arrived = yield* Effect.makeLatch(false)
      let inside = 0
      yield* Effect.forEach(
        Arr.range(1, connections),
        () =>
          sql.withTransaction(
            Effect.gen(function* () {
              yield* sql`select 1`
              inside++
              if (inside === connections) yield* arrived.open
              yield* arrived.await
            })
          ),
        { concurrency: "unbounded" }
      ).pipe(Effect.disconnect, Effect.timeout("10 seconds"), Effect.ignore)
      return missing + connections - inside
    })
  )

/** Reads the log past the store, and holds the record against it. */
const inspect = (
  admin: SqlClient.SqlClient,
  world: World,
  nodes: ReadonlyArray<Node>,
  seen: ReadonlyArray<ReadonlyArray<Place>>
): Effect.Effect<Verdict, unknown> =>
  Effect.gen(function* () {
    const all = yield* admin<
      Row & { type: string }
    >`select substr(aggregate_id, strpos(aggregate_id, '/') + 1) as account, sequence, type,
      timestamp::text as timestamp, coalesce(metadata ->> 'attempt', 'none') as attempt,
      coalesce((body ->> 'amount')::int * case type when 'Withdrawn' then -1 else 1 end, 0) as amount
      from maestro.event_log`
    const log = all.filter(({ type }) => type !== "effect-maestro/CommandHandled")
    const [felt] = yield* admin<{ count: number }>`select count(*)::int as count from felt`
    const balances = yield* admin<{ account: string; balance: string }>`select account, balance from balances`
    const states = new Map<string, number>()
    for (const [index, account] of world.accounts.entries()) {
      const node = nodes[index % nodes.length]
      if (node === undefined) continue
      const { balance } = yield* Effect.provide(Wallet.fetch(account), node.services)
      states.set(account, balance)
    }
    const verdict = verdictOf({
      attempts: [
        ...world.attempts,
        ...log.filter(({ type }) => type === "Sold").map(({ account }) => paymentFor(account))
      ],
      log,
      places: all,
      projection: new Map(balances.map(({ account, balance }) => [account, Number(balance)])),
      isProjected,
      states,
      seen,
      noted: world.felt.tenants + (felt?.count ?? 0)
    })
    const [slots] = yield* admin<{ off: number }>`select count(*)::int as off from slots s
      where exchanges <> (select count(*) from maestro.event_log
        where type = 'Exchanged' and s.slot::text in (body ->> 'first', body ->> 'second'))`
    return { ...verdict, projectionsOff: verdict.projectionsOff + (slots?.off ?? 0) }
  })

/** What the observer's subscription owes for a sale: one event, exactly. */
const paymentFor = (sale: string): Attempt => ({
  id: forwarded(sale),
  accounts: [],
  events: 1,
  began: 0,
  ended: Number.POSITIVE_INFINITY,
  outcome: { _tag: "Acknowledged", answers: [] },
  felt: false
})
