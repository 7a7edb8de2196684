/** Messages that are larger than `@effect/rpc` reads: each fails by itself, and no other call feels it. */
import * as RpcSerialization from "@effect/rpc/RpcSerialization"
import { expect, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Aggregate, MemoryStore, StoreAdapter, StoreError, Timestamp } from "effect-maestro"
import * as ClusterAggregate from "effect-maestro/ClusterAggregate"
import { isTooLarge } from "../src/internal/cluster/messageSize.js"
import * as Messages from "../src/internal/cluster/messages.js"
import { sendableCause } from "../src/internal/cluster/unsent.js"
import { makeCluster } from "./cluster.js"

const mebi = 1024 * 1024
const limit = 16 * mebi

class Grown extends Schema.TaggedClass<Grown>()("Grown", { bytes: Schema.Number, note: Schema.String }) {}
class Grow extends Schema.TaggedClass<Grow>()("Grow", { bytes: Schema.Number, note: Schema.String }) {}
class Refuse extends Schema.TaggedClass<Refuse>()("Refuse", { bytes: Schema.Number }) {}
class Break extends Schema.TaggedClass<Break>()("Break", { thrown: Schema.String }) {}
class Wait extends Schema.TaggedClass<Wait>()("Wait", {}) {}
class Refused extends Schema.TaggedError<Refused>()("Refused", { report: Schema.String }) {}

const gate = { latch: Effect.unsafeMakeLatch(), waiting: Effect.unsafeMakeLatch(), runs: 0 }

/** Its state is a text as long as its commands say. */
const Text = Aggregate.make("Text", {
  initialState: "",
  state: Schema.String,
  events: Grown,
  commands: Schema.Union(Grow, Refuse, Wait, Break),
  refusals: { Refuse: [Refused] },
  decide: {
    Grow: ({ bytes, note }) => Effect.succeed([new Grown({ bytes, note })]),
    Refuse: ({ bytes }) => new Refused({ report: "x".repeat(bytes) }),
    Break: ({ thrown }) => Effect.die(thrown === "text" ? "x".repeat(limit) : new RangeError("x".repeat(limit))),
    Wait: () =>
      Effect.suspend(() => {
        gate.runs++
        return Effect.as(Effect.zipRight(gate.waiting.open, gate.latch.await), [])
      })
  },
  evolve: { Grown: (text, { bytes }) => text + "x".repeat(bytes) }
})
const Texts = ClusterAggregate.make(Text)

/** Its states can't be counted or sent: a getter that throws, a symbol, and an integer that MessagePack has not. */
const odd: Readonly<Record<string, unknown>> = {
  getter: {
    get thrown() {
      throw new Error("read")
    }
  },
  symbol: Symbol("s"),
  integer: 2n ** 70n
}
class Turned extends Schema.TaggedClass<Turned>()("Turned", { what: Schema.String }) {}
class Turn extends Schema.TaggedClass<Turn>()("Turn", { what: Schema.String }) {}
const Odd = Aggregate.make("Odd", {
  initialState: undefined,
  state: Schema.Unknown,
  events: Turned,
  commands: Turn,
  refusals: {},
  decide: {
    Turn: ({ what }) => (what === "defect" ? Effect.die({ n: 10n }) : Effect.succeed([new Turned({ what })]))
  },
  evolve: { Turned: (_, { what }) => odd[what] }
})
const Odds = ClusterAggregate.make(Odd)

/** Its stored events are small, and large when they are read. */
class Kept extends Schema.TaggedClass<Kept>()("Kept", {
  text: Schema.optionalWith(Schema.String, { default: () => "x".repeat(mebi) })
}) {}
class Keep extends Schema.TaggedClass<Keep>()("Keep", {}) {}
const Growing = Aggregate.make("Growing", {
  initialState: 0,
  state: Schema.Number,
  events: Kept,
  commands: Keep,
  refusals: {},
  decide: { Keep: () => Effect.succeed(Array.from({ length: 18 }, () => new Kept({ text: "" }))) },
  evolve: { Kept: (sum) => sum + 1 }
})
const Growings = ClusterAggregate.make(Growing)

const grow = (bytes: number, note = "") => new Grow({ bytes, note })

