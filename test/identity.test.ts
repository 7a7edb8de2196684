/** An aggregate is identified by its kind and its id, so aggregates of different kinds may share an id. */
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Cause from "effect/Cause"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Aggregate, Event, EventFeed, MemoryStore, Projection, SqlStore, StoreAdapter, Timestamp } from "effect-maestro"
import { Account, Deposit, Deposited, definition, Limits } from "./account.js"
import { layerPg } from "./database.js"
import { aNode } from "./nodes.js"
import { eventually } from "./subscribers.js"

class Registered extends Schema.TaggedClass<Registered>()("Registered", { name: Schema.String }) {}
class Register extends Schema.TaggedClass<Register>()("Register", { name: Schema.String }) {}
class Booked extends Schema.TaggedClass<Booked>()("Booked", { nights: Schema.Int }) {}
class Book extends Schema.TaggedClass<Book>()("Book", { nights: Schema.Int }) {}

const Guest = Aggregate.make("Guest", {
  state: Schema.Struct({ name: Schema.String }),
  initialState: { name: "" },
  events: Registered,
  commands: Register,
  decide: { Register: ({ name }) => Effect.succeed([new Registered({ name })]) },
  evolve: { Registered: (_, { name }) => ({ name }) },
  snapshotEvery: 1
})

const Room = Aggregate.make("Room", {
  state: Schema.Struct({ nights: Schema.Int }),
  initialState: { nights: 0 },
  events: Booked,
  commands: Book,
  decide: { Book: ({ nights }) => Effect.succeed([new Booked({ nights })]) },
  evolve: { Booked: (state, { nights }) => ({ nights: state.nights + nights }) },
  snapshotEvery: 1
})

class Raised extends Schema.TaggedClass<Raised>()("Raised", { by: Schema.Int }) {}

/** The sum of all raises, of streams that are named by their ids alone. `factor` distinguishes two readers. */
const makePlain = <const P extends ReadonlyArray<Projection.Projection.Any>>(
  name: string,
  factor: number,
  projections: P
) =>
  Aggregate.make(name, {
    state: Schema.Number,
    initialState: 0,
    events: Raised,
    commands: Raised,
    decide: { Raised: (command: Raised) => Effect.succeed([command]) },
    evolve: { Raised: (sum: number, { by }: Raised) => sum + factor * by },
    projections,
    streams: "plain"
  })

const stored = (aggregateId: string) =>
  Effect.flatMap(StoreAdapter.StoreAdapter, (store) => store.getEvents(aggregateId, 1))

const raw = (aggregateId: string, sequence: number, type: string, body: Record<string, unknown>) =>
  Effect.gen(function* () {
    const { now } = yield* Timestamp.HybridClock
    const store = yield* StoreAdapter.StoreAdapter
    yield* store.commitEvents([{ timestamp: yield* now, aggregateId, sequence, type, body, metadata: {} }])
  })

const collected = <A, E, R>(stream: Stream.Stream<A, E, R>) =>
  Effect.map(Stream.runCollect(stream), Chunk.toReadonlyArray)

const layerAggregates = Layer.mergeAll(Guest.layer, Room.layer, Account.layer).pipe(Layer.provideMerge(Limits.layer))

