/** A tracer that keeps its spans, for tests of what a trace shows. */
import * as Effect from "effect/Effect"
import * as Tracer from "effect/Tracer"

export const collectSpans = Effect.map(Effect.tracer, ({ span: makeSpan }) => {
  const spans: Array<Tracer.Span> = []
  const tracer = Tracer.make({
    span: (...args) => {
      const span = makeSpan(...args)
      spans.push(span)
      return span
    },
    context: (run) => run()
  })
  return { spans, tracer }
})
