/**
 * Two faults on an embedded store: acknowledgements that get lost, and a process that is killed while it commits. Both
 * are checked against the log. The long run with a server is `npm run test:faults`, in a clone of the repository.
 *
 * `npx tsx examples/trust/main.ts`
 */
import { spawn } from "node:child_process"
import { mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Chunk from "effect/Chunk"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import {
  Aggregate,
  MemoryStore,
  Projection,
  ProjectionTables,
  SqlStore,
  StoreAdapter,
  StoreError
} from "effect-maestro"
import * as PgliteClient from "effect-maestro/PgliteClient"

class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", { amount: Schema.Int }) {}
class Deposit extends Schema.TaggedClass<Deposit>()("Deposit", { amount: Schema.Int }) {}

const Balances = Projection.makeSql({
  name: "balances",
  tables: { balances: (sql) => sql`create table balances (account text primary key, balance int not null)` },
  events: Deposited,
  project: {
    Deposited: ({ amount }, { id }, sql) =>
      sql`insert into balances as b (account, balance) values (${id}, ${amount})
        on conflict (account) do update set balance = b.balance + excluded.balance`
  }
})

const design = {
  state: Schema.Struct({ balance: Schema.Int }),
  initialState: { balance: 0 },
  events: Deposited,
  commands: Deposit,
  decide: { Deposit: ({ amount }: Deposit) => Effect.succeed([new Deposited({ amount })]) },
  evolve: {
    Deposited: ({ balance }: { readonly balance: number }, { amount }: Deposited) => ({ balance: balance + amount })
  }
}

/** An account without a projection, and one whose balance is a row of a table, too. */
const Account = Aggregate.make("Account", design)
const Wallet = Aggregate.make("Wallet", { ...design, projections: [Balances] })

// --- acknowledgements that get lost ---

/** The store, but every second commit fails after it was stored, as if the connection broke at COMMIT. */
const layerLossy = Layer.effect(
  StoreAdapter.StoreAdapter,
  Effect.map(StoreAdapter.StoreAdapter, (store) => {
    let commits = 0
    return {
      ...store,
      commitEvents: (events) =>
        Effect.flatMap(store.commitEvents(events), () =>
          ++commits % 2 === 0
            ? Effect.void
            : new StoreError.StoreError({
                reason: "CommitUnknown",
                operation: "commitEvents",
                description: "no answer"
              })
        )
    }
  })
).pipe(Layer.provide(MemoryStore.layer))

const loseAcknowledgements = Effect.gen(function* () {
  yield* Effect.repeatN(Account.evaluate("ann", new Deposit({ amount: 1 })), 99)
  const { sequence, state } = yield* Account.root("ann")
  yield* Console.log(`100 deposits, whose acknowledgements are lost: ${sequence} events, balance ${state.balance}`)
}).pipe(Effect.provide(Account.layer.pipe(Layer.provide(layerLossy))))

// --- a process that is killed ---

const wallets = ["ann", "bob", "cyd"]

const layerIn = (dataDir: string) =>
  Wallet.layer.pipe(
    Layer.provide(ProjectionTables.layer(Wallet.projections)),
    Layer.provideMerge(SqlStore.layer),
    Layer.provideMerge(PgliteClient.layerWith({ dataDir }))
  )

/** What the killed process does: it deposits for ever, and prints each acknowledged sequence. */
const depositForEver = Effect.forEach(
  wallets,
  (id) =>
    Effect.forever(
      Effect.flatMap(Wallet.evaluate(id, new Deposit({ amount: 1 })), ({ sequence }) =>
        Console.log(`${id} ${sequence}`)
      )
    ),
  { concurrency: "unbounded", discard: true }
)

/** Starts the process, kills it after so many acknowledgements, and returns all that it printed. */
const killAfter = (acknowledgements: number, dataDir: string) =>
  Effect.promise(async () => {
    const [node, script] = [process.execPath, fileURLToPath(import.meta.url)]
    const child = spawn(node, [...process.execArgv, script, dataDir], { stdio: ["ignore", "pipe", "inherit"] })
    const lines: Array<string> = []
    for await (const line of createInterface({ input: child.stdout })) {
      if (lines.push(line) === acknowledgements) child.kill("SIGKILL")
    }
    return lines
  })

/** Compares what was acknowledged with the log, and the table with the events. */
const inspect = (acknowledged: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    const rows = yield* sql<{ account: string; balance: number }>`select account, balance from balances`
    const balances = new Map(rows.map(({ account, balance }) => [account, balance]))
    const stored = new Set<string>()
    let [gaps, off] = [0, 0]
    for (const id of wallets) {
      const history = Chunk.toReadonlyArray(yield* Stream.runCollect(Wallet.history(id)))
      for (const [index, { sequence }] of history.entries()) {
        stored.add(`${id} ${sequence}`)
        if (sequence !== index + 1) gaps++
      }
      if (balances.get(id) !== history.length) off++
    }
    const lost = acknowledged.filter((place) => !stored.has(place)).length
    const doubled = acknowledged.length - new Set(acknowledged).size
    yield* Console.log(`  lost ${lost}, doubled ${doubled}, gaps ${gaps}, tables off ${off}`)
  })

const killAndInspect = Effect.gen(function* () {
  const folder = yield* Effect.acquireRelease(
    Effect.promise(() => mkdtemp(join(tmpdir(), "trust-"))),
    (path) => Effect.promise(() => rm(path, { recursive: true, force: true }))
  )
  const dataDir = join(folder, "data")
  const acknowledged = yield* killAfter(200, dataDir)
  yield* Console.log("A process is killed after 200 acknowledged deposits, and its folder is opened again:")
  yield* Effect.provide(inspect(acknowledged), layerIn(dataDir))
}).pipe(Effect.scoped)

const dataDir = process.argv[2]

Effect.runPromise(
  dataDir === undefined
    ? Effect.zipRight(loseAcknowledgements, killAndInspect)
    : Effect.provide(depositForEver, layerIn(dataDir))
)
