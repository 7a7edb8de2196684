/**
 * Tests of the feed beside its contract: the order of commits that follow each other, and load. On Postgres also
 * transactions that overlap.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { type Event, EventFeed, MemoryStore, SqlStore, type StoreAdapter } from "effect-maestro"
import { inject } from "vitest"
import { layerPg, layerPglite } from "./database.js"
import { commit, event, newId as id, lastPosition, placeOf, placesOf } from "./subscribers.js"

const places = (events: Iterable<EventFeed.FeedEvent>) => Arr.fromIterable(events).map(placeOf)

/** All events that the feed shows after a position, read in pages of that size. */
const readAll = (
  options: EventFeed.ReadOptions = {}
): Effect.Effect<ReadonlyArray<EventFeed.FeedEvent>, unknown, EventFeed.EventFeed> =>
  Effect.flatMap(EventFeed.read(options), ({ events, more, position }) =>
    more ? Effect.map(readAll({ ...options, after: position }), (rest) => [...events, ...rest]) : Effect.succeed(events)
  )

type Ports = StoreAdapter.StoreAdapter | EventFeed.EventFeed

/** The duration of the load, in milliseconds: a minute on Postgres in a long run. */
/** With a counter a transaction that has appended can't wait for an append beside it. */
const hasCounter = inject("feedOrder") === "counter"

const lasting = (store: string): number => (inject("runs") > 100 && store.endsWith("Postgres") ? 60_000 : 500)

it.effect(
  "the position of an event in its stream is none of the feed, and `positionOf` returns the one of the feed",
  () =>
    Effect.gen(function* () {
      const [a, next] = [id("a"), id("next")]
      yield* commit(event(a, 1), event(a, 2), event(next, 1))
      const result = { aggregateId: a, sequence: 1 }
      const after = JSON.parse(JSON.stringify(result))
      for (const read of [
        Stream.runHead(EventFeed.stream({ after })),
        Stream.runHead(EventFeed.streamStored({ after })),
        EventFeed.read({ after })
      ]) {
        const error = yield* Effect.flip<unknown, { readonly message: string }, EventFeed.EventFeed>(read)
        expect(error.message).toBe(
          "EventFeed.read refused its input: after: must be a position that the feed has given, and is that of an event in its stream: EventFeed.positionOf returns the one of the feed"
        )
      }
      const position = yield* Effect.flatten(EventFeed.positionOf(result))
      expect(places(yield* readAll({ after: position }))).toEqual([...placesOf(a, 2, 2), ...placesOf(next, 1, 1)])
      expect(yield* EventFeed.positionOf({ aggregateId: a, sequence: 3 })).toEqual(Option.none())
    }).pipe(Effect.provide(MemoryStore.layer))
)

it("a stream position is read from JSON by its schema", () => {
  const read = Schema.decodeUnknownEither(EventFeed.StreamPosition)
  for (const position of [
    { aggregateId: "a", sequence: 0 },
    { aggregateId: "b", sequence: 2 ** 31 - 1 }
  ]) {
    const json: unknown = JSON.parse(JSON.stringify(Schema.encodeSync(EventFeed.StreamPosition)(position)))
    expect(read(json)).toEqual(Either.right(position))
  }
  for (const sequence of [-1, 0.5, 2 ** 31, "1", null]) {
    expect(Either.isLeft(read({ aggregateId: "a", sequence }))).toBe(true)
  }
  expect(Either.isLeft(read({ aggregateId: "", sequence: 1 }))).toBe(true)
})

const suite = <E>(name: string, store: Layer.Layer<Ports, E>) =>
  layer(store, { excludeTestServices: true, timeout: 60_000 })(name, (it) => {
    it.effect("shows successive commits in their order, and the events of each commit in theirs", () =>
      Effect.gen(function* () {
        const after = yield* lastPosition
        const [a, b] = [id("a"), id("b")]
        const first = yield* commit(event(b, 1), event(a, 1), event(b, 2))
        const second = yield* commit(event(a, 2))
        const shown = yield* readAll({ after })
        expect(shown).toMatchObject([...first, ...second])
        const positions = shown.map(({ position }) => position)
        expect(Arr.sort(positions, EventFeed.order)).toEqual(positions)
        expect(new Set(positions).size).toBe(4)
        expect(yield* lastPosition).toBe(positions.at(-1))
      })
    )

    it.effect(
      "eight concurrent writers and two readers: each reader sees each event once, and none before what it has read",
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
suite("SqlStore on PGlite", SqlStore.layer.pipe(Layer.provide(layerPglite)))
suite("SqlStore on Postgres", SqlStore.layer.pipe(Layer.provide(layerPg())))

layer(SqlStore.layer.pipe(Layer.provideMerge(layerPg())), { excludeTestServices: true, timeout: 60_000 })(
  "with transactions that overlap",
  (it) => {
    /** Commits in a transaction that stays open until a deferred ends it. */
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

    it.effect.skipIf(hasCounter)(
      "a transaction that began first and commits last is not skipped, because later events wait for it",
      () =>
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

    it.effect.skipIf(hasCounter)(
      "a waiting reader sees both once the first has ended, without a notification of its end",
      () =>
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

    it.effect.skipIf(hasCounter)("a rollback leaves no gap to wait for", () =>
      Effect.gen(function* () {
        const after = yield* EventFeed.head
        const [undone, fast] = [id("undone"), id("fast")]
        const first = yield* open(event(undone, 1))
        yield* commit(event(fast, 1))
        yield* first.undo
        expect(places(yield* readAll({ after }))).toEqual([`${fast}/1`])
      })
    )

    it.effect(
      "slow, fast and rolled back transactions interleaved: a concurrent reader sees what a later reader sees",
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

it("positions are ordered by their numbers", () => {
  const sorted = ["2-1", "10-3", "10-20", "100-1"] as Array<EventFeed.Position>
  expect(Arr.sort(sorted.toReversed(), EventFeed.order)).toEqual(sorted)
})
