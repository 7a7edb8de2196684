/** The types of the public interface. `npm run check` checks these expectations, because they are types. */

import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import type * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import type * as Stream from "effect/Stream"
import {
  Aggregate,
  type Event,
  type EventFeed,
  type MemoryStore,
  Projection,
  Rebuild,
  type SqlStore,
  type StoreAdapter,
  type StoreError,
  Subscription,
  type SubscriptionStore
} from "effect-maestro"
import { expectTypeOf, it } from "vitest"
import {
  Account,
  type AlreadyOpen,
  type Deposit,
  Deposited,
  definition,
  type InsufficientFunds,
  type LimitExceeded,
  type Limits,
  type Open,
  Opened,
  type Touch,
  type Withdraw,
  Withdrawn
} from "./account.js"

type ErrorOf<F> = F extends Effect.Effect<infer _A, infer E, infer _R> ? E : never
type NeedsOf<F> = F extends Effect.Effect<infer _A, infer _E, infer R> ? R : never
type FailureOfStore = StoreError.RetryCommand | StoreError.ValidationError | StoreError.StoreError

declare const id: string
declare const open: Open
declare const deposit: Deposit
declare const withdraw: Withdraw
declare const touch: Touch
declare const openOrWithdraw: Open | Withdraw

class Blocked extends Schema.TaggedError<Blocked>()("Blocked", {}) {}
class Mailer extends Context.Tag("test/Mailer")<Mailer, { readonly send: Effect.Effect<void, Blocked> }>() {}

const Mails = Projection.make({
  name: "mails",
  events: Schema.Union(Opened, Deposited),
  project: { Opened: () => Effect.flatMap(Mailer, ({ send }) => send) }
})

const Mailed = Aggregate.make("Mailed", { ...definition, projections: [Mails] })

it("evaluate fails with exactly the refusals of its command, and the failures of the store", () => {
  // Never run: `id` and the commands are declared only.
  const types = () => {
    const [opening, depositing, withdrawing, touching, either] = [
      Account.evaluate(id, open),
      Account.evaluate(id, deposit),
      Account.evaluate(id, withdraw),
      Account.evaluate(id, touch),
      Account.evaluate(id, openOrWithdraw)
    ] as const
    expectTypeOf<ErrorOf<typeof opening>>().toEqualTypeOf<AlreadyOpen | FailureOfStore>()
    expectTypeOf<ErrorOf<typeof depositing>>().toEqualTypeOf<FailureOfStore>()
    expectTypeOf<ErrorOf<typeof withdrawing>>().toEqualTypeOf<InsufficientFunds | LimitExceeded | FailureOfStore>()
    expectTypeOf<ErrorOf<typeof touching>>().toEqualTypeOf<FailureOfStore>()
    expectTypeOf<ErrorOf<typeof either>>().toEqualTypeOf<
      AlreadyOpen | InsufficientFunds | LimitExceeded | FailureOfStore
    >()
    expectTypeOf<Effect.Effect.Success<typeof opening>>().toEqualTypeOf<
      Aggregate.Evaluated<typeof definition.state.Type, Opened | Deposited | Withdrawn>
    >()
    return [
      // @ts-expect-error no command of this aggregate
      Account.evaluate(id, { _tag: "Close" }),
      // @ts-expect-error a wrong payload
      Account.evaluate(id, { _tag: "Deposit", amount: "ten" })
    ]
  }
  expectTypeOf(types).toBeFunction()
})