for (const serialization of ["msgpack", "ndjson"] as const) {
  it.scopedLive(`with ${serialization} a message above 16 MiB fails, and a call on the same connection goes on`, () =>
    Effect.gen(function* () {
      const cluster = yield* makeCluster(serialization)
      const store = yield* MemoryStore.make
      const layerStore = Layer.succeed(StoreAdapter.StoreAdapter, store)
      yield* cluster.startRunner(Texts.layerRunner.pipe(Layer.provide(Text.layer), Layer.provide(layerStore)))
      const local = yield* Layer.build(Layer.provide(Text.layer, layerStore))
      Object.assign(gate, { latch: Effect.unsafeMakeLatch(), waiting: Effect.unsafeMakeLatch(), runs: 0 })
      yield* Effect.gen(function* () {
        const waiting = yield* Effect.fork(Text.evaluate("waiting", new Wait()))
        yield* gate.waiting.await

        expect(yield* Effect.flip(Text.evaluate("command", grow(1, "x".repeat(limit))))).toMatchObject({
          _tag: "ValidationError",
          operation: "Text.evaluate",
          issues: [{ path: [], message: expect.stringContaining("16 MiB") }]
        })
        expect(yield* Text.exists("command")).toBe(false)

        // The events of `b` are small, and its state is not. An event of `c` is not small.
        yield* Text.evaluate("c", grow(1, "x".repeat(limit))).pipe(Effect.provide(local))
        const failures = [
          yield* Effect.flip(Text.evaluate("b", grow(limit))),
          yield* Effect.flip(Text.get("b")),
          yield* Effect.flip(Text.root("b")),
          yield* Effect.flip(Text.evaluate("b", new Refuse({ bytes: limit }))),
          yield* Effect.flip(Stream.runDrain(Text.history("c")))
        ]
        for (const failure of failures) {
          expect(failure).toMatchObject({ _tag: "StoreError", reason: "ClusterUnavailable" })
          expect(failure.message).toContain("the runner can't send its answer: the message is larger than the 16 MiB")
        }
        for (const [thrown, name] of [
          ["text", "Error"],
          ["error", "RangeError"]
        ] as const) {
          const cause = yield* Effect.flip(Effect.sandbox(Text.evaluate("b", new Break({ thrown }))))
          expect(Cause.squash(cause)).toMatchObject({ name, message: expect.stringMatching(/^x{1000}…$/) })
        }
        expect(yield* Text.evaluate("b", grow(1), { reply: "position" })).toMatchObject({ sequence: 2 })
        expect(Chunk.size(yield* Stream.runCollect(Text.history("b")))).toBe(2)

        yield* gate.latch.open
        yield* Fiber.join(waiting)
        // A message that was sent again would have run the handler again.
        expect(gate.runs).toBe(1)
      }).pipe(Effect.provide(Texts.layerClient.pipe(Layer.provide(cluster.layerClient))))
    })
  )
}

it.scopedLive(
  "a state that can't be sent, and a defect that can't be encoded, fail before the timeout of the call",
  () =>
    Effect.gen(function* () {
      const cluster = yield* makeCluster("msgpack")
      yield* cluster.startRunner(Odds.layerRunner.pipe(Layer.provide(Odd.layer), Layer.provide(MemoryStore.layer)))
      yield* Effect.gen(function* () {
        for (const what of Object.keys(odd)) {
          const failure = yield* Effect.flip(Odd.evaluate("a", new Turn({ what })))
          expect(failure).toMatchObject({ reason: "ClusterUnavailable" })
          expect(failure.message).toContain("the runner can't send its answer")
        }
        const cause = yield* Effect.flip(Effect.sandbox(Odd.evaluate("b", new Turn({ what: "defect" }))))
        expect(Cause.squash(cause)).toMatchObject({ message: "the handler died, and its defect can't be sent" })
      }).pipe(Effect.provide(Odds.layerClient.pipe(Layer.provide(cluster.layerClient))))
    })
)

it.scopedLive("a page of a history that is too large is sent event by event", () =>
  Effect.gen(function* () {
    const cluster = yield* makeCluster("msgpack")
    const store = yield* MemoryStore.make
    const layerStore = Layer.succeed(StoreAdapter.StoreAdapter, store)
    yield* cluster.startRunner(Growings.layerRunner.pipe(Layer.provide(Growing.layer), Layer.provide(layerStore)))
    const clock = yield* Timestamp.HybridClock
    const timestamps = yield* Effect.replicateEffect(clock.now, 18)
    yield* store.commitEvents(
      timestamps.map((timestamp, index) => ({
        timestamp,
        aggregateId: "Growing/a",
        sequence: index + 1,
        type: "Kept",
        body: {},
        metadata: {}
      }))
    )
    const events = yield* Stream.runCollect(Growing.history("a")).pipe(
      Effect.provide(Growings.layerClient.pipe(Layer.provide(cluster.layerClient)))
    )
    expect(Chunk.size(events)).toBe(18)
  })
)

