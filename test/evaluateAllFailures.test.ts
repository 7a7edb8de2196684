/** What `evaluateAll` fails with, and how often it decides on outdated states before. */
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { Aggregate, MemoryStore, Projection, SqlStore, StoreError } from "effect-maestro"
import { Account, Deposit, Deposited, definition, Limits, Touch, Withdraw, Withdrawn } from "./account.js"
import { layerPg, uniqueName } from "./database.js"
import { aNode } from "./nodes.js"

const issuesOf = (error: unknown) =>
  error instanceof StoreError.ValidationError
    ? [error.operation, ...error.issues.map(({ index, path }) => [index, path.join(".")])]
    : error

class Noted extends Schema.TaggedClass<Noted>()("Noted", { text: Schema.String }) {}
class Note extends Schema.TaggedClass<Note>()("Note", { texts: Schema.Array(Schema.String) }) {}

const Notes = Aggregate.make("Notes", {
  state: Schema.Number,
  initialState: 0,
  events: Noted,
  commands: Note,
  decide: { Note: ({ texts }: Note) => Effect.succeed(texts.map((text) => new Noted({ text }))) },
  evolve: { Noted: (count) => count + 1 }
})

/** Its handler evaluates another command. */
class Ask extends Schema.TaggedClass<Ask>()("Ask", { amount: Schema.Number }) {}

const stores = {
  MemoryStore: MemoryStore.layer,
  "SqlStore on Postgres": SqlStore.layer.pipe(Layer.provideMerge(layerPg()), Layer.orDie)
}

