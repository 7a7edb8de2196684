/**
 * Whether a replica may answer the queries of a fiber. `SqlStore.fromReplica` sets it, and the reads of aggregates ask for it.
 *
 * It never concerns a decision: `evaluate` does not ask, and what a decision or a transaction reads comes from the primary.
 */
import * as Context from "effect/Context"
import type { ReplicaQuery } from "../../StoreAdapter.js"
import { isInsideTransaction } from "./ambientTransaction.js"
import { DecidingOn } from "./commandCause.js"

/** What the queries of the fiber expect of the replica; undefined where the primary answers them. */
export class ReadingFrom extends Context.Reference<ReadingFrom>()("effect-maestro/internal/ReadingFrom", {
  defaultValue: (): { readonly replica: ReplicaQuery | undefined } => primary
}) {}

/** What a query in the context expects of the replica; undefined where the primary must answer it. */
export const replicaQueryIn = (context: Context.Context<never>): ReplicaQuery | undefined => {
  const { replica } = Context.get(context, ReadingFrom)
  if (replica === undefined || isInsideTransaction(context)) return undefined
  return Context.get(context, DecidingOn).streams.length > 0 ? undefined : replica
}

// --- internal ---

const primary = { replica: undefined }
