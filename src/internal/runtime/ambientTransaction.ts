/**
 * Whether the running fiber is inside a transaction: of the store, or of the application. Aggregates and stores ask for
 * it.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"

/** True for the projections of a commit, in every kind of store. */
export class StoreTransaction extends Context.Reference<StoreTransaction>()(
  "effect-maestro/internal/StoreTransaction",
  {
    defaultValue: () => false
  }
) {}

/** Marks the effect as inside a transaction. A connection of a transaction in the context marks it already. */
export const inStoreTransaction = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.contextWithEffect((context: Context.Context<never>) =>
    hasConnection(context) ? effect : Effect.provideService(effect, StoreTransaction, true)
  )

/**
 * Whether the fiber is inside a transaction. There, reads may return uncommitted events, and waiting for another fiber
 * can be a deadlock, because that fiber may wait for this transaction.
 */
export const isInsideTransaction = (context: Context.Context<never>): boolean =>
  Context.get(context, StoreTransaction) || hasConnection(context)

/** Whether the running fiber is inside a transaction. */
export const insideTransaction: Effect.Effect<boolean> = Effect.contextWith(isInsideTransaction)

/** Calls `run` with whether the statements of the fiber use the connection of a transaction. */
export const whenInTransaction = <A, E, R>(run: (inside: boolean) => Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.contextWithEffect((context: Context.Context<never>) => run(hasConnection(context)))

// --- internal ---

function hasConnection(context: Context.Context<never>): boolean {
  return Context.getOption(context, SqlClient.TransactionConnection)._tag === "Some"
}