it("with reply: position a command has the failures of any other, and a result without state and events", () => {
  const types = () => {
    const whole = Account.evaluate(id, withdraw)
    const short = Account.evaluate(id, withdraw, { reply: "position" })
    const unknown = Account.evaluateUnknown(id, {}, { reply: "position" })
    const some = Account.evaluateUnknown(id, {}, { only: ["Open"], reply: "position" })
    expectTypeOf<Effect.Effect.Success<typeof short>>().toEqualTypeOf<Aggregate.Acknowledged>()
    expectTypeOf<ErrorOf<typeof short>>().toEqualTypeOf<ErrorOf<typeof whole>>()
    expectTypeOf<NeedsOf<typeof short>>().toEqualTypeOf<NeedsOf<typeof whole>>()
    expectTypeOf<Effect.Effect.Success<typeof unknown>>().toEqualTypeOf<Aggregate.Acknowledged>()
    expectTypeOf<Effect.Effect.Success<typeof some>>().toEqualTypeOf<Aggregate.Acknowledged>()
    expectTypeOf<ErrorOf<typeof some>>().toEqualTypeOf<AlreadyOpen | FailureOfStore>()
    expectTypeOf<Effect.Effect.Success<typeof whole>>().toExtend<Aggregate.Acknowledged>()
    // The type of the function itself is that without the option.
    expectTypeOf<Effect.Effect.Success<ReturnType<typeof Account.evaluate>>>().toEqualTypeOf<
      Effect.Effect.Success<typeof whole>
    >()
    return [
      // @ts-expect-error the short result has no state
      Effect.map(short, ({ state }) => state),
      // @ts-expect-error and no events
      Effect.map(short, ({ events }) => events),
      // @ts-expect-error no value of the option
      Account.evaluate(id, withdraw, { reply: "state" })
    ]
  }
  expectTypeOf(types).toBeFunction()
})

it("without a reply the result is whole", () => {
  const types = () => {
    const whole = Account.evaluate(id, withdraw)
    const unknown = Account.evaluateUnknown(id, {})
    expectTypeOf(Account.evaluate(id, withdraw, {})).toEqualTypeOf(whole)
    expectTypeOf(Account.evaluate(id, withdraw, undefined)).toEqualTypeOf(whole)
    expectTypeOf(Account.evaluate(id, withdraw, { reply: undefined })).toEqualTypeOf(whole)
    expectTypeOf(Account.evaluateUnknown(id, {}, {})).toEqualTypeOf(unknown)
    expectTypeOf(Account.evaluateUnknown(id, {}, undefined)).toEqualTypeOf(unknown)
    expectTypeOf(Account.evaluateUnknown(id, {}, { reply: undefined })).toEqualTypeOf(unknown)
    return [
      // @ts-expect-error no option
      Account.evaluate(id, withdraw, { replay: "position" }),
      // @ts-expect-error no option of evaluate
      Account.evaluate(id, withdraw, { only: ["Open"] }),
      // @ts-expect-error no option
      Account.evaluateUnknown(id, {}, { onyl: ["Open"] })
    ]
  }
  expectTypeOf(types).toBeFunction()
})

it("evaluate returns a position that waitFor accepts", () => {
  const types = () => {
    const evaluating = Account.evaluate(id, withdraw)
    const waiting = Effect.flatMap(evaluating, ({ position, duplicate }) => {
      expectTypeOf(position).toEqualTypeOf<EventFeed.StreamPosition>()
      expectTypeOf(duplicate).toEqualTypeOf<boolean>()
      return Subscription.waitFor("s", position, "1 second")
    })
    expectTypeOf<NeedsOf<typeof waiting>>().toEqualTypeOf<
      Aggregate.Instance<"Account"> | EventFeed.EventFeed | SubscriptionStore.SubscriptionStore
    >()
  }
  expectTypeOf(types).toBeFunction()
  const subscription = Subscription.make("s", { handle: () => Effect.fail("no" as const) })
  expectTypeOf(Subscription.commandId(subscription, { aggregateId: "a", sequence: 1 })).toBeString()
})

it("withCommandId and withExpectedSequence add one failure each", () => {
  const types = () => {
    const evaluating = Account.evaluate(id, withdraw)
    const identified = evaluating.pipe(Aggregate.withCommandId("c"))
    const expecting = evaluating.pipe(Aggregate.withExpectedSequence(1))
    type Own = ErrorOf<typeof evaluating>
    expectTypeOf<ErrorOf<typeof identified>>().toEqualTypeOf<Own | StoreError.CommandIdReused>()
    expectTypeOf<ErrorOf<typeof expecting>>().toEqualTypeOf<Own | StoreError.UnexpectedSequence>()
    expectTypeOf<NeedsOf<typeof identified>>().toEqualTypeOf<NeedsOf<typeof evaluating>>()
    expectTypeOf<Effect.Effect.Success<typeof expecting>>().toEqualTypeOf<Effect.Effect.Success<typeof evaluating>>()
  }
  expectTypeOf(types).toBeFunction()
})

