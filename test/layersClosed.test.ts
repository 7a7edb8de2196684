/** Layers that are built and closed leave fibers, timers, sockets and heap as they were. */
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { SqlStore, StoreAdapter, Timestamp } from "effect-maestro"
import { layerPg, layerPglite } from "./database.js"
import { macrotask } from "./nodes.js"

const maxConnections = 6

const count = 500

const clients = {
  Postgres: Layer.orDie(layerPg({ maxConnections })),
  PGlite: Layer.orDie(layerPglite)
}

for (const [name, client] of Object.entries(clients)) {
  layer(client, { excludeTestServices: true, timeout: 180_000 })(`layers on one client of ${name}`, (it) => {
    it.effect(`${count} of them leave nothing when they are closed`, () =>
      Effect.gen(function* () {
        yield* SqlStore.migrate()
        // The first ones fill caches of the client and of the compiler.
        yield* buildAndClose(50)
        yield* openAllConnections
        const before = yield* inUse
        yield* buildAndClose(count)
        // Timers of the files that ran before may still be there, and new ones of theirs end.
        const after = yield* Effect.repeat(Effect.delay(inUse, "100 millis"), {
          until: ({ fibers, sockets, timers }) =>
            fibers <= before.fibers && timers <= before.timers && sockets <= before.sockets,
          times: 200
        })
        expect(after.fibers).toBeLessThanOrEqual(before.fibers)
        expect(after.timers).toBeLessThanOrEqual(before.timers)
        expect(after.sockets).toBeLessThanOrEqual(before.sockets)
        expect(after.heap - before.heap).toBeLessThan(1_000_000 + count * maxGrowth)
      })
    )
  })
}

// --- what the cases are made of ---

/** In bytes for each layer, beside a megabyte for the caches of the compiler. A layer that stays reachable takes 30 kB. */
const maxGrowth = 3000

/** Every fifth layer commits an event, so that its fibers and signals have been in use. */
const buildAndClose = (count: number) =>
  Effect.forEach(
    Arr.range(1, count),
    (index) =>
      Effect.gen(function* () {
        if (index % 5 > 0) return
        const { now } = yield* Timestamp.HybridClock
        const store = yield* StoreAdapter.StoreAdapter
        const event = { aggregateId: crypto.randomUUID(), sequence: 1, type: "T", body: {}, metadata: {} }
        yield* store.commitEvents([{ ...event, timestamp: yield* now }])
      }).pipe(Effect.provide(Layer.fresh(SqlStore.layerWith({ migrate: false })))),
    { concurrency: 5, discard: true }
  )

/** The pool opens its connections as they are needed, and each idle one has a timer. */
const openAllConnections = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  yield* Effect.replicateEffect(sql`select pg_sleep(0.1)`, maxConnections, { concurrency: "unbounded" })
})

const inUse = Effect.gen(function* () {
  // The pool has given back all connections, and finalizers have run.
  yield* Effect.flatMap(SqlClient.SqlClient, (sql) => sql`select 1`)
  yield* Effect.repeatN(macrotask, 20)
  collectGarbage()
  yield* Effect.repeatN(macrotask, 20)
  collectGarbage()
  const resources = process.getActiveResourcesInfo()
  return {
    fibers: [...(yield* Fiber.roots)].length,
    timers: resources.filter((type) => type === "Timeout").length,
    sockets: resources.filter((type) => type === "TCPSocketWrap").length,
    heap: process.memoryUsage().heapUsed
  }
})

setFlagsFromString("--expose-gc")
const collectGarbage: () => void = runInNewContext("gc")
