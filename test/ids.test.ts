/** Aggregates whose ids have a schema. The operations refuse other ids, by their types and at run time. */
import { expect, it, layer } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import {
  Aggregate,
  type Event,
  EventFeed,
  MemoryStore,
  Projection,
  SqlStore,
  StoreAdapter,
  StoreError,
  Subscription,
  Timestamp
} from "effect-maestro"
import { expectTypeOf } from "vitest"
import { layerPg } from "./database.js"

class Booked extends Schema.TaggedClass<Booked>()("Booked", { nights: Schema.Int }) {}
class Book extends Schema.TaggedClass<Book>()("Book", { nights: Schema.Int }) {}
class Full extends Schema.TaggedError<Full>()("Full", {}) {}

const RoomId = Schema.TemplateLiteral("room-", Schema.String)
type RoomId = typeof RoomId.Type
const GuestId = Schema.UUID.pipe(Schema.brand("GuestId"))
type GuestId = typeof GuestId.Type

const definition = {
  state: Schema.Struct({ nights: Schema.Int }),
  initialState: { nights: 0 },
  events: Booked,
  commands: Book,
  decide: { Book: ({ nights }: Book) => Effect.succeed([new Booked({ nights })]) },
  evolve: { Booked: (state: { readonly nights: number }, { nights }: Booked) => ({ nights: state.nights + nights }) }
}

const Room = Aggregate.make("Room", {
  state: Schema.Struct({ nights: Schema.Int }),
  initialState: { nights: 0 },
  id: RoomId,
  events: Booked,
  commands: Book,
  decide: {
    Book: ({ nights }, { id, state }) => {
      expectTypeOf(id).toEqualTypeOf<RoomId>()
      expectTypeOf(state).toEqualTypeOf<{ readonly nights: number }>()
      return state.nights > 9 ? new Full() : Effect.succeed([new Booked({ nights })])
    }
  },
  evolve: { Booked: (state, { nights }) => ({ nights: state.nights + nights }) }
})

const Guest = Aggregate.make("Guest", { ...definition, id: GuestId })
const Plain = Aggregate.make("Plain", definition)

const numbered = { last: 0 }
const Numbered = Aggregate.make("Numbered", {
  ...definition,
  id: RoomId,
  newId: Effect.sync((): RoomId => `room-${++numbered.last}`)
})

const book = new Book({ nights: 1 })

/** An id of plain JavaScript, or one that was cast. */
const anyId = (id: unknown): RoomId => id as RoomId

const pathsAndMessages = (error: StoreError.ValidationError) => error.issues.map(({ message, path }) => [path, message])

/** The message of the schema of the rooms' ids. */
const notRoom = (id: string) => `Expected \`room-$\{string}\`, actual "${id}"`

/** Every operation on an id. */
const operationsOn = (id: RoomId) => ({
  evaluate: Room.evaluate(id, book),
  evaluateUnknown: Room.evaluateUnknown(id, { _tag: "Book", nights: 1 }),
  exists: Room.exists(id),
  get: Room.get(id),
  fetch: Room.fetch(id),
  root: Room.root(id),
  replay: Room.replay(id, 0),
  snapshot: Room.snapshot(id),
  history: Stream.runCollect(Room.history(id))
})

const stored = Effect.map(Stream.runCollect(EventFeed.streamStored()), (events) =>
  Array.from(events, ({ aggregateId }) => aggregateId)
)

/** An event that another program wrote. */
const write = (aggregateId: string) =>
  Effect.gen(function* () {
    const { now } = yield* Timestamp.HybridClock
    const store = yield* StoreAdapter.StoreAdapter
    const timestamp = yield* now
    yield* store.commitEvents([
      { timestamp, aggregateId, sequence: 1, type: "Booked", body: { nights: 1 }, metadata: {} }
    ])
  })

const layerAggregates = Layer.mergeAll(Room.layer, Guest.layer, Plain.layer, Numbered.layer)

