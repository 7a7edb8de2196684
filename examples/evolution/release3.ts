/**
 * Release 3: a complaint is handed over (a renamed type), and resolved before it is closed (a split event). The state has the
 * answer, so snapshots of release 2 are void.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate, Upcast } from "effect-maestro"

const Priority = Schema.Literal("low", "normal", "high")

class ComplaintOpened extends Schema.TaggedClass<ComplaintOpened>()("ComplaintOpened", {
  title: Schema.String,
  priority: Priority
}) {}
class HandedOver extends Schema.TaggedClass<HandedOver>()("HandedOver", { to: Schema.String }) {}
class Resolved extends Schema.TaggedClass<Resolved>()("Resolved", { answer: Schema.String }) {}
class Closed extends Schema.TaggedClass<Closed>()("Closed", {}) {}

export class Open extends Schema.TaggedClass<Open>()("Open", { title: Schema.String, priority: Priority }) {}
export class HandOver extends Schema.TaggedClass<HandOver>()("HandOver", { to: Schema.String }) {}
export class Resolve extends Schema.TaggedClass<Resolve>()("Resolve", { answer: Schema.String }) {}
export class Close extends Schema.TaggedClass<Close>()("Close", {}) {}

const ComplaintOpenedV1 = Schema.Struct({ title: Schema.String })
const ComplaintOpenedV3 = Schema.Struct({ title: Schema.String, dueInHours: Schema.Number })
const ResolvedAndClosedV1 = Schema.Struct({ answer: Schema.String })

const toV2 = Upcast.from(1, ComplaintOpenedV1).pipe(Upcast.toEvent(2, (old) => ({ ...old, priority: "normal" })))

const older = {
  Viewed: Upcast.dropped,
  // A renamed type: its versions are those of the new name.
  Assigned: Upcast.renamed("HandedOver"),
  // A split event: both parts have its sequence.
  ResolvedAndClosed: Upcast.from(1, ResolvedAndClosedV1).pipe(
    Upcast.toEvents(({ answer }) => [new Resolved({ answer }), new Closed()])
  )
} as const

const types = Schema.Union(ComplaintOpened, HandedOver, Resolved, Closed)

const definition = {
  state: Schema.Struct({
    title: Schema.String,
    priority: Priority,
    assignee: Schema.String,
    answer: Schema.String,
    open: Schema.Boolean
  }),
  initialState: { title: "", priority: "normal", assignee: "nobody", answer: "", open: false },
  commands: Schema.Union(Open, HandOver, Resolve, Close),

  decide: {
    Open: ({ priority, title }: Open) => Effect.succeed([new ComplaintOpened({ title, priority })]),
    HandOver: ({ to }: HandOver) => Effect.succeed([new HandedOver({ to })]),
    Resolve: ({ answer }: Resolve) => Effect.succeed([new Resolved({ answer })]),
    Close: () => Effect.succeed([new Closed()])
  }
} as const

type State = typeof definition.state.Type

const evolve = {
  ComplaintOpened: (state: State, { priority, title }: ComplaintOpened): State => ({
    ...state,
    title,
    priority,
    open: true
  }),
  HandedOver: (state: State, { to }: HandedOver): State => ({ ...state, assignee: to }),
  Resolved: (state: State, { answer }: Resolved): State => ({ ...state, answer }),
  Closed: (state: State): State => ({ ...state, open: false })
}

export const Complaint = Aggregate.make("Complaint", {
  ...definition,
  evolve,
  events: Upcast.events(types, { ...older, ComplaintOpened: toV2 })
})

/** Release 3 once more, prepared for release 4: it reads version 3 of `ComplaintOpened`, and still writes version 2. */
export const prepared = Aggregate.make("Complaint", {
  ...definition,
  evolve,
  events: Upcast.events(types, {
    ...older,
    ComplaintOpened: toV2.pipe(
      Upcast.downcast(3, ComplaintOpenedV3, ({ dueInHours, title }) => ({
        title,
        priority: dueInHours > 24 ? "low" : dueInHours > 8 ? "normal" : "high"
      }))
    )
  })
})
