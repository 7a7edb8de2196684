/** The types of the test kit. `npm run check` checks these expectations, because they are types. */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { Aggregate, Projection, Subscription } from "effect-maestro"
import * as AggregateTest from "effect-maestro/AggregateTest"
import * as TestStore from "effect-maestro/TestStore"
import { expectTypeOf, it } from "vitest"
import {
  Account,
  AlreadyOpen,
  Deposit,
  Deposited,
  definition,
  InsufficientFunds,
  Limits,
  Open,
  Opened,
  Withdraw
} from "./account.js"
import { Book, Booked, Room, Taken } from "./room.js"

class Mailer extends Context.Tag("test/TypesMailer")<Mailer, { readonly send: Effect.Effect<void> }>() {}
class Other extends Schema.TaggedError<Other>()("Other", {}) {}

const Typed = Aggregate.make("Typed", { ...definition, id: Schema.TemplateLiteral("account-", Schema.Number) })

const Mails = Projection.make({
  name: "mails",
  of: Account,
  project: { Opened: () => Effect.flatMap(Mailer, ({ send }) => send) }
})
const Rows = Projection.make({
  name: "rows",
  of: Account,
  project: {
    Opened: ({ owner }) => Effect.flatMap(SqlClient.SqlClient, (sql) => sql`insert into rows values (${owner})`)
  }
})

const booking = Subscription.on(Account, {
  Opened: ({ owner }, { id }) => Room.evaluate(id, new Book({ guest: owner }))
})
const mailing = Subscription.on(Account, { Opened: () => Effect.flatMap(Mailer, ({ send }) => send) })

it("given takes events of the aggregate, when its commands, and thenFails the failures of that command", () => {
  // Never run.
  const types = () => {
    const account = AggregateTest.of(Account).provide(Limits.layer)
    account.given(new Opened({ owner: "a" }), new Deposited({ amount: 1 }))
    // @ts-expect-error a command is no event
    account.given(new Deposit({ amount: 1 }))
    // @ts-expect-error an event of another aggregate
    account.given(new Booked({ guest: "a" }))
    const opened = account.when(new Open({ owner: "a" }))
    opened.thenFails(AlreadyOpen).thenFails(new AlreadyOpen({ owner: "a" }))
    // @ts-expect-error Open is never refused for that
    opened.thenFails(new InsufficientFunds({ balance: 1 }))
    // @ts-expect-error Open is never refused for that
    opened.thenFails(InsufficientFunds)
    // @ts-expect-error a command of another aggregate
    account.when(new Book({ guest: "a" }))
    opened.thenState({ owner: "a", balance: 0 })
    // @ts-expect-error a state without a balance
    opened.thenState({ owner: "a" })
    // @ts-expect-error no events: that is thenNothing
    opened.thenEvents()
    // @ts-expect-error a command is no event
    opened.thenEvents(new Open({ owner: "a" }))
    expectTypeOf(opened.thenNothing()).toEqualTypeOf(opened)
    expectTypeOf(opened.promise.thenNothing()).toEqualTypeOf<Promise<void>>()
    expectTypeOf(opened.effect.thenNothing()).toEqualTypeOf<Effect.Effect<void, AggregateTest.AssertionFailed>>()
  }
  expectTypeOf(types).toBeFunction()
})

it("handlers with services compile after provide only, and ids are those of the aggregate", () => {
  // Never run.
  const types = () => {
    // @ts-expect-error Limits is missing
    AggregateTest.of(Account).when(new Withdraw({ amount: 1 }))
    AggregateTest.of(Room).when(new Book({ guest: "a" }))
    // @ts-expect-error Limits is missing
    AggregateTest.sequences(Account)
    AggregateTest.sequences(Account, { provide: Limits.layer, runs: 1 }).keepInvariant(({ balance }) => balance >= 0)
    AggregateTest.sequences(Room)
    AggregateTest.of(Typed).id("account-7")
    // @ts-expect-error no id of the aggregate
    AggregateTest.of(Typed).id("7")
    // What was provided stays for another aggregate.
    AggregateTest.of(Room)
      .provide(Limits.layer)
      .of(Account)
      .when(new Withdraw({ amount: 1 }))
  }
  expectTypeOf(types).toBeFunction()
})

it("a projection has SqlClient, and needs a layer for other services", () => {
  // Never run.
  const types = () => {
    AggregateTest.of(Account).project(Rows)
    AggregateTest.of(Account).project([Rows, Rows], { setup: "create table rows ()" })
    // @ts-expect-error Mailer is missing
    AggregateTest.of(Account).project(Mails)
    const mailer = Layer.succeed(Mailer, { send: Effect.void })
    const projected = AggregateTest.of(Account).provide(mailer).project([Mails, Rows])
    expectTypeOf(projected.thenRows("select 1", [])).toEqualTypeOf<Promise<void>>()
  }
  expectTypeOf(types).toBeFunction()
})

it("handlers of a process manager need the layers of the aggregates whose commands they evaluate", () => {
  // Never run.
  const types = () => {
    const opened = AggregateTest.of(Account).on(new Opened({ owner: "a" }))
    // @ts-expect-error Room is missing
    opened.handledBy(booking)
    const reacted = opened.handledBy(booking, [Room])
    reacted.thenCommands(Room.command("a", new Book({ guest: "a" })))
    reacted.thenFails(Taken)
    // @ts-expect-error no handler fails with it
    reacted.thenFails(Other)
    // @ts-expect-error Mailer is missing
    opened.handledBy([booking, mailing], [Room])
    // @ts-expect-error Limits, which Account needs, is missing
    opened.handledBy(booking, [Room, Account])
    const mailer = Layer.succeed(Mailer, { send: Effect.void })
    AggregateTest.of(Account)
      .provide(mailer)
      .on(new Opened({ owner: "a" }))
      .handledBy([booking, mailing], [Room])
    // @ts-expect-error a command is no event
    AggregateTest.of(Account).on(new Open({ owner: "a" }))
  }
  expectTypeOf(types).toBeFunction()
})

it("a stored event is read as events of the aggregate, and only commits lose races", () => {
  // Never run.
  const types = () => {
    const stored = AggregateTest.stored(Account, { type: "Opened", body: {} })
    stored.reads(new Opened({ owner: "a" }))
    // @ts-expect-error an event of another aggregate
    stored.reads(new Booked({ guest: "a" }))
    const controls = [
      TestStore.failNext("commitAll", "RetryCommand"),
      TestStore.failNext("getEvents", "Unavailable"),
      // @ts-expect-error a read has no conflict
      TestStore.failNext("getEvents", "RetryCommand"),
      // @ts-expect-error no reason
      TestStore.failNext("getEvents", "Whatever")
    ]
    expectTypeOf(controls).toExtend<ReadonlyArray<Effect.Effect<void, never, TestStore.TestStore>>>()
  }
  expectTypeOf(types).toBeFunction()
})
