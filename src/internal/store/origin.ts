/**
 * Of which aggregate an event is: how projections and subscriptions tell, and how they show it to handlers.
 */
import { type Envelope, type Event, identityOf, type StreamIds } from "../../Event.js"

/** An aggregate, as its events tell it, or all of them. */
export type Origin = "all" | { readonly name: string; readonly streams: StreamIds }

/** Whether an event of that stream is of the origin. The streams of an aggregate with plain ids can't be told from others. */
export const isOf = (origin: Origin | undefined, aggregateId: string): boolean => {
  const kind = kindOf(origin)
  return kind === undefined || (aggregateId.charAt(kind.length) === "/" && aggregateId.startsWith(kind))
}

/** The kind that all events of the origin have, if they have one. */
export const kindOf = (origin: Origin | undefined): string | undefined =>
  typeof origin === "object" && origin.streams === "byKind" ? origin.name : undefined

/** The event with the identity of its aggregate. */
export const envelopeOf = (event: Event): Envelope =>
  isEnvelope(event) ? event : { ...event, ...identityOf(event.aggregateId) }

/** The event as an aggregate with plain ids has it: the id is that of its stream, whatever is in it. */
export const withOwnIds = <E extends Event>(event: E): E & Envelope => ({ ...event, kind: "", id: event.aggregateId })

// --- internal ---

const isEnvelope = (event: Event): event is Envelope => "kind" in event && "id" in event
