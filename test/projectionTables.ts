/** Projections that own tables, in several versions, and queries of their tables, for tests. */
import * as SqlClient from "@effect/sql/SqlClient"
import type { Statement } from "@effect/sql/Statement"
import { PgClient } from "@effect/sql-pg"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { Aggregate, Projection, type ProjectionTables, SqlStore } from "effect-maestro"

export class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", { amount: Schema.Int }) {}

/** An aggregate with these strong projections. */
export const makeAccount = <const Projections extends ReadonlyArray<Projection.Projection.Any>>(
  projections: Projections,
  name = "Account"
) =>
  Aggregate.make(name, {
    state: Schema.Number,
    initialState: 0,
    events: Deposited,
    commands: Deposited,
    decide: { Deposited: (command: Deposited) => Effect.succeed([command]) },
    evolve: { Deposited: (balance: number, { amount }: Deposited) => balance + amount },
    projections
  })

/** Version 1: the sum of deposits of each account. */
export const createOne = (sql: SqlClient.SqlClient): ReadonlyArray<Statement<unknown>> => [
  sql`create table balances (account text primary key, amount int not null)`,
  sql`create index richest on balances (amount desc)`
]

/** A projection of any version that writes the columns of version 1. */
export const balances = (version: number, create: ProjectionTables.TableStatements = createOne, name = "balances") =>
  Projection.makeSql({
    name,
    events: Deposited,
    version,
    tables: { balances: create },
    project: {
      Deposited: ({ amount }, { id }, sql) =>
        sql`insert into balances as b (account, amount) values (${id}, ${amount})
          on conflict (account) do update set amount = b.amount + excluded.amount`
    }
  })

/** Version 2: counts the deposits, too, in a column that has a default. */
export const createTwo = (sql: SqlClient.SqlClient) =>
  sql`create table balances (account text primary key, amount int not null, deposits int not null default 0)`

export const balancesTwo = (version = 2, create: ProjectionTables.TableStatements = createTwo) =>
  Projection.makeSql({
    name: "balances",
    events: Deposited,
    version,
    tables: { balances: create },
    project: {
      Deposited: ({ amount }, { id }, sql) =>
        sql`insert into balances as b (account, amount, deposits) values (${id}, ${amount}, 1)
          on conflict (account) do update set amount = b.amount + excluded.amount, deposits = b.deposits + 1`
    }
  })

/** The store on a new pool, for one node. */
export const nodeAt = (url: string, options: SqlStore.Options = {}, pool: Partial<PgClient.PgClientConfig> = {}) =>
  Layer.fresh(
    SqlStore.layerWith(options).pipe(
      Layer.provideMerge(PgClient.layer({ url: Redacted.make(url), maxConnections: 4, ...pool }))
    )
  )

/** The amounts in the table, and those of a fold of the log. */
export const amounts = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  Effect.map(sql<{ account: string; amount: number }>`select account, amount from balances order by 1`, (rows) =>
    Object.fromEntries(rows.map(({ account, amount }) => [account, amount]))
  )
)
export const folded = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  Effect.map(
    sql<{ account: string; amount: number }>`select split_part(aggregate_id, '/', 2) as account,
        sum((body ->> 'amount')::int)::int as amount
      from maestro.event_log group by aggregate_id order by 1`,
    (rows) => Object.fromEntries(rows.map(({ account, amount }) => [account, amount]))
  )
)

export const records = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`select name, version, tables::text, subscription from maestro.projection_tables order by name`
)

/** The schemas of shadow tables that are left. */
export const leftovers = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`select nspname from pg_namespace where nspname like 'rebuild\\_%'`
)

export const deposit = <A extends ReturnType<typeof makeAccount>>(account: A, id: string, amount = 1) =>
  account.evaluate(id, new Deposited({ amount }))
