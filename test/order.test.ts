/** The example of a process manager: every order reaches exactly one final state, in every order of events. */
import * as SqlClient from "@effect/sql/SqlClient"
import { expect, it } from "@effect/vitest"
import * as Arr from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as TestClock from "effect/TestClock"
import { Aggregate, type EventFeed, SqlStore, StoreAdapter, Subscription, type SubscriptionStore } from "effect-maestro"
import { place as placeOrder } from "../examples/process-managers/Checkout.js"
import * as Deadlines from "../examples/process-managers/Deadlines.js"
import * as Fulfilment from "../examples/process-managers/Fulfilment.js"
import { Order } from "../examples/process-managers/Order.js"
import { Payment, ReceivePayment } from "../examples/process-managers/Payment.js"
import { DeliverStock, Stock } from "../examples/process-managers/Stock.js"
import { layerPglite, uniqueName } from "./database.js"
import { macrotask } from "./nodes.js"
import { lastPosition } from "./subscribers.js"

const layerDomain = Layer.mergeAll(Order.layer, Payment.layer, Stock.layer, Deadlines.layerTable).pipe(
  Layer.provideMerge(SqlStore.layer),
  Layer.provideMerge(layerPglite)
)

/** A process: the process manager and the loop over the deadlines, until the scope closes. */
const aProcess = Layer.build(Layer.fresh(Layer.merge(Fulfilment.Fulfilment.layer, Deadlines.layer)))

it.layer(layerDomain, { timeout: 60_000 })("Orders and their payments", (it) => {
  it.scoped("an order that is paid in time is confirmed, and the deadline changes nothing", () =>
    Effect.gen(function* () {
      yield* aProcess
      const order = yield* placed
      yield* handled(yield* pay(order))
      yield* TestClock.adjust("2 seconds")
      yield* noDeadlineOf(order)
      expect(yield* endOf(order)).toEqual(["OrderPlaced", "OrderConfirmed"])
      expect(yield* paymentsOf(order)).toEqual(["PaymentRequested", "PaymentReceived"])
    })
  )

  it.scoped("an order that is not paid in time is cancelled, and a later payment is refunded once", () =>
    Effect.gen(function* () {
      yield* aProcess
      const order = yield* placed
      yield* TestClock.adjust("900 millis")
      yield* Effect.repeatN(macrotask, 20)
      expect(yield* endOf(order)).toEqual(["OrderPlaced"])
      yield* TestClock.adjust("200 millis")
      yield* noDeadlineOf(order)
      expect(yield* endOf(order)).toEqual(["OrderPlaced", "OrderCancelled"])
      yield* handled(yield* pay(order))
      // The provider reports the payment a second time.
      yield* pay(order)
      expect(yield* endOf(order)).toEqual(["OrderPlaced", "OrderCancelled"])
      expect(yield* paymentsOf(order)).toEqual(["PaymentRequested", "PaymentReceived", "PaymentRefunded"])
    })
  )

  it.scoped("of a payment and a time-out in the same moment one wins, and a lost payment is refunded", () =>
    Effect.gen(function* () {
      yield* aProcess
      const orders = yield* Effect.replicateEffect(placed, 10)
      yield* Effect.all(
        [
          TestClock.adjust("1 second"),
          ...orders.map((order, index) => Effect.zipRight(Effect.repeatN(macrotask, index), pay(order)))
        ],
        { concurrency: "unbounded" }
      )
      for (const order of orders) {
        yield* noDeadlineOf(order)
        yield* handled({ aggregateId: Payment.streamId(order), sequence: 2 })
        const [end, payment] = [yield* endOf(order), yield* paymentsOf(order)]
        expect(end).toHaveLength(2)
        expect(payment.at(-1)).toBe(end.at(-1) === "OrderConfirmed" ? "PaymentReceived" : "PaymentRefunded")
      }
    })
  )

  it.effect("a restart loses no time-out, and events of the meantime are handled afterwards", () =>
    Effect.gen(function* () {
      const first = yield* Effect.scoped(Effect.zipRight(aProcess, placed))
      // No process is running.
      const second = yield* place
      yield* TestClock.adjust("2 seconds")
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* aProcess
          yield* handled({ aggregateId: Order.streamId(second), sequence: 1 })
          yield* noDeadlineOf(first)
          yield* noDeadlineOf(second)
        })
      )
      for (const order of [first, second]) expect(yield* endOf(order)).toEqual(["OrderPlaced", "OrderCancelled"])
    })
  )

  it.scoped(
    "a crash between a command and the checkpoint, or the deletion of a deadline, does not repeat the command",
    () =>
      Effect.gen(function* () {
        const [paid, late] = yield* Effect.scoped(
          Effect.gen(function* () {
            yield* aProcess
            const [paid, late] = [yield* placed, yield* placed]
            yield* handled(yield* pay(paid))
            yield* TestClock.adjust("2 seconds")
            yield* noDeadlineOf(late)
            yield* handled(yield* pay(late))
            return [paid, late] as const
          })
        )
        yield* handled({ aggregateId: Order.streamId(late), sequence: 2 })
        const before = yield* Effect.all([eventsOf(paid, late), typesOf(Stock.streamId("usual"))])
        // A second subscription with the same handlers begins at the first event, as after a lost checkpoint. Each first attempt fails.
        let attempts = 0
        const crash = () => Effect.suspend(() => (++attempts % 2 === 1 ? Effect.fail("crashed") : Effect.void))
        const crashing = [
          Subscription.on(Order, { OrderPlaced: crash }),
          Subscription.on(Payment, { PaymentReceived: crash })
        ]
        const anew = uniqueName("anew")
        const again = Subscription.make(anew, {
          on: [...Fulfilment.handlers, ...crashing],
          delivery: "at-least-once",
          batchSize: 1,
          retry: Schedule.recurs(1)
        })
        yield* Layer.build(again.layer)
        yield* Subscription.waitFor(anew, yield* lastPosition, "1 minute")
        expect(attempts).toBeGreaterThanOrEqual(8)
        // The second subscription has stored the deadlines again, and they are due.
        yield* Deadlines.cancelDue
        yield* noDeadlineOf(paid)
        expect(yield* Effect.all([eventsOf(paid, late), typesOf(Stock.streamId("usual"))])).toEqual(before)
      })
  )

  it.scoped("of ten orders for the last three products three are placed, and the others leave nothing", () =>
    Effect.gen(function* () {
      yield* deliver("rare", 3)
      const orders = Array.from({ length: 10 }, (_, n) => `rare ${n}`)
      const results = yield* Effect.forEach(
        orders,
        (order) => Effect.either(placeOrder(order, { ...details, product: "rare" })),
        { concurrency: "unbounded" }
      )
      expect(yield* Stock.fetch("rare")).toEqual({ available: 0 })
      for (const [index, order] of orders.entries()) {
        const result = results[index]
        expect(yield* endOf(order)).toEqual(result?._tag === "Right" ? ["OrderPlaced"] : [])
        if (result?._tag === "Left") expect(result.left).toMatchObject({ aggregate: "Stock", index: 1 })
      }
      expect(results.filter(({ _tag }) => _tag === "Right")).toHaveLength(3)
    })
  )

  it.scoped("what a cancelled order had reserved is returned once, also where its payment is refused", () =>
    Effect.gen(function* () {
      yield* aProcess
      yield* deliver("dear", 5)
      yield* placeOrder("dear 1", { ...details, product: "dear", quantity: 2 })
      yield* placeOrder("dear 2", { ...details, product: "dear", quantity: 3, amount: 20_000 })
      for (const order of ["dear 1", "dear 2"]) {
        yield* handled({ aggregateId: Order.streamId(order), sequence: 1 })
      }
      yield* TestClock.adjust("2 seconds")
      yield* noDeadlineOf("dear 1")
      for (const order of ["dear 1", "dear 2"]) {
        yield* handled({ aggregateId: Order.streamId(order), sequence: 2 })
      }
      expect(yield* Stock.fetch("dear")).toEqual({ available: 5 })
    })
  )
})

