/**
 * A transfer between two accounts, with its entry in a journal: commands on several aggregates that take effect together.
 *
 * Run it by `npx tsx examples/transfers/main.ts`. It uses the store in memory.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Arr from "effect/Array"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { Aggregate, MemoryStore } from "effect-maestro"
import { Account, Deposit, Open, Withdraw } from "../aggregates/Account.js"

class Noted extends Schema.TaggedClass<Noted>()("Noted", { text: Schema.String }) {}
class Note extends Schema.TaggedClass<Note>()("Note", { text: Schema.String }) {}
class Full extends Schema.TaggedError<Full>()("Full", { entries: Schema.Int }) {}

/** A journal of two entries at most. */
const Journal = Aggregate.make("Journal", {
  state: Schema.Struct({ entries: Schema.Int }),
  initialState: { entries: 0 },
  events: Noted,
  commands: Note,
  refusals: { Note: [Full] },
  decide: {
    Note: ({ text }, { state }) => (state.entries === 2 ? new Full(state) : Effect.succeed([new Noted({ text })]))
  },
  evolve: { Noted: ({ entries }) => ({ entries: entries + 1 }) }
})

const transfer = (from: string, to: string, amount: number) =>
  Aggregate.evaluateAll([
    Account.command(from, new Withdraw({ amount })),
    Account.command(to, new Deposit({ amount })),
    Journal.command("transfers", new Note({ text: `${amount} from ${from} to ${to}` }))
  ])

const explained = (from: string, to: string, amount: number) =>
  transfer(from, to, amount).pipe(
    Effect.map(([paid, received]) => `${from} has ${paid.state.balance}, ${to} has ${received.state.balance}`),
    Effect.catchTag("CommandRefused", (refused) => {
      switch (refused.aggregate) {
        case "Journal":
          return Effect.succeed(`refused: the journal has ${refused.refusal.entries} entries`)
        case "Account":
          return Effect.succeed(`refused: ${refused.refusal._tag} of ${refused.id}, by command ${refused.index}`)
      }
    })
  )

const program = Effect.gen(function* () {
  yield* Aggregate.evaluateAll([
    Account.command("ann", new Open({ owner: "Ann" })),
    Account.command("ann", new Deposit({ amount: 100 })),
    Account.command("bob", new Open({ owner: "Bob" }))
  ])
  yield* Console.log("Transfers")
  yield* Console.log(`  ${yield* explained("ann", "bob", 30)}`)
  yield* Console.log(`  ${yield* explained("ann", "bob", 300)}`)
  yield* Console.log(`  ${yield* explained("ann", "cid", 10)}`)

  yield* Console.log("The same request twice")
  const request = transfer("bob", "ann", 5).pipe(Aggregate.withCommandId("request 7"))
  for (const [paid] of [yield* request, yield* request]) {
    yield* Console.log(`  bob has ${paid.state.balance}${paid.duplicate ? ", and this was a duplicate" : ""}`)
  }
  yield* Console.log(`  ${yield* explained("ann", "bob", 1)}`)

  yield* Console.log("An expected sequence")
  const { sequence } = yield* Account.root("ann")
  yield* Aggregate.evaluateAll([
    Account.command("ann", new Withdraw({ amount: 1 }), { expectedSequence: sequence - 1 }),
    Account.command("bob", new Deposit({ amount: 1 }))
  ]).pipe(Effect.catchTag("UnexpectedSequence", ({ message }) => Console.log(`  ${message}`)))

  const many = Arr.makeBy(1000, (n) => Account.command(`new ${n}`, new Open({ owner: "Dan" })))
  const opened = yield* Aggregate.evaluateAll(many)
  yield* Console.log(`One commit opened ${opened.length} accounts`)
})

program.pipe(
  Effect.provide(Layer.merge(Account.layer, Journal.layer).pipe(Layer.provideMerge(MemoryStore.layer))),
  NodeRuntime.runMain
)
