/** What the events of a command follow from, in the store in SQL: on each way of a commit, and in rebuilds. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { Aggregate, EventFeed, Projection, Rebuild, SqlStore } from "effect-maestro"
import * as Chain from "./chain.js"
import { Ask, Branch, cause, causes, Do, eventsOf, firstOf, followerOf, Leaf, projectingLeaf } from "./chain.js"
import { layerPg } from "./database.js"

const once = new Do({ times: 1 })

layer(Chain.layer.pipe(Layer.provideMerge(SqlStore.layer), Layer.provideMerge(layerPg())), {
  excludeTestServices: true,
  timeout: 60_000
})("on Postgres", (it) => {
  it.scoped("causes are stored by commits of every kind, and read by the feed and by history", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const request = { causationId: undefined, correlationId: "request" }
      // Alone, more events than a plain insert has, in a transaction, with others, and with projections.
      const ran: Array<string> = []
      const Projected = projectingLeaf(ran)
      yield* Effect.gen(function* () {
        yield* Leaf.evaluate("alone", once)
        yield* Leaf.evaluate("many", new Do({ times: 20 }))
        yield* sql.withTransaction(
          Effect.zipRight(Leaf.evaluate("inside", once), Branch.evaluate("inside", new Ask({ ids: ["nested"] })))
        )
        yield* Effect.forEach(Arr.range(1, 20), (n) => Leaf.evaluate(`together ${n}`, once), {
          concurrency: "unbounded"
        })
        yield* Projected.evaluate("p", once)
      }).pipe(Aggregate.withCorrelationId("request"), Effect.provide(Projected.layer))
      const { events } = yield* EventFeed.read({ filter: { correlationId: "request" } })
      const projected = events.find(({ kind }) => kind === "ProjectedLeaf")
      const followers = events.filter(({ id }) => id === "p-1")
      expect(events).toHaveLength(1 + 20 + 1 + 3 + 20 + 2)
      expect(causes(followers)).toEqual([{ causationId: projected?.timestamp, correlationId: "request" }])
      expect(causes(events.filter(({ id }) => id !== "p-1"))).toEqual(Arr.makeBy(46, () => request))
      const history = yield* Stream.runCollect(Leaf.history("many"))
      expect([...history].map(cause)).toEqual(Arr.makeBy(20, () => request))
      expect([...(yield* Stream.runCollect(Leaf.history("p-1")))].map(cause)).toEqual(causes(followers))
    })
  )

  it.scoped("a transaction that is rolled back names no chain for the next command", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* Effect.ignore(sql.withTransaction(Effect.zipRight(Leaf.evaluate("back", once), Effect.fail("back"))))
      yield* Leaf.evaluate("back", once)
      const own = yield* firstOf("Leaf/back")
      expect(cause(own)).toEqual({ causationId: undefined, correlationId: own.timestamp })
    })
  )

  it.scoped("a command that a projection evaluates in a rebuild follows from the projected event", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* sql`create table seen (event text primary key)`
      yield* Effect.forEach(["r", "s"], (id) => Branch.evaluate(id, new Ask({ ids: [] })), { discard: true })
      const Seen = Projection.make({
        name: "seen",
        of: Branch,
        project: {
          Done: (_, { id, timestamp }) =>
            Effect.zipRight(
              sql`insert into seen values (${timestamp})`,
              Leaf.evaluate(`rebuilt ${id}`, once).pipe(Aggregate.withCommandId("once"))
            )
        }
      })
      yield* Rebuild.run({ name: "rebuild", projections: [Seen], tables: ["seen"] })
      for (const id of ["r", "s"]) {
        const event = yield* firstOf(`Branch/${id}`)
        expect(causes(yield* eventsOf(`Leaf/rebuilt ${id}`))).toEqual([followerOf(event)])
      }
    })
  )
})