for (const [name, store] of Object.entries(stores)) {
  const layer = Layer.mergeAll(Account.layer, Notes.layer).pipe(
    Layer.provideMerge(Limits.layer),
    Layer.provideMerge(store)
  )
  it.layer(layer, { timeout: 60_000 })(`The failures of a list of commands on ${name}`, (it) => {
    const count = 40

    /** Accounts of 1 each, that are cached on a node as they were before. `decided` counts the decisions of this node. */
    const outdated = Effect.gen(function* () {
      const decided: Array<string> = []
      const counting = Aggregate.make("Account", {
        ...definition,
        decide: {
          ...definition.decide,
          Touch: (command: Touch) =>
            Effect.as(
              Effect.sync(() => decided.push(command._tag)),
              []
            ),
          Withdraw: (command, root) =>
            Effect.zipRight(
              Effect.sync(() => decided.push("Withdraw")),
              definition.decide.Withdraw(command, root)
            )
        }
      })
      const node = yield* aNode(counting.layer)
      const ids = Arr.makeBy(count, () => uniqueName("outdated"))
      yield* Effect.forEach(ids, (id) => counting.fetch(id)).pipe(Effect.provide(node))
      yield* Aggregate.evaluateAll(ids.map((id) => Account.command(id, new Deposit({ amount: 1 }))))
      return { counting, decided, ids, node }
    })

    it.scoped("many aggregates without events, on outdated cached states, are decided twice at most", () =>
      Effect.gen(function* () {
        const { counting, decided, ids, node } = yield* outdated
        const touched = yield* Aggregate.evaluateAll(
          ids.map((id) => counting.command(id, new Touch())),
          { retry: Schedule.stop }
        ).pipe(Effect.provide(node))
        expect(touched.map(({ sequence, state }) => [sequence, state.balance])).toEqual(ids.map(() => [1, 1]))
        expect(decided).toHaveLength(2 * count)
      })
    )

    it.scoped("many refusals on outdated cached states are decided twice at most", () =>
      Effect.gen(function* () {
        const { counting, decided, ids, node } = yield* outdated
        const withdrawn = yield* Aggregate.evaluateAll(
          ids.map((id) => counting.command(id, new Withdraw({ amount: 1 }))),
          { retry: Schedule.stop }
        ).pipe(Effect.provide(node))
        expect(withdrawn.map(({ sequence, state }) => [sequence, state.balance])).toEqual(ids.map(() => [2, 0]))
        // The first refusal ends the first round.
        expect(decided).toHaveLength(1 + count)
      })
    )

    it.scoped("commands that a handler evaluates take effect twice at most, if states are outdated", () =>
      Effect.gen(function* () {
        const { counting, ids, node } = yield* outdated
        const [asking, asked] = [uniqueName("asking"), uniqueName("asked")]
        const Asking = Aggregate.make("Asking", {
          ...definition,
          commands: Ask,
          decide: {
            Ask: ({ amount }: Ask) =>
              Effect.as(Account.evaluate(asked, new Deposit({ amount })), [new Deposited({ amount })])
          }
        })
        const services = yield* Effect.context<Aggregate.Instance<"Account">>()
        const nested = yield* aNode(Asking.layer.pipe(Layer.provide(Layer.succeedContext(services))))
        yield* Aggregate.evaluateAll([
          Asking.command(asking, new Ask({ amount: 1 })),
          ...ids.map((id) => counting.command(id, new Touch()))
        ]).pipe(Effect.provide(nested), Effect.provide(node))
        expect((yield* Account.fetch(asked)).balance).toBe(2)
      })
    )

    it.effect(
      "an event that the store refuses has the index of its command, and its own among those of the command",
      () =>
        Effect.gen(function* () {
          const [a, n, m] = [uniqueName("a"), uniqueName("n"), uniqueName("m")]
          const list = (texts: ReadonlyArray<string>) =>
            Aggregate.evaluateAll([
              Notes.command(n, new Note({ texts: ["a", "b"] })),
              Account.command(a, new Touch()),
              Notes.command(m, new Note({ texts })),
              Notes.command(n, new Note({ texts: ["c"] }))
            ])
          const expected = ["Aggregate.evaluateAll", [2, "events.1.body.text"], [2, "events.3.body.text"]]
          const texts = ["fine", "\ud800", "fine", "\0"]
          expect(issuesOf(yield* Effect.flip(list(texts)))).toEqual(expected)
          expect(issuesOf(yield* Effect.flip(list(texts).pipe(Aggregate.withCommandId("c"))))).toEqual(expected)
          expect([yield* Notes.exists(n), yield* Notes.exists(m)]).toEqual([false, false])
          expect(yield* list(["fine"])).toHaveLength(4)
        })
    )

    it.effect("metadata that the store refuses has the index of each command with events", () =>
      Effect.gen(function* () {
        const [a, n] = [uniqueName("a"), uniqueName("n")]
        const list = Aggregate.evaluateAll([
          Account.command(a, new Touch()),
          Notes.command(n, new Note({ texts: ["a"] })),
          Account.command(a, new Deposit({ amount: 1 }))
        ]).pipe(Effect.provideService(Aggregate.Metadata, { at: Number.NaN }))
        expect(issuesOf(yield* Effect.flip(list))).toEqual([
          "Aggregate.evaluateAll",
          [1, "events.0.metadata.at"],
          [2, "events.0.metadata.at"]
        ])
      })
    )

    it.scoped("the ValidationError of a command that a handler or a projection evaluates stays as it is", () =>
      Effect.gen(function* () {
        const services = yield* Effect.context<Aggregate.Instance<"Account">>()
        const bad = Object.assign(new Deposit({ amount: 1 }), { amount: -1 })
        const nested = Effect.provide(Account.evaluate(uniqueName("nested"), bad), services)
        const failing = Projection.make({
          name: "failing",
          events: Schema.Union(Deposited, Withdrawn),
          project: { Deposited: ({ amount }) => (amount === 7 ? nested : Effect.void) }
        })
        // It has the name of the other, so the operations of both have one name.
        const Asking = Aggregate.make("Account", {
          ...definition,
          commands: Schema.Union(Ask, Deposit),
          decide: {
            Ask: ({ amount }) =>
              amount === 7 ? Effect.as(nested, []) : Effect.sync(() => [new Deposited({ amount })]),
            Deposit: definition.decide.Deposit
          },
          projections: [failing]
        })
        const node = yield* aNode(Asking.layer)
        const list = (command: Ask | Deposit) =>
          Aggregate.evaluateAll([
            Asking.command(uniqueName("first"), new Deposit({ amount: 1 })),
            Asking.command(uniqueName("second"), command)
          ]).pipe(Effect.provide(node), Effect.flip, Effect.map(issuesOf))
        for (const command of [new Ask({ amount: 7 }), new Deposit({ amount: 7 })]) {
          expect(yield* list(command)).toEqual(["Account.evaluate", [undefined, "amount"]])
        }
        // The constructor of the event throws.
        expect(yield* list(new Ask({ amount: -1 }))).toEqual(["Aggregate.evaluateAll", [1, "amount"]])
      })
    )

    it.effect("an empty list is refused under conditions that any other list is refused under", () =>
      Effect.gen(function* () {
        for (const id of ["", "x".repeat(1001), "\ud800", 5, null, undefined]) {
          for (const list of [[], [Account.command("a", new Touch())]]) {
            const refused = yield* Effect.flip(Aggregate.evaluateAll(list).pipe(Aggregate.withCommandId(id as string)))
            expect(issuesOf(refused)).toEqual(["Aggregate.evaluateAll", [undefined, "commandId"]])
          }
        }
        const both = Aggregate.evaluateAll([]).pipe(Aggregate.withCommandId(""), Aggregate.withExpectedSequence(1))
        expect(issuesOf(yield* Effect.flip(both))).toEqual([
          "Aggregate.evaluateAll",
          [undefined, "commandId"],
          [undefined, "expectedSequence"]
        ])
      })
    )
  })
}

it("CommandRefused has a message for every refusal, also for one whose properties can't be read", () => {
  const throwing = {
    get _tag(): string {
      throw new Error("no tag")
    },
    get message(): string {
      throw new Error("no message")
    }
  }
  const refusals: ReadonlyArray<readonly [refusal: unknown, message: string]> = [
    [throwing, "an untagged failure"],
    [Object.assign(Object.create(throwing), {}), "an untagged failure"],
    [
      new Proxy(
        {},
        {
          get: () => {
            throw new Error("no property")
          }
        }
      ),
      "an untagged failure"
    ],
    [{ _tag: "Odd", message: Object.create(null) }, "Odd"],
    [{ _tag: "Odd", message: Symbol("why") }, "Odd: Symbol(why)"],
    [{ message: "why" }, "an untagged failure: why"],
    [Symbol("why"), '"Symbol(why)"'],
    [Object.create(null), "an untagged failure"],
    [undefined, '"undefined"']
  ]
  for (const [refusal, message] of refusals) {
    const error = new StoreError.CommandRefused({ index: 0, aggregate: "Account", kind: "Account", id: "a", refusal })
    expect(error.message).toBe(`Command 0, on Account "a", was refused: ${message}`)
  }
})
