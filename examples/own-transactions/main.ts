/**
 * A transfer between two accounts and a table of the application, in one transaction: done, refused, failed at COMMIT, and repeated.
 *
 * Run it by `npx tsx examples/own-transactions/main.ts`. It uses an embedded Postgres.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Aggregate, SqlStore } from "effect-maestro"
import * as PgliteClient from "effect-maestro/PgliteClient"
import { Account, Deposit, Open, Withdraw } from "../aggregates/Account.js"

interface Transfer {
  /** What the sender calls this transfer, however often it is sent. */
  readonly reference: string
  readonly from: string
  readonly to: string
  readonly amount: number
  readonly branch: string
}

const transfer = ({ amount, branch, from, reference, to }: Transfer) =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    return yield* sql.withTransaction(
      Effect.gen(function* () {
        const { duplicate } = yield* Account.evaluate(from, new Withdraw({ amount })).pipe(
          Aggregate.withCommandId(reference)
        )
        if (duplicate) return "it was done before"
        yield* Account.evaluate(to, new Deposit({ amount })).pipe(Aggregate.withCommandId(reference))
        yield* sql`insert into transfers ${sql.insert({ reference, amount, branch })}`
        return "done"
      })
    )
  })

/** A refusal that is handled inside leaves the transaction usable. */
const transferAtMost = (details: Transfer) =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    return yield* sql.withTransaction(
      transfer(details).pipe(
        Effect.catchTag("InsufficientFunds", ({ balance }) => transfer({ ...details, amount: balance }))
      )
    )
  })

const layerTables = Layer.effectDiscard(
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    yield* sql`create table branches (name text primary key)`
    yield* sql`insert into branches values ('Oslo')`
    // Deferred: the database checks it at COMMIT.
    yield* sql`create table transfers (
      reference text primary key,
      amount int not null,
      branch text not null references branches deferrable initially deferred
    )`
  })
)

const show = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const [ann, bob] = yield* Effect.all([Account.fetch("ann"), Account.fetch("bob")])
  const transfers = yield* sql<{ reference: string }>`select reference from transfers order by reference`
  yield* Console.log(
    `  Ann has ${ann.balance}, Bob has ${bob.balance}; transfers: ${transfers.map(({ reference }) => reference).join(", ")}`
  )
})

const program = Effect.gen(function* () {
  for (const id of ["ann", "bob"]) yield* Account.evaluate(id, new Open({ owner: id }))
  yield* Account.evaluate("ann", new Deposit({ amount: 100 }))
  const details = { reference: "t1", from: "ann", to: "bob", amount: 30, branch: "Oslo" }

  yield* Console.log(`Ann sends 30: ${yield* transfer(details)}`)
  yield* show

  yield* Console.log("Ann sends 300")
  yield* transfer({ ...details, reference: "t2", amount: 300 }).pipe(
    Effect.catchTag("InsufficientFunds", ({ balance }) => Console.log(`  refused: only ${balance} left`))
  )
  yield* show

  yield* Console.log(`Ann sends at most 80: ${yield* transferAtMost({ ...details, reference: "t3", amount: 80 })}`)
  yield* show

  yield* Console.log("Bob sends 10 at a branch that does not exist")
  yield* transfer({ ...details, reference: "t4", from: "bob", to: "ann", amount: 10, branch: "Atlantis" }).pipe(
    Effect.catchAllDefect((defect) => Console.log(`  COMMIT failed: ${reasonOf(defect)}`))
  )
  yield* show

  yield* Console.log(`The first transfer is sent again: ${yield* transfer(details)}`)
  yield* show
})

const reasonOf = (defect: unknown): string =>
  defect instanceof Error ? (defect.cause instanceof Error ? defect.cause.message : defect.message) : String(defect)

const layer = Account.layer.pipe(
  Layer.provideMerge(SqlStore.layer),
  Layer.provideMerge(layerTables),
  Layer.provideMerge(PgliteClient.layerMemory)
)

program.pipe(Effect.provide(layer), NodeRuntime.runMain)
