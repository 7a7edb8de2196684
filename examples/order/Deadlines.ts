/**
 * Until when orders must be paid: a table, so that no restart loses a time-out, and a loop that cancels what is due.
 *
 * Any number of processes may run the loop, and any of them may end between the command and the deletion: the command has an id, so
 * the order is cancelled once.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { Aggregate } from "effect-maestro"
import { CancelOrder, Order } from "./Order.js"

/** Sets an order's deadline, in milliseconds since 1970. A second time changes nothing. */
export const set = (order: string, due: number) =>
  Effect.flatMap(
    SqlClient.SqlClient,
    (sql) => sql`insert into ordering.deadlines (order_id, due) values (${order}, ${due})
      on conflict (order_id) do nothing`
  )

/** Cancels the orders whose time is over, unless they have come to their end already. */
export const cancelDue = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const now = yield* Clock.currentTimeMillis
  const due = yield* sql<{ order_id: string }>`select order_id from ordering.deadlines where due <= ${now} order by due`
  yield* Effect.forEach(due, ({ order_id }) => cancel(order_id), { discard: true })
})

/** Looks for what is due, for as long as the layer lives. */
export const layer = Layer.scopedDiscard(
  cancelDue.pipe(
    Effect.catchAll((error) => laterOn(error)),
    Effect.repeat(Schedule.spaced("100 millis")),
    Effect.forkScoped
  )
)

/** Creates the table. */
export const layerTable = Layer.effectDiscard(
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    yield* sql`create schema if not exists ordering`
    yield* sql`create table if not exists ordering.deadlines (order_id text primary key, due bigint not null)`
  })
)

// --- internal ---

/** What is due is still due the next time. */
const laterOn = ({ message }: { readonly message: string }) => Effect.logWarning(message)

const cancel = (order: string) =>
  Order.evaluate(order, new CancelOrder({ reason: "not paid in time" })).pipe(
    Aggregate.withCommandId("deadline"),
    // Confirmed in time, and maybe at the last moment.
    Effect.catchTag("NotOpen", () => Effect.void),
    Effect.zipRight(
      Effect.flatMap(SqlClient.SqlClient, (sql) => sql`delete from ordering.deadlines where order_id = ${order}`)
    ),
    // One that fails keeps no other waiting.
    Effect.catchAll(laterOn)
  )