it("evaluateUnknown can fail with every refusal", () => {
  const evaluateUnknown = Account.evaluateUnknown
  expectTypeOf<ErrorOf<ReturnType<typeof evaluateUnknown>>>().toEqualTypeOf<
    AlreadyOpen | InsufficientFunds | LimitExceeded | FailureOfStore
  >()
})

it("evaluateUnknown with a list of commands fails only with their refusals", () => {
  const types = () => {
    const some = Account.evaluateUnknown(id, {}, { only: ["Open", "Deposit"] })
    const none = Account.evaluateUnknown(id, {}, { only: ["Deposit"] })
    const all = Account.evaluateUnknown(id, {}, {})
    expectTypeOf<ErrorOf<typeof some>>().toEqualTypeOf<AlreadyOpen | FailureOfStore>()
    expectTypeOf<ErrorOf<typeof none>>().toEqualTypeOf<FailureOfStore>()
    expectTypeOf<ErrorOf<typeof all>>().toEqualTypeOf<
      AlreadyOpen | InsufficientFunds | LimitExceeded | FailureOfStore
    >()
    // @ts-expect-error: no command of this aggregate
    return Account.evaluateUnknown(id, {}, { only: ["Close"] })
  }
  expectTypeOf(types).toBeFunction()
})

it("operations need only the aggregate, and its layer needs the store and the services of handlers and projections", () => {
  const types = () => {
    const [evaluating, fetching] = [Account.evaluate(id, withdraw), Account.fetch(id)] as const
    expectTypeOf<NeedsOf<typeof evaluating>>().toEqualTypeOf<Aggregate.Instance<"Account">>()
    expectTypeOf<NeedsOf<typeof fetching>>().toEqualTypeOf<Aggregate.Instance<"Account">>()
  }
  expectTypeOf(types).toBeFunction()
  expectTypeOf(Account.newId).toEqualTypeOf<Effect.Effect<string>>()
  expectTypeOf(Account.layer).toEqualTypeOf<
    Layer.Layer<Aggregate.Instance<"Account">, never, StoreAdapter.StoreAdapter | Limits>
  >()
  expectTypeOf(Mailed.layer).toEqualTypeOf<
    Layer.Layer<Aggregate.Instance<"Mailed">, never, StoreAdapter.StoreAdapter | Limits | Mailer>
  >()
})

it("the failure of a projection is a failure of the commands", () => {
  const types = () => {
    const evaluating = Mailed.evaluate(id, deposit)
    expectTypeOf<ErrorOf<typeof evaluating>>().toEqualTypeOf<Blocked | FailureOfStore>()
  }
  expectTypeOf(types).toBeFunction()
  expectTypeOf(Mails).toEqualTypeOf<Projection.Projection<Blocked | StoreError.StoreError, Mailer>>()
})

class EmailTaken extends Schema.TaggedError<EmailTaken>()("EmailTaken", { owner: Schema.String }) {}
class LimitReached extends Schema.TaggedError<LimitReached>()("LimitReached", { amount: Schema.Number }) {}