for (const [name, store] of Object.entries({
  MemoryStore: MemoryStore.layer,
  "SqlStore on Postgres": SqlStore.layer.pipe(Layer.provideMerge(layerPg()), Layer.orDie)
})) {
  it.layer(Layer.provideMerge(layerAggregates, store), { timeout: 60_000 })(`identity on ${name}`, (it) => {
    it.effect("a guest and a room of one id are two aggregates, each with its own events, snapshots and receipts", () =>
      Effect.gen(function* () {
        const id = "room-101"
        const once = Aggregate.withCommandId("one request")
        expect(yield* once(Guest.evaluate(id, new Register({ name: "Ann" })))).toMatchObject({ sequence: 1 })
        expect(yield* once(Room.evaluate(id, new Book({ nights: 2 })))).toMatchObject({
          sequence: 1,
          duplicate: false,
          position: { aggregateId: "Room/room-101", sequence: 1 }
        })
        expect(yield* Room.evaluate(id, new Book({ nights: 3 }))).toMatchObject({ sequence: 2, state: { nights: 5 } })
        const elsewhere = Effect.provide(Layer.fresh(Layer.merge(Guest.layer, Room.layer)))
        for (const read of [<A, E, R>(effect: Effect.Effect<A, E, R>) => effect, elsewhere]) {
          expect(yield* read(Guest.fetch(id))).toEqual({ name: "Ann" })
          expect(yield* read(Room.fetch(id))).toEqual({ nights: 5 })
        }
        expect((yield* stored("Guest/room-101")).map(({ type }) => type)).toEqual(["Registered"])
        expect((yield* stored("Room/room-101")).map(({ type }) => type)).toEqual(["Booked", "Booked"])
        expect([Guest.streamId(id), Room.streamId(id)]).toEqual(["Guest/room-101", "Room/room-101"])
      })
    )

    it.effect("an event of the feed has kind and id, also with slashes in the id", () =>
      Effect.gen(function* () {
        const after = yield* EventFeed.head
        for (const id of ["a/b", "/", "Room/101", "//"]) yield* Room.evaluate(id, new Book({ nights: 1 }))
        // An open transaction elsewhere on the server may hold the feed back.
        const { events } = yield* eventually(
          EventFeed.read({ after, filter: { kinds: ["Room"] } }),
          (page) => page.events.length >= 4
        )
        expect(events.map(({ aggregateId, id, kind }) => [kind, id, aggregateId])).toEqual(
          ["a/b", "/", "Room/101", "//"].map((id) => ["Room", id, `Room/${id}`])
        )
        for (const { aggregateId, id, kind } of events) {
          expect(Event.identityOf(aggregateId)).toEqual({ kind, id })
          expect(yield* Room.fetch(id)).toEqual({ nights: 1 })
        }
      })
    )

    it.effect("handlers have the id that the command was evaluated with", () =>
      Effect.gen(function* () {
        const seen: Array<unknown> = []
        const Seeing = Aggregate.make("Account", {
          ...definition,
          decide: {
            ...definition.decide,
            Touch: (_command, { id, sequence }) => {
              seen.push([id, sequence])
              return Effect.succeed([new Deposited({ amount: 1 })])
            }
          }
        })
        const id = `a/${yield* Account.newId}`
        yield* Effect.provide(Seeing.evaluateUnknown(id, { _tag: "Touch" }), Seeing.layer)
        expect(seen).toEqual([[id, 0]])
        expect(yield* stored(`Account/${id}`)).toHaveLength(1)
      })
    )

    it.effect(
      "kind and id together have a maximal length, and an id that is too long is a ValidationError of every operation",
      () =>
        Effect.gen(function* () {
          for (const longest of ["x".repeat(247), "🎉".repeat(247)]) {
            yield* Account.evaluate(longest, new Deposit({ amount: 1 }))
            expect(yield* Account.fetch(longest)).toMatchObject({ balance: 1 })
          }
          const notIds: ReadonlyArray<readonly [id: unknown, message: string]> = [
            ["", "must not be empty"],
            ["x".repeat(248), "must be at most 247 characters long"],
            ["🎉".repeat(248), "must be at most 247 characters long"],
            ["a\0b", "contains NUL"],
            ["\ud800", "contains half of a surrogate pair"],
            [7, "must be a text"],
            [undefined, "must be a text"],
            [{ toString: () => "a" }, "must be a text"]
          ]
          for (const [value, message] of notIds) {
            const id = value as string
            const refused: ReadonlyArray<
              readonly [string, Effect.Effect<unknown, unknown, Aggregate.Instance<"Account">>]
            > = [
              ["evaluate", Account.evaluate(id, new Deposit({ amount: 1 }))],
              ["evaluate", Account.evaluateUnknown(id, { _tag: "Deposit", amount: 1 })],
              ["evaluate", Account.evaluate(id, new Deposit({ amount: 1 })).pipe(Aggregate.withCommandId("c"))],
              ["get", Account.get(id)],
              ["fetch", Account.fetch(id)],
              ["replay", Account.replay(id, 0)],
              ["snapshot", Account.snapshot(id)],
              ["history", Stream.runDrain(Account.history(id))]
            ]
            for (const [operation, effect] of refused) {
              expect(yield* Effect.flip(effect)).toMatchObject({
                _tag: "ValidationError",
                operation: `Account.${operation}`,
                issues: [{ path: ["id"], message }]
              })
            }
          }
        })
    )

    it.effect("history: all events, decoded, with sequence, timestamp and metadata, page by page", () =>
      Effect.gen(function* () {
        const id = yield* Account.newId
        expect(yield* collected(Account.history(id))).toEqual([])
        const { now } = yield* Timestamp.HybridClock
        const store = yield* StoreAdapter.StoreAdapter
        const events = yield* Effect.forEach(Arr.range(1, 1201), (sequence) =>
          Effect.map(now, (timestamp) => ({
            timestamp,
            aggregateId: Account.streamId(id),
            sequence,
            type: "Deposited",
            body: { amount: sequence },
            metadata: { by: { whom: "ann" } }
          }))
        )
        yield* store.commitEvents(events)
        const all = yield* collected(Account.history(id))
        expect(all).toEqual(
          events.map(({ body, metadata, sequence, timestamp }) => ({
            event: new Deposited(body),
            sequence,
            timestamp,
            metadata
          }))
        )
        expect(all[0]?.event).toBeInstanceOf(Deposited)
        // A caller may change the metadata of its copy.
        Reflect.set(all[0]?.metadata.by ?? {}, "whom", "changed")
        expect(all[1]?.metadata).toEqual({ by: { whom: "ann" } })
        const reads: Array<number> = []
        const paged = yield* aNode(Account.layer, {
          ...store,
          getEvents: (aggregateId, min, options) => {
            reads.push(min)
            return store.getEvents(aggregateId, min, options)
          }
        })
        yield* Account.history(id).pipe(Stream.take(600), Stream.runDrain, Effect.provide(paged))
        expect(reads).toEqual([1, 501])
      }).pipe(Effect.scoped)
    )

    it.effect(
      "history: fails with UnreadableEvent at the first event that can't be decoded, after the events before",
      () =>
        Effect.gen(function* () {
          const id = yield* Account.newId
          yield* Account.evaluate(id, new Deposit({ amount: 1 }))
          yield* raw(Account.streamId(id), 2, "Unheard", {})
          yield* raw(Account.streamId(id), 3, "Deposited", { amount: 3 })
          const seen: Array<number> = []
          const error = yield* Account.history(id).pipe(
            Stream.runForEach(({ sequence }) => Effect.sync(() => seen.push(sequence))),
            Effect.flip
          )
          expect(error).toMatchObject({ reason: "UnreadableEvent", sequence: 2, type: "Unheard" })
          expect(seen).toEqual([1])
        })
    )

    it.effect(
      "plain ids: the id is the name of the stream, also in handlers, and two aggregates may read one stream",
      () =>
        Effect.gen(function* () {
          const projected: Array<unknown> = []
          const Noting = Projection.make({
            name: "noting",
            events: Raised,
            project: { Raised: ({ by }, { id, kind }) => Effect.sync(() => projected.push([kind, id, by])) }
          })
          const Sum = makePlain("Sum", 1, [Noting])
          const Double = makePlain("Double", 2, [])
          const id = `https://sums.example/${yield* Account.newId}`
          yield* Effect.gen(function* () {
            expect(Sum.streamId(id)).toBe(id)
            expect(yield* Sum.evaluate(id, new Raised({ by: 3 }))).toMatchObject({
              state: 3,
              position: { aggregateId: id, sequence: 1 }
            })
            yield* Sum.snapshot(id)
            // The snapshot is another aggregate's, whose state has an equal schema.
            expect(yield* Double.fetch(id)).toBe(6)
            yield* Double.evaluate(id, new Raised({ by: 4 }))
            expect(yield* Sum.fetch(id)).toBe(7)
            expect((yield* collected(Sum.history(id))).map(({ event }) => event.by)).toEqual([3, 4])
            expect(projected).toEqual([["", id, 3]])
            yield* raw(id, 3, "Other", {})
            expect(yield* Effect.flip(Sum.fetch(id))).toMatchObject({ reason: "UnreadableEvent", aggregateId: id })
            for (const notId of ["", "effect-maestro:Receipt/a", "x".repeat(256)]) {
              expect(yield* Effect.flip(Sum.fetch(notId))).toMatchObject({ issues: [{ path: ["id"] }] })
            }
            expect(yield* Sum.fetch("x".repeat(255))).toBe(0)
          }).pipe(Effect.provide([Sum.layer, Double.layer]))
        })
    )
  })
}

