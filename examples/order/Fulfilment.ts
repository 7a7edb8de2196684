/**
 * The process manager: what has to happen because something happened, from one aggregate to the other.
 *
 * It is a subscription whose handlers evaluate commands. They run outside of any transaction, and the checkpoint is stored afterwards, so
 * after a crash an event comes again. Each command has an id that is made of the event, so it takes effect once all the same.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate, Projection, Subscription, Timestamp } from "effect-maestro"
import * as Deadlines from "./Deadlines.js"
import { ConfirmOrder, Order, OrderPlaced } from "./Order.js"
import { Payment, PaymentReceived, paymentOf, RefundPayment, RequestPayment } from "./Payment.js"

const name = "fulfilment"

/** What is to be done for each event, typed. */
export const process = Projection.make({
  name,
  events: Schema.Union(OrderPlaced, PaymentReceived),
  project: {
    OrderPlaced: ({ amount, payWithin }, event) =>
      Effect.zipRight(
        // Counted from the order, not from now: however late this runs, and however often, it comes to the same.
        Deadlines.set(event.aggregateId, Timestamp.toMillis(event.timestamp) + Duration.toMillis(payWithin)),
        Payment.evaluate(paymentOf(event.aggregateId), new RequestPayment({ order: event.aggregateId, amount })).pipe(
          Aggregate.withCommandId(Subscription.commandId(name, event))
        )
      ),

    PaymentReceived: ({ order }, event) =>
      Order.evaluate(order, new ConfirmOrder()).pipe(
        Aggregate.withCommandId(Subscription.commandId(name, event)),
        // Too late: the order is cancelled. It can't be confirmed any more, so the money goes back.
        Effect.catchTag("NotOpen", () =>
          Payment.evaluate(event.aggregateId, new RefundPayment()).pipe(
            Aggregate.withCommandId(Subscription.commandId(name, event, "refund"))
          )
        )
      )
  }
})

export const Fulfilment = Subscription.fromProjections(name, [process], { delivery: "at-least-once" })