it("the types of operations, handlers and envelopes have the ids of the schema, and refuse others", () => {
  const types = (guest: GuestId, text: string, room: RoomId) => {
    expectTypeOf(Room.evaluate<Book>)
      .parameter(0)
      .toEqualTypeOf<RoomId>()
    expectTypeOf(Room.evaluateUnknown).parameter(0).toEqualTypeOf<RoomId>()
    expectTypeOf(Room.exists).parameter(0).toEqualTypeOf<RoomId>()
    expectTypeOf(Room.get).parameter(0).toEqualTypeOf<RoomId>()
    expectTypeOf(Room.fetch).parameter(0).toEqualTypeOf<RoomId>()
    expectTypeOf(Room.root).parameter(0).toEqualTypeOf<RoomId>()
    expectTypeOf(Room.replay).parameter(0).toEqualTypeOf<RoomId>()
    expectTypeOf(Room.snapshot).parameter(0).toEqualTypeOf<RoomId>()
    expectTypeOf(Room.history).parameter(0).toEqualTypeOf<RoomId>()
    expectTypeOf(Room.streamId).parameter(0).toEqualTypeOf<RoomId>()
    expectTypeOf(Plain.evaluate<Book>)
      .parameter(0)
      .toEqualTypeOf<string>()
    const rooting = Room.root(room)
    expectTypeOf<Effect.Effect.Success<typeof rooting>["id"]>().toEqualTypeOf<RoomId>()
    const booking = Room.evaluate(room, book)
    expectTypeOf<Effect.Effect.Error<typeof booking>>().toEqualTypeOf<Full | Aggregate.Failure>()
    const booked = Guest.evaluate(guest, book)
    expectTypeOf<Effect.Effect.Error<typeof booked>>().toEqualTypeOf<Aggregate.Failure>()
    return [
      // @ts-expect-error the id of a guest is no id of a room
      Room.evaluate(guest, book),
      // @ts-expect-error any text is no id of a room
      Room.evaluate(text, book),
      // @ts-expect-error any text is no id of a guest
      Guest.fetch(text),
      // @ts-expect-error the id of a room is no id of a guest
      Guest.exists(room),
      // @ts-expect-error another template
      Room.history("guest-1"),
      // @ts-expect-error any text is no id of a guest
      Guest.streamId(text),
      // @ts-expect-error the command is checked as before
      Room.evaluate(room, { _tag: "Book", nights: "one" }),
      Room.evaluate("room-1", book),
      Plain.evaluate(guest, book)
    ]
  }
  expectTypeOf(types).toBeFunction()
})

it("newId is of the type of the ids, if a timestamp can be one", () => {
  expectTypeOf(Guest.newId).toEqualTypeOf<Effect.Effect<GuestId>>()
  expectTypeOf(Plain.newId).toEqualTypeOf<Effect.Effect<string>>()
  expectTypeOf(Numbered.newId).toEqualTypeOf<Effect.Effect<RoomId>>()
  const types = () => {
    // @ts-expect-error a template literal can't be made of a timestamp: "give the option newId"
    const piped = Effect.asVoid(Room.newId)
    const making = {
      ...definition,
      id: RoomId
    }
    // @ts-expect-error the option makes ids of another type
    const refused = Aggregate.make("Refused", { ...making, newId: Effect.succeed("guest-1" as const) })
    return [piped, refused]
  }
  expectTypeOf(types).toBeFunction()
})

it("handlers of projections and subscriptions get ids of the aggregate's type", () => {
  Projection.make({
    name: "types",
    of: Room,
    project: { Booked: (_event, { id }) => Effect.sync(() => expectTypeOf(id).toEqualTypeOf<RoomId>()) },
    onConstraint: {
      unique: (_event, { id }) => {
        expectTypeOf(id).toEqualTypeOf<RoomId>()
        return new Full()
      }
    }
  })
  Projection.makeSql({
    name: "types",
    of: Guest,
    project: {
      Booked: (_event, { id }, sql) => {
        expectTypeOf(id).toEqualTypeOf<GuestId>()
        return sql`select 1`
      }
    }
  })
  Subscription.on(Room, {
    Booked: (_event, { id }) => Effect.sync(() => expectTypeOf(id).toEqualTypeOf<RoomId>())
  })
  Subscription.on(Plain, {
    Booked: (_event, { id }) => Effect.sync(() => expectTypeOf(id).toEqualTypeOf<string>())
  })
  // @ts-expect-error the handler takes ids of guests
  Subscription.on(Room, { Booked: (_event: Booked, { id }: Event.Envelope<GuestId>) => Effect.succeed(id) })
})

