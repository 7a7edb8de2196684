/** Subscriptions of several processes: another takes over from a process that is killed or suspended. */
import { type ChildProcess, spawn } from "node:child_process"
import { once } from "node:events"
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import { Subscription, SubscriptionStore } from "effect-maestro"
import { useProgram } from "./program.js"
import { commitOf, eventually, newId, placesOf, start, write, written } from "./subscribers.js"
import { Database, holderOf, reached, storeLayer, writing } from "./subscriptionNodes.js"

layer(storeLayer, { excludeTestServices: true, timeout: 60_000 })("processes", (it) => {
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

  it.scoped("processes that are killed by an event again and again: the event is parked", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("kills")]
      yield* commitOf(a, 1, 3, a)
      // The first attempt is not counted, because the process before it released the lease.
      for (const _ of ["not counted", "counted"]) {
        const child = yield* startChild({ name: by, type: a, lease: 300, middleAt: 2, hold: 60_000 })
        yield* child.says("middle")
        yield* kill(child.process)
      }
      const handled: Array<number> = []
      yield* start(
        Subscription.make(by, {
          filter: { types: [a] },
          retry: Schedule.stop,
          onFailure: "park",
          handle: ({ sequence }) => Effect.sync(() => void handled.push(sequence))
        })
      )
      yield* reached(by, a, 3)
      expect(handled).toEqual([3])
      expect(yield* Subscription.parked(by)).toMatchObject([{ sequence: 2, attempts: 1 }])
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
        // It waits for the lease again, and gets it when the other one ends.
        yield* Fiber.interrupt(parent)
        yield* commitOf(a, 7, 8, a)
        yield* reached(by, a, 8)
        expect(yield* holderOf(by)).toBe("child")
        expect(yield* written(by)).toEqual(placesOf(a, 1, 8))
        expect(yield* sql`select n from totals where id = ${by}`).toEqual([{ n: 8 }])
      })
    )
  }

  it.scoped(
    "a process that is stopped counts no longer after its lease, and gets its share again when it goes on",
    () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("share")]
        const holds = Effect.map(Subscription.nodes(by), (nodes) =>
          Object.fromEntries(nodes.map(({ holder, holds }) => [holder, holds.length]))
        )
        const child = yield* startChild({ name: by, type: a, lease: 800, middleAt: 0, hold: 0, partitions: 5 })
        yield* eventually(holds, ({ child = 0 }) => child === 5)
        yield* start(writing(by, a, { lease: "800 millis", holder: "parent", partitions: 5 }))
        const isEven = ({ child = 0, parent = 0 }) => child + parent === 5 && Math.abs(child - parent) === 1
        yield* eventually(holds, isEven)
        child.process.kill("SIGSTOP")
        const ids = Arr.makeBy(10, () => newId("any"))
        for (const id of ids) yield* commitOf(id, 1, 2, a)
        for (const id of ids) yield* reached(by, id, 2)
        expect(yield* eventually(holds, ({ parent }) => parent === 5)).toEqual({ parent: 5 })
        child.process.kill("SIGCONT")
        for (const id of ids) yield* commitOf(id, 3, 4, a)
        yield* eventually(holds, isEven)
        for (const id of ids) yield* commitOf(id, 5, 6, a)
        for (const id of ids) yield* reached(by, id, 6)
        yield* kill(child.process)
        yield* eventually(holds, ({ parent }) => parent === 5)
        for (const id of ids) yield* commitOf(id, 7, 8, a)
        for (const id of ids) yield* reached(by, id, 8)
        const all = yield* written(by)
        for (const id of ids) expect(all.filter((place) => place.startsWith(id))).toEqual(placesOf(id, 1, 8))
      })
  )

  it.scoped("a process that is stopped in its transaction while the number of partitions changes can't write", () =>
    Effect.gen(function* () {
      const [a, by] = [newId("a"), newId("renumbered")]
      const ids = Arr.makeBy(10, () => newId("any"))
      const child = yield* startChild({ name: by, type: a, lease: 800, middleAt: 2, hold: 300, partitions: 2 })
      for (const id of ids) yield* commitOf(id, 1, 3, a)
      yield* child.says("middle")
      child.process.kill("SIGSTOP")
      yield* start(writing(by, a, { lease: "800 millis", holder: "parent", partitions: 5 }))
      const numberOf = Effect.flatMap(SubscriptionStore.SubscriptionStore, (store) =>
        Effect.map(store.partitions(by), ({ length }) => length)
      )
      yield* eventually(numberOf, (number) => number === 5)
      child.process.kill("SIGCONT")
      for (const id of ids) yield* commitOf(id, 4, 6, a)
      // It runs the number that the store has.
      yield* eventually(
        Subscription.nodes(by),
        (nodes) =>
          nodes.every(({ holder, holds }) => holds.length === (holder === "child" ? 2 : 3)) ||
          nodes.every(({ holder, holds }) => holds.length === (holder === "child" ? 3 : 2))
      )
      for (const id of ids) yield* reached(by, id, 6)
      expect(yield* numberOf).toBe(5)
      const all = yield* written(by)
      for (const id of ids) expect(all.filter((place) => place.startsWith(id))).toEqual(placesOf(id, 1, 6))
    })
  )
})

// --- internal ---

interface Order {
  readonly name: string
  readonly type: string
  readonly lease: number
  /** In the transaction of this event the process prints `middle`, and waits for so many milliseconds. */
  readonly middleAt: number
  readonly hold: number
  readonly partitions?: number
}

/** A process that runs a subscription. It is killed with the scope. */
const startChild = (order: Order) =>
  Effect.gen(function* () {
    const { url } = yield* Database
    const child = yield* Effect.acquireRelease(
      Effect.sync(() =>
        spawn(process.execPath, [program(), JSON.stringify({ ...order, url })], {
          stdio: ["ignore", "pipe", "inherit"],
          env: { ...process.env, NODE_OPTIONS: "" }
        })
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

const program = useProgram(`
import { writeSync } from "node:fs"
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { SqlStore, Subscription } from "effect-maestro"
const { hold, lease, middleAt, name, partitions, type, url } = JSON.parse(process.argv[2])
const say = (line) => Effect.sync(() => writeSync(1, line + "\\n"))
let held = false
const subscription = Subscription.make(name, {
  filter: { types: [type] },
  lease,
  holder: "child",
  partitions,
  batchSize: 1,
  handle: ({ aggregateId, sequence }) =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* sql\`insert into ledger (by, place) values (\${name}, \${aggregateId + "/" + sequence})\`
      yield* sql\`update totals set n = n + 1 where id = \${name}\`.pipe(sql.withTransaction, Effect.ignore)
      if (sequence !== middleAt || held) return
      held = true
      yield* say("middle")
      // With statements in between, because the database ends an idle transaction.
      for (let waited = 0; waited < hold; waited += 100) yield* Effect.zipRight(Effect.sleep(100), sql\`select 1\`)
    })
})
say("started").pipe(
  Effect.zipRight(Layer.launch(subscription.layer)),
  Effect.provide(SqlStore.layer.pipe(Layer.provideMerge(PgClient.layer({ url: Redacted.make(url), maxConnections: 6 })))),
  Effect.runFork
)
`)
