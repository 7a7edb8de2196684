/** The behaviour of a subscription while nothing fails, on each store of this library. */
import { expect, it, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as MetricState from "effect/MetricState"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as TestClock from "effect/TestClock"
import * as TestContext from "effect/TestContext"
import { EventFeed, Projection, StoreAdapter, Subscription } from "effect-maestro"
import {
  caughtUp,
  commit,
  commitOf,
  event,
  eventually,
  Ledger,
  newId,
  placeOf,
  placesOf,
  type StoreServices,
  start,
  stores,
  write,
  written
} from "./subscribers.js"

for (const [name, store] of stores) suite(name, store)

function suite(name: string, store: Layer.Layer<StoreServices, unknown>) {
  layer(store, { excludeTestServices: true, timeout: 60_000 })(name, (it) => {
    it.scoped("handles all stored and all new events, each once and in the order of the feed", () =>
      Effect.gen(function* () {
        const [a, b, by] = [newId("a"), newId("b"), newId("all")]
        yield* commit(event(b, 1), event(a, 1), event(b, 2))
        const all = Subscription.make(by, { handle: write(by) })
        yield* start(all)
        yield* caughtUp(all)
        for (const sequence of Arr.range(2, 12)) yield* commit(event(a, sequence))
        // The transaction of a handler may hold the last events back, so the head of the feed may be before them.
        yield* Subscription.waitFor(by, { aggregateId: a, sequence: 12 }, "30 seconds")
        const { events } = yield* EventFeed.read()
        expect(yield* written(by)).toEqual(events.map(placeOf))
        expect((yield* written(by)).slice(-14)).toEqual([`${b}/1`, `${a}/1`, `${b}/2`, ...placesOf(a, 2, 12)])
      })
    )

    it.scoped("begins after the stored events, or after a position", () =>
      Effect.gen(function* () {
        const [a, now, later] = [newId("a"), newId("now"), newId("later")]
        yield* commitOf(a, 1, 3, a)
        const stored = yield* EventFeed.read({ filter: { types: [a] } })
        const fromNow = Subscription.make(now, { from: "now", handle: write(now) })
        const fromPosition = Subscription.make(later, {
          from: stored.events[1]?.position ?? EventFeed.beginning,
          handle: write(later)
        })
        yield* start(fromNow)
        yield* start(fromPosition)
        // It has read the head of the feed.
        yield* eventually(fromNow.status, ({ state }) => state === "running")
        yield* commitOf(a, 4, 5, a)
        yield* caughtUp(fromNow)
        yield* caughtUp(fromPosition)
        expect(yield* written(now)).toEqual(placesOf(a, 4, 5))
        expect(yield* written(later)).toEqual(placesOf(a, 3, 5))
      })
    )

    it.scoped("goes on from its checkpoint, with any `from`", () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("again")]
        const options = { filter: { types: [a] }, handle: write(by) }
        yield* commitOf(a, 1, 3, a)
        const first = Subscription.make(by, options)
        yield* Effect.scoped(Effect.zipRight(start(first), caughtUp(first)))
        yield* commitOf(a, 4, 6, a)
        const second = Subscription.make(by, { ...options, from: "now" })
        yield* Effect.scoped(Effect.zipRight(start(second), caughtUp(second)))
        yield* Effect.scoped(Effect.zipRight(start(first), caughtUp(first)))
        expect(yield* written(by)).toEqual(placesOf(a, 1, 6))
      })
    )

    it.scoped("handles the events that its filter lets through: by type, by kind, by a slice of the aggregates", () =>
      Effect.gen(function* () {
        const [kind, id] = [newId("kind"), newId("f")]
        const streamOf = (index: number) => `${index % 2 === 0 ? kind : "Other"}/${id}-${index}`
        yield* Effect.forEach(Arr.range(1, 24), (index) => commit(event(streamOf(index), 1, { type: kind })))
        yield* commit(event(streamOf(2), 2))
        const of = (filter: EventFeed.Filter) =>
          Effect.gen(function* () {
            const by = newId("filtered")
            const filtered = Subscription.make(by, { filter, handle: write(by) })
            yield* start(filtered)
            yield* caughtUp(filtered)
            return yield* written(by)
          })
        const numbered = (keep: (index: number) => boolean) =>
          Arr.range(1, 24)
            .filter(keep)
            .map((index) => `${streamOf(index)}/1`)
        const [types, both, nothing, ...slices] = yield* Effect.all(
          [
            of({ types: [kind] }),
            of({ types: [kind], kinds: [kind] }),
            of({ types: [newId("none")] }),
            of({ types: [kind], slice: { index: 0, of: 2 } }),
            of({ types: [kind], slice: { index: 1, of: 2 } })
          ],
          { concurrency: "unbounded" }
        )
        expect(types).toEqual(numbered(() => true))
        expect(both).toEqual(numbered((index) => index % 2 === 0))
        expect(nothing).toEqual([])
        expect(slices.flat().toSorted()).toEqual(numbered(() => true).toSorted())
        expect(slices.every((slice) => slice.length > 0)).toBe(true)
      })
    )

    it.scoped("passes batches of `batchSize` to the handler, and a smaller last one", () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("batches")]
        const sizes: Array<number> = []
        yield* commitOf(a, 1, 20, a)
        const batches = Subscription.make(by, {
          filter: { types: [a] },
          batchSize: 7,
          handleBatch: (events) => {
            sizes.push(events.length)
            return Effect.forEach(events, write(by))
          }
        })
        yield* start(batches)
        yield* caughtUp(batches)
        expect(sizes).toEqual([7, 7, 6])
        expect(yield* written(by)).toEqual(placesOf(a, 1, 20))
      })
    )

    it.scoped("in partitions each aggregate keeps its order, and all events are handled once", () =>
      Effect.gen(function* () {
        const [kind, by] = [newId("kind"), newId("parts")]
        const ids = Arr.makeBy(9, () => newId("p"))
        const parts = Subscription.make(by, {
          filter: { types: [kind] },
          partitions: 3,
          batchSize: 4,
          handle: write(by)
        })
        yield* start(parts)
        yield* Effect.forEach(ids, (one) => commitOf(one, 1, 3, kind), { concurrency: "unbounded" })
        yield* Effect.forEach(ids, (one) => commitOf(one, 4, 6, kind))
        for (const aggregateId of ids) yield* Subscription.waitFor(by, { aggregateId, sequence: 6 }, "30 seconds")
        const all = yield* written(by)
        for (const one of ids) {
          expect(all.filter((place) => place.startsWith(one))).toEqual(placesOf(one, 1, 6))
        }
        expect(all).toHaveLength(ids.length * 6)
        const { partitions } = yield* parts.status
        expect(partitions.map(({ partition, partitions }) => [partition, partitions])).toEqual([
          [0, 3],
          [1, 3],
          [2, 3]
        ])
        // A partition without events reaches the head, too, though no more events are committed.
        yield* caughtUp(parts)
      })
    )

    it.scoped("several runs in a process divide the partitions, and the last takes over all", () =>
      Effect.gen(function* () {
        const [kind, by] = [newId("kind"), newId("divided")]
        const parts = (holder: string) =>
          Subscription.make(by, { filter: { types: [kind] }, partitions: 5, holder, handle: write(by) })
        const counts = Effect.map(Subscription.nodes(by), (nodes) => nodes.map(({ holds }) => holds.length).sort())
        yield* start(parts("first"))
        const others = yield* Effect.fork(
          Effect.scoped(
            Effect.zipRight(
              Effect.forEach(["second", "third"], (holder) => start(parts(holder))),
              Effect.never
            )
          )
        )
        const ids = Arr.makeBy(9, () => newId("p"))
        for (const sequence of [1, 2, 3]) yield* Effect.forEach(ids, (id) => commitOf(id, sequence, sequence, kind))
        yield* eventually(counts, (all) => String(all) === "1,2,2")
        yield* Effect.forEach(ids, (id) => commitOf(id, 4, 4, kind))
        yield* Fiber.interrupt(others)
        yield* eventually(counts, (all) => String(all) === "5")
        yield* Effect.forEach(ids, (id) => commitOf(id, 5, 5, kind))
        for (const aggregateId of ids) yield* Subscription.waitFor(by, { aggregateId, sequence: 5 }, "30 seconds")
        const all = yield* written(by)
        for (const id of ids) expect(all.filter((place) => place.startsWith(id))).toEqual(placesOf(id, 1, 5))
      })
    )

    it.scoped("holds two pages at most while the handler is slow", () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("slow")]
        yield* commitOf(a, 1, 60, a)
        const feed = yield* EventFeed.EventFeed
        let [read, handled, most] = [0, 0, 0]
        const counting: EventFeed.EventFeedService = {
          ...feed,
          read: (options) =>
            Effect.tap(feed.read(options), ({ events }) => {
              read += events.length
              most = Math.max(most, read - handled)
            })
        }
        const slow = Subscription.make(by, {
          filter: { types: [a] },
          batchSize: 5,
          handle: () =>
            Effect.zipRight(
              Effect.sleep(1),
              Effect.sync(() => {
                handled++
              })
            )
        })
        yield* Effect.provideService(start(slow), EventFeed.EventFeed, counting)
        yield* caughtUp(slow)
        expect(handled).toBe(60)
        expect(most).toBeLessThanOrEqual(10)
      })
    )

    it.scoped("runs once in a process that starts it several times, and goes on with the next when that one ends", () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("twice")]
        const twice = (holder: string) => Subscription.make(by, { filter: { types: [a] }, holder, handle: write(by) })
        const holders = Effect.map(twice("any").status, ({ partitions }) =>
          partitions.map(({ holder }) => Option.getOrUndefined(holder))
        )
        const first = yield* Effect.fork(Effect.scoped(Effect.zipRight(start(twice("first")), Effect.never)))
        yield* eventually(holders, ([holder]) => holder === "first")
        yield* start(twice("second"))
        yield* commitOf(a, 1, 3, a)
        yield* caughtUp(twice("any"))
        expect(yield* holders).toEqual(["first"])
        yield* Fiber.interrupt(first)
        yield* eventually(holders, ([holder]) => holder === "second")
        yield* commitOf(a, 4, 6, a)
        yield* caughtUp(twice("any"))
        expect(yield* written(by)).toEqual(placesOf(a, 1, 6))
      })
    )

    for (const delivery of ["exactly-once", "at-least-once"] as const) {
      it.scoped(`${delivery}: one that is to end finishes its batch, and gives the lease back`, () =>
        Effect.gen(function* () {
          const [a, by] = [newId("a"), newId("graceful")]
          const [entered, leave] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
          let ended = 0
          const graceful = Subscription.make(by, {
            filter: { types: [a] },
            delivery,
            lease: "1 hour",
            handleBatch: (events) =>
              Deferred.succeed(entered, undefined).pipe(
                Effect.zipRight(Deferred.await(leave)),
                Effect.zipRight(Effect.forEach(events, write(by))),
                Effect.tap(() => {
                  ended++
                })
              )
          })
          yield* commitOf(a, 1, 4, a)
          const running = yield* Effect.fork(Effect.scoped(Effect.zipRight(start(graceful), Effect.never)))
          yield* Deferred.await(entered)
          const stopping = yield* Effect.fork(Fiber.interrupt(running))
          yield* Effect.yieldNow()
          yield* Deferred.succeed(leave, undefined)
          yield* Fiber.join(stopping)
          expect(ended).toBe(1)
          expect(yield* graceful.status).toMatchObject({ state: "idle", eventsBehind: 0 })
          // The lease of an hour was released, and no event is handled again.
          yield* start(graceful)
          yield* commitOf(a, 5, 5, a)
          yield* Subscription.waitFor(by, { aggregateId: a, sequence: 5 }, "30 seconds")
          expect(yield* written(by)).toEqual(placesOf(a, 1, 5))
        })
      )
    }

    it.scoped("a batch that exceeds `shutdown` is interrupted, and handled again", () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("broken-off")]
        const entered = yield* Deferred.make<void>()
        const options = { filter: { types: [a] }, shutdown: "20 millis" } as const
        const stuck = Subscription.make(by, {
          ...options,
          handle: () => Effect.zipRight(Deferred.succeed(entered, undefined), Effect.never)
        })
        yield* commitOf(a, 1, 1, a)
        yield* Effect.scoped(Effect.zipRight(start(stuck), Deferred.await(entered)))
        const healthy = Subscription.make(by, { ...options, handle: write(by) })
        yield* start(healthy)
        yield* caughtUp(healthy)
        expect(yield* written(by)).toEqual(placesOf(a, 1, 1))
      })
    )

    it.scoped("a handler may commit events itself, and handles them", () =>
      Effect.gen(function* () {
        const [a, b, by] = [newId("a"), newId("b"), newId("chain")]
        const store = yield* StoreAdapter.StoreAdapter
        const chain = Subscription.make(by, {
          filter: { types: [a] },
          handle: (handled) =>
            Effect.zipRight(
              write(by)(handled),
              handled.aggregateId === b
                ? Effect.void
                : Effect.flatMap(event(b, handled.sequence, { type: a }), (next) => store.commitEvents([next]))
            )
        })
        yield* start(chain)
        yield* commitOf(a, 1, 2, a)
        yield* eventually(written(by), (all) => all.length >= 4)
        yield* caughtUp(chain)
        expect((yield* written(by)).toSorted()).toEqual([...placesOf(a, 1, 2), ...placesOf(b, 1, 2)].toSorted())
      })
    )

    it.scoped("a projection has equal results as a strong one and in a subscription", () =>
      Effect.gen(function* () {
        const [a, strong, eventual] = [newId("a"), newId("strong"), newId("eventual")]
        class Added extends Schema.TaggedClass<Added>()("Added", { of: Schema.String }) {}
        class Other extends Schema.TaggedClass<Other>()("Other", {}) {}
        let by = strong
        const lines = Projection.make({
          name: "lines",
          of: "all",
          events: Schema.Union(Added, Other),
          project: {
            Added: ({ of }, envelope) =>
              of === a
                ? Effect.flatMap(Ledger, (ledger) => ledger.write(by, { ...envelope, position: EventFeed.beginning }))
                : Effect.void
          }
        })
        const added = (sequence: number, type: string) =>
          Effect.map(event(a, sequence, { type }), (it) => ({ ...it, body: { of: a } }))
        const events = yield* Effect.all([added(1, "Added"), added(2, "Other"), added(3, "Added")])
        const ledger = yield* Ledger
        yield* Effect.flatMap(StoreAdapter.StoreAdapter, (store) => store.commitAll(events, [lines]))
        by = eventual
        const followReading = Subscription.fromProjections(eventual, [lines])
        expect(followReading.filter).toEqual({ types: ["Added"] })
        yield* start(followReading)
        yield* caughtUp(followReading)
        expect(yield* ledger.written(eventual)).toEqual([`${a}/1`, `${a}/3`])
        expect(yield* ledger.written(strong)).toEqual(yield* ledger.written(eventual))
      })
    )

    it.scoped("waitFor lets a caller read its own write, and fails after the timeout", () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("waited-for")]
        const gate = yield* Effect.makeLatch(true)
        const waitedFor = Subscription.make(by, {
          filter: { types: [a] },
          handle: (event) => gate.whenOpen(write(by)(event))
        })
        // It also waits for a subscription that has never run.
        const early = yield* Effect.fork(Subscription.waitFor(by, { aggregateId: a, sequence: 1 }, "30 seconds"))
        yield* commitOf(a, 1, 1, a)
        const early2 = yield* Effect.fork(Subscription.waitFor(by, { aggregateId: a, sequence: 1 }, "30 seconds"))
        yield* start(waitedFor)
        yield* Fiber.join(early2)
        yield* Effect.ignore(Fiber.join(early))
        for (const sequence of Arr.range(2, 20)) {
          yield* commitOf(a, sequence, sequence, a)
          yield* Subscription.waitFor(by, { aggregateId: a, sequence }, "30 seconds")
          expect(yield* written(by)).toHaveLength(sequence)
        }
        yield* gate.close
        yield* commitOf(a, 21, 21, a)
        const late = yield* Effect.flip(Subscription.waitFor(by, { aggregateId: a, sequence: 21 }, "50 millis"))
        expect(late).toMatchObject({ _tag: "NotReached", subscription: by })
        yield* gate.open
        yield* Subscription.waitFor(by, { aggregateId: a, sequence: 21 }, "30 seconds")
        // An aggregate without events needs no wait, and an event that is not stored is refused.
        yield* Subscription.waitFor(by, { aggregateId: newId("none"), sequence: 0 }, "50 millis")
        expect(
          yield* Effect.flip(Subscription.waitFor(by, { aggregateId: a, sequence: 99 }, "1 second"))
        ).toMatchObject({
          _tag: "ValidationError"
        })
      })
    )

    it.scoped("waitFor an event waits for the partition of its aggregate only", () =>
      Effect.gen(function* () {
        const [kind, by] = [newId("kind"), newId("one-part")]
        const ids = Arr.makeBy(12, () => newId("p"))
        const [stuck = "", ...others] = ids
        const parts = Subscription.make(by, {
          filter: { types: [kind] },
          partitions: 4,
          // In a transaction it would hold the only connection of an embedded database.
          delivery: "at-least-once",
          shutdown: 0,
          handle: (event) => (event.aggregateId === stuck ? Effect.never : write(by)(event))
        })
        yield* Effect.forEach(ids, (one) => commitOf(one, 1, 1, kind))
        yield* start(parts)
        // Some aggregates are in other partitions than the one that is stuck.
        yield* Effect.raceAll(
          others.map((aggregateId) => Subscription.waitFor(by, { aggregateId, sequence: 1 }, "30 seconds"))
        )
        expect(
          yield* Effect.option(Subscription.waitFor(by, { aggregateId: stuck, sequence: 1 }, "50 millis"))
        ).toEqual(Option.none())
      })
    )

    it.scoped("status has the number of events behind, their age, and the holder", () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("status")]
        const gate = yield* Effect.makeLatch(false)
        const slow = Subscription.make(by, {
          filter: { types: [a] },
          batchSize: 2,
          delivery: "at-least-once",
          holder: "me",
          handle: (event) => gate.whenOpen(write(by)(event))
        })
        expect(yield* slow.status).toEqual({
          state: "idle",
          eventsBehind: 0,
          secondsBehind: 0,
          heldBack: Option.none(),
          parked: 0,
          partitions: []
        })
        yield* TestClock.adjust("1 hour")
        yield* commitOf(a, 1, 3, a)
        yield* TestClock.adjust("90 seconds")
        yield* start(slow)
        const behind = yield* eventually(slow.status, ({ state }) => state === "running")
        expect(behind).toMatchObject({
          state: "running",
          eventsBehind: 3,
          secondsBehind: 90,
          partitions: [{ name: by, partition: 0, partitions: 1, holder: Option.some("me"), stopped: false }]
        })
        yield* gate.open
        expect(yield* eventually(slow.status, ({ eventsBehind }) => eventsBehind === 0)).toMatchObject({
          secondsBehind: 0,
          parked: 0
        })
      }).pipe(Effect.provide(TestContext.TestContext))
    )

    it.scoped("metrics have the number of events behind and their age", () =>
      Effect.gen(function* () {
        const [a, by] = [newId("a"), newId("metrics")]
        const gate = yield* Effect.makeLatch(true)
        const told = Subscription.make(by, {
          filter: { types: [a] },
          delivery: "at-least-once",
          shutdown: 0,
          handle: (event) => (event.sequence > 5 ? gate.whenOpen(Effect.never) : Effect.void)
        })
        const metric = (name: string) =>
          Effect.map(Metric.snapshot, (pairs) => {
            const found = pairs.find(
              ({ metricKey }) =>
                metricKey.name === name && metricKey.tags.some((tag) => tag.key === "subscription" && tag.value === by)
            )?.metricState
            return MetricState.isCounterState(found)
              ? Number(found.count)
              : MetricState.isGaugeState(found)
                ? Number(found.value)
                : undefined
          })
        yield* commitOf(a, 1, 5, a)
        yield* start(told)
        yield* Subscription.waitFor(by, { aggregateId: a, sequence: 5 }, "1 minute")
        yield* eventually(metric("effect_maestro_subscription_events_handled"), (count) => count === 5)
        yield* commitOf(a, 6, 8, a)
        yield* TestClock.adjust("15 seconds")
        yield* eventually(metric("effect_maestro_subscription_events_behind"), (count) => count === 3)
        expect(yield* metric("effect_maestro_subscription_seconds_behind")).toBe(15)
      }).pipe(Effect.provide(TestContext.TestContext))
    )
  })
}

it("options out of their bounds are refused by `make`", () => {
  const handle = () => Effect.void
  for (const settings of [
    { batchSize: 0 },
    { batchSize: 10_001 },
    { partitions: 1.5 },
    { partitions: 2, filter: { slice: { index: 0, of: 2 } } },
    { lease: 0 },
    { lease: Number.POSITIVE_INFINITY },
    { lease: "2 days" },
    { from: "zz" as EventFeed.Position },
    { from: "1-x" as EventFeed.Position }
  ] as const) {
    expect(() => Subscription.make("wrong", { ...settings, handle })).toThrow(TypeError)
  }
  for (const name of ["", "a\0b", "\uD800"]) expect(() => Subscription.make(name, { handle })).toThrow(TypeError)
})
