/**
 * A database that was restored from the dump of a busier server: its events have ids of transactions that have not
 * begun there.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import { PgClient } from "@effect/sql-pg"
import { expect, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import { EventFeed, Rebuild, SqlStore, Subscription } from "effect-maestro"
import { makeDatabase } from "./database.js"
import { caughtUp, commitOf, Ledger, newId, placeOf, placesOf, start, write, written } from "./subscribers.js"

/** The URL of the database that each case has for its own. */
class Url extends Context.Tag("test/Url")<Url, string>() {}

const pgAt = (url: string) => PgClient.layer({ url: Redacted.make(url), maxConnections: 6 })

/** A node without migration, or with it. */
const aNode = (options: SqlStore.Options = { migrate: false }) =>
  Effect.flatMap(Url, (url) =>
    Layer.build(
      Layer.fresh(Layer.merge(SqlStore.layerWith(options), Ledger.layerSql).pipe(Layer.provideMerge(pgAt(url))))
    )
  )

/**
 * Changes the last events, and the checkpoints at them, as a restored dump of a busier server has them: with ids of
 * future transactions.
 */
const restore = (last = 1_000_000) =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const [row] = yield* sql<{ from: string }>`select feed_key::text as from from (
      select feed_key from maestro.event_log order by feed_key desc, position desc limit ${last}
    ) l order by feed_key limit 1`
    for (const table of ["event_log", "subscriptions", "parked_events"]) {
      yield* sql`update ${sql(`maestro.${table}`)}
        set feed_key = (feed_key::text::bigint + 1000000)::text::xid8
        where feed_key >= ${row?.from ?? "0"}::xid8`
    }
  })

const inDatabase = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.provideServiceEffect(effect, Url, makeDatabase)

const all = Effect.map(
  Effect.map(Stream.runCollect(EventFeed.streamStored()), (chunk) => [...chunk]),
  Arr.map(placeOf)
)

