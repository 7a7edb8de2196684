/**
 * Orders that reserve stock and wait for their payments: three aggregates, and a process manager between them that repeats no command.
 *
 * Run it by `npm run order`. It uses an embedded Postgres.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Console from "effect/Console"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Ref from "effect/Ref"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import { Aggregate, EventFeed, SqlStore, Subscription } from "effect-maestro"
import * as PgliteClient from "effect-maestro/PgliteClient"
import { place } from "./Checkout.js"
import * as Deadlines from "./Deadlines.js"
import * as Fulfilment from "./Fulfilment.js"
import { Order } from "./Order.js"
import { Payment, ReceivePayment } from "./Payment.js"
import { DeliverStock, Stock } from "./Stock.js"

/** The aggregates, on the store, on the database. */
const layerDomain = Layer.mergeAll(Order.layer, Payment.layer, Stock.layer, Deadlines.layerTable).pipe(
  Layer.provideMerge(SqlStore.layer),
  Layer.provideMerge(PgliteClient.layerMemory)
)

/** What runs all the time: the process manager, and the loop over the deadlines. */
const layerProcess = Layer.merge(Fulfilment.Fulfilment.layer, Deadlines.layer)

const order = (id: string, customer: string, amount: number, payWithin: Duration.DurationInput = "1 hour") =>
  Effect.gen(function* () {
    const details = { customer, product: "chair", quantity: 1, amount, payWithin: Duration.decode(payWithin) }
    const [placed] = yield* place(id, details).pipe(Aggregate.withCorrelationId(id))
    yield* handled(placed.position)
  })

/** Waits until the process manager has handled an event. */
const handled = (position: EventFeed.StreamPosition) =>
  Subscription.waitFor(Fulfilment.Fulfilment, position, "1 minute")

/** Called by the payment provider, maybe more than once. The provider's reference is the id of the command. */
const pay = (order: string, reference: string) =>
  Effect.gen(function* () {
    const { duplicate, position } = yield* Payment.evaluate(order, new ReceivePayment()).pipe(
      Aggregate.withCommandId(reference),
      Aggregate.withCorrelationId(order)
    )
    yield* handled(position)
    return duplicate
  })

const show = (order: string) =>
  Effect.gen(function* () {
    const { status } = yield* Order.fetch(order)
    const payment = yield* Payment.fetch(order)
    yield* Console.log(`  ${order}: the order is ${status}, the payment is ${payment.status}`)
  })

/** Prints the events of a chain, each below the one that it follows from. */
const showChain = (correlationId: string) => {
  const depths = new Map<string, number>()
  return EventFeed.streamStored({ filter: { correlationId, kinds: ["Order", "Payment", "Stock"] } }).pipe(
    Stream.runForEach(({ causationId, timestamp, type }) => {
      const depth = causationId === undefined ? 0 : (depths.get(causationId) ?? 0) + 1
      depths.set(timestamp, depth)
      return Console.log(`    ${"  ".repeat(depth)}${type}`)
    })
  )
}

const showStock = Effect.flatMap(Stock.fetch("chair"), ({ available }) =>
  Console.log(`  chairs in stock: ${available}`)
)

const story = Effect.gen(function* () {
  yield* Stock.evaluate("chair", new DeliverStock({ quantity: 2 }))

  yield* Console.log("Ann orders, and pays; the provider reports it twice")
  yield* order("order 1", "Ann", 30)
  yield* show("order 1")
  for (const _ of [1, 2]) {
    const duplicate = yield* pay("order 1", "reference 1")
    yield* Console.log(`  the report is ${duplicate ? "a duplicate" : "new"}`)
  }
  yield* show("order 1")

  yield* Console.log("Bob orders the last chair; Dan comes too late, and Bob pays too late")
  yield* order("order 2", "Bob", 30, "1 second")
  yield* order("order 3", "Dan", 30).pipe(
    Effect.catchTag("CommandRefused", ({ aggregate, refusal }) =>
      Console.log(`  order 3: refused by ${aggregate}: ${refusal.message}`)
    )
  )
  yield* Effect.repeat(Order.fetch("order 2"), {
    until: ({ status }) => status === "cancelled",
    schedule: Schedule.spaced("50 millis")
  })
  // The cancellation is an event of its own, which the process manager handles later.
  yield* handled({ aggregateId: Order.streamId("order 2"), sequence: 2 })
  yield* show("order 2")
  yield* pay("order 2", "reference 2")
  yield* show("order 2")
  yield* Console.log("  what followed from what:")
  yield* showChain("order 2")
  yield* showStock

  yield* Console.log("Cleo orders for more than the provider accepts")
  yield* order("order 4", "Cleo", 20_000)
  yield* handled({ aggregateId: Order.streamId("order 4"), sequence: 2 })
  yield* show("order 4")
  yield* showStock
})

/** The same handlers in a new subscription, which handles all events once more. */
const again = Effect.gen(function* () {
  yield* Console.log(
    "All events are handled once more; each first attempt fails after its commands, before the checkpoint"
  )
  const before = yield* EventFeed.streamStored().pipe(Stream.runCount)
  const handled = yield* Ref.make(0)
  const fail = () =>
    Effect.flatMap(
      Ref.updateAndGet(handled, (count) => count + 1),
      (count) => (count % 2 === 1 ? Effect.fail("the power fails" as const) : Effect.void)
    )
  const failing = [Subscription.on(Order, { OrderPlaced: fail }), Subscription.on(Payment, { PaymentReceived: fail })]
  const replay = Subscription.make("again", {
    on: [...Fulfilment.handlers, ...failing],
    delivery: "at-least-once",
    batchSize: 1
  })
  yield* Effect.gen(function* () {
    yield* Subscription.waitFor("again", yield* EventFeed.head, "1 minute")
  }).pipe(Effect.provide(replay.layer))
  const after = yield* EventFeed.streamStored().pipe(Stream.runCount)
  yield* Console.log(`  handled ${yield* Ref.get(handled)} times; ${after - before} new events`)
  yield* Effect.forEach(["order 1", "order 2", "order 4"], show)
  yield* showStock
  // The failed attempts are warnings in the log.
}).pipe(Logger.withMinimumLogLevel(LogLevel.None))

Effect.zipRight(story.pipe(Effect.provide(layerProcess)), again).pipe(Effect.provide(layerDomain), NodeRuntime.runMain)
