/**
 * Commands on a bank account: results, refusals, reads, a conflict between two processes, and an expected sequence. Then a
 * read as of a time, and an aggregate whose ids have a schema.
 *
 * Run it by `npx tsx examples/aggregates/main.ts`. It uses the store in memory.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Console from "effect/Console"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Aggregate, EventFeed, MemoryStore } from "effect-maestro"
import { Account, Deposit, Open, Withdraw } from "./Account.js"
import { Branch, Move } from "./Branch.js"

/** What is stored with each event. */
const Audit = Aggregate.metadata(Schema.Struct({ user: Schema.NonEmptyString }))

const commands = Effect.gen(function* () {
  yield* Console.log("Commands")
  yield* Account.evaluate("ann", new Open({ owner: "Ann" }))
  yield* Account.evaluate("ann", new Deposit({ amount: 100 }))
  const { events, sequence, state } = yield* Account.evaluate("ann", new Withdraw({ amount: 30 }))
  yield* Console.log(`  ${JSON.stringify(events)} leads to ${JSON.stringify(state)} at sequence ${sequence}`)
  yield* Account.evaluate("ann", new Withdraw({ amount: 300 })).pipe(
    Effect.catchTag("InsufficientFunds", ({ balance }) => Console.log(`  refused: only ${balance} left`))
  )
  yield* Account.evaluateUnknown("ann", { _tag: "Deposit", amount: "all" }).pipe(
    Effect.catchTag("ValidationError", ({ message }) => Console.log(`  ${message}`))
  )
}).pipe(Audit.provide({ user: "teller 7" }))

const reads = Effect.gen(function* () {
  yield* Console.log("Reads")
  yield* Console.log(`  fetch:    ${JSON.stringify(yield* Account.fetch("ann"))}`)
  yield* Console.log(`  root:     ${JSON.stringify(yield* Account.root("ann"))}`)
  yield* Console.log(`  replay 2: ${JSON.stringify(yield* Account.replay("ann", 2))}`)
  yield* Stream.runForEach(Account.history("ann"), (stored) =>
    Effect.flatMap(Audit.of(stored), ({ user }) =>
      Console.log(`  history:  ${stored.sequence} ${stored.event._tag}, by ${user}`)
    )
  )
})

/** Two processes, as far as the store can tell: each has a layer of the aggregate with a state cache of its own. */
const conflict = Effect.gen(function* () {
  yield* Console.log("Conflict: two processes withdraw 50 of 70 at the same time")
  const processes = yield* Effect.replicateEffect(Layer.build(Layer.fresh(Account.layer)), 2)
  const withdraw = Account.evaluate("ann", new Withdraw({ amount: 50 })).pipe(
    Effect.map(({ state }) => `accepted: ${state.balance} left`),
    Effect.catchTag("InsufficientFunds", ({ balance }) => Effect.succeed(`refused: only ${balance} left`))
  )
  const results = yield* Effect.forEach(processes, (process) => Effect.provide(withdraw, process), {
    concurrency: "unbounded"
  })
  for (const result of results.sort()) yield* Console.log(`  ${result}`)
}).pipe(Effect.scoped)

const expectation = Effect.gen(function* () {
  yield* Console.log("Expected sequence")
  const seen = (yield* Account.root("ann")).sequence
  yield* Account.evaluate("ann", new Deposit({ amount: 1 }))
  yield* Account.evaluate("ann", new Deposit({ amount: 1 })).pipe(
    Aggregate.withExpectedSequence(seen),
    Effect.catchTag("UnexpectedSequence", ({ message }) => Console.log(`  ${message}`))
  )
})

const asOf = Effect.gen(function* () {
  yield* Console.log("As of a time")
  const evening = yield* DateTime.now
  yield* Effect.sleep("10 millis")
  yield* Account.evaluate("ann", new Deposit({ amount: 500 }))
  yield* Console.log(`  now:            ${(yield* Account.fetch("ann")).balance}`)
  yield* Console.log(`  that evening:   ${(yield* Account.replay("ann", { asOf: evening })).balance}`)
  const events = EventFeed.streamStored({ asOf: evening, filter: { kinds: [Account.kind] } })
  yield* Console.log(`  events by then: ${yield* Stream.runCount(events)}`)
})

const ids = Effect.gen(function* () {
  yield* Console.log("Ids with a schema")
  yield* Branch.evaluate("branch-7", new Move({ street: "Main Street" }))
  yield* Console.log(`  ${Branch.streamId("branch-7")} is in ${yield* Branch.fetch("branch-7")}`)
  const fromOutside = JSON.parse('"till-7"')
  yield* Branch.evaluate(fromOutside, new Move({ street: "Side Street" })).pipe(
    Effect.catchTag("ValidationError", ({ message }) => Console.log(`  ${message}`))
  )
})

Effect.all([commands, reads, conflict, expectation, asOf, ids], { discard: true }).pipe(
  Effect.provide(Layer.mergeAll(Account.layer, Branch.layer).pipe(Layer.provideMerge(MemoryStore.layer))),
  NodeRuntime.runMain
)
