/** Aggregates with declared refusals, for the tests of `ClusterAggregate`. */
import { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate } from "effect-maestro"
import * as ClusterAggregate from "effect-maestro/ClusterAggregate"

export class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", {
  amount: Schema.Positive,
  at: Schema.optional(Schema.Date)
}) {}
export class Withdrawn extends Schema.TaggedClass<Withdrawn>()("Withdrawn", { amount: Schema.Positive }) {}

export class Deposit extends Schema.TaggedClass<Deposit>()("Deposit", {
  amount: Schema.Positive,
  at: Schema.optional(Schema.Date)
}) {}
export class Withdraw extends Schema.TaggedClass<Withdraw>()("Withdraw", { amount: Schema.Positive }) {}
export class Touch extends Schema.TaggedClass<Touch>()("Touch", {}) {}
/** Its handler dies. */
export class Break extends Schema.TaggedClass<Break>()("Break", {}) {}
/** Its handler fails with the failure of its own statement. */
export class Query extends Schema.TaggedClass<Query>()("Query", {}) {}

export class InsufficientFunds extends Schema.TaggedError<InsufficientFunds>()("InsufficientFunds", {
  balance: Schema.Number
}) {
  override get message(): string {
    return `the balance is ${this.balance}`
  }
}
export class Frozen extends Schema.TaggedError<Frozen>()("Frozen", {}) {}

const State = Schema.Struct({
  balance: Schema.Number,
  last: Schema.UndefinedOr(Schema.Date),
  names: Schema.ReadonlySet(Schema.String)
})

export const Id = Schema.String.pipe(Schema.pattern(/^[^!]*$/), Schema.brand("Id"))
export const id = (text: string) => Schema.decodeSync(Id)(text)

export const Account = Aggregate.make("Account", {
  id: Id,
  state: State,
  initialState: { balance: 0, last: undefined, names: new Set<string>() },
  events: Schema.Union(Deposited, Withdrawn),
  commands: Schema.Union(Deposit, Withdraw, Touch, Break, Query),
  refusals: { Withdraw: [InsufficientFunds], Deposit: [Frozen] },
  decide: {
    Deposit: ({ amount, at }) => (amount === 666 ? new Frozen() : Effect.succeed([new Deposited({ amount, at })])),
    Withdraw: ({ amount }, { state: { balance } }) =>
      amount > balance ? new InsufficientFunds({ balance }) : Effect.succeed([new Withdrawn({ amount })]),
    Touch: () => Effect.succeed([]),
    Break: () => Effect.dieMessage("the handler is broken"),
    Query: () => new SqlError({ cause: new Error("no such table"), message: "Failed to execute statement" })
  },
  evolve: {
    Deposited: (state, { amount, at }) => ({
      balance: state.balance + amount,
      last: at,
      names: new Set([...state.names, "Deposited"])
    }),
    Withdrawn: (state, { amount }) => ({ ...state, balance: state.balance - amount })
  }
})

export class Asked extends Schema.TaggedClass<Asked>()("Asked", {}) {}
/** Its handler deposits on an account. */
export class Ask extends Schema.TaggedClass<Ask>()("Ask", { account: Schema.String }) {}

/** An aggregate whose handler evaluates commands of accounts. */
export const Teller = Aggregate.make("Teller", {
  state: Schema.Number,
  initialState: 0,
  events: Asked,
  commands: Ask,
  refusals: { Ask: [Frozen] },
  decide: {
    Ask: ({ account }) => Effect.as(Account.evaluate(id(account), new Deposit({ amount: 1 })), [new Asked()])
  },
  evolve: { Asked: (count) => count + 1 }
})

export const Accounts = ClusterAggregate.make(Account, { timeout: "20 seconds" })