it("a projection of SQL statements fails only with refusals and StoreErrors, and one of effects with its own failures", () => {
  const types = () => {
    const BySql = Projection.makeSql({
      name: "owners",
      events: Schema.Union(Opened, Deposited, Withdrawn),
      project: {
        Opened: ({ owner }, _envelope, sql) => sql`insert into owners values (${owner})`,
        Deposited: ({ amount }, _envelope, sql) => sql`update owners set total = total + ${amount}`
      },
      onConstraint: {
        owners_pkey: (event) => {
          // The event is one of the types that have a handler.
          expectTypeOf(event).toEqualTypeOf<Opened | Deposited>()
          return event._tag === "Opened" ? new EmailTaken({ owner: event.owner }) : undefined
        },
        owners_total_check: (event) =>
          event._tag === "Deposited" ? new LimitReached({ amount: event.amount }) : undefined
      }
    })
    expectTypeOf(BySql).toEqualTypeOf<
      Projection.Projection<EmailTaken | LimitReached | StoreError.StoreError, SqlClient.SqlClient>
    >()
    const without = Projection.makeSql({
      name: "owners",
      events: Opened,
      project: { Opened: ({ owner }, _envelope, sql) => sql`insert into owners values (${owner})` }
    })
    expectTypeOf(without).toEqualTypeOf<Projection.Projection<StoreError.StoreError, SqlClient.SqlClient>>()
    const ByEffect = Projection.make({
      name: "owners",
      events: Schema.Union(Opened, Deposited),
      // Also before the handlers.
      onConstraint: {
        owners_pkey: ({ owner }, { aggregateId }) => new EmailTaken({ owner: owner + aggregateId }),
        owners_total_check: () => undefined
      },
      project: {
        Opened: ({ owner }) =>
          Effect.zipRight(
            Effect.flatMap(Mailer, ({ send }) => send),
            Effect.flatMap(SqlClient.SqlClient, (sql) => sql`insert into owners values (${owner})`)
          )
      }
    })
    expectTypeOf(ByEffect).toEqualTypeOf<
      Projection.Projection<Blocked | EmailTaken | SqlError | StoreError.StoreError, Mailer | SqlClient.SqlClient>
    >()
    const orStoreError = Projection.orStoreError(ByEffect)
    expectTypeOf(orStoreError).toEqualTypeOf<
      Projection.Projection<Blocked | EmailTaken | StoreError.StoreError, Mailer | SqlClient.SqlClient>
    >()
    const Owned = Aggregate.make("Owned", { ...definition, projections: [BySql, orStoreError] })
    const evaluating = Owned.evaluate(id, deposit)
    expectTypeOf<ErrorOf<typeof evaluating>>().toEqualTypeOf<EmailTaken | LimitReached | Blocked | FailureOfStore>()
    // A bound projection stays bound, and a projection of an aggregate has the types of its events.
    const OfAccounts = Projection.makeSql({
      name: "of accounts",
      of: Account,
      project: { Opened: ({ owner }, { id }, sql) => sql`insert into owners values (${id}, ${owner})` },
      onConstraint: {
        owners_pkey: (event, { id }) => {
          expectTypeOf(event).toEqualTypeOf<Opened>()
          return new EmailTaken({ owner: id })
        }
      }
    })
    expectTypeOf(OfAccounts).toEqualTypeOf<
      Projection.Projection.Bound<EmailTaken | StoreError.StoreError, SqlClient.SqlClient>
    >()
    expectTypeOf(Projection.orStoreError(OfAccounts)).toEqualTypeOf<typeof OfAccounts>()
  }
  expectTypeOf(types).toBeFunction()
})

it("a handler of a constraint returns a tagged error or nothing, but no effect", () => {
  const types = () => {
    const options = {
      name: "owners",
      of: Account,
      project: { Opened: ({ owner }: Opened) => Effect.flatMap(SqlClient.SqlClient, (sql) => sql`select ${owner}`) }
    } as const
    const plain = Projection.make({
      ...options,
      onConstraint: { owners_pkey: ({ owner }) => ({ _tag: "Taken" as const, owner }) }
    })
    expectTypeOf<Projection.Projection.Error<typeof plain>>().toEqualTypeOf<
      { _tag: "Taken"; owner: string } | SqlError | StoreError.StoreError
    >()
    return [
      Projection.make({
        ...options,
        // @ts-expect-error an effect that fails is no refusal
        onConstraint: { owners_pkey: ({ owner }) => Effect.fail(new EmailTaken({ owner })) }
      }),
      Projection.make({
        ...options,
        // @ts-expect-error an Either is an effect
        onConstraint: { owners_pkey: ({ owner }) => Either.left(new EmailTaken({ owner })) }
      }),
      Projection.make({
        ...options,
        // @ts-expect-error a text has no tag
        onConstraint: { owners_pkey: ({ owner }) => owner }
      }),
      Projection.makeSql({
        name: "owners",
        events: Schema.Union(Opened, Deposited),
        project: { Opened: ({ owner }, _envelope, sql) => sql`insert into owners values (${owner})` },
        // @ts-expect-error an effect that fails is no refusal
        onConstraint: { owners_pkey: ({ owner }) => Effect.fail(new EmailTaken({ owner })) }
      })
    ]
  }
  expectTypeOf(types).toBeFunction()
})

