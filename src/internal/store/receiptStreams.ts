/**
 * The streams of receipts, and projections that leave them out. `aggregate/receipt.ts` writes receipts.
 */
import * as Effect from "effect/Effect"
import type { Event } from "../../Event.js"
import type { Projection } from "../../Projection.js"
import { reservedPrefix } from "../codec/names.js"

/** The stream id of a receipt. No aggregate has this kind, because the prefix is reserved. */
export const receiptStreamId = (hash: string): string => receiptPrefix + hash

/** The projection without receipts, unless it asks for their event type. */
export const withoutReceipts = <E, R>(projection: Projection.Bound<E, R>): Projection.Bound<E, R> =>
  projection.events === undefined
    ? { ...projection, project: (event) => (isReceipt(event) ? Effect.void : projection.project(event)) }
    : projection

// --- internal ---

const receiptPrefix = `${reservedPrefix}:Receipt/`

const isReceipt = ({ aggregateId }: Event): boolean => aggregateId.startsWith(receiptPrefix)