it("an invalid name is refused when the aggregate is made", () => {
  const names: ReadonlyArray<readonly [name: unknown, message: string]> = [
    ["", "must not be empty"],
    ["a/b", 'must not contain "/"'],
    ["effect-maestro", "must not begin with effect-maestro"],
    ["effect-maestro:Receipt", "must not begin with effect-maestro"],
    ["x".repeat(254), "must be at most 253 characters long"],
    ["a\0", "contains NUL"],
    ["\udc00", "contains half of a surrogate pair"],
    [7, "must be a text"]
  ]
  for (const [name, message] of names) {
    expect(() => Aggregate.make(name as string, definition), String(name)).toThrow(message)
  }
  Aggregate.make("x".repeat(253), definition)
  expect(() => Aggregate.make("Account", { ...definition, streams: "none" as "plain" })).toThrow("streams of Account")
})

it("an event type with the reserved prefix is refused when the aggregate is made", () => {
  const Reserved = Schema.TaggedStruct("effect-maestro/CommandHandled", {})
  expect(() =>
    Aggregate.make("Reserving", {
      state: Schema.Number,
      initialState: 0,
      events: Reserved,
      commands: Reserved,
      decide: { "effect-maestro/CommandHandled": () => Effect.succeed([]) },
      evolve: { "effect-maestro/CommandHandled": (state) => state }
    })
  ).toThrow("effect-maestro/CommandHandled")
})

