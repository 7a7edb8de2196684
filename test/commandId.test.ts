/** A command with an id takes effect once, on every store, also after failures, interruptions and restarts. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import {
  Aggregate,
  type Event,
  EventFeed,
  MemoryStore,
  type Projection,
  Rebuild,
  SqlStore,
  StoreAdapter,
  StoreError,
  Subscription
} from "effect-maestro"
import { inject } from "vitest"
import {
  Account,
  Deposit,
  Deposited,
  definition,
  InsufficientFunds,
  Limits,
  Open,
  SavingsAccount,
  Touch,
  Withdraw
} from "./account.js"
import { layerPg, layerPglite, uniqueName } from "./database.js"
import { aNode, failure, macrotask } from "./nodes.js"
import { lastPosition } from "./subscribers.js"

const stores = {
  MemoryStore: MemoryStore.layer,
  "SqlStore on PGlite": SqlStore.layer.pipe(Layer.provideMerge(layerPglite), Layer.orDie),
  "SqlStore on Postgres": SqlStore.layer.pipe(Layer.provideMerge(layerPg()), Layer.orDie)
}

for (const [name, store] of Object.entries(stores)) {
  const layer = Layer.mergeAll(Account.layer, SavingsAccount.layer).pipe(
    Layer.provideMerge(Limits.layer),
    Layer.provideMerge(store)
  )
  it.layer(layer, { timeout: 60_000 })(`Commands with an id on ${name}`, (it) => {
    it.effect("evaluated twice, the second result is a duplicate with the current state and sequence", () =>
      Effect.gen(function* () {
        const id = yield* Account.newId
        const command = Account.evaluate(id, new Deposit({ amount: 10 })).pipe(Aggregate.withCommandId("c"))
        expect(yield* command).toEqual({
          state: { owner: null, balance: 10 },
          sequence: 1,
          events: [new Deposited({ amount: 10 })],
          position: { aggregateId: Account.streamId(id), sequence: 1 },
          duplicate: false
        })
        yield* Account.evaluate(id, new Deposit({ amount: 5 }))
        const again = yield* command
        expect(again).toEqual({
          state: { owner: null, balance: 15 },
          sequence: 2,
          events: [],
          position: { aggregateId: Account.streamId(id), sequence: 2 },
          duplicate: true
        })
        expect(JSON.parse(JSON.stringify(again.position))).toEqual(again.position)
        expect(yield* amounts(id)).toEqual([10, 5])
      })
    )

    it.effect("the receipt has command, aggregate and sequence, and is no event of the aggregate", () =>
      Effect.gen(function* () {
        const id = yield* Account.newId
        const after = yield* EventFeed.head
        yield* Account.evaluate(id, new Deposit({ amount: 1 }))
        yield* Account.evaluate(id, new Deposit({ amount: 2 })).pipe(Aggregate.withCommandId("c"))
        const receipts = yield* receiptsOf(id, after)
        expect(receipts).toMatchObject([
          {
            sequence: 1,
            type: "effect-maestro/CommandHandled",
            kind: "effect-maestro:Receipt",
            body: { commandId: "c", aggregate: "Account", aggregateId: Account.streamId(id), sequence: 2 },
            metadata: {}
          }
        ])
        expect(yield* Account.replay(id, 2)).toEqual({ owner: null, balance: 3 })
      })
    )

    it.effect("of twenty concurrent evaluations one takes effect, and all succeed", () =>
      Effect.gen(function* () {
        const id = yield* Account.newId
        const answers = yield* Effect.replicateEffect(
          Account.evaluate(id, new Deposit({ amount: 10 })).pipe(Aggregate.withCommandId("c")),
          20,
          { concurrency: "unbounded" }
        )
        expect(answers.filter(({ duplicate }) => !duplicate)).toHaveLength(1)
        expect(new Set(answers.map(({ state }) => state.balance))).toEqual(new Set([10]))
        expect(yield* amounts(id)).toEqual([10])
      })
    )

    it.effect(
      "concurrent commands of different ids, twice each, and commands without an id: each takes effect once",
      () =>
        Effect.gen(function* () {
          const { retry: _, ...rest } = definition
          const Impatient = Aggregate.make("Account", rest)
          const store = yield* StoreAdapter.StoreAdapter
          let conflicts = 0
          const node = yield* aNode(Impatient.layer, {
            ...store,
            commitAll: (events, projections) =>
              Effect.tapError(store.commitAll(events, projections), (error) =>
                Effect.sync(() => {
                  if (error instanceof StoreError.RetryCommand) conflicts++
                })
              )
          })
          const id = yield* Account.newId
          yield* Effect.forEach(
            Arr.range(0, 59),
            (index) => {
              const deposit = Impatient.evaluate(id, new Deposit({ amount: 1 }))
              return index % 3 === 0 ? deposit : Aggregate.withCommandId(`c${Math.floor(index / 3)}`)(deposit)
            },
            { concurrency: "unbounded" }
          ).pipe(Effect.provide(node))
          expect(yield* amounts(id)).toHaveLength(40)
          // Each duplicate finds the receipt by one conflict at most.
          expect(conflicts).toBeLessThanOrEqual(20)
        }).pipe(Effect.scoped)
    )

    it.scoped("of concurrent evaluations on several nodes one takes effect", () =>
      Effect.gen(function* () {
        const nodes = yield* Effect.replicateEffect(aNode(Account.layer), 4)
        const id = yield* Account.newId
        yield* Account.evaluate(id, new Deposit({ amount: 100 }))
        const answers = yield* Effect.forEach(
          [...nodes, ...nodes, ...nodes],
          (node) =>
            Account.evaluate(id, new Withdraw({ amount: 60 })).pipe(Aggregate.withCommandId("c"), Effect.provide(node)),
          { concurrency: "unbounded" }
        )
        // Without the id eleven of the commands would have been refused.
        expect(answers.filter(({ duplicate }) => !duplicate)).toHaveLength(1)
        expect(yield* amounts(id)).toEqual([100, 60])
      })
    )

    it.effect("a command that is refused because it has taken effect before is a duplicate", () =>
      Effect.gen(function* () {
        const id = yield* Account.newId
        const open = Account.evaluate(id, new Open({ owner: "ann" })).pipe(Aggregate.withCommandId("c"))
        yield* open
        expect(yield* open).toMatchObject({ duplicate: true, sequence: 1, state: { owner: "ann" } })
      })
    )

    it.effect("a refusal stores no receipt, so the command is decided again", () =>
      Effect.gen(function* () {
        const id = yield* Account.newId
        const after = yield* EventFeed.head
        const withdraw = Account.evaluate(id, new Withdraw({ amount: 5 })).pipe(Aggregate.withCommandId("c"))
        for (const _ of [1, 2]) expect(yield* Effect.flip(withdraw)).toEqual(new InsufficientFunds({ balance: 0 }))
        expect(yield* receiptsOf(id, after)).toEqual([])
        yield* Account.evaluate(id, new Deposit({ amount: 20 }))
        expect(yield* withdraw).toMatchObject({ duplicate: false, sequence: 2 })
        expect(yield* withdraw).toMatchObject({ duplicate: true, sequence: 2 })
        expect(yield* amounts(id)).toEqual([20, 5])
      })
    )

    it.effect("a decision of no events stores a receipt", () =>
      Effect.gen(function* () {
        const id = yield* Account.newId
        const after = yield* EventFeed.head
        const touch = Account.evaluate(id, new Touch()).pipe(Aggregate.withCommandId("c"))
        expect(yield* touch).toMatchObject({ duplicate: false, sequence: 0, events: [] })
        expect(yield* touch).toMatchObject({ duplicate: true, sequence: 0, events: [] })
        expect(yield* receiptsOf(id, after)).toMatchObject([{ body: { sequence: 0 } }])
      })
    )

    it.effect("the same id on another aggregate is another command", () =>
      Effect.gen(function* () {
        const ids = [yield* Account.newId, yield* Account.newId]
        for (const id of [...ids, ...ids]) {
          yield* Account.evaluate(id, new Deposit({ amount: 1 })).pipe(Aggregate.withCommandId("c"))
        }
        for (const id of ids) expect(yield* amounts(id)).toEqual([1])
      })
    )

    it.effect(
      "an invalid command id is a ValidationError, and the longest valid one works on an aggregate of a long id",
      () =>
        Effect.gen(function* () {
          const id = `${yield* Account.newId}${"é".repeat(211)}`
          const deposit = Account.evaluate(id, new Deposit({ amount: 1 }))
          for (const commandId of ["", "x".repeat(1001), "a\0", "\ud800", JSON.parse("7")]) {
            expect(yield* Effect.flip(Aggregate.withCommandId(commandId)(deposit))).toMatchObject({
              _tag: "ValidationError",
              issues: [{ path: ["commandId"] }]
            })
          }
          for (const _ of [1, 2]) yield* Aggregate.withCommandId("ü".repeat(1000))(deposit)
          expect(yield* amounts(id)).toEqual([1])
        })
    )

    // --- failures ---

    for (const [what, stores] of [
      ["that was stored", true],
      ["that was not stored", false]
    ] as const) {
      it.scoped(`a commit of unknown outcome ${what} is settled, and the command is a duplicate afterwards`, () =>
        Effect.gen(function* () {
          const store = yield* StoreAdapter.StoreAdapter
          const id = yield* Account.newId
          let commits = 0
          const node = yield* aNode(Account.layer, {
            ...store,
            commitAll: (events, projections) =>
              Effect.suspend(() =>
                ++commits > 2
                  ? store.commitAll(events, projections)
                  : Effect.zipRight(
                      stores ? store.commitAll(events, projections) : Effect.void,
                      Effect.fail(failure("CommitUnknown"))
                    )
              )
          })
          const deposit = Account.evaluate(id, new Deposit({ amount: 1 })).pipe(Aggregate.withCommandId("c"))
          expect(yield* Effect.provide(deposit, node)).toMatchObject({ duplicate: false, sequence: 1 })
          expect(commits).toBe(3)
          expect(yield* deposit).toMatchObject({ duplicate: true, sequence: 1 })
          expect(yield* amounts(id)).toEqual([1])
        })
      )

      it.scoped(`a command that failed with CommitUnknown, ${what}, takes effect once when it is evaluated again`, () =>
        Effect.gen(function* () {
          const store = yield* StoreAdapter.StoreAdapter
          const id = yield* Account.newId
          const node = yield* aNode(Account.layer, {
            ...store,
            commitAll: (events, projections) =>
              Effect.zipRight(
                stores ? store.commitAll(events, projections) : Effect.void,
                Effect.fail(failure("CommitUnknown"))
              )
          })
          const deposit = Account.evaluate(id, new Deposit({ amount: 1 })).pipe(Aggregate.withCommandId("c"))
          expect(yield* Effect.flip(Effect.provide(deposit, node))).toMatchObject({ reason: "CommitUnknown" })
          expect(yield* deposit).toMatchObject({ duplicate: stores, sequence: 1 })
          expect(yield* deposit).toMatchObject({ duplicate: true, sequence: 1 })
          expect(yield* amounts(id)).toEqual([1])
        })
      )
    }

    it.scoped("a command that lost a race is decided again, unless the winner has the same id", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const limits = yield* Limits
        const others = yield* Effect.context<Aggregate.Instance<"Account">>()
        const id = yield* Account.newId
        yield* Account.evaluate(id, new Deposit({ amount: 10 }))
        const before = (first: Effect.Effect<unknown, unknown, Aggregate.Instance<"Account">>) => {
          let done = false
          return aNode(Account.layer, {
            ...store,
            commitAll: (events, projections) =>
              Effect.suspend(() => {
                const before = done ? Effect.void : Effect.orDie(Effect.provide(first, others))
                done = true
                return Effect.zipRight(before, store.commitAll(events, projections))
              })
          })
        }
        const withdraw = Account.evaluate(id, new Withdraw({ amount: 3 })).pipe(Aggregate.withCommandId("c"))
        const asked = limits.asked
        const second = yield* before(Account.evaluate(id, new Deposit({ amount: 5 })))
        expect(yield* Effect.provide(withdraw, second)).toMatchObject({ duplicate: false, sequence: 3 })
        expect(limits.asked - asked).toBe(2)

        const other = Account.evaluate(id, new Withdraw({ amount: 4 })).pipe(Aggregate.withCommandId("d"))
        const third = yield* before(other)
        expect(yield* Effect.provide(other, third)).toMatchObject({ duplicate: true, sequence: 4 })
        expect(limits.asked - asked).toBe(4)
        expect(yield* amounts(id)).toEqual([10, 5, 3, 4])
      })
    )

    it.effect("commands that are interrupted at random moments and evaluated again take effect once each", () =>
      Effect.gen(function* () {
        const seed = yield* Effect.sync(() => Number(process.hrtime.bigint() % 1_000_000_007n))
        const note = `seed ${seed}`
        yield* Effect.gen(function* () {
          for (const _ of Arr.range(1, Math.ceil(inject("runs") / 10))) {
            const nodes = yield* Effect.replicateEffect(aNode(Account.layer), 2)
            const id = yield* Account.newId
            const evaluate = (index: number) =>
              Effect.flatMap(Random.choice(nodes), (node) =>
                Account.evaluate(id, new Deposit({ amount: 2 ** index })).pipe(
                  Aggregate.withCommandId(`c${index}`),
                  Effect.provide(node)
                )
              )
            const deliver = (index: number): Effect.Effect<boolean, unknown> =>
              Effect.gen(function* () {
                const fiber = yield* Effect.fork(Effect.orDie(evaluate(index)))
                yield* Effect.repeatN(
                  (yield* Random.nextBoolean) ? macrotask : Effect.yieldNow(),
                  yield* Random.nextIntBetween(0, 30)
                )
                yield* Fiber.interrupt(fiber)
                return (yield* Random.nextIntBetween(0, 3)) === 0
              })
            yield* Effect.forEach(
              Arr.range(0, 7),
              (index) => Effect.repeat(deliver(index), { until: (done) => done }),
              {
                concurrency: "unbounded"
              }
            )
            yield* Effect.forEach(Arr.range(0, 7), evaluate, { concurrency: "unbounded" })
            expect(
              (yield* amounts(id)).sort((a, b) => a - b),
              note
            ).toEqual(Arr.makeBy(8, (index) => 2 ** index))
          }
        }).pipe(Effect.withRandom(Random.make(seed)), Effect.scoped)
      })
    )

    // --- nested commands, projections and subscriptions ---

    it.effect("a command that a handler evaluates does not inherit the id", () =>
      Effect.gen(function* () {
        const other = yield* Account.newId
        const Nested = Aggregate.make("Account", {
          ...definition,
          decide: {
            ...definition.decide,
            Touch: () =>
              Effect.as(Effect.repeatN(Effect.orDie(Account.evaluate(other, new Deposit({ amount: 3 }))), 1), [
                new Deposited({ amount: 4 })
              ])
          }
        })
        const id = yield* Account.newId
        const touch = Nested.evaluate(id, new Touch()).pipe(Aggregate.withCommandId("c"), Effect.provide(Nested.layer))
        yield* touch
        expect(yield* amounts(other)).toEqual([3, 3])
        expect(yield* touch).toMatchObject({ duplicate: true })
        expect(yield* amounts(id)).toEqual([4])
      })
    )

    it.effect(
      "a projection without types gets only the aggregate's events, and one of all aggregates gets receipts if it names their type",
      () =>
        Effect.gen(function* () {
          const seen: Array<string> = []
          const noting = (name: string, events?: ReadonlyArray<string>): Projection.Projection => ({
            name,
            events,
            of: events === undefined ? undefined : "all",
            project: ({ type }) => Effect.sync(() => seen.push(`${name} ${type}`))
          })
          const Watched = Aggregate.make("Account", {
            ...definition,
            projections: [noting("all"), noting("receipts", ["effect-maestro/CommandHandled"])]
          })
          const deposit = Effect.flatMap(Account.newId, (id) =>
            Effect.repeatN(
              Watched.evaluate(id, new Deposit({ amount: 1 })).pipe(
                Aggregate.withCommandId("c"),
                Effect.provide(Watched.layer)
              ),
              1
            )
          )
          yield* deposit
          expect(seen.filter((text) => text.startsWith("all"))).toEqual(["all Deposited"])
          expect(seen).toContain("receipts effect-maestro/CommandHandled")
        })
    )

    it.scoped(
      "a projection in a subscription gets no receipts, and a subscription without a filter gets every event",
      () =>
        Effect.gen(function* () {
          const id = yield* Account.newId
          const seen: Array<string> = []
          const noting = (name: string, { aggregateId, body, type }: Event.Event) =>
            Effect.sync(() => {
              if ([aggregateId, body.aggregateId].includes(Account.streamId(id))) seen.push(`${name} ${type}`)
            })
          const from = yield* EventFeed.head
          const [projection, raw] = [uniqueName("projection"), uniqueName("raw")]
          yield* Layer.build(
            Layer.merge(
              Subscription.fromProjections(
                projection,
                [{ name: "all", of: "all", project: (event) => noting("all", event) }],
                { from }
              ).layer,
              Subscription.make(raw, { from, handle: (event) => noting("raw", event) }).layer
            )
          )
          yield* Account.evaluate(id, new Deposit({ amount: 1 })).pipe(Aggregate.withCommandId("c"))
          const head = yield* lastPosition
          for (const name of [projection, raw]) yield* Subscription.waitFor(name, head, "1 minute")
          expect(seen.sort()).toEqual(["all Deposited", "raw Deposited", "raw effect-maestro/CommandHandled"])
        })
    )

    it.effect("snapshots are stored when they are due, and receipts do not count", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        const id = yield* SavingsAccount.newId
        for (const amount of [1, 2, 3, 4, 5, 5, 6]) {
          yield* SavingsAccount.evaluate(id, new Deposit({ amount })).pipe(Aggregate.withCommandId(`c${amount}`))
        }
        expect(Option.getOrThrow(yield* store.getSnapshot(SavingsAccount.streamId(id), 0)).sequence).toBe(5)
        expect(yield* SavingsAccount.fetch(id)).toEqual({ owner: null, balance: 21 })
      })
    )

    it.scoped("its state is cached, so the next command reads nothing", () =>
      Effect.gen(function* () {
        const store = yield* StoreAdapter.StoreAdapter
        let reads = 0
        const node = yield* aNode(Account.layer, {
          ...store,
          getEvents: (...args) => {
            reads++
            return store.getEvents(...args)
          }
        })
        const id = yield* Account.newId
        const deposit = Effect.provide(Account.evaluate(id, new Deposit({ amount: 1 })), node)
        expect(yield* Aggregate.withCommandId("c")(deposit)).toMatchObject({ sequence: 1 })
        const before = reads
        expect(yield* deposit).toMatchObject({ sequence: 2 })
        expect(reads).toBe(before)
        expect(yield* Aggregate.withCommandId("c")(deposit)).toMatchObject({ sequence: 2, duplicate: true })
      })
    )

    if (name.includes("SqlStore")) {
      it.effect("a rebuild projects no receipts", () =>
        Effect.gen(function* () {
          const sql = Option.getOrThrow(yield* Effect.serviceOption(SqlClient.SqlClient))
          const tables = Option.getOrThrow(yield* Effect.serviceOption(SqlStore.Tables))
          const table = uniqueName("noted")
          yield* sql`create table ${sql(table)} (type text)`
          yield* Account.evaluate(yield* Account.newId, new Deposit({ amount: 1 })).pipe(Aggregate.withCommandId("c"))
          yield* Rebuild.run({
            name: table,
            tables: [table],
            projections: [
              { name: "all", of: "all", project: ({ type }) => sql`insert into ${sql(table)} values (${type})` }
            ]
          }).pipe(Effect.provideService(SqlClient.SqlClient, sql), Effect.provideService(SqlStore.Tables, tables))
          const types = (yield* sql<{ type: string }>`select distinct type from ${sql(table)}`).map(({ type }) => type)
          expect(types).toContain("Deposited")
          expect(types).not.toContain("effect-maestro/CommandHandled")
        })
      )

      it.effect("in the caller's transaction a rollback discards the receipt, and a commit stores it", () =>
        Effect.gen(function* () {
          const sql = Option.getOrThrow(yield* Effect.serviceOption(SqlClient.SqlClient))
          const id = yield* Account.newId
          const deposit = Account.evaluate(id, new Deposit({ amount: 5 })).pipe(Aggregate.withCommandId("c"))
          yield* Effect.flip(sql.withTransaction(Effect.zipRight(deposit, Effect.fail("no"))))
          expect(yield* amounts(id)).toEqual([])
          const answers = yield* sql.withTransaction(
            Effect.gen(function* () {
              const [first, second] = [yield* deposit, yield* deposit]
              // The transaction is still usable.
              const refused = yield* Effect.either(
                Account.evaluate(id, new Withdraw({ amount: 50 })).pipe(Aggregate.withCommandId("w"))
              )
              yield* Account.evaluate(id, new Deposit({ amount: 6 }))
              return [first.duplicate, second.duplicate, Either.isLeft(refused)]
            })
          )
          expect(answers).toEqual([false, true, true])
          expect(yield* deposit).toMatchObject({ duplicate: true, sequence: 2 })
          expect(yield* amounts(id)).toEqual([5, 6])
        })
      )
    }
  })
}

it("the command id for an event is stable, and differs for every other event, subscription and step", () => {
  const event = { aggregateId: "a", sequence: 1 }
  const ids = [
    Subscription.commandId("s", event),
    Subscription.commandId("s", event, "step"),
    Subscription.commandId("s", event, ""),
    Subscription.commandId("t", event),
    Subscription.commandId("s", { aggregateId: "a", sequence: 2 }),
    Subscription.commandId('s","a', { aggregateId: "", sequence: 1 })
  ]
  expect(new Set(ids).size).toBe(ids.length)
  const named = Subscription.make("s", { handle: () => Effect.void })
  expect(Subscription.commandId(named, { ...event })).toBe(ids[0])
  expect(
    Subscription.commandId("n".repeat(255), { aggregateId: "x".repeat(255), sequence: 2 ** 31 - 1 }).length
  ).toBeLessThan(1000)
})

// --- helpers ---

const amounts = (id: string) =>
  Effect.flatMap(StoreAdapter.StoreAdapter, (store) =>
    Effect.map(store.getEvents(Account.streamId(id), 1), (events) => events.map(({ body }) => Number(body.amount)))
  )

const receiptsOf = (id: string, after: EventFeed.Position) =>
  Effect.map(
    EventFeed.read({ after, filter: { types: ["effect-maestro/CommandHandled"] }, limit: 10_000 }),
    ({ events }) => events.filter(({ body }) => body.aggregateId === Account.streamId(id))
  )
