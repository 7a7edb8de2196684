/** The history of event types: every read of a stored event of an older release has the events of today. */
import { expect, it } from "@effect/vitest"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Aggregate, type Event, MemoryStore, StoreAdapter, Timestamp, Upcast } from "effect-maestro"

class Opened extends Schema.TaggedClass<Opened>()("Opened", { owner: Schema.String }) {}
class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", {
  amount: Schema.Number,
  currency: Schema.String,
  by: Schema.Literal("unknown", "clerk")
}) {}
class Withdrawn extends Schema.TaggedClass<Withdrawn>()("Withdrawn", { amount: Schema.Number }) {}
const Today = Schema.Union(Opened, Deposited, Withdrawn)

const V1 = Schema.Struct({ amount: Schema.Number })
const V2 = Schema.Struct({ amount: Schema.Number, currency: Schema.String })
const V4 = Schema.Struct({ cents: Schema.Number })

const Events = Upcast.events(Today, {
  Deposited: Upcast.from(1, V1).pipe(
    Upcast.to(2, V2, (old) => ({ ...old, currency: "EUR" })),
    Upcast.toEvent(3, (old) => ({ ...old, by: "unknown" })),
    Upcast.downcast(4, V4, ({ cents }) => new Deposited({ amount: cents / 100, currency: "EUR", by: "clerk" }))
  ),
  PaidIn: Upcast.renamed("Deposited"),
  Moved: Upcast.from(1, V1).pipe(
    Upcast.toEvents(({ amount }) => [
      new Withdrawn({ amount }),
      { _tag: "Deposited", amount, currency: "USD", by: "unknown" }
    ])
  ),
  Viewed: Upcast.dropped
})

const State = Schema.Array(Schema.String)

const Account = Aggregate.make("Account", {
  state: State,
  initialState: [],
  events: Events,
  commands: Deposited,
  decide: { Deposited: (command) => Effect.succeed([command]) },
  evolve: {
    Opened: (state, { owner }) => [...state, `opened ${owner}`],
    Deposited: (state, { amount, by, currency }) => [...state, `+${amount} ${currency} ${by}`],
    Withdrawn: (state, { amount }) => [...state, `-${amount}`]
  }
})

const stored: ReadonlyArray<readonly [type: string, version: number, body: Event.Event["body"]]> = [
  ["Opened", 1, { owner: "Ada" }],
  ["Deposited", 1, { amount: 1 }],
  ["Deposited", 2, { amount: 2, currency: "CHF" }],
  ["Deposited", 3, { amount: 3, currency: "SEK", by: "clerk" }],
  ["PaidIn", 1, { amount: 4 }],
  ["PaidIn", 3, { amount: 5, currency: "SEK", by: "clerk" }],
  ["Moved", 1, { amount: 6 }],
  ["Viewed", 7, { whatever: true }],
  ["Deposited", 4, { cents: 800 }]
]

const commit = (aggregateId: string, some = stored) =>
  Effect.gen(function* () {
    const store = yield* StoreAdapter.StoreAdapter
    const { now } = yield* Timestamp.HybridClock
    for (const [index, [type, version, body]] of some.entries()) {
      yield* store.commitEvents([
        { timestamp: yield* now, aggregateId, sequence: index + 1, type, version, body, metadata: {} }
      ])
    }
  })

const layer = Layer.provideMerge(Account.layer, MemoryStore.layer)

it.effect("a load folds the events of all older versions, in order", () =>
  Effect.gen(function* () {
    yield* commit("Account/a")
    const root = yield* Account.root("a")
    expect(root.state).toEqual([
      "opened Ada",
      "+1 EUR unknown",
      "+2 CHF unknown",
      "+3 SEK clerk",
      "+4 EUR unknown",
      "+5 SEK clerk",
      "-6",
      "+6 USD unknown",
      "+8 EUR clerk"
    ])
    expect(root.sequence).toBe(9)
    const history = Chunk.toReadonlyArray(yield* Stream.runCollect(Account.history("a")))
    expect(history.map(({ event, sequence }) => [sequence, event._tag])).toEqual([
      [1, "Opened"],
      [2, "Deposited"],
      [3, "Deposited"],
      [4, "Deposited"],
      [5, "Deposited"],
      [6, "Deposited"],
      [7, "Withdrawn"],
      [7, "Deposited"],
      [9, "Deposited"]
    ])
    for (const { event } of history) expect(event).toBeInstanceOf(Schema.is(Deposited)(event) ? Deposited : Object)
    expect(yield* Account.replay("a", 7)).toEqual(root.state.slice(0, 8))
    const written = yield* Account.evaluate("a", new Deposited({ amount: 9, currency: "EUR", by: "clerk" }))
    const store = yield* StoreAdapter.StoreAdapter
    expect(yield* store.getEvents("Account/a", 10)).toMatchObject([{ type: "Deposited", version: 3 }])
    expect(written.sequence).toBe(10)
  }).pipe(Effect.provide(layer))
)