it("of several failures that are too large together, the first is sent", () => {
  const large = Cause.fail("x".repeat(10 * mebi))
  expect([...Cause.failures(sendableCause(Cause.parallel(large, large)))]).toHaveLength(1)
  const small = Cause.parallel(Cause.fail("a"), Cause.fail("b"))
  expect(sendableCause(small)).toBe(small)
})

it.scopedLive("a message a little below 16 MiB arrives", () =>
  Effect.gen(function* () {
    const cluster = yield* makeCluster("msgpack")
    yield* cluster.startRunner(Texts.layerRunner.pipe(Layer.provide(Text.layer), Layer.provide(MemoryStore.layer)))
    const bytes = limit - 100_000
    const { state } = yield* Text.evaluate("a", grow(bytes)).pipe(
      Effect.provide(Texts.layerClient.pipe(Layer.provide(cluster.layerClient)))
    )
    expect(state.length).toBe(bytes)
  })
)

it("a failure that is too large is sent as its reason", () => {
  const description = "x".repeat(limit)
  const failure = new StoreError.StoreError({ reason: "Unavailable", operation: "getEvents", description })
  for (const { ast } of [Messages.readFailure(), Messages.commandFailure([])]) {
    const schema = Schema.make<unknown, unknown>(ast)
    const sent = Schema.encodeSync(schema)(failure)
    expect(JSON.stringify(sent).length).toBeLessThan(200)
    expect(() => Schema.decodeUnknownSync(schema)(sent)).toThrow("the runner can't send its answer")
  }
})

it("a refusal whose property is called unsent stays what it is", () => {
  class Left extends Schema.TaggedError<Left>()("Left", { unsent: Schema.String }) {}
  const schema = Schema.make<unknown, unknown>(Messages.commandFailure([Schema.make<unknown, unknown>(Left.ast)]).ast)
  const refusal = new Left({ unsent: "a letter" })
  expect(Schema.decodeUnknownSync(schema)(Schema.encodeSync(schema)(refusal))).toEqual(refusal)
})

const many = <A>(length: number, value: A): ReadonlyArray<A> => Array.from({ length }, () => value)

const endless = {
  *[Symbol.iterator]() {
    for (;;) yield 1
  }
}

const cyclic: Array<unknown> = []
cyclic.push(cyclic)

for (const [what, value, large] of [
  ["letters", "x".repeat(15.9 * mebi), false],
  ["letters of two bytes", "é".repeat(8 * mebi), true],
  ["letters of three bytes", "語".repeat(5 * mebi), false],
  ["more letters of three bytes", "語".repeat(6 * mebi), true],
  ["characters that JSON escapes", "\u0001".repeat(3 * mebi), true],
  ["truth values", many(4 * mebi, true), true],
  ["dates", many(mebi, new Date(0)), true],
  ["an object with toJSON", new URL(`https://a.b/${"x".repeat(limit)}`), true],
  ["a buffer", new ArrayBuffer(limit), true],
  ["integers of 64 bits", many(mebi, 2n ** 63n), true],
  ["small numbers", many(1.5 * mebi, 7), false],
  ["fractions", many(1.4 * mebi, 0.1), false],
  ["long fractions", many(mebi, -1.2345678901234567e-100), true],
  ["names of properties", many(100_000, { ["n".repeat(200)]: 1 }), true],
  ["bytes", new Uint8Array(limit), true],
  ["a set", new Set(["x".repeat(limit)]), true],
  ["an array that contains itself", cyclic, true],
  ["an iterator without end", endless, true],
  ["nothing", undefined, false]
] as const) {
  it(`a message of ${what} ${large ? "is too large" : "is not too large"}`, () => {
    expect(isTooLarge(value)).toBe(large)
    if (large) return
    for (const { unsafeMake } of [RpcSerialization.msgPack, RpcSerialization.ndjson]) {
      const sent = unsafeMake().encode({ value }) ?? ""
      expect(typeof sent === "string" ? Buffer.byteLength(sent) : sent.length).toBeLessThan(limit)
    }
  })
}
