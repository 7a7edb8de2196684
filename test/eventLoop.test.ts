/** Timers and sockets are served while the store in memory is busy. */
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Runtime from "effect/Runtime"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Aggregate, type Event, EventFeed, MemoryStore, StoreAdapter, Subscription, Timestamp } from "effect-maestro"

class Grew extends Schema.TaggedClass<Grew>()("Grew", {}) {}

const Counter = Aggregate.make("Counter", {
  state: Schema.Number,
  initialState: 0,
  events: Grew,
  commands: Grew,
  decide: { Grew: (command) => Effect.succeed([command]) },
  evolve: { Grew: (count: number) => count + 1 }
})

const services = Counter.layer.pipe(Layer.provideMerge(MemoryStore.layer))

/** The processor time of the process, in milliseconds. Wall time would include waits for a busy machine. */
const worked = (): number => {
  const { system, user } = process.cpuUsage()
  return (system + user) / 1000
}

/** The most processor time between two runs of a timer while the effect runs, in milliseconds. */
const longestPause = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.acquireUseRelease(
    Effect.sync(() => {
      const seen = { longest: 0, turns: 0, last: worked() }
      const turn = () => {
        const now = worked()
        seen.longest = Math.max(seen.longest, now - seen.last)
        seen.last = now
        seen.turns++
      }
      return { seen, turn, timer: setInterval(turn, 1) }
    }),
    ({ seen, turn }) =>
      Effect.map(effect, () => {
        turn()
        return seen
      }),
    ({ timer }) => Effect.sync(() => clearInterval(timer))
  )

/** As long as a garbage collection may take, and far shorter than the work. */
const longest = 100

/** The shortest of up to three longest pauses, because a garbage collection of all tests before can fall into one. */
const pauseDuring = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    let shortest = Number.POSITIVE_INFINITY
    for (let time = 1; time <= 3 && shortest >= longest; time++) {
      shortest = Math.min(shortest, (yield* longestPause(effect)).longest)
    }
    return shortest
  })

/** Stores a number of events of one aggregate. */
const storeEvents = (count: number) =>
  Effect.gen(function* () {
    const [store, clock] = [yield* StoreAdapter.StoreAdapter, yield* Timestamp.HybridClock]
    for (const chunk of Arr.chunksOf(Arr.range(1, count), 1000)) {
      yield* store.commitEvents(
        yield* Effect.forEach(chunk, (sequence) =>
          Effect.map(
            clock.now,
            (timestamp): Event.Event => ({
              timestamp,
              aggregateId: "one",
              sequence,
              type: "Grew",
              version: 1,
              body: { _tag: "Grew" },
              metadata: {}
            })
          )
        )
      )
    }
  })

it.live("timers are served during commands in sequence on the store in memory", () =>
  Effect.gen(function* () {
    const command = Counter.evaluate("one", new Grew())
    const { turns } = yield* longestPause(Effect.repeatN(command, 3000))
    expect(turns).toBeGreaterThan(5)
    expect(yield* pauseDuring(Effect.repeatN(command, 3000))).toBeLessThan(longest)
  }).pipe(Effect.provide(services))
)

it.live("timers are served while a subscription and a stream catch up on the store in memory", () =>
  Effect.gen(function* () {
    const count = 40_000
    yield* storeEvents(count)
    const following = Effect.flatMap(Deferred.make<void>(), (all) => {
      let seen = 0
      const follower = Subscription.make(`follower ${crypto.randomUUID()}`, {
        handle: () => (++seen === count ? Deferred.succeed(all, undefined) : Effect.void)
      })
      return Effect.raceFirst(follower.run, Deferred.await(all))
    })
    expect(yield* pauseDuring(following)).toBeLessThan(longest)
    expect(yield* pauseDuring(Stream.runDrain(EventFeed.streamStored()))).toBeLessThan(longest)
    // A filter that no event matches still reads all events.
    const searching = Stream.runDrain(EventFeed.streamStored({ filter: { types: ["none"] } }))
    expect(yield* pauseDuring(searching)).toBeLessThan(longest)
  }).pipe(Effect.provide(services))
)

it("a program that can't wait, as in runSync, runs on the store in memory", () => {
  const count = Effect.runSync(
    Effect.gen(function* () {
      const store = yield* StoreAdapter.StoreAdapter
      const began = performance.now()
      // Longer than one macrotask may take.
      while (performance.now() - began < 20) yield* store.getEvents("none", 1)
      return (yield* store.getEvents("none", 1)).length
    }).pipe(Effect.provide(MemoryStore.layer))
  )
  expect(count).toBe(0)
})

it.scopedLive("the answer to a command leaves in the macrotask in which the store has committed its events", () =>
  Effect.gen(function* () {
    const order: Array<string> = []
    const memory = yield* MemoryStore.make
    // The store commits in a macrotask of its own, and the next one is planned before the command goes on.
    const pause = Effect.async<void>((resume) => {
      setImmediate(() => {
        setImmediate(() => order.push("next macrotask"))
        resume(Effect.void)
      })
    })
    const slow: StoreAdapter.StoreAdapterService = {
      ...memory,
      commitAll: (events, projections) => Effect.zipRight(pause, memory.commitAll(events, projections))
    }
    const runtime = yield* Layer.toRuntime(Layer.provide(Counter.layer, Layer.succeed(StoreAdapter.StoreAdapter, slow)))
    const run = Runtime.runPromise(runtime)
    // The first command loads the aggregate; the second finds its state in the cache.
    yield* Effect.promise(() => run(Counter.evaluate("a", new Grew())))
    yield* nextMacrotask
    order.length = 0
    yield* Effect.promise(() => run(Counter.evaluate("a", new Grew())).then(() => order.push("answer")))
    yield* nextMacrotask
    expect(order).toEqual(["answer", "next macrotask"])
  })
)

const nextMacrotask = Effect.promise(() => new Promise<void>((resolve) => setImmediate(resolve)))
