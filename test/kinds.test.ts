/**
 * Subscriptions, projections and rebuilds get the events of their aggregates only, and none of an equal type of others.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it, layer } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import {
  Aggregate,
  type Event,
  EventFeed,
  MemoryStore,
  Projection,
  Rebuild,
  SqlStore,
  StoreAdapter,
  Subscription,
  Timestamp
} from "effect-maestro"
import { selectPageOfKinds } from "../src/internal/sql/feedPage.js"
import { layerPg, numberInserts, uniqueName } from "./database.js"
import { caughtUp, lastPosition, start } from "./subscribers.js"

class OrderCreated extends Schema.TaggedClass<OrderCreated>()("Created", { amount: Schema.Int }) {}
class OrderPaid extends Schema.TaggedClass<OrderPaid>()("Paid", {}) {}
class CustomerCreated extends Schema.TaggedClass<CustomerCreated>()("Created", { name: Schema.String }) {}
class Shipped extends Schema.TaggedClass<Shipped>()("Shipped", {}) {}

const decided = { state: Schema.Number, initialState: 0 }

/** The table has a row for each order. */
const Orders = Projection.makeSql({
  name: "orders",
  events: Schema.Union(OrderCreated, OrderPaid),
  project: { Created: ({ amount }, { id }, sql) => sql`insert into orders values (${id}, ${amount})` }
})

const OrderEvents = Schema.Union(OrderCreated, OrderPaid)

const Order = Aggregate.make("Order", {
  ...decided,
  events: OrderEvents,
  commands: OrderEvents,
  decide: { Created: (command) => Effect.succeed([command]), Paid: (command) => Effect.succeed([command]) },
  evolve: { Created: (count) => count + 1, Paid: (count) => count + 1 }
})

const ProjectedOrder = Aggregate.make("Order", {
  ...decided,
  events: OrderEvents,
  commands: OrderEvents,
  decide: { Created: (command) => Effect.succeed([command]), Paid: (command) => Effect.succeed([command]) },
  evolve: { Created: (count) => count + 1, Paid: (count) => count + 1 },
  projections: [Orders]
})

const Customer = Aggregate.make("Customer", {
  ...decided,
  events: CustomerCreated,
  commands: CustomerCreated,
  decide: { Created: (command) => Effect.succeed([command]) },
  evolve: { Created: (count) => count + 1 }
})

const Parcel = Aggregate.make("Parcel", {
  ...decided,
  events: Shipped,
  commands: Shipped,
  decide: { Shipped: (command) => Effect.succeed([command]) },
  evolve: { Shipped: (count) => count + 1 }
})

const layerAggregates = Layer.mergeAll(Order.layer, Customer.layer, Parcel.layer)

const created = (amount: number) => new OrderCreated({ amount })
const named = (name: string) => new CustomerCreated({ name })

/** An event that another program wrote. */
const raw = (aggregateId: string, sequence: number, type: string, body: Event.Event["body"]) =>
  Effect.gen(function* () {
    const { now } = yield* Timestamp.HybridClock
    const store = yield* StoreAdapter.StoreAdapter
    yield* store.commitEvents([{ timestamp: yield* now, aggregateId, sequence, type, body, metadata: {} }])
  })

