/** The feed shows all events in one order, and nothing in front of what it has shown; every store of this library. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Chunk from "effect/Chunk"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Stream from "effect/Stream"
import { type Event, EventFeed, MemoryStore, SqlStore, type StoreAdapter } from "effect-maestro"
import * as PgliteClient from "effect-maestro/PgliteClient"
import { inject } from "vitest"
import { layerPg, useServerOfOurOwn } from "./database.js"
import { commit, event, newId as id, placeOf, placesOf } from "./subscribers.js"

useServerOfOurOwn()

const places = (events: Iterable<EventFeed.FeedEvent>) => Arr.fromIterable(events).map(placeOf)

/** All that the feed shows after a position, read in pages of that size. */
const readAll = (
  options: EventFeed.ReadOptions = {}
): Effect.Effect<ReadonlyArray<EventFeed.FeedEvent>, unknown, EventFeed.EventFeed> =>
  Effect.flatMap(EventFeed.read(options), ({ events, more, position }) =>
    more ? Effect.map(readAll({ ...options, after: position }), (rest) => [...events, ...rest]) : Effect.succeed(events)
  )

type Ports = StoreAdapter.StoreAdapter | EventFeed.EventFeed

/** How long writers write and readers read, in milliseconds; on Postgres a minute in a long run. */
const lasting = (store: string): number => (inject("runs") > 100 && store.endsWith("Postgres") ? 60_000 : 500)

