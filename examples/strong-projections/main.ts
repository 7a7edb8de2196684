/**
 * Strong projections at work: refusals by an effect and by a constraint, a failed statement, and a table in its next version.
 *
 * Run it by `npx tsx examples/strong-projections/main.ts`. It uses an embedded Postgres.
 */

import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { ProjectionTables, SqlStore } from "effect-maestro"
import * as PgliteClient from "effect-maestro/PgliteClient"
import { Customer, FirstCustomer, Register, Rent } from "./Customer.js"

/** The table of the projection that owns none. */
const layerStock = Layer.effectDiscard(
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    yield* sql`create table stock (title text primary key, copies int not null)`
    yield* sql`insert into stock values ('Alien', 2), ('Brazil', 1), ('', 9)`
  })
)

const layerStore = SqlStore.layer.pipe(Layer.provideMerge(layerStock), Layer.provideMerge(PgliteClient.layerMemory))

const show = (table: "charts" | "customers" | "stock") =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const rows = yield* sql`select * from ${sql(table)} order by 1`
    yield* Console.log(`  ${table}: ${JSON.stringify(rows)}`)
  })

const firstRelease = Effect.gen(function* () {
  yield* Console.log("Ann and Bob register and rent")
  yield* FirstCustomer.evaluate("ann", new Register({ email: "ann@example.com" }))
  yield* FirstCustomer.evaluate("ann", new Rent({ title: "Alien" }))
  yield* FirstCustomer.evaluate("bob", new Register({ email: "ann@example.com" })).pipe(
    Effect.catchTag("EmailTaken", ({ email }) => Console.log(`  Bob is refused: ${email} is taken`))
  )
  yield* FirstCustomer.evaluate("bob", new Register({ email: "bob@example.com" }))
  yield* FirstCustomer.evaluate("bob", new Rent({ title: "Brazil" }))
  yield* FirstCustomer.evaluate("bob", new Rent({ title: "Alien" }))
  yield* FirstCustomer.evaluate("ann", new Rent({ title: "Brazil" })).pipe(
    Effect.catchTag("OutOfStock", ({ title }) => Console.log(`  Ann is refused: no copy of ${title} is left`))
  )
  yield* Effect.all([show("customers"), show("stock"), show("charts")])

  yield* Console.log("A statement fails: nothing of the command is stored")
  yield* FirstCustomer.evaluate("ann", new Rent({ title: "" })).pipe(
    Effect.catchTag("StoreError", ({ message }) => Console.log(`  ${message}`))
  )
  yield* Console.log(`  Ann has rented ${JSON.stringify((yield* FirstCustomer.fetch("ann")).rented)}`)
}).pipe(Effect.provide(FirstCustomer.layer.pipe(Layer.provide(ProjectionTables.layer(FirstCustomer.projections)))))

const nextRelease = Effect.gen(function* () {
  yield* Console.log("The next release has another table, filled from all events")
  yield* show("charts")
}).pipe(Effect.provide(Customer.layer.pipe(Layer.provide(ProjectionTables.layer(Customer.projections)))))

Effect.zipRight(firstRelease, nextRelease).pipe(Effect.provide(layerStore), NodeRuntime.runMain)
