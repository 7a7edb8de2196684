/**
 * How a stored event of an older release is read, for `AggregateTest.stored`.
 */
import * as Either from "effect/Either"
import type { Event } from "../../Event.js"
import type { StoreError } from "../../StoreError.js"
import { fromParts } from "../../Timestamp.js"
import type { Tagged } from "../codec/eventCodec.js"
import { type AssertionFailed, failed, synchronously } from "./failure.js"
import { type AnyAggregate, asLoaded, formOf, type StoredForm } from "./given.js"
import { isSame } from "./same.js"
import type { Stored } from "./scenarioTypes.js"
import { show } from "./show.js"

/** Reads the stored event by the schema and the history of the aggregate. */
export const reading = <A extends Tagged>(aggregate: AnyAggregate, id: string, form: StoredForm): Stored<A> => {
  const read: Either.Either<ReadonlyArray<Tagged>, StoreError> = aggregate.decode(eventOf(aggregate, id, form))
  const mismatch = (title: string, expected: unknown, lines: ReadonlyArray<string>): AssertionFailed =>
    failed({
      title: `a stored ${form.type} of ${aggregate.name} ${title}`,
      sections: [["stored", [show(form)]]],
      expected: { value: expected, lines },
      got: {
        value: Either.merge(read),
        lines: Either.isRight(read) ? showEvents(read.right) : [`can't be read: ${read.left.message}`]
      }
    })
  const reads = (expected: ReadonlyArray<Tagged>): void => {
    const loaded = expected.map((event) => asLoaded(aggregate, event))
    if (Either.isRight(read) && isSame(loaded, read.right)) return
    synchronously(mismatch("is read otherwise than expected", loaded, showEvents(loaded)))
  }
  return {
    reads: (...events) => reads(events),
    readsNothing: () => reads([]),
    isUnreadable: (text = "") => {
      if (Either.isLeft(read) && read.left.message.includes(text)) return
      const expected = text === "" ? "can't be read" : `can't be read: … ${text} …`
      synchronously(mismatch("can be read, or fails for another reason", expected, [expected]))
    }
  }
}

// --- internal ---

const eventOf = (aggregate: AnyAggregate, id: string, form: StoredForm): Event => ({
  timestamp: fromParts({ millis: 0, counter: 0, node: 1n }),
  aggregateId: aggregate.streamId(id),
  sequence: 1,
  ...formOf(form)
})

const showEvents = (events: ReadonlyArray<Tagged>): ReadonlyArray<string> =>
  events.length === 0 ? ["(no events)"] : events.map(show)
