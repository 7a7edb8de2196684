/**
 * The customers of a video shop, and three tables that are written in the transaction that stores their events.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate, Projection } from "effect-maestro"

class Registered extends Schema.TaggedClass<Registered>()("Registered", { email: Schema.String }) {}
class Rented extends Schema.TaggedClass<Rented>()("Rented", { title: Schema.String }) {}

export class Register extends Schema.TaggedClass<Register>()("Register", { email: Schema.String }) {}
export class Rent extends Schema.TaggedClass<Rent>()("Rent", { title: Schema.String }) {}

class EmailTaken extends Schema.TaggedError<EmailTaken>()("EmailTaken", { email: Schema.String }) {}
class OutOfStock extends Schema.TaggedError<OutOfStock>()("OutOfStock", { title: Schema.String }) {}

const CustomerEvent = Schema.Union(Registered, Rented)

/** SQL statements. A violated constraint of the table is a refusal of the command. */
const Customers = Projection.makeSql({
  name: "customers",
  events: CustomerEvent,
  tables: {
    customers: (sql) => sql`create table customers (
      id text primary key,
      email text not null constraint customers_email unique
    )`
  },
  project: {
    Registered: ({ email }, { id }, sql) => sql`insert into customers (id, email) values (${id}, ${email})`
  },
  onConstraint: { customers_email: ({ email }) => new EmailTaken({ email }) }
})

/** An effect, because the result of its statement decides whether the command is refused. A migration of the shop makes the table. */
const Stock = Projection.make({
  name: "stock",
  events: CustomerEvent,
  project: {
    Rented: ({ title }) =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        const left =
          yield* sql`update stock set copies = copies - 1 where title = ${title} and copies > 0 returning copies`
        if (left.length === 0) return yield* new OutOfStock({ title })
      })
  }
})

/** The charts as they were first. */
const FirstCharts = Projection.makeSql({
  name: "charts",
  events: CustomerEvent,
  version: 1,
  tables: {
    charts: (sql) => sql`create table charts (title text primary key check (title <> ''), rented int not null)`
  },
  project: {
    Rented: ({ title }, _, sql) =>
      sql`insert into charts as c (title, rented) values (${title}, 1)
        on conflict (title) do update set rented = c.rented + 1`
  }
})

/** The charts of the next release: they know the last customer of each title, too. */
const Charts = Projection.makeSql({
  name: "charts",
  events: CustomerEvent,
  version: 2,
  tables: {
    charts: (sql) => [
      sql`create table charts (title text primary key check (title <> ''), rented int not null, last_customer text)`,
      sql`create index charts_by_rented on charts (rented)`
    ]
  },
  project: {
    Rented: ({ title }, { id }, sql) =>
      sql`insert into charts as c (title, rented, last_customer) values (${title}, 1, ${id})
        on conflict (title) do update set rented = c.rented + 1, last_customer = excluded.last_customer`
  }
})

const State = Schema.Struct({ rented: Schema.Array(Schema.String) })

const make = <const Projections extends ReadonlyArray<Projection.Projection.Any>>(projections: Projections) =>
  Aggregate.make("Customer", {
    state: State,
    initialState: { rented: [] },
    events: CustomerEvent,
    commands: Schema.Union(Register, Rent),
    decide: {
      Register: ({ email }) => Effect.succeed([new Registered({ email })]),
      Rent: ({ title }) => Effect.succeed([new Rented({ title })])
    },
    evolve: {
      Registered: (state) => state,
      Rented: (state, { title }) => ({ rented: [...state.rented, title] })
    },
    projections
  })

export const FirstCustomer = make([Customers, Stock, FirstCharts])
export const Customer = make([Customers, Stock, Charts])