const suite = <E>(name: string, store: Layer.Layer<Ports, E>) =>
  layer(store, { excludeTestServices: true, timeout: 60_000 })(name, (it) => {
    it.effect("shows the events of each commit in their order, and commits in the order of the feed", () =>
      Effect.gen(function* () {
        const after = yield* EventFeed.head
        const [a, b] = [id("a"), id("b")]
        const first = yield* commit(event(b, 1), event(a, 1), event(b, 2))
        const second = yield* commit(event(a, 2))
        const shown = yield* readAll({ after })
        expect(shown.map(({ position: _, ...rest }) => rest)).toEqual([...first, ...second])
        const positions = shown.map(({ position }) => position)
        expect(Arr.sort(positions, EventFeed.order)).toEqual(positions)
        expect(new Set(positions).size).toBe(4)
        expect(yield* EventFeed.head).toBe(positions.at(-1))
      })
    )

    it.effect("can be read in pages of any size, each going on after the one before", () =>
      Effect.gen(function* () {
        const after = yield* EventFeed.head
        const a = id("a")
        yield* commit(...Arr.makeBy(10, (index) => event(a, index + 1)))
        for (const limit of [1, 3, 9, 10, 11]) {
          expect(places(yield* readAll({ after, limit }))).toEqual(Arr.makeBy(10, (index) => `${a}/${index + 1}`))
        }
        const page = yield* EventFeed.read({ after, limit: 10 })
        expect(page.more).toBe(false)
        expect(yield* EventFeed.read({ after: page.position })).toEqual({
          events: [],
          position: page.position,
          more: false
        })
      })
    )

    it.effect("shows what a filter lets through: by type, by the aggregate's name, by a share of the aggregates", () =>
      Effect.gen(function* () {
        const after = yield* EventFeed.head
        const ids = Arr.makeBy(40, (index) => id(`f${index}`))
        yield* Effect.forEach(ids, (one, index) =>
          commit(
            event(one, 1, { type: index % 2 === 0 ? "Even" : "Odd", aggregate: index % 3 === 0 ? "Third" : "Other" }),
            event(one, 2, { type: "Last" })
          )
        )
        const of = (filter: EventFeed.Filter) => Effect.map(readAll({ after, filter, limit: 7 }), places)
        const expected = (keep: (index: number) => boolean) =>
          ids.filter((_, index) => keep(index)).map((one) => `${one}/1`)
        expect(yield* of({ types: ["Even"] })).toEqual(expected((index) => index % 2 === 0))
        expect(yield* of({ types: ["Odd", "Nothing"], aggregates: ["Third"] })).toEqual(
          expected((index) => index % 2 === 1 && index % 3 === 0)
        )
        expect(yield* of({ types: [] })).toEqual([])
        expect(yield* of({})).toHaveLength(80)

        const slices = yield* Effect.forEach(Arr.range(0, 2), (index) => of({ slice: { index, of: 3 } }))
        expect(slices.flat().toSorted()).toEqual(ids.flatMap((one) => [`${one}/1`, `${one}/2`]).toSorted())
        // Both events of an aggregate are in one slice, and no slice has them all.
        for (const slice of slices) {
          expect(slice.filter((place) => place.endsWith("/1"))).toHaveLength(slice.length / 2)
          expect(slice.length).toBeLessThan(80)
        }
      })
    )

    it.effect("a page of a filter that lets nothing through moves on all the same", () =>
      Effect.gen(function* () {
        yield* commit(event(id("a"), 1))
        const head = yield* EventFeed.head
        const page = yield* EventFeed.read({ filter: { types: ["Nothing"] } })
        expect(page).toEqual({ events: [], position: head, more: false })
      })
    )

    it.effect("tells where an event is", () =>
      Effect.gen(function* () {
        const feed = yield* EventFeed.EventFeed
        const a = id("a")
        const after = yield* EventFeed.head
        yield* commit(event(a, 1), event(a, 2))
        const [, second] = yield* readAll({ after })
        expect(yield* feed.positionOf({ aggregateId: a, sequence: 2 })).toEqual(Option.some(second?.position))
        expect(yield* feed.positionOf({ aggregateId: a, sequence: 3 })).toEqual(Option.none())
      })
    )

    it.effect("streams what is there and then what comes, each once, without an end", () =>
      Effect.gen(function* () {
        const after = yield* EventFeed.head
        const a = id("a")
        yield* commit(event(a, 1), event(a, 2))
        const two = yield* Deferred.make<void>()
        const seen: Array<number> = []
        const reader = yield* EventFeed.stream({ after, limit: 1 }).pipe(
          Stream.tap(({ sequence }) => {
            seen.push(sequence)
            return sequence === 2 ? Deferred.succeed(two, undefined) : Effect.void
          }),
          Stream.take(30),
          Stream.runDrain,
          Effect.fork
        )
        yield* Deferred.await(two)
        // While it reads, so that the seam is somewhere among them.
        for (const sequence of Arr.range(3, 30)) yield* commit(event(a, sequence))
        yield* Fiber.join(reader)
        expect(seen).toEqual(Arr.range(1, 30))
      })
    )

    it.effect("a stream of what is stored ends", () =>
      Effect.gen(function* () {
        const after = yield* EventFeed.head
        const a = id("a")
        yield* commit(...Arr.makeBy(25, (index) => event(a, index + 1)))
        const found = yield* Stream.runCollect(EventFeed.streamStored({ after, limit: 10 }))
        expect(places(Chunk.toReadonlyArray(found))).toHaveLength(25)
      })
    )

    it.effect("who waits with a filter is not woken by what it does not let through, but by what it does", () =>
      Effect.gen(function* () {
        const feed = yield* EventFeed.EventFeed
        const a = id("a")
        const after = yield* EventFeed.head
        const next = yield* EventFeed.stream({ after, filter: { types: [a] } }).pipe(Stream.runHead, Effect.fork)
        yield* commit(event(a, 1), event(a, 2))
        yield* commit(event(a, 3, { type: a }))
        expect(Option.map(yield* Fiber.join(next), ({ sequence }) => sequence)).toEqual(Option.some(3))
        expect(yield* feed.awaitNews(after)).toBe(after)
      })
    )

    it.effect("refuses what is no position, no page and no filter, and says where", () =>
      Effect.gen(function* () {
        const wrong = yield* Effect.either(
          EventFeed.read({ after: "7" as EventFeed.Position, limit: 0, filter: { slice: { index: 3, of: 3 } } })
        )
        expect(Either.getLeft(wrong).pipe(Option.getOrThrow)).toMatchObject({ _tag: "ValidationError" })
        const paths = Either.match(wrong, {
          onLeft: (error) => ("issues" in error ? error.issues.map(({ path }) => path.join(".")) : []),
          onRight: () => []
        })
        expect(paths).toEqual(["after", "limit", "filter.slice"])
      })
    )

    it.effect(
      "eight writers and two readers at once: each reader sees all, each once, and nothing in front of what it saw",
      () =>
        Effect.gen(function* () {
          const after = yield* EventFeed.head
          const last = id("last")
          const reading = yield* Effect.forkAll(
            Arr.makeBy(2, () =>
              EventFeed.stream({ after, limit: 50 }).pipe(
                Stream.takeUntil(({ aggregateId }) => aggregateId === last),
                Stream.map(placeOf),
                Stream.runCollect
              )
            )
          )
          const end = Date.now() + lasting(name)
          const written = yield* Effect.forEach(
            Arr.makeBy(8, (index) => id(`w${index}`)),
            (writer) =>
              Effect.map(
                Effect.iterate(0, {
                  while: () => Date.now() < end,
                  body: (sequence) => Effect.as(commit(event(writer, sequence + 1)), sequence + 1)
                }),
                (count) => placesOf(writer, 1, count)
              ),
            { concurrency: "unbounded" }
          )
          yield* commit(event(last, 1))
          const expected = places(yield* readAll({ after, limit: 10_000 }))
          expect(expected.toSorted()).toEqual([...written.flat(), `${last}/1`].toSorted())
          for (const seen of yield* Fiber.join(reading)) expect([...seen]).toEqual(expected)
        }),
      inject("timeout")
    )
  })

