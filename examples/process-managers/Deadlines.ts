/**
 * The deadlines of payments: a table, so that no restart loses one, and a loop that cancels the orders that are due.
 *
 * Any number of processes may run the loop. A process may end between the command and the deletion of the row; the command has an id, so the
 * order is cancelled once.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { Aggregate } from "effect-maestro"
import { CancelOrder, Order } from "./Order.js"

/** Sets an order's deadline, in milliseconds since 1970. A second call changes nothing. */
export const set = (order: string, due: number) =>
  Effect.flatMap(
    SqlClient.SqlClient,
    (sql) => sql`insert into ordering.deadlines (order_id, due) values (${order}, ${due})
      on conflict (order_id) do nothing`
  )

/** Cancels the orders that are due and still open. */
export const cancelDue = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const now = yield* Clock.currentTimeMillis
  const due = yield* sql<{ order_id: string }>`select order_id from ordering.deadlines where due <= ${now} order by due`
  yield* Effect.forEach(due, ({ order_id }) => cancel(order_id), { discard: true })
})

/** Looks for due orders, for as long as the layer lives. */
export const layer = Layer.scopedDiscard(
  cancelDue.pipe(
    Effect.catchAll((error) => tryLater(error)),
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

/** A due order stays in the table, so the next round tries again. */
const tryLater = ({ message }: { readonly message: string }) => Effect.logWarning(message)

const cancel = (order: string) =>
  Order.evaluate(order, new CancelOrder({ reason: "not paid in time" })).pipe(
    Aggregate.withCommandId("deadline"),
    Aggregate.withCorrelationId(order),
    // The order was confirmed or cancelled before.
    Effect.catchTag("NotOpen", () => Effect.void),
    Effect.zipRight(
      Effect.flatMap(SqlClient.SqlClient, (sql) => sql`delete from ordering.deadlines where order_id = ${order}`)
    ),
    // A failure must not keep the other orders waiting.
    Effect.catchAll(tryLater)
  )