it.effect("an aggregate may have the name of a reference of the library", () =>
  Effect.gen(function* () {
    const [Metadata, CommandId] = [Aggregate.make("Metadata", definition), Aggregate.make("CommandId", definition)]
    yield* Effect.gen(function* () {
      const deposit = new Deposit({ amount: 1 })
      const around = Effect.provideService(Aggregate.Metadata, { userId: "u1" })
      yield* Metadata.evaluate("a", deposit).pipe(around, Aggregate.withCommandId("c"))
      expect(yield* Metadata.evaluate("a", deposit).pipe(around, Aggregate.withCommandId("c"))).toMatchObject({
        duplicate: true
      })
      yield* CommandId.evaluate("a", deposit).pipe(around)
      expect((yield* stored("Metadata/a")).map(({ metadata }) => metadata)).toEqual([{ userId: "u1" }])
      expect(yield* stored("CommandId/a")).toHaveLength(1)
    }).pipe(Effect.provide(Layer.merge(Metadata.layer, CommandId.layer)))
  }).pipe(Effect.provide(Layer.merge(MemoryStore.layer, Limits.layer)))
)

it.effect(
  "with two aggregates of one name, an operation dies unless the context has the layer of its own aggregate",
  () =>
    Effect.gen(function* () {
      const ran: Array<string> = []
      const twin = (name: string, factor: number) =>
        Aggregate.make("Twin", {
          ...definition,
          evolve: {
            ...definition.evolve,
            Deposited: (state, { amount }: Deposited) => {
              ran.push(name)
              return { ...state, balance: state.balance + factor * amount }
            }
          }
        })
      const [A, B] = [twin("A", 1), twin("B", 100)]
      const deposit = new Deposit({ amount: 1 })
      const message = 'Two aggregates are named "Twin"'
      yield* Effect.gen(function* () {
        for (const operation of [
          A.evaluate("a", deposit),
          A.evaluateUnknown("a", { _tag: "Deposit", amount: 1 }),
          A.exists("a"),
          A.get("a"),
          A.fetch("a"),
          A.root("a"),
          A.replay("a", 0),
          A.snapshot("a"),
          Stream.runCollect(A.history("a"))
        ]) {
          const exit = yield* Effect.exit<unknown, unknown, Aggregate.Instance<"Twin">>(operation)
          expect(Exit.isFailure(exit) && Cause.isDie(exit.cause) && Cause.pretty(exit.cause)).toContain(message)
        }
        expect(ran).toEqual([])
        expect(yield* B.evaluate("a", deposit)).toMatchObject({ state: { balance: 100 } })
      }).pipe(Effect.provide(Layer.merge(A.layer, B.layer)))
      expect(yield* Effect.provide(A.evaluate("a", deposit), A.layer)).toMatchObject({ state: { balance: 2 } })
    }).pipe(Effect.provide(Layer.merge(MemoryStore.layer, Limits.layer)))
)

it("a projection of another aggregate is refused when the aggregate is made, and when it is bound", () => {
  const OfRooms = Projection.make({ name: "rooms", of: Room, project: { Booked: () => Effect.void } })
  expect(OfRooms.of).toEqual({ name: "Room", kind: "Room", streams: "byKind" })
  const message = 'projection "rooms" is of aggregate Room, and can\'t be of Account'
  expect(() => Aggregate.make("Account", { ...definition, projections: [OfRooms] })).toThrow(message)
  expect(() => Projection.of(Account, OfRooms)).toThrow(message)
  expect(() => Projection.of("all", OfRooms)).toThrow("can't be of all aggregates")
  expect(Projection.of(Room, OfRooms)).toEqual(OfRooms)
  const unbound = Projection.make({ name: "unbound", events: Booked, project: { Booked: () => Effect.void } })
  const Projecting = Aggregate.make("Projecting", { ...definition, projections: [unbound] })
  expect(Projecting.projections.map(({ of }) => of)).toEqual([
    { name: "Projecting", kind: "Projecting", streams: "byKind" }
  ])
  expect(Option.fromNullable(unbound.of)).toEqual(Option.none())
})
