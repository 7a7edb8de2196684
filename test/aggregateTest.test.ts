/** The test kit: each assertion succeeds where it should, and fails with the message that explains it. */
import { expect, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as TestClock from "effect/TestClock"
import { Aggregate, StoreError, Subscription } from "effect-maestro"
import * as AggregateTest from "effect-maestro/AggregateTest"
import { describe } from "vitest"
import {
  Account,
  AlreadyOpen,
  Deposit,
  Deposited,
  definition,
  InsufficientFunds,
  Limits,
  Open,
  Opened,
  Touch,
  Withdraw,
  Withdrawn
} from "./account.js"
import { failureOf } from "./assertionFailure.js"

const account = AggregateTest.of(Account).provide(Limits.layer)
const opened = new Opened({ owner: "Ada" })

describe("when a command is evaluated", () => {
  it("thenEvents and thenState succeed for the events and the state that a store would have", () => {
    account
      .given(opened, new Deposited({ amount: 10 }))
      .when(new Withdraw({ amount: 4 }))
      .thenEvents(new Withdrawn({ amount: 4 }))
      .thenState({ owner: "Ada", balance: 6 })
  })

  it("other events fail with what was given, done, expected and got", () => {
    const message = failureOf(() =>
      account
        .given(opened)
        .when(new Deposit({ amount: 3 }))
        .thenEvents(new Deposited({ amount: 4 }), new Deposited({ amount: 3 }))
    )
    expect(message).toBe(`Deposit on Account "1" stores other events than expected

given
  Opened { owner: "Ada" }
when
  Deposit { amount: 3 }
then (- expected, + got)
  - Deposited { amount: 4 }
    Deposited { amount: 3 }`)
  })

  it("a refusal where events are expected is shown with its fields", () => {
    expect(
      failureOf(() =>
        account
          .given(opened)
          .when(new Withdraw({ amount: 3 }))
          .thenEvents(new Withdrawn({ amount: 3 }))
      )
    ).toContain(`
  - Withdrawn { amount: 3 }
  + fails with InsufficientFunds { balance: 0 }`)
  })

  it("thenFails takes a class, or an instance that the refusal must equal", () => {
    const refused = account.given(opened).when(new Withdraw({ amount: 3 }))
    refused.thenFails(InsufficientFunds).thenFails(new InsufficientFunds({ balance: 0 }))
    expect(failureOf(() => refused.thenFails(new InsufficientFunds({ balance: 1 })))).toContain(`
  - fails with InsufficientFunds { balance: 1 }
  + fails with InsufficientFunds { balance: 0 }`)
    expect(failureOf(() => account.when(new Open({ owner: "Ada" })).thenFails(AlreadyOpen))).toContain(`
  - fails with AlreadyOpen
  + Opened { owner: "Ada" }`)
  })

  it("a state that differs is shown field by field, and so is a refusal in place of a state", () => {
    const owner = "a name that is long enough for a state of several lines, because a line has a hundred characters"
    expect(
      failureOf(() =>
        account
          .given(new Opened({ owner }))
          .when(new Deposit({ amount: 3 }))
          .thenState({ owner, balance: 4 })
      )
    ).toContain(`
  -   balance: 4
  +   balance: 3`)
    expect(failureOf(() => account.given(opened).when(new Open({ owner })).thenState({ owner, balance: 0 }))).toContain(
      '+ fails with AlreadyOpen { owner: "Ada" }'
    )
  })

  it("thenNothing succeeds for a command without events, and fails for events and for refusals", () => {
    account.given(opened).when(new Touch()).thenNothing().thenState({ owner: "Ada", balance: 0 })
    expect(failureOf(() => account.when(new Open({ owner: "Ada" })).thenNothing())).toContain(`
  - (no events)
  + Opened { owner: "Ada" }`)
    expect(
      failureOf(() =>
        account
          .given(opened)
          .when(new Open({ owner: "Eve" }))
          .thenNothing()
      )
    ).toContain("+ fails with AlreadyOpen")
  })

  it("a handler that throws is shown with its exception, and is no refusal", () => {
    const Broken = Aggregate.make("Broken", {
      ...definition,
      decide: {
        ...definition.decide,
        Touch: (): Effect.Effect<ReadonlyArray<Deposited>> => {
          throw new Error("a mistake in the handler")
        }
      }
    })
    const done = AggregateTest.of(Broken).provide(Limits.layer).when(new Touch())
    expect(failureOf(() => done.thenNothing())).toContain("+ dies: Error: a mistake in the handler")
    expect(failureOf(() => done.thenFails(StoreError.StoreError))).toContain("+ dies: Error: a mistake in the handler")
  })

  it("an event that no store would accept is the ValidationError of the command handler", () => {
    const Lossy = Aggregate.make("Lossy", {
      ...definition,
      decide: { ...definition.decide, Touch: () => Effect.succeed([new Deposited({ amount: -1 }, true)]) }
    })
    AggregateTest.of(Lossy).provide(Limits.layer).when(new Touch()).thenFails(StoreError.ValidationError)
  })

  it("a command is evaluated once for all assertions", () => {
    const limits = { perWithdrawal: 100, asked: 0 }
    const done = AggregateTest.of(Account)
      .provide(Layer.succeed(Limits, limits))
      .given(opened, new Deposited({ amount: 10 }))
      .when(new Withdraw({ amount: 4 }))
    done.thenEvents(new Withdrawn({ amount: 4 })).thenState({ owner: "Ada", balance: 6 })
    expect(failureOf(() => done.thenNothing())).toContain("+ Withdrawn { amount: 4 }")
    expect(limits.asked).toBe(1)
  })

  it.each([10, 1])("a failure is an error whose first frame is the line of the test (stackTraceLimit %d)", (limit) => {
    const usual = Error.stackTraceLimit
    Error.stackTraceLimit = limit
    try {
      account.when(new Touch()).thenFails(StoreError.StoreError)
      expect.unreachable()
    } catch (error) {
      expect(error).toBeInstanceOf(AggregateTest.AssertionFailed)
      expect(error).toMatchObject({ name: "AssertionError", _tag: "AssertionFailed" })
      const frames = String(error instanceof Error && error.stack).split("\n    at ")
      expect(frames[1]).toContain("aggregateTest.test.ts")
      expect(Error.stackTraceLimit).toBe(limit)
    } finally {
      Error.stackTraceLimit = usual
    }
  })
})

describe("given events", () => {
  it("one that can't be stored fails the test, with the reason", () => {
    const unchecked = new Deposited({ amount: -1 }, true)
    expect(failureOf(() => account.given(opened, unchecked).when(new Touch()).thenNothing())).toContain(
      "a given event of Account can't be stored"
    )
  })

  it("a stored form that no store has fails the test, with the reason", () => {
    const given = account.givenStored({ type: "Opened", version: 0, body: {} })
    expect(failureOf(() => given.when(new Touch()).thenNothing())).toContain(`the given events can't be stored

given
  stored { type: "Opened", version: 0, body: {} }
problem
  `)
  })

  it("those of several aggregates are kept apart, and the message names each", () => {
    const two = account
      .id("ada")
      .given(opened)
      .id("bob")
      .given(new Opened({ owner: "Bob" }))
    two.when(new Open({ owner: "Eve" })).thenFails(new AlreadyOpen({ owner: "Bob" }))
    expect(failureOf(() => two.when(new Deposit({ amount: 1 })).thenNothing())).toContain(`given Account "ada"
  Opened { owner: "Ada" }
given Account "bob"
  Opened { owner: "Bob" }
when`)
  })

  it("a scenario is a value: a step leaves the one before as it was", () => {
    const base = account.given(opened)
    base.given(new Deposited({ amount: 5 }))
    base.when(new Touch()).thenState({ owner: "Ada", balance: 0 })
  })

  it("an aggregate with typed ids has an id that its schema accepts", () => {
    const Numbered = Aggregate.make("Numbered", {
      ...definition,
      id: Schema.TemplateLiteral("account-", Schema.Number)
    })
    AggregateTest.of(Numbered).provide(Limits.layer).given(opened).when(new Touch()).thenNothing()
    AggregateTest.of(Numbered).provide(Limits.layer).id("account-7").given(opened).when(new Touch()).thenNothing()
  })
})

class Started extends Schema.TaggedClass<Started>()("Started", { at: Schema.Number }) {}
class Stopped extends Schema.TaggedClass<Stopped>()("Stopped", { after: Schema.Number }) {}
class Start extends Schema.TaggedClass<Start>()("Start", {}) {}
class Stop extends Schema.TaggedClass<Stop>()("Stop", {}) {}

const Timer = Aggregate.make("Timer", {
  state: Schema.Number,
  initialState: 0,
  events: Schema.Union(Started, Stopped),
  commands: Schema.Union(Start, Stop),
  decide: {
    Start: () => Effect.map(Clock.currentTimeMillis, (at) => [new Started({ at })]),
    Stop: (_, { state }) => Effect.map(Clock.currentTimeMillis, (now) => [new Stopped({ after: now - state })])
  },
  evolve: { Started: (_, { at }) => at, Stopped: (at) => at }
})

describe("time", () => {
  it("at sets the time of handlers, also to one in the past", () => {
    const noon = DateTime.unsafeMake("2026-01-01T12:00:00Z")
    const start = DateTime.toEpochMillis(noon)
    AggregateTest.of(Timer)
      .given(new Started({ at: start }))
      .at(DateTime.addDuration(noon, "1 minute"))
      .when(new Stop())
      .thenEvents(new Stopped({ after: 60_000 }))
    AggregateTest.of(Timer)
      .at(new Date(start))
      .when(new Start())
      .thenEvents(new Started({ at: start }))
  })

  it("an invalid date is a TypeError", () => {
    expect(() => account.at(new Date("never"))).toThrow(new TypeError("`at` of a test was given an invalid date"))
  })

  it.effect("under TestClock the assertions as effects have its time, and no event is ClockDrift", () =>
    Effect.gen(function* () {
      yield* TestClock.setTime(5000)
      yield* AggregateTest.of(Timer)
        .at(DateTime.unsafeMake("2026-01-01"))
        .given(new Started({ at: 1 }))
        .when(new Start())
        .effect.thenEvents(new Started({ at: Date.parse("2026-01-01") }))
      yield* AggregateTest.of(Timer)
        .when(new Start())
        .effect.thenEvents(new Started({ at: 5000 }))
    })
  )
})

class Rates extends Context.Tag("test/Rates")<Rates, { readonly rate: Effect.Effect<number> }>() {
  static readonly layer = Layer.succeed(Rates, { rate: Effect.promise(() => Promise.resolve(2)) })
}
const Exchange = Aggregate.make("Exchange", {
  state: Schema.Number,
  initialState: 0,
  events: Deposited,
  commands: Deposit,
  decide: {
    Deposit: ({ amount }) =>
      Effect.flatMap(Rates, ({ rate }) => Effect.map(rate, (rate) => [new Deposited({ amount: amount * rate })]))
  },
  evolve: { Deposited: (balance, { amount }) => balance + amount }
})

describe("handlers that wait", () => {
  const done = () =>
    AggregateTest.of(Exchange)
      .provide(Rates.layer)
      .when(new Deposit({ amount: 2 }))

  it("fail a synchronous assertion, which names the other forms", () => {
    expect(failureOf(() => done().thenEvents(new Deposited({ amount: 4 })))).toContain("use `.promise` or `.effect`")
  })

  it("are tested by promises, which reject with the failure", async () => {
    await done().promise.thenEvents(new Deposited({ amount: 4 }))
    await done().promise.thenState(4)
    await expect(done().promise.thenNothing()).rejects.toThrow("+ Deposited { amount: 4 }")
  })

  it("no assertion is a method then, so that await leaves the result of a command as it is", async () => {
    const result = done()
    expect(await Promise.resolve(result)).toBe(result)
  })
})

it("a layer of the test may have layers of other aggregates on the store of the test", () => {
  class Credited extends Schema.TaggedClass<Credited>()("Credited", {}) {}
  class Credit extends Schema.TaggedClass<Credit>()("Credit", { account: Schema.String }) {}
  const Voucher = Aggregate.make("Voucher", {
    state: Schema.Boolean,
    initialState: false,
    events: Credited,
    commands: Credit,
    decide: {
      Credit: ({ account }) => Effect.as(Account.evaluate(account, new Deposit({ amount: 5 })), [new Credited()])
    },
    evolve: { Credited: () => true }
  })
  AggregateTest.of(Voucher)
    .provide(Account.layer.pipe(Layer.provide(Limits.layer)))
    .when(new Credit({ account: "a" }))
    .thenEvents(new Credited())
    .thenState(true)
})

describe("what is no aggregate", () => {
  it("throws a TypeError that names the operation and the value", () => {
    const refused: ReadonlyArray<readonly [value: unknown, shown: string]> = [
      [{}, "{}"],
      [undefined, "undefined"],
      [null, "null"],
      ["Account", '"Account"'],
      [Opened, "[function Opened]"]
    ]
    for (const [value, shown] of refused) {
      const none = value as typeof Account
      const operations: Readonly<Record<string, () => unknown>> = {
        "AggregateTest.of": () => AggregateTest.of(none),
        "AggregateTest.stored": () => AggregateTest.stored(none, { type: "Opened", body: {} }),
        "AggregateTest.sequences": () => AggregateTest.sequences(none, { provide: Limits.layer }),
        "`of` of a test": () => account.of(none),
        "`handledBy` of a test": () =>
          account.on(opened).handledBy(Subscription.on(Account, { Opened: () => Effect.void }), [none])
      }
      for (const [operation, run] of Object.entries(operations)) {
        expect(run).toThrow(TypeError)
        expect(run).toThrow(`${operation} takes an aggregate, which Aggregate.make returns, and was given ${shown}`)
      }
    }
  })
})
