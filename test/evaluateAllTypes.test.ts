/** The types of `evaluateAll`. `npm run check` checks these expectations, because they are types. */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate, Projection, type StoreError } from "effect-maestro"
import { expectTypeOf, it } from "vitest"
import {
  Account,
  type AlreadyOpen,
  Deposit,
  Deposited,
  definition,
  type InsufficientFunds,
  type LimitExceeded,
  Open,
  Opened,
  Withdraw,
  type Withdrawn
} from "./account.js"
import { Book, type Booked, Room, type Taken } from "./room.js"

type ErrorOf<F> = F extends Effect.Effect<infer _A, infer E, infer _R> ? E : never
type NeedsOf<F> = F extends Effect.Effect<infer _A, infer _E, infer R> ? R : never
type AccountResult = Aggregate.Evaluated<typeof definition.state.Type, Opened | Deposited | Withdrawn>

const withdraw = Account.command("a", new Withdraw({ amount: 1 }))
const deposit = Account.command("b", new Deposit({ amount: 1 }))
const book = Room.command("r", new Book({ guest: "Ann" }))

class Blocked extends Schema.TaggedError<Blocked>()("Blocked", {}) {}

it("the results are a tuple in the order of the commands", () => {
  const types = Effect.map(Aggregate.evaluateAll([withdraw, book, deposit]), (results) => {
    expectTypeOf(results).toEqualTypeOf<
      readonly [AccountResult, Aggregate.Evaluated<string | null, Booked>, AccountResult]
    >()
    const [from, booked] = results
    expectTypeOf(from.state.balance).toEqualTypeOf<number>()
    expectTypeOf(booked.state).toEqualTypeOf<string | null>()
  })
  expectTypeOf<NeedsOf<typeof types>>().toEqualTypeOf<Aggregate.Instance<"Account"> | Aggregate.Instance<"Room">>()
})

it("a list of any length returns a list", () => {
  const many = Aggregate.evaluateAll(["a", "b"].map((id) => Account.command(id, new Deposit({ amount: 1 }))))
  expectTypeOf<Effect.Effect.Success<typeof many>>().toEqualTypeOf<ReadonlyArray<AccountResult>>()
  expectTypeOf<ErrorOf<typeof many>>().toEqualTypeOf<Aggregate.Failure>()
  expectTypeOf<Effect.Effect.Success<ReturnType<typeof Aggregate.evaluateAll<readonly []>>>>().toEqualTypeOf<
    readonly []
  >()
})

it("the failures are exactly the refusals of these commands, by kind, and those of the store", () => {
  const deposits = Aggregate.evaluateAll([deposit])
  expectTypeOf<ErrorOf<typeof deposits>>().toEqualTypeOf<Aggregate.Failure>()
  const all = Aggregate.evaluateAll([withdraw, book, deposit])
  expectTypeOf<ErrorOf<typeof all>>().toEqualTypeOf<
    | StoreError.CommandRefused<"Account", InsufficientFunds | LimitExceeded>
    | StoreError.CommandRefused<"Room", Taken>
    | Aggregate.Failure
  >()
  const opening = Aggregate.evaluateAll([Account.command("a", new Open({ owner: "Ann" }))])
  expectTypeOf<ErrorOf<typeof opening>>().toEqualTypeOf<
    StoreError.CommandRefused<"Account", AlreadyOpen> | Aggregate.Failure
  >()
  const handled = all.pipe(
    Effect.catchTag("CommandRefused", (refused) => {
      if (refused.aggregate === "Room") {
        expectTypeOf(refused.refusal).toEqualTypeOf<Taken>()
        return Effect.succeed(refused.refusal.guest)
      }
      expectTypeOf(refused.refusal).toEqualTypeOf<InsufficientFunds | LimitExceeded>()
      return Effect.succeed(refused.id)
    })
  )
  expectTypeOf<ErrorOf<typeof handled>>().toEqualTypeOf<Aggregate.Failure>()
})

it("an expected sequence and a command id add one failure each", () => {
  const expecting = Aggregate.evaluateAll([
    Account.command("a", new Deposit({ amount: 1 }), { expectedSequence: 1 }),
    deposit
  ])
  expectTypeOf<ErrorOf<typeof expecting>>().toEqualTypeOf<StoreError.UnexpectedSequence | Aggregate.Failure>()
  const identified = Aggregate.evaluateAll([deposit]).pipe(Aggregate.withCommandId("c"))
  expectTypeOf<ErrorOf<typeof identified>>().toEqualTypeOf<StoreError.CommandIdReused | Aggregate.Failure>()
})

it("the failures of projections are refusals, except for those of the library", () => {
  const Mails = Projection.make({
    name: "mails",
    events: Schema.Union(Opened, Deposited),
    project: { Opened: () => new Blocked() }
  })
  const Mailed = Aggregate.make("Mailed", { ...definition, projections: [Mails] })
  const evaluating = Aggregate.evaluateAll([Mailed.command("a", new Deposit({ amount: 1 }))])
  expectTypeOf<ErrorOf<typeof evaluating>>().toEqualTypeOf<
    StoreError.CommandRefused<"Mailed", Blocked> | Aggregate.Failure
  >()
})

it("a command of another aggregate does not compile", () => {
  const types = () => [
    // @ts-expect-error no command of this aggregate
    Account.command("a", new Book({ guest: "Ann" })),
    // @ts-expect-error a wrong payload
    Account.command("a", { _tag: "Deposit", amount: "ten" }),
    // @ts-expect-error a command without its aggregate
    Aggregate.evaluateAll([new Deposit({ amount: 1 })])
  ]
  expectTypeOf(types).toBeFunction()
})
