/** What the events of a command follow from: their chain (`correlationId`), and the event before (`causationId`). */
import { describe, expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Ref from "effect/Ref"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import {
  Aggregate,
  EventFeed,
  MemoryStore,
  Projection,
  StoreAdapter,
  StoreError,
  Subscription,
  Timestamp
} from "effect-maestro"
import { expectTypeOf } from "vitest"
import * as Chain from "./chain.js"
import {
  Ask,
  AskThrough,
  Branch,
  cause,
  causes,
  Do,
  DoLater,
  Done,
  eventsOf,
  firstOf,
  followerOf,
  Leaf,
  projectingLeaf,
  Tree
} from "./chain.js"
import { caughtUp, start } from "./subscribers.js"

const once = new Do({ times: 1 })

const onMemory = Chain.layer.pipe(Layer.provideMerge(MemoryStore.layer))

const test = (name: string, run: () => Effect.Effect<void, unknown, Layer.Layer.Success<typeof onMemory>>) =>
  it.live(name, () => Effect.scoped(Effect.provide(Effect.suspend(run), onMemory)))

describe("a command without a cause", () => {
  test("begins a chain, whose id is the timestamp of its first event", () =>
    Effect.gen(function* () {
      yield* Leaf.evaluate("a", new Do({ times: 3 }))
      yield* Leaf.evaluate("a", new DoLater())
      const events = yield* eventsOf("Leaf/a")
      const [first, , , last] = events
      expect(causes(events)).toEqual([
        ...Arr.makeBy(3, () => ({ causationId: undefined, correlationId: first?.timestamp })),
        { causationId: undefined, correlationId: last?.timestamp }
      ])
      const history = yield* Stream.runCollect(Leaf.history("a"))
      expect([...history].map(cause)).toEqual(causes(events))
      expect(events.every((event) => !("causationId" in event) && !("traceparent" in event))).toBe(true)
    }))

  it.live("has the timestamp of the event that was stored, where another commit came first", () =>
    Effect.gen(function* () {
      const store = yield* MemoryStore.make
      let conflicts = 2
      const racing: StoreAdapter.StoreAdapterService = {
        ...store,
        commitAll: (events, projections) =>
          Effect.suspend(() =>
            conflicts-- > 0
              ? new StoreError.RetryCommand({ aggregateId: "Leaf/a", sequence: 1 })
              : store.commitAll(events, projections)
          )
      }
      for (const command of [once, new DoLater()]) {
        conflicts = 2
        yield* Leaf.evaluate("a", command).pipe(
          Effect.provide(Leaf.layer.pipe(Layer.provide(Layer.succeed(StoreAdapter.StoreAdapter, racing))))
        )
      }
      const events = yield* store.getEvents("Leaf/a", 1)
      expect(causes(events)).toEqual(
        events.map(({ timestamp }) => ({ causationId: undefined, correlationId: timestamp }))
      )
    }).pipe(Effect.provide(MemoryStore.layer))
  )

  test("has a chain of its own, also where it is committed with others", () =>
    Effect.gen(function* () {
      yield* Effect.forEach(Arr.range(1, 40), () => Leaf.evaluate("a", once), { concurrency: "unbounded" })
      const events = yield* eventsOf("Leaf/a")
      expect(events).toHaveLength(40)
      expect(causes(events)).toEqual(
        events.map(({ timestamp }) => ({ causationId: undefined, correlationId: timestamp }))
      )
    }))
})

describe("commands that a handler of an aggregate evaluates", () => {
  const trees = [
    ["one after the other", 1],
    ["concurrently", 3]
  ] as const
  for (const [how, concurrency] of trees) {
    test(`belong to the chain of the outer command, evaluated ${how}`, () =>
      Effect.gen(function* () {
        yield* Branch.evaluate("b", new Ask({ ids: ["x", "y", "z"], concurrency }))
        const events = yield* Effect.map(
          Effect.forEach(["Leaf/x", "Leaf/y", "Leaf/z", "Branch/b"], eventsOf),
          (lists) => lists.flat()
        )
        expect(events).toHaveLength(7)
        const correlationId = events[0]?.correlationId
        expect(events.map(({ timestamp }) => timestamp)).toContain(correlationId)
        expect(causes(events)).toEqual(events.map(() => ({ causationId: undefined, correlationId })))
        // The next command begins another chain.
        yield* Branch.evaluate("b", new Ask({ ids: ["x"] }))
        expect((yield* eventsOf("Branch/b")).at(-1)?.correlationId).not.toBe(correlationId)
      }))
  }

  test("belong to it at any depth, and have its cause", () =>
    Effect.gen(function* () {
      yield* Leaf.evaluate("cause", once)
      const first = yield* firstOf("Leaf/cause")
      yield* Tree.evaluate("t", new AskThrough({ branch: "b", id: "x" })).pipe(Aggregate.causedBy(first))
      for (const id of ["Leaf/x", "Branch/b", "Tree/t"]) {
        for (const event of yield* eventsOf(id)) expect(cause(event)).toEqual(followerOf(first))
      }
      yield* Tree.evaluate("u", new AskThrough({ branch: "c", id: "y" })).pipe(Aggregate.withCorrelationId("request 7"))
      for (const id of ["Leaf/y", "Branch/c", "Tree/u"]) {
        for (const event of yield* eventsOf(id)) {
          expect(cause(event)).toEqual({ causationId: undefined, correlationId: "request 7" })
        }
      }
    }))
})

describe("commands that a strong projection evaluates", () => {
  test("follow from the projected event, also inside of the handler of another aggregate", () =>
    Effect.gen(function* () {
      const ran: Array<string> = []
      const Projected = projectingLeaf(ran)
      const Outer = Aggregate.make("Outer", {
        ...Chain.leaf,
        commands: Do,
        decide: {
          Do: ({ times }) =>
            Effect.zipRight(
              Projected.evaluate("q", new Do({ times })),
              Effect.zipRight(Leaf.evaluate("direct", once), Effect.succeed([new Done({ text: "" })]))
            )
        }
      })
      yield* Effect.gen(function* () {
        yield* Projected.evaluate("p", new Do({ times: 2 }))
        const events = yield* eventsOf("ProjectedLeaf/p")
        expect(events).toHaveLength(2)
        for (const event of events) {
          expect(causes(yield* eventsOf(`Leaf/p-${event.sequence}`))).toEqual([followerOf(event)])
        }
        const request = { causationId: undefined, correlationId: "request" }
        yield* Outer.evaluate("o", new Do({ times: 2 })).pipe(Aggregate.withCorrelationId("request"))
        const inner = yield* eventsOf("ProjectedLeaf/q")
        expect(causes([...inner, ...(yield* eventsOf("Outer/o")), ...(yield* eventsOf("Leaf/direct"))])).toEqual(
          Arr.makeBy(4, () => request)
        )
        for (const event of inner) {
          expect(causes(yield* eventsOf(`Leaf/q-${event.sequence}`))).toEqual([followerOf(event)])
        }
        expect(ran).toHaveLength(4)
      }).pipe(Effect.provide(Outer.layer.pipe(Layer.provideMerge(Projected.layer))))
    }))
})

describe("commands that a subscription evaluates", () => {
  /** Evaluates a command for each event of the trigger. */
  const follow = (event: EventFeed.FeedEvent) => Leaf.evaluate(`${event.id}-${event.sequence}`, new Do({ times: 2 }))
  const filter = { kinds: ["Branch"] }
  const options = { delivery: "at-least-once" as const }

  const subscriptions = {
    handle: Subscription.make("handle", { ...options, filter, handle: follow }),
    on: Subscription.make("on", { ...options, on: Subscription.on(Branch, { Done: (_, event) => follow(event) }) }),
    "exactly-once": Subscription.make("exactly-once", { filter, handle: follow }),
    fromProjections: Subscription.fromProjections(
      "projections",
      [
        Projection.make({
          name: "follow",
          of: Branch,
          project: { Done: (_, { id, sequence }) => Leaf.evaluate(`${id}-${sequence}`, new Do({ times: 2 })) }
        })
      ],
      options
    )
  }

  for (const [what, subscription] of Object.entries(subscriptions)) {
    test(`follow from the event that is handled (${what})`, () =>
      Effect.gen(function* () {
        const ids = ["b", "c"]
        for (const id of ids) yield* Branch.evaluate(id, new Ask({ ids: [] }))
        yield* Branch.evaluate("b", new Ask({ ids: [] })).pipe(Aggregate.withCorrelationId("request 8"))
        yield* Effect.scoped(Effect.zipRight(start(subscription), caughtUp(subscription)))
        for (const id of ids) {
          for (const event of yield* eventsOf(`Branch/${id}`)) {
            const followers = yield* eventsOf(`Leaf/${id}-${event.sequence}`)
            expect(causes(followers)).toEqual([followerOf(event), followerOf(event)])
          }
        }
        expect((yield* firstOf("Leaf/b-2")).correlationId).toBe("request 8")
      }))
  }

  test("follow from a parked event that is retried", () =>
    Effect.gen(function* () {
      let fails = true
      const parking = Subscription.make("parking", {
        ...options,
        filter,
        onFailure: "park",
        retry: Schedule.stop,
        handle: (event) =>
          Effect.zipRight(
            Effect.filterOrFail(
              Effect.succeed(event),
              () => !fails,
              () => "not now"
            ),
            follow(event)
          )
      })
      yield* Branch.evaluate("b", new Ask({ ids: [] }))
      yield* Effect.scoped(Effect.zipRight(start(parking), caughtUp(parking)))
      fails = false
      expect(yield* parking.retryAllParked).toBe(1)
      const event = yield* firstOf("Branch/b")
      expect(causes(yield* eventsOf("Leaf/b-1"))).toEqual([followerOf(event), followerOf(event)])
    }))

  test("follow from no event where a batch is handled, unless `causedBy` names one", () =>
    Effect.gen(function* () {
      const batches = Subscription.make("batches", {
        ...options,
        filter,
        handleBatch: ([event]) =>
          Effect.zipRight(
            Leaf.evaluate("of no event", once),
            follow(event).pipe(Aggregate.causedBy(event), Aggregate.withCommandId("once"))
          )
      })
      yield* Branch.evaluate("b", new Ask({ ids: [] }))
      yield* Effect.scoped(Effect.zipRight(start(batches), caughtUp(batches))).pipe(
        // The batch does not take the cause of the fiber that has started it.
        Aggregate.withCorrelationId("of the starter")
      )
      const own = yield* firstOf("Leaf/of no event")
      expect(cause(own)).toEqual({ causationId: undefined, correlationId: own.timestamp })
      const event = yield* firstOf("Branch/b")
      expect(causes(yield* eventsOf("Leaf/b-1"))).toEqual([followerOf(event), followerOf(event)])
    }))

  test("follow from the event at which a fiber was forked, and a joined fiber changes nothing", () =>
    Effect.gen(function* () {
      const forked = yield* Ref.make<ReadonlyArray<Fiber.Fiber<unknown, unknown>>>([])
      const release = yield* Effect.makeLatch(false)
      const forking = Subscription.make("forking", {
        ...options,
        filter,
        handle: (event) =>
          Effect.gen(function* () {
            const slow = yield* Effect.forkDaemon(release.whenOpen(Leaf.evaluate(`slow-${event.id}`, once)))
            yield* Ref.update(forked, (fibers) => [...fibers, slow])
            const child = yield* Effect.fork(Leaf.evaluate(`child-${event.id}`, once))
            yield* Fiber.join(child)
            yield* Leaf.evaluate(`own-${event.id}`, once)
          })
      })
      const ids = ["b", "c", "d"]
      for (const id of ids) yield* Branch.evaluate(id, new Ask({ ids: [] }))
      yield* Effect.scoped(Effect.zipRight(start(forking), caughtUp(forking)))
      yield* release.open
      for (const fiber of yield* Ref.get(forked)) yield* Fiber.join(fiber)
      for (const id of ids) {
        const event = yield* firstOf(`Branch/${id}`)
        for (const which of ["slow", "child", "own"]) {
          expect(causes(yield* eventsOf(`Leaf/${which}-${id}`)), `${which} of ${id}`).toEqual([followerOf(event)])
        }
      }
    }))

  test("keep their cause where they name a chain of their own", () =>
    Effect.gen(function* () {
      const naming = Subscription.make("naming", {
        ...options,
        filter,
        handle: (event) => follow(event).pipe(Aggregate.withCorrelationId("another"))
      })
      yield* Branch.evaluate("b", new Ask({ ids: [] }))
      yield* Effect.scoped(Effect.zipRight(start(naming), caughtUp(naming)))
      const event = yield* firstOf("Branch/b")
      expect(cause(yield* firstOf("Leaf/b-1"))).toEqual({ causationId: event.timestamp, correlationId: "another" })
    }))
})

describe("a subscription to a chain", () => {
  test("handles the events of the chain and no others, also with handlers for the events of one aggregate", () =>
    Effect.gen(function* () {
      const handled: Array<string> = []
      const handle = (event: EventFeed.FeedEvent) =>
        Effect.sync(() => handled.push(`${event.aggregateId} ${event.sequence}`))
      const filter = { correlationId: "request" }
      const all = Subscription.make("all", { filter, handle })
      const leaves = Subscription.make("leaves", {
        filter,
        on: Subscription.on(Leaf, { Done: (_, event) => handle(event) })
      })
      yield* Leaf.evaluate("a", once)
      yield* Branch.evaluate("b", new Ask({ ids: ["a"] })).pipe(Aggregate.withCorrelationId("request"))
      yield* Leaf.evaluate("a", once).pipe(Aggregate.withCorrelationId("another"))
      yield* Effect.scoped(Effect.zipRight(start(all), caughtUp(all)))
      expect(handled).toEqual(["Leaf/a 2", "Leaf/a 3", "Branch/b 1"])
      handled.length = 0
      yield* Effect.scoped(Effect.zipRight(start(leaves), caughtUp(leaves)))
      expect(handled).toEqual(["Leaf/a 2", "Leaf/a 3"])
    }))

  it("throws a TypeError for an id that no event can have", () => {
    for (const correlationId of ["", "\0", "x".repeat(256)]) {
      expect(() => Subscription.make("bad", { filter: { correlationId }, handle: () => Effect.void })).toThrow(
        /^correlationId of subscription bad /
      )
    }
  })
})

it("the types of effects with a cause have a ValidationError more", () => {
  const evaluate = Leaf.evaluate("a", once)
  expectTypeOf(Aggregate.withCorrelationId("request")(evaluate)).toEqualTypeOf(evaluate)
  expectTypeOf(Aggregate.withCorrelationId("request")(Effect.succeed(1))).toEqualTypeOf<
    Effect.Effect<number, StoreError.ValidationError>
  >()
  const historic: Aggregate.HistoricEvent<Done> = {
    event: new Done({ text: "" }),
    sequence: 1,
    timestamp: "" as Timestamp.Timestamp,
    metadata: {}
  }
  expectTypeOf(Aggregate.causedBy(historic)(evaluate)).toEqualTypeOf(evaluate)
  expectTypeOf(historic.causationId).toEqualTypeOf<Timestamp.Timestamp | undefined>()
})

describe("withCorrelationId, causedBy", () => {
  test("a receipt has the cause of its command, also one without events", () =>
    Effect.gen(function* () {
      yield* Leaf.evaluate("a", new Do({ times: 2 })).pipe(Aggregate.withCommandId("1"))
      yield* Leaf.evaluate("a", new Do({ times: 0 })).pipe(
        Aggregate.withCommandId("2"),
        Aggregate.withCorrelationId("request")
      )
      yield* Leaf.evaluate("a", new Do({ times: 0 })).pipe(Aggregate.withCommandId("3"))
      const { events } = yield* EventFeed.read()
      const receipts = events.filter(({ kind }) => kind === "effect-maestro:Receipt")
      const [first] = yield* eventsOf("Leaf/a")
      expect(causes(receipts)).toEqual(
        [first?.timestamp, "request", receipts[2]?.timestamp].map((correlationId) => ({
          causationId: undefined,
          correlationId
        }))
      )
      // A duplicate stores nothing.
      yield* Leaf.evaluate("a", new Do({ times: 2 })).pipe(
        Aggregate.withCommandId("1"),
        Aggregate.withCorrelationId("again")
      )
      expect((yield* EventFeed.read()).events).toHaveLength(events.length)
    }))

  test("causedBy: what is no event is refused", () =>
    Effect.gen(function* () {
      for (const none of [null, undefined, {}, "event"]) {
        const caused = Leaf.evaluate("a", once).pipe(Aggregate.causedBy(none as unknown as EventFeed.FeedEvent))
        expect(yield* Effect.flip(caused)).toMatchObject({ _tag: "ValidationError", issues: [{ path: ["timestamp"] }] })
      }
    }))

  test("an event without a chain names the one of its followers", () =>
    Effect.gen(function* () {
      const store = yield* StoreAdapter.StoreAdapter
      const timestamp = yield* Effect.flatMap(Timestamp.HybridClock, ({ now }) => now)
      const foreign = { timestamp, aggregateId: "foreign", sequence: 1, type: "Done", body: {}, metadata: {} }
      yield* store.commitEvents([foreign])
      yield* Leaf.evaluate("a", once).pipe(Aggregate.causedBy(foreign))
      expect(cause(yield* firstOf("Leaf/a"))).toEqual({ causationId: timestamp, correlationId: timestamp })
    }))

  test("the innermost of several wins, and it ends with its effect", () =>
    Effect.gen(function* () {
      yield* Effect.gen(function* () {
        yield* Leaf.evaluate("inner", once).pipe(Aggregate.withCorrelationId("inner"))
        yield* Leaf.evaluate("outer", once)
        yield* Effect.ignore(Aggregate.withCorrelationId("failed")(Effect.fail("fails")))
        yield* Leaf.evaluate("outer", once)
      }).pipe(Aggregate.withCorrelationId("outer"))
      expect((yield* eventsOf("Leaf/inner")).map(({ correlationId }) => correlationId)).toEqual(["inner"])
      expect((yield* eventsOf("Leaf/outer")).map(({ correlationId }) => correlationId)).toEqual(["outer", "outer"])
    }))

  test("a bad id is a ValidationError, and the effect does not run", () =>
    Effect.gen(function* () {
      const bad = ["", "\0", "\ud800", "x".repeat(256), 7, undefined, null] as ReadonlyArray<string>
      let ran = false
      const run = Effect.sync(() => {
        ran = true
      })
      for (const id of bad) {
        const error = yield* Effect.flip(Aggregate.withCorrelationId(id)(run))
        expect(error).toMatchObject({ operation: "Aggregate.withCorrelationId", issues: [{ path: ["correlationId"] }] })
        if (id === undefined) continue
        const timestamp = yield* Effect.flatMap(Timestamp.HybridClock, ({ now }) => now)
        expect(yield* Effect.flip(Aggregate.causedBy({ timestamp, correlationId: id })(run))).toMatchObject({
          operation: "Aggregate.causedBy",
          issues: [{ path: ["correlationId"] }]
        })
      }
      const error = yield* Effect.flip(Aggregate.causedBy({ timestamp: "today" as Timestamp.Timestamp })(run))
      expect(error.issues[0].path).toEqual(["timestamp"])
      expect(ran).toBe(false)
      yield* Leaf.evaluate("a", once).pipe(Aggregate.withCorrelationId("€".repeat(255)))
      expect((yield* firstOf("Leaf/a")).correlationId).toBe("€".repeat(255))
    }))
})
