/**
 * Whether the running fiber is inside a transaction: the store's own, or one that the application opened.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"

/** Set around what runs inside a commit of a store, whatever the store is on. */
export class StoreTransaction extends Context.Reference<StoreTransaction>()(
  "effect-maestro/internal/StoreTransaction",
  {
    defaultValue: () => false
  }
) {}

/** Says so to the effect, where the connection of a transaction does not say it already. */
export const inStoreTransaction = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.contextWithEffect((context: Context.Context<never>) =>
    hasConnection(context) ? effect : Effect.provideService(effect, StoreTransaction, true)
  )

/** Inside a transaction, what is read may never come to be, and whoever waits for another fiber may wait for itself. */
export const isInsideTransaction = (context: Context.Context<never>): boolean =>
  Context.get(context, StoreTransaction) || hasConnection(context)

/** The same of the running fiber. */
export const insideTransaction: Effect.Effect<boolean> = Effect.contextWith(isInsideTransaction)

/** What is done depends on whether the statements of this fiber go to the connection of a transaction. */
export const whenInTransaction = <A, E, R>(run: (inside: boolean) => Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.contextWithEffect((context: Context.Context<never>) => run(hasConnection(context)))

// --- internal ---

function hasConnection(context: Context.Context<never>): boolean {
  return Context.getOption(context, SqlClient.TransactionConnection)._tag === "Some"
}
