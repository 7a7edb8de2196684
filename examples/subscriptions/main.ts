/**
 * Subscriptions at work: a table that follows the events, a read after a write, a parked event, status, a rebuild, and the feed itself.
 *
 * Run it by `npx tsx examples/subscriptions/main.ts`. It uses an embedded Postgres.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Stream from "effect/Stream"
import { EventFeed, ProjectionTables, Rebuild, SqlStore, Subscription } from "effect-maestro"
import * as PgliteClient from "effect-maestro/PgliteClient"
import { Account, Deposit, Open, Withdraw } from "../aggregates/Account.js"
import { Alerts, Balances } from "./Readers.js"

/** The column is too small for five digits, so that an event can fail. */
const layerAlerts = Layer.effectDiscard(
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    yield* sql`create table alerts (account text, sequence int, amount numeric(4), primary key (account, sequence))`
  })
)

/** The subscriptions run for as long as this layer lives. */
const layerReaders = Layer.merge(Alerts.layer, Balances.layer.pipe(Layer.provide(ProjectionTables.layer(Balances))))

const layer = Layer.merge(Account.layer, layerReaders).pipe(
  Layer.provideMerge(SqlStore.layer),
  Layer.provideMerge(layerAlerts),
  Layer.provideMerge(PgliteClient.layerMemory)
)

const show = (table: "alerts" | "balances") =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    yield* Console.log(`  ${table}: ${JSON.stringify(yield* sql`select * from ${sql(table)} order by 1, 2`)}`)
  })

const ownWrite = Effect.gen(function* () {
  yield* Console.log("Ann opens an account, and reads it in the table of balances")
  yield* Account.evaluate("ann", new Open({ owner: "Ann" }))
  const { position } = yield* Account.evaluate("ann", new Deposit({ amount: 50_000 }))
  yield* Subscription.waitFor(Balances, position, "20 seconds")
  yield* show("balances")
})

const parking = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  yield* Console.log("She withdraws 2000, 30000 and 4000")
  yield* Account.evaluate("ann", new Withdraw({ amount: 2000 }))
  yield* Account.evaluate("ann", new Withdraw({ amount: 30_000 }))
  const { position } = yield* Account.evaluate("ann", new Withdraw({ amount: 4000 }))
  yield* Subscription.waitFor(Alerts, position, "20 seconds")
  yield* show("alerts")
  for (const { attempts, error, sequence, type } of yield* Subscription.parked(Alerts)) {
    yield* Console.log(`  parked after ${attempts} attempts: ${type} ${sequence}: ${error.split("\n")[0]}`)
  }
  yield* sql`alter table alerts alter amount type numeric(9)`
  yield* Console.log(`The column is mended; parked events handled: ${yield* Alerts.retryAllParked}`)
  yield* show("alerts")
  const { eventsBehind, parked, state } = yield* Alerts.status
  yield* Console.log(`  status: ${state}, ${eventsBehind} events behind, ${parked} parked`)
})

const rebuilding = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  yield* Console.log("The balances are changed by hand, and rebuilt")
  yield* sql`update balances set balance = 0`
  const events = yield* Rebuild.run({
    name: "balances, repaired",
    projections: Balances.projections,
    tables: ["balances"],
    subscription: Balances
  })
  yield* Console.log(`  ${events} events projected`)
  yield* show("balances")
})

const feed = Effect.gen(function* () {
  yield* Console.log("The feed has all events in one order")
  yield* EventFeed.streamStored({ filter: { kinds: ["Account"] } }).pipe(
    Stream.runForEach(({ body, id, sequence, type }) =>
      Console.log(`  ${id} ${sequence}: ${type} ${JSON.stringify(body)}`)
    )
  )
})

Effect.all([ownWrite, parking, rebuilding, feed], { discard: true }).pipe(
  Effect.provide(layer),
  // Failed attempts are warnings in the log.
  Logger.withMinimumLogLevel(LogLevel.None),
  NodeRuntime.runMain
)