for (const [name, store] of Object.entries({
  MemoryStore: MemoryStore.layer,
  "SqlStore on Postgres": SqlStore.layer.pipe(Layer.provideMerge(layerPg()), Layer.orDie)
})) {
  layer(Layer.provideMerge(layerAggregates, store), { excludeTestServices: true, timeout: 60_000 })(
    `subscriptions on ${name}`,
    (it) => {
      it.scoped("on: each handler gets the decoded events of its aggregate, and none of an equal type of another", () =>
        Effect.gen(function* () {
          const seen: Array<unknown> = []
          const note = (...what: ReadonlyArray<unknown>) => Effect.sync(() => seen.push(what))
          const from = yield* EventFeed.head
          const both = Subscription.make(uniqueName("both"), {
            from,
            on: [
              Subscription.on(Order, {
                Created: (event, { id, kind, sequence }) => note(event, kind, id, sequence),
                Paid: (event, { id, sequence }) => note(event, id, sequence)
              }),
              Subscription.on(Customer, { Created: (event, { id, kind }) => note(event, kind, id) })
            ]
          })
          expect(both.filter).toEqual({ types: ["Created", "Paid"], kinds: ["Order", "Customer"] })
          const customers = Subscription.make(uniqueName("customers"), {
            from,
            on: Subscription.on(Customer, { Created: ({ name }) => note(name) }),
            filter: { kinds: ["Customer", "Order"] }
          })
          expect(customers.filter).toEqual({ types: ["Created"], kinds: ["Customer"] })
          const id = uniqueName("shared")
          yield* Order.evaluate(id, created(3))
          yield* Customer.evaluate(id, named("Ann"))
          yield* Order.evaluate(id, new OrderPaid())
          yield* Parcel.evaluate(id, new Shipped())
          yield* start(both)
          yield* caughtUp(both)
          expect(seen.splice(0)).toEqual([
            [created(3), "Order", id, 1],
            [named("Ann"), "Customer", id],
            [new OrderPaid(), id, 2]
          ])
          yield* start(customers)
          yield* caughtUp(customers)
          expect(seen).toEqual([["Ann"]])
        })
      )

      it.scoped("on: an event that can't be decoded is UnreadableEvent, and not retried", () =>
        Effect.gen(function* () {
          const name = uniqueName("unreadable")
          const [bad, good] = [uniqueName("bad"), uniqueName("good")]
          const seen: Array<string> = []
          const reading = Subscription.make(name, {
            onFailure: "park",
            on: Subscription.on(Order, { Created: (_, { id }) => Effect.sync(() => seen.push(id)) })
          })
          yield* raw(Order.streamId(bad), 1, "Created", { name: "Ann" })
          yield* Order.evaluate(good, created(1))
          yield* start(reading)
          yield* caughtUp(reading)
          const aside = yield* Subscription.parked(name)
          expect(aside.filter(({ aggregateId }) => aggregateId === Order.streamId(bad))).toMatchObject([
            { sequence: 1, attempts: 1, error: expect.stringContaining("UnreadableEvent") }
          ])
          expect(seen).toContain(good)
          expect(seen).not.toContain(bad)
        })
      )

      it.scoped("an order and its parcel share the order's number, also where an event is handled again", () =>
        Effect.gen(function* () {
          const name = uniqueName("shipping")
          const number = uniqueName("number")
          const from = yield* EventFeed.head
          let attempts = 0
          const Shipping = Subscription.make(name, {
            from,
            delivery: "at-least-once",
            on: Subscription.on(Order, {
              Paid: (_, envelope) =>
                Effect.zipRight(
                  Parcel.evaluate(envelope.id, new Shipped()).pipe(
                    Aggregate.withCommandId(Subscription.commandId(name, envelope))
                  ),
                  Effect.suspend(() => (++attempts === 1 ? Effect.fail("crashed") : Effect.void))
                )
            })
          })
          yield* start(Shipping)
          yield* Customer.evaluate(number, named("Ann"))
          yield* Order.evaluate(number, created(1))
          const { position } = yield* Order.evaluate(number, new OrderPaid())
          yield* Subscription.waitFor(name, position, "30 seconds")
          expect(attempts).toBe(2)
          expect(yield* Parcel.fetch(number)).toBe(1)
        })
      )

      it.scoped(
        "fromProjections: a projection gets the events of its aggregate, and a projection of all gets all",
        () =>
          Effect.gen(function* () {
            const seen: Array<string> = []
            const OfOrders = Projection.make({
              name: "of orders",
              of: Order,
              project: { Created: ({ amount }, { id }) => Effect.sync(() => seen.push(`${id} ${amount}`)) }
            })
            const OfAll = Projection.make({
              name: "of all",
              of: "all",
              events: Schema.TaggedStruct("Created", {}),
              project: { Created: (_, { id, kind }) => Effect.sync(() => seen.push(`${kind} ${id}`)) }
            })
            const from = yield* EventFeed.head
            const [orders, all] = [
              Subscription.fromProjections(uniqueName("orders"), [OfOrders], { from }),
              Subscription.fromProjections(uniqueName("all"), [OfAll, OfOrders], { from })
            ]
            expect(orders.filter).toEqual({ types: ["Created"], kinds: ["Order"] })
            expect(all.filter).toEqual({ types: ["Created"] })
            const id = uniqueName("id")
            yield* Customer.evaluate(id, named("Ann"))
            yield* Order.evaluate(id, created(7))
            yield* start(orders)
            yield* caughtUp(orders)
            expect(seen.splice(0)).toEqual([`${id} 7`])
            yield* start(all)
            yield* caughtUp(all)
            expect(seen).toEqual([`Customer ${id}`, `Order ${id}`, `${id} 7`])
          })
      )
    }
  )
}

