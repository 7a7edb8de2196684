import { Console, Effect, Layer, Schema } from "effect"
import { Aggregate, MemoryStore } from "effect-maestro"

// Events are facts, commands are wishes, refusals are typed errors.
class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", { amount: Schema.Positive }) {}
class Withdrawn extends Schema.TaggedClass<Withdrawn>()("Withdrawn", { amount: Schema.Positive }) {}
class Deposit extends Schema.TaggedClass<Deposit>()("Deposit", { amount: Schema.Positive }) {}
class Withdraw extends Schema.TaggedClass<Withdraw>()("Withdraw", { amount: Schema.Positive }) {}
class InsufficientFunds extends Schema.TaggedError<InsufficientFunds>()("InsufficientFunds", {
  balance: Schema.Number
}) {}

const Account = Aggregate.make("Account", {
  state: Schema.Struct({ balance: Schema.Number }),
  initialState: { balance: 0 },
  events: Schema.Union(Deposited, Withdrawn),
  commands: Schema.Union(Deposit, Withdraw),
  decide: {
    Deposit: ({ amount }) => Effect.succeed([new Deposited({ amount })]),
    Withdraw: ({ amount }, { state }) =>
      amount > state.balance
        ? new InsufficientFunds({ balance: state.balance })
        : Effect.succeed([new Withdrawn({ amount })])
  },
  evolve: {
    Deposited: (state, { amount }) => ({ balance: state.balance + amount }),
    Withdrawn: (state, { amount }) => ({ balance: state.balance - amount })
  }
})

const program = Effect.gen(function* () {
  const id = yield* Account.newId
  yield* Account.evaluate(id, new Deposit({ amount: 100 }))
  yield* Account.evaluate(id, new Withdraw({ amount: 30 }))
  yield* Account.evaluate(id, new Withdraw({ amount: 300 })).pipe(
    Effect.catchTag("InsufficientFunds", ({ balance }) => Console.log(`Refused: only ${balance} left`))
  )
  yield* Console.log("Now:", yield* Account.fetch(id))
  yield* Console.log("After the first event:", yield* Account.replay(id, 1))
})

// For Postgres put SqlStore.layer over PgClient.layer here; nothing else changes.
const StoreLive = MemoryStore.layer

program.pipe(Effect.provide(Account.layer.pipe(Layer.provide(StoreLive))), Effect.runPromise)
