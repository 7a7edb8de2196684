/**
 * The process manager: what has to happen because something happened, from one aggregate to the other.
 *
 * It is a subscription whose handlers evaluate commands. An order and its payment share the order's number. They run outside of any transaction, and the checkpoint is stored afterwards, so
 * after a crash an event comes again. Each command has an id that is made of the event, so it takes effect once all the same.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { Aggregate, Subscription, Timestamp } from "effect-maestro"
import * as Deadlines from "./Deadlines.js"
import { ConfirmOrder, Order } from "./Order.js"
import { Payment, RefundPayment, RequestPayment } from "./Payment.js"

const name = "fulfilment"

/** What is to be done for each event, typed. */
export const handlers = [
  Subscription.on(Order, {
    OrderPlaced: ({ amount, payWithin }, event) =>
      Effect.zipRight(
        // Counted from the order, not from now: however late this runs, and however often, it comes to the same.
        Deadlines.set(event.id, Timestamp.toMillis(event.timestamp) + Duration.toMillis(payWithin)),
        Payment.evaluate(event.id, new RequestPayment({ amount })).pipe(
          Aggregate.withCommandId(Subscription.commandId(name, event))
        )
      )
  }),

  Subscription.on(Payment, {
    PaymentReceived: (_, event) =>
      Order.evaluate(event.id, new ConfirmOrder()).pipe(
        Aggregate.withCommandId(Subscription.commandId(name, event)),
        // Too late: the order is cancelled. It can't be confirmed any more, so the money goes back.
        Effect.catchTag("NotOpen", () =>
          Payment.evaluate(event.id, new RefundPayment()).pipe(
            Aggregate.withCommandId(Subscription.commandId(name, event, "refund"))
          )
        )
      )
  })
] as const

export const Fulfilment = Subscription.make(name, { on: handlers, delivery: "at-least-once" })
