/** What can't be read fails with what was wrong and where, and a history that can't work is refused when it is made. */
import { expect, it } from "@effect/vitest"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Aggregate, type Event, MemoryStore, Projection, Upcast } from "effect-maestro"
import { Account, Deposited, definition, Events, Opened, store, Today, toV3, V1, V2, Withdrawn } from "./releases.js"

const unreadable = (
  event: readonly [type: string, version: number, body: Event.Event["body"]],
  account: { readonly fetch: typeof Account.fetch; readonly layer: typeof Account.layer } = Account
) =>
  Effect.gen(function* () {
    yield* store("Account/a", [event])
    return yield* Effect.flip(account.fetch("a"))
  }).pipe(Effect.provide(Layer.provideMerge(account.layer, MemoryStore.layer)))

for (const [what, event, why] of [
  [
    "a newer version",
    ["Deposited", 5, {}],
    /^it is of version 5, which is newer than this release: .* Deposited up to version 4/
  ],
  ["a newer version of a renamed type", ["PaidIn", 5, {}], /newer than this release: its schemas know Deposited up to/],
  [
    "a version of a type without a chain",
    ["Withdrawn", 2, { amount: 1 }],
    /^it is of version 2, which is newer.* version 1/
  ],
  [
    "a newer version of a replaced type",
    ["Moved", 2, {}],
    /^it is of version 2, which is newer.* Moved up to version 1/
  ],
  [
    "a body that its version can't decode",
    ["Deposited", 2, { amount: 1 }],
    /^it can't be decoded as version 2 of Deposited: .*currency/s
  ],
  ["a type that no schema has", ["Closed", 1, {}], /^it can't be decoded: no schema has this type$/],
  ["a body that today's version can't decode", ["Deposited", 3, { amount: 1 }], /^it can't be decoded: .*currency/s]
] as const) {
  it.effect(`${what} is an UnreadableEvent that says so`, () =>
    Effect.map(unreadable(event), (failure) => {
      expect(failure).toMatchObject({
        _tag: "StoreError",
        reason: "UnreadableEvent",
        aggregateId: "Account/a",
        sequence: 1,
        type: event[0],
        description: expect.stringMatching(why)
      })
    })
  )
}

/** An account whose only history is that of deposits. */
const accountOf = (events: Schema.Schema<typeof Today.Type, typeof Today.Encoded>) =>
  Aggregate.make("Account", { ...definition, events })

it.effect("a version before the oldest of its chain is an UnreadableEvent that names both", () =>
  Effect.gen(function* () {
    const since = accountOf(Upcast.events(Today, { Deposited: Upcast.since(3) }))
    expect(yield* unreadable(["Deposited", 2, {}], since)).toMatchObject({
      reason: "UnreadableEvent",
      description: "it is of version 2, and the oldest version of Deposited that the schemas know is 3"
    })
  })
)

/** Answers of steps that their types forbid, as of a program that circumvents them. */
const any = (value: unknown) => value as { readonly amount: number; readonly currency: string; readonly by: "clerk" }
const thrown = new Error("no rate of this day")

for (const [what, steps, why] of [
  [
    "a step that throws",
    Upcast.from(1, V1).pipe(
      Upcast.to(2, V2, () => {
        throw thrown
      }),
      Upcast.toEvent(3, (old) => ({ ...old, by: "clerk" }))
    ),
    "the step from version 1 to 2 of Deposited throws: no rate of this day"
  ],
  [
    "a last step that throws",
    Upcast.from(1, V1).pipe(
      Upcast.toEvent(2, () => {
        throw thrown
      })
    ),
    "the last step from version 1 of Deposited throws: no rate of this day"
  ],
  [
    "a last step that returns invalid fields",
    Upcast.from(1, V1).pipe(Upcast.toEvent(2, () => any({ amount: "1", currency: "EUR", by: "clerk" }))),
    /^the last step from version 1 of Deposited returns no event: .*amount.*number/s
  ],
  [
    "a last step that returns an event of another type",
    Upcast.from(1, V1).pipe(Upcast.toEvent(2, () => any(new Withdrawn({ amount: 1 })))),
    'the last step from version 1 of Deposited returns no event: its _tag must be Deposited, and is "Withdrawn"'
  ],
  [
    "a last step that returns nothing",
    Upcast.from(1, V1).pipe(Upcast.toEvent(2, () => any(undefined))),
    "the last step from version 1 of Deposited returns no event: it must be an event of type Deposited, or its fields"
  ],
  [
    "a last step that returns a promise",
    Upcast.from(1, V1).pipe(Upcast.toEvent(2, () => any(Promise.resolve({})))),
    /^the last step from version 1 of Deposited returns no event/
  ],
  [
    "a last step that splits, and returns no list",
    Upcast.from(1, V1).pipe(Upcast.toEvents(2, () => any({}) as unknown as ReadonlyArray<Withdrawn>)),
    "the last step from version 1 of Deposited returns no event: it must be a list of events"
  ],
  [
    "a last step that splits, and returns an event of an unknown type",
    Upcast.from(1, V1).pipe(Upcast.toEvents(2, () => [{ _tag: "Closed" } as unknown as Withdrawn])),
    'the last step from version 1 of Deposited returns no event: its _tag must be one of Opened, Deposited, Withdrawn, and is "Closed"'
  ]
] as const) {
  it.effect(`${what} is an UnreadableEvent that names type, version and step, after the events before it`, () =>
    Effect.gen(function* () {
      const account = accountOf(Upcast.events(Today, { Deposited: steps }))
      expect(yield* unreadable(["Deposited", 1, { amount: 1 }], account)).toMatchObject({
        reason: "UnreadableEvent",
        type: "Deposited",
        sequence: 1,
        description: typeof why === "string" ? why : expect.stringMatching(why)
      })
      yield* Effect.gen(function* () {
        yield* store("Account/b", [
          ["Opened", 1, { owner: "Ada" }],
          ["Deposited", 1, { amount: 1 }]
        ])
        const before = yield* Stream.runCollect(Stream.take(account.history("b"), 1))
        expect(Chunk.toReadonlyArray(before)).toMatchObject([{ sequence: 1, event: { _tag: "Opened" } }])
        expect(yield* Effect.flip(Stream.runDrain(account.history("b")))).toMatchObject({ reason: "UnreadableEvent" })
      }).pipe(Effect.provide(Layer.provideMerge(account.layer, MemoryStore.layer)))
    })
  )
}

it.effect("without a downcast a newer version is unreadable, and with one an older release reads it", () =>
  Effect.gen(function* () {
    const without = accountOf(Upcast.events(Today, { Deposited: toV3 }))
    expect((yield* unreadable(["Deposited", 4, { cents: 900 }], without)).message).toContain("newer than this release")
    yield* Effect.gen(function* () {
      yield* store("Account/a", [["Deposited", 4, { cents: 900 }]])
      expect(yield* Account.fetch("a")).toEqual(["+9 EUR clerk"])
    }).pipe(Effect.provide(Layer.provideMerge(Account.layer, MemoryStore.layer)))
  })
)

it.effect("a step that returns an instance of the event's class is trusted, and fields become an instance", () =>
  Effect.gen(function* () {
    const given = new Deposited({ amount: 1, currency: "EUR", by: "clerk" })
    const account = accountOf(
      Upcast.events(Today, {
        Deposited: Upcast.from(1, V1).pipe(
          Upcast.toEvent(2, ({ amount }) => (amount === 1 ? given : { amount, currency: "EUR", by: "clerk" }))
        )
      })
    )
    yield* Effect.gen(function* () {
      yield* store("Account/a", [
        ["Deposited", 1, { amount: 1 }],
        ["Deposited", 1, { amount: 2 }]
      ])
      const [first, second] = Chunk.toReadonlyArray(yield* Stream.runCollect(account.history("a")))
      expect(first?.event).toBe(given)
      expect(second?.event).toBeInstanceOf(Deposited)
      expect(second?.event).toEqual(new Deposited({ amount: 2, currency: "EUR", by: "clerk" }))
    }).pipe(Effect.provide(Layer.provideMerge(account.layer, MemoryStore.layer)))
  })
)

it.effect("the class of an older release may be the shape: the body gets its tag", () =>
  Effect.gen(function* () {
    class Old extends Schema.TaggedClass<Old>("Old")("Deposited", { amount: Schema.NumberFromString }) {}
    const account = accountOf(
      Upcast.events(Today, {
        Deposited: Upcast.from(1, Old).pipe(
          Upcast.toEvent(2, (old) => ({ amount: old.amount, currency: old._tag, by: "clerk" }))
        )
      })
    )
    yield* Effect.gen(function* () {
      yield* store("Account/a", [["Deposited", 1, { amount: "7" }]])
      expect(yield* account.fetch("a")).toEqual(["+7 Deposited clerk"])
    }).pipe(Effect.provide(Layer.provideMerge(account.layer, MemoryStore.layer)))
  })
)

it.effect("unions with histories of their own may be members of another union", () =>
  Effect.gen(function* () {
    const Money = Upcast.events(Schema.Union(Deposited, Withdrawn), {
      Deposited: toV3,
      PaidIn: Upcast.renamed("Deposited")
    })
    const Owners = Upcast.events(Opened, { Begun: Upcast.renamed("Opened") })
    const account = accountOf(
      Upcast.events(
        Schema.Union(
          Owners,
          Schema.suspend(() => Money)
        ),
        { Viewed: Upcast.dropped }
      )
    )
    yield* Effect.gen(function* () {
      yield* store("Account/a", [
        ["Begun", 1, { owner: "Ada" }],
        ["PaidIn", 1, { amount: 1 }],
        ["Viewed", 1, {}]
      ])
      expect(yield* account.fetch("a")).toEqual(["opened Ada", "+1 EUR unknown"])
    }).pipe(Effect.provide(Layer.provideMerge(account.layer, MemoryStore.layer)))
  })
)

/** Histories as a program gives them that circumvents the types. */
const eventsOf = (history: Upcast.History, schema: Schema.Schema<typeof Today.Type, typeof Today.Encoded> = Today) =>
  (
    Upcast.events as (
      schema: Schema.Schema<typeof Today.Type, typeof Today.Encoded>,
      history: Upcast.History
    ) => unknown
  )(schema, history)

const fields = () => ({ amount: 1, currency: "EUR", by: "clerk" }) as const
const v2 = Upcast.to(2, V2, (old: { readonly amount: number }) => ({ ...old, currency: "EUR" }))

for (const [what, history, problem] of [
  [
    "a gap between versions",
    { Deposited: Upcast.from(1, V1).pipe(Upcast.toEvent(3, fields)) },
    '"Deposited" goes from version 1 to 3, so there is a gap at version 2'
  ],
  [
    "a gap between steps",
    {
      Deposited: Upcast.from(1, V1).pipe(
        Upcast.to(4, V2, () => ({ amount: 1, currency: "EUR" })),
        Upcast.toEvent(5, fields)
      )
    },
    '"Deposited" goes from version 1 to 4, so there is a gap at version 2'
  ],
  [
    "a version that comes twice",
    { Deposited: Upcast.from(1, V1).pipe(v2, Upcast.toEvent(2, fields)) },
    '"Deposited" has version 2 twice'
  ],
  [
    "a version after a higher one",
    { Deposited: Upcast.from(2, V1).pipe(Upcast.toEvent(1, fields)) },
    '"Deposited" has version 1 after 2'
  ],
  [
    "a version that is no integer",
    { Deposited: Upcast.from(1.5, V1).pipe(Upcast.toEvent(2, fields)) },
    '"Deposited" has the version 1.5, which must be an integer from 1 to 32767'
  ],
  [
    "a version of 0",
    { Deposited: Upcast.since(0) },
    '"Deposited" has the version 0, which must be an integer from 1 to 32767'
  ],
  [
    "a version that no store holds",
    { Deposited: Upcast.since(40_000) },
    '"Deposited" has the version 40000, which must be an integer from 1 to 32767'
  ],
  [
    "a downcast of a version that is not newer",
    { Deposited: Upcast.since(3).pipe(Upcast.downcast(3, V1, fields)) },
    '"Deposited" has version 3 twice'
  ],
  [
    "a gap before a downcast",
    { Deposited: Upcast.since(3).pipe(Upcast.downcast(5, V1, fields)) },
    '"Deposited" goes from version 3 to 5, so there is a gap at version 4'
  ],
  [
    "a chain without an end",
    { Deposited: Upcast.from(1, V1).pipe(v2) },
    '"Deposited" ends in a shape of version 2, and must end in toEvent or toEvents'
  ],
  [
    "a chain of a type of today without its version",
    { Deposited: Upcast.from(1, V1).pipe(Upcast.toEvent(() => new Withdrawn({ amount: 1 }))) },
    '"Deposited" does not reach a version of today: its last step, from version 1, must name that version'
  ],
  [
    "a version of today of a type that is written no more",
    { Old: Upcast.since(3) },
    '"Old" is the tag of no event, so its last step must not name a version, and names 3'
  ],
  [
    "a type of today that is renamed",
    { Deposited: Upcast.renamed("Withdrawn") },
    '"Deposited" is the tag of an event, so it can\'t be renamed'
  ],
  [
    "a type of today that is dropped",
    { Deposited: Upcast.dropped },
    '"Deposited" is the tag of an event, so it can\'t be dropped'
  ],
  [
    "a new name that no event has",
    { Old: Upcast.renamed("Deposit") },
    '"Old" is renamed to "Deposit", which is the tag of no event'
  ],
  ["a type that is renamed to itself", { Old: Upcast.renamed("Old") }, '"Old" is renamed in a circle: Old → Old'],
  [
    "a circle of new names",
    { A: Upcast.renamed("B"), B: Upcast.renamed("C"), C: Upcast.renamed("A") },
    '"A" is renamed in a circle: A → B → C → A'
  ],
  [
    "a reserved type",
    { "effect-maestro/Old": Upcast.dropped },
    '"effect-maestro/Old" must not begin with effect-maestro/, which is reserved'
  ],
  [
    "a step that is no function",
    { Deposited: Upcast.from(1, V1).pipe(Upcast.toEvent(2, undefined as unknown as typeof fields)) },
    '"Deposited" has a step that is no function'
  ],
  [
    "a part that Upcast did not make",
    { Old: {} as unknown as Upcast.Dropped },
    '"Old" is no part of a history: `Upcast` makes them'
  ]
] as const) {
  it(`${what} is refused by name`, () => {
    expect(() => eventsOf(history)).toThrow(new TypeError(`the history of events can't work: ${problem}`))
  })
}

it("two histories of one type are refused, in one schema and where two unions meet in an aggregate", () => {
  const renamed = Upcast.events(Deposited, { Old: Upcast.renamed("Deposited") })
  const dropped = Upcast.events(Withdrawn, { Old: Upcast.dropped })
  const twice = new TypeError(`the history of events can't work: "Old" has two histories in one schema`)
  expect(() => Upcast.events(renamed, { Old: Upcast.dropped })).toThrow(twice)
  expect(() => accountOf(Schema.Union(Opened, renamed, dropped))).toThrow(twice)
})

it("a type that one union drops and another one still writes is refused where they meet in an aggregate", () => {
  const dropped = Upcast.events(Schema.Union(Opened, Deposited), { Withdrawn: Upcast.dropped })
  expect(() => accountOf(Schema.Union(dropped, Withdrawn))).toThrow(
    new TypeError(`the history of events can't work: "Withdrawn" is the tag of an event, so it can't be dropped`)
  )
})

const readDeposits = (events: Schema.Schema<Deposited, typeof Deposited.Encoded>) =>
  Projection.make({ name: "deposits", events, project: { Deposited: () => Effect.void } })

it("a projection whose schema lacks the history of its aggregate's events is refused when it meets the aggregate", () => {
  const without = readDeposits(Deposited)
  const reads = new TypeError(
    'projection "deposits" reads Deposited in version 1 and not in version 3, unlike the events of Account: give both the same schema of events'
  )
  expect(() => Aggregate.make("Account", { ...definition, projections: [without] })).toThrow(reads)
  expect(() => Projection.of(Account, without)).toThrow(reads)
  const withoutName = readDeposits(Upcast.events(Deposited, { Deposited: toV3 }))
  const misses = new TypeError(
    'projection "deposits" misses stored events of type PaidIn, which may be read as Deposited, unlike the events of Account: give both the same schema of events'
  )
  expect(() => Aggregate.make("Account", { ...definition, projections: [withoutName] })).toThrow(misses)
  expect(() => Projection.of(Account, { ...withoutName })).toThrow(misses)
  const same = Projection.make({ name: "deposits", events: Events, project: { Deposited: () => Effect.void } })
  expect(Projection.of(Account, same).of).toMatchObject({ name: "Account" })
  expect(Aggregate.make("Account", { ...definition, projections: [same] }).projections).toHaveLength(1)
})
