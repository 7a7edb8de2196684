/** `Account.decode`: stored events, wherever they come from, as the events of today. */
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Aggregate, EventFeed, MemoryStore, StoreError, Upcast } from "effect-maestro"
import { Account, definition, store } from "./releases.js"

const stored = Effect.zipRight(
  store("Account/a", [
    ["Deposited", 1, { amount: 1 }],
    ["Viewed", 1, {}],
    ["Doubled", 1, { amount: 2 }],
    ["Unheard", 1, {}]
  ]),
  Stream.runCollect(EventFeed.streamStored())
)

it.effect("decode: an event of the feed is read as the events of today: one, none or several", () =>
  Effect.gen(function* () {
    const [deposited, viewed, doubled, unheard] = [...(yield* stored)].map(Account.decode)
    expect(deposited).toMatchObject({ right: [{ _tag: "Deposited", amount: 1, currency: "EUR", by: "unknown" }] })
    expect(viewed).toEqual(Either.right([]))
    expect(doubled).toMatchObject({ right: [{ _tag: "Withdrawn" }, { _tag: "Withdrawn" }] })
    expect(unheard).toMatchObject({ left: { reason: "UnreadableEvent", type: "Unheard", sequence: 4 } })
  }).pipe(Effect.provide(MemoryStore.layer))
)

it.effect("decode: an event of another aggregate, or whose id is none of its own, is an UnreadableEvent", () =>
  Effect.gen(function* () {
    const [deposited] = yield* stored
    if (deposited === undefined) throw new Error("nothing is stored")
    const refused = (name: string, event: EventFeed.FeedEvent, id: Schema.Schema<string>) =>
      Either.flip(Aggregate.make(name, { ...definition, id }).decode(event))
    expect(refused("Other", deposited, Schema.String)).toMatchObject({
      right: {
        reason: "UnreadableEvent",
        operation: "Other.decode",
        description: "it is an event of another aggregate"
      }
    })
    const narrow = refused("Account", deposited, Schema.String.pipe(Schema.startsWith("acc-")))
    expect(narrow).toMatchObject({ right: expect.any(StoreError.StoreError) })
  }).pipe(Effect.provide(MemoryStore.layer))
)

it("a schema around a history keeps it where it can, and is refused where it would lose it", () => {
  const one = Schema.TaggedStruct("Noted", { text: Schema.String })
  const history = Upcast.events(one, {
    Noted: Upcast.from(1, Schema.Struct({})).pipe(Upcast.toEvent(2, () => ({ text: "" })))
  })
  const around = (events: Schema.Schema<typeof one.Type, typeof one.Encoded>) =>
    Aggregate.make("Notes", {
      state: Schema.Number,
      initialState: 0,
      events,
      commands: Schema.TaggedStruct("Note", {}),
      decide: { Note: () => Effect.succeed([]) },
      evolve: { Noted: (state) => state + 1 }
    })
  const event = (version: number) => ({ ...oldNote, version, body: version === 1 ? {} : { text: "now" } })
  const filtered = around(history.pipe(Schema.filter(({ text }) => text !== "refused")))
  expect(filtered.decode(event(1))).toEqual(Either.right([{ _tag: "Noted", text: "" }]))
  expect(filtered.decode(event(2))).toEqual(Either.right([{ _tag: "Noted", text: "now" }]))
  const transformed = Schema.transform(history, Schema.typeSchema(one), { decode: (a) => a, encode: (a) => a })
  expect(() => around(transformed)).toThrow(/is inside a transformation, which loses the history/)
})

const oldNote = {
  timestamp: "01a1b2c3-d4e5-7000-8000-000000000000" as EventFeed.FeedEvent["timestamp"],
  aggregateId: "Notes/1",
  sequence: 1,
  type: "Noted",
  metadata: {}
}
