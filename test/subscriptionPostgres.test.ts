/** Subscriptions of several nodes on one server: who works, who takes over, and what is left of what broke in between. */
import { type ChildProcess, spawn } from "node:child_process"
import { once } from "node:events"
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import { expect, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import { EventFeed, SqlStore, Subscription, SubscriptionStore, Timestamp } from "effect-maestro"
import { makeDatabase } from "./database.js"
import { type Mishap, makeProxy, type Proxy } from "./faults/proxy.js"
import { commitOf, eventually, Ledger, newId, placesOf, start, write, written } from "./subscribers.js"

/** A database, a way to it that can be broken, and a client that nobody breaks. */
class Database extends Context.Tag("test/Database")<Database, { readonly url: string; readonly proxy: Proxy }>() {
  static readonly layer = Layer.scoped(
    Database,
    Effect.gen(function* () {
      const url = yield* makeDatabase
      const { hostname, port } = new URL(url)
      return { url, proxy: yield* makeProxy({ host: hostname, port: Number(port) }) }
    })
  )
}

const storeAt = (url: string, applicationName: string, maxConnections = 6) =>
  Layer.merge(SqlStore.layer, Ledger.layerSql).pipe(
    Layer.provideMerge(PgClient.layer({ url: Redacted.make(url), maxConnections, applicationName }))
  )

const ground = Layer.unwrapEffect(Effect.map(Database, ({ url }) => storeAt(url, "ground"))).pipe(
  Layer.provideMerge(Database.layer)
)

/** Another node, on a pool of its own: directly, or by the way that can be broken. */
const aNode = (how: "direct" | "proxy" = "direct", maxConnections?: number) =>
  Effect.flatMap(Database, ({ proxy, url }) =>
    Layer.build(Layer.fresh(storeAt(how === "direct" ? url : proxy.url(url), "node", maxConnections)))
  )

const holderOf = (name: string) =>
  Effect.flatMap(SubscriptionStore.SubscriptionStore, (store) =>
    Effect.map(store.standing(name), ([only]) => Option.getOrUndefined(only?.holder ?? Option.none()))
  )

/** What a subscription waits for while the database can't be reached is a warning. */
const quietly = Logger.withMinimumLogLevel(LogLevel.Error)

layer(ground, { excludeTestServices: true, timeout: 60_000 })("nodes", (it) => {
  const writing = (by: string, type: string, settings: Subscription.Settings = {}) =>
    Subscription.make(by, { filter: { types: [type] }, handle: write(by), ...settings })

  const reached = (name: string, aggregateId: string, sequence: number) =>
    Subscription.waitFor(name, { aggregateId, sequence }, "30 seconds")

  it.scoped("one works, and the other takes over at once when it ends", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("hand-over")]
      const [one, two] = [yield* aNode(), yield* aNode()]
      const first = yield* start(writing(by, a, { holder: "one", lease: "1 hour" })).pipe(
        Effect.zipRight(Effect.never),
        Effect.scoped,
        Effect.provide(one),
        Effect.fork
      )
      yield* eventually(holderOf(by), (holder) => holder === "one")
      yield* Effect.provide(start(writing(by, a, { holder: "two", lease: "1 hour" })), two)
      yield* commitOf(a, 1, 5, a)
      yield* reached(by, a, 5)
      expect(yield* holderOf(by)).toBe("one")
      yield* Fiber.interrupt(first)
      yield* eventually(holderOf(by), (holder) => holder === "two")
      yield* commitOf(a, 6, 9, a)
      yield* reached(by, a, 9)
      expect(yield* written(by)).toEqual(placesOf(a, 1, 9))
    })
  )

  it.scoped("one that has nothing to do, or much, keeps its lease", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("keeps")]
      const sql = yield* SqlClient.SqlClient
      const state = Effect.map(
        sql<{ token: string; until: string }>`select token, leased_until::text as until from maestro.subscriptions
          where name = ${by}`,
        ([row]) => row
      )
      let begun = 0
      const keeps = Subscription.make(by, {
        filter: { types: [a] },
        lease: "900 millis",
        holder: "one",
        handle: (event) => {
          begun++
          return Effect.zipRight(Effect.repeatN(sql`select pg_sleep(0.1)`, 12), write(by)(event))
        }
      })
      yield* Effect.provide(start(keeps), yield* aNode())
      const had = yield* eventually(state, (row) => row?.until !== undefined)
      yield* Effect.provide(start(writing(by, a, { lease: "900 millis", holder: "two" })), yield* aNode())
      // Longer than the lease: it was renewed at least thrice.
      for (const _ of Arr.range(1, 4)) {
        const before = yield* state
        yield* eventually(state, (row) => row?.until !== before?.until)
      }
      yield* commitOf(a, 1, 1, a)
      yield* reached(by, a, 1)
      expect(begun).toBe(1)
      expect((yield* state)?.token).toBe(had?.token)
      expect(yield* holderOf(by)).toBe("one")
    })
  )

  it.scoped("nothing of a lease lives in a connection", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("stateless")]
      const sql = yield* SqlClient.SqlClient
      const node = yield* aNode()
      yield* Effect.provide(start(writing(by, a, { lease: "600 millis", batchSize: 1, holder: "node" })), node)
      const token = Effect.map(sql`select token from maestro.subscriptions where name = ${by}`, ([row]) => row?.token)
      yield* eventually(holderOf(by), (holder) => holder === "node")
      const before = yield* token
      for (const sequence of Arr.range(1, 6)) {
        yield* commitOf(a, sequence, sequence, a)
        expect(yield* sql`select 1 from pg_locks where locktype = 'advisory'`).toEqual([])
        // Every connection is another one from here on.
        yield* Effect.provide(
          Effect.flatMap(SqlClient.SqlClient, (own) => Effect.ignore(own`select 1`)),
          node
        )
        yield* terminateOthers
        yield* reached(by, a, sequence)
      }
      expect(yield* token).toBe(before)
      expect(yield* written(by)).toEqual(placesOf(a, 1, 6))
    }).pipe(quietly)
  )

  it.scoped("of two who believe to hold one lease, the older writes nothing", () =>
    Effect.gen(function* () {
      const by = newId("fenced")
      const sql = yield* SqlClient.SqlClient
      const ledger = yield* Ledger
      const store = yield* SubscriptionStore.SubscriptionStore
      const take = (holder: string) =>
        store.lease({
          key: { name: by, partition: 0, partitions: 1 },
          from: EventFeed.beginning,
          holder,
          duration: 60_000
        })
      const expire = sql`update maestro.subscriptions set leased_until = clock_timestamp() where name = ${by}`
      const at = (position: string) => position as EventFeed.Position
      const line = (sequence: number): EventFeed.FeedEvent => ({
        position: at("0-1"),
        timestamp: Timestamp.fromParts({ millis: 0, counter: 0, node: 0n }),
        aggregateId: "x",
        sequence,
        type: "T",
        body: {},
        metadata: {}
      })
      const older = yield* take("older")
      yield* older.advance(at("3-1"), ledger.write(by, line(1)))
      const [inside, leave] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      // Its lease runs out while it is in the middle.
      const middle = yield* ledger
        .write(by, line(2))
        .pipe(
          Effect.zipRight(Deferred.succeed(inside, undefined)),
          Effect.zipRight(Deferred.await(leave)),
          (effect) => older.advance(at("3-2"), effect),
          Effect.exit,
          Effect.fork
        )
      yield* Deferred.await(inside)
      yield* expire
      const newer = yield* take("newer")
      expect(newer.position).toBe("3-1")
      yield* Deferred.succeed(leave, undefined)
      const lost = new SubscriptionStore.LeaseLost({ subscription: by, partition: 0 })
      expect(yield* Fiber.join(middle)).toEqual(Exit.fail(lost))
      // And afterwards it can do nothing at all.
      expect(yield* Effect.flip(older.advance(at("3-3"), ledger.write(by, line(3))))).toEqual(lost)
      expect(yield* Effect.flip(older.checkpoint)).toEqual(lost)
      expect(yield* Effect.flip(older.failing(undefined))).toEqual(lost)
      yield* newer.advance(at("3-4"), ledger.write(by, line(4)))
      expect(yield* newer.checkpoint).toBe("3-4")
      expect(yield* written(by)).toEqual(["x/1", "x/4"])
    })
  )

  it.scoped("a holder learns that its lease is lost, and stands by again", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("learns")]
      const sql = yield* SqlClient.SqlClient
      let interrupted = 0
      const stuck = Subscription.make(by, {
        filter: { types: [a] },
        lease: "300 millis",
        delivery: "at-least-once",
        handle: () => Effect.onInterrupt(Effect.never, () => Effect.sync(() => void interrupted++))
      })
      yield* Effect.provide(start(stuck), yield* aNode())
      yield* commitOf(a, 1, 1, a)
      yield* eventually(stuck.status, ({ state }) => state === "running")
      yield* sql`update maestro.subscriptions set token = token + 1, holder = 'thief',
        leased_until = clock_timestamp() + interval '1 hour' where name = ${by}`
      yield* eventually(
        Effect.sync(() => interrupted),
        (count) => count === 1
      )
      expect(yield* holderOf(by)).toBe("thief")
    }).pipe(quietly)
  )

  it.scoped("a connection that is killed between the handler's write and the checkpoint", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("killed")]
      let kills = 0
      const killed = Subscription.make(by, {
        filter: { types: [a] },
        batchSize: 3,
        handle: (event) =>
          Effect.gen(function* () {
            const sql = yield* SqlClient.SqlClient
            yield* write(by)(event)
            if (event.sequence % 4 === 0 && kills < event.sequence / 4) {
              kills++
              yield* sql`select pg_terminate_backend(pg_backend_pid())`
            }
          })
      })
      yield* Effect.provide(start(killed), yield* aNode())
      yield* commitOf(a, 1, 12, a)
      yield* reached(by, a, 12)
      expect(kills).toBe(3)
      expect(yield* written(by)).toEqual(placesOf(a, 1, 12))
    }).pipe(quietly)
  )

  it.scoped("checkpoints whose commits are cut off before, during or after, are stored once", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("unknown")]
      const { proxy } = yield* Database
      const node = yield* aNode("proxy")
      const mishaps = (["before", "during", "after"] as const).map((at): Mishap => ({ _tag: "Cut", at }))
      let commits = 0
      const before = proxy.counts()
      yield* commitOf(a, 1, 30, a)
      proxy.onCommit(() => (commits++ % 2 === 0 ? mishaps[(commits >> 1) % 3] : undefined))
      yield* Effect.addFinalizer(() => Effect.sync(() => proxy.onCommit(() => undefined)))
      yield* Effect.provide(start(writing(by, a, { batchSize: 2 })), node)
      yield* reached(by, a, 30)
      expect(yield* written(by)).toEqual(placesOf(a, 1, 30))
      expect(proxy.counts().swallowed).toBeGreaterThan(before.swallowed)
      expect(proxy.counts().cuts - before.cuts).toBeGreaterThan(5)
    }).pipe(quietly)
  )

  it.scoped("while the database can't be reached it waits, and then goes on", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("unreachable")]
      const { proxy } = yield* Database
      const node = yield* aNode("proxy")
      const waits = writing(by, a, { lease: "500 millis" })
      yield* Effect.provide(start(waits), node)
      yield* commitOf(a, 1, 3, a)
      yield* reached(by, a, 3)
      yield* Effect.addFinalizer(() => Effect.sync(() => proxy.refuse(false)))
      proxy.refuse(true)
      proxy.cutAll()
      yield* commitOf(a, 4, 6, a)
      // Its lease has run out meanwhile.
      yield* eventually(holderOf(by), (holder) => holder === undefined)
      proxy.refuse(false)
      yield* reached(by, a, 6)
      expect(yield* written(by)).toEqual(placesOf(a, 1, 6))
    }).pipe(quietly)
  )

  it.scoped(
    "on a network that stands still another takes over, and the one cut off ends in time and writes nothing",
    () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("still")]
        const { proxy } = yield* Database
        const node = yield* aNode("proxy")
        const inside = yield* Deferred.make<void>()
        const still = Subscription.make(by, {
          filter: { types: [a] },
          lease: "500 millis",
          shutdown: "100 millis",
          holder: "still",
          handle: (event) =>
            Effect.gen(function* () {
              yield* write(by)(event)
              if (event.sequence === 3) {
                proxy.pause()
                yield* Deferred.succeed(inside, undefined)
              }
            })
        })
        yield* Effect.addFinalizer(() => Effect.sync(() => proxy.resume()))
        const running = yield* start(still).pipe(
          Effect.zipRight(Effect.never),
          Effect.scoped,
          Effect.provide(node),
          Effect.fork
        )
        yield* commitOf(a, 1, 4, a)
        yield* Deferred.await(inside)
        yield* start(writing(by, a, { lease: "500 millis", holder: "moves" }))
        yield* reached(by, a, 4)
        const [took] = yield* Effect.timed(Fiber.interrupt(running))
        expect(Duration.toMillis(took)).toBeLessThan(5000)
        proxy.resume()
        yield* commitOf(a, 5, 6, a)
        yield* reached(by, a, 6)
        expect(yield* holderOf(by)).toBe("moves")
        expect(yield* written(by)).toEqual(placesOf(a, 1, 6))
      }).pipe(quietly)
  )

  it.scoped(
    "at-least-once: what was handled before a crash and not stored is handled again, and nothing is skipped",
    () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("again")]
        const { proxy } = yield* Database
        const node = yield* aNode("proxy")
        const seen: Array<number> = []
        let cuts = 0
        const again = Subscription.make(by, {
          filter: { types: [a] },
          delivery: "at-least-once",
          batchSize: 4,
          handle: ({ sequence }) =>
            Effect.sync(() => {
              seen.push(sequence)
              if (sequence === 6 && cuts++ === 0) proxy.cutAll()
            })
        })
        yield* commitOf(a, 1, 10, a)
        yield* Effect.provide(start(again), node)
        yield* reached(by, a, 10)
        expect(seen).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 5, 6, 7, 8, 9, 10])
      }).pipe(quietly)
  )

  it.scoped("connections killed again and again, of two nodes: each event once, in order", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("many-kills")]
      const many = writing(by, a, { batchSize: 3, lease: "400 millis" })
      yield* Effect.provide(start(many), yield* aNode())
      yield* Effect.provide(start(many), yield* aNode())
      const killing = yield* Effect.fork(Effect.forever(Effect.zipRight(Effect.sleep("60 millis"), terminateOthers)))
      for (const batch of Arr.range(0, 19)) {
        yield* commitOf(a, batch * 3 + 1, batch * 3 + 3, a)
        yield* Effect.sleep("25 millis")
      }
      yield* Fiber.interrupt(killing)
      yield* reached(by, a, 60)
      expect(yield* written(by)).toEqual(placesOf(a, 1, 60))
    }).pipe(quietly)
  )

  it.scoped("ended at any moment and started anew: each event once, and no connection or transaction is left", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("any-moment")]
      const sql = yield* SqlClient.SqlClient
      const node = yield* aNode("direct", 4)
      const any = writing(by, a, { batchSize: 2, lease: "1 hour", shutdown: 0 })
      for (const round of Arr.range(0, 29)) {
        yield* commitOf(a, round * 3 + 1, round * 3 + 3, a)
        const running = yield* start(any).pipe(
          Effect.zipRight(Effect.never),
          Effect.scoped,
          Effect.provide(node),
          Effect.fork
        )
        yield* Effect.sleep(yield* Random.nextIntBetween(0, 25))
        yield* Fiber.interrupt(running)
      }
      // With a lease of an hour: whoever could not give it back would keep this one waiting.
      yield* Effect.provide(start(any), node)
      yield* reached(by, a, 90)
      expect(yield* written(by)).toEqual(placesOf(a, 1, 90))
      yield* eventually(
        sql<{ open: number }>`select count(*)::int as open from pg_stat_activity
          where datname = current_database() and state like 'idle in transaction%'`,
        ([row]) => row?.open === 0
      )
      yield* Effect.provide(
        Effect.flatMap(SqlClient.SqlClient, (own) => Effect.all(Arr.replicate(own`select 1`, 8), { concurrency: 4 })),
        node
      )
    }).pipe(quietly)
  )

  it.scoped("a process that is killed between its write and its checkpoint", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("sigkill")]
      const child = yield* startChild({ name: by, type: a, lease: 800, middleAt: 3, hold: 60_000 })
      yield* commitOf(a, 1, 5, a)
      yield* child.says("middle")
      expect(yield* holderOf(by)).toBe("child")
      yield* start(writing(by, a, { lease: "800 millis", holder: "parent" }))
      yield* kill(child.process)
      yield* reached(by, a, 5)
      expect(yield* holderOf(by)).toBe("parent")
      expect(yield* written(by)).toEqual(placesOf(a, 1, 5))
    })
  )

  for (const [when, middleAt] of [
    ["between two batches", 0],
    ["in the middle of its transaction, with locks that the next one needs", 3]
  ] as const) {
    it.scoped(`a process that is stopped ${when}, and goes on when another has taken over`, () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("sigstop")]
        const sql = yield* SqlClient.SqlClient
        yield* sql`create table if not exists totals (id text primary key, n int not null)`
        yield* sql`insert into totals values (${by}, 0)`
        const child = yield* startChild({ name: by, type: a, lease: 800, middleAt, hold: 300 })
        yield* commitOf(a, 1, 2, a)
        yield* reached(by, a, 2)
        if (middleAt > 0) {
          yield* commitOf(a, 3, 4, a)
          yield* child.says("middle")
          child.process.kill("SIGSTOP")
        } else {
          child.process.kill("SIGSTOP")
          yield* commitOf(a, 3, 4, a)
        }
        const parent = yield* start(
          Subscription.make(by, {
            filter: { types: [a] },
            lease: "800 millis",
            holder: "parent",
            handle: (event) => Effect.zipRight(write(by)(event), sql`update totals set n = n + 1 where id = ${by}`)
          })
        ).pipe(Effect.zipRight(Effect.never), Effect.scoped, Effect.fork)
        yield* reached(by, a, 4)
        expect(yield* holderOf(by)).toBe("parent")
        child.process.kill("SIGCONT")
        yield* commitOf(a, 5, 6, a)
        yield* reached(by, a, 6)
        expect(yield* holderOf(by)).toBe("parent")
        // It stands by again, and has its turn when that one ends.
        yield* Fiber.interrupt(parent)
        yield* commitOf(a, 7, 8, a)
        yield* reached(by, a, 8)
        expect(yield* holderOf(by)).toBe("child")
        expect(yield* written(by)).toEqual(placesOf(a, 1, 8))
        expect(yield* sql`select n from totals where id = ${by}`).toEqual([{ n: 8 }])
      })
    )
  }
})

