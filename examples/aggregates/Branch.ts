/** A branch of the bank: its ids have a schema, and it was named otherwise before. */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate } from "effect-maestro"

export class Moved extends Schema.TaggedClass<Moved>()("Moved", { street: Schema.NonEmptyString }) {}
export class Move extends Schema.TaggedClass<Move>()("Move", { street: Schema.NonEmptyString }) {}

export const BranchId = Schema.TemplateLiteral("branch-", Schema.Number)

export const Branch = Aggregate.make("Branch", {
  id: BranchId,
  kind: "Office",
  state: Schema.NullOr(Schema.String),
  initialState: null,
  events: Moved,
  commands: Move,
  decide: { Move: ({ street }) => Effect.succeed([new Moved({ street })]) },
  evolve: { Moved: (_, { street }) => street }
})
