/** Clients that evaluate commands on accounts, and record what each command returned. */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { Aggregate, StoreError } from "effect-maestro"
import { Account, Deposit, Open, Withdraw } from "../aggregates/Account.js"

/** A command, and what its client knows of it. */
export interface Entry {
  /** It is in the metadata of its event. */
  readonly command: string
  /** Its client has given it a command id, so there is a receipt of that id. */
  readonly hasId: boolean
  readonly outcome: "acknowledged" | "refused" | "gave up" | "unknown"
  readonly millis: number
}

export interface Load {
  /** Begins the ids of all commands. */
  readonly prefix: string
  readonly accounts: ReadonlyArray<string>
  readonly clients: number
  /** Every second command has a command id, so it can't share a commit with others. */
  readonly withIds: boolean
}

/** Opens the accounts that are not open yet. */
export const openAccounts = (accounts: ReadonlyArray<string>) =>
  Effect.forEach(
    accounts,
    (id) => Effect.catchTag(Account.evaluate(id, new Open({ owner: id })), "AlreadyOpen", () => Effect.void),
    { concurrency: 16, discard: true }
  )

/** Evaluates commands until it is over: one after the other in each client, and one after the other on the accounts. */
export const runLoad = (load: Load, isOver: () => boolean) =>
  Effect.gen(function* () {
    const entries: Array<Entry> = []
    yield* Effect.forEach(
      Array.from({ length: load.clients }),
      (_, client) =>
        Effect.gen(function* () {
          for (let count = 0; !isOver(); count++) entries.push(yield* evaluate(load, client, count))
        }),
      { concurrency: "unbounded", discard: true }
    )
    return entries
  })

// --- internal ---

const evaluate = ({ accounts, clients, prefix, withIds }: Load, client: number, count: number) =>
  Effect.gen(function* () {
    const command = `${prefix}-${client}-${count}`
    const account = accounts[(client + count * clients) % accounts.length] ?? "none"
    // One in ten is refused.
    const asksTooMuch = count % 10 === 9
    const hasId = withIds && !asksTooMuch && count % 2 === 0
    const asked = asksTooMuch
      ? Account.evaluate(account, new Withdraw({ amount: 1_000_000_000 }))
      : Account.evaluate(account, new Deposit({ amount: 1 }))
    const began = yield* Clock.currentTimeMillis
    const exit = yield* Effect.exit(
      Effect.provideService(hasId ? Aggregate.withCommandId(command)(asked) : asked, Aggregate.Metadata, { command })
    )
    const millis = (yield* Clock.currentTimeMillis) - began
    return { command, hasId, millis, outcome: outcomeOf(exit) }
  })

const outcomeOf = (exit: Exit.Exit<unknown, unknown>): Entry["outcome"] => {
  if (Exit.isSuccess(exit)) return "acknowledged"
  const error = Cause.squash(exit.cause)
  // Another commit was first again and again, so nothing is stored.
  if (error instanceof StoreError.RetryCommand) return "gave up"
  return error instanceof Error && "_tag" in error && error._tag === "InsufficientFunds" ? "refused" : "unknown"
}
