/** The state of an aggregate as of a time. */
import { expect, it, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as TestClock from "effect/TestClock"
import { Aggregate, EventFeed, MemoryStore, SqlStore, StoreAdapter, StoreError, Timestamp } from "effect-maestro"
import { layerPg } from "./database.js"
import { eventually } from "./subscribers.js"

class Added extends Schema.TaggedClass<Added>()("Added", { by: Schema.Int }) {}

const folded = { events: 0 }

const definition = {
  state: Schema.Number,
  initialState: 0,
  events: Added,
  commands: Added,
  decide: { Added: (command: Added) => Effect.succeed([command]) },
  evolve: {
    Added: (sum: number, { by }: Added) => {
      folded.events++
      return sum + by
    }
  }
}

const Sum = Aggregate.make("Sum", definition)

const base = Date.UTC(2020, 0, 1)

/** Stores events of a stream, one at each time. */
const write = (id: string, times: ReadonlyArray<number>, first = 1) =>
  Effect.flatMap(StoreAdapter.StoreAdapter, (store) =>
    store.commitEvents(
      times.map((millis, index) => ({
        timestamp: Timestamp.fromParts({ millis, counter: index % 4096, node: 5n }),
        aggregateId: Sum.streamId(id),
        sequence: first + index,
        type: "Added",
        body: { by: 1 },
        metadata: {}
      }))
    )
  )

/** What looks like a time, and has none. */
const noDates: ReadonlyArray<unknown> = [
  new Proxy(new Date(), {}),
  Object.create(Date.prototype),
  ...["5", {}, null, 5n].map((millis) => Object.assign(new Date(), { getTime: () => millis })),
  Object.assign(new Date(), {
    getTime: () => {
      throw new Error("no time")
    }
  }),
  { ...DateTime.unsafeMake(5), [DateTime.TypeId]: DateTime.TypeId, epochMillis: "5" }
]

const asOf = (millis: number) => ({ asOf: new Date(millis) })

for (const [name, store] of Object.entries({
  MemoryStore: MemoryStore.layer,
  "SqlStore on Postgres": SqlStore.layer.pipe(Layer.provideMerge(layerPg()), Layer.orDie)
})) {
  layer(Layer.provideMerge(Sum.layer, store), { timeout: 60_000, excludeTestServices: true })(
    `as of a time on ${name}`,
    (it) => {
      it.effect("replay has the events that were made at or before the time, to the millisecond", () =>
        Effect.gen(function* () {
          yield* write("a", [base, base + 10, base + 10, base + 20])
          const expected: ReadonlyArray<readonly [millis: number, sum: number]> = [
            [-1, 0],
            [base - 1, 0],
            [base, 1],
            [base + 9, 1],
            [base + 10, 3],
            [base + 19, 3],
            [base + 20, 4],
            [8_640_000_000_000_000, 4]
          ]
          for (const [millis, sum] of expected) {
            expect(yield* Sum.replay("a", asOf(millis)), String(millis)).toBe(sum)
            expect(yield* Sum.replay("a", { asOf: DateTime.unsafeMake(millis) }), String(millis)).toBe(sum)
          }
          expect(yield* Sum.replay("a", 2)).toBe(2)
          expect(yield* Sum.replay("none", asOf(base))).toBe(0)
        })
      )

      it.effect("replay as of a time that has more events than a page has all of them", () =>
        Effect.gen(function* () {
          yield* write(
            "long",
            Array.from({ length: 1203 }, (_, index) => base + index)
          )
          for (const count of [1, 499, 500, 501, 1000, 1203]) {
            expect(yield* Sum.replay("long", asOf(base + count - 1))).toBe(count)
          }
        })
      )

      it.effect("replay begins at a snapshot that is not newer than the time, and at no newer one", () =>
        Effect.gen(function* () {
          yield* write("s", [base, base + 10, base + 20])
          yield* Sum.snapshot("s")
          yield* write("s", [base + 30, base + 40], 4)
          const count = (millis: number) =>
            Effect.gen(function* () {
              folded.events = 0
              return [yield* Sum.replay("s", asOf(millis)), folded.events]
            })
          expect(yield* count(base + 19)).toEqual([2, 2])
          expect(yield* count(base + 20)).toEqual([3, 0])
          expect(yield* count(base + 39)).toEqual([4, 1])
          expect(yield* count(base + 50)).toEqual([5, 2])
        })
      )

      it.effect("replay ignores a snapshot of a log that was replaced", () =>
        Effect.gen(function* () {
          const adapter = yield* StoreAdapter.StoreAdapter
          yield* write("r", [base, base + 10])
          yield* Sum.snapshot("r")
          const snapshot = yield* Effect.flatten(adapter.getSnapshot(Sum.streamId("r"), 1))
          // Made at another event than the stored one.
          yield* adapter.commitSnapshot({
            ...snapshot,
            body: { state: 70 },
            timestamp: Timestamp.fromParts({ millis: base + 5, counter: 1, node: 9n }),
            aggregateId: Sum.streamId("r2")
          })
          yield* write("r2", [base, base + 20])
          for (const [millis, sum] of [
            [base + 4, 1],
            [base + 6, 1],
            [base + 20, 2]
          ] as const) {
            expect(yield* Sum.replay("r2", asOf(millis))).toBe(sum)
          }
        })
      )

      it.effect("replay as of what is no time is a ValidationError, and so is an id that is none", () =>
        Effect.gen(function* () {
          for (const bad of [new Date(Number.NaN), "2024-01-01", 5, null, undefined, ...noDates]) {
            // A span shows the time, too.
            const error = yield* Effect.flip(Effect.withSpan(Sum.replay("a", { asOf: bad as Date }), "request"))
            expect(error).toBeInstanceOf(StoreError.ValidationError)
            expect(error).toMatchObject({ operation: "Sum.replay", issues: [{ path: ["asOf"] }] })
          }
          expect(yield* Effect.flip(Sum.replay("a", null as unknown as number))).toMatchObject({
            issues: [{ path: ["sequence"] }]
          })
          expect(yield* Effect.flip(Sum.replay("", asOf(base)))).toMatchObject({ issues: [{ path: ["id"] }] })
        })
      )

      it.effect("a fold of the feed as of a time is the state that replay returns", () =>
        Effect.gen(function* () {
          const after = yield* EventFeed.head
          yield* write("f", [base, base + 10, base + 20])
          yield* eventually(EventFeed.read({ after }), ({ events }) => events.length >= 3)
          for (const millis of [base - 1, base, base + 15, base + 20]) {
            const { events } = yield* EventFeed.read({ after, ...asOf(millis) })
            expect(events.length).toBe(yield* Sum.replay("f", asOf(millis)))
            expect(events.length).toBe(
              yield* Effect.flatMap(EventFeed.EventFeed, (feed) => feed.count({ after, ...asOf(millis) }))
            )
          }
        })
      )
    }
  )
}

it.effect("the time of an event is that of the program's clock", () =>
  Effect.gen(function* () {
    yield* TestClock.setTime(base)
    for (const by of [1, 2, 3]) {
      yield* Sum.evaluate("clock", new Added({ by }))
      yield* TestClock.adjust("1 minute")
    }
    const at = DateTime.unsafeMake(base)
    for (const [minutes, sum] of [
      [-1, 0],
      [0, 1],
      [1, 3],
      [1.5, 3],
      [2, 6],
      [60, 6]
    ] as const) {
      expect(yield* Sum.replay("clock", { asOf: DateTime.add(at, { seconds: minutes * 60 }) })).toBe(sum)
    }
  }).pipe(Effect.provide(Layer.provide(Sum.layer, MemoryStore.layer)))
)

it.effect("an event after one of a node whose clock is ahead has a time that is ahead, too", () =>
  Effect.gen(function* () {
    yield* TestClock.setTime(base)
    yield* write("skewed", [base + 60_000])
    yield* Sum.evaluate("skewed", new Added({ by: 1 }))
    expect(yield* Sum.replay("skewed", asOf(base))).toBe(0)
    expect(yield* Sum.replay("skewed", asOf(base + 60_000))).toBe(2)
  }).pipe(Effect.provide(Layer.provideMerge(Sum.layer, MemoryStore.layer)))
)

it.effect("replay as of a time works on a store without a reader of streams", () =>
  Effect.gen(function* () {
    const context = yield* Layer.build(MemoryStore.layer)
    const { streamReader: _, ...plain } = Context.get(context, StoreAdapter.StoreAdapter)
    const running = Effect.gen(function* () {
      yield* write(
        "plain",
        Array.from({ length: 700 }, (_, index) => base + index)
      )
      yield* Sum.snapshot("plain")
      for (const count of [1, 500, 501, 700]) {
        expect(yield* Sum.replay("plain", asOf(base + count - 1))).toBe(count)
      }
    })
    yield* Effect.provide(running, Layer.provideMerge(Sum.layer, Layer.succeed(StoreAdapter.StoreAdapter, plain)))
  }).pipe(Effect.scoped)
)