// --- what the cases are made of ---

const terminateOthers = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and application_name = 'node' and pid <> pg_backend_pid()`
).pipe(Effect.ignore)

interface Order {
  readonly name: string
  readonly type: string
  readonly lease: number
  /** In the transaction of this event it says `middle`, and waits for so many milliseconds. */
  readonly middleAt: number
  readonly hold: number
}

/** A process that runs a subscription. It is killed with the scope. */
const startChild = (order: Order) =>
  Effect.gen(function* () {
    const { url } = yield* Database
    const child = yield* Effect.acquireRelease(
      Effect.sync(() =>
        spawn(
          process.execPath,
          ["--import", "tsx", "--input-type=module", "--eval", program, JSON.stringify({ ...order, url })],
          { stdio: ["ignore", "pipe", "inherit"], env: { ...process.env, NODE_OPTIONS: "" } }
        )
      ),
      kill
    )
    let text = ""
    child.stdout.on("data", (data) => {
      text += data
    })
    const says = (line: string) =>
      eventually(
        Effect.sync(() => text.split("\n")),
        (lines) => lines.includes(line)
      )
    yield* says("started")
    return { process: child, says }
  })

const kill = (child: ChildProcess): Effect.Effect<void> =>
  Effect.promise(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return
    const closed = once(child, "close")
    child.kill("SIGKILL")
    await closed
  })

const program = `
import { writeSync } from "node:fs"
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { SqlStore, Subscription } from "effect-maestro"
const { hold, lease, middleAt, name, type, url } = JSON.parse(process.argv[1])
const say = (line) => Effect.sync(() => writeSync(1, line + "\\n"))
let held = false
const subscription = Subscription.make(name, {
  filter: { types: [type] },
  lease,
  holder: "child",
  batchSize: 1,
  handle: ({ aggregateId, sequence }) =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* sql\`insert into ledger (by, place) values (\${name}, \${aggregateId + "/" + sequence})\`
      yield* sql\`update totals set n = n + 1 where id = \${name}\`.pipe(sql.withTransaction, Effect.ignore)
      if (sequence !== middleAt || held) return
      held = true
      yield* say("middle")
      // Not idle all the time, which the database would not allow.
      for (let waited = 0; waited < hold; waited += 100) yield* Effect.zipRight(Effect.sleep(100), sql\`select 1\`)
    })
})
say("started").pipe(
  Effect.zipRight(Layer.launch(subscription.layer)),
  Effect.provide(SqlStore.layer.pipe(Layer.provideMerge(PgClient.layer({ url: Redacted.make(url), maxConnections: 6 })))),
  Effect.runFork
)
`