it("a schema of ids that transforms is refused when the aggregate is made, and so is what is no schema", () => {
  const makeWith = (id: unknown) => () => Aggregate.make("Wrong", { ...definition, id: id as Schema.Schema<string> })
  for (const schema of [Schema.Trim, Schema.Lowercase, Schema.NumberFromString, Schema.parseJson(Schema.String)]) {
    expect(makeWith(schema), String(schema)).toThrow(new TypeError(transformsMessage))
  }
  expect(makeWith(Schema.Union(Schema.UUID, Schema.Trim))).toThrow(transformsMessage)
  expect(makeWith(Schema.filterEffect(Schema.String, () => Effect.succeed(true)))).toThrow(transformsMessage)
  expect(makeWith("RoomId")).toThrow(new TypeError("id of Wrong must be a schema"))
  expect(() => Aggregate.make("Wrong", { ...definition, newId: "a" as unknown as Effect.Effect<string> })).toThrow(
    new TypeError("newId of Wrong must be an effect")
  )
  const suspended = Schema.suspend(() => Schema.Trim)
  for (const schema of [suspended, Schema.Union(Schema.UUID, suspended), suspended.pipe(Schema.maxLength(9))]) {
    expect(makeWith(schema), String(schema)).toThrow(transformsMessage)
  }
  for (const schema of [Schema.UUID, RoomId, GuestId, Schema.Trimmed, Schema.Literal("a", "b")]) makeWith(schema)()
})

it.effect("a suspended schema of ids is one of what it suspends, also if that is defined later or is recursive", () =>
  Effect.gen(function* () {
    const recursive: Schema.Schema<string> = Schema.Union(
      Schema.UUID,
      Schema.suspend(() => recursive)
    )
    const suspendedLater = Schema.suspend(() => Later)
    const schemas = [
      Schema.suspend(() => Schema.String),
      Schema.suspend(() => Schema.suspend(() => RoomId)),
      Schema.Union(
        Schema.suspend(() => RoomId),
        Schema.UUID
      ),
      Schema.suspend(() => RoomId).pipe(Schema.maxLength(9)),
      suspendedLater
    ]
    const made = schemas.map((id) => Aggregate.make("Suspended", { ...definition, id: id as Schema.Schema<string> }))
    Aggregate.make("Recursive", { ...definition, id: recursive })
    const Later = RoomId
    for (const [index, aggregate] of made.entries()) {
      const run = Effect.provide(aggregate.layer.pipe(Layer.provide(Layer.fresh(MemoryStore.layer))))
      expect(yield* run(aggregate.evaluate("room-1", book))).toMatchObject({ sequence: 1 })
      if (index > 0) {
        expect(yield* Effect.flip(run(aggregate.evaluate("guest-1", book)))).toMatchObject({
          issues: [{ path: ["id"] }]
        })
      }
    }
  })
)

const transformsMessage = "id of Wrong must be a schema that does not transform, because the id is stored as it is"

it("the schema of an aggregate's ids is a property of the aggregate", () => {
  expect(Room.id).toBe(RoomId)
  expect(Schema.is(Plain.id)("any text")).toBe(true)
  expectTypeOf<Schema.Schema.Type<typeof Room.id>>().toEqualTypeOf<RoomId>()
  expectTypeOf<Schema.Schema.Type<typeof Plain.id>>().toEqualTypeOf<string>()
})

