/**
 * What is kept of a failure: text that any store takes, whatever a handler failed with.
 */
import * as Cause from "effect/Cause"
import type { FeedEvent } from "../EventFeed.js"
import type { Failure } from "../SubscriptionStore.js"

/** What somebody is told of a failure: of its cause as much as can be kept. */
export const failureOf = (event: FeedEvent, cause: Cause.Cause<unknown>, attempts: number): Failure => ({
  position: event.position,
  aggregateId: event.aggregateId,
  sequence: event.sequence,
  type: event.type,
  error: wellFormed(textOf(cause).slice(0, maxError)),
  attempts
})

/** What a handler fails with may be anything, such as an object that can't be told as JSON. */
export const textOf = (cause: Cause.Cause<unknown>): string => {
  try {
    return Cause.pretty(cause)
  } catch (error) {
    return `a failure that can't be told as text: ${String(error)}`
  }
}

// --- internal ---

const maxError = 4000

/** Text that a database takes: no NUL, no half of a surrogate pair. */
const wellFormed = (text: string): string =>
  text.replaceAll("\0", "").replace(/[\uD800-\uDBFF](?![\uDC00-\uDFFF])|(?<![\uD800-\uDBFF])[\uDC00-\uDFFF]/g, "\uFFFD")
