/** Commands on several aggregates take effect together, or not at all, on every store. */
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { Aggregate, EventFeed, MemoryStore, SqlStore, StoreAdapter, StoreError } from "effect-maestro"
import {
  Account,
  Deposit,
  Deposited,
  definition,
  InsufficientFunds,
  Limits,
  SavingsAccount,
  Touch,
  Withdraw,
  Withdrawn
} from "./account.js"
import { layerPg, uniqueName } from "./database.js"
import { aNode } from "./nodes.js"
import { Book, Booked, EnsureFree, Room, room, Taken } from "./room.js"

const stores = {
  MemoryStore: MemoryStore.layer,
  "SqlStore on Postgres": SqlStore.layer.pipe(Layer.provideMerge(layerPg()), Layer.orDie)
}

/** What an untyped caller passes. */
type AnyList = ReadonlyArray<Aggregate.TargetedCommand<"Account", unknown, never>>

const eventsOf = (streamId: string) =>
  Effect.flatMap(StoreAdapter.StoreAdapter, (store) => store.getEvents(streamId, 1))

const open = (id: string, balance: number) => Account.evaluate(id, new Deposit({ amount: balance }))

const newIds = (count: number) => Effect.replicateEffect(Account.newId, count)

/** Two accounts of 10 each, and a room. */
const scene = Effect.gen(function* () {
  const [a, b, r] = [uniqueName("a"), uniqueName("b"), uniqueName("r")]
  yield* open(a, 10)
  yield* open(b, 10)
  return { a, b, r }
})

