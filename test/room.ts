/** A room that guests book, for the tests of commands on several aggregates. */
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { Aggregate } from "effect-maestro"

export class Booked extends Schema.TaggedClass<Booked>()("Booked", { guest: Schema.String }) {}
export class Book extends Schema.TaggedClass<Book>()("Book", { guest: Schema.String }) {}
/** Decides no events if the room is free. */
export class EnsureFree extends Schema.TaggedClass<EnsureFree>()("EnsureFree", {}) {}
export class Taken extends Schema.TaggedError<Taken>()("Taken", { guest: Schema.String }) {}

const State = Schema.NullOr(Schema.String)

export const room = {
  state: State,
  initialState: null,
  events: Booked,
  commands: Schema.Union(Book, EnsureFree),
  decide: {
    Book: ({ guest }: Book, { state }: Aggregate.Root<string | null>) =>
      state === null ? Effect.succeed([new Booked({ guest })]) : new Taken({ guest: state }),
    EnsureFree: (_command: EnsureFree, { state }: Aggregate.Root<string | null>) =>
      state === null ? Effect.succeed([]) : new Taken({ guest: state })
  },
  evolve: { Booked: (_state: string | null, { guest }: Booked) => guest },
  retry: Schedule.recurs(50)
}

export const Room = Aggregate.make("Room", room)
