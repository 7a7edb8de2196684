/** Load on a cluster of processes while something happens to them, and the check of the record against the log. */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import { SqlStore } from "effect-maestro"
import { type ClusterOptions, layerClientOnly, layerDatabase } from "../../examples/cluster/node.js"
import { type Attempt, type Row, type Verdict, verdictOf } from "../faults/history.js"
import { logKind } from "../logKind.js"
import { type Crew, makeCrew } from "./crew.js"
import { Wallet, Wallets } from "./domain.js"
import { client, hot, Record, spread } from "./load.js"

export interface Run extends ClusterOptions {
  /** The program of a runner, as one file. */
  readonly file: string
  /** An empty database. */
  readonly url: string
  readonly clients: number
  readonly runners: number
  /** What happens to the runners. The load ends after it. */
  readonly happening: (crew: Crew, record: Record) => Effect.Effect<void, unknown>
}

export interface Report extends Verdict {
  readonly acknowledged: number
  readonly refused: number
  /** A failure that says that nothing was stored. */
  readonly failed: ReadonlyArray<string>
  /** A failure that leaves it open whether something was stored. */
  readonly open: ReadonlyArray<string>
  readonly longest: Record["longest"]
}

/** Starts the runners, puts load on them, and returns what was found wrong. */
export const underLoad = (run: Run): Effect.Effect<Report, unknown> =>
  Effect.gen(function* () {
    const database = yield* Layer.build(layerDatabase(run.url, "client"))
    const admin = Context.get(database, SqlClient.SqlClient)
    yield* Effect.provide(SqlStore.migrate(logKind()), database)
    yield* admin`create table balances (account text primary key, balance bigint not null)`
    const crew = yield* makeCrew({ ...run, admin })
    yield* Effect.all(
      Array.from({ length: run.runners }, () => crew.add),
      { concurrency: "unbounded" }
    )
    const wallets = yield* Effect.provide(
      Layer.build(Layer.provide(Wallets.layerClient, layerClientOnly(run))),
      database
    )
    const record = new Record()
    const clients = yield* Effect.fork(
      Effect.provide(
        Effect.all(
          Array.from({ length: run.clients }, () => client(record)),
          { concurrency: "unbounded" }
        ),
        wallets
      )
    )
    yield* run.happening(crew, record)
    record.isOver = true
    yield* Fiber.join(clients)
    return yield* Effect.provide(inspect(admin, record), wallets)
  }).pipe(Effect.scoped, Logger.withMinimumLogLevel(LogLevel.None))

// --- internal ---

const inspect = (admin: SqlClient.SqlClient, record: Record) =>
  Effect.gen(function* () {
    const all = yield* admin<Row & { type: string }>`
      select substr(aggregate_id, strpos(aggregate_id, '/') + 1) as account, sequence, type,
        timestamp::text as timestamp, coalesce(metadata ->> 'attempt', 'none') as attempt,
        coalesce((body ->> 'amount')::int * case type when 'Withdrawn' then -1 else 1 end, 0) as amount
      from maestro.event_log where type <> 'effect-maestro/CommandHandled'`
    const receipts = yield* admin<{ command: string }>`
      select body ->> 'commandId' as command from maestro.event_log where type = 'effect-maestro/CommandHandled'`
    const balances = yield* admin<{ account: string; balance: string }>`select account, balance from balances`
    const attempts = record.attempts
    const states = new Map<string, number>()
    const cached = new Map<string, number>()
    for (const account of [...hot, ...spread]) {
      cached.set(account, (yield* Wallet.get(account)).balance)
      states.set(account, (yield* Wallet.fetch(account)).balance)
    }
    const verdict = verdictOf({
      attempts,
      log: all,
      places: all,
      projection: new Map(balances.map(({ account, balance }) => [account, Number(balance)])),
      isProjected: () => true,
      states,
      seen: [],
      noted: 0
    })
    const handled = receipts.map(({ command }) => command)
    const known = new Set(handled)
    const withoutReceipt = attempts.filter(({ id, outcome }) => isDuplicateOf(outcome) && !known.has(id)).length
    const reasons = (tag: "Failed" | "Open") =>
      attempts.flatMap(({ outcome }) => (outcome._tag === tag && "reason" in outcome ? [outcome.reason] : []))
    const count = (tag: Attempt["outcome"]["_tag"]) => attempts.filter(({ outcome }) => outcome._tag === tag).length
    const report: Report = {
      ...verdict,
      lost: verdict.lost + withoutReceipt,
      doubled: verdict.doubled + handled.length - known.size,
      disorder: verdict.disorder + outOfOrderOf(attempts),
      statesOff: verdict.statesOff + [...cached].filter(([account, balance]) => states.get(account) !== balance).length,
      acknowledged: count("Acknowledged"),
      refused: count("Refused"),
      failed: reasons("Failed"),
      open: reasons("Open"),
      longest: record.longest
    }
    return report
  })

const isDuplicateOf = (outcome: Attempt["outcome"]): boolean =>
  outcome._tag === "Acknowledged" && outcome.answers.some(({ duplicate }) => duplicate === true)

/** How many commands were acknowledged before another one began, and have a higher sequence. */
const outOfOrderOf = (attempts: ReadonlyArray<Attempt>): number => {
  const steps = attempts.flatMap(({ began, ended, outcome }) =>
    outcome._tag !== "Acknowledged"
      ? []
      : outcome.answers
          .filter(({ duplicate }) => duplicate !== true)
          .flatMap(({ account, sequence }) => [
            { account, sequence, at: began, isEnd: false },
            { account, sequence, at: ended, isEnd: true }
          ])
  )
  const ended = new Map<string, number>()
  let count = 0
  for (const { account, isEnd, sequence } of steps.sort((a, b) => a.at - b.at)) {
    const before = ended.get(account) ?? 0
    if (isEnd) ended.set(account, Math.max(before, sequence))
    else if (sequence <= before) count++
  }
  return count
}