for (const [name, store] of Object.entries(stores)) {
  const layer = Layer.mergeAll(Account.layer, SavingsAccount.layer, Room.layer).pipe(
    Layer.provideMerge(Limits.layer),
    Layer.provideMerge(store)
  )
  it.layer(layer, { timeout: 60_000 })(`Commands on several aggregates on ${name}`, (it) => {
    it.effect("the results are those of the commands, in their order, and the events are stored in one commit", () =>
      Effect.gen(function* () {
        const { a, b, r } = yield* scene
        const [from, to, booked] = yield* Aggregate.evaluateAll([
          Account.command(b, new Withdraw({ amount: 4 })),
          Account.command(a, new Deposit({ amount: 4 })),
          Room.command(r, new Book({ guest: "Ann" }))
        ])
        expect(from).toEqual({
          state: { owner: null, balance: 6 },
          sequence: 2,
          events: [new Withdrawn({ amount: 4 })],
          position: { aggregateId: Account.streamId(b), sequence: 2 },
          duplicate: false
        })
        expect([to.state.balance, to.sequence, to.events]).toEqual([14, 2, [new Deposited({ amount: 4 })]])
        expect([booked.state, booked.sequence, booked.events]).toEqual(["Ann", 1, [new Booked({ guest: "Ann" })]])
        expect([yield* Account.fetch(b), yield* Account.fetch(a), yield* Room.fetch(r)]).toEqual([
          from.state,
          to.state,
          "Ann"
        ])
      })
    )

    it.effect("the feed has the events in the order of the commands", () =>
      Effect.gen(function* () {
        const after = yield* EventFeed.head
        const ids = Arr.makeBy(20, (n) => uniqueName(`id ${(n * 7) % 20}`))
        yield* Aggregate.evaluateAll([
          ...ids.map((id) => Account.command(id, new Deposit({ amount: 1 }))),
          ...ids.map((id) => Account.command(id, new Deposit({ amount: 2 })))
        ])
        const { events } = yield* EventFeed.read({ after })
        expect(events.map(({ id }) => id)).toEqual([...ids, ...ids])
      })
    )

    it.effect("a refusal has the index, the kind and the id of its command, and stores nothing", () =>
      Effect.gen(function* () {
        const { a, b, r } = yield* scene
        yield* Room.evaluate(r, new Book({ guest: "Bob" }))
        const refused = yield* Effect.flip(
          Aggregate.evaluateAll([
            Account.command(a, new Withdraw({ amount: 4 })),
            Account.command(b, new Deposit({ amount: 4 })),
            Room.command(r, new Book({ guest: "Ann" }))
          ])
        )
        expect(refused).toBeInstanceOf(StoreError.CommandRefused)
        expect(refused).toMatchObject({ index: 2, kind: "Room", id: r, refusal: new Taken({ guest: "Bob" }) })
        expect(refused.message).toContain(`Command 2, on Room ${JSON.stringify(r)}, was refused: Taken`)
        const short = yield* Aggregate.evaluateAll([
          Account.command(a, new Deposit({ amount: 4 })),
          Account.command(b, new Withdraw({ amount: 40 }))
        ]).pipe(
          Effect.as("accepted"),
          Effect.catchTag("CommandRefused", ({ refusal }) => Effect.succeed(refusal._tag))
        )
        expect(short).toBe("InsufficientFunds")
        expect([(yield* Account.fetch(a)).balance, (yield* Account.fetch(b)).balance]).toEqual([10, 10])
        expect(yield* eventsOf(Account.streamId(a))).toHaveLength(1)
      })
    )

    it.effect("a command sees the events of the commands before it on its aggregate", () =>
      Effect.gen(function* () {
        const { a, b } = yield* scene
        const results = yield* Aggregate.evaluateAll([
          Account.command(a, new Deposit({ amount: 5 })),
          Account.command(b, new Withdraw({ amount: 10 })),
          Account.command(a, new Withdraw({ amount: 15 })),
          Account.command(a, new Touch()),
          Account.command(a, new Deposit({ amount: 1 }))
        ])
        expect(results.map(({ sequence, state }) => [sequence, state.balance])).toEqual([
          [2, 15],
          [2, 0],
          [3, 0],
          [3, 0],
          [4, 1]
        ])
        expect((yield* eventsOf(Account.streamId(a))).map(({ sequence }) => sequence)).toEqual([1, 2, 3, 4])
        const refused = yield* Effect.flip(
          Aggregate.evaluateAll([
            Account.command(a, new Deposit({ amount: 5 })),
            Account.command(a, new Withdraw({ amount: 7 }))
          ])
        )
        expect(refused).toMatchObject({ index: 1, refusal: new InsufficientFunds({ balance: 6 }) })
        expect((yield* Account.fetch(a)).balance).toBe(1)
      })
    )

    it.effect("an empty list returns an empty list, and decisions of no events store nothing", () =>
      Effect.gen(function* () {
        const { a, b } = yield* scene
        expect(yield* Aggregate.evaluateAll([])).toEqual([])
        expect(yield* Aggregate.evaluateAll([]).pipe(Aggregate.withCommandId("c"))).toEqual([])
        const after = yield* EventFeed.head
        const touched = yield* Aggregate.evaluateAll([Account.command(a, new Touch()), Account.command(b, new Touch())])
        expect(touched.map(({ events, sequence }) => [events, sequence])).toEqual([
          [[], 1],
          [[], 1]
        ])
        expect(yield* EventFeed.head).toEqual(after)
      })
    )

    it.effect("the metadata of the caller is that of all events", () =>
      Effect.gen(function* () {
        const { a, r } = yield* scene
        yield* Aggregate.evaluateAll([
          Account.command(a, new Deposit({ amount: 5 })),
          Room.command(r, new Book({ guest: "Ann" }))
        ]).pipe(Effect.provideService(Aggregate.Metadata, { user: "u" }))
        const last = [...(yield* eventsOf(Account.streamId(a))).slice(1), ...(yield* eventsOf(Room.streamId(r)))]
        expect(last.map(({ metadata }) => metadata)).toEqual([{ user: "u" }, { user: "u" }])
      })
    )

    it.effect("the events and the receipts are of one chain, which the first event names or the caller", () =>
      Effect.gen(function* () {
        const { a, b, r } = yield* scene
        const after = yield* EventFeed.head
        const list = (guest: string) =>
          Aggregate.evaluateAll([
            Account.command(a, new Deposit({ amount: 5 })),
            Account.command(b, new Deposit({ amount: 5 })),
            ...(guest === "" ? [] : [Room.command(r, new Book({ guest }))])
          ])
        yield* list("Ann").pipe(Aggregate.withCommandId("c"))
        const first = (yield* EventFeed.read({ after })).events
        expect(first).toHaveLength(6)
        expect(first.map(({ correlationId }) => correlationId)).toEqual(first.map(() => first[0]?.timestamp))
        yield* list("").pipe(Aggregate.withCorrelationId("request-7"))
        const { events } = yield* EventFeed.read({ filter: { correlationId: "request-7" } })
        expect(events.map(({ id }) => id)).toEqual([a, b])
      })
    )

    it.effect("a refusal, and a decision of no events, on outdated cached states are decided on the stored ones", () =>
      Effect.gen(function* () {
        const { a, b, r } = yield* scene
        const other = yield* aNode(Layer.merge(Account.layer, Room.layer))
        yield* Account.evaluate(b, new Deposit({ amount: 90 })).pipe(Effect.provide(other))
        const [from] = yield* Aggregate.evaluateAll([
          Account.command(b, new Withdraw({ amount: 100 })),
          Account.command(a, new Deposit({ amount: 100 }))
        ])
        expect([from.state.balance, from.sequence]).toEqual([0, 3])
        yield* Room.fetch(r)
        yield* Room.evaluate(r, new Book({ guest: "Bob" })).pipe(Effect.provide(other))
        const refused = yield* Effect.flip(
          Aggregate.evaluateAll([Room.command(r, new EnsureFree()), Account.command(a, new Deposit({ amount: 1 }))])
        )
        expect(refused).toMatchObject({ index: 0, refusal: new Taken({ guest: "Bob" }) })
        expect((yield* Account.fetch(a)).balance).toBe(110)
      }).pipe(Effect.scoped)
    )

    it.effect("outdated cached states lead to a conflict, and all commands are decided again", () =>
      Effect.gen(function* () {
        const { a, b } = yield* scene
        const other = yield* aNode(Account.layer)
        yield* Account.evaluate(b, new Withdraw({ amount: 5 })).pipe(Effect.provide(other))
        const results = yield* Aggregate.evaluateAll(
          [Account.command(a, new Withdraw({ amount: 5 })), Account.command(b, new Deposit({ amount: 5 }))],
          { retry: Schedule.recurs(1) }
        )
        expect(results.map(({ sequence, state }) => [sequence, state.balance])).toEqual([
          [2, 5],
          [3, 10]
        ])
      }).pipe(Effect.scoped)
    )

    it.effect("each command has its own expected sequence, of the time when it is decided", () =>
      Effect.gen(function* () {
        const { a, b } = yield* scene
        const transfer = (expected: number) =>
          Aggregate.evaluateAll([
            Account.command(a, new Withdraw({ amount: 1 }), { expectedSequence: expected }),
            Account.command(a, new Withdraw({ amount: 1 }), { expectedSequence: expected + 1 }),
            Account.command(b, new Deposit({ amount: 2 }), { expectedSequence: undefined })
          ])
        expect((yield* transfer(1)).map(({ sequence }) => sequence)).toEqual([2, 3, 2])
        const unexpected = yield* Effect.flip(transfer(1))
        expect(unexpected).toMatchObject({ _tag: "UnexpectedSequence", kind: "Account", id: a, expected: 1, actual: 3 })
        expect((yield* Account.fetch(b)).balance).toBe(12)
      })
    )

    it.effect("snapshots are stored where they are due", () =>
      Effect.gen(function* () {
        const [a, b] = [uniqueName("a"), uniqueName("b")]
        yield* Aggregate.evaluateAll([
          ...Arr.makeBy(6, () => SavingsAccount.command(a, new Deposit({ amount: 1 }))),
          SavingsAccount.command(b, new Deposit({ amount: 1 }))
        ])
        const store = yield* StoreAdapter.StoreAdapter
        const snapshots = yield* Effect.forEach([a, b], (id) => store.getSnapshot(SavingsAccount.streamId(id), 1))
        expect(snapshots.map((snapshot) => (snapshot._tag === "Some" ? snapshot.value.sequence : 0))).toEqual([6, 0])
      })
    )

    it.effect("thousands of commands on thousands of aggregates are one commit", () =>
      Effect.gen(function* () {
        const ids = yield* newIds(2000)
        const results = yield* Aggregate.evaluateAll([
          ...ids.map((id) => Account.command(id, new Deposit({ amount: 2 }))),
          ...ids.map((id) => Account.command(id, new Withdraw({ amount: 1 })))
        ])
        expect(results.reduce((sum, { state }) => sum + state.balance, 0)).toBe(6000)
        expect((yield* Account.fetch(ids[1999] ?? "")).balance).toBe(1)
      })
    )
  })
}

