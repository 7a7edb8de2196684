/**
 * An order: it is placed, and then confirmed or cancelled, never both.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Aggregate } from "effect-maestro"

const details = {
  customer: Schema.NonEmptyString,
  amount: Schema.Positive,
  /** How long the customer may take to pay. */
  payWithin: Schema.DurationFromMillis
}

// Events.

class OrderPlaced extends Schema.TaggedClass<OrderPlaced>()("OrderPlaced", details) {}
class OrderConfirmed extends Schema.TaggedClass<OrderConfirmed>()("OrderConfirmed", {}) {}
class OrderCancelled extends Schema.TaggedClass<OrderCancelled>()("OrderCancelled", { reason: Schema.String }) {}

// Commands.

export class PlaceOrder extends Schema.TaggedClass<PlaceOrder>()("PlaceOrder", details) {}
export class ConfirmOrder extends Schema.TaggedClass<ConfirmOrder>()("ConfirmOrder", {}) {}
export class CancelOrder extends Schema.TaggedClass<CancelOrder>()("CancelOrder", { reason: Schema.String }) {}

const Status = Schema.Literal("none", "open", "confirmed", "cancelled")

/** The order is not open: it was not placed yet, or it is confirmed or cancelled. */
export class NotOpen extends Schema.TaggedError<NotOpen>()("NotOpen", { status: Status }) {
  override get message(): string {
    return this.status === "none" ? "there is no such order" : `the order is ${this.status} already`
  }
}

export class AlreadyPlaced extends Schema.TaggedError<AlreadyPlaced>()("AlreadyPlaced", {}) {
  override get message(): string {
    return "the order has been placed already"
  }
}

const OrderState = Schema.Struct({ status: Status })

export const Order = Aggregate.make("Order", {
  state: OrderState,
  initialState: { status: "none" },
  events: Schema.Union(OrderPlaced, OrderConfirmed, OrderCancelled),
  commands: Schema.Union(PlaceOrder, ConfirmOrder, CancelOrder),

  decide: {
    PlaceOrder: ({ amount, customer, payWithin }, { state }) =>
      state.status === "none"
        ? Effect.succeed([new OrderPlaced({ amount, customer, payWithin })])
        : new AlreadyPlaced(),
    ConfirmOrder: (_, { state }) => Effect.as(mustBeOpen(state), [new OrderConfirmed()]),
    CancelOrder: ({ reason }, { state }) => Effect.as(mustBeOpen(state), [new OrderCancelled({ reason })])
  },

  evolve: {
    OrderPlaced: () => ({ status: "open" as const }),
    OrderConfirmed: () => ({ status: "confirmed" as const }),
    OrderCancelled: () => ({ status: "cancelled" as const })
  }
})

// --- internal ---

const mustBeOpen = ({ status }: typeof OrderState.Type): Effect.Effect<void, NotOpen> =>
  status === "open" ? Effect.void : new NotOpen({ status })
