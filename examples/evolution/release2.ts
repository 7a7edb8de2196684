/**
 * Release 2: complaints have a priority (an added field), and views are counted elsewhere (a dropped type).
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate, Upcast } from "effect-maestro"

const Priority = Schema.Literal("low", "normal", "high")

class ComplaintOpened extends Schema.TaggedClass<ComplaintOpened>()("ComplaintOpened", {
  title: Schema.String,
  priority: Priority
}) {}
class Assigned extends Schema.TaggedClass<Assigned>()("Assigned", { to: Schema.String }) {}
class ResolvedAndClosed extends Schema.TaggedClass<ResolvedAndClosed>()("ResolvedAndClosed", {
  answer: Schema.String
}) {}

export class Open extends Schema.TaggedClass<Open>()("Open", { title: Schema.String, priority: Priority }) {}
export class Assign extends Schema.TaggedClass<Assign>()("Assign", { to: Schema.String }) {}
export class Resolve extends Schema.TaggedClass<Resolve>()("Resolve", { answer: Schema.String }) {}

const ComplaintOpenedV1 = Schema.Struct({ title: Schema.String })

/** The events of this release, without a word about those of release 1. */
export const withoutHistory = Schema.Union(ComplaintOpened, Assigned, ResolvedAndClosed)

const older = {
  // An added field: version 1 gets a value for it.
  ComplaintOpened: Upcast.from(1, ComplaintOpenedV1).pipe(Upcast.toEvent(2, (old) => ({ ...old, priority: "normal" }))),
  // A dropped type: its events keep their sequences, and change nothing.
  Viewed: Upcast.dropped
} as const

const complaintOf = (events: Schema.Schema<typeof withoutHistory.Type, typeof withoutHistory.Encoded>) =>
  Aggregate.make("Complaint", {
    state: Schema.Struct({ title: Schema.String, priority: Priority, assignee: Schema.String, open: Schema.Boolean }),
    initialState: { title: "", priority: "normal", assignee: "nobody", open: false },
    events,
    commands: Schema.Union(Open, Assign, Resolve),

    decide: {
      Open: ({ priority, title }) => Effect.succeed([new ComplaintOpened({ title, priority })]),
      Assign: ({ to }) => Effect.succeed([new Assigned({ to })]),
      Resolve: ({ answer }) => Effect.succeed([new ResolvedAndClosed({ answer })])
    },

    evolve: {
      ComplaintOpened: (state, { priority, title }) => ({ ...state, title, priority, open: true }),
      Assigned: (state, { to }) => ({ ...state, assignee: to }),
      ResolvedAndClosed: (state) => ({ ...state, open: false })
    }
  })

export const Complaint = complaintOf(Upcast.events(withoutHistory, older))

/** Release 2 once more, prepared for release 3: it reads the new types as its own, and still writes its own. */
export const prepared = complaintOf(
  Upcast.events(withoutHistory, {
    ...older,
    HandedOver: Upcast.renamed("Assigned"),
    // The state of this release has no answer, and a complaint is open until it is closed.
    Resolved: Upcast.dropped,
    Closed: Upcast.from(1, Schema.Struct({})).pipe(Upcast.toEvent(() => new ResolvedAndClosed({ answer: "" })))
  })
)
