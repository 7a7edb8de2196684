/**
 * Measures this library beside Emmett and a bare `pg` insert, on one Postgres server, in one run: `npm run bench`.
 *
 * Absolute figures belong to the machine; the ratios carry over. Contestants take turns within each round, so that what else the
 * machine does falls on all of them; the figure is the median of the rounds.
 */
import * as os from "node:os"
import * as PgClient from "@effect/sql-pg/PgClient"
import { CommandHandler, type Event as EmmettEvent } from "@event-driven-io/emmett"
import { getPostgreSQLEventStore } from "@event-driven-io/emmett-postgresql"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Runtime from "effect/Runtime"
import * as Schema from "effect/Schema"
import { Aggregate, SqlStore, StoreAdapter, Timestamp } from "effect-maestro"
import pg from "pg"
import { startPostgres } from "../postgres.globalSetup.js"

const rounds = 5
const secondsPerRound = 1.5
const poolSize = 16

/** One way to do a piece of work, once. */
type Work = () => Promise<unknown>

interface Contestant {
  readonly name: string
  readonly work: Work
}

// --- the domain, the same for all ---

class Deposited extends Schema.TaggedClass<Deposited>()("Deposited", { amount: Schema.Number }) {}
class Deposit extends Schema.TaggedClass<Deposit>()("Deposit", { amount: Schema.Number }) {}

const Account = Aggregate.make("Account", {
  state: Schema.Struct({ balance: Schema.Number }),
  initialState: { balance: 0 },
  events: Deposited,
  commands: Deposit,
  decide: { Deposit: ({ amount }) => Effect.succeed([new Deposited({ amount })]) },
  evolve: { Deposited: (state, { amount }) => ({ balance: state.balance + amount }) }
})

type EmmettDeposited = EmmettEvent<"Deposited", { amount: number }>

// --- measuring ---

/** Operations per second of so many clients, each doing one thing after the other. */
const throughput = async (work: Work, clients: number, seconds: number): Promise<number> => {
  const start = performance.now()
  const end = start + seconds * 1000
  const counts = await Promise.all(
    Array.from({ length: clients }, async () => {
      let done = 0
      while (performance.now() < end) {
        await work()
        done++
      }
      return done
    })
  )
  return counts.reduce((sum, count) => sum + count, 0) / ((performance.now() - start) / 1000)
}

