/** The test kit on projections and process managers. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { Aggregate, Projection, StoreError, Subscription } from "effect-maestro"
import * as AggregateTest from "effect-maestro/AggregateTest"
import { beforeAll, describe } from "vitest"
import { Account, Deposit, Deposited, definition, Limits, Opened, Withdraw, Withdrawn } from "./account.js"
import { failureFrom } from "./assertionFailure.js"
import { Book, Booked, Room, Taken } from "./room.js"

class NameTaken extends Schema.TaggedError<NameTaken>()("NameTaken", { owner: Schema.String }) {}

const events = definition.events

const refusalOf = (event: Opened | Deposited): NameTaken | undefined =>
  event._tag === "Opened" ? new NameTaken({ owner: event.owner }) : undefined

const Balances = Projection.makeSql({
  name: "balances",
  events,
  version: 2,
  tables: {
    balances: (sql) => [
      sql`create table balances (account text primary key, owner text not null, amount int not null default 0)`,
      sql`create unique index balances_owner on balances (owner)`
    ]
  },
  project: {
    Opened: ({ owner }, { id }, sql) => sql`insert into balances (account, owner) values (${id}, ${owner})`,
    Deposited: ({ amount }, { id }, sql) => sql`update balances set amount = amount + ${amount} where account = ${id}`
  },
  onConstraint: { balances_owner: (event) => refusalOf(event) }
})

const Log = Projection.make({
  name: "log",
  of: Account,
  project: {
    Withdrawn: ({ amount }, { sequence }) =>
      Effect.flatMap(
        SqlClient.SqlClient,
        (sql) => sql`insert into log (sequence, amount) values (${sequence}, ${amount})`
      )
  }
})

const given = AggregateTest.of(Account).given(new Opened({ owner: "Ada" }), new Deposited({ amount: 10 }))

describe("projections of given events", { timeout: 120_000 }, () => {
  beforeAll(() => AggregateTest.startDatabase(), 120_000)

  it("one that owns tables has them, and thenRows compares the rows of a query", async () => {
    await given
      .project(Balances)
      .thenRows(
        (sql) => sql`select account, owner, amount from ${sql("balances")}`,
        [{ account: "1", owner: "Ada", amount: 10 }]
      )
    const other = given.project(Balances).thenRows("select owner, amount from balances", [{ owner: "Ada", amount: 9 }])
    await expect(other).rejects.toThrow(`the query returns other rows than expected

given
  Opened { owner: "Ada" }
  Deposited { amount: 10 }
projected by
  balances
then (- expected, + got)
  - { owner: "Ada", amount: 9 }
  + { owner: "Ada", amount: 10 }`)
  })

  it("one without tables has those of setup, and nothing is left for the next test", async () => {
    const setup = "create table log (sequence int primary key, amount int not null)"
    const withdrawn = given.given(new Withdrawn({ amount: 4 }))
    await withdrawn.project(Log, { setup }).thenRows("select * from log", [{ sequence: 3, amount: 4 }])
    await withdrawn
      .project(Log, { setup: (sql) => [sql.unsafe(setup), sql`insert into log values (7, 7)`] })
      .thenRows("select sequence from log order by sequence", [{ sequence: 3 }, { sequence: 7 }])
    await expect(withdrawn.project(Log, { setup: "create tabel" }).thenRows("select 1", [])).rejects.toThrow(
      "the statements of `setup` fail"
    )
    await expect(given.project(Balances).thenRows("select * from log", [])).rejects.toThrow(
      'relation "log" does not exist'
    )
  })

  it("several projections run in the order of their list, event by event", async () => {
    await given
      .given(new Withdrawn({ amount: 4 }))
      .project([Balances, Log], { setup: "create table log (sequence int, amount int)" })
      .thenRows("select b.amount as balance, l.amount from balances b, log l", [{ balance: 10, amount: 4 }])
  })

  it("a violated constraint is the refusal that the projection declares, and a failed statement is a failure", async () => {
    const twice = given.id("2").given(new Opened({ owner: "Ada" }))
    await twice.project(Balances).thenFails(NameTaken)
    await twice.project(Balances).thenFails(new NameTaken({ owner: "Ada" }))
    await expect(twice.project(Balances).thenRows("select 1", [])).rejects.toThrow(
      '+ fails with NameTaken { owner: "Ada" }'
    )
    await expect(twice.project(Balances).thenFails(new NameTaken({ owner: "Bob" }))).rejects.toThrow(`
  - fails with NameTaken { owner: "Bob" }
  + fails with NameTaken { owner: "Ada" }`)
    await expect(given.project(Balances).thenFails(NameTaken)).rejects.toThrow("+ succeeds")
  })

  it("a deferred constraint is checked after each event, as at COMMIT", async () => {
    const Deferred = Projection.makeSql({
      name: "deferred",
      events,
      tables: {
        owners: (sql) => sql`create table owners (owner text constraint one_owner unique deferrable initially deferred)`
      },
      project: { Opened: ({ owner }, _, sql) => sql`insert into owners values (${owner})` },
      onConstraint: { one_owner: ({ owner }) => new NameTaken({ owner }) }
    })
    await given
      .id("2")
      .given(new Opened({ owner: "Ada" }))
      .project(Deferred)
      .thenFails(NameTaken)
  })

  it("tests that run concurrently do not see each other", async () => {
    const owners = ["Ada", "Bob", "Cid", "Dan"]
    await Promise.all(
      owners.map((owner) =>
        AggregateTest.of(Account)
          .given(new Opened({ owner }))
          .project(Balances)
          .thenRows("select owner from balances", [{ owner }])
      )
    )
  })

  it.effect("the assertions as effects run under TestClock", () =>
    given.project(Balances).effect.thenRows("select amount from balances", [{ amount: 10 }])
  )
})

class Requested extends Schema.TaggedClass<Requested>()("Requested", {
  account: Schema.String,
  guest: Schema.String
}) {}
class Request extends Schema.TaggedClass<Request>()("Request", { account: Schema.String, guest: Schema.String }) {}
class Mailer extends Context.Tag("test/KitMailer")<
  Mailer,
  { readonly send: (to: string) => Effect.Effect<void, NameTaken> }
>() {}

const Stay = Aggregate.make("Stay", {
  state: Schema.Boolean,
  initialState: false,
  events: Requested,
  commands: Request,
  decide: { Request: (command) => Effect.succeed([new Requested(command)]) },
  evolve: { Requested: () => true }
})

/** Books the room and charges for it; a room that is taken is paid back. */
const booking = Subscription.on(Stay, {
  Requested: ({ account, guest }, event) =>
    Room.evaluate(event.id, new Book({ guest })).pipe(
      Aggregate.withCommandId(Subscription.commandId("booking", event)),
      Effect.zipRight(Account.evaluate(account, new Withdraw({ amount: 5 }))),
      Effect.catchTag("Taken", () => Account.evaluate(account, new Deposit({ amount: 1 })))
    )
})

