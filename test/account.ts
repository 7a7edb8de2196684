/** A bank account, for the tests of aggregates. */

import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { Aggregate } from "effect-maestro"

export class Opened extends Schema.TaggedClass<Opened>()("Opened", { owner: Schema.String }) {}
export class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", { amount: Schema.Positive }) {}
export class Withdrawn extends Schema.TaggedClass<Withdrawn>()("Withdrawn", { amount: Schema.Positive }) {}

export class Open extends Schema.TaggedClass<Open>()("Open", { owner: Schema.String }) {}
export class Deposit extends Schema.TaggedClass<Deposit>()("Deposit", { amount: Schema.Positive }) {}
export class Withdraw extends Schema.TaggedClass<Withdraw>()("Withdraw", { amount: Schema.Positive }) {}
export class Touch extends Schema.TaggedClass<Touch>()("Touch", {}) {}

export class AlreadyOpen extends Schema.TaggedError<AlreadyOpen>()("AlreadyOpen", { owner: Schema.String }) {}
export class InsufficientFunds extends Schema.TaggedError<InsufficientFunds>()("InsufficientFunds", {
  balance: Schema.Number
}) {}
export class LimitExceeded extends Schema.TaggedError<LimitExceeded>()("LimitExceeded", { limit: Schema.Number }) {}

/** What a withdrawal needs beside the state; it counts how often it was asked. */
export class Limits extends Context.Tag("test/Limits")<Limits, { readonly perWithdrawal: number; asked: number }>() {
  static readonly layer = Layer.sync(Limits, () => ({ perWithdrawal: 1000, asked: 0 }))
}

const State = Schema.Struct({ owner: Schema.NullOr(Schema.String), balance: Schema.Number })

export const definition = {
  state: State,
  initialState: { owner: null, balance: 0 },
  events: Schema.Union(Opened, Deposited, Withdrawn),
  commands: Schema.Union(Open, Deposit, Withdraw, Touch),
  evolve: {
    Opened: (state: typeof State.Type, event: Opened) => ({ ...state, owner: event.owner }),
    Deposited: (state: typeof State.Type, event: Deposited) => ({ ...state, balance: state.balance + event.amount }),
    Withdrawn: (state: typeof State.Type, event: Withdrawn) => ({ ...state, balance: state.balance - event.amount })
  },
  decide: {
    Open: ({ owner }: Open, { state }: Aggregate.Root<typeof State.Type>) =>
      state.owner === null ? Effect.succeed([new Opened({ owner })]) : new AlreadyOpen({ owner: state.owner }),
    Deposit: ({ amount }: Deposit) => Effect.succeed([new Deposited({ amount })]),
    Withdraw: ({ amount }: Withdraw, { state }: Aggregate.Root<typeof State.Type>) =>
      Effect.gen(function* () {
        const limits = yield* Limits
        limits.asked++
        if (amount > limits.perWithdrawal) return yield* new LimitExceeded({ limit: limits.perWithdrawal })
        if (amount > state.balance) return yield* new InsufficientFunds({ balance: state.balance })
        return [new Withdrawn({ amount })]
      }),
    Touch: () => Effect.succeed([])
  },
  retry: Schedule.recurs(50)
}

export const Account = Aggregate.make("Account", definition)

/** Snapshots every fifth event. */
export const SavingsAccount = Aggregate.make("SavingsAccount", { ...definition, snapshotEvery: 5 })
