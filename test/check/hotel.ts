/** A realistic aggregate of six commands, for which `hovers.ts` checks the texts of an editor. */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate } from "effect-maestro"

class Booked extends Schema.TaggedClass<Booked>()("Booked", { guest: Schema.String, nights: Schema.Int }) {}
class CheckedIn extends Schema.TaggedClass<CheckedIn>()("CheckedIn", { guest: Schema.String }) {}
class CheckedOut extends Schema.TaggedClass<CheckedOut>()("CheckedOut", {}) {}
class Cancelled extends Schema.TaggedClass<Cancelled>()("Cancelled", { reason: Schema.String }) {}
class Cleaned extends Schema.TaggedClass<Cleaned>()("Cleaned", {}) {}
class Closed extends Schema.TaggedClass<Closed>()("Closed", {}) {}

class Book extends Schema.TaggedClass<Book>()("Book", { guest: Schema.String, nights: Schema.Int }) {}
class CheckIn extends Schema.TaggedClass<CheckIn>()("CheckIn", { guest: Schema.String }) {}
class CheckOut extends Schema.TaggedClass<CheckOut>()("CheckOut", {}) {}
class Cancel extends Schema.TaggedClass<Cancel>()("Cancel", { reason: Schema.String }) {}
class Clean extends Schema.TaggedClass<Clean>()("Clean", {}) {}
class Close extends Schema.TaggedClass<Close>()("Close", {}) {}

class AlreadyBooked extends Schema.TaggedError<AlreadyBooked>()("AlreadyBooked", { guest: Schema.String }) {}
class NotBooked extends Schema.TaggedError<NotBooked>()("NotBooked", {}) {}
class Occupied extends Schema.TaggedError<Occupied>()("Occupied", { guest: Schema.String }) {}
class NotClean extends Schema.TaggedError<NotClean>()("NotClean", {}) {}

const RoomState = Schema.Struct({
  status: Schema.Literal("free", "booked", "occupied", "closed"),
  guest: Schema.NullOr(Schema.String),
  nights: Schema.Int,
  clean: Schema.Boolean,
  stays: Schema.Array(Schema.Struct({ guest: Schema.String, nights: Schema.Int })),
  cancellations: Schema.Record({ key: Schema.String, value: Schema.String })
})

export const Room = Aggregate.make("Room", {
  state: RoomState,
  initialState: { status: "free", guest: null, nights: 0, clean: true, stays: [], cancellations: {} },
  events: Schema.Union(Booked, CheckedIn, CheckedOut, Cancelled, Cleaned, Closed),
  commands: Schema.Union(Book, CheckIn, CheckOut, Cancel, Clean, Close),
  refusals: {
    Book: [AlreadyBooked],
    CheckIn: [NotBooked, Occupied, NotClean],
    CheckOut: [NotBooked],
    Cancel: [NotBooked],
    Close: [Occupied]
  },
  decide: {
    Book: ({ guest, nights }, { state }) =>
      state.guest === null
        ? Effect.succeed([new Booked({ guest, nights })])
        : new AlreadyBooked({ guest: state.guest }),
    CheckIn: ({ guest }, { state }) => {
      if (state.guest === null) return new NotBooked()
      if (state.status === "occupied") return new Occupied({ guest: state.guest })
      return state.clean ? Effect.succeed([new CheckedIn({ guest })]) : new NotClean()
    },
    CheckOut: (_, { state }) => (state.status === "occupied" ? Effect.succeed([new CheckedOut()]) : new NotBooked()),
    Cancel: ({ reason }, { state }) =>
      state.status === "booked" ? Effect.succeed([new Cancelled({ reason })]) : new NotBooked(),
    Clean: (_, { state }) => (state.clean ? Effect.succeed([]) : Effect.succeed([new Cleaned()])),
    Close: (_, { state }) =>
      state.guest === null ? Effect.succeed([new Closed()]) : new Occupied({ guest: state.guest })
  },
  evolve: {
    Booked: (state, { guest, nights }) => ({ ...state, status: "booked", guest, nights }),
    CheckedIn: (state) => ({ ...state, status: "occupied" }),
    CheckedOut: (state) => ({
      ...state,
      status: "free",
      guest: null,
      clean: false,
      stays: [...state.stays, { guest: state.guest ?? "", nights: state.nights }]
    }),
    Cancelled: (state, { reason }) => ({
      ...state,
      status: "free",
      guest: null,
      cancellations: { ...state.cancellations, [state.guest ?? ""]: reason }
    }),
    Cleaned: (state) => ({ ...state, clean: true }),
    Closed: () => ({ status: "closed", guest: null, nights: 0, clean: true, stays: [], cancellations: {} })
  }
})

export const evaluate = Room.evaluate
export const booking = Room.evaluate("101", new Book({ guest: "ann", nights: 2 }))
export const checkingIn = Room.evaluate("101", new CheckIn({ guest: "ann" })).pipe(Aggregate.withExpectedSequence(1))
export const fromOutside = Room.evaluateUnknown("101", {}, { only: ["Clean", "Close"] })
export const fetching = Room.fetch("101")
