/** An account whose events have a history, and events as older and newer releases have stored them. */

import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate, type Event, StoreAdapter, Timestamp, Upcast } from "effect-maestro"

export class Opened extends Schema.TaggedClass<Opened>()("Opened", { owner: Schema.String }) {}
export class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", {
  amount: Schema.Number,
  currency: Schema.String,
  by: Schema.Literal("unknown", "clerk")
}) {}
export class Withdrawn extends Schema.TaggedClass<Withdrawn>()("Withdrawn", { amount: Schema.Number }) {}

export const Today = Schema.Union(Opened, Deposited, Withdrawn)

export const V1 = Schema.Struct({ amount: Schema.Number })
export const V2 = Schema.Struct({ amount: Schema.Number, currency: Schema.String })
export const V4 = Schema.Struct({ cents: Schema.Number })

export const toV3 = Upcast.from(1, V1).pipe(
  Upcast.to(2, V2, (old) => ({ ...old, currency: "EUR" })),
  Upcast.toEvent(3, (old) => ({ ...old, by: "unknown" }))
)

export const Events = Upcast.events(Today, {
  Deposited: toV3.pipe(
    Upcast.downcast(4, V4, ({ cents }) => new Deposited({ amount: cents / 100, currency: "EUR", by: "clerk" }))
  ),
  PaidIn: Upcast.renamed("Deposited"),
  Moved: Upcast.from(1, V1).pipe(
    Upcast.toEvents(({ amount }) => [
      new Withdrawn({ amount }),
      { _tag: "Deposited", amount, currency: "USD", by: "unknown" }
    ])
  ),
  Doubled: Upcast.from(1, V1).pipe(
    Upcast.toEvents(({ amount }) => [new Withdrawn({ amount }), new Withdrawn({ amount: amount + 1 })])
  ),
  Viewed: Upcast.dropped
})

/** The types of the log that are read as deposits or withdrawals. A type that is split may be read as anything. */
export const storedTypes = {
  deposits: ["Deposited", "PaidIn", "Moved", "Doubled"],
  withdrawals: ["Withdrawn", "Moved", "Doubled"]
}

/** One line for each event that was folded, or handled. */
export const lineOf = (event: typeof Today.Type): string => {
  switch (event._tag) {
    case "Opened":
      return `opened ${event.owner}`
    case "Deposited":
      return `+${event.amount} ${event.currency} ${event.by}`
    case "Withdrawn":
      return `-${event.amount}`
  }
}

const step = (state: ReadonlyArray<string>, event: typeof Today.Type): ReadonlyArray<string> => [
  ...state,
  lineOf(event)
]

export const definition = {
  state: Schema.Array(Schema.String),
  initialState: [],
  events: Events,
  commands: Today,
  decide: {
    Opened: (command: Opened) => Effect.succeed([command]),
    Deposited: (command: Deposited) => Effect.succeed([command]),
    Withdrawn: (command: Withdrawn) => Effect.succeed([command])
  },
  evolve: { Opened: step, Deposited: step, Withdrawn: step }
}

export const Account = Aggregate.make("Account", definition)

type Stored = readonly [type: string, version: number, body: Event.Event["body"]]

export const log: ReadonlyArray<Stored> = [
  ["Opened", 1, { owner: "Ada" }],
  ["Deposited", 1, { amount: 1 }],
  ["Deposited", 2, { amount: 2, currency: "CHF" }],
  ["Deposited", 3, { amount: 3, currency: "SEK", by: "clerk" }],
  ["PaidIn", 1, { amount: 4 }],
  ["PaidIn", 3, { amount: 5, currency: "SEK", by: "clerk" }],
  ["Moved", 1, { amount: 6 }],
  ["Viewed", 7, { anything: true }],
  ["Doubled", 1, { amount: 7 }],
  ["Deposited", 4, { cents: 900 }]
]

/** How the log is read: the sequence, the part if it is not the first, and the event. */
export const read: ReadonlyArray<readonly [sequence: number, part: number | undefined, line: string]> = [
  [1, undefined, "opened Ada"],
  [2, undefined, "+1 EUR unknown"],
  [3, undefined, "+2 CHF unknown"],
  [4, undefined, "+3 SEK clerk"],
  [5, undefined, "+4 EUR unknown"],
  [6, undefined, "+5 SEK clerk"],
  [7, undefined, "-6"],
  [7, 2, "+6 USD unknown"],
  [9, undefined, "-7"],
  [9, 2, "-8"],
  [10, undefined, "+9 EUR clerk"]
]

export const lines = read.map(([, , line]) => line)

/** Stores events as they are, from the sequence on. */
export const store = (aggregateId: string, events: ReadonlyArray<Stored>, first = 1) =>
  Effect.gen(function* () {
    const store = yield* StoreAdapter.StoreAdapter
    const { now } = yield* Timestamp.HybridClock
    const stamped = yield* Effect.forEach(events, ([type, version, body], index) =>
      Effect.map(now, (timestamp) => ({
        timestamp,
        aggregateId,
        sequence: first + index,
        type,
        version,
        body,
        metadata: {}
      }))
    )
    yield* store.commitEvents(stamped)
  })