it("a reserved or invalid name of a subscription is refused", () => {
  for (const [name, message] of [
    ["", "must not be empty"],
    ["effect-maestro/rebuild/X", "must not begin with effect-maestro"],
    ["x".repeat(256), "must be at most 255 characters long"],
    ["a\0", "contains NUL"]
  ] as const) {
    expect(() => Subscription.make(name, { handle: () => Effect.void })).toThrow(message)
    expect(() => Subscription.make(name, { on: [] })).toThrow(message)
    expect(() => Subscription.fromProjections(name, [])).toThrow(message)
  }
  const unbound = { ...Orders, of: undefined } as unknown as Projection.Projection.Bound
  expect(() => Subscription.fromProjections("unbound", [unbound])).toThrow("must be of an aggregate, or of all")
})

/** The store, with the tables of the projections. */
const layerTables = Layer.effectDiscard(
  Effect.gen(function* () {
    const sql = yield* SqlClient.SqlClient
    yield* sql`create table orders (id text primary key, amount int not null)`
  })
)

const onPostgres = Layer.mergeAll(ProjectedOrder.layer, Customer.layer, layerTables).pipe(
  Layer.provideMerge(SqlStore.layer),
  Layer.provideMerge(layerPg())
)

const table = Effect.flatMap(SqlClient.SqlClient, (sql) => sql`select id, amount from orders order by id collate "C"`)

layer(onPostgres, { excludeTestServices: true, timeout: 60_000 })("rebuilds", (it) => {
  it.effect("a rebuild of an order's projection projects no customer that has an event of an equal type", () =>
    Effect.gen(function* () {
      yield* ProjectedOrder.evaluate("order-1", created(5))
      // Its body is not that of an order's event.
      yield* Customer.evaluate("customer-1", named("Ann"))
      const before = yield* table
      expect(before).toEqual([{ id: "order-1", amount: 5 }])
      for (const [index, projections] of [ProjectedOrder.projections, [Projection.of(Order, Orders)]].entries()) {
        expect(yield* Rebuild.run({ name: `orders-${index}`, projections, tables: ["orders"] })).toBe(1)
        expect(yield* table).toEqual(before)
      }
    })
  )

  it.effect("a rebuild for a subscription projects the events that its filter lets through", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      yield* sql`create table kept (kind text, id text, primary key (kind, id))`
      const Kept = Projection.make({
        name: "kept",
        of: "all",
        events: Schema.TaggedStruct("Created", {}),
        project: {
          Created: (_, { id, kind }) =>
            Effect.flatMap(SqlClient.SqlClient, (sql) => sql`insert into kept values (${kind}, ${id})`)
        }
      })
      yield* Effect.forEach(Arr.range(1, 12), (n) =>
        Effect.zipRight(Customer.evaluate(`c-${n}`, named("Ann")), raw(`Order/o-${n}`, 1, "Created", { amount: 1 }))
      )
      const filter = { kinds: ["Customer"], slice: { index: 1, of: 2 } }
      const keeping = Subscription.fromProjections("kept", [Kept], { filter })
      expect(keeping.filter).toEqual({ types: ["Created"], ...filter })
      const kept = Effect.map(sql<{ kind: string; id: string }>`select kind, id from kept`, (rows) =>
        rows.map(({ id, kind }) => `${kind} ${id}`).toSorted()
      )
      yield* Effect.scoped(Effect.zipRight(start(keeping), caughtUp(keeping)))
      const before = yield* kept
      expect(before.length).toBeGreaterThan(0)
      expect(before.length).toBeLessThan(13)
      yield* Rebuild.run({ name: "kept-2", projections: [Kept], tables: ["kept"], subscription: keeping })
      expect(yield* kept).toEqual(before)
    })
  )

  it.effect("a subscription with a name like that of a rebuild's lease shares nothing with the rebuild", () =>
    Effect.gen(function* () {
      const seen: Array<string> = []
      const named = Subscription.make("rebuild X", {
        on: Subscription.on(Order, { Created: (_, { id }) => Effect.sync(() => seen.push(id)) })
      })
      yield* Effect.scoped(Effect.zipRight(start(named), caughtUp(named)))
      const before = seen.length
      expect(before).toBeGreaterThan(0)
      const sql = yield* SqlClient.SqlClient
      yield* sql`delete from orders`
      const [Bound] = ProjectedOrder.projections
      expect(yield* Rebuild.run({ name: "X", projections: [Bound], tables: ["orders"] })).toBeGreaterThan(0)
      expect(yield* table).toContainEqual({ id: "order-1", amount: 5 })
      expect((yield* named.status).partitions).toHaveLength(1)
      yield* Effect.scoped(Effect.zipRight(start(named), caughtUp(named)))
      expect(seen).toHaveLength(before)
      yield* Rebuild.abandon("X")
      expect((yield* named.status).partitions).toHaveLength(1)
    })
  )

  it.effect("an invalid name of a rebuild, and a projection of no aggregate, fail with ValidationError", () =>
    Effect.gen(function* () {
      const unbound = Orders as unknown as Projection.Projection.Bound
      for (const [name, path] of [
        ["", ["name"]],
        ["effect-maestro/rebuild/X", ["name"]],
        ["x".repeat(256), ["name"]],
        ["a\0", ["name"]],
        ["unbound", ["projections", 0, "of"]]
      ] as const) {
        const error = yield* Effect.flip(Rebuild.run({ name, projections: [unbound], tables: ["orders"] }))
        expect(error).toMatchObject({ _tag: "ValidationError", operation: "Rebuild.run" })
        expect("issues" in error ? error.issues.map((issue) => issue.path) : []).toContainEqual(path)
      }
    })
  )
})

