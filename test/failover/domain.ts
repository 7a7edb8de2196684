/** Purses and tills for the tests of failovers, and a database that goes back to what it was. */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate, Projection } from "effect-maestro"

class PaidIn extends Schema.TaggedClass<PaidIn>()("PaidIn", { amount: Schema.Int }) {}
class PaidOut extends Schema.TaggedClass<PaidOut>()("PaidOut", { amount: Schema.Int }) {}
export class PayIn extends Schema.TaggedClass<PayIn>()("PayIn", { amount: Schema.Int }) {}
export class PayOut extends Schema.TaggedClass<PayOut>()("PayOut", { amount: Schema.Int }) {}
export class InsufficientFunds extends Schema.TaggedError<InsufficientFunds>()("InsufficientFunds", {
  balance: Schema.Int
}) {}

interface State {
  readonly balance: number
}

const design = {
  state: Schema.Struct({ balance: Schema.Int }),
  initialState: { balance: 0 },
  events: Schema.Union(PaidIn, PaidOut),
  commands: Schema.Union(PayIn, PayOut),
  decide: {
    PayIn: ({ amount }: PayIn) => Effect.succeed([new PaidIn({ amount })]),
    PayOut: ({ amount }: PayOut, { state }: Aggregate.Root<State>) =>
      amount > state.balance
        ? Effect.fail(new InsufficientFunds({ balance: state.balance }))
        : Effect.succeed([new PaidOut({ amount })])
  },
  evolve: {
    PaidIn: ({ balance }: State, { amount }: PaidIn) => ({ balance: balance + amount }),
    PaidOut: ({ balance }: State, { amount }: PaidOut) => ({ balance: balance - amount })
  }
}

/** It has no projection. */
export const Purse = Aggregate.make("Purse", design)

/** Its events are in a table, too. */
export const Till = Aggregate.make("Till", {
  ...design,
  projections: [
    Projection.makeSql({
      name: "tills",
      events: Schema.Union(PaidIn, PaidOut),
      project: {
        PaidIn: ({ amount }, { id }, sql) => sql`insert into tills (till, amount) values (${id}, ${amount})`,
        PaidOut: ({ amount }, { id }, sql) => sql`insert into tills (till, amount) values (${id}, ${-amount})`
      }
    })
  ]
})

type Instances = Aggregate.Instance<"Purse"> | Aggregate.Instance<"Till">

/** Both, as one type. */
export const accounts: ReadonlyArray<{
  readonly name: string
  readonly evaluate: (
    id: string,
    command: PayIn | PayOut
  ) => Effect.Effect<Aggregate.Evaluated<State, PaidIn | PaidOut>, unknown, Instances>
  readonly fetch: (id: string) => Effect.Effect<State, unknown, Instances>
}> = [
  { name: "Purse", evaluate: (id, command) => Purse.evaluate(id, command), fetch: (id) => Purse.fetch(id) },
  { name: "Till", evaluate: (id, command) => Till.evaluate(id, command), fetch: (id) => Till.fetch(id) }
]

/** Makes the table of the tills. */
export const tills = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`create table if not exists tills (till text not null, amount bigint not null)`
)

/**
 * Copies the tables, and returns an effect that takes them back to that. With `keepsEvents` the events since then stay, as if their replica
 * had lost less.
 */
export const remember = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const [found] = yield* sql<{
    tables: ReadonlyArray<string>
  }>`select array_agg(c.oid::regclass::text) as tables
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    -- The events of a partition are read and written through their log.
    where c.relkind in ('r', 'p') and not c.relispartition
      and (n.nspname = 'maestro' or (n.nspname = 'public' and c.relname not like 'copy%'))`
  const tables = found?.tables ?? []
  for (const [index, table] of tables.entries()) {
    yield* sql`drop table if exists ${sql.literal(`copy${index}`)}`
    yield* sql`create table ${sql.literal(`copy${index}`)} as table ${sql.literal(table)}`
  }
  // A log with a counter has a table in its place, which is copied with the others.
  const [numbers] = yield* sql<{
    last: string | null
  }>`select pg_sequence_last_value(to_regclass('maestro.event_log_position_seq'))::text
    as last where to_regclass('maestro.event_log_position_seq') is not null`
  return ({ keepsEvents = false } = {}) =>
    sql.withTransaction(
      Effect.gen(function* () {
        for (const [index, table] of tables.entries()) {
          if (keepsEvents && (table === "maestro.event_log" || table === "maestro.feed_counter")) continue
          yield* sql`delete from ${sql.literal(table)}`
          yield* sql`insert into ${sql.literal(table)} overriding system value select * from ${sql.literal(`copy${index}`)}`
        }
        if (!keepsEvents && numbers !== undefined) {
          yield* sql`select setval('maestro.event_log_position_seq', ${numbers.last ?? "1"}::bigint, ${numbers.last !== null})`
        }
      })
    )
})
