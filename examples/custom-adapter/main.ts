/**
 * A guest book on files. Run it twice with one folder, and look at the journal in between.
 *
 * `npx tsx examples/custom-adapter/main.ts [folder]`
 */
import { mkdtemp } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { Aggregate } from "effect-maestro"
import * as FileStore from "./FileStore.js"

class Signed extends Schema.TaggedClass<Signed>()("Signed", { guest: Schema.NonEmptyString }) {}
class Sign extends Schema.TaggedClass<Sign>()("Sign", { guest: Schema.NonEmptyString }) {}
class AlreadySigned extends Schema.TaggedError<AlreadySigned>()("AlreadySigned", { guest: Schema.String }) {}

const GuestBook = Aggregate.make("GuestBook", {
  state: Schema.Struct({ guests: Schema.Array(Schema.String) }),
  initialState: { guests: [] },
  events: Signed,
  commands: Sign,
  decide: {
    Sign: ({ guest }, { state }) =>
      state.guests.includes(guest) ? new AlreadySigned({ guest }) : Effect.succeed([new Signed({ guest })])
  },
  evolve: { Signed: ({ guests }, { guest }) => ({ guests: [...guests, guest] }) }
})

const sign = (guest: string) =>
  GuestBook.evaluate("guest-book", new Sign({ guest })).pipe(
    Effect.zipRight(Console.log(`${guest} signed`)),
    Effect.catchTag("AlreadySigned", () => Console.log(`${guest} has signed already`))
  )

const program = Effect.gen(function* () {
  const folder = process.argv[2] ?? (yield* Effect.promise(() => mkdtemp(join(tmpdir(), "guest-book-"))))
  // Each layer opens the folder, and closes it again.
  const opened = () => GuestBook.layer.pipe(Layer.provide(FileStore.layer(folder)))
  const visit = Effect.forEach(["Ada", "Grace", "Ada", "Barbara"], sign, { discard: true })
  yield* Effect.provide(Effect.zipRight(visit, GuestBook.fetch("guest-book")), opened())
  const { guests } = yield* Effect.provide(GuestBook.fetch("guest-book"), opened())
  yield* Console.log(`Opened again, ${folder} has: ${guests.join(", ")}`)
})

Effect.runPromise(program)
