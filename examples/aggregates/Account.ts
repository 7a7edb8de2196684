/**
 * A bank account: the aggregate of this guide.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate } from "effect-maestro"

// Events: what has happened.
export class Opened extends Schema.TaggedClass<Opened>()("Opened", { owner: Schema.NonEmptyString }) {}
export class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", { amount: Schema.Positive }) {}
export class Withdrawn extends Schema.TaggedClass<Withdrawn>()("Withdrawn", { amount: Schema.Positive }) {}

// Commands: what a caller asks for.
export class Open extends Schema.TaggedClass<Open>()("Open", { owner: Schema.NonEmptyString }) {}
export class Deposit extends Schema.TaggedClass<Deposit>()("Deposit", { amount: Schema.Positive }) {}
export class Withdraw extends Schema.TaggedClass<Withdraw>()("Withdraw", { amount: Schema.Positive }) {}

// Refusals: why a command is not accepted.
export class AlreadyOpen extends Schema.TaggedError<AlreadyOpen>()("AlreadyOpen", {}) {}
export class NotOpen extends Schema.TaggedError<NotOpen>()("NotOpen", {}) {}
export class InsufficientFunds extends Schema.TaggedError<InsufficientFunds>()("InsufficientFunds", {
  balance: Schema.Number
}) {}

export const Account = Aggregate.make("Account", {
  state: Schema.Struct({ owner: Schema.NullOr(Schema.String), balance: Schema.Number }),
  initialState: { owner: null, balance: 0 },
  events: Schema.Union(Opened, Deposited, Withdrawn),
  commands: Schema.Union(Open, Deposit, Withdraw),
  refusals: { Open: [AlreadyOpen], Deposit: [NotOpen], Withdraw: [NotOpen, InsufficientFunds] },

  decide: {
    Open: ({ owner }, { state }) =>
      state.owner === null ? Effect.succeed([new Opened({ owner })]) : new AlreadyOpen(),
    Deposit: ({ amount }, { state }) =>
      state.owner === null ? new NotOpen() : Effect.succeed([new Deposited({ amount })]),
    Withdraw: ({ amount }, { state: { balance, owner } }) => {
      if (owner === null) return new NotOpen()
      return amount > balance ? new InsufficientFunds({ balance }) : Effect.succeed([new Withdrawn({ amount })])
    }
  },

  evolve: {
    Opened: (state, { owner }) => ({ ...state, owner }),
    Deposited: (state, { amount }) => ({ ...state, balance: state.balance + amount }),
    Withdrawn: (state, { amount }) => ({ ...state, balance: state.balance - amount })
  },

  snapshotEvery: 100
})
