/**
 * Reads stored events of an aggregate that do not come through it, such as those of the feed. `Aggregate.make` makes
 * `decode` of it.
 */
import * as Either from "effect/Either"
import type { Event, StreamIds } from "../../Event.js"
import { StoreError } from "../../StoreError.js"
import { type EventCodec, partsOf, type Tagged } from "../codec/eventCodec.js"
import type { IdSchema } from "../codec/ids.js"
import { checkingIds, isOf } from "../store/origin.js"

/** The events of today that a stored event of the aggregate is read as. An event of another aggregate is refused. */
export const decodeStored = <A extends Tagged>(
  aggregate: { readonly name: string; readonly kind: string; readonly streams: StreamIds; readonly id: IdSchema },
  codec: EventCodec<A>
): ((stored: Event) => Either.Either<ReadonlyArray<A>, StoreError>) => {
  const operation = `${aggregate.name}.decode`
  const decode = checkingIds(aggregate, { operation }, (stored) => Either.map(codec.decode(operation, stored), partsOf))
  return (stored) => (isOf(aggregate, stored.aggregateId) ? decode(stored) : Either.left(foreign(operation, stored)))
}

// --- internal ---

const foreign = (operation: string, { aggregateId, sequence, type }: Event): StoreError =>
  new StoreError({
    reason: "UnreadableEvent",
    operation,
    description: "it is an event of another aggregate",
    aggregateId,
    sequence,
    type
  })
