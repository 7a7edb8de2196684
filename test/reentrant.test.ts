/** A handler that evaluates a command on its own aggregate fails, and stores nothing. */
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { Aggregate, MemoryStore, StoreAdapter, type StoreError } from "effect-maestro"

class Said extends Schema.TaggedClass<Said>()("Said", { text: Schema.String }) {}
class Say extends Schema.TaggedClass<Say>()("Say", { text: Schema.String }) {}
class Ask extends Schema.TaggedClass<Ask>()("Ask", { id: Schema.String }) {}
class AskThrough extends Schema.TaggedClass<AskThrough>()("AskThrough", { id: Schema.String }) {}

const talk = {
  state: Schema.Number,
  initialState: 0,
  events: Said,
  evolve: { Said: (said: number) => said + 1 }
}

/** Evaluates on the aggregate of that id, from inside of a handler. */
type Evaluate = (id: string) => Effect.Effect<unknown, StoreError.ValidationError | StoreError.StoreError>

const makeTalks = (asked: { run: Evaluate; count: number }) => {
  const askedFor = (id: string) => Effect.suspend(() => Effect.zipRight(Effect.yieldNow(), asked.run(id)))
  const decided = (text: string) => Effect.succeed([new Said({ text })])
  const Talk = Aggregate.make("Talk", {
    ...talk,
    commands: Schema.Union(Say, Ask),
    decide: {
      Say: ({ text }: Say) => decided(text),
      Ask: ({ id }: Ask) => {
        asked.count++
        return Effect.zipRight(askedFor(id), decided("outer"))
      }
    }
  })
  return Talk
}

const refusal = { _tag: "ValidationError", issues: [{ path: ["id"] }] }

it.effect(
  "a handler that evaluates on its own aggregate fails with a ValidationError, once, and nothing is stored",
  () =>
    Effect.gen(function* () {
      const asked: { run: Evaluate; count: number } = { run: () => Effect.void, count: 0 }
      const Talk = makeTalks(asked)
      const services = yield* Layer.build(Talk.layer)
      asked.run = (id) =>
        Effect.provide(Talk.evaluate(id, new Say({ text: "inner" })), services) as ReturnType<Evaluate>
      const error = yield* Effect.flip(Effect.provide(Talk.evaluate("a", new Ask({ id: "a" })), services))
      expect(error).toMatchObject(refusal)
      expect(asked.count).toBe(1)
      const store = yield* StoreAdapter.StoreAdapter
      expect(yield* store.getEvents("Talk/a", 1)).toEqual([])
      // A command on another aggregate is allowed.
      yield* Effect.provide(Talk.evaluate("a", new Ask({ id: "b" })), services)
      expect(
        [yield* store.getEvents("Talk/a", 1), yield* store.getEvents("Talk/b", 1)].map(({ length }) => length)
      ).toEqual([1, 1])
    }).pipe(Effect.scoped, Effect.provide(MemoryStore.layer))
)

it.effect("a handler that evaluates on its own aggregate through the handler of another fails, too", () =>
  Effect.gen(function* () {
    const asked: { run: Evaluate; count: number } = { run: () => Effect.void, count: 0 }
    const Talk = makeTalks(asked)
    const services = yield* Layer.build(Talk.layer)
    const Between = Aggregate.make("Between", {
      ...talk,
      commands: AskThrough,
      decide: {
        AskThrough: ({ id }: AskThrough) =>
          Effect.map(Effect.provide(Talk.evaluate(id, new Say({ text: "inner" })), services), () => [
            new Said({ text: "between" })
          ])
      }
    })
    const between = yield* Layer.build(Between.layer)
    asked.run = (id) =>
      Effect.provide(Between.evaluate("between", new AskThrough({ id })), between) as ReturnType<Evaluate>
    const error = yield* Effect.flip(Effect.provide(Talk.evaluate("a", new Ask({ id: "a" })), services))
    expect(error).toMatchObject(refusal)
    const store = yield* StoreAdapter.StoreAdapter
    expect([yield* store.getEvents("Talk/a", 1), yield* store.getEvents("Between/between", 1)]).toEqual([[], []])
  }).pipe(Effect.scoped, Effect.provide(MemoryStore.layer))
)
