/** Snapshots after a release: void where the state's schema or version, or the history of events, has changed. */
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { Aggregate, MemoryStore, StoreAdapter, Upcast } from "effect-maestro"
import { Account, Deposited, definition, Events, store, Today, V1, V2 } from "./releases.js"

const inRelease = <A, E>(
  effect: Effect.Effect<A, E, Aggregate.Instance<"Account"> | StoreAdapter.StoreAdapter>,
  { layer }: { readonly layer: Layer.Layer<Aggregate.Instance<"Account">, never, StoreAdapter.StoreAdapter> }
) => Effect.provide(effect, Layer.fresh(layer))

/** The state in which a number that the snapshot holds shows whether the snapshot was used. */
const nested = (place: Schema.Schema<{ readonly total: number }>, step: (total: number, amount: number) => number) =>
  Aggregate.make("Account", {
    ...definition,
    state: Schema.Struct({ places: Schema.Array(Schema.Struct({ of: place })) }),
    initialState: { places: [{ of: { total: 0 } }] },
    evolve: {
      Opened: (state) => state,
      Deposited: (state, { amount }) => ({
        places: state.places.map(({ of: { total } }) => ({ of: { total: step(total, amount) } }))
      }),
      Withdrawn: (state) => state
    }
  })

const Place = Schema.Struct({ total: Schema.Number })

for (const [what, changed] of [
  ["another filter", Schema.Struct({ total: Schema.NonNegative })],
  ["a brand", Schema.Struct({ total: Schema.Number.pipe(Schema.brand("Total")) })],
  ["a further optional field", Schema.Struct({ total: Schema.Number, unit: Schema.optional(Schema.String) })],
  ["an identifier of its own", Place.annotations({ identifier: "Place" })]
] as const) {
  it.effect(`a snapshot is void after a change of a nested schema of the state: ${what}`, () =>
    Effect.gen(function* () {
      yield* store("Account/a", [
        ["Deposited", 1, { amount: 1 }],
        ["Deposited", 1, { amount: 2 }]
      ])
      const before = nested(Place, (total, amount) => total + amount)
      yield* inRelease(before.snapshot("a"), before)
      // The next release folds otherwise, so its state shows where it comes from.
      const tenfold = (total: number, amount: number) => total + 10 * amount
      const same = nested(Schema.Struct({ total: Schema.Number }), tenfold)
      expect(yield* inRelease(same.fetch("a"), same)).toEqual({ places: [{ of: { total: 3 } }] })
      const after = nested(changed as unknown as typeof Place, tenfold)
      expect(yield* inRelease(after.fetch("a"), after)).toMatchObject({ places: [{ of: { total: 30 } }] })
    }).pipe(Effect.provide(MemoryStore.layer))
  )
}

it.effect("a snapshot is void when the history of events changes, also only in the text of a step", () =>
  Effect.gen(function* () {
    yield* store("Account/a", [
      ["Deposited", 1, { amount: 1 }],
      ["Deposited", 1, { amount: 2 }]
    ])
    yield* inRelease(Account.snapshot("a"), Account)
    const events = Upcast.events(Today, {
      Deposited: Upcast.from(1, V1).pipe(
        Upcast.to(2, V2, (old) => ({ ...old, currency: "USD" })),
        Upcast.toEvent(3, (old) => new Deposited({ ...old, by: "clerk" }))
      )
    })
    yield* store("Account/a", [["Deposited", 1, { amount: 3 }]], 3)
    const changed = Aggregate.make("Account", { ...definition, events })
    expect(yield* inRelease(changed.fetch("a"), changed)).toEqual(["+1 USD clerk", "+2 USD clerk", "+3 USD clerk"])
    expect(yield* inRelease(changed.replay("a", 2), changed)).toEqual(["+1 USD clerk", "+2 USD clerk"])
  }).pipe(Effect.provide(MemoryStore.layer))
)

it.effect("a snapshot that an older release made by a downcast is void for the release that wrote the events", () =>
  Effect.gen(function* () {
    const Cents = Schema.Struct({ cents: Schema.Number })
    const Euros = Schema.Struct({ euros: Schema.Number })
    class Paid extends Schema.TaggedClass<Paid>()("Paid", { euros: Schema.Number }) {}
    const release = (name: string, events: Schema.Schema<Paid, typeof Paid.Encoded>) =>
      Aggregate.make(name, {
        kind: "Account",
        state: Euros,
        initialState: { euros: 0 },
        events,
        commands: Schema.TaggedStruct("Pay", {}),
        decide: { Pay: () => Effect.succeed([]) },
        evolve: { Paid: (state, { euros }) => ({ euros: state.euros + euros }) }
      })
    const older = release(
      "Older",
      Upcast.events(Paid, {
        Paid: Upcast.since(1).pipe(Upcast.downcast(2, Cents, ({ cents }) => ({ euros: Math.floor(cents / 100) })))
      })
    )
    const newer = release(
      "Newer",
      Upcast.events(Paid, {
        Paid: Upcast.from(1, Euros).pipe(
          Upcast.to(2, Cents, ({ euros }) => ({ cents: 100 * euros })),
          Upcast.toEvent(3, ({ cents }) => ({ euros: cents / 100 }))
        )
      })
    )
    yield* store("Account/a", [
      ["Paid", 1, { euros: 1 }],
      ["Paid", 2, { cents: 199 }]
    ])
    yield* Effect.provide(older.snapshot("a"), Layer.fresh(older.layer))
    expect(yield* Effect.provide(older.fetch("a"), Layer.fresh(older.layer))).toEqual({ euros: 2 })
    expect(yield* Effect.provide(newer.fetch("a"), Layer.fresh(newer.layer))).toEqual({ euros: 2.99 })
  }).pipe(Effect.provide(MemoryStore.layer))
)

it.effect("a snapshot at a split event has all of its parts, and one at a dropped event has its sequence", () =>
  Effect.gen(function* () {
    const snapshots = yield* StoreAdapter.StoreAdapter
    const stored = [
      ["Doubled", 1, { amount: 1 }],
      ["Viewed", 1, {}],
      ["Doubled", 1, { amount: 5 }]
    ] as const
    for (const length of [1, 2, 3]) {
      yield* store("Account/a", stored.slice(length - 1, length), length)
      yield* inRelease(Account.snapshot("a"), Account)
      const snapshot = Option.getOrThrow(yield* snapshots.getSnapshot("Account/a", 1))
      const state = ["-1", "-2", "-5", "-6"].slice(0, length < 3 ? 2 : 4)
      expect(snapshot).toMatchObject({ sequence: length, body: { state } })
      expect(yield* inRelease(Account.root("a"), Account)).toEqual({ id: "a", sequence: length, state })
    }
    expect(Events).toBe(Account.events)
  }).pipe(Effect.provide(MemoryStore.layer))
)