layer(Layer.empty, { excludeTestServices: true, timeout: 60_000 })("restored from a dump", (it) => {
  /** Events of two aggregates, a subscription in the middle of them and one at their end, and a parked event. */
  const past = Effect.gen(function* () {
    const [a, b] = [newId("a"), newId("b")]
    const end = Subscription.make("end", {
      handle: (event) => (event.sequence === 2 ? Effect.fail("two") : write("end")(event)),
      retry: Schedule.stop,
      onFailure: "park"
    })
    const middle = Subscription.make("middle", { handle: write("middle") })
    yield* commitOf(a, 1, 3, "T")
    yield* commitOf(b, 1, 1, "T")
    yield* Effect.scoped(Effect.zipRight(start(middle), caughtUp(middle)))
    yield* commitOf(a, 4, 6, "T")
    yield* Effect.scoped(Effect.zipRight(start(end), caughtUp(end)))
    return { a, b, end, middle, order: [...placesOf(a, 1, 3), `${b}/1`, ...placesOf(a, 4, 6)] }
  })

  it.scoped("a subscription that has handled no event yet begins at the beginning after the repair", () =>
    inDatabase(
      Effect.gen(function* () {
        const a = newId("a")
        let fails = true
        const stopped = Subscription.make("stopped", {
          handle: (event) => (fails ? Effect.fail("no") : write("stopped")(event)),
          retry: Schedule.stop
        })
        yield* Effect.gen(function* () {
          yield* commitOf(a, 1, 3, "T")
          yield* Effect.flip(stopped.run)
          yield* restore()
        }).pipe(Effect.provide(yield* aNode({})))
        yield* Effect.gen(function* () {
          fails = false
          yield* Subscription.resume("stopped")
          yield* start(stopped)
          yield* caughtUp(stopped)
          expect(yield* written("stopped")).toEqual(placesOf(a, 1, 3))
        }).pipe(Effect.provide(yield* aNode({})))
      })
    )
  )

  it.scoped(
    "the feed refuses, and shows all events in order after the repair; subscriptions go on from their checkpoints",
    () =>
      inDatabase(
        Effect.gen(function* () {
          const before = yield* aNode({})
          const { a, end, middle, order } = yield* Effect.provide(past, before)
          yield* Effect.provide(restore(), before)

          const node = yield* aNode()
          const told = {
            _tag: "StoreError",
            reason: "Misconfigured",
            message: expect.stringContaining("repairAfterRestore")
          }
          expect(yield* Effect.flip(Effect.provide(EventFeed.head, node))).toMatchObject(told)
          expect(yield* Effect.flip(Effect.provide(Stream.runDrain(EventFeed.stream()), node))).toMatchObject(told)
          expect(yield* Effect.flip(Effect.provide(end.run, node))).toMatchObject(told)
          const refused: Readonly<Record<string, Effect.Effect<unknown, unknown, EventFeed.EventFeed>>> = {
            read: EventFeed.read(),
            count: Effect.flatMap(EventFeed.EventFeed, (feed) => feed.count()),
            streamStored: Stream.runDrain(EventFeed.streamStored()),
            heldBack: EventFeed.heldBack(),
            positionOf: Effect.flatMap(EventFeed.EventFeed, (feed) => feed.positionOf({ aggregateId: a, sequence: 1 }))
          }
          for (const [name, reading] of Object.entries(refused)) {
            expect({ name, error: yield* Effect.flip(Effect.provide(reading, node)) }).toMatchObject({
              name,
              error: told
            })
          }
          // The shadow tables would be empty, and would take the place of tables that are not.
          const rebuilding = Rebuild.run({ name: "on the restored log", projections: [], tables: ["ledger"] })
          expect(yield* Effect.flip(Effect.provide(rebuilding, node))).toMatchObject(told)

          expect(yield* Effect.provide(SqlStore.repairAfterRestore(), node)).toBe(true)
          expect(yield* Effect.provide(SqlStore.repairAfterRestore(), node)).toBe(false)
          yield* Effect.gen(function* () {
            expect(yield* all).toEqual(order)
            yield* commitOf(a, 7, 8, "T")
            expect(yield* all).toEqual([...order, ...placesOf(a, 7, 8)])
            yield* start(end)
            yield* start(middle)
            yield* caughtUp(end)
            yield* caughtUp(middle)
            expect(yield* written("middle")).toEqual([...order, ...placesOf(a, 7, 8)])
            expect(yield* written("end")).toEqual(
              [...order, ...placesOf(a, 7, 8)].filter((place) => place !== `${a}/2`)
            )
            expect((yield* Subscription.parked("end")).map(placeOf)).toEqual([`${a}/2`])
          }).pipe(Effect.provide(node))
        })
      )
  )

  it.scoped("the order is kept where only the last events have future ids", () =>
    inDatabase(
      Effect.gen(function* () {
        const before = yield* aNode({})
        const { end, order } = yield* Effect.provide(past, before)
        yield* Effect.provide(restore(2), before)
        const node = yield* aNode({})
        expect(yield* Effect.provide(all, node)).toEqual(order)
        yield* Effect.provide(Effect.zipRight(start(end), caughtUp(end)), node)
        expect(yield* Effect.provide(written("end"), node)).toHaveLength(order.length - 1)
      })
    )
  )

  it.scoped("events committed before the repair come after the restored ones, and no reader skips them", () =>
    inDatabase(
      Effect.gen(function* () {
        const before = yield* aNode({})
        const { a, b, end, middle, order } = yield* Effect.provide(past, before)
        yield* Effect.provide(restore(), before)
        const node = yield* aNode()
        // Commits succeed without the feed.
        yield* Effect.provide(commitOf(b, 2, 3, "T"), node)
        yield* Effect.provide(commitOf(a, 7, 7, "T"), node)
        yield* Effect.provide(SqlStore.repairAfterRestore(), node)
        const expected = [...order, ...placesOf(b, 2, 3), `${a}/7`]
        yield* Effect.gen(function* () {
          expect(yield* all).toEqual(expected)
          for (const one of [end, middle]) yield* Effect.zipRight(start(one), caughtUp(one))
          expect(yield* written("middle")).toEqual(expected)
        }).pipe(Effect.provide(node))
      })
    )
  )

  it.scoped("nodes with migration repair the log themselves, also when they start concurrently", () =>
    inDatabase(
      Effect.gen(function* () {
        const before = yield* aNode({})
        const { a, order } = yield* Effect.provide(past, before)
        yield* Effect.provide(restore(), before)
        const nodes = yield* Effect.all(Arr.replicate(aNode({}), 3), { concurrency: "unbounded" })
        for (const node of nodes) expect(yield* Effect.provide(all, node)).toEqual(order)
        const [node = before] = nodes
        yield* Effect.provide(commitOf(a, 7, 7, "T"), node)
        for (const node of nodes) expect(yield* Effect.provide(all, node)).toEqual([...order, `${a}/7`])
        expect(yield* Effect.provide(SqlStore.repairAfterRestore(), node)).toBe(false)
      })
    )
  )

  it.scoped("concurrent repairs repair the log once", () =>
    inDatabase(
      Effect.gen(function* () {
        const before = yield* aNode({})
        const { order } = yield* Effect.provide(past, before)
        yield* Effect.provide(restore(), before)
        const nodes = yield* Effect.all(Arr.replicate(aNode(), 3))
        const answers = yield* Effect.all(
          nodes.map((node) => Effect.provide(SqlStore.repairAfterRestore(), node)),
          { concurrency: "unbounded" }
        )
        expect(answers.filter((repaired) => repaired)).toHaveLength(1)
        expect(yield* Effect.provide(all, before)).toEqual(order)
      })
    )
  )
})