// --- helpers ---

const details = { customer: "Ann", quantity: 1, amount: 10, payWithin: Duration.seconds(1) }

const place = Effect.gen(function* () {
  const order = yield* Order.newId
  yield* deliver("usual", 1)
  yield* placeOrder(order, { ...details, product: "usual" })
  return order
})

const deliver = (product: string, quantity: number) => Stock.evaluate(product, new DeliverStock({ quantity }))

/** An order whose payment is requested. */
const placed = Effect.tap(place, (order) => handled({ aggregateId: Order.streamId(order), sequence: 1 }))

const pay = (order: string) =>
  Payment.evaluate(order, new ReceivePayment()).pipe(
    Aggregate.withCommandId("the provider's reference"),
    Effect.map(({ position }) => position)
  )

const handled = (
  position: EventFeed.StreamPosition
): Effect.Effect<void, unknown, EventFeed.EventFeed | SubscriptionStore.SubscriptionStore> =>
  Subscription.waitFor(Fulfilment.Fulfilment.name, position, "1 minute")

/** Waits until the loop has handled an order. */
const noDeadlineOf = (order: string) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    Effect.repeat(
      Effect.zipRight(TestClock.adjust("100 millis"), sql`select 1 from ordering.deadlines where order_id = ${order}`),
      {
        until: (rows) => rows.length === 0
      }
    )
  )

const typesOf = (streamId: string) =>
  Effect.flatMap(StoreAdapter.StoreAdapter, (store) =>
    Effect.map(
      store.getEvents(streamId, 1),
      Arr.map(({ type }) => type)
    )
  )

const endOf = (order: string) => typesOf(Order.streamId(order))
const paymentsOf = (order: string) => typesOf(Payment.streamId(order))

const eventsOf = (...orders: ReadonlyArray<string>) =>
  Effect.forEach(orders, (order) => Effect.all([endOf(order), paymentsOf(order)]))
