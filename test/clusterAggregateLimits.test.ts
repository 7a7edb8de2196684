/** Runners that go away, two entities of one aggregate, and what a clustered command can't be part of. */
import * as TestRunner from "@effect/cluster/TestRunner"
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { Aggregate, MemoryStore, Projection, SqlStore, StoreAdapter, StoreError } from "effect-maestro"
import * as ClusterAggregate from "effect-maestro/ClusterAggregate"
import { makeCluster, silent } from "./cluster.js"
import { Account, Accounts, Ask, Asked, Deposit, id, Teller } from "./clusterBank.js"
import { eventsOf, layerRunner } from "./clusterFaults.js"
import { layerPg } from "./database.js"
import { eventually } from "./subscribers.js"

it.scopedLive("commands that run while a runner goes away take effect once each, and all are answered", () =>
  Effect.gen(function* () {
    const store = yield* MemoryStore.make
    const layerStore = Layer.succeed(StoreAdapter.StoreAdapter, store)
    const cluster = yield* makeCluster()
    const start = cluster.startRunner(layerRunner.pipe(Layer.provide(layerStore)))
    const first = yield* start
    const client = yield* Layer.build(Accounts.layerClient.pipe(Layer.provide(cluster.layerClient)))
    const ids = Array.from({ length: 8 }, (_, index) => id(`account-${index}`))
    const rounds = 25
    let answered = 0
    const load = yield* Effect.forEach(
      ids,
      (one) =>
        Effect.forEach(
          Array.from({ length: rounds }),
          () =>
            Effect.tap(Account.evaluate(one, new Deposit({ amount: 1 })), () => {
              answered++
            }),
          { discard: true }
        ),
      { concurrency: "unbounded", discard: true }
    ).pipe(Effect.provide(client), Effect.fork)
    const count = Effect.sync(() => answered)
    yield* eventually(count, (seen) => seen > 20)
    yield* start
    yield* eventually(count, (seen) => seen > 60)
    yield* first.stop
    yield* Fiber.join(load)
    for (const one of ids) {
      const events = yield* store.getEvents(`Account/${one}`, 1)
      expect(events.map(({ sequence }) => sequence)).toEqual(Array.from({ length: rounds }, (_, index) => index + 1))
    }
    expect(answered).toBe(ids.length * rounds)
  })
)

it.scopedLive(
  "two live entities of one aggregate are harmless: the store refuses what is decided on an old state",
  () =>
    Effect.gen(function* () {
      const store = yield* MemoryStore.make
      const layerStore = Layer.succeed(StoreAdapter.StoreAdapter, store)
      // Two clusters on one store, so each of them places the aggregate.
      const clients = yield* Effect.forEach([1, 2], () =>
        Effect.gen(function* () {
          const cluster = yield* makeCluster()
          yield* cluster.startRunner(layerRunner.pipe(Layer.provide(Layer.fresh(layerStore))))
          return yield* Layer.build(Layer.fresh(Accounts.layerClient).pipe(Layer.provide(cluster.layerClient)))
        })
      )
      const made = yield* Effect.forEach(
        Array.from({ length: 40 }),
        (_, index) =>
          Effect.flatMap(Arr.get(clients, index % 2), (client) =>
            Effect.provide(Account.evaluate(id("a"), new Deposit({ amount: 1 })), client)
          ),
        { concurrency: "unbounded" }
      )
      expect(made.map(({ sequence }) => sequence).sort((a, b) => a - b)).toEqual(
        Array.from({ length: 40 }, (_, index) => index + 1)
      )
      // A result is the state after its own events.
      for (const { sequence, state } of made) expect(state.balance).toBe(sequence)
    })
)

it.scopedLive("an entity that ends drops the cached state of its aggregate", () =>
  Effect.gen(function* () {
    const local = yield* Layer.build(Account.layer.pipe(Layer.provideMerge(MemoryStore.layer)))
    const cluster = yield* makeCluster()
    const runner = yield* cluster.startRunner(Accounts.layerRunner.pipe(Layer.provide(Layer.succeedContext(local))))
    const client = yield* Layer.build(Accounts.layerClient.pipe(Layer.provide(cluster.layerClient)))
    yield* Effect.provide(Account.evaluate(id("a"), new Deposit({ amount: 1 })), client)
    // Another process deposits, and `get` returns the cached state.
    yield* Account.evaluate(id("a"), new Deposit({ amount: 1 })).pipe(
      Effect.provide(Layer.fresh(Account.layer)),
      Effect.provide(local)
    )
    expect(yield* Effect.provide(Account.get(id("a")), local)).toMatchObject({ balance: 1 })
    yield* runner.stop
    expect(yield* Effect.provide(Account.get(id("a")), local)).toMatchObject({ balance: 2 })
  })
)

const layerTest = Accounts.layerClient.pipe(Layer.provideMerge(layerRunner), Layer.provide(TestRunner.layer))

it.live("a command in a transaction of the caller is refused, and a read is not part of the transaction", () =>
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    yield* Account.evaluate(id("a"), new Deposit({ amount: 3 }))
    const failed = yield* Effect.flip(sql.withTransaction(Account.evaluate(id("a"), new Deposit({ amount: 3 }))))
    expect(failed).toBeInstanceOf(StoreError.ValidationError)
    expect(failed.message).toContain("can't be part of the transaction around it")
    expect(yield* sql.withTransaction(Account.fetch(id("a")))).toMatchObject({ balance: 3 })
    expect(yield* eventsOf("Account/a")).toHaveLength(1)
  }).pipe(
    Effect.provide(layerTest.pipe(Layer.provideMerge(SqlStore.layer), Layer.provideMerge(layerPg()))),
    Effect.scoped
  )
)

