/** The test kit on stored events of older releases, and on random sequences of commands. */
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as FastCheck from "effect/FastCheck"
import * as Schema from "effect/Schema"
import { Aggregate, Upcast } from "effect-maestro"
import * as AggregateTest from "effect-maestro/AggregateTest"
import { describe } from "vitest"
import { Account, Deposit, definition, Limits, Touch } from "./account.js"
import { failureOf } from "./assertionFailure.js"

class Paid extends Schema.TaggedClass<Paid>()("Paid", { cents: Schema.Int }) {}
class Charged extends Schema.TaggedClass<Charged>()("Charged", { cents: Schema.Int }) {}

const Invoice = Aggregate.make("Invoice", {
  state: Schema.Int,
  initialState: 0,
  events: Upcast.events(Schema.Union(Paid, Charged), {
    Paid: Upcast.from(1, Schema.Struct({ euros: Schema.Number })).pipe(
      Upcast.toEvent(2, ({ euros }) => ({ cents: Math.round(euros * 100) }))
    ),
    PaidWithFee: Upcast.from(1, Schema.Struct({ euros: Schema.Number, fee: Schema.Int })).pipe(
      Upcast.toEvents(({ euros, fee }) => [
        { _tag: "Paid", cents: Math.round(euros * 100) },
        { _tag: "Charged", cents: fee }
      ])
    ),
    Viewed: Upcast.dropped
  }),
  commands: Schema.Union(Paid, Charged),
  decide: { Paid: (command) => Effect.succeed([command]), Charged: (command) => Effect.succeed([command]) },
  evolve: { Paid: (sum, { cents }) => sum + cents, Charged: (sum, { cents }) => sum - cents }
})

describe("stored events of older releases", () => {
  it("are read by the history of the aggregate: as one event, as several, or as none", () => {
    AggregateTest.stored(Invoice, { type: "Paid", body: { euros: 2.5 } }).reads(new Paid({ cents: 250 }))
    AggregateTest.stored(Invoice, { type: "Paid", version: 2, body: { cents: 7 } }).reads(new Paid({ cents: 7 }))
    AggregateTest.stored(Invoice, { type: "PaidWithFee", body: { euros: 1, fee: 3 } }).reads(
      new Paid({ cents: 100 }),
      new Charged({ cents: 3 })
    )
    AggregateTest.stored(Invoice, { type: "Viewed", body: {} }).readsNothing()
  })

  it("are given events, too", () => {
    AggregateTest.of(Invoice)
      .givenStored({ type: "PaidWithFee", body: { euros: 1, fee: 3 } }, { type: "Viewed", body: {} })
      .when(new Paid({ cents: 1 }))
      .thenState(98)
  })

  it("a wrong expectation fails with the stored event and both readings", () => {
    const stored = AggregateTest.stored(Invoice, { type: "Paid", body: { euros: 2.5 } })
    expect(
      failureOf(() => stored.reads(new Paid({ cents: 25 })))
    ).toBe(`a stored Paid of Invoice is read otherwise than expected

stored
  { type: "Paid", body: { euros: 2.5 } }
then (- expected, + got)
  - Paid { cents: 25 }
  + Paid { cents: 250 }`)
    expect(failureOf(() => stored.readsNothing())).toContain("- (no events)\n  + Paid { cents: 250 }")
    expect(failureOf(() => stored.isUnreadable())).toContain("- can't be read\n  + Paid { cents: 250 }")
  })

  it("isUnreadable takes a part of the reason", () => {
    const unknown = AggregateTest.stored(Invoice, { type: "Paid", version: 3, body: {} })
    unknown.isUnreadable()
    unknown.isUnreadable("newer than this release")
    expect(failureOf(() => unknown.isUnreadable("older"))).toContain("- can't be read: … older …")
    expect(failureOf(() => unknown.reads(new Paid({ cents: 1 })))).toContain("+ can't be read: ")
  })
})

const Amount = Schema.Int.pipe(Schema.between(1, 100))
class Moved extends Schema.TaggedClass<Moved>()("Moved", { by: Schema.Int }) {}
class Add extends Schema.TaggedClass<Add>()("Add", { amount: Amount }) {}
class Take extends Schema.TaggedClass<Take>()("Take", { amount: Amount }) {}
class OutOfStock extends Schema.TaggedError<OutOfStock>()("OutOfStock", {}) {}