for (const [name, store] of Object.entries({
  MemoryStore: MemoryStore.layer,
  "SqlStore on Postgres": SqlStore.layer.pipe(Layer.provideMerge(layerPg()), Layer.orDie)
})) {
  layer(Layer.provideMerge(layerAggregates, store), { timeout: 60_000, excludeTestServices: true })(
    `ids on ${name}`,
    (it) => {
      it.effect(
        "every operation refuses an id that does not fit, with the message of the schema, and stores nothing",
        () =>
          Effect.gen(function* () {
            const before = yield* stored
            const bad: ReadonlyArray<readonly [id: unknown, message: string]> = [
              ["guest-1", notRoom("guest-1")],
              ["", "must not be empty"],
              [7, "must be a text"],
              [undefined, "must be a text"],
              [`room-${"x".repeat(250)}`, "must be at most 250 characters long"],
              ["room-\0", "contains NUL"]
            ]
            for (const [id, message] of bad) {
              for (const [operation, effect] of Object.entries(operationsOn(anyId(id)))) {
                const failing: Effect.Effect<unknown, unknown, Aggregate.Instance<"Room">> = effect
                const error = yield* Effect.flip(failing)
                expect(error, operation).toBeInstanceOf(StoreError.ValidationError)
                expect(error, operation).toMatchObject({
                  operation: `Room.${operation === "evaluateUnknown" ? "evaluate" : operation}`
                })
                const issues = error instanceof StoreError.ValidationError ? pathsAndMessages(error) : []
                expect(issues, operation).toEqual([[["id"], expect.stringContaining(message)]])
              }
            }
            expect(yield* stored).toEqual(before)
            expect(
              pathsAndMessages(
                yield* Effect.flip(
                  Effect.catchTag(Guest.fetch("7" as GuestId), "StoreError", (error) => Effect.die(error))
                )
              )
            ).toEqual([[["id"], expect.stringContaining("Expected a Universally Unique Identifier")]])
          })
      )

      it.effect("every operation takes an id that fits, also while its state is cached", () =>
        Effect.gen(function* () {
          for (const _ of [1, 2]) {
            for (const [operation, effect] of Object.entries(operationsOn("room-7"))) {
              const running: Effect.Effect<unknown, unknown, Aggregate.Instance<"Room">> = effect
              expect(Exit.isSuccess(yield* Effect.exit(running)), operation).toBe(true)
            }
          }
          expect(yield* Room.root("room-7")).toMatchObject({ id: "room-7", sequence: 4 })
          expect(Room.streamId("room-7")).toBe("Room/room-7")
        })
      )

      it.effect("exists is false before the first event, and true after it", () =>
        Effect.gen(function* () {
          expect(yield* Room.exists("room-e")).toBe(false)
          yield* Room.fetch("room-e")
          expect(yield* Room.exists("room-e")).toBe(false)
          yield* Room.evaluate("room-e", book)
          expect(yield* Room.exists("room-e")).toBe(true)
          expect(yield* Room.exists("room-e2")).toBe(false)
        })
      )

      it.effect("newId makes timestamps for a brand of UUIDs, and the first command on one succeeds", () =>
        Effect.gen(function* () {
          const id = yield* Guest.newId
          expect(Timestamp.isTimestamp(id)).toBe(true)
          expect(yield* Guest.evaluate(id, book)).toMatchObject({ sequence: 1 })
        })
      )

      it.effect(
        "an id of the option newId that is taken is no fresh one: the command is decided on the stored state",
        () =>
          Effect.gen(function* () {
            numbered.last = 0
            expect(yield* Numbered.newId).toBe("room-1")
            expect(yield* Numbered.evaluate("room-1", book)).toMatchObject({ sequence: 1, state: { nights: 1 } })
            const elsewhere = Effect.provide(Layer.fresh(Numbered.layer))
            numbered.last = 0
            expect(yield* elsewhere(Effect.flatMap(Numbered.newId, (id) => Numbered.evaluate(id, book)))).toMatchObject(
              {
                sequence: 2,
                state: { nights: 2 }
              }
            )
          })
      )

      it.effect("a subscription stops before a stored event whose id does not fit, and names it", () =>
        Effect.gen(function* () {
          yield* Room.evaluate("room-before", book)
          yield* write("Room/lobby")
          const handled: Array<RoomId> = []
          const subscription = Subscription.make("rooms", {
            on: Subscription.on(Room, { Booked: (_event, { id }) => Effect.sync(() => handled.push(id)) })
          })
          expect(yield* Effect.flip(subscription.run)).toMatchObject({
            _tag: "SubscriptionStopped",
            aggregateId: "Room/lobby",
            sequence: 1,
            attempts: 1,
            error: expect.stringContaining(`no id of Room: ${notRoom("lobby")}`)
          })
          expect(handled).toContain("room-before")
        })
      )
    }
  )
}

it.effect("an event whose id does not fit fails in a projection of the aggregate with UnreadableEvent", () =>
  Effect.gen(function* () {
    const ids: Array<string> = []
    const Rooms = Projection.make({
      name: "rooms",
      of: Room,
      project: { Booked: (_event, { id }) => Effect.sync(() => ids.push(id)) }
    })
    const event = (aggregateId: string): Event.Event => ({
      timestamp: Timestamp.fromParts({ millis: 1, counter: 0, node: 1n }),
      aggregateId,
      sequence: 3,
      type: "Booked",
      version: 1,
      body: { nights: 1 },
      metadata: {}
    })
    expect(yield* Effect.flip(Projection.toEffect(Rooms).project(event("Room/lobby")))).toMatchObject({
      reason: "UnreadableEvent",
      projection: "rooms",
      aggregateId: "Room/lobby",
      sequence: 3,
      type: "Booked",
      description: `the id of its aggregate is no id of Room: ${notRoom("lobby")}`
    })
    yield* Projection.toEffect(Rooms).project(event("Room/room-1"))
    expect(ids).toEqual(["room-1"])
  })
)

