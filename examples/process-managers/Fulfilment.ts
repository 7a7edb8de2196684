/**
 * The process manager between an order, its payment and the stock: a subscription whose handlers evaluate commands. Order and payment have
 * the order's number as their id.
 *
 * The handlers run outside of any transaction, and the checkpoint is stored afterwards, so some events are handled again after a crash. The
 * id of each command is made from the event, so the command takes effect once.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { Aggregate, Subscription, Timestamp } from "effect-maestro"
import * as Deadlines from "./Deadlines.js"
import { CancelOrder, ConfirmOrder, Order } from "./Order.js"
import { Payment, RefundPayment, RequestPayment } from "./Payment.js"
import { ReturnStock, Stock } from "./Stock.js"

const name = "fulfilment"

/** What follows from each event. */
export const handlers = [
  Subscription.on(Order, {
    OrderPlaced: ({ amount, payWithin }, event) =>
      Effect.zipRight(
        // Counted from the time of the order, so that a later attempt sets the same deadline.
        Deadlines.set(event.id, Timestamp.toMillis(event.timestamp) + Duration.toMillis(payWithin)),
        Payment.evaluate(event.id, new RequestPayment({ amount })).pipe(
          Aggregate.withCommandId(Subscription.commandId(name, event)),
          // A refusal that is part of the process: the order can't be paid, so it is cancelled.
          Effect.catchTag("AmountTooHigh", ({ message }) =>
            Order.evaluate(event.id, new CancelOrder({ reason: message })).pipe(
              Aggregate.withCommandId(Subscription.commandId(name, event, "cancel"))
            )
          )
        )
      ),

    OrderCancelled: ({ product, quantity }, event) =>
      Stock.evaluate(product, new ReturnStock({ order: event.id, quantity })).pipe(
        Aggregate.withCommandId(Subscription.commandId(name, event))
      )
  }),

  Subscription.on(Payment, {
    PaymentReceived: (_, event) =>
      Order.evaluate(event.id, new ConfirmOrder()).pipe(
        Aggregate.withCommandId(Subscription.commandId(name, event)),
        // The order was cancelled before, and can't be confirmed any more. So the payment is refunded.
        Effect.catchTag("NotOpen", () =>
          Payment.evaluate(event.id, new RefundPayment()).pipe(
            Aggregate.withCommandId(Subscription.commandId(name, event, "refund"))
          )
        )
      )
  })
] as const

export const Fulfilment = Subscription.make(name, {
  on: handlers,
  delivery: "at-least-once",
  // A failure that no handler expects holds up one order, and not all of them.
  onFailure: "parkAggregate"
})