const rich = AggregateTest.of(Account)
  .provide(Limits.layer)
  .id("ada")
  .given(new Opened({ owner: "Ada" }), new Deposited({ amount: 10 }))
const requested = new Requested({ account: "ada", guest: "Ada" })

describe("process managers", () => {
  it("thenCommands has the commands that the handlers evaluate, with their aggregates, in order", async () => {
    const reacted = rich.of(Stay).id("r1").on(requested).handledBy(booking, [Account, Room])
    await reacted.thenCommands(
      Room.command("r1", new Book({ guest: "Ada" })),
      Account.command("ada", new Withdraw({ amount: 5 }))
    )
    expect(await failureFrom(() => reacted.thenCommands(Room.command("r2", new Book({ guest: "Ada" }))))).toBe(
      `the handlers evaluate other commands than expected

given
  Opened { owner: "Ada" }
  Deposited { amount: 10 }
on, of Stay "r1"
  Requested { account: "ada", guest: "Ada" }
then (- expected, + got)
  - Room "r2": Book { guest: "Ada" }
  + Room "r1": Book { guest: "Ada" }
  + Account "ada": Withdraw { amount: 5 }`
    )
    expect(await failureFrom(() => reacted.thenNothing())).toContain("- (no commands)")
  })

  it("a command whose handler asks for the position alone is one of them", async () => {
    const short = Subscription.on(Stay, {
      Requested: ({ account }) => Account.evaluate(account, new Withdraw({ amount: 5 }), { reply: "position" })
    })
    const reacted = rich.of(Stay).id("r1").on(requested).handledBy(short, [Account])
    await reacted.thenCommands(Account.command("ada", new Withdraw({ amount: 5 })))
  })

  it("commands are refused as in an application, and a refused command counts", async () => {
    await rich
      .of(Room)
      .id("r1")
      .given(new Booked({ guest: "Bob" }))
      .of(Stay)
      .id("r1")
      .on(requested)
      .handledBy([booking], [Account, Room])
      .thenCommands(Room.command("r1", new Book({ guest: "Ada" })), Account.command("ada", new Deposit({ amount: 1 })))
  })

  it("a failure of a handler fails thenCommands, and thenFails expects it", async () => {
    const plain = Subscription.on(Stay, {
      Requested: ({ guest }, { id }) => Room.evaluate(id, new Book({ guest }))
    })
    const reacted = AggregateTest.of(Room)
      .id("r1")
      .given(new Booked({ guest: "Bob" }))
      .of(Stay)
      .id("r1")
      .on(requested)
      .handledBy(plain, [Room])
    await reacted.thenFails(Taken)
    await reacted.thenFails(new Taken({ guest: "Bob" }))
    expect(await failureFrom(() => reacted.thenCommands(Room.command("r1", new Book({ guest: "Ada" }))))).toContain(
      `
    Room "r1": Book { guest: "Ada" }
  + fails with Taken { guest: "Bob" }`
    )
    expect(await failureFrom(() => reacted.thenFails(new Taken({ guest: "Eve" })))).toContain("- fails with Taken")
  })

  it("commands of evaluateAll are recorded one by one", async () => {
    const both = Subscription.on(Stay, {
      Requested: ({ account, guest }, { id }) =>
        Aggregate.evaluateAll([
          Room.command(id, new Book({ guest })),
          Account.command(account, new Withdraw({ amount: 5 }))
        ])
    })
    await rich
      .of(Stay)
      .id("r1")
      .on(requested)
      .handledBy(both, [Account, Room])
      .thenCommands(Room.command("r1", new Book({ guest: "Ada" })), Account.command("ada", new Withdraw({ amount: 5 })))
  })

  it("commands that a command handler evaluates belong to it, and are not recorded", async () => {
    const Outer = Aggregate.make("Outer", {
      state: Schema.Boolean,
      initialState: false,
      events: Requested,
      commands: Request,
      decide: {
        Request: (command) =>
          Effect.as(Room.evaluate("inner", new Book({ guest: command.guest })), [new Requested(command)])
      },
      evolve: { Requested: () => true }
    })
    await AggregateTest.of(Stay)
      .on(requested)
      .handledBy(Subscription.on(Stay, { Requested: (event) => Outer.evaluate("o", new Request(event)) }), [
        Room,
        Outer
      ])
      .thenCommands(Outer.command("o", new Request({ account: "ada", guest: "Ada" })))
  })

  it("an event that no handler is for fails the test", async () => {
    expect(
      await failureFrom(() =>
        AggregateTest.of(Room)
          .provide(Limits.layer)
          .on(new Booked({ guest: "Ada" }))
          .handledBy(booking, [Account, Room])
          .thenNothing()
      )
    ).toBe(`no handler is for the event

on, of Room "1"
  Booked { guest: "Ada" }
problem
  the handlers are for Requested`)
  })

  it("handlers with services take them from the layer of the test, and may wait", async () => {
    const mails: Array<string> = []
    const mailing = Subscription.on(Stay, {
      Requested: ({ guest }) => Effect.flatMap(Mailer, ({ send }) => send(guest))
    })
    const sending = Layer.succeed(Mailer, {
      send: (to) => Effect.promise(() => Promise.resolve(mails.push(to)))
    })
    await AggregateTest.of(Stay).provide(sending).on(requested).handledBy(mailing).thenNothing()
    expect(mails).toEqual(["Ada"])
    const refusing = Layer.succeed(Mailer, { send: (owner) => new NameTaken({ owner }) })
    await AggregateTest.of(Stay).provide(refusing).on(requested).handledBy(mailing).thenFails(NameTaken)
    const dying = AggregateTest.of(Stay).provide(refusing).on(requested).handledBy(mailing)
    expect(await failureFrom(() => dying.thenFails(StoreError.StoreError))).toContain("+ fails with NameTaken")
  })
})

