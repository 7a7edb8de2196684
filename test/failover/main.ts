/**
 * Fails over while clients are at work, and holds their answers against the log: `npm run test:failover`. It needs about a minute, and
 * the Postgres 18 that `npm ci` installs. `npm run test:failover -- 15` runs on another version, where the machine has it.
 *
 * With synchronous replication the clients of the fault run must not lose anything. Without it, `lossy.ts` looks at what becomes of a node
 * whose last commits are lost.
 */
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import { type Fault, underFault } from "../faults/faults.js"
import { makeProxy } from "../faults/proxy.js"
import { logKind, logKindInWords } from "../logKind.js"
import { loseTheLastCommits } from "./lossy.js"
import { major, makePair, type Pair } from "./pair.js"

const seed = Number(process.env.SEED ?? Date.now())
const rounds = Number(process.env.ROUNDS ?? 12)

const failingOver = (pair: Pair): Fault => ({
  name: "failover to a synchronous replica",
  rounds,
  calm: false,
  once: () => Effect.as(pair.failOver, 1)
})

/** Prints the report, and returns whether nothing is wrong. */
const withReplicaInStep = Effect.gen(function* () {
  const pair = yield* makePair(true)
  const proxy = yield* makeProxy({ host: "127.0.0.1", port: pair.port })
  const server = { url: pair.url, port: pair.port, kill: Effect.void, start: Effect.void }
  const {
    acknowledged,
    attempts,
    backAfter,
    cuts,
    fault,
    open,
    rounds: _rounds,
    ...wrong
  } = yield* underFault(server, proxy, failingOver(pair), rounds)
  console.log(`${fault}: ${cuts} failovers, ${attempts} commands, ${acknowledged} acknowledged, ${open} open`)
  console.log(
    `  ${Object.entries(wrong)
      .map(([what, count]) => `${what} ${count}`)
      .join(", ")}`
  )
  console.log(`  back after ${backAfter.median.toFixed(0)} ms, ${backAfter.longest.toFixed(0)} ms at most`)
  return Object.values(wrong).every((count) => count === 0)
}).pipe(Effect.scoped)

const withReplicaBehind = Effect.gen(function* () {
  const wrong = yield* Effect.flatMap(makePair(false), loseTheLastCommits)
  console.log("failover to a replica that lacked the last commits")
  console.log(wrong.length === 0 ? "  all as it must be" : wrong.map((one) => `  WRONG: ${one}`).join("\n"))
  return wrong.length === 0
}).pipe(Effect.scoped)

console.log(`seed ${seed}, Postgres ${major}, ${logKindInWords(logKind())}`)
const program = Effect.all([withReplicaBehind, withReplicaInStep]).pipe(Effect.withRandom(Random.make(seed)))
process.exitCode = (await Effect.runPromise(program)).every((isRight) => isRight) ? 0 : 1
