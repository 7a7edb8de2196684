/** Transfers by `Aggregate.evaluateAll`: alone, with a command id, in a transaction of the caller's own, and with a sale. */
import * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Random from "effect/Random"
import { Aggregate } from "effect-maestro"
import {
  Deposit,
  Exchange,
  InsufficientFunds,
  retry,
  Sale,
  Sold,
  slotCount,
  Trade,
  Wallet,
  Withdraw
} from "./domain.js"
import type { Answer, Move } from "./history.js"
import { Abandoned, command, inTransaction, pause, type Services, unprojected, type Work } from "./work.js"

/** A transfer of any kind, between two or three of the accounts. */
export const drawTransfer = (id: string, accounts: ReadonlyArray<string>): Effect.Effect<Work> =>
  Effect.gen(function* () {
    const [from = "", to = "", third = ""] = yield* Random.shuffle(accounts)
    const amount = yield* Random.nextIntBetween(1, 150)
    const paid: Move = { account: from, amount: -amount }
    const received: Move = { account: to, amount }
    const moves = yield* Random.choice([
      [paid, received],
      // The refusal comes second.
      [received, paid],
      // The second of the same account is decided on what the first has left.
      [paid, received, { account: from, amount: -7 }, { account: third, amount: 7 }]
    ])
    const once = Aggregate.withCommandId(id)
    const transfer = evaluate(moves)
    const work = (run: Work["run"], repeatable: boolean, all: ReadonlyArray<Move> = moves): Work => ({
      accounts: all.map(({ account }) => account),
      events: all.length,
      moves: all,
      repeatable,
      run
    })
    const dice = yield* Random.nextIntBetween(0, 100)
    if (dice < 28) return work(transfer, false)
    if (dice < 46) return work(once(transfer), true)
    if (dice < 60) return work(bothOf(once(transfer)), true)
    if (dice < 68) return work(inTransaction(Effect.zipLeft(transfer, pause)), false)
    if (dice < 78) return work(inTransaction(Effect.zipLeft(once(transfer), pause)), true)
    if (dice < 84) return work(detour(once(transfer)), true)
    if (dice < 88) return work(inTransaction(Effect.zipRight(transfer, new Abandoned())), false)
    if (dice < 92) return work(refusedWithin(from, to), false, [{ account: from, amount: 1 }])
    const sale = `${unprojected}${id}-sale`
    // The projection pays into an account that no other list locks: a store that projects outside the transaction would wait for itself.
    const till = `${id}-till`
    const sold = [...moves, { account: sale, amount: 0 }, { account: till, amount: 3 }]
    return work(once(evaluate(moves, Sale.command(sale, new Sold({ account: till, price: 3 })))), true, sold)
  }).pipe(Effect.orDie)

/** Two exchanges, which lock up to four slots in any order. */
export const drawExchanges = (id: string): Effect.Effect<Work> =>
  Effect.gen(function* () {
    const accounts = ["a", "b"].map((name) => `${unprojected}${id}-trade-${name}`)
    const commands = yield* Effect.forEach(accounts, (account) =>
      Effect.gen(function* () {
        const first = yield* Random.nextIntBetween(0, slotCount)
        const second = (first + (yield* Random.nextIntBetween(1, slotCount))) % slotCount
        return Trade.command(account, new Exchange({ first, second }))
      })
    )
    return {
      accounts,
      events: 2,
      moves: accounts.map((account) => ({ account, amount: 0 })),
      run: Effect.as(Aggregate.evaluateAll(commands, { retry }), [])
    }
  })

// --- internal ---

type Run = Effect.Effect<ReadonlyArray<Answer>, unknown, Services>

/** A refusal has the balance that the account had before the list. */
const evaluate = (
  moves: ReadonlyArray<Move>,
  ...sales: ReadonlyArray<ReturnType<typeof Sale.command<Sold>>>
): Effect.Effect<ReadonlyArray<Answer>, unknown, Services> =>
  Aggregate.evaluateAll([...moves.map(commandFor), ...sales], { retry }).pipe(
    Effect.map((results) =>
      results.flatMap(({ duplicate, sequence, state }, index): ReadonlyArray<Answer> => {
        const account = moves[index]?.account
        return account === undefined || !("balance" in state)
          ? []
          : [{ account, sequence, balance: state.balance, duplicate }]
      })
    ),
    Effect.mapError((error) => {
      if (error._tag !== "CommandRefused" || !(error.refusal instanceof InsufficientFunds)) return error
      const before = moves.slice(0, error.index).filter(({ account }) => account === error.id)
      const balance = before.reduce((sum, { amount }) => sum - amount, error.refusal.balance)
      return new InsufficientFunds({ account: error.id, balance })
    })
  )

const commandFor = ({ account, amount }: Move) =>
  amount < 0
    ? Wallet.command(account, new Withdraw({ amount: -amount }))
    : Wallet.command(account, new Deposit({ amount }))

/** The list comes twice at the same time. It has taken effect if one of both says so. */
const bothOf = (run: Run): Run =>
  Effect.flatMap(Effect.all(Arr.replicate(Effect.exit(run), 2), { concurrency: 2 }), (exits) => {
    const answers = exits.filter(Exit.isSuccess).flatMap(({ value }) => value)
    if (exits.some(Exit.isSuccess)) return Effect.succeed(answers)
    const causes = exits.filter(Exit.isFailure).map(({ cause }) => cause)
    // What says nothing of the other one leaves it open.
    const open = causes.find((cause) => !(Cause.squash(cause) instanceof InsufficientFunds))
    return open === undefined ? Effect.failCause(causes[0] ?? Cause.empty) : Effect.die(Cause.squash(open))
  })

/** It is rolled back to a savepoint with its receipts, so the second one is no duplicate of the first. */
const detour = (run: Run): Run =>
  inTransaction(
    Effect.gen(function* () {
      yield* inTransaction(Effect.zipRight(run, new Abandoned())).pipe(
        Effect.catchIf(
          (error) => error instanceof Abandoned,
          () => Effect.void
        )
      )
      yield* pause
      return yield* run
    })
  )

/** A list that is refused at its end leaves nothing in the transaction, which goes on. */
const refusedWithin = (account: string, other: string): Run =>
  inTransaction(
    Effect.gen(function* () {
      const tooMuch = 1_000_000_000
      const asked = [
        { account: other, amount: tooMuch },
        { account, amount: 200 },
        { account, amount: -tooMuch }
      ]
      const refused = yield* Effect.flip(evaluate(asked))
      if (!(refused instanceof InsufficientFunds)) return yield* Effect.fail(refused)
      return [yield* command(account, new Deposit({ amount: 1 }))]
    })
  )