it("an aggregate's projections are bound to it, and subscriptions and rebuilds accept only bound ones", () => {
  expectTypeOf(Mailed.projections).toEqualTypeOf<
    readonly [Projection.Projection.Bound<Blocked | StoreError.StoreError, Mailer>]
  >()
  const OfAccounts = Projection.make({
    name: "of accounts",
    of: Account,
    project: {
      Deposited: (event, envelope) => {
        expectTypeOf(event).toEqualTypeOf<Deposited>()
        expectTypeOf(envelope).toEqualTypeOf<Event.Envelope>()
        return new Blocked()
      }
    }
  })
  expectTypeOf(OfAccounts).toEqualTypeOf<Projection.Projection.Bound<Blocked | StoreError.StoreError>>()
  const OfAll = Projection.makeSql({
    name: "of all",
    of: "all",
    events: Opened,
    project: { Opened: (event, { id, kind }, sql) => sql`insert into t values (${event.owner}, ${id}, ${kind})` }
  })
  const types = () => {
    const rebuild = { name: "r", tables: ["t"] } as const
    const rebuilding = Rebuild.run({ ...rebuild, projections: [...Mailed.projections, OfAll] })
    expectTypeOf<ErrorOf<typeof rebuilding>>().toEqualTypeOf<
      Blocked | StoreError.StoreError | StoreError.ValidationError
    >()
    return [
      Rebuild.run({ ...rebuild, projections: [Projection.of(Account, Mails), OfAccounts] }),
      Subscription.fromProjections("s", [Projection.of("all", Mails), OfAll]),
      // @ts-expect-error it does not say of which aggregate it is
      Rebuild.run({ ...rebuild, projections: [Mails] }),
      // @ts-expect-error it does not say of which aggregate it is
      Subscription.fromProjections("s", [OfAll, Mails]),
      // @ts-expect-error Closed is none of the aggregate's events
      Projection.make({ name: "p", of: Account, project: { Closed: () => Effect.void } }),
      // @ts-expect-error the events of all aggregates need a schema
      Projection.make({ name: "p", of: "all", project: { Opened: () => Effect.void } })
    ]
  }
  expectTypeOf(types).toBeFunction()
})

it("handlers of a subscription are typed by their aggregate's events", () => {
  const types = () => {
    const subscription = Subscription.make("s", {
      on: [
        Subscription.on(Account, {
          Deposited: (event, envelope) => {
            expectTypeOf(event).toEqualTypeOf<Deposited>()
            expectTypeOf(envelope).toEqualTypeOf<EventFeed.FeedEvent>()
            return new Blocked()
          }
        }),
        Subscription.on(Mailed, {
          Opened: (event) => {
            expectTypeOf(event).toEqualTypeOf<Opened>()
            return Effect.flatMap(Mailer, ({ send }) => Effect.orDie(send))
          }
        })
      ]
    })
    expectTypeOf(subscription).toEqualTypeOf<Subscription.Subscription<Blocked | StoreError.StoreError, Mailer>>()
    const single = Subscription.make("s", { on: Subscription.on(Account, { Opened: () => Effect.void }) })
    expectTypeOf(single).toEqualTypeOf<Subscription.Subscription<StoreError.StoreError>>()
    // @ts-expect-error Closed is none of the aggregate's events
    Subscription.on(Account, { Closed: () => Effect.void })
    // @ts-expect-error the types are those of the handlers
    Subscription.make("s", { on: Subscription.on(Account, {}), filter: { types: ["Opened"] } })
    Subscription.make("s", {
      on: Subscription.on(Account, {}),
      // @ts-expect-error a setting that does not exist is the only error, at its own place
      onFailures: "stop"
    })
    Subscription.make("s", {
      handle: () => Effect.void,
      // @ts-expect-error no such way to go on
      onFailure: "skip"
    })
    const history = Account.history(id)
    expectTypeOf(history).toEqualTypeOf<
      Stream.Stream<
        Aggregate.HistoricEvent<Opened | Deposited | Withdrawn>,
        StoreError.ValidationError | StoreError.StoreError,
        Aggregate.Instance<"Account">
      >
    >()
  }
  expectTypeOf(types).toBeFunction()
})

