/** The domain of the run under faults: wallets, sales that pay into them, and projections that notice what belongs to another caller. */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { Aggregate, type Event, Projection } from "effect-maestro"

/** How many rows the projections of exchanges contend for. */
export const slotCount = 4

/** The caller, as its projections must find it in their context. */
export class Tenant extends Context.Reference<Tenant>()("test/faults/Tenant", {
  defaultValue: (): unknown => undefined
}) {}

/** What the projections of a node felt of other callers. */
export class Felt extends Context.Tag("test/faults/Felt")<Felt, { tenants: number }>() {}

class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", { amount: Schema.Number }) {}
class Withdrawn extends Schema.TaggedClass<Withdrawn>()("Withdrawn", { amount: Schema.Number }) {}
export class Deposit extends Schema.TaggedClass<Deposit>()("Deposit", { amount: Schema.Number }) {}
export class Withdraw extends Schema.TaggedClass<Withdraw>()("Withdraw", { amount: Schema.Number }) {}
export class InsufficientFunds extends Schema.TaggedError<InsufficientFunds>()("InsufficientFunds", {
  account: Schema.String,
  balance: Schema.Number
}) {}

/** Counts a projection whose context is not that of the caller that made the event. */
const checkTenant = ({ metadata }: Event.Event) =>
  Effect.gen(function* () {
    const felt = yield* Felt
    if ((yield* Tenant) !== metadata.attempt) felt.tenants++
  })

/** A table that is kept by the events; the log has to bear it out. */
export const Balances = [
  Projection.makeSql({
    name: "balances, by SQL",
    events: Deposited,
    project: { Deposited: ({ amount }, envelope, sql) => addToBalance(sql, envelope, amount) }
  }),
  Projection.make({
    name: "balances, by an effect",
    events: Withdrawn,
    project: {
      Withdrawn: ({ amount }, envelope) =>
        Effect.flatMap(SqlClient.SqlClient, (sql) =>
          Effect.zipRight(checkTenant(envelope), addToBalance(sql, envelope, -amount))
        )
    }
  })
]

/** The transaction of a subscription is one caller for all its events: its attempts begin with the same word. */
const callerOf = ({ attempt }: Event.Event["metadata"]): string => String(attempt ?? "none").split(" ")[0] ?? ""

const addToBalance = (sql: SqlClient.SqlClient, { id, metadata }: Event.Envelope, amount: number) =>
  sql`insert into balances as b
    select ${id}::text, ${amount}::bigint from touch(${callerOf(metadata)})
    on conflict (account) do update set balance = b.balance + excluded.balance`

// A server that is killed is back within a second or so.
export const retry = Schedule.intersect(Schedule.jittered(Schedule.spaced("20 millis")), Schedule.recurs(500))

export const Wallet = Aggregate.make("Wallet", {
  state: Schema.Struct({ balance: Schema.Number }),
  initialState: { balance: 0 },
  events: Schema.Union(Deposited, Withdrawn),
  commands: Schema.Union(Deposit, Withdraw),
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
  projections: Balances,
  snapshotEvery: 10,
  retry
})

export class Sold extends Schema.TaggedClass<Sold>()("Sold", { account: Schema.String, price: Schema.Number }) {}

/** A sale, whose strong projection evaluates a command of another aggregate. */
export const Sale = Aggregate.make("Sale", {
  state: Schema.Struct({}),
  initialState: {},
  events: Sold,
  commands: Sold,
  decide: { Sold: (command) => Effect.succeed([command]) },
  evolve: { Sold: (state) => state },
  projections: [
    Projection.make({
      name: "pays in",
      events: Sold,
      project: {
        Sold: ({ account, price }, envelope) =>
          Effect.zipRight(checkTenant(envelope), Wallet.evaluate(account, new Deposit({ amount: price })))
      }
    })
  ],
  retry
})

class Exchanged extends Schema.TaggedClass<Exchanged>()("Exchanged", { first: Schema.Int, second: Schema.Int }) {}
export class Exchange extends Schema.TaggedClass<Exchange>()("Exchange", { first: Schema.Int, second: Schema.Int }) {}

/** An exchange locks two rows in the order that its command names, so two exchanges can deadlock in their projections. */
export const Trade = Aggregate.make("Trade", {
  state: Schema.Struct({}),
  initialState: {},
  events: Exchanged,
  commands: Exchange,
  decide: { Exchange: (command) => Effect.succeed([new Exchanged(command)]) },
  evolve: { Exchanged: (state) => state },
  projections: [
    Projection.make({
      name: "slots",
      events: Exchanged,
      project: {
        Exchanged: ({ first, second }, envelope) =>
          Effect.gen(function* () {
            const sql = yield* SqlClient.SqlClient
            yield* checkTenant(envelope)
            for (const slot of [first, second])
              yield* sql`update slots set exchanges = exchanges + 1 where slot = ${slot}`
          })
      }
    })
  ],
  retry
})

/**
 * The tables, and a function that every projection of a balance calls. It leaves a mark of its caller in its transaction.
 * Each mark and each setting of another caller that it finds there is noted in `felt`.
 */
export const createTables = (sql: SqlClient.SqlClient) =>
  Effect.forEach(
    [
      sql`create table balances (account text primary key, balance bigint not null)`,
      sql`create table slots (slot int primary key, exchanges bigint not null)`,
      sql`insert into slots select slot, 0 from generate_series(0, ${slotCount - 1}) slot`,
      sql`create table marks (caller text not null, written_in xid8 not null)`,
      sql`create index marks_written_in on marks (written_in)`,
      sql`create table felt (caller text not null, what text not null)`,
      sql`create function touch(p_caller text) returns boolean language plpgsql volatile as $$
        declare
          setting text := current_setting('faults.caller', true);
        begin
          if setting <> '' and setting <> p_caller then
            insert into felt values (p_caller, 'the setting of ' || setting);
          end if;
          insert into felt select p_caller, 'the row of ' || m.caller from marks m
            where m.written_in = pg_current_xact_id() and m.caller <> p_caller limit 1;
          insert into marks values (p_caller, pg_current_xact_id());
          perform set_config('faults.caller', p_caller, true);
          return true;
        end $$`
    ],
    (statement) => statement,
    { discard: true }
  )