suite("MemoryStore", MemoryStore.layer)
suite("SqlStore on PGlite", SqlStore.layer.pipe(Layer.provide(PgliteClient.layerMemory)))
suite("SqlStore on Postgres", SqlStore.layer.pipe(Layer.provide(layerPg())))

layer(SqlStore.layer.pipe(Layer.provideMerge(layerPg())), { excludeTestServices: true, timeout: 60_000 })(
  "with transactions that overlap",
  (it) => {
    /** Commits in a transaction that stays open until it is told how to end. */
    const open = (...events: ReadonlyArray<Effect.Effect<Event.Event>>) =>
      Effect.gen(function* () {
        const [written, end] = [yield* Deferred.make<void>(), yield* Deferred.make<void, "undo">()]
        const sql = yield* SqlClient.SqlClient
        const fiber = yield* commit(...events).pipe(
          Effect.zipRight(Deferred.succeed(written, undefined)),
          Effect.zipRight(Deferred.await(end)),
          sql.withTransaction,
          Effect.exit,
          Effect.fork
        )
        yield* Deferred.await(written)
        return {
          commit: Effect.zipRight(Deferred.succeed(end, undefined), Fiber.join(fiber)),
          undo: Effect.zipRight(Deferred.fail(end, "undo"), Fiber.join(fiber))
        }
      })

    it.effect("what began first and commits last is not skipped: what came after it waits for it", () =>
      Effect.gen(function* () {
        const after = yield* EventFeed.head
        const [slow, fast] = [id("slow"), id("fast")]
        const first = yield* open(event(slow, 1))
        yield* commit(event(fast, 1))
        const before = yield* EventFeed.read({ after })
        expect(before.events).toEqual([])
        expect(Exit.isSuccess(yield* first.commit)).toBe(true)
        expect(places(yield* readAll({ after: before.position }))).toEqual([`${slow}/1`, `${fast}/1`])
      })
    )

    it.effect("who waits sees both once the first has ended, though nothing tells of its end", () =>
      Effect.gen(function* () {
        const after = yield* EventFeed.head
        const [slow, fast] = [id("slow"), id("fast")]
        const first = yield* open(event(slow, 1))
        const reader = yield* EventFeed.stream({ after }).pipe(Stream.take(2), Stream.runCollect, Effect.fork)
        yield* commit(event(fast, 1))
        yield* first.commit
        expect(places(yield* Fiber.join(reader))).toEqual([`${slow}/1`, `${fast}/1`])
      })
    )

    it.effect("what is rolled back leaves no hole to wait at", () =>
      Effect.gen(function* () {
        const after = yield* EventFeed.head
        const [undone, fast] = [id("undone"), id("fast")]
        const first = yield* open(event(undone, 1))
        yield* commit(event(fast, 1))
        yield* first.undo
        expect(places(yield* readAll({ after }))).toEqual([`${fast}/1`])
      })
    )

    it.effect("inside a transaction it shows nothing of that transaction", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const after = yield* EventFeed.head
        const a = id("a")
        const inside = yield* commit(event(a, 1)).pipe(Effect.zipRight(EventFeed.read({ after })), sql.withTransaction)
        expect(inside.events).toEqual([])
        expect(places(yield* readAll({ after }))).toEqual([`${a}/1`])
      })
    )

    it.effect(
      "slow and fast transactions interleaved, some undone: a reader that goes along sees what a reader afterwards sees",
      () =>
        Effect.gen(function* () {
          const after = yield* EventFeed.head
          const last = id("last")
          const reader = yield* EventFeed.stream({ after, limit: 3 }).pipe(
            Stream.takeUntil(({ aggregateId }) => aggregateId === last),
            Stream.runCollect,
            Effect.fork
          )
          const results = yield* Effect.forEach(
            Arr.range(1, 60),
            (index) =>
              Effect.gen(function* () {
                const one = id(`t${index}`)
                const slow = yield* Random.nextBoolean
                if (!slow) {
                  yield* commit(event(one, 1))
                  return [`${one}/1`]
                }
                const transaction = yield* open(event(one, 1), event(one, 2))
                yield* Effect.sleep(yield* Random.nextIntBetween(0, 60))
                if (yield* Random.nextBoolean) {
                  yield* transaction.undo
                  return []
                }
                yield* transaction.commit
                return [`${one}/1`, `${one}/2`]
              }),
            { concurrency: 6 }
          )
          yield* commit(event(last, 1))
          const along = places(yield* Fiber.join(reader))
          expect(along).toEqual(places(yield* readAll({ after })))
          expect(along.toSorted()).toEqual([...results.flat(), `${last}/1`].toSorted())
        })
    )
  }
)

it("positions are ordered as numbers are", () => {
  const sorted = ["2-1", "10-3", "10-20", "100-1"] as Array<EventFeed.Position>
  expect(Arr.sort(sorted.toReversed(), EventFeed.order)).toEqual(sorted)
})
