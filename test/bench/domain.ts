/**
 * The domain of the rows, written for both libraries: an account that takes deposits, and a strong projection of the
 * balances.
 */
import { randomUUID } from "node:crypto"
import * as SqlClient from "@effect/sql/SqlClient"
import { type CommandHandlerOptions, type Event as EmmettEvent, projections } from "@event-driven-io/emmett"
import { postgreSQLProjection } from "@event-driven-io/emmett-postgresql"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate, Projection, Upcast } from "effect-maestro"
import type pg from "pg"

export interface Balance {
  readonly balance: number
}

// --- this library ---

export class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", { amount: Schema.Number }) {}
export class Deposit extends Schema.TaggedClass<Deposit>()("Deposit", { amount: Schema.Number }) {}

const options = {
  state: Schema.Struct({ balance: Schema.Number }),
  initialState: { balance: 0 },
  events: Deposited,
  commands: Deposit,
  decide: { Deposit: ({ amount }: Deposit) => Effect.succeed([new Deposited({ amount })]) },
  evolve: {
    Deposited: (state: Balance, { amount }: Deposited) => ({ balance: state.balance + amount })
  }
}

export const Account = Aggregate.make("Account", options)

export const ProjectedAccount = Aggregate.make("ProjectedAccount", {
  ...options,
  projections: [
    Projection.make({
      name: "balances",
      events: Deposited,
      project: {
        Deposited: ({ amount }, { id }) =>
          Effect.flatMap(
            SqlClient.SqlClient,
            (sql) => sql`insert into balances as b (account, amount) values (${id}, ${amount})
              on conflict (account) do update set amount = b.amount + excluded.amount`
          )
      }
    })
  ]
})

/** The projection of the balances as a statement. */
export const ProjectedBySql = Aggregate.make("ProjectedBySql", {
  ...options,
  projections: [
    Projection.makeSql({
      name: "balances",
      events: Deposited,
      project: {
        Deposited: ({ amount }, { id }, sql) =>
          sql`insert into balances as b (account, amount) values (${id}, ${amount})
            on conflict (account) do update set amount = b.amount + excluded.amount`
      }
    })
  ]
})

/** The events of `Account` after three changes of their schema: each of version 1 is read through three steps. */
class DepositedV4 extends Schema.TaggedClass<DepositedV4>()("Deposited", {
  cents: Schema.Number,
  currency: Schema.String,
  reference: Schema.String
}) {}
const DepositedV1 = Schema.Struct({ amount: Schema.Number })
const DepositedV2 = Schema.Struct({ amount: Schema.Number, currency: Schema.String })
const DepositedV3 = Schema.Struct({ cents: Schema.Number, currency: Schema.String })

export const EvolvedAccount = Aggregate.make("EvolvedAccount", {
  ...options,
  kind: "Account",
  events: Upcast.events(DepositedV4, {
    Deposited: Upcast.from(1, DepositedV1).pipe(
      Upcast.to(2, DepositedV2, ({ amount }) => ({ amount, currency: "EUR" })),
      Upcast.to(3, DepositedV3, ({ amount, currency }) => ({ cents: 100 * amount, currency })),
      Upcast.toEvent(4, ({ cents, currency }) => ({ cents, currency, reference: "" }))
    )
  }),
  decide: {
    Deposit: ({ amount }: Deposit) =>
      Effect.succeed([new DepositedV4({ cents: 100 * amount, currency: "EUR", reference: "" })])
  },
  evolve: {
    Deposited: (state: Balance, { cents }: DepositedV4) => ({ balance: state.balance + cents / 100 })
  }
})

// --- Emmett ---

export type EmmettDeposited = EmmettEvent<"Deposited", { amount: number }>

export const emmettAccount: CommandHandlerOptions<Balance, EmmettDeposited> = {
  evolve: (state, event) => ({ balance: state.balance + event.data.amount }),
  initialState: () => ({ balance: 0 })
}

export const emmettDeposited: EmmettDeposited = { type: "Deposited", data: { amount: 1 } }

export const emmettBalances = projections.inline([
  postgreSQLProjection<EmmettDeposited>({
    name: "balances",
    canHandle: ["Deposited"],
    handle: async (events, { connection }) => {
      for (const { data, metadata } of events) {
        await connection.client.query(
          `insert into emmett_balances as b (account, amount) values ($1, $2)
            on conflict (account) do update set amount = b.amount + excluded.amount`,
          [metadata.streamName, data.amount]
        )
      }
    }
  })
])

// --- the floor ---

/** A table with the columns, the defaults and the indexes of this library's log, for statements without a library. */
export const tableOfFloor = "create table bare (like maestro.event_log including all)"

/**
 * Appends an event on a bare pool, by the least that a store has to send. The statement checks that the event before it is stored, and
 * that none is stored in its place. It is named, so that a connection parses it once.
 */
export const appendBare = async (pool: pg.Pool, aggregateId: string, sequence: number): Promise<void> => {
  const values = [aggregateId, sequence, "Deposited", '{"amount":1}', "{}", randomUUID()]
  const { rowCount } = await pool.query({ name: "append", text: guardedInsert, values })
  if (rowCount !== 1) throw new Error("the event was refused")
}

const guardedInsert = `insert into bare (aggregate_id, sequence, type, body, metadata, timestamp)
  select $1, $2::int, $3, $4::json, $5::json, $6::uuid
  where $2::int = 1 or exists (select 1 from bare where aggregate_id = $1 and sequence = $2::int - 1)
  on conflict do nothing`

// --- tables ---

export const tables = `
  create table balances (account text primary key, amount bigint not null);
  create table emmett_balances (account text primary key, amount bigint not null);`