it.live("a command in a projection is refused", () =>
  Effect.gen(function* () {
    const Log = Aggregate.make("Log", {
      state: Schema.Number,
      initialState: 0,
      events: Asked,
      commands: Asked,
      decide: { Asked: () => Effect.succeed([new Asked()]) },
      evolve: { Asked: (count) => count + 1 },
      projections: [
        Projection.make({
          name: "deposits",
          events: Asked,
          project: { Asked: () => Effect.asVoid(Account.evaluate(id("a"), new Deposit({ amount: 1 }))) }
        })
      ]
    })
    const failed = yield* Effect.flip(Log.evaluate("l", new Asked())).pipe(Effect.provide(Log.layer))
    expect(String(failed)).toContain("can't be part of the transaction around it")
    expect([...(yield* eventsOf("Account/a")), ...(yield* eventsOf("Log/l"))]).toEqual([])
  }).pipe(Effect.provide(layerTest.pipe(Layer.provideMerge(MemoryStore.layer))))
)

it.live("evaluateAll refuses commands of an aggregate that runners evaluate, by their indices", () =>
  Effect.gen(function* () {
    const failed = yield* Aggregate.evaluateAll([
      Teller.command("t", new Ask({ account: "b" })),
      Account.command(id("a"), new Deposit({ amount: 1 }))
    ]).pipe(Effect.flip, Effect.provide(Teller.layer))
    expect(failed).toMatchObject({ _tag: "ValidationError", issues: [{ index: 1 }] })
    expect(yield* eventsOf("Teller/t")).toEqual([])
  }).pipe(Effect.provide(layerTest.pipe(Layer.provideMerge(MemoryStore.layer))))
)

class Tenant extends Context.Reference<Tenant>()("test/Tenant", { defaultValue: () => "none" }) {}

class Passed extends Schema.TaggedClass<Passed>()("Passed", { tenant: Schema.String }) {}
/** Its handler evaluates the same command on the next aggregate, unless there is none. */
class Pass extends Schema.TaggedClass<Pass>()("Pass", { to: Schema.Array(Schema.String) }) {}

/** Evaluates a command on the next aggregate, as a client of the cluster does. */
class Next extends Context.Tag("test/Next")<
  Next,
  { evaluate: (id: string, to: ReadonlyArray<string>) => Effect.Effect<unknown, Aggregate.Failure> }
>() {}

const Ring = Aggregate.make("Ring", {
  state: Schema.Number,
  initialState: 0,
  events: Passed,
  commands: Pass,
  refusals: {},
  decide: {
    Pass: ({ to: [id, ...others] }) =>
      Effect.gen(function* () {
        const next = yield* Next
        if (id !== undefined) yield* next.evaluate(id, others)
        return [new Passed({ tenant: yield* Tenant })]
      })
  },
  evolve: { Passed: (count) => count + 1 }
})

const Rings = ClusterAggregate.make(Ring)

/** A cluster whose handlers evaluate commands by its client. */
const onRing = Effect.gen(function* () {
  const next: Context.Tag.Service<Next> = { evaluate: () => Effect.dieMessage("there is no client yet") }
  const context = yield* Layer.build(
    Rings.layerClient.pipe(
      Layer.provideMerge(Rings.layerRunner.pipe(Layer.provide(Ring.layer), Layer.provide(Layer.succeed(Next, next)))),
      Layer.provide(TestRunner.layer),
      Layer.provideMerge(MemoryStore.layer)
    )
  )
  next.evaluate = (id, to) => Effect.provide(Ring.evaluate(id, new Pass({ to })), context)
  return context
})

it.scopedLive("a handler that leads back to its own aggregate is refused, and waits for no lock", () =>
  Effect.gen(function* () {
    const context = yield* onRing
    const failed = yield* Ring.evaluate("1", new Pass({ to: ["2", "1"] })).pipe(Effect.flip, Effect.provide(context))
    expect(failed).toBeInstanceOf(StoreError.ValidationError)
    expect(failed.message).toContain("must not be the aggregate whose command the handler around is deciding")
    yield* Effect.provide(Ring.evaluate("1", new Pass({ to: ["2", "3"] })), context)
    const chains = yield* Effect.forEach(["Ring/1", "Ring/2", "Ring/3"], eventsOf).pipe(Effect.provide(context))
    const [innermost] = chains[2] ?? []
    expect(chains.flat().map(({ correlationId }) => correlationId)).toEqual(Array(3).fill(innermost?.timestamp))
  })
)

it.scopedLive("a reference of a caller stays behind, also where the runner is in its process", () =>
  Effect.gen(function* () {
    const context = yield* onRing
    const made = yield* Ring.evaluate("1", new Pass({ to: [] })).pipe(
      Effect.provideService(Tenant, "anna"),
      Effect.provide(context)
    )
    expect(made.events).toEqual([new Passed({ tenant: "none" })])
  })
)

it.scopedLive("layerRunner above layerClient dies, and says what is missing", () =>
  Effect.gen(function* () {
    const built = Layer.build(
      Accounts.layerRunner.pipe(Layer.provide(Accounts.layerClient), Layer.provide(TestRunner.layer), silent)
    )
    expect(String(yield* Effect.flip(Effect.sandbox(built)))).toContain("layerRunner of Account needs the layer")
  })
)