it("every command has a handler and every event a step, and no other names are allowed", () => {
  const { Open: _open, ...withoutOpen } = definition.decide
  const { Opened: _opened, ...withoutOpened } = definition.evolve
  const types = () => {
    // @ts-expect-error Open is missing
    Aggregate.make("Account", { ...definition, decide: withoutOpen })
    // @ts-expect-error Opened is missing
    Aggregate.make("Account", { ...definition, evolve: withoutOpened })
    // @ts-expect-error Close is no command
    Aggregate.make("Account", { ...definition, decide: { ...definition.decide, Close: () => Effect.succeed([]) } })
    // @ts-expect-error the initial state is none
    Aggregate.make("Account", { ...definition, initialState: { owner: 1, balance: 0 } })
    // @ts-expect-error Closed is none of the projection's events
    Projection.make({ name: "p", events: Opened, project: { Closed: () => Effect.void } })
  }
  expectTypeOf(types).toBeFunction()
})

it("handlers in place are inferred", () => {
  Aggregate.make("Account", {
    ...definition,
    decide: {
      ...definition.decide,
      Deposit: (command, root) => {
        expectTypeOf(command).toEqualTypeOf<Deposit>()
        expectTypeOf(root).toEqualTypeOf<Aggregate.Root<typeof definition.state.Type>>()
        return Effect.succeed([new Deposited({ amount: command.amount })])
      }
    },
    evolve: {
      ...definition.evolve,
      Deposited: (state, event) => {
        expectTypeOf(state).toEqualTypeOf<typeof definition.state.Type>()
        expectTypeOf(event).toEqualTypeOf<Deposited>()
        return state
      }
    }
  })
})

it("the layers of the stores provide the ports, and failures are data", () => {
  type Ports = StoreAdapter.StoreAdapter | EventFeed.EventFeed | SubscriptionStore.SubscriptionStore
  expectTypeOf<typeof MemoryStore.layer>().toEqualTypeOf<Layer.Layer<Ports>>()
  expectTypeOf<Layer.Layer.Success<typeof SqlStore.layer>>().toEqualTypeOf<Ports | SqlStore.Tables>()
  expectTypeOf<StoreError.StoreError["reason"]>().toEqualTypeOf<StoreError.StoreErrorReason>()
})

class Booked extends Schema.TaggedClass<Booked>()("Booked", { seat: Schema.Int }) {}

it("a step keeps the literals of the state that it returns, and is checked against the schema of the state", () => {
  const types = () => {
    const options = {
      state: Schema.Struct({ status: Schema.Literal("free", "booked"), seats: Schema.Array(Schema.Int) }),
      initialState: { status: "free", seats: [] },
      events: Booked,
      commands: Booked,
      decide: { Booked: (command: Booked) => Effect.succeed([command]) }
    } as const
    const Flight = Aggregate.make("Flight", {
      ...options,
      evolve: { Booked: (state, { seat }) => ({ ...state, status: "booked", seats: [...state.seats, seat] }) }
    })
    Aggregate.make("Flight", {
      ...options,
      // @ts-expect-error: no state has this status
      evolve: { Booked: (state) => ({ ...state, status: "cancelled" }) }
    })
    // @ts-expect-error: an event has no handler
    Aggregate.make("Flight", { ...options, evolve: {} })
    return Flight.fetch(id)
  }
  expectTypeOf<ReturnType<typeof types>>().toEqualTypeOf<
    Effect.Effect<
      { readonly status: "free" | "booked"; readonly seats: ReadonlyArray<number> },
      StoreError.ValidationError | StoreError.StoreError,
      Aggregate.Instance<"Flight">
    >
  >()
})