const median = (values: ReadonlyArray<number>): number =>
  [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN

const compare = async (title: string, clients: number, contestants: ReadonlyArray<Contestant>): Promise<void> => {
  for (const { work } of contestants) await throughput(work, clients, secondsPerRound / 3)
  const measured = new Map<string, Array<number>>(contestants.map(({ name }) => [name, []]))
  for (let round = 0; round < rounds; round++) {
    for (const { name, work } of contestants) measured.get(name)?.push(await throughput(work, clients, secondsPerRound))
  }
  const [ours = Number.NaN, ...others] = contestants.map(({ name }) => median(measured.get(name) ?? []))
  const cells = others.map((other) => `${Math.round(other)} (${(ours / other).toFixed(1)}×)`)
  console.log(`| ${[title, clients, Math.round(ours), ...cells].join(" | ")} |`)
}

const timed = async (work: () => Promise<unknown>): Promise<number> => {
  const times: Array<number> = []
  await work()
  for (let round = 0; round < rounds; round++) {
    const start = performance.now()
    await work()
    times.push(performance.now() - start)
  }
  return median(times)
}

// --- the run ---

const run = async (url: string): Promise<void> => {
  const emmett = getPostgreSQLEventStore(url)
  await emmett.schema.migrate()
  const account = {
    evolve: (state: { balance: number }, event: EmmettDeposited) => ({ balance: state.balance + event.data.amount }),
    initialState: () => ({ balance: 0 })
  }
  const handle = CommandHandler<{ balance: number }, EmmettDeposited>(account)
  const pool = new pg.Pool({ connectionString: url, max: poolSize })
  await pool.query(
    "create table bare (aggregate_id text, sequence int, body jsonb, primary key (aggregate_id, sequence))"
  )

  const layer = Account.layer.pipe(
    Layer.provideMerge(SqlStore.layer),
    Layer.provideMerge(PgClient.layer({ url: Redacted.make(url), maxConnections: poolSize }))
  )
  await Effect.runPromise(
    Effect.gen(function* () {
      const runtime = yield* Effect.runtime<StoreAdapter.StoreAdapter | Aggregate.Instance<"Account">>()
      const store = yield* StoreAdapter.StoreAdapter
      const clock = yield* Timestamp.HybridClock
      const promise = <A, E>(effect: Effect.Effect<A, E, Aggregate.Instance<"Account">>) =>
        Runtime.runPromise(runtime, effect)

      const appendOurs: Work = () =>
        promise(
          Effect.flatMap(clock.now, (timestamp) =>
            store.commitEvents([
              {
                timestamp,
                aggregateId: crypto.randomUUID(),
                sequence: 1,
                type: "Deposited",
                body: { amount: 1 },
                metadata: {}
              }
            ])
          )
        )
      const appendEmmett: Work = () =>
        emmett.appendToStream<EmmettDeposited>(crypto.randomUUID(), [{ type: "Deposited", data: { amount: 1 } }], {
          expectedStreamVersion: "STREAM_DOES_NOT_EXIST"
        })
      const appendBare: Work = () =>
        pool.query("insert into bare values ($1, $2, $3)", [crypto.randomUUID(), 1, '{"amount": 1}'])
      const commandOurs: Work = () => promise(Account.evaluate(crypto.randomUUID(), new Deposit({ amount: 1 })))
      const commandEmmett: Work = () =>
        handle(emmett, crypto.randomUUID(), () => ({ type: "Deposited", data: { amount: 1 } }))

      yield* Effect.promise(async () => {
        console.log("| work | clients | effect-maestro | Emmett | bare `pg` insert |\n|---|---|---|---|---|")
        for (const clients of [1, 16, 64]) {
          await compare("append one event to a new stream, per second", clients, [
            { name: "ours", work: appendOurs },
            { name: "Emmett", work: appendEmmett },
            { name: "bare", work: appendBare }
          ])
        }
        for (const clients of [1, 16, 64]) {
          await compare("command on a new aggregate, per second", clients, [
            { name: "ours", work: commandOurs },
            { name: "Emmett", work: commandEmmett }
          ])
        }
        const id = crypto.randomUUID()
        const events = Array.from({ length: 10_000 }, () => ({ type: "Deposited" as const, data: { amount: 1 } }))
        await emmett.appendToStream<EmmettDeposited>(id, events)
        for (let sequence = 1; sequence <= 10_000; sequence += 1000) {
          const commit = Effect.forEach(
            Array.from({ length: 1000 }, (_, index) => sequence + index),
            (at) =>
              Effect.map(clock.now, (timestamp) => ({
                timestamp,
                aggregateId: id,
                sequence: at,
                type: "Deposited",
                body: { amount: 1 },
                metadata: {}
              }))
          )
          await promise(Effect.flatMap(commit, store.commitEvents))
        }
        const ours = await timed(() => promise(Account.fetch(id)))
        const theirs = await timed(() => emmett.aggregateStream<{ balance: number }, EmmettDeposited>(id, account))
        const bare = await timed(() =>
          pool.query("select * from maestro.event_log where aggregate_id = $1 order by sequence", [id])
        )
        console.log(
          `| load an aggregate of 10 000 events, ms | 1 | ${ours.toFixed(0)} | ${theirs.toFixed(0)} (${(theirs / ours).toFixed(1)}×) | ${bare.toFixed(0)} as a \`select\` (${(bare / ours).toFixed(1)}×) |`
        )
      })
    }).pipe(Effect.provide(layer))
  )
  await pool.end()
  await emmett.close()
  // The pools have asked their connections to end; before they have, the server must not.
  await new Promise((resolve) => setTimeout(resolve, 500))
}

const server = await startPostgres([])
try {
  console.log(`Node ${process.version}, ${os.cpus().length} cores, Postgres with its defaults, pool of ${poolSize}\n`)
  await run(server.url)
} finally {
  await server.stop()
}
