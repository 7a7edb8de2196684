/**
 * Provokes the failures of the library on an embedded store, and prints each with its message.
 *
 * `npx tsx examples/failures/main.ts`
 */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { Aggregate, type Event, Projection, SqlStore, StoreAdapter, StoreError, Timestamp } from "effect-maestro"
import * as PgliteClient from "effect-maestro/PgliteClient"

class Registered extends Schema.TaggedClass<Registered>()("Registered", { email: Schema.String }) {}
class Register extends Schema.TaggedClass<Register>()("Register", { email: Schema.NonEmptyString }) {}
class AlreadyRegistered extends Schema.TaggedError<AlreadyRegistered>()("AlreadyRegistered", {
  email: Schema.String
}) {}
class EmailTaken extends Schema.TaggedError<EmailTaken>()("EmailTaken", { email: Schema.String }) {}

// create table guests (id text primary key, email text not null unique check (email like '%@%'))
const Guests = Projection.makeSql({
  name: "guests",
  events: Registered,
  project: { Registered: ({ email }, { id }, sql) => sql`insert into guests (id, email) values (${id}, ${email})` },
  onConstraint: { guests_email_key: ({ email }) => new EmailTaken({ email }) }
})

const Guest = Aggregate.make("Guest", {
  state: Schema.NullOr(Schema.String),
  initialState: null,
  events: Registered,
  commands: Register,
  decide: {
    Register: ({ email }, { state }) =>
      state === null ? Effect.succeed([new Registered({ email })]) : new AlreadyRegistered({ email: state })
  },
  evolve: { Registered: (_, { email }) => email },
  projections: [Guests],
  // Few retries, because here every failure is wanted.
  retry: Schedule.recurs(1)
})

const register = (id: string, email: string) => Guest.evaluate(id, new Register({ email }))

const event = (id: string, sequence: number, type: string, timestamp: Timestamp.Timestamp): Event.Event => ({
  timestamp,
  aggregateId: Guest.streamId(id),
  sequence,
  type,
  version: 1,
  body: { email: "x@example.org" },
  metadata: {}
})

/** Prints the failure of an effect that is meant to fail. */
const show = <A, E extends { readonly _tag: string; readonly message: string }, R>(
  what: string,
  effect: Effect.Effect<A, E, R>
) =>
  Effect.matchEffect(effect, {
    onFailure: (error) => {
      const name = error instanceof StoreError.StoreError ? `StoreError (${error.reason})` : error._tag
      return Console.log(`${what}\n  ${name}: ${error.message}`)
    },
    onSuccess: () => Console.log(`${what}\n  succeeded`)
  })

const program = Effect.gen(function* () {
  const sql = yield* SqlClient.SqlClient
  const store = yield* StoreAdapter.StoreAdapter
  yield* sql`create table guests (id text primary key, email text not null unique check (email like '%@%'))`
  yield* register("ann", "ann@example.org")
  const now = yield* Effect.flatMap(Timestamp.HybridClock, (clock) => clock.now)

  // Refusals: the domain says no.
  yield* show("a decision of the aggregate", register("ann", "other@example.org"))
  yield* show("a constraint that the projection declares", register("bob", "ann@example.org"))

  // ValidationError: the input is wrong, and nothing was written.
  yield* show("a command from outside", Guest.evaluateUnknown("bob", { _tag: "Register", email: "" }))

  // Conditions that a caller sets around a command.
  const expecting = Aggregate.withExpectedSequence(3)
  yield* show("an expected sequence", register("ann", "ann@example.org").pipe(expecting))
  const withId = Aggregate.withCommandId("request-1")
  yield* register("cyd", "cyd@example.org").pipe(withId)
  yield* show("an id that another command had", register("cyd", "other@example.org").pipe(withId))

  // RetryCommand: another commit came first.
  yield* show("a sequence that is taken", store.commitEvents([event("ann", 1, "Registered", now)]))

  // StoreError: everything else, with a reason.
  yield* show("a constraint that no projection declares", register("dan", "no address"))
  yield* store.commitEvents([event("eve", 1, "Invited", now)])
  yield* show("an event that no schema knows", Guest.fetch("eve"))
  yield* sql`drop table guests`
  yield* show("a table that is missing", register("gus", "gus@example.org"))
})

const layer = Guest.layer.pipe(Layer.provideMerge(SqlStore.layer), Layer.provideMerge(PgliteClient.layerMemory))

Effect.runPromise(Effect.provide(program, layer))
