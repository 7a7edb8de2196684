/**
 * Spans where somebody looks at them.
 */
import * as Context from "effect/Context"
import * as DefaultServices from "effect/DefaultServices"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as Tracer from "effect/Tracer"

/**
 * Gives the effect a span, unless the program has no tracer but the one that Effect begins with: that one keeps spans to itself,
 * and making one takes as long as half a command in memory.
 */
export const withSpanIfTraced =
  (name: string, options: Tracer.SpanOptions) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.withFiberRuntime((fiber) => withSpanIfTracedIn(fiber, name, () => options, effect))

/** The same for who has the fiber at hand. */
export const withSpanIfTracedIn = <A, E, R>(
  fiber: Fiber.RuntimeFiber<unknown, unknown>,
  name: string,
  options: () => Tracer.SpanOptions,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E, R> =>
  Context.get(fiber.currentDefaultServices, Tracer.Tracer) === unseen
    ? effect
    : (Effect.withSpan(effect, name, { ...options(), captureStackTrace: false }) as Effect.Effect<A, E, R>)

/** The same with a span for each of several things that the effect does at once. */
export const withEachSpanIfTraced =
  (name: string, options: ReadonlyArray<Tracer.SpanOptions>) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.withFiberRuntime((fiber) =>
      Context.get(fiber.currentDefaultServices, Tracer.Tracer) === unseen
        ? effect
        : options.reduceRight(
            (inner, each) => Effect.useSpan(name, { ...each, captureStackTrace: false }, () => inner),
            effect
          )
    )

/** The same for spans that others make. */
export const withoutInnerSpans = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.tracerWith((tracer) => (tracer === unseen ? Effect.withTracerEnabled(effect, false) : effect))

// --- internal ---

const unseen = Context.get(DefaultServices.liveServices, Tracer.Tracer)
