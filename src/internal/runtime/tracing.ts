/**
 * Spans that are made only if the program has a tracer. All rooms use it.
 *
 * Effect's default tracer keeps spans to itself, and making one takes as long as half a command in memory.
 */
import * as Context from "effect/Context"
import * as DefaultServices from "effect/DefaultServices"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as FiberRefs from "effect/FiberRefs"
import * as Option from "effect/Option"
import type * as Runtime from "effect/Runtime"
import * as Tracer from "effect/Tracer"

/** Gives the effect a span, unless the program has the default tracer. */
export const withSpanIfTraced =
  (name: string, options: Tracer.SpanOptions) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.withFiberRuntime((fiber) => withSpanIfTracedIn(fiber, name, () => options, effect))

/** Gives the effect of this fiber a span, unless the program has the default tracer. */
export const withSpanIfTracedIn = <A, E, R>(
  fiber: Fiber.RuntimeFiber<unknown, unknown>,
  name: string,
  options: () => Tracer.SpanOptions,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E, R> =>
  !isTracedIn(fiber)
    ? effect
    : (Effect.withSpan(effect, name, { ...options(), captureStackTrace: false }) as Effect.Effect<A, E, R>)

/** Makes an effect of this fiber, and gives it a span unless the program has the default tracer. */
export const makeInSpanIfTraced = <A, E, R>(
  fiber: Fiber.RuntimeFiber<unknown, unknown>,
  name: string,
  options: () => Tracer.SpanOptions,
  make: (fiber: Fiber.RuntimeFiber<unknown, unknown>) => Effect.Effect<A, E, R>
): Effect.Effect<A, E, R> =>
  !isTracedIn(fiber)
    ? make(fiber)
    : // The effect is made inside of the span, so that it reads a context with the span.
      (Effect.withSpan(Effect.withFiberRuntime<A, E, R>(make), name, {
        ...options(),
        captureStackTrace: false
      }) as Effect.Effect<A, E, R>)

/** Gives the effect several spans, one for each statement of a batch, unless the program has the default tracer. */
export const withEachSpanIfTraced =
  (name: string, options: ReadonlyArray<Tracer.SpanOptions>) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.withFiberRuntime((fiber) =>
      !isTracedIn(fiber)
        ? effect
        : options.reduceRight(
            (inner, each) => Effect.useSpan(name, { ...each, captureStackTrace: false }, () => inner),
            effect
          )
    )

/** The span of an SQL statement, as `@effect/sql` makes it. */
export const statementSpan = (text: string): Tracer.SpanOptions => ({
  kind: "client",
  attributes: { "db.system.name": "postgresql", "db.operation.name": "execute", "db.query.text": text }
})

/**
 * Gives an effect that serves several callers a span, unless the program has the default tracer. For one caller it is part of the caller's
 * trace. For several it is a root that links to their spans.
 */
export const withBatchSpanIfTraced = (
  name: string,
  attributes: Record<string, unknown>,
  callers: ReadonlyArray<Option.Option<Tracer.AnySpan>>
): (<A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>) => {
  const spans = callers.flatMap((span) => (Option.isSome(span) ? [span.value] : []))
  const [first, ...others] = spans
  return withSpanIfTraced(
    name,
    first !== undefined && others.length === 0
      ? { parent: first, attributes }
      : { root: true, attributes, links: spans.map((span) => ({ _tag: "SpanLink" as const, span, attributes: {} })) }
  )
}

/** Whether the program of the fiber has a tracer of its own. */
export const isTracedIn = (fiber: Fiber.RuntimeFiber<unknown, unknown>): boolean =>
  Context.get(fiber.currentDefaultServices, Tracer.Tracer) !== defaultTracer

/** Whether the program of the runtime has a tracer of its own. */
export const isTraced = ({ fiberRefs }: Runtime.Runtime<never>): boolean =>
  Context.get(FiberRefs.getOrDefault(fiberRefs, DefaultServices.currentServices), Tracer.Tracer) !== defaultTracer

/** Turns off the spans that libraries make inside of the effect, if the program has the default tracer. */
export const withoutInnerSpans = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.tracerWith((tracer) => (tracer === defaultTracer ? Effect.withTracerEnabled(effect, false) : effect))

// --- internal ---

const defaultTracer = Context.get(DefaultServices.liveServices, Tracer.Tracer)