const inMemory = Layer.mergeAll(Account.layer, Room.layer).pipe(
  Layer.provideMerge(Limits.layer),
  Layer.provideMerge(MemoryStore.layer)
)

it.layer(inMemory)("The input of evaluateAll", (it) => {
  const refusedWith = <A, E, R>(evaluating: Effect.Effect<A, E, R>) =>
    Effect.map(Effect.flip(evaluating), (error) =>
      error instanceof StoreError.ValidationError
        ? [error.operation, ...error.issues.map(({ index, message, path }) => [index, path.join("."), message])]
        : error
    )

  it.effect("has all its mistakes in one failure, each with the index of the command", () =>
    Effect.gen(function* () {
      const list: ReadonlyArray<unknown> = [
        Account.command("", new Deposit({ amount: 1 })),
        new Deposit({ amount: 1 }),
        Account.command("a", new Deposit({ amount: 1 }), { expectedSequence: -1 })
      ]
      const issues = yield* refusedWith(Aggregate.evaluateAll(list as AnyList))
      expect(issues).toEqual([
        "Aggregate.evaluateAll",
        [0, "id", "must not be empty"],
        [1, "", "must be a command with its aggregate, as `command` of an aggregate makes it"],
        [2, "expectedSequence", "must be an integer from 0 to 2147483647"]
      ])
    })
  )

  it.effect("must be a list of at most 10 000 commands", () =>
    Effect.gen(function* () {
      const many = Arr.makeBy(10_001, (n) => Account.command(`a${n}`, new Touch()))
      expect(yield* refusedWith(Aggregate.evaluateAll(many))).toEqual([
        "Aggregate.evaluateAll",
        [undefined, "", "must be at most 10000 commands, and is 10001"]
      ])
      const none: unknown = "Deposit"
      const untyped = Aggregate.evaluateAll(none as AnyList)
      expect(yield* refusedWith(untyped)).toEqual([
        "Aggregate.evaluateAll",
        [undefined, "", "must be a list of commands"]
      ])
      const most = yield* Aggregate.evaluateAll(
        many.slice(0, 10_000).map(({ id }) => Account.command(id, new Deposit({ amount: 1 })))
      )
      expect(most).toHaveLength(10_000)
    })
  )

  it.effect(
    "may have commands that are none of their aggregate, and events that can't be stored: the index says which",
    () =>
      Effect.gen(function* () {
        const untyped: unknown = { _tag: "Close" }
        const unknown = Aggregate.evaluateAll([
          Account.command("a", new Touch()),
          Account.command("b", untyped as Deposit)
        ])
        expect(yield* refusedWith(unknown)).toEqual([
          "Aggregate.evaluateAll",
          [1, "_tag", 'must be one of Open, Deposit, Withdraw, Touch, and is "Close"']
        ])
        const negative = Aggregate.evaluateAll([
          Account.command("a", new Touch()),
          Account.command("b", Object.assign(new Deposit({ amount: 1 }), { amount: -1 }))
        ])
        expect(yield* refusedWith(negative)).toEqual([
          "Aggregate.evaluateAll",
          [1, "amount", "Expected a positive number, actual -1"]
        ])
      })
  )

  it.effect("must not be under an expected sequence", () =>
    Effect.gen(function* () {
      const [refusal] = yield* Effect.map(
        refusedWith(Aggregate.evaluateAll([Account.command("a", new Touch())]).pipe(Aggregate.withExpectedSequence(0))),
        (issues) => (Array.isArray(issues) ? issues.slice(1) : [])
      )
      expect(refusal).toEqual([
        undefined,
        "expectedSequence",
        "must be given to each command of the list: `command(id, command, { expectedSequence })`"
      ])
    })
  )

  it.effect("must be of aggregates of one store", () =>
    Effect.gen(function* () {
      const elsewhere = yield* Layer.build(Layer.fresh(Room.layer).pipe(Layer.provide(Layer.fresh(MemoryStore.layer))))
      const issues = yield* refusedWith(
        Aggregate.evaluateAll([
          Account.command("a", new Deposit({ amount: 1 })),
          Room.command("r", new Book({ guest: "Ann" }))
        ]).pipe(Effect.provide(elsewhere))
      )
      expect(issues).toEqual([
        "Aggregate.evaluateAll",
        [1, "", expect.stringContaining("must be of an aggregate whose layer has the same store")]
      ])
      expect(yield* Account.exists("a")).toBe(false)
    }).pipe(Effect.scoped)
  )

  it.effect("must not have two aggregates that share a stream by plain ids", () =>
    Effect.gen(function* () {
      const Plain = Aggregate.make("Plain", { ...definition, streams: "plain" })
      const PlainRoom = Aggregate.make("PlainRoom", { ...room, streams: "plain" })
      const node = yield* aNode(Layer.merge(Plain.layer, PlainRoom.layer))
      const both = (roomId: string) =>
        Aggregate.evaluateAll([
          Plain.command("x", new Deposit({ amount: 1 })),
          PlainRoom.command(roomId, new Book({ guest: "Ann" }))
        ]).pipe(Effect.provide(node))
      expect(yield* refusedWith(both("x"))).toEqual([
        "Aggregate.evaluateAll",
        [1, "id", "must not be the stream of Plain, which command 0 is for"]
      ])
      expect((yield* both("y")).map(({ sequence }) => sequence)).toEqual([1, 1])
    }).pipe(Effect.scoped)
  )

  it.effect("must not have an aggregate whose handler is deciding, and a handler may evaluate lists of others", () =>
    Effect.gen(function* () {
      class Ask extends Schema.TaggedClass<Ask>()("Ask", { room: Schema.String, account: Schema.String }) {}
      const Asking = Aggregate.make("Asking", {
        ...definition,
        commands: Ask,
        decide: {
          Ask: ({ account, room }: Ask) =>
            Effect.map(
              Aggregate.evaluateAll([
                Room.command(room, new Book({ guest: "Ann" })),
                Account.command(account, new Deposit({ amount: 1 }))
              ]),
              () => [new Deposited({ amount: 1 })]
            )
        }
      })
      const services = yield* Effect.context<Aggregate.Instance<"Room" | "Account">>()
      const node = yield* aNode(Asking.layer.pipe(Layer.provide(Layer.succeedContext(services))))
      const ask = new Ask({ room: "asked", account: "asked" })
      yield* Asking.evaluate("x", ask).pipe(Effect.provide(node))
      expect((yield* eventsOf("Room/asked")).length).toBe(1)
      const inside = Aggregate.evaluateAll([
        Account.command("asked", new Deposit({ amount: 1 })),
        Asking.command("x", new Ask({ room: "asked 2", account: "asked" }))
      ]).pipe(Effect.provide(node))
      expect(yield* refusedWith(inside)).toEqual([
        "Aggregate.evaluateAll",
        [1, "id", "must not be the aggregate whose command the handler around is deciding"]
      ])
      expect(yield* eventsOf("Room/asked 2")).toEqual([])
    }).pipe(Effect.scoped)
  )
})
