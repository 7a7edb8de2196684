/** The trace context of events: the span that stored an event, and the links of handlers to it. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Tracer from "effect/Tracer"
import { Aggregate, EventFeed, MemoryStore, SqlStore, StoreAdapter, Subscription } from "effect-maestro"
import { linksOf } from "../src/internal/runtime/traceContext.js"
import * as Chain from "./chain.js"
import { Ask, Branch, Do, eventsOf, firstOf, Leaf } from "./chain.js"
import { layerPg } from "./database.js"
import { collectSpans } from "./spans.js"
import { caughtUp, commit, event, start } from "./subscribers.js"

const once = new Do({ times: 1 })

const onMemory = Chain.layer.pipe(Layer.provideMerge(MemoryStore.layer))

const test = (name: string, run: () => Effect.Effect<void, unknown, Layer.Layer.Success<typeof onMemory>>) =>
  it.live(name, () => Effect.scoped(Effect.provide(Effect.suspend(run), onMemory)))

const traceparentOf = ({ sampled, spanId, traceId }: Pick<Tracer.AnySpan, "sampled" | "spanId" | "traceId">) =>
  `00-${traceId}-${spanId}-${sampled ? "01" : "00"}`

const external = (sampled: boolean) => Tracer.externalSpan({ traceId: "a".repeat(32), spanId: "b".repeat(16), sampled })

test("with a tracer, events have the span of `evaluate` that stored them, within the trace of the caller", () =>
  Effect.gen(function* () {
    const { spans, tracer } = yield* collectSpans
    yield* Leaf.evaluate("a", new Do({ times: 2 })).pipe(
      Effect.withParentSpan(external(true)),
      Effect.withTracer(tracer)
    )
    yield* Branch.evaluate("b", new Ask({ ids: ["c"] })).pipe(Effect.withTracer(tracer))
    yield* Leaf.evaluate("d", once).pipe(Aggregate.withCommandId("1"), Effect.withTracer(tracer))
    const [alone, outer, inner, receipted] = spans
      .filter(({ name }) => name === "Aggregate.evaluate")
      .map(traceparentOf)
    expect((yield* eventsOf("Leaf/a")).map(({ traceparent }) => traceparent)).toEqual([alone, alone])
    expect(alone).toContain("a".repeat(32))
    expect((yield* firstOf("Branch/b")).traceparent).toBe(outer)
    expect((yield* firstOf("Leaf/c")).traceparent).toBe(inner)
    const { events } = yield* EventFeed.read()
    expect(events.slice(-2).map(({ traceparent }) => traceparent)).toEqual([receipted, receipted])
  }))

test("a trace that is not sampled is stored as such", () =>
  Effect.gen(function* () {
    const { tracer } = yield* collectSpans
    const unsampled = Tracer.make({
      context: (run) => run(),
      span: (...args) => Object.assign(tracer.span(...args), { sampled: false })
    })
    yield* Leaf.evaluate("a", once).pipe(Effect.withParentSpan(external(false)), Effect.withTracer(unsampled))
    expect((yield* firstOf("Leaf/a")).traceparent).toMatch(/^00-a{32}-[0-9a-f]{16}-00$/)
  }))

test("without a tracer, with spans turned off, or with ids of another form, events have none", () =>
  Effect.gen(function* () {
    const { tracer } = yield* collectSpans
    const ids = ["1", "A-B", "0".repeat(32), "", "g".repeat(32)]
    yield* Leaf.evaluate("a", once).pipe(Effect.withSpan("a span of the default tracer"))
    yield* Leaf.evaluate("a", once).pipe(Effect.withTracerEnabled(false), Effect.withTracer(tracer))
    for (const traceId of ids) {
      const strange = Tracer.make({
        context: (run) => run(),
        span: (...args) => Object.assign(tracer.span(...args), { traceId })
      })
      yield* Leaf.evaluate("a", once).pipe(Effect.withTracer(strange))
    }
    const events = yield* eventsOf("Leaf/a")
    expect(events).toHaveLength(2 + ids.length)
    expect(events.filter((stored) => stored.traceparent !== undefined)).toEqual([])
  }))

test("where the span of `evaluate` is turned off, events have the span around it", () =>
  Effect.gen(function* () {
    const { tracer } = yield* collectSpans
    yield* Leaf.evaluate("a", once).pipe(
      Effect.withTracerEnabled(false),
      Effect.withParentSpan(external(true)),
      Effect.withTracer(tracer)
    )
    expect((yield* firstOf("Leaf/a")).traceparent).toBe(traceparentOf(external(true)))
  }))

const handling = (spans: ReadonlyArray<Tracer.Span>) => spans.filter(({ name }) => name === "Subscription.handle")

const linksOfSpan = ({ links }: Tracer.Span) => links.map(({ span }) => traceparentOf(span))

test("the span of a handler links to the span that stored its event, and its commands belong to that span", () =>
  Effect.gen(function* () {
    const { spans, tracer } = yield* collectSpans
    yield* Effect.forEach(["a", "b"], (id) => Leaf.evaluate(id, once).pipe(Effect.withTracer(tracer)))
    yield* Leaf.evaluate("c", once)
    const filter = { kinds: ["Leaf"] }
    const following = Subscription.make("following", {
      filter,
      handle: ({ id }) => Branch.evaluate(id, new Ask({ ids: [] }))
    })
    yield* Effect.scoped(Effect.zipRight(start(following), caughtUp(following))).pipe(Effect.withTracer(tracer))
    const stored = yield* Effect.forEach(["Leaf/a", "Leaf/b"], firstOf)
    const handlers = handling(spans)
    expect(handlers.map(linksOfSpan)).toEqual([...stored.map(({ traceparent }) => [traceparent]), []])
    expect(handlers.every(({ links }) => links.every(({ span }) => span.sampled))).toBe(true)
    expect(handlers.map(({ attributes, kind }) => [kind, Object.fromEntries(attributes)])).toEqual(
      ["Leaf/a", "Leaf/b", "Leaf/c"].map((id) => [
        "consumer",
        { subscription: "following", events: 1, "aggregate.id": id, "event.sequence": 1, "event.type": "Done" }
      ])
    )
    const evaluated = spans.filter(
      ({ attributes, name }) => name === "Aggregate.evaluate" && attributes.get("command") === "Ask"
    )
    expect(evaluated.map(({ parent }) => Option.getOrUndefined(parent))).toEqual(handlers)
  }))

test("the span of a batch links to each span once, and to 128 at most", () =>
  Effect.gen(function* () {
    const { spans, tracer } = yield* collectSpans
    yield* Effect.forEach(Arr.range(1, 150), (n) => Leaf.evaluate(`${n}`, new Do({ times: 2 }))).pipe(
      Effect.withTracer(tracer)
    )
    const batches = Subscription.make("batches", { handleBatch: () => Effect.void })
    yield* Effect.scoped(Effect.zipRight(start(batches), caughtUp(batches))).pipe(Effect.withTracer(tracer))
    const { events } = yield* EventFeed.read()
    const stored = Arr.dedupe(events.map(({ traceparent }) => traceparent))
    expect(stored).toHaveLength(150)
    expect(handling(spans).map(linksOfSpan)).toEqual([stored.slice(0, 128)])
  }))

test("without a tracer a handler has no span of its own", () =>
  Effect.gen(function* () {
    yield* commit(event("a", 1))
    let span: unknown
    const looking = Subscription.make("looking", {
      handle: () => Effect.map(Effect.option(Effect.currentSpan), (found) => (span = found))
    })
    yield* Effect.scoped(Effect.zipRight(start(looking), caughtUp(looking)))
    expect(span).toEqual(Option.none())
  }))

it("a stored text that is no trace context is left out of the links", () => {
  const good = `00-${"a".repeat(32)}-${"b".repeat(16)}-01`
  const bad = [
    "",
    "x",
    `01-${good.slice(3)}`,
    good.toUpperCase(),
    `${good}-1`,
    `${good}\n`,
    7,
    null,
    {}
  ] as ReadonlyArray<string>
  expect(linksOf([...bad, good, good].map((traceparent) => ({ traceparent }))).map(({ span }) => span.traceId)).toEqual(
    ["a".repeat(32)]
  )
})

it.live("a row with a bad traceparent is read, handled, and linked to nothing", () =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const { spans, tracer } = yield* collectSpans
    yield* Leaf.evaluate("a", once)
    yield* sql`update maestro.event_log set traceparent = 'no trace at all'`
    const handled: Array<string> = []
    const reading = Subscription.make("reading", {
      handle: ({ id }) => Effect.sync(() => handled.push(id))
    })
    yield* Effect.scoped(Effect.zipRight(start(reading), caughtUp(reading))).pipe(Effect.withTracer(tracer))
    expect(handled).toEqual(["a"])
    expect(handling(spans).map(linksOfSpan)).toEqual([[]])
    const store = yield* StoreAdapter.StoreAdapter
    expect(yield* store.getEvents("Leaf/a", 1)).toHaveLength(1)
  }).pipe(Effect.provide(Chain.layer.pipe(Layer.provideMerge(SqlStore.layer), Layer.provideMerge(layerPg()))))
)