describe("a projection test that goes wrong leaves nothing for the next one", { timeout: 120_000 }, () => {
  const withdrawn = given.given(new Withdrawn({ amount: 4 }))
  const setup = "create table log (sequence int primary key, amount int not null)"
  const succeeds = () => withdrawn.project(Log, { setup }).thenRows("select amount from log", [{ amount: 4 }])

  it("projections that never end fail, and the next test succeeds", async () => {
    const endless = Projection.make({ name: "endless", of: Account, project: { Withdrawn: () => Effect.never } })
    expect(await failureFrom(() => withdrawn.project(endless).thenRows("select 1", []))).toContain(
      "the projections do not end"
    )
    await succeeds()
  })

  it("SQL that ends the transaction fails, and the next test has a new database", async () => {
    const committing = Projection.makeSql({
      name: "committing",
      events,
      project: { Withdrawn: (_event, _stored, sql) => sql`commit` }
    })
    const leaving = { setup: `begin; ${setup}; commit;` }
    const wrong = [
      () => withdrawn.project(Log, leaving).thenRows("select amount from log", [{ amount: 4 }]),
      () => withdrawn.project(committing).thenFails(StoreError.StoreError)
    ]
    for (const each of wrong) {
      expect(await failureFrom(each)).toContain("the SQL of the test ends its transaction")
      await succeeds()
    }
  })

  it("exceptions and interruptions are no expected failure", async () => {
    for (const fail of [() => Effect.die(new NameTaken({ owner: "Ada" })), () => Effect.interrupt]) {
      const failing = Projection.make({
        name: "failing",
        of: Account,
        project: { Withdrawn: (): Effect.Effect<void, NameTaken> => fail() }
      })
      expect(await failureFrom(() => withdrawn.project(failing).thenFails(NameTaken))).toContain("does not fail as")
    }
    await succeeds()
  })

  it("a subscription in the place of its projections throws a TypeError that says what to give", async () => {
    const project = (value: unknown) => () => withdrawn.project(value as typeof Log, { setup })
    const following = Subscription.fromProjections("following", [Log])
    const handling = Subscription.make("handling", { handle: () => Effect.void })
    const refused: ReadonlyArray<readonly [value: unknown, message: string]> = [
      [following, '"following", a subscription: give its projections, as in `.project(subscription.projections)`'],
      [[following], '"following", a subscription: give its projections'],
      [handling, '"handling", a subscription: give the projections that it runs'],
      [{}, "`project` takes projections, which Projection.make and makeSql return, and was given {}"],
      [undefined, "`project` takes projections, which Projection.make and makeSql return, and was given undefined"],
      ["log", '`project` takes projections, which Projection.make and makeSql return, and was given "log"']
    ]
    for (const [value, message] of refused) {
      expect(project(value)).toThrow(TypeError)
      expect(project(value)).toThrow(message)
    }
    await withdrawn.project(following.projections, { setup }).thenRows("select amount from log", [{ amount: 4 }])
  })
})
