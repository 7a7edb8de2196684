/**
 * Finds the handler of each event that a stored event is read as. Projections and subscriptions call it.
 *
 * Usually that is one event. One of an older release may be read as several events, or as none (`Upcast`). Their handlers
 * run in order, and those after the first get the number of their part.
 */
import * as Effect from "effect/Effect"
import type { Envelope } from "../../Event.js"
import type { Tagged } from "../codec/eventCodec.js"
import { Parts } from "../codec/storedVersions.js"

/** An event that has a handler, and its envelope. */
export interface Handled<H, A, V> {
  readonly handler: H
  readonly event: A
  readonly envelope: V
}

/** The handlers of the events, in order. */
export const handledParts = <H, A extends Tagged, V extends Envelope>(
  handlers: ReadonlyMap<string, H>,
  read: A | Parts<A>,
  envelope: V
): ReadonlyArray<Handled<H, A, V>> => {
  const found: Array<Handled<H, A, V>> = []
  const events = read instanceof Parts ? read.events : [read]
  for (const [index, event] of events.entries()) {
    const handler = handlers.get(event._tag)
    if (handler !== undefined)
      found.push({ handler, event, envelope: index === 0 ? envelope : { ...envelope, part: index + 1 } })
  }
  return found
}

/** Runs the handlers of the events in order. */
export const runHandlers = <A extends Tagged, V extends Envelope, E, R>(
  handlers: ReadonlyMap<string, (event: A, envelope: V) => Effect.Effect<unknown, E, R>>,
  read: A | Parts<A>,
  envelope: V
): Effect.Effect<unknown, E, R> => {
  if (read instanceof Parts) {
    return Effect.forEach(
      handledParts(handlers, read, envelope),
      (handled) => handled.handler(handled.event, handled.envelope),
      { discard: true }
    )
  }
  return handlers.get(read._tag)?.(read, envelope) ?? Effect.void
}