const stock = {
  state: Schema.Struct({ count: Schema.Int }),
  initialState: { count: 0 },
  events: Moved,
  commands: Schema.Union(Add, Take),
  decide: {
    Add: ({ amount }: Add) => Effect.succeed([new Moved({ by: amount })]),
    Take: ({ amount }: Take, { state }: Aggregate.Root<{ readonly count: number }>) =>
      amount > state.count ? new OutOfStock() : Effect.succeed([new Moved({ by: -amount })])
  },
  evolve: { Moved: ({ count }: { readonly count: number }, { by }: Moved) => ({ count: count + by }) }
}
const Stock = Aggregate.make("Stock", stock)
const isNotNegative = ({ count }: { readonly count: number }) => count >= 0

describe("random sequences of commands", () => {
  it("keep an invariant that holds, replay to the state of the commands, and restore from snapshots", () => {
    const sequences = AggregateTest.sequences(Stock, { runs: 30, seed: 1 })
    sequences.keepInvariant(isNotNegative)
    sequences.replayToSameState()
    sequences.restoreFromSnapshots()
    AggregateTest.sequences(Account, { runs: 10, seed: 1, provide: Limits.layer }).keepInvariant(
      ({ balance }) => balance >= 0
    )
  })

  it("a broken invariant fails with the shortest sequence, in which each command is needed, and with the seed", () => {
    // The decision forgets large amounts, unless the stock is empty.
    const Wrong = Aggregate.make("Wrong", {
      ...stock,
      decide: {
        ...stock.decide,
        Take: ({ amount }, { state }) =>
          state.count === 0 || (amount > state.count && amount < 60)
            ? new OutOfStock()
            : Effect.succeed([new Moved({ by: -amount })])
      }
    })
    expect(
      failureOf(() => AggregateTest.sequences(Wrong, { seed: 7 }).keepInvariant(isNotNegative))
    ).toBe(`random commands of Wrong do not keep the invariant

the shortest sequence found, of 2 commands
  Add { amount: 1 }
  Take { amount: 60 }
seed
  7, to repeat it by the option \`seed\`
problem
  the invariant does not hold for the state { count: -59 }`)
  })

  it("a drawn seed repeats the failure", () => {
    const run = (seed?: number) =>
      failureOf(() => AggregateTest.sequences(Stock, { seed, maxLength: 5 }).keepInvariant(({ count }) => count < 10))
    const first = run()
    const seed = Number(/seed\n {2}(-?\d+)/.exec(first)?.[1])
    expect(run(seed)).toBe(first)
  })

  it("an invariant may throw, as an assertion of a test runner does", () => {
    expect(
      failureOf(() =>
        AggregateTest.sequences(Stock, { seed: 1 }).keepInvariant(({ count }) => expect(count).toBeLessThan(50))
      )
    ).toContain("the invariant throws for the state { count: 50 }:")
  })

  it("an evolve that is not pure is found by replaying", () => {
    let steps = 0
    const Impure = Aggregate.make("Impure", {
      ...stock,
      evolve: { Moved: ({ count }, { by }) => ({ count: count + by + (steps++ > 20 ? 1 : 0) }) }
    })
    expect(failureOf(() => AggregateTest.sequences(Impure, { seed: 1 }).replayToSameState())).toContain(
      "`evolve` must depend on nothing but the state and the event"
    )
  })

  it("a state that its schema can't encode, or changes, is found by snapshots", () => {
    const Limited = Aggregate.make("Limited", {
      ...stock,
      state: Schema.Struct({ count: Schema.Int.pipe(Schema.between(0, 40)) })
    })
    expect(failureOf(() => AggregateTest.sequences(Limited, { seed: 1 }).restoreFromSnapshots())).toContain(
      "can't be stored as a snapshot"
    )
    const Lossy = Aggregate.make("LossyState", {
      ...stock,
      state: Schema.Struct({
        count: Schema.transform(Schema.Number, Schema.Number, {
          decode: (stored) => stored,
          encode: (count) => Math.round(count / 10) * 10
        })
      })
    })
    expect(failureOf(() => AggregateTest.sequences(Lossy, { seed: 1 }).restoreFromSnapshots())).toContain(
      "the snapshot restores { count: "
    )
  })

  it("commands may be given, and sequences in which none is accepted fail", () => {
    const touches = FastCheck.constant(new Touch())
    expect(
      failureOf(() =>
        AggregateTest.sequences(Stock, {
          runs: 5,
          commands: FastCheck.constant(new Take({ amount: 1 }))
        }).keepInvariant(isNotNegative)
      )
    ).toContain("no random command of Stock was accepted")
    AggregateTest.sequences(Account, { runs: 5, commands: touches, provide: Limits.layer }).replayToSameState()
    const deposits = FastCheck.constant(new Deposit({ amount: 1 }))
    AggregateTest.sequences(Account, { runs: 5, commands: deposits, provide: Limits.layer }).replayToSameState()
  })

  it("a handler or an evolve that throws, dies or is interrupted for some commands breaks each property", () => {
    const large = (amount: number) => amount > 50
    const bug = new TypeError("a bug at a large amount")
    const failing: ReadonlyArray<() => Effect.Effect<never>> = [
      () => {
        throw bug
      },
      () => Effect.die(bug),
      () => Effect.interrupt
    ]
    const wrong = failing.map((fail) =>
      Aggregate.make("Failing", {
        ...stock,
        decide: {
          ...stock.decide,
          Add: ({ amount }) => (large(amount) ? fail() : Effect.succeed([new Moved({ by: amount })]))
        }
      })
    )
    const throwing = Aggregate.make("Failing", {
      ...stock,
      evolve: {
        Moved: ({ count }, { by }) => {
          if (large(by)) throw bug
          return { count: count + by }
        }
      }
    })
    for (const aggregate of [...wrong, throwing]) {
      const sequences = AggregateTest.sequences(aggregate, { seed: 1 })
      const messages = [
        failureOf(() => sequences.keepInvariant(() => true)),
        failureOf(() => sequences.replayToSameState()),
        failureOf(() => sequences.restoreFromSnapshots())
      ]
      for (const message of messages) {
        expect(message).toContain("of 1 command\n  Add { amount: 51 }\nseed")
        expect(message).toMatch(/a bug at a large amount|interrupted/)
      }
    }
  })

  it("an evolve that changes the state is found, and leaves the initial state of later tests as it is", () => {
    const list = Schema.Struct({ list: Schema.mutable(Schema.Array(Schema.Int)) })
    const pushing = (name: string, evolve: (state: typeof list.Type, by: number) => typeof list.Type) =>
      Aggregate.make(name, {
        state: list,
        initialState: { list: [] },
        events: Moved,
        commands: Add,
        decide: { Add: ({ amount }) => Effect.succeed([new Moved({ by: amount })]) },
        evolve: { Moved: (state, { by }) => evolve(state, by) }
      })
    const wrong = [
      pushing("Same", (state, by) => {
        state.list.push(by)
        return state
      }),
      pushing("CopiedAfterwards", (state, by) => {
        state.list.push(by)
        return { ...state }
      }),
      pushing("InitialCopied", (state, by) => {
        if (state.list.length === 0) return { list: [by] }
        state.list.push(by)
        return { ...state }
      })
    ]
    for (const aggregate of wrong) {
      const sequences = AggregateTest.sequences(aggregate, { seed: 1 })
      expect(failureOf(() => sequences.replayToSameState())).toMatch(/must not change/)
      expect(failureOf(() => sequences.restoreFromSnapshots())).toMatch(/must not change/)
      for (const amount of [1, 2]) {
        AggregateTest.of(aggregate)
          .when(new Add({ amount }))
          .thenState({ list: [amount] })
      }
    }
  })

  it("an invariant that returns a promise, an effect or another value fails", () => {
    const sequences = AggregateTest.sequences(Stock, { runs: 5, seed: 1 })
    const promised = (state: { readonly count: number }) => Promise.resolve(isNotNegative(state))
    // @ts-expect-error a promise is no result of an invariant
    expect(failureOf(() => sequences.keepInvariant(promised))).toContain("and returns a promise")
    // @ts-expect-error nor is an effect
    expect(failureOf(() => sequences.keepInvariant(() => Effect.succeed(false)))).toContain("and returns an effect")
    // @ts-expect-error nor is a number
    expect(failureOf(() => sequences.keepInvariant(() => 0))).toContain("and returns 0")
    // A value that the type hides, as the assertion of a test runner that waits.
    const rejected = (): void => Promise.reject(new Error("a late assertion")) as unknown as undefined
    expect(failureOf(() => sequences.keepInvariant(rejected))).toContain("and returns a promise")
  })

  it("a state with private fields is given to the invariant as it is", () => {
    class Total {
      readonly unit = "items"
      readonly #count: number
      constructor(count: number) {
        this.#count = count
      }
      get count(): number {
        return this.#count
      }
    }
    const state: Schema.Schema<Total, number> = Schema.transform(Schema.Int, Schema.instanceOf(Total), {
      decode: (count) => new Total(count),
      encode: ({ count }) => count
    })
    const Totals = Aggregate.make("Totals", {
      state,
      initialState: new Total(0),
      events: Moved,
      commands: Add,
      decide: { Add: ({ amount }) => Effect.succeed([new Moved({ by: amount })]) },
      evolve: { Moved: (total: Total, { by }: Moved) => new Total(total.count + by) }
    })
    const sequences = AggregateTest.sequences(Totals, { runs: 10, seed: 1 })
    sequences.keepInvariant(({ count }) => count >= 0)
    sequences.replayToSameState()
    sequences.restoreFromSnapshots()
  })

  it("a handler that waits fails the test", () => {
    const Waiting = Aggregate.make("Waiting", {
      ...definition,
      decide: { ...definition.decide, Touch: () => Effect.promise(() => Promise.resolve([])) }
    })
    const touches = FastCheck.constant(new Touch())
    expect(
      failureOf(() =>
        AggregateTest.sequences(Waiting, { commands: touches, provide: Limits.layer }).replayToSameState()
      )
    ).toContain("waits")
  })

  it("options that can't work throw a TypeError that names the option and the value", () => {
    const refused: ReadonlyArray<readonly [options: object | number, message: string]> = [
      [{ runs: 0 }, "runs of AggregateTest.sequences must be a whole number above 0, and is 0"],
      [{ runs: 1.5 }, "runs of AggregateTest.sequences must be a whole number above 0, and is 1.5"],
      [{ runs: "10" }, 'runs of AggregateTest.sequences must be a whole number above 0, and is "10"'],
      [
        { run: 10 },
        'AggregateTest.sequences has no option "run", and its options are runs, maxLength, seed, commands, provide'
      ],
      [{ maxLength: 0 }, "maxLength of AggregateTest.sequences must be a whole number above 0, and is 0"],
      [{ maxLength: -1 }, "maxLength of AggregateTest.sequences must be a whole number above 0, and is -1"],
      [{ seed: 0.5 }, "seed of AggregateTest.sequences must be a whole number, and is 0.5"],
      [{ seed: "7" }, 'seed of AggregateTest.sequences must be a whole number, and is "7"'],
      [
        { commands: [new Take({ amount: 1 })] },
        "commands of AggregateTest.sequences must be an arbitrary, such as `Arbitrary.make(schema)`, and is [Take { amount: 1 }]"
      ],
      [{ commands: Take }, "must be an arbitrary, such as `Arbitrary.make(schema)`, and is [function Take]"],
      [200, "AggregateTest.sequences takes options as an object, such as { runs: 200 }, and was given 200"]
    ]
    for (const [options, message] of refused) {
      const make = () => AggregateTest.sequences(Stock, options as object)
      expect(make).toThrow(TypeError)
      expect(make).toThrow(message)
    }
    AggregateTest.sequences(Stock, {
      runs: 1,
      maxLength: 1,
      seed: 3,
      commands: FastCheck.constant(new Add({ amount: 1 }))
    })
    AggregateTest.sequences(Stock, { seed: -3 }).keepInvariant(isNotNegative)
  })
})