it.effect("an id that does not fit fails in each projection that is bound to the aggregate, but in none of all", () =>
  Effect.gen(function* () {
    const ids: Array<string> = []
    const noted = (name: string) => ({
      name,
      events: Booked,
      project: { Booked: (_event: Booked, { id }: Event.Envelope) => Effect.sync(() => ids.push(`${name} ${id}`)) }
    })
    const projections = [Projection.make(noted("strong")), Projection.make({ ...noted("all"), of: "all" })] as const
    const options = { ...definition, projections }
    const Strict = Aggregate.make("Room", { ...options, id: RoomId })
    const Loose = Aggregate.make("Room", options)
    const bound = Projection.of(Strict, Projection.make(noted("bound")))
    const Statements = Projection.makeSql({ name: "sql", events: Booked, project: { Booked: (_, __, sql) => sql`1` } })
    const event: Event.Event = {
      timestamp: Timestamp.fromParts({ millis: 1, counter: 0, node: 1n }),
      aggregateId: "Room/lobby",
      sequence: 3,
      type: "Booked",
      version: 1,
      body: { nights: 1 },
      metadata: {}
    }
    const unreadable = (projection: string) => ({
      reason: "UnreadableEvent",
      projection,
      aggregateId: "Room/lobby",
      description: `the id of its aggregate is no id of Room: ${notRoom("lobby")}`
    })
    const [strong, all] = Strict.projections
    expect(yield* Effect.flip(Projection.toEffect(strong).project(event))).toMatchObject(unreadable("strong"))
    expect(yield* Effect.flip(Projection.toEffect(bound).project(event))).toMatchObject(unreadable("bound"))
    const sql = Projection.of(Strict, Statements)
    expect(
      yield* Effect.flip(Effect.asVoid(sql.statements?.(event) ?? Effect.void) as Effect.Effect<void, unknown>)
    ).toMatchObject(unreadable("sql"))
    yield* Projection.toEffect(all).project(event)
    yield* Projection.toEffect(Loose.projections[0]).project(event)
    yield* Projection.toEffect(strong).project({ ...event, aggregateId: "Room/room-1" })
    expect(ids).toEqual(["all lobby", "strong lobby", "strong room-1"])
  })
)

it.effect("newId dies with a message that says what to do, where the schema refuses the id", () =>
  Effect.gen(function* () {
    const Short = Aggregate.make("Short", { ...definition, id: Schema.String.pipe(Schema.maxLength(8)) })
    const messageOf = (effect: Effect.Effect<string>) =>
      Effect.map(Effect.exit(effect), (exit) => (Exit.isFailure(exit) ? Cause.pretty(exit.cause) : "no failure"))
    expect(yield* messageOf(Short.newId)).toMatch(
      /Short\.newId made the timestamp "[0-9a-f-]{36}", and the schema of its ids refuses it: .+\. Give the option newId/
    )
    const Wrong = Aggregate.make("Wrong", { ...definition, newId: Effect.succeed("") })
    expect(yield* messageOf(Wrong.newId)).toContain(
      'the option newId of Wrong made "", which is no id of it: must not be'
    )
  })
)

it.effect("the first command on an id of the option newId does not read the store", () =>
  Effect.gen(function* () {
    const context = yield* Layer.build(MemoryStore.layer)
    const store = Context.get(context, StoreAdapter.StoreAdapter)
    let reads = 0
    const counting: StoreAdapter.StoreAdapterService = {
      ...store,
      getEvents: (...range) =>
        Effect.zipRight(
          Effect.sync(() => reads++),
          store.getEvents(...range)
        ),
      getSnapshot: (...range) =>
        Effect.zipRight(
          Effect.sync(() => reads++),
          store.getSnapshot(...range)
        )
    }
    const running = Effect.gen(function* () {
      yield* Numbered.evaluate(yield* Numbered.newId, book)
      expect(reads).toBe(0)
      yield* Numbered.evaluate("room-of-another-program", book)
      expect(reads).toBeGreaterThan(0)
    })
    yield* Effect.provide(
      running,
      Numbered.layer.pipe(Layer.provide(Layer.succeed(StoreAdapter.StoreAdapter, counting)))
    )
  }).pipe(Effect.scoped)
)
