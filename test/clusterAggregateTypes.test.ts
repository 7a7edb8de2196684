/** The types of `ClusterAggregate`: those of the local layer, and what does not compile. */
import type { Sharding } from "@effect/cluster/Sharding"
import { it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { Aggregate, type StoreError } from "effect-maestro"
import * as ClusterAggregate from "effect-maestro/ClusterAggregate"
import { expectTypeOf } from "vitest"
import {
  Account,
  Accounts,
  type Deposited,
  type Frozen,
  type InsufficientFunds,
  id,
  Touch,
  Withdraw
} from "./clusterBank.js"

type ErrorOf<F> = F extends Effect.Effect<infer _A, infer E, infer _R> ? E : never

it("layerClient provides what the local layer provides, and needs the cluster alone", () => {
  expectTypeOf(Accounts.layerClient).toEqualTypeOf<Layer.Layer<Aggregate.Instance<"Account">, never, Sharding>>()
  expectTypeOf(Accounts.layerRunner).toEqualTypeOf<
    Layer.Layer<never, never, Aggregate.Instance<"Account"> | Sharding>
  >()
  expectTypeOf<Layer.Layer.Success<typeof Account.layer>>().toEqualTypeOf<
    Layer.Layer.Success<typeof Accounts.layerClient>
  >()
})

it("each command has its own failures", () => {
  const withdraw = Account.evaluate(id("a"), new Withdraw({ amount: 1 }))
  expectTypeOf<ErrorOf<typeof withdraw>>().toEqualTypeOf<InsufficientFunds | Aggregate.Failure>()
  const touch = Account.evaluate(id("a"), new Touch())
  expectTypeOf<ErrorOf<typeof touch>>().toEqualTypeOf<Aggregate.Failure>()
})

it("the entity has a typed message for each command and each read", () => {
  const program = Effect.gen(function* () {
    const client = (yield* Accounts.entity.client)("a")
    const { Deposit, Withdraw, exists } = client
    expectTypeOf<Parameters<typeof exists>[0]>().toEqualTypeOf<{ readonly id: string }>()
    expectTypeOf<Frozen>().toExtend<ErrorOf<ReturnType<typeof Deposit>>>()
    expectTypeOf<InsufficientFunds>().toExtend<ErrorOf<ReturnType<typeof Withdraw>>>()
    expectTypeOf<InsufficientFunds>().not.toExtend<ErrorOf<ReturnType<typeof Deposit>>>()
    const answer = yield* Deposit({ id: "a", attempt: "1", command: { _tag: "Deposit", amount: 1, at: undefined } })
    // @ts-expect-error the short form has no events, and no state
    answer.events
    expectTypeOf(answer.position.sequence).toEqualTypeOf<number>()
    if ("events" in answer) {
      expectTypeOf(answer.events).toExtend<ReadonlyArray<{ readonly _tag: "Deposited" | "Withdrawn" }>>()
      expectTypeOf(answer.state.balance).toEqualTypeOf<number>()
    }
    // @ts-expect-error a command of another tag
    yield* Deposit({ id: "a", attempt: "1", command: new Withdraw({ amount: 1 }) })
  })
  expectTypeOf(program).toExtend<Effect.Effect<void, unknown, Sharding>>()
  expectTypeOf<Deposited["amount"]>().toEqualTypeOf<number>()
})

it("an aggregate whose refusals are not declared does not compile", () => {
  class Refused extends Schema.TaggedError<Refused>()("Refused", {}) {}
  const options = {
    state: Schema.Number,
    initialState: 0,
    events: Touch,
    commands: Touch,
    decide: { Touch: () => Effect.fail(new Refused()) },
    evolve: { Touch: (state: number) => state }
  }
  const Undeclared = Aggregate.make("Undeclared", options)
  // @ts-expect-error refusals must declare the failures of Touch
  ClusterAggregate.make(Undeclared)
  ClusterAggregate.make(Aggregate.make("Declared", { ...options, refusals: { Touch: [Refused] } }))
})

it("ClusterUnavailable is a reason of a StoreError", () => {
  expectTypeOf<"ClusterUnavailable">().toExtend<StoreError.StoreErrorReason>()
})