const Lamp = {
  state: Schema.Struct({
    status: Schema.Literal("on", "off"),
    colour: Schema.NullOr(Schema.Struct({ name: Schema.Literal("red", "blue"), level: Schema.Literal(1, 2) })),
    history: Schema.mutable(Schema.Array(Schema.String)),
    range: Schema.Tuple(Schema.Literal("from"), Schema.Number)
  }),
  events: Schema.Union(
    Schema.TaggedStruct("Switched", { to: Schema.Literal("on", "off") }),
    Schema.TaggedStruct("Broken", {})
  ),
  commands: Schema.Union(Schema.TaggedStruct("Switch", {}), Schema.TaggedStruct("Break", {}))
}

it("literals stay literals in handlers without parameters, and in the initial state", () => {
  const types = () => {
    const off = { status: "off", colour: null, history: [], range: ["from", 0] } as const
    Aggregate.make("Lamp", {
      ...Lamp,
      initialState: { status: "off", colour: { name: "red", level: 1 }, history: [], range: ["from", 1] },
      decide: {
        Switch: () => Effect.succeed([{ _tag: "Switched", to: "on" }]),
        Break: () =>
          Effect.gen(function* () {
            yield* Effect.void
            return [{ _tag: "Switched", to: "off" }, { _tag: "Broken" }]
          })
      },
      evolve: {
        Switched: () => ({ status: "on", colour: { name: "blue", level: 2 }, history: ["x"], range: ["from", 2] }),
        Broken: () => {
          return { status: "off", colour: null, history: [], range: ["from", 3] }
        }
      }
    })
    const decide = { Switch: () => Effect.succeed([]), Break: () => Effect.succeed([]) }
    const initialState = { ...off, history: [] }
    Aggregate.make("Lamp", {
      ...Lamp,
      initialState,
      decide,
      evolve: {
        Switched: (state) => state,
        // @ts-expect-error: no state has this status
        Broken: () => ({ status: "broken", colour: null, history: [], range: ["from", 3] })
      }
    })
    Aggregate.make("Lamp", {
      ...Lamp,
      initialState,
      decide: {
        // @ts-expect-error: no event has this value
        Switch: () => Effect.succeed([{ _tag: "Switched", to: "dim" }]),
        Break: () => Effect.succeed([])
      },
      evolve: { Switched: (state) => state, Broken: (state) => state }
    })
    Aggregate.make("Lamp", {
      ...Lamp,
      // @ts-expect-error: no state has this status
      initialState: { status: "broken", colour: null, history: [], range: ["from", 3] },
      decide,
      evolve: { Switched: (state) => state, Broken: (state) => state }
    })
    // A state of type `any` is allowed, too.
    Aggregate.make("Lamp", {
      ...Lamp,
      state: Schema.Unknown,
      initialState: undefined,
      decide,
      evolve: { Switched: () => new Date(0), Broken: () => Symbol("broken") }
    })
    return Aggregate.make("Lamp", {
      ...Lamp,
      state: Schema.Literal("on", "off"),
      initialState: "on",
      decide,
      evolve: { Switched: (_, { to }) => to, Broken: () => "off" }
    })
  }
  expectTypeOf<ReturnType<ReturnType<typeof types>["fetch"]>>().toEqualTypeOf<
    Effect.Effect<"on" | "off", StoreError.ValidationError | StoreError.StoreError, Aggregate.Instance<"Lamp">>
  >()
})
