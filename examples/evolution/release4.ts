/**
 * Release 4: a complaint has a time limit in place of its priority (a third version, by two steps). The aggregate is now
 * called `Request` (a renamed aggregate), and goes on with the streams of `Complaint`.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate, Upcast } from "effect-maestro"

class ComplaintOpened extends Schema.TaggedClass<ComplaintOpened>()("ComplaintOpened", {
  title: Schema.String,
  dueInHours: Schema.Number
}) {}
class HandedOver extends Schema.TaggedClass<HandedOver>()("HandedOver", { to: Schema.String }) {}
class Resolved extends Schema.TaggedClass<Resolved>()("Resolved", { answer: Schema.String }) {}
class Closed extends Schema.TaggedClass<Closed>()("Closed", {}) {}

export class Open extends Schema.TaggedClass<Open>()("Open", { title: Schema.String, dueInHours: Schema.Number }) {}
export class HandOver extends Schema.TaggedClass<HandOver>()("HandOver", { to: Schema.String }) {}
export class Resolve extends Schema.TaggedClass<Resolve>()("Resolve", { answer: Schema.String }) {}
export class Close extends Schema.TaggedClass<Close>()("Close", {}) {}

const ComplaintOpenedV1 = Schema.Struct({ title: Schema.String })
const ComplaintOpenedV2 = Schema.Struct({ title: Schema.String, priority: Schema.Literal("low", "normal", "high") })
const ResolvedAndClosedV1 = Schema.Struct({ answer: Schema.String })

const hours = { low: 72, normal: 24, high: 8 }

const events = Upcast.events(Schema.Union(ComplaintOpened, HandedOver, Resolved, Closed), {
  ComplaintOpened: Upcast.from(1, ComplaintOpenedV1).pipe(
    Upcast.to(2, ComplaintOpenedV2, (old) => ({ ...old, priority: "normal" as const })),
    Upcast.toEvent(3, ({ priority, title }) => ({ title, dueInHours: hours[priority] }))
  ),
  Viewed: Upcast.dropped,
  Assigned: Upcast.renamed("HandedOver"),
  ResolvedAndClosed: Upcast.from(1, ResolvedAndClosedV1).pipe(
    Upcast.toEvents(({ answer }) => [new Resolved({ answer }), new Closed()])
  )
})

export const Request = Aggregate.make("Request", {
  // Its streams stay where they are.
  kind: "Complaint",
  state: Schema.Struct({
    title: Schema.String,
    dueInHours: Schema.Number,
    assignee: Schema.String,
    answer: Schema.String,
    open: Schema.Boolean
  }),
  initialState: { title: "", dueInHours: 0, assignee: "nobody", answer: "", open: false },
  events,
  commands: Schema.Union(Open, HandOver, Resolve, Close),

  decide: {
    Open: ({ dueInHours, title }) => Effect.succeed([new ComplaintOpened({ title, dueInHours })]),
    HandOver: ({ to }) => Effect.succeed([new HandedOver({ to })]),
    Resolve: ({ answer }) => Effect.succeed([new Resolved({ answer })]),
    Close: () => Effect.succeed([new Closed()])
  },

  evolve: {
    ComplaintOpened: (state, { dueInHours, title }) => ({ ...state, title, dueInHours, open: true }),
    HandedOver: (state, { to }) => ({ ...state, assignee: to }),
    Resolved: (state, { answer }) => ({ ...state, answer }),
    Closed: (state) => ({ ...state, open: false })
  }
})
