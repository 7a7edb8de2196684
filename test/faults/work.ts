/** What an attempt of a client does, and the parts that all kinds of it are made of. */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import type { Aggregate, StoreAdapter, Timestamp } from "effect-maestro"
import { type Deposit, type Felt, Wallet, type Withdraw } from "./domain.js"
import type { Answer, Move } from "./history.js"

/** The services of a node. */
export type Services =
  | Aggregate.Instance<"Wallet">
  | Aggregate.Instance<"Sale">
  | Aggregate.Instance<"Trade">
  | StoreAdapter.StoreAdapter
  | SqlClient.SqlClient
  | Timestamp.HybridClock
  | Felt

export interface Work {
  readonly accounts: ReadonlyArray<string>
  readonly events: number
  /** All that it does, where the judge is to compare each event. */
  readonly moves?: ReadonlyArray<Move> | undefined
  /** It has a command id: where the answer is lost, it is done again until the outcome is known. */
  readonly repeatable?: boolean
  readonly run: Effect.Effect<ReadonlyArray<Answer>, unknown, Services>
}

export const command = (account: string, asked: Deposit | Withdraw) =>
  Effect.map(
    Wallet.evaluate(account, asked),
    ({ sequence, state }): Answer => ({ account, sequence, balance: state.balance })
  )

export const inTransaction = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) => sql.withTransaction(effect))

/** Lets others commit meanwhile. */
export const pause = Effect.flatMap(Random.nextIntBetween(0, 4), (millis) => Effect.sleep(millis))

export class Abandoned extends Data.TaggedError("Abandoned") {}

/** Begins the names of accounts whose events were stored without the projection. */
export const unprojected = "plain-"
