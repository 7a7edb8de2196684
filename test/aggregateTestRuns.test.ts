/** The test kit runs a handler once for each `when`, and takes nothing but the expected failure for one. */
// @effect-diagnostics globalErrorInEffectFailure:off
// Applications fail with such errors, too.
import { expect, it } from "@effect/vitest"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate, Subscription } from "effect-maestro"
import * as AggregateTest from "effect-maestro/AggregateTest"
import { describe } from "vitest"
import { failureFrom, failureOf } from "./assertionFailure.js"

class Added extends Schema.TaggedClass<Added>()("Added", { by: Schema.Int }) {}
class Refused extends Data.TaggedError("Refused") {}
class Other extends Data.TaggedError("Other") {}
class Plain extends Error {}

type Handling = (command: Added) => Effect.Effect<ReadonlyArray<Added>, Refused | Plain>

const counting = (handle: Handling) =>
  Aggregate.make("Counting", {
    state: Schema.Int,
    initialState: 0,
    events: Added,
    commands: Added,
    decide: { Added: handle },
    evolve: { Added: (sum, { by }) => sum + by }
  })

const one = new Added({ by: 1 })

/** What is no refusal of the class `Refused`, though neither it nor the class has a tag that is known. */
const others: ReadonlyArray<readonly [string, () => Effect.Effect<never, never>]> = [
  [
    "an exception",
    () => {
      throw new TypeError("a bug")
    }
  ],
  ["a defect", () => Effect.die("a bug")],
  ["a defect of that class", () => Effect.die(new Refused())],
  ["an interruption", () => Effect.interrupt],
  ["a text", () => Effect.fail("text") as Effect.Effect<never>],
  ["another error", () => Effect.fail(new Error("other")) as Effect.Effect<never>],
  ["another tagged error", () => Effect.fail(new Other()) as unknown as Effect.Effect<never>]
]

describe("thenFails expects a failure of the class", () => {
  for (const [name, fail] of others) {
    it(`and fails for ${name}`, async () => {
      const Failing = counting(fail)
      const done = AggregateTest.of(Failing).when(one)
      expect(failureOf(() => done.thenFails(Refused))).toContain("does not fail as expected")
      expect(failureOf(() => done.thenFails(Plain))).toContain("does not fail as expected")
      const Passing = counting((command) => Effect.succeed([command]))
      const handler = Subscription.on(Passing, {
        Added: (): Effect.Effect<void, Refused | Plain> => fail()
      })
      const reacted = AggregateTest.of(Passing).on(one).handledBy(handler)
      expect(await failureFrom(() => reacted.thenFails(Refused))).toContain("do not fail as expected")
      expect(await failureFrom(() => reacted.thenFails(Plain))).toContain("do not fail as expected")
    })
  }

  it("and succeeds for an instance, with a tag or without", () => {
    AggregateTest.of(counting(() => Effect.fail(new Refused())))
      .when(one)
      .thenFails(Refused)
    AggregateTest.of(counting(() => Effect.fail(new Plain("no"))))
      .when(one)
      .thenFails(Plain)
  })
})

describe("a test is about what it was given", () => {
  it("one when runs the handler once, also for assertions that overlap", async () => {
    let runs = 0
    const done = AggregateTest.of(
      counting((command) => {
        runs++
        return Effect.as(
          Effect.promise(() => Promise.resolve()),
          [command]
        )
      })
    ).when(one)
    await Promise.all([done.promise.thenEvents(one), done.promise.thenState(1), done.promise.thenEvents(one)])
    done.thenState(1)
    expect(runs).toBe(1)
  })

  it("given copies events and stored ones, so that a change afterwards changes no test", () => {
    const event = { _tag: "Added" as const, by: 1 }
    const body = { by: 2 }
    const Plus = Aggregate.make("Plus", {
      state: Schema.Int,
      initialState: 0,
      events: Schema.TaggedStruct("Added", { by: Schema.Int }),
      commands: Added,
      decide: { Added: ({ by }) => Effect.succeed([{ _tag: "Added", by }]) },
      evolve: { Added: (sum, { by }) => sum + by }
    })
    const given = AggregateTest.of(Plus).given(event).givenStored({ type: "Added", body })
    event.by = 100
    body.by = 100
    given.when(one).thenState(4)
  })
})
