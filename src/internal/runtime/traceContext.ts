/**
 * The trace context of W3C, by which the span of a handler links to the span that stored its event. Aggregates write it
 * into events, and subscriptions read it from them.
 */
import * as Context from "effect/Context"
import type * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Tracer from "effect/Tracer"
import { isTracedIn } from "./tracing.js"

/** The `traceparent` of a span of this fiber, if the program has a tracer whose ids have the form of W3C. */
export const traceparentOf = (
  fiber: Fiber.RuntimeFiber<unknown, unknown>,
  span: Tracer.AnySpan | undefined
): string | undefined => {
  if (span === undefined || !isTracedIn(fiber)) return undefined
  const exported = exportedSpan(span)
  if (exported === undefined) return undefined
  const { sampled, spanId, traceId } = exported
  const traceparent = `00-${traceId.toLowerCase()}-${spanId.toLowerCase()}-${sampled ? "01" : "00"}`
  return isTraceparent(traceparent) ? traceparent : undefined
}

/**
 * Links to the spans that stored the events: each once, and at most `maxLinks`, because tracers drop further ones. A
 * text that is no trace context is left out.
 */
export const linksOf = (
  events: ReadonlyArray<{ readonly traceparent?: string | undefined }>
): ReadonlyArray<Tracer.SpanLink> => {
  const links = new Map<string, Tracer.SpanLink>()
  for (const { traceparent } of events) {
    if (traceparent === undefined || links.has(traceparent)) continue
    const parts = partsOf(traceparent)
    if (parts === undefined) continue
    links.set(traceparent, { _tag: "SpanLink", span: Tracer.externalSpan(parts), attributes: {} })
    if (links.size === maxLinks) break
  }
  return [...links.values()]
}

/** Whether a value is a `traceparent` of version 00. */
export const isTraceparent = (value: unknown): value is string => partsOf(value) !== undefined

// --- internal ---

/** The default limit of OpenTelemetry. */
const maxLinks = 128

/** The span, or the nearest one around it that is exported: a span that a program turned off has no ids. */
const exportedSpan = (span: Tracer.AnySpan): Tracer.AnySpan | undefined => {
  if (!Context.get(span.context, Tracer.DisablePropagation)) return span
  return span._tag === "Span" && Option.isSome(span.parent) ? exportedSpan(span.parent.value) : undefined
}

const pattern = /^00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})$/

const partsOf = (traceparent: unknown) => {
  const [, traceId, spanId, flags] = (typeof traceparent === "string" && pattern.exec(traceparent)) || []
  return traceId === undefined || spanId === undefined
    ? undefined
    : { traceId, spanId, sampled: (Number.parseInt(flags ?? "", 16) & 1) === 1 }
}
