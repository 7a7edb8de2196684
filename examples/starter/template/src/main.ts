/** Opens an account, and lists the table of balances. */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import { Account, Deposit, Open, Withdraw } from "./Account.js"
import { AppLive } from "./layers.js"

const program = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const id = yield* Account.newId
  yield* Account.evaluate(id, new Open({ owner: "Ann" }))
  yield* Account.evaluate(id, new Deposit({ amount: 100 }))
  yield* Account.evaluate(id, new Withdraw({ amount: 300 })).pipe(
    Effect.catchTag("InsufficientFunds", ({ balance }) => Console.log(`Refused: only ${balance} left`))
  )
  yield* Console.log(yield* sql`select owner, balance from balances order by account`)
})

// The embedded Postgres needs some seconds to start.
Console.log("Starting the database").pipe(Effect.zipRight(Effect.provide(program, AppLive)), NodeRuntime.runMain)
