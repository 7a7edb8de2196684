/**
 * The streams that hold the receipts of commands, and projections without them. `aggregate/receipt.ts` writes receipts.
 */
import * as Effect from "effect/Effect"
import type { Event } from "../../Event.js"
import type { Projection } from "../../Projection.js"
import { reservedPrefix } from "../codec/names.js"

/** The kind of the streams of receipts. */
export const receiptKind = `${reservedPrefix}:Receipt`

/** The stream id of a receipt. No aggregate has this kind, because the prefix is reserved. */
export const receiptStreamId = (hash: string): string => receiptPrefix + hash

/** The projection without receipts, unless it names the event types that it handles. */
export const withoutReceipts = <E, R>(projection: Projection.Bound<E, R>): Projection.Bound<E, R> => {
  if (projection.events !== undefined) return projection
  if (projection.project === undefined) {
    const { statements } = projection
    return { ...projection, statements: (event) => (isReceipt(event) ? Effect.succeed([]) : statements(event)) }
  }
  const { project } = projection
  return { ...projection, project: (event) => (isReceipt(event) ? Effect.void : project(event)) }
}

// --- internal ---

const receiptPrefix = `${receiptKind}/`

const isReceipt = ({ aggregateId }: Event): boolean => aggregateId.startsWith(receiptPrefix)
