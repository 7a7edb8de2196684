/** The domain of the cluster under faults: wallets with declared refusals, snapshots, and a projection of their balances. */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate, Projection } from "effect-maestro"
import * as ClusterAggregate from "effect-maestro/ClusterAggregate"

class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", { amount: Schema.Number }) {}
class Withdrawn extends Schema.TaggedClass<Withdrawn>()("Withdrawn", { amount: Schema.Number }) {}
export class Deposit extends Schema.TaggedClass<Deposit>()("Deposit", { amount: Schema.Number }) {}
export class Withdraw extends Schema.TaggedClass<Withdraw>()("Withdraw", { amount: Schema.Number }) {}
export class InsufficientFunds extends Schema.TaggedError<InsufficientFunds>()("InsufficientFunds", {
  account: Schema.String,
  balance: Schema.Number
}) {}

const Balances = Projection.makeSql({
  name: "balances",
  events: Schema.Union(Deposited, Withdrawn),
  project: {
    Deposited: ({ amount }, { id }, sql) =>
      sql`insert into balances as b values (${id}, ${amount})
        on conflict (account) do update set balance = b.balance + excluded.balance`,
    Withdrawn: ({ amount }, { id }, sql) => sql`update balances set balance = balance - ${amount} where account = ${id}`
  }
})

export const Wallet = Aggregate.make("Wallet", {
  state: Schema.Struct({ balance: Schema.Number }),
  initialState: { balance: 0 },
  events: Schema.Union(Deposited, Withdrawn),
  commands: Schema.Union(Deposit, Withdraw),
  refusals: { Withdraw: [InsufficientFunds] },
  decide: {
    Deposit: ({ amount }) => Effect.succeed([new Deposited({ amount })]),
    Withdraw: ({ amount }, { id, state }) =>
      amount > state.balance
        ? new InsufficientFunds({ account: id, balance: state.balance })
        : Effect.succeed([new Withdrawn({ amount })])
  },
  evolve: {
    Deposited: (state, { amount }) => ({ balance: state.balance + amount }),
    Withdrawn: (state, { amount }) => ({ balance: state.balance - amount })
  },
  projections: [Balances],
  snapshotEvery: 20
})

/** The times are short, so that a run has many messages that are sent again. */
export const Wallets = ClusterAggregate.make(Wallet, { timeout: "30 seconds", resendAfter: "1 second" })