/** A query plan of EXPLAIN. */
interface Plan {
  readonly "Index Name"?: string
  readonly "Node Type": string
  readonly "Actual Rows": number
  readonly "Actual Loops": number
  readonly "Rows Removed by Filter"?: number
  readonly Plans?: ReadonlyArray<Plan>
}

/** The index, or that of a partition of the log. */
const isIndexOfKinds = /^event_log(_kind|_\d+_left_feed_key_position_idx)$/

const nodesOf = (plan: Plan): ReadonlyArray<Plan> => [plan, ...(plan.Plans ?? []).flatMap(nodesOf)]

layer(SqlStore.layer.pipe(Layer.provideMerge(layerPg())), { excludeTestServices: true, timeout: 60_000 })(
  "the index of kinds",
  (it) => {
    it.effect("a page of a kind with few events in a large log reads few other rows", () =>
      Effect.gen(function* () {
        const sql = yield* SqlClient.SqlClient
        yield* numberInserts
        yield* sql`insert into maestro.event_log (aggregate_id, sequence, type, body, metadata, timestamp)
          select case when n % 5000 = 0 then case when n % 10000 = 0 then 'Rare/' else 'Other/' end || n else 'Common/' || n end, 1, 'Happened',
            '{}', '{}', ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid
          from generate_series(1, 60000) n`
        yield* sql`analyze maestro.event_log`
        for (const [kinds, types, expected] of [
          [["Rare"], undefined, 6],
          [["Other", "Rare"], undefined, 12],
          [["Rare"], ["Happened", "Never"], 6],
          [["Rare"], ["Never"], 0],
          [["Never"], undefined, 0]
        ] as const) {
          const filter = { kinds, types }
          const page = yield* EventFeed.read({ filter })
          expect(page.events).toHaveLength(expected)
          expect(page.more).toBe(false)
          expect(page.position).toBe(yield* lastPosition)
          const statement = selectPageOfKinds(yield* SqlStore.Tables, {
            after: EventFeed.beginning,
            limit: 1000,
            filter
          })
          const [explained] = yield* sql<{ "QUERY PLAN": ReadonlyArray<{ readonly Plan: Plan }> }>`
            explain (analyze, format json) ${statement}`
          const nodes = nodesOf(
            explained?.["QUERY PLAN"][0]?.Plan ?? { "Node Type": "none", "Actual Rows": 0, "Actual Loops": 0 }
          )
          const told = JSON.stringify(explained)
          expect(
            nodes.some((node) => isIndexOfKinds.test(String(node["Index Name"]))),
            told
          ).toBe(true)
          expect(
            nodes.every((node) => node["Node Type"] !== "Seq Scan"),
            told
          ).toBe(true)
          const scanned = nodes.map(
            (node) => (node["Actual Rows"] + (node["Rows Removed by Filter"] ?? 0)) * node["Actual Loops"]
          )
          expect(Math.max(...scanned), told).toBeLessThan(100)
        }
        const full = yield* EventFeed.read({ filter: { kinds: ["Common", "Rare"] }, limit: 7 })
        expect(full.events.map(({ id }) => id)).toEqual(Arr.range(1, 7).map(String))
        expect(full).toMatchObject({ more: true, position: full.events.at(-1)?.position })
      })
    )
  }
)
