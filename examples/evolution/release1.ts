/**
 * Release 1: complaints of the guests of a hotel. Nothing is stored yet, so nothing has a history.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate } from "effect-maestro"

class ComplaintOpened extends Schema.TaggedClass<ComplaintOpened>()("ComplaintOpened", { title: Schema.String }) {}
class Assigned extends Schema.TaggedClass<Assigned>()("Assigned", { to: Schema.String }) {}
class Viewed extends Schema.TaggedClass<Viewed>()("Viewed", { by: Schema.String }) {}
class ResolvedAndClosed extends Schema.TaggedClass<ResolvedAndClosed>()("ResolvedAndClosed", {
  answer: Schema.String
}) {}

export class Open extends Schema.TaggedClass<Open>()("Open", { title: Schema.String }) {}
export class Assign extends Schema.TaggedClass<Assign>()("Assign", { to: Schema.String }) {}
export class View extends Schema.TaggedClass<View>()("View", { by: Schema.String }) {}
export class Resolve extends Schema.TaggedClass<Resolve>()("Resolve", { answer: Schema.String }) {}

export const Complaint = Aggregate.make("Complaint", {
  state: Schema.Struct({ title: Schema.String, assignee: Schema.String, open: Schema.Boolean }),
  initialState: { title: "", assignee: "nobody", open: false },
  events: Schema.Union(ComplaintOpened, Assigned, Viewed, ResolvedAndClosed),
  commands: Schema.Union(Open, Assign, View, Resolve),

  decide: {
    Open: ({ title }) => Effect.succeed([new ComplaintOpened({ title })]),
    Assign: ({ to }) => Effect.succeed([new Assigned({ to })]),
    View: ({ by }) => Effect.succeed([new Viewed({ by })]),
    Resolve: ({ answer }) => Effect.succeed([new ResolvedAndClosed({ answer })])
  },

  evolve: {
    ComplaintOpened: (state, { title }) => ({ ...state, title, open: true }),
    Assigned: (state, { to }) => ({ ...state, assignee: to }),
    Viewed: (state) => state,
    ResolvedAndClosed: (state) => ({ ...state, open: false })
  }
})
