/** Clients of the cluster that move money, and record their commands and the answers. */
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberId from "effect/FiberId"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import { Aggregate, StoreError } from "effect-maestro"
import type { Attempt, Outcome } from "../faults/history.js"
import { Deposit, InsufficientFunds, Wallet, Withdraw } from "./domain.js"

/** What the clients have recorded. */
export class Record {
  readonly attempts: Array<Attempt> = []
  /** The command that took longest, in milliseconds, and when it began. */
  longest = { millis: 0, began: 0, account: "" }
  isOver = false
  private awaited: { readonly count: number; readonly done: Deferred.Deferred<void> } | undefined
  private ticks = 0
  private numbers = 0

  tick(): number {
    return ++this.ticks
  }

  nextId(): string {
    return `command-${++this.numbers}`
  }

  add(attempt: Attempt): void {
    this.attempts.push(attempt)
    if (this.awaited !== undefined && this.attempts.length >= this.awaited.count) {
      Deferred.unsafeDone(this.awaited.done, Effect.void)
    }
  }

  /** Waits until so many more commands have an answer. */
  answers(count: number): Effect.Effect<void> {
    return Effect.suspend(() => {
      const done = Deferred.unsafeMake<void>(FiberId.none)
      this.awaited = { count: this.attempts.length + count, done }
      return Deferred.await(done)
    })
  }
}

export const hot = ["hot-0", "hot-1", "hot-2", "hot-3"]
export const spread = Array.from({ length: 60 }, (_, index) => `spread-${index}`)

/** One command after the other, half of them on hot accounts, until the record is over. */
export const client = (record: Record) =>
  Effect.gen(function* () {
    while (!record.isOver) yield* attempt(record)
  })

// --- internal ---

const attempt = (record: Record) =>
  Effect.gen(function* () {
    const id = record.nextId()
    const account = yield* Effect.orDie(Random.choice((yield* Random.nextBoolean) ? hot : spread))
    const amount = yield* Random.nextIntBetween(1, 100)
    const dice = yield* Random.next
    // A command with an id of its own stores no receipt of a refusal, so it must be one that is never refused.
    const isRepeatable = dice < 0.3
    const command = dice < 0.6 ? new Deposit({ amount }) : new Withdraw({ amount: amount * 2 })
    const once = Effect.provideService(Wallet.evaluate(account, command), Aggregate.Metadata, { attempt: id })
    const [began, at] = [record.tick(), performance.now()]
    let outcome = outcomeOf(account, yield* Effect.exit(isRepeatable ? Aggregate.withCommandId(id)(once) : once))
    const millis = performance.now() - at
    if (millis > record.longest.millis) record.longest = { millis, began: at, account }
    for (let time = 0; time < 5 && isRepeatable && outcome._tag === "Open"; time++) {
      outcome = outcomeOf(account, yield* Effect.exit(Aggregate.withCommandId(id)(once)))
    }
    const ended = record.tick()
    record.add({ id, accounts: [account], events: 1, began, ended, outcome, felt: false })
  })

type Evaluated = Aggregate.Evaluated<{ readonly balance: number }, unknown>

const outcomeOf = (account: string, exit: Exit.Exit<Evaluated, unknown>): Outcome => {
  if (Exit.isSuccess(exit)) {
    const { duplicate, sequence, state } = exit.value
    return { _tag: "Acknowledged", answers: [{ account, sequence, balance: state.balance, duplicate }] }
  }
  const failure = Option.getOrUndefined(Cause.failureOption(exit.cause))
  if (failure instanceof InsufficientFunds) return { _tag: "Refused", account, balance: failure.balance }
  if (failure instanceof StoreError.StoreError) {
    const isOpen = failure.reason === "CommitUnknown" || failure.reason === "ClusterUnavailable"
    return { _tag: isOpen ? "Open" : "Failed", reason: `${failure.reason}: ${failure.description}` }
  }
  return failure instanceof StoreError.RetryCommand
    ? { _tag: "Failed", reason: "RetryCommand" }
    : { _tag: "Open", reason: Cause.pretty(exit.cause) }
}
