/**
 * Orders that wait for their payments: two aggregates, and a process manager between them that repeats no command.
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
import * as Deadlines from "./Deadlines.js"
import * as Fulfilment from "./Fulfilment.js"
import { Order, PlaceOrder } from "./Order.js"
import { Payment, ReceivePayment } from "./Payment.js"

/** The aggregates, on the store, on the database. */
const layerDomain = Layer.mergeAll(Order.layer, Payment.layer, Deadlines.layerTable).pipe(
  Layer.provideMerge(SqlStore.layer),
  Layer.provideMerge(PgliteClient.layerMemory)
)

/** What runs all the time: the process manager, and the loop over the deadlines. */
const layerProcess = Layer.merge(Fulfilment.Fulfilment.layer, Deadlines.layer)

const place = (order: string, customer: string, amount: number, payWithin: Duration.DurationInput) =>
  Effect.gen(function* () {
    const { position } = yield* Order.evaluate(
      order,
      new PlaceOrder({ customer, amount, payWithin: Duration.decode(payWithin) })
    ).pipe(Aggregate.withCorrelationId(order))
    // Returns when the process manager has handled the event.
    yield* Subscription.waitFor(Fulfilment.Fulfilment, position, "1 minute")
  })

/** Called by the payment provider, maybe more than once. The provider's reference is the id of the command. */
const pay = (order: string, reference: string) =>
  Effect.gen(function* () {
    const { duplicate, position } = yield* Payment.evaluate(order, new ReceivePayment()).pipe(
      Aggregate.withCommandId(reference),
      Aggregate.withCorrelationId(order)
    )
    yield* Subscription.waitFor(Fulfilment.Fulfilment, position, "1 minute")
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
  return EventFeed.streamStored({ filter: { correlationId, kinds: ["Order", "Payment"] } }).pipe(
    Stream.runForEach(({ causationId, timestamp, type }) => {
      const depth = causationId === undefined ? 0 : (depths.get(causationId) ?? 0) + 1
      depths.set(timestamp, depth)
      return Console.log(`    ${"  ".repeat(depth)}${type}`)
    })
  )
}

const story = Effect.gen(function* () {
  yield* Console.log("Ann orders, and pays; the provider reports it twice")
  yield* place("order 1", "Ann", 30, "1 hour")
  yield* show("order 1")
  for (const _ of [1, 2]) {
    const duplicate = yield* pay("order 1", "reference 1")
    yield* Console.log(`  the report is ${duplicate ? "a duplicate" : "new"}`)
  }
  yield* show("order 1")

  yield* Console.log("Bob orders, and pays too late")
  yield* place("order 2", "Bob", 30, "1 second")
  yield* Effect.repeat(Order.fetch("order 2"), {
    until: ({ status }) => status === "cancelled",
    schedule: Schedule.spaced("50 millis")
  })
  yield* show("order 2")
  yield* pay("order 2", "reference 2")
  yield* show("order 2")
  yield* Console.log("  what followed from what:")
  yield* showChain("order 2")

  yield* Console.log("Cleo orders for more than the provider accepts")
  yield* place("order 3", "Cleo", 20_000, "1 hour")
  yield* show("order 3")
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
  yield* Effect.forEach(["order 1", "order 2", "order 3"], show)
  // The failed attempts are warnings in the log.
}).pipe(Logger.withMinimumLogLevel(LogLevel.None))

Effect.zipRight(story.pipe(Effect.provide(layerProcess)), again).pipe(Effect.provide(layerDomain), NodeRuntime.runMain)
