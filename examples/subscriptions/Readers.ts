/**
 * Two subscriptions to bank accounts: one writes an alert for each large withdrawal, and one keeps a table of balances.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { Projection, Subscription } from "effect-maestro"
import { Account } from "../aggregates/Account.js"

/** Handles each event exactly once: the row and the checkpoint are stored in one transaction. */
export const Alerts = Subscription.make("alerts", {
  on: Subscription.on(Account, {
    Withdrawn: ({ amount }, { id, sequence }) =>
      amount < 1000
        ? Effect.void
        : Effect.flatMap(
            SqlClient.SqlClient,
            (sql) => sql`insert into alerts (account, sequence, amount) values (${id}, ${sequence}, ${amount})`
          )
  }),
  retry: Schedule.recurs(2),
  onFailure: "park"
})

/** Says by `of` whose events it is about, because a subscription sees the events of all aggregates. */
const BalanceOfAccounts = Projection.makeSql({
  name: "balances",
  of: Account,
  tables: {
    balances: (sql) => sql`create table balances (account text primary key, balance float8 not null)`
  },
  project: {
    Opened: (_, { id }, sql) => sql`insert into balances values (${id}, 0)`,
    Deposited: ({ amount }, { id }, sql) =>
      sql`update balances set balance = balance + ${amount} where account = ${id}`,
    Withdrawn: ({ amount }, { id }, sql) => sql`update balances set balance = balance - ${amount} where account = ${id}`
  }
})

export const Balances = Subscription.fromProjections("balances", [BalanceOfAccounts])
