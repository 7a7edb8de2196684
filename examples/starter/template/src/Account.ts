/** Accounts: what happened (events), what callers ask for (commands), and what is refused. */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate, Projection } from "effect-maestro"

/** Cents, so that sums are exact. */
const Amount = Schema.Int.pipe(Schema.positive())

export class Opened extends Schema.TaggedClass<Opened>()("Opened", { owner: Schema.String }) {}
export class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", { amount: Amount }) {}
export class Withdrawn extends Schema.TaggedClass<Withdrawn>()("Withdrawn", { amount: Amount }) {}

export class Open extends Schema.TaggedClass<Open>()("Open", { owner: Schema.NonEmptyString }) {}
export class Deposit extends Schema.TaggedClass<Deposit>()("Deposit", { amount: Amount }) {}
export class Withdraw extends Schema.TaggedClass<Withdraw>()("Withdraw", { amount: Amount }) {}

export class AlreadyOpen extends Schema.TaggedError<AlreadyOpen>()("AlreadyOpen", { owner: Schema.String }) {}
export class NotOpen extends Schema.TaggedError<NotOpen>()("NotOpen", {}) {}
export class InsufficientFunds extends Schema.TaggedError<InsufficientFunds>()("InsufficientFunds", {
  balance: Schema.Int
}) {}

const AccountEvent = Schema.Union(Opened, Deposited, Withdrawn)

/** A table that is written in the transaction of each commit. Raise `version` when it changes. */
export const Balances = Projection.makeSql({
  name: "balances",
  version: 1,
  tables: {
    balances: (sql) =>
      sql`create table balances (account text primary key, owner text not null, balance int not null check (balance >= 0))`
  },
  events: AccountEvent,
  project: {
    Opened: ({ owner }, { id }, sql) => sql`insert into balances (account, owner, balance) values (${id}, ${owner}, 0)`,
    Deposited: ({ amount }, { id }, sql) =>
      sql`update balances set balance = balance + ${amount} where account = ${id}`,
    Withdrawn: ({ amount }, { id }, sql) => sql`update balances set balance = balance - ${amount} where account = ${id}`
  }
})

export const Account = Aggregate.make("Account", {
  state: Schema.Struct({ owner: Schema.NullOr(Schema.String), balance: Schema.Int }),
  initialState: { owner: null, balance: 0 },
  events: AccountEvent,
  commands: Schema.Union(Open, Deposit, Withdraw),
  refusals: { Open: [AlreadyOpen], Deposit: [NotOpen], Withdraw: [NotOpen, InsufficientFunds] },
  decide: {
    Open: ({ owner }, { state }) =>
      state.owner === null ? Effect.succeed([new Opened({ owner })]) : new AlreadyOpen({ owner: state.owner }),
    Deposit: ({ amount }, { state }) =>
      state.owner === null ? new NotOpen() : Effect.succeed([new Deposited({ amount })]),
    Withdraw: ({ amount }, { state }) => {
      if (state.owner === null) return new NotOpen()
      return amount > state.balance
        ? new InsufficientFunds({ balance: state.balance })
        : Effect.succeed([new Withdrawn({ amount })])
    }
  },
  // Pure: it runs again whenever a state is loaded.
  evolve: {
    Opened: (state, { owner }) => ({ ...state, owner }),
    Deposited: (state, { amount }) => ({ ...state, balance: state.balance + amount }),
    Withdrawn: (state, { amount }) => ({ ...state, balance: state.balance - amount })
  },
  projections: [Balances]
})
